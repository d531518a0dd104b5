"""Servers for the tests: one of models/stories.bin, one of a small chat model, and one of SmolLM2, if it is there."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request

import openai
import pytest

ROOT = pathlib.Path(__file__).parents[2]
sys.path.insert(0, str(pathlib.Path(__file__).parent))
REQUIRE_DATA = bool(os.environ.get("POCKET_REQUIRE_DATA"))  # then no test is skipped


def wait_until(condition, seconds=10):
    """Waits until condition() is true."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(0.02)


def skip(reason):
    pytest.fail(reason) if REQUIRE_DATA else pytest.skip(reason)


class Server:
    """A running ./serve on a free port."""

    def __init__(self, model, *options):
        program = os.environ.get("SERVE", str(ROOT / "serve"))
        self.process = subprocess.Popen(
            [program, str(model), "--port", "0", "--quiet", *map(str, options)],
            stderr=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        self.lines = []
        self.port = None
        for line in self.process.stderr:
            self.lines.append(line)
            if found := re.search(r"listening on http://\S+:(\d+)", line):
                self.port = int(found[1])
                break
        assert self.port, "".join(self.lines)
        self.url = f"http://127.0.0.1:{self.port}"

    def client(self, **options):
        return openai.OpenAI(base_url=self.url + "/v1", api_key="none", **{"max_retries": 0, "timeout": 300, **options})

    def call(self, path, body=None, headers={}):
        """Status, headers and body of a request: a GET, or with a body a POST."""
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"Content-Type": "application/json", **headers}
        request = urllib.request.Request(self.url + path, data, headers)
        try:
            with urllib.request.urlopen(request, timeout=100) as response:
                return response.status, response.headers, response.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.headers, error.read().decode()

    def json(self, path, body=None):
        status, _, text = self.call(path, body)
        assert status == 200, text
        return json.loads(text)

    def figure(self, name):
        """A figure of /metrics."""
        text = self.call("/metrics")[2]
        return float(re.search(rf"^pocketllama_{name} (\S+)$", text, re.M)[1])

    def stop(self, number=signal.SIGINT):
        """Stops the server; returns its exit status and what it printed on stderr since the start."""
        self.process.send_signal(number)
        rest = self.process.communicate(timeout=60)[1]
        return self.process.returncode, rest


def serving(model, *options):
    server = Server(model, *options)
    yield server
    status, rest = server.stop()
    assert status == 0, rest


@pytest.fixture(scope="session")
def stories():
    yield from serving(ROOT / "models/stories.bin", "--parallel", 8, "--threads", 2)


@pytest.fixture(scope="session")
def chat_model(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "chat.bin"
    subprocess.run(
        [ROOT / "export/convert", "--random", "tiny", "--template", "plain", "-o", path],
        check=True,
        stderr=subprocess.DEVNULL,
    )
    return path


@pytest.fixture(scope="session")
def chat(chat_model):
    yield from serving(chat_model, "--threads", 2)


def random_model(folder, vocabulary, template, more_tokens=()):
    """A random model with a small vocabulary of the reference data, more tokens of its own, and a chat template."""
    data = pathlib.Path(os.environ.get("POCKET_DATA", ROOT.parent / "shared/data")) / "tokens"
    if not data.exists():
        skip(f"{data} is not there; POCKET_DATA names the folder of reference data")
    for file in data.glob("tiny/*"):
        (folder / file.name).write_bytes(file.read_bytes())
    tokenizer = json.loads((data / vocabulary / "tokenizer.json").read_text())
    for content in more_tokens:
        token = {"id": tokenizer["added_tokens"][-1]["id"] + 1, "content": content, "special": False}
        tokenizer["added_tokens"].append(
            {**token, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
        )
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    path = folder / "tools.bin"
    subprocess.run(
        [ROOT / "export/convert", folder, "--template", template, "--type", "f32", "-o", path],
        check=True,
        stderr=subprocess.DEVNULL,
    )
    return path


@pytest.fixture(scope="session")
def tool_model(tmp_path_factory):
    """Of Qwen 2.5, with its tokens for tools."""
    marks = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
    return random_model(tmp_path_factory.mktemp("qwen"), "qwen2", "qwen2.5", marks)


@pytest.fixture(scope="session")
def tool_server(tool_model):
    yield from serving(tool_model, "--threads", 2, "--ctx", 4096)


@pytest.fixture(scope="session")
def llama_tools(tmp_path_factory):
    """A server with the chat template of Llama 3.1."""
    model = random_model(tmp_path_factory.mktemp("llama"), "llama3", "llama-3.1")
    yield from serving(model, "--threads", 2, "--ctx", 4096)


@pytest.fixture(scope="session")
def smollm_path():
    path = ROOT / "models/smollm2-135m-instruct.bin"
    if not path.exists():
        skip("models/smollm2-135m-instruct.bin is not there; models/get smollm2-135m-instruct downloads it")
    return path


@pytest.fixture(scope="session")
def smollm(smollm_path):
    yield from serving(smollm_path, "--threads", 2, "--ctx", 2048)


@pytest.fixture
def start(request):
    """Starts servers that end with the test."""
    servers = []

    def start_one(model=ROOT / "models/stories.bin", *options):
        servers.append(Server(model, *options))
        return servers[-1]

    yield start_one
    for server in servers:
        if server.process.poll() is None:
            server.process.kill()
        server.process.communicate()
