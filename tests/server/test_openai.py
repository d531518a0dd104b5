"""The openai package against the server."""

import json
import math
import subprocess

import openai
import pytest
from conftest import ROOT

PROMPT = "Once upon a time"
CHAT = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello"}]


def text(server, **options):
    return server.client().completions.create(
        model="stories", **{"prompt": PROMPT, "seed": 5, "max_tokens": 30, **options}
    )


def reply(server, **options):
    return server.client().chat.completions.create(
        model="chat", **{"messages": CHAT, "seed": 5, "max_tokens": 20, **options}
    )


def refusal(error, call, **options):
    with pytest.raises(error) as caught:
        call(**options)
    return caught.value


def test_text(stories):
    body = text(stories)
    assert body.object == "text_completion" and body.model == "stories" and body.created > 0
    assert body.usage.prompt_tokens == 5 and body.usage.completion_tokens == 30 and body.usage.total_tokens == 35
    assert body.choices[0].finish_reason == "length" and body.choices[0].text
    assert text(stories).choices[0].text == body.choices[0].text
    assert text(stories, seed=6).choices[0].text != body.choices[0].text


def test_seed_is_reported(stories):
    first = text(stories, seed=None)
    assert text(stories, seed=first.seed).choices[0].text == first.choices[0].text


def test_text_as_ids(stories):
    ids = stories.json("/tokenize", {"prompt": PROMPT})["tokens"]
    assert text(stories, prompt=ids).choices[0].text == text(stories).choices[0].text
    assert stories.json("/detokenize", {"tokens": ids})["prompt"].strip() == PROMPT


def test_same_text_as_run(stories):
    command = [
        ROOT / "run",
        ROOT / "models/stories.bin",
        "-i",
        PROMPT,
        "-s",
        "5",
        "-n",
        "30",
        "-t",
        "1",
        "-p",
        "1",
        "-q",
    ]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert printed.rstrip("\n") == PROMPT + text(stories).choices[0].text


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"logprobs": 3},
        {"echo": True},
        {"echo": True, "logprobs": 2},
        {"n": 3},
        {"stop": [" she", "."]},
        {"max_tokens": 1},
    ],
)
def test_text_stream_is_the_text(stories, options):
    whole = text(stories, **options)
    parts = list(text(stories, stream=True, stream_options={"include_usage": True}, **options))
    assert parts[-1].usage == whole.usage and parts[-1].choices == []
    for i, choice in enumerate(whole.choices):
        mine = [p.choices[0] for p in parts[:-1] if p.choices[0].index == i]
        assert "".join(c.text for c in mine) == choice.text
        assert [c.finish_reason for c in mine] == [None] * (len(mine) - 1) + [choice.finish_reason]
        for field in ("tokens", "token_logprobs", "text_offset", "top_logprobs"):
            streamed = [x for c in mine if c.logprobs for x in getattr(c.logprobs, field)]
            assert streamed == (getattr(choice.logprobs, field) if choice.logprobs else [])


@pytest.mark.parametrize("options", [{}, {"logprobs": True, "top_logprobs": 4}, {"n": 2}, {"stop": "a"}])
def test_chat_stream_is_the_reply(chat, options):
    whole = reply(chat, **options)
    parts = list(reply(chat, stream=True, **options))
    for i, choice in enumerate(whole.choices):
        mine = [p.choices[0] for p in parts if p.choices[0].index == i]
        assert mine[0].delta.role == "assistant" and all(c.delta.role is None for c in mine[1:])
        assert "".join(c.delta.content or "" for c in mine) == choice.message.content
        assert mine[-1].finish_reason == choice.finish_reason
        streamed = [t for c in mine if c.logprobs for t in c.logprobs.content]
        assert streamed == (choice.logprobs.content if choice.logprobs else [])


def test_whole_characters(start, chat_model):
    """A random model writes bytes that are no text; each event is valid UTF-8, and the sum is that of the whole reply."""
    server = start(chat_model)
    for seed in range(10):
        options = {"messages": CHAT, "seed": seed, "max_tokens": 60, "temperature": 2}
        whole = server.client().chat.completions.create(model="chat", **options)
        parts = server.client().chat.completions.create(model="chat", stream=True, **options)
        assert "".join(p.choices[0].delta.content or "" for p in parts) == whole.choices[0].message.content


def test_choices_have_seeds_in_turn(stories):
    choices = text(stories, n=4).choices
    assert [c.index for c in choices] == [0, 1, 2, 3]
    for i, choice in enumerate(choices):
        assert choice.text == text(stories, seed=5 + i).choices[0].text


def test_logprobs(stories):
    choice = text(stories, logprobs=5, temperature=0).choices[0]
    whole = choice.logprobs
    for token, logprob, top in zip(whole.tokens, whole.token_logprobs, whole.top_logprobs):
        assert len(top) == 5 and top[token] == logprob == max(top.values())
        assert sum(math.exp(p) for p in top.values()) <= 1.0001
    assert "".join(whole.tokens) == choice.text


def test_echo_logprobs_are_those_of_the_reply(stories):
    """What a reply got as log probabilities it gets again as a part of a prompt."""
    made = text(stories, logprobs=2)
    ids = stories.json("/tokenize", {"prompt": PROMPT})["tokens"]
    echoed = (
        text(stories, prompt=PROMPT + made.choices[0].text, echo=True, logprobs=2, max_tokens=0).choices[0].logprobs
    )
    assert echoed.token_logprobs[0] is None and echoed.top_logprobs[0] is None
    assert echoed.tokens[len(ids) :] == made.choices[0].logprobs.tokens
    assert echoed.token_logprobs[len(ids) :] == made.choices[0].logprobs.token_logprobs
    assert echoed.top_logprobs[len(ids) :] == made.choices[0].logprobs.top_logprobs


def test_offsets_are_of_the_text(stories):
    wide = {"echo": True, "prompt": "Zoë 你好 \U0001f600 said"}
    for options in ({}, {"echo": True}, wide, {"prompt": "", "stop": ["."]}):
        choice = text(stories, logprobs=0, max_tokens=60, **options).choices[0]
        tokens, offsets = choice.logprobs.tokens, choice.logprobs.text_offset
        for i, (token, at) in enumerate(zip(tokens, offsets)):
            if token.startswith("bytes:") or at >= len(choice.text):  # a part of a character, or after a stop text
                continue
            end = offsets[i + 1] if i + 1 < len(tokens) else len(choice.text)
            expected = "" if token == "<s>" else token.removeprefix(" ") if at == 0 else token
            assert choice.text[at:end] == expected, (options, i)


def test_names_of_tokens_are_unique(chat):
    def unique(pairs):
        assert len(dict(pairs)) == len(pairs)
        return dict(pairs)

    body = {"prompt": "a", "logprobs": 20, "temperature": 2, "max_tokens": 40, "seed": 1}
    logprobs = json.loads(chat.call("/v1/completions", body)[2], object_pairs_hook=unique)["choices"][0]["logprobs"]
    assert [len(top) for top in logprobs["top_logprobs"]] == [20] * 40
    names = logprobs["tokens"] + [name for top in logprobs["top_logprobs"] for name in top]
    assert any(name.startswith("bytes:\\x") for name in names) and "\ufffd" not in "".join(names)


@pytest.mark.parametrize("options", [{}, {"n": 2}, {"echo": True, "logprobs": 2}, {"stop": ["."]}])
def test_several_prompts(stories, options):
    """Each prompt gets what it gets alone; choice n * i + k is the k-th of prompt i."""
    ids = stories.json("/tokenize", {"prompt": "The dog"})["tokens"]
    prompts = [PROMPT, ids, "", *(f"{word} was" for word in "Tom Lily Ben Mia Sam Max Sue Tim Ann Bob Eve Kim Ida".split())]
    alone = [text(stories, prompt=p, **options) for p in prompts]
    for several in (prompts[:1], prompts[:1] + prompts[2:], [ids, ids], prompts):
        body = text(stories, prompt=several, **options)
        expected = [a for p in several for a in alone[prompts.index(p)].choices]
        assert [c.index for c in body.choices] == list(range(len(expected)))
        for found, one in zip(body.choices, expected):
            assert (found.text, found.finish_reason, found.logprobs) == (one.text, one.finish_reason, one.logprobs)
        assert body.usage.prompt_tokens == sum(alone[prompts.index(p)].usage.prompt_tokens for p in several)
        parts = list(text(stories, prompt=several, stream=True, **options))
        for i, choice in enumerate(body.choices):
            assert "".join(p.choices[0].text for p in parts if p.choices[0].index == i) == choice.text


def test_stop(stories):
    whole = text(stories).choices[0].text
    word = whole.split()[5]
    cut = text(stories, stop=[word, "never"]).choices[0]
    assert cut.text == whole[: whole.index(word)] and cut.finish_reason == "stop"


def test_sampling_parameters(stories):
    greedy = text(stories, temperature=0).choices[0].text
    assert text(stories, temperature=0, seed=77).choices[0].text == greedy
    for options in ({"top_p": 1e-9}, {"extra_body": {"top_k": 1}}, {"extra_body": {"min_p": 1.0}}):
        assert text(stories, **options).choices[0].text == greedy
    token = stories.json("/tokenize", {"prompt": " dog", "add_special_tokens": False})["tokens"][-1]
    forced = text(stories, logit_bias={str(token): 100}, max_tokens=3, logprobs=0).choices[0].logprobs.tokens
    assert len(set(forced)) == 1


def test_chat_conversation(chat):
    body = reply(chat, max_completion_tokens=7, max_tokens=None)
    assert body.usage.completion_tokens <= 7 and body.object == "chat.completion"
    assert body.choices[0].message.role == "assistant"
    more = CHAT + [
        {"role": "assistant", "content": "Hi"},
        {"role": "user", "content": [{"type": "text", "text": "Why?"}]},
    ]
    assert reply(chat, messages=more).usage.prompt_tokens > body.usage.prompt_tokens


def test_models(stories):
    models = stories.client().models.list().data
    assert [m.id for m in models] == ["stories"]
    assert stories.client().models.retrieve("stories").id == "stories"
    assert refusal(openai.NotFoundError, stories.client().models.retrieve, model="other").code == "model_not_found"


def test_errors_name_the_parameter(stories, chat):
    cases = [
        (text, stories, openai.BadRequestError, {"temperature": -1}, "temperature"),
        (text, stories, openai.BadRequestError, {"prompt": ""}, None),
        (text, stories, openai.BadRequestError, {"max_tokens": 0}, "max_tokens"),
        (text, stories, openai.BadRequestError, {"prompt": "a " * 1000}, "prompt"),
        (text, stories, openai.BadRequestError, {"logit_bias": {"99999": 1}}, "logit_bias"),
        (text, stories, openai.BadRequestError, {"n": 999}, "n"),
        (text, stories, openai.NotFoundError, {"extra_body": {"model": "other"}}, "model"),
        (reply, stories, openai.NotFoundError, {}, "model"),
        (reply, chat, openai.BadRequestError, {"messages": []}, "messages"),
        (reply, chat, openai.BadRequestError, {"top_logprobs": 2}, "top_logprobs"),
        (reply, chat, openai.BadRequestError, {"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        (reply, chat, openai.BadRequestError, {"tool_choice": "required"}, "tool_choice"),
    ]
    for call, server, error, options, param in cases:
        if options == {"prompt": ""}:  # a text from nothing: BOS alone
            assert call(server, **options).usage.prompt_tokens == 1
            continue
        found = refusal(error, call, server=server, **options)
        assert found.param == param and found.type == "invalid_request_error" and found.message


def test_unknown_fields_are_ignored(stories):
    assert text(stories, extra_body={"future": {"a": 1}, "user": "x"}).choices[0].text == text(stories).choices[0].text


def test_embeddings(stories):
    client = stories.client()
    texts = ["The dog ran.", "The dog runs.", "Lily was happy", ""]
    found = client.embeddings.create(model="stories", input=texts)
    values = [e.embedding for e in found.data]
    plain = client.embeddings.create(model="stories", input=texts, encoding_format="float")
    for value, other in zip(values, plain.data):
        assert list(value) == pytest.approx(other.embedding, abs=1e-7)
        assert sum(x * x for x in value) == pytest.approx(1, abs=1e-4)
    dot = lambda a, b: sum(x * y for x, y in zip(a, b))
    assert dot(values[0], values[1]) > dot(values[0], values[2])
    many = client.embeddings.create(model="stories", input=["The dog ran."] * 1000)  # more than run at once
    assert all(e.embedding == many.data[0].embedding for e in many.data)
    longest = "a " * (stories.json("/tokenize", {"prompt": ""})["max_model_len"] - 2)
    assert client.embeddings.create(model="stories", input=longest).usage.prompt_tokens > 250
    for wrong in [[], [[]], "a " * 1000, ["a", 5], [99999]]:
        assert refusal(openai.BadRequestError, client.embeddings.create, model="stories", input=wrong).param.startswith(
            "input"
        )


def test_embeddings_wait_beside_a_running_reply(start):
    server = start(ROOT / "models/stories.bin", "--parallel", 4, "--queue", 0, "--ctx", 200000)
    running = text(server, stream=True, max_tokens=150000, logit_bias={"2": -100})
    next(running)
    found = server.client().embeddings.create(model="stories", input=["The dog ran."] * 16)
    assert len(found.data) == 16 and server.figure("running") == 1
    running.close()


def test_tokenizer(stories):
    info = stories.json("/tokenizer_info")
    assert info["bos_token"] == "<s>" and info["eos_token"] == "</s>" and info["add_bos_token"] is True
    for words in ["", "a", "Ünï 你好 \U0001f600", "<s> is no token"]:
        ids = stories.json("/tokenize", {"prompt": words, "add_special_tokens": False})["tokens"]
        back = stories.json("/detokenize", {"tokens": ids})["prompt"]
        assert back.lstrip(" ") == words and 1 not in ids
    assert stories.json("/tokenize", {"prompt": "</s>", "add_special_tokens": False})["tokens"] == [2]
