"""POST /explain: what happens inside the model while it writes a reply."""

import base64
import json
import socket
import struct
import threading
import time
import zlib

import pytest

STORY = {"prompt": "Once upon a time", "max_tokens": 30, "seed": 5, "temperature": 0.8, "top_p": 0.9}
CHAT = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 20, "seed": 3}


def floats(text):
    data = base64.b64decode(text)
    return struct.unpack(f"<{len(data) // 4}f", data)


def test_explains_the_reply_to_the_same_request(stories):
    reply = stories.json("/v1/completions", {**STORY, "logprobs": 5})["choices"][0]
    data = stories.json("/explain", STORY)
    new = [t for t in data["tokens"] if t["new"]]
    assert "".join(data["pieces"][str(t["id"])] for t in new) == reply["text"]
    assert len(new) == 30 and data["options"]["seed"] == 5
    n, layers, heads = data["positions"], data["model"]["layers"], data["model"]["heads"]
    assert n == len(data["choices"]) == len(data["tokens"]) - 1
    for token, logprob in zip(new, reply["logprobs"]["token_logprobs"]):
        assert abs(token["p"] - 2.718281828**logprob) < 1e-5
    triangle = n * (n + 1) // 2
    for layer in data["attention"]:
        weights = zlib.decompress(base64.b64decode(layer), -15)
        assert len(weights) == heads * triangle
        for head in range(heads):
            last = weights[head * triangle + triangle - n : (head + 1) * triangle]
            assert abs(sum((b / 255) ** 2 for b in last) - 1) < 0.05
    assert len(data["attention"]) == layers
    assert len(floats(data["lens"]["entropy"])) == len(data["lens"]["layers"]) * n
    chosen = [c for c in data["choices"] if c]
    assert [c["id"] for c in chosen] == [t["id"] for t in new]
    for c in chosen:
        assert c["list"][0][1] >= c["list"][1][1] and 0 < sum(a[3] for a in c["list"]) < 1.001


def test_seeds_keep_their_digits(stories):
    for seed, written in [(2**53, 2**53), (2**53 + 1, str(2**53 + 1)), (-1, str(2**64 - 1))]:
        assert stories.json("/explain", {**STORY, "seed": seed})["options"]["seed"] == written


def test_the_same_request_gets_the_same_bytes(stories, chat):
    for server, body in [(stories, STORY), (chat, CHAT)]:
        first = server.call("/explain", body)
        assert first[0] == 200 and first[1]["Content-Type"] == "application/json"
        assert server.call("/explain", {**body, "stream": True})[2] == first[2]


def test_a_chat(chat):
    data = chat.json("/explain", CHAT)
    reply = chat.json("/v1/chat/completions", CHAT)
    assert data["options"]["mode"] == "chat"
    assert sum(t["new"] for t in data["tokens"]) == reply["usage"]["completion_tokens"]


def test_at_most_512_tokens(start):
    server = start("models/stories.bin", "--ctx", "1024")
    data = server.json("/explain", {**STORY, "prompt": "The dog ran home. " * 40, "max_tokens": 1000})
    assert data["positions"] <= 512
    data = server.json("/explain", {**STORY, "prompt": "The dog ran home. " * 150, "max_tokens": 1000})
    assert data["positions"] == 512 and data["cut"] > 600
    assert not any(t["new"] for t in data["tokens"])


@pytest.mark.parametrize(
    "change, param",
    [
        ({"seed": None}, "seed"),
        ({"n": 2}, "n"),
        ({"prompt": ["a", "b"]}, "prompt"),
        ({"frequency_penalty": 1}, "frequency_penalty"),
        ({"presence_penalty": 1}, "presence_penalty"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"temperature": -1}, "temperature"),
        ({"prompt": 5}, "prompt"),
    ],
)
def test_refuses_what_it_cannot_explain(stories, change, param):
    status, _, text = stories.call("/explain", {**STORY, **change})
    assert status == 400 and json.loads(text)["error"]["param"] == param, text


def test_refuses_other_bodies(stories):
    for body in [b"", b"{", b"[]", b"null", b'{"messages": 1}']:
        status, _, text = stories.call("/explain", body)
        assert status == 400 and json.loads(text)["error"]["message"], body


def test_data_require_the_key_and_the_page_does_not(start, tmp_path):
    keys = tmp_path / "keys.txt"
    keys.write_text("0123456789abcdef0123456789abcdef\n")
    server = start("models/stories.bin", "--api-keys", keys)
    assert server.call("/explain", STORY)[0] == 401
    assert server.call("/explain", STORY, {"Authorization": "Bearer 0123456789abcdef0123456789abcdef"})[0] == 200
    status, headers, page = server.call("/explain")
    assert status == 200 and headers["Content-Type"].startswith("text/html")
    assert headers["Content-Security-Policy"] == "frame-ancestors 'self'; sandbox allow-scripts"
    assert ">null</script>" in page and "POCKET_DATA" not in page and "NONCE" not in page


def test_other_origins_are_refused(stories):
    assert stories.call("/explain", STORY, {"Origin": "https://example.org"})[0] == 403


def test_others_are_served_and_one_text_at_a_time(smollm):
    """A long explanation: a second one is refused, a reply is not."""
    body = {"messages": [{"role": "user", "content": "Tell me about the sea. " * 60}], "max_tokens": 30, "seed": 1}
    results = []

    def explain():
        while not results or results[-1] == 429:  # the other one may come first
            results.append(smollm.call("/explain", body)[0])

    thread = threading.Thread(target=explain)
    thread.start()
    other = [0]
    while other[0] != 429 and thread.is_alive():
        other = smollm.call("/explain", {**CHAT, "max_tokens": 2})
        time.sleep(0.05)
    assert smollm.call("/v1/chat/completions", {**CHAT, "max_tokens": 2})[0] == 200
    thread.join()
    assert results[-1] == 200
    assert other[0] == 429 and int(other[1]["Retry-After"]) >= 1
    assert smollm.call("/explain", {**CHAT, "max_tokens": 2})[0] == 200


def test_clients_that_hang_up_leave_nothing(smollm):
    body = json.dumps({"messages": [{"role": "user", "content": "Tell me about the sea. " * 60}], "seed": 1}).encode()
    head = f"POST /explain HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    for wait in [0, 0.05, 0.3, 0.6]:
        with socket.create_connection(("127.0.0.1", smollm.port)) as s:
            s.sendall(head + body)
            time.sleep(wait)
    for _ in range(300):
        status = smollm.call("/explain", {**CHAT, "max_tokens": 2})[0]
        if status == 200:
            break
        time.sleep(0.1)
    assert status == 200
    assert smollm.figure("running") == 0
