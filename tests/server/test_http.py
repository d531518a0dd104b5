"""Hostile and odd HTTP: each gets the right status, and nobody else waits."""

import json
import signal
import socket
import threading
import time

import pytest
from conftest import ROOT, wait_until

BODY = json.dumps({"prompt": "Once", "max_tokens": 2, "seed": 1}).encode()
TEXT = "/v1/completions"


def send(server, data, wait=20):
    """All that the server replies to some bytes, until it closes the connection."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=wait) as s:
        for part in [data] if isinstance(data, bytes) else data:
            s.sendall(part)
        received = b""
        try:
            while part := s.recv(65536):
                received += part
        except (TimeoutError, ConnectionResetError):
            pass
        return received


def status(response):
    return int(response.split(b" ", 2)[1]) if response.startswith(b"HTTP/1.1 ") else None


def request(path=TEXT, body=BODY, method="POST", length=None, host="127.0.0.1", **headers):
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", "Connection: close"]
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    if method == "POST":
        headers = {
            "Content-Type": "application/json",
            "Content-Length": len(body) if length is None else length,
            **headers,
        }
    lines += [f"{name}: {value}" for name, value in headers.items() if value != ""]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def test_a_request_is_served(stories):
    assert status(send(stories, request())) == 200


@pytest.mark.parametrize(
    "expected, data",
    [
        (403, request(host="evil.example")),
        (403, request(host="127.0.0.1.evil.example:80")),
        (403, request(Origin="http://evil.example")),
        (403, request(Origin="null")),
        (200, request(Origin="http://127.0.0.1")),
        (403, request("/health", b"", "GET", host="evil.example")),
        (403, request("/", b"", "GET", host="evil.example")),
        (403, request(TEXT, b"", "OPTIONS", Origin="http://evil.example")),
        (415, request(Content_Type="text/plain")),
        (415, request(Content_Type="application/x-www-form-urlencoded")),
        (415, request(Content_Type="multipart/form-data; boundary=x")),
        (200, request(Content_Type="Application/JSON; charset=utf-8")),
        (415, request(Content_Encoding="gzip")),
        (200, request(Range="bytes=0-1")),
        (411, request(Content_Length="")),
        (413, request(length=10**12)),
        (413, request(length=10**30)),
        (400, request(length="-1")),
        (400, request(length="5x")),
        (400, request(Transfer_Encoding="chunked")),  # beside Content-Length
        (400, request(Content_Length="", Transfer_Encoding="gzip")),
        (400, request("/health", b"abc", "GET", Content_Length=3)),
        (404, request("/v1/nothing")),
        (404, request(TEXT, b"", "GET")),
        (404, request("/../../etc/passwd", b"", "GET")),
        (404, request("/%2e%2e/%2e%2e/etc/passwd", b"", "GET")),
        (400, b"nonsense\r\n\r\n"),
        (400, b"GET / HTTP/9.9\r\nHost: 127.0.0.1\r\n\r\n"),
        (403, b"GET /health HTTP/1.1\r\n\r\n"),
        (400, b"GET /health HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n"),
        (200, b"GET /health HTTP/1.0\r\n\r\n"),
        (414, b"GET /" + b"a" * 20000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n"),
        (400, b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 20000 + b"\r\n\r\n"),
        (431, b"GET /health HTTP/1.1\r\nHost: localhost\r\n" + (b"X: " + b"a" * 1000 + b"\r\n") * 90),
        (400, request(body=b"\xff\xfe{}")),
        (400, request(body=b'{"prompt": "\xff"}')),
        (400, request(body=b"[" * 1000000)),
        (400, request(body=b'{"a":' * 500000)),
        (400, request(body=b"")),
        (400, request(body=b"{} {}")),
        (400, request(body=b'{"prompt": 1e999}')),
    ],
)
def test_status(stories, expected, data):
    response = send(stories, data)
    assert status(response) == expected, response
    if expected >= 400:
        head, _, body = response.partition(b"\r\n\r\n")
        assert json.loads(body)["error"]["message"] and b"evil" not in head
        assert b"Access-Control" not in head


CHUNKED = {"Content_Length": "", "Transfer_Encoding": "Chunked"}


@pytest.mark.parametrize(
    "expected, body",
    [
        (200, b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)),
        (200, b"".join(b"1\r\n%c\r\n" % c for c in BODY) + b"0\r\n\r\n"),
        (400, b"xyz\r\n" + BODY),
        (408, b"-5\r\n" + BODY + b"\r\n"),  # read as a huge size, whose bytes do not come
        (400, b"ffffffffffffffffff\r\n" + BODY),
        (400, b"5\r\n" + BODY + b"\r\n0\r\n\r\n"),
        (413, b"7fffffffffffffff\r\n" + b"a" * 9_000_000),
        (413, b"100000\r\n" + b" " * 0x100000 + b"\r\n" + (b"100000\r\n" + b" " * 0x100000 + b"\r\n") * 8),
    ],
)
def test_chunks(stories, expected, body):
    assert status(send(stories, request(body=body, **CHUNKED), wait=60)) == expected


def test_head(stories):
    response = send(stories, request("/health", b"", "HEAD"))
    assert status(response) == 200 and b"Accept-Ranges" not in response and response.endswith(b"\r\n\r\n")


def test_large_body_is_refused_in_time(stories):
    """The headers are enough."""
    begin = time.time()
    assert status(send(stories, [request(body=b"", length=10**9), b"a" * 100000])) == 413
    assert time.time() - begin < 5


def test_pipelined_requests(stories):
    one = request().replace(b"Connection: close\r\n", b"")
    response = send(stories, one * 3 + request())
    assert response.count(b"HTTP/1.1 200") == 4


def test_a_refused_body_is_no_second_request(stories):
    hidden = request("/v1/models", b"", "GET")
    response = send(stories, request(host="evil.example", body=hidden).replace(b"Connection: close\r\n", b""))
    assert response.count(b"HTTP/1.1") == 1


def test_slow_clients_end_and_nobody_waits(start):
    """Headers, bodies and readers that take for ever, from more clients than there are connections to spare."""
    server = start(ROOT / "models/stories.bin", "--connections", 40)
    slow = []
    for i in range(30):
        s = socket.create_connection(("127.0.0.1", server.port))
        s.sendall(
            [b"G", b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nX: ", request(length=100, body=b"{")][i % 3]
        )
        slow.append(s)
    begin = time.time()
    while time.time() - begin < 40:
        for s in slow:
            try:
                s.sendall(b"a")
            except OSError:
                pass
        started = time.time()
        assert server.call(TEXT, BODY)[0] == 200
        assert time.time() - started < 5
        time.sleep(1)
    ended = 0
    for s in slow:
        s.settimeout(1)
        try:
            data = b""
            while part := s.recv(4096):
                data += part
            ended += status(data) == 408
        except ConnectionResetError:
            ended += 1
        except TimeoutError:
            pass
    assert ended == len(slow)
    wait_until(lambda: server.figure("connections") <= 2)


def test_too_many_connections(start):
    server = start(ROOT / "models/stories.bin", "--connections", 4)
    idle = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(4)]
    wait_until(lambda: status(send(server, request("/health", b"", "GET"))) == 503)
    for s in idle:
        s.close()
    wait_until(lambda: status(send(server, request("/health", b"", "GET"))) == 200)


def test_keys(start, tmp_path):
    (tmp_path / "keys").write_text("# comment\nkey-of-ada-0123456789\nkey-of-bob-0123456789\n")
    server = start(ROOT / "models/stories.bin", "--api-keys", tmp_path / "keys")
    for key, expected in [
        ("key-of-ada-0123456789", 200),
        ("key-of-bob-0123456789", 200),
        ("key-of-ada-012345678", 401),
        ("", 401),
        ("# comment", 401),
        (None, 401),
    ]:
        headers = {} if key is None else {"Authorization": "Bearer " + key}
        for path, body in [(TEXT, BODY), ("/v1/models", None), ("/metrics", None), ("/tokenize", {"prompt": "a"})]:
            assert server.call(path, body, headers)[0] == expected
    assert server.call("/health")[0] == 200 and server.call("/")[0] == 200


def test_other_addresses_require_keys():
    import subprocess
    from conftest import os

    program = os.environ.get("SERVE", str(ROOT / "serve"))
    for address in ["0.0.0.0", "::"]:
        done = subprocess.run(
            [program, ROOT / "models/stories.bin", "--host", address, "--port", "0"],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 2 and "--api-keys" in done.stderr


def test_allowed_names(start):
    server = start(ROOT / "models/stories.bin", "--allow-host", "llm.example", "--allow-origin", "https://chat.example")
    assert status(send(server, request(host="llm.example"))) == 200
    allowed = send(server, request(Origin="https://chat.example"))
    assert status(allowed) == 200 and b"Access-Control-Allow-Origin: https://chat.example\r\n" in allowed
    preflight = send(server, request(TEXT, b"", "OPTIONS", Origin="https://chat.example"))
    assert status(preflight) == 204 and b"Access-Control-Allow-Headers: Authorization, Content-Type" in preflight
    assert b"Content-Length" not in preflight
    for wanted, allowed in [
        ("authorization,content-type,x-stainless-os", b"authorization,content-type,x-stainless-os"),
        ("x;y", b"Authorization, Content-Type"),
    ]:
        headers = {"Origin": "https://chat.example", "Access_Control_Request_Headers": wanted}
        preflight = send(server, request(TEXT, b"", "OPTIONS", **headers))
        assert status(preflight) == 204 and b"Access-Control-Allow-Headers: " + allowed + b"\r\n" in preflight
    assert status(send(server, request(Origin="http://chat.example"))) == 403


def test_old_clients_get_a_stream(stories):
    body = json.dumps({"prompt": "Once", "max_tokens": 3, "stream": True}).encode()
    head = b"POST %s HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % (
        TEXT.encode(),
        len(body),
    )
    response = send(stories, head + body)
    assert status(response) == 200 and response.endswith(b"data: [DONE]\n\n") and b"chunked" not in response


def test_the_page(stories):
    code, headers, page = stories.call("/")
    assert (
        code == 200
        and page.startswith("<!doctype html>")
        and "frame-ancestors 'none'" in headers["Content-Security-Policy"]
    )
    assert "http://" not in page.replace("http://www.w3.org", "") and "https://" not in page


def test_no_prompt_in_the_log(start):
    import subprocess
    from conftest import os, re

    program = os.environ.get("SERVE", str(ROOT / "serve"))
    for options, shown in [([], False), (["--log-prompts"], True)]:
        process = subprocess.Popen(
            [program, ROOT / "models/stories.bin", "--port", "0", *options], stderr=subprocess.PIPE, text=True
        )
        port = next(re.search(r":(\d+)$", line)[1] for line in process.stderr if "listening" in line)
        from urllib.request import Request, urlopen

        urlopen(
            Request(
                f"http://127.0.0.1:{port}{TEXT}",
                b'{"prompt": "secret words", "max_tokens": 1}',
                {"Content-Type": "application/json"},
            )
        )
        process.send_signal(signal.SIGTERM)
        log = process.communicate(timeout=60)[1]
        assert process.returncode == 0 and "POST /v1/completions 200" in log
        assert ("secret words" in log) == shown


def test_shutdown_ends_running_replies(start):
    server = start(ROOT / "models/stories.bin", "--parallel", 1, "--ctx", 200000, "--threads", 1)
    results = []
    body = {"prompt": "Once upon a time", "max_tokens": 8000, "seed": 3, "logit_bias": {"2": -100}}
    streams = []
    threads = [threading.Thread(target=lambda: results.append(server.call(TEXT, body))) for _ in range(2)]
    threads.append(threading.Thread(target=lambda: streams.append(server.call(TEXT, {**body, "stream": True}))))
    for i, t in enumerate(threads):
        t.start()
        wait_until(lambda: server.figure("running") == 1 and server.figure("waiting") == i)
    server.process.send_signal(signal.SIGTERM)
    time.sleep(0.1)
    late = server.call(TEXT, BODY)
    assert late[0] == 503 and "Retry-After" in late[1]
    for t in threads:
        t.join()
    codes = sorted(r[0] for r in results)
    assert codes == [200, 503], results  # the running one ends, the waiting one is refused
    assert json.loads(next(r[2] for r in results if r[0] == 200))["usage"]["completion_tokens"] == 8000
    events = streams[0][2].split("\n\n")
    assert streams[0][0] == 200 and "shutting_down" in events[0] and events[1:] == ["data: [DONE]", ""]
    assert server.process.wait(timeout=30) == 0


def test_shutdown_waits_for_the_rest_of_a_stream(start):
    """A client that reads a stream after its reply has ended, and the server has got a signal."""
    server = start(ROOT / "models/stories.bin", "--threads", 1, "--ctx", 1000)
    body = {"prompt": "Once", "max_tokens": 500, "n": 16, "logprobs": 20, "logit_bias": {"2": -100}, "stream": True}
    body = json.dumps({**body, "stream_options": {"include_usage": True}}).encode()
    with socket.socket() as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        s.settimeout(60)
        s.connect(("127.0.0.1", server.port))
        s.sendall(request(TEXT, body))
        while server.figure("generated_tokens_total") < 8000 or server.figure("running") > 0:
            time.sleep(0.05)
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        with s.makefile("rb") as file:
            stream = file.read()
    assert b'"completion_tokens":8000' in stream and b"data: [DONE]" in stream[-100:]
    assert server.process.wait(timeout=30) == 0


def test_large_bodies_do_not_wait_for_embeddings(start):
    server = start(ROOT / "models/stories.bin", "--parallel", 1, "--ctx", 200000)
    body = json.dumps({"prompt": "Once", "max_tokens": 150000, "logit_bias": {"2": -100}}).encode()
    with socket.create_connection(("127.0.0.1", server.port)) as s:
        s.sendall(request(TEXT, body))
        while server.figure("running") == 0:
            time.sleep(0.01)
        results = []
        inputs = ["Once upon a time " * 50] * 100
        embed = threading.Thread(target=lambda: results.append(server.call("/v1/embeddings", {"input": inputs})))
        embed.start()
        while server.figure("waiting") == 0:
            time.sleep(0.01)
        assert server.call("/tokenize", {"prompt": "a " * 50000})[0] == 200
        assert server.figure("running") == 1 and not results
    embed.join()
    assert results[0][0] == 200 and len(json.loads(results[0][2])["data"]) == 100
