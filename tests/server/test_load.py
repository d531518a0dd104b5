"""Many clients at once: each gets the reply that it gets alone, whatever the others do. POCKET_LONG=1 takes 15 minutes."""

import concurrent.futures
import http.client
import json
import os
import random
import socket
import threading
import time

import pytest
from conftest import ROOT, wait_until

LONG = bool(os.environ.get("POCKET_LONG"))
STORIES = ROOT / "models/stories.bin"
TEXT = "/v1/completions"


def requests(n, chat=False):
    """Requests of all kinds: short, long, with a common beginning, with parameters."""
    rng = random.Random(1)
    beginnings = [
        "Once upon a time",
        "The dog",
        "Lily and Ben went to the park. They saw a big tree and a small bird. ",
    ]
    for i in range(n):
        words = rng.choice(beginnings) + rng.choice(["", " and", " was very happy. One day, she"]) * rng.randrange(4)
        body = {
            "seed": i,
            "max_tokens": rng.randrange(1, 60),
            "temperature": rng.choice([0, 0.7, 1, 1.5]),
            "stream": rng.random() < 0.5,
        }
        body |= rng.choice([{}, {"top_p": 0.9}, {"top_k": 5}, {"n": 2}, {"stop": ["."]}, {"frequency_penalty": 1}])
        if chat:
            body |= rng.choice([{}, {"logprobs": True, "top_logprobs": 3}])
            body["messages"] = [{"role": "user", "content": words}]
        else:
            body |= rng.choice([{}, {"logprobs": 3}, {"echo": True, "logprobs": 1}])
            body["prompt"] = words
        yield body


class Client:
    """A connection. reply() returns all of a response that does not depend on the clock."""

    def __init__(self, server):
        self.connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=600)

    def send(self, body, path):
        self.connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        return self.connection.getresponse()

    def reply(self, body, path=TEXT):
        try:
            response = self.send(body, path)
        except (ConnectionError, http.client.RemoteDisconnected):  # it was idle for too long
            self.connection.close()
            response = self.send(body, path)
        data = response.read().decode()
        if response.status != 200:
            return response.status, data
        lines = [line.removeprefix("data: ") for line in data.split("\n") if line]
        bodies = [json.loads(line) for line in lines if line != "[DONE]"]
        for b in bodies:
            del b["id"], b["created"]
        return 200, sorted(json.dumps(b) for b in bodies) if body.get("n") else bodies


def together(server, bodies, clients, path=TEXT):
    """The replies to requests from so many clients at once."""
    local = threading.local()

    def one(body):
        if not hasattr(local, "client"):
            local.client = Client(server)
        return local.client.reply(body, path)

    with concurrent.futures.ThreadPoolExecutor(clients) as pool:
        return list(pool.map(one, bodies))


@pytest.mark.parametrize(
    "options", [(), ("--parallel", 3, "--kept", 4), ("--kept", 0), ("--memory", "20MB"), ("--threads", 1)]
)
def test_replies_do_not_depend_on_the_load(start, options):
    bodies = list(requests(2000 if LONG else 200))
    alone = start(STORIES, "--kept", 0, "--parallel", 2)
    expected = together(alone, bodies, 1)
    assert all(status == 200 for status, _ in expected)
    busy = start(STORIES, *options)
    shuffled = bodies[:]
    random.Random(2).shuffle(shuffled)
    found = dict(zip(map(json.dumps, shuffled), together(busy, shuffled, 32)))
    for body, reply in zip(bodies, expected):
        assert found[json.dumps(body)] == reply
    assert busy.figure("running") == 0 and busy.figure("waiting") == 0


def test_chats_do_not_depend_on_the_load(start, smollm):
    bodies = list(requests(600 if LONG else 24, chat=True))
    path = "/v1/chat/completions"
    expected = together(smollm, bodies, 1, path)
    assert all(status == 200 for status, _ in expected)
    assert together(smollm, bodies, 32, path) == expected
    assert smollm.figure("reused_tokens_total") > 0


@pytest.mark.parametrize("chat", [False, True], ids=["stories", "smollm"])
def test_many_clients_for_long(start, request, chat):
    """32 clients at once, each with a request after the other: 5 minutes with POCKET_LONG, else some seconds."""
    seconds = 300 if LONG else 5
    path = "/v1/chat/completions" if chat else TEXT
    bodies = list(requests(60 if chat else 300, chat))
    model = request.getfixturevalue("smollm_path") if chat else STORIES
    server = start(model, "--ctx", 512, "--parallel", 16)
    expected = together(server, bodies, 1, path)
    assert all(status == 200 for status, _ in expected)
    end = time.time() + seconds
    count = [0] * 32

    def client(i):
        rng, connection = random.Random(i), Client(server)
        while time.time() < end:
            at = rng.randrange(len(bodies))
            assert connection.reply(bodies[at], path) == expected[at]
            count[i] += 1

    with concurrent.futures.ThreadPoolExecutor(32) as pool:
        list(pool.map(client, range(32)))
    tokens = server.figure("generated_tokens_total")
    print(f"{sum(count)} requests in {seconds} s, at least {min(count)} of a client, {tokens:.0f} tokens")
    assert min(count) > 0


def test_beyond_the_queue(start):
    """429 with Retry-After; the others get what they get alone."""
    server = start(STORIES, "--parallel", 2, "--queue", 4)
    bodies = [{"prompt": "Once", "max_tokens": 200, "seed": i, "logit_bias": {"2": -100}} for i in range(64)]
    expected = [Client(server).reply(body) for body in bodies[:8]]
    found = together(server, bodies, 32)
    assert {status for status, _ in found} == {200, 429}
    for (status, reply), alone in zip(found, expected):
        assert status == 429 or reply == alone[1]
    refused = next(reply for status, reply in found if status == 429)
    assert json.loads(refused)["error"]["code"] == "rate_limit_exceeded"


def hang_up(server, rng):
    """A client that sends a request, reads a part of the reply, and is gone."""
    body = json.dumps(
        {"prompt": "Once upon a time", "max_tokens": 200, "stream": rng.random() < 0.7, "n": rng.choice([1, 1, 3])}
    )
    with socket.create_connection(("127.0.0.1", server.port)) as s:
        s.sendall(
            f"POST {TEXT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()
        )
        if rng.random() < 0.5:
            s.settimeout(0.001 + 0.02 * rng.random())
            try:
                s.recv(rng.randrange(1, 4000))
            except TimeoutError:
                pass


def test_clients_that_hang_up(start):
    server = start(STORIES, "--queue", 1000)
    bodies = list(requests(150))
    expected = together(server, bodies, 1)
    pid = server.process.pid
    descriptors = lambda: len(os.listdir(f"/proc/{pid}/fd"))
    before = descriptors()
    stop = threading.Event()

    def many(seed):
        rng = random.Random(seed)
        for _ in range(250):
            if not stop.is_set():
                hang_up(server, rng)

    threads = [threading.Thread(target=many, args=(i,)) for i in range(4)]
    for t in threads:
        t.start()
    assert together(server, bodies, 8) == expected
    for t in threads:
        t.join()
    for _ in range(100):
        if server.figure("running") == server.figure("waiting") == 0 and descriptors() <= before + 1:
            break
        time.sleep(0.1)
    assert server.figure("running") == server.figure("waiting") == server.figure("kv_reserved_bytes") == 0
    assert server.figure("cancelled_total") > 0
    assert descriptors() <= before + 1


def test_hang_up_ends_the_reply_at_once(start):
    server = start(STORIES, "--ctx", 200000)
    rng = random.Random(0)
    body = json.dumps({"prompt": "Once", "max_tokens": 100000, "logit_bias": {"2": -100}}).encode()
    s = socket.create_connection(("127.0.0.1", server.port))
    s.sendall(
        b"POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
        % (TEXT.encode(), len(body), body)
    )
    while server.figure("running") == 0:
        time.sleep(0.01)
    s.close()
    wait_until(lambda: server.figure("running") == 0, 20)
    assert server.figure("cancelled_total") == 1
    while server.figure(r'requests_total\{status="4xx"\}') == 0:  # the client's fault
        assert time.time() - begin < 5
    assert server.figure(r'requests_total\{status="5xx"\}') == 0


@pytest.mark.parametrize("n, param", [(128, "n"), (1, "prompt")])
def test_too_many_replies_are_refused_at_once(start, n, param):
    server = start(STORIES)
    before = server.figure("resident_bytes")
    body = {"prompt": ["Once upon a time. " * 45] * 2048, "n": n, "echo": True, "max_tokens": 1}
    status, _, reply = server.call(TEXT, body)
    assert status == 400 and json.loads(reply)["error"]["param"] == param, reply
    assert server.figure("resident_bytes") < before + 50e6


def resident(server):
    with open(f"/proc/{server.process.pid}/status") as file:
        return next(int(line.split()[1]) / 1024 for line in file if line.startswith("VmRSS"))


def test_memory_is_flat(start):
    """MB of resident memory after a warm-up and after many more requests of all kinds."""
    server = start(STORIES)
    bodies = list(requests(500))
    for i in range(0, 500, 50):  # more connections than there are threads, so that all have been used
        together(server, bodies[i : i + 50], 32)
    together(server, bodies, 32)
    memory = [resident(server)]
    for _ in range(20 if LONG else 3):
        together(server, bodies, 32)
        memory.append(resident(server))
    print("resident memory in MB after each 500 requests:", *(f"{m:.1f}" for m in memory))
    assert memory[-1] - memory[0] < 5


def slow_reader(server, path, body):
    """A socket with a request, whose small buffer makes the server wait until the response is read."""
    s = socket.socket()
    s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    s.connect(("127.0.0.1", server.port))
    s.sendall(
        b"POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
        % (path.encode(), len(body), body)
    )
    return s


def test_slow_readers_hold_nobody_up(start):
    """Clients that never read their stream: the reply ends, and others get theirs."""
    server = start(STORIES, "--ctx", 100000)
    body = json.dumps({"prompt": "Once", "max_tokens": 20000, "stream": True, "logit_bias": {"2": -100}}).encode()
    sockets = [slow_reader(server, TEXT, body) for _ in range(6)]
    for _ in range(20):
        begin = time.time()
        assert Client(server).reply({"prompt": "Once", "max_tokens": 5})[0] == 200
        assert time.time() - begin < 10
    for s in sockets:
        s.close()


def test_slow_readers_of_large_responses(start):
    """Of a response of 20 MB, at 10 KB/s: it ends, and its memory goes back to the system."""
    server = start(STORIES)
    status, _, reply = server.call("/tokenize", {"prompt": "a " * 300000, "return_token_strs": True})
    assert status == 400 and json.loads(reply)["error"]["param"] == "return_token_strs"
    before = server.figure("resident_bytes")
    body = json.dumps({"prompt": "a " * 4100000}).encode()
    sockets = [slow_reader(server, "/tokenize", body) for _ in range(3)]
    for s in sockets:
        s.settimeout(60)
        assert s.recv(12) == b"HTTP/1.1 200"
    begin = time.time()
    while server.figure("connections") > 1:
        assert time.time() - begin < 100
        for s in sockets:
            s.recv(1024)
        time.sleep(0.1)
    assert time.time() - begin > 25
    for s in sockets:
        s.close()
    assert server.figure("resident_bytes") < before + 50e6
