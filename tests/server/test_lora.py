"""A server of a model with an adapter."""

import subprocess

import pytest
from conftest import ROOT

MODEL = ROOT / "models/stories.bin"
PROMPT = "Once upon a time"


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    """An adapter that knows one story."""
    folder = tmp_path_factory.mktemp("lora")
    data = folder / "data.jsonl"
    data.write_text(8 * '{"prompt": "Once upon a time", "completion": " a robot called Zorg ate a blue stone."}\n')
    options = "--lora-rank 4 --steps 40 --lr 0.01 --batch 2 --ctx 64".split()
    subprocess.run([ROOT / "models/train", data, "--init", MODEL, *options, "-o", folder / "robot"], check=True, capture_output=True)
    return folder / "robot"


def text_of_run(*options):
    command = [ROOT / "run", MODEL, "-i", PROMPT, "-s", "5", "-n", "20", "-t", "0.9", "-q", *options]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.rstrip("\n")


def text_of(server):
    body = {"prompt": PROMPT, "seed": 5, "max_tokens": 20, "temperature": 0.9, "top_p": 0.9, "echo": True}
    return server.json("/v1/completions", body)["choices"][0]["text"]


@pytest.mark.parametrize("scale", ["", ":0.15", ":0"])
def test_same_text_as_run(start, adapter, scale):
    server = start(MODEL, "--lora", f"{adapter}{scale}", "--threads", 2)
    with_adapter = text_of_run("--lora", f"{adapter}{scale}")
    assert text_of(server) == with_adapter
    assert (with_adapter == text_of_run("--lora", f"{adapter}:1")) == (scale == "")
    assert (with_adapter == text_of_run()) == (scale == ":0")


def test_wrong_adapters_are_refused(adapter, chat_model):
    for model, folder, words in [
        (MODEL, adapter.parent, "adapter_config.json"),
        (chat_model, adapter, "adapter"),
        (MODEL, f"{adapter}:x", "a number"),
    ]:
        done = subprocess.run([ROOT / "serve", model, "--port", "0", "--lora", folder], capture_output=True, text=True, timeout=60)
        assert done.returncode != 0 and words in done.stderr, done.stderr
