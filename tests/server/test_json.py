"""Replies that follow a JSON Schema, a grammar, or are JSON, also of models that cannot write JSON."""

import json
import os
import random

import jsonschema
import openai
import pytest

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 130},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}


def format_of(schema):
    return {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": schema}}


def schemas(n, rng):
    """Random schemas of the supported subset, of finite size."""

    def make(depth):
        kinds = ["string", "integer", "boolean", "null", "enum", "const", "pattern"] + [
            "object",
            "array",
            "anyOf",
            "$ref",
        ] * (depth > 0)
        kind = rng.choice(kinds)
        if kind == "string":
            return {"type": "string", "maxLength": rng.randrange(1, 10)}
        if kind == "pattern":
            return {"type": "string", "pattern": rng.choice(["^[a-z]{2,4}$", "^(yes|no)$", "^[0-9]{4}-[0-9]{2}$"])}
        if kind == "integer":
            low = rng.randrange(-50, 50)
            return {"type": "integer", "minimum": low, "maximum": low + rng.randrange(1, 1000)}
        if kind == "enum":
            return {"enum": rng.sample(["red", "blue", 1, 2.5, None, True, "ü"], 3)}
        if kind == "const":
            return {"const": rng.choice(["x", 7, False])}
        if kind == "$ref":
            return {"$ref": "#/$defs/leaf"}
        if kind == "anyOf":
            return {"anyOf": [make(depth - 1), make(depth - 1)]}
        if kind == "array":
            return {"type": "array", "items": make(depth - 1), "minItems": rng.randrange(2), "maxItems": 3}
        if kind == "object":
            names = rng.sample(["z", "a", "name", "age", "key 1"], rng.randrange(1, 4))
            return {
                "type": "object",
                "properties": {name: make(depth - 1) for name in names},
                "required": [name for name in names if rng.random() < 0.7],
                "additionalProperties": False,
            }
        return {"type": kind}

    for _ in range(n):
        schema = make(3)
        while schema.get("type") != "object":
            schema = make(3)
        yield {**schema, "$defs": {"leaf": {"type": "string", "maxLength": 5}}}


def ask(server, model, messages=True, **options):
    client = server.client()
    if messages:
        choice = client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": "Ada, 36"}], **options
        ).choices[0]
        return choice.message.content, choice.finish_reason
    choice = client.completions.create(model=model, prompt="Once", **options).choices[0]
    return choice.text, choice.finish_reason


def check(server, model, messages, n):
    rng = random.Random(4)
    ended = 0
    for seed, schema in enumerate(schemas(n, rng)):
        options = (
            {"response_format": format_of(schema)}
            if messages
            else {"extra_body": {"response_format": format_of(schema)}}
        )
        text, reason = ask(server, model, messages, seed=seed, temperature=1.5, max_tokens=150, **options)
        if reason == "stop":
            jsonschema.validate(json.loads(text), schema)
            ended += 1
    assert ended > n / 2


def test_schemas_with_a_model_that_cannot_write_json(stories):
    check(stories, "stories", False, 1000 if os.environ.get("POCKET_LONG") else 60)


def test_schemas_with_smollm(smollm):
    check(smollm, "smollm2-135m-instruct", True, 1000 if os.environ.get("POCKET_LONG") else 15)


def test_order_is_that_of_the_schema(chat):
    schema = {
        "type": "object",
        "properties": {k: {"const": 1} for k in "zay"},
        "required": list("zay"),
        "additionalProperties": False,
    }
    assert list(json.loads(ask(chat, "chat", response_format=format_of(schema), seed=1)[0])) == list("zay")


def test_stream_and_logprobs(chat):
    options = {"response_format": format_of(PERSON), "seed": 3, "max_tokens": 200}
    whole = ask(chat, "chat", **options)
    parts = chat.client().chat.completions.create(
        model="chat", messages=[{"role": "user", "content": "Ada, 36"}], stream=True, logprobs=True, **options
    )
    assert "".join(p.choices[0].delta.content or "" for p in parts) == whole[0]


def test_json_object(chat):
    for seed in range(5):
        text, reason = ask(chat, "chat", response_format={"type": "json_object"}, seed=seed, max_tokens=200)
        if reason == "stop":
            assert isinstance(json.loads(text), dict)


def test_grammar(stories):
    grammar = 'root ::= ("yes" | "no") " " [0-9]{3}'
    text, reason = ask(stories, "stories", False, extra_body={"grammar": grammar}, seed=1)
    assert reason == "stop" and text.split(" ")[0] in ("yes", "no") and len(text.split(" ")[1]) == 3


@pytest.mark.parametrize(
    "body, stop", [({"response_format": format_of(PERSON)}, ":"), ({"grammar": 'root ::= "yes"'}, "e")]
)
def test_a_reply_that_a_stop_text_cuts_off_is_not_complete(stories, body, stop):
    text, reason = ask(stories, "stories", False, extra_body=body, stop=[stop], seed=1, max_tokens=100)
    assert reason == "length" and text and stop not in text


@pytest.mark.parametrize("number", [12345678901234567890, 9007199254740993, -12345678901234567890123])
def test_integers_keep_their_digits(stories, number):
    for schema in ({"const": number}, {"enum": [number]}):
        body = {"response_format": format_of(schema)}
        text, reason = ask(stories, "stories", False, extra_body=body, seed=1, max_tokens=60)
        assert reason == "stop" and text == str(number)


@pytest.mark.parametrize(
    "body, param",
    [
        (
            {
                "response_format": format_of(
                    {"type": "object", "properties": {"a": {"type": "integer", "multipleOf": 3}}}
                )
            },
            "response_format.json_schema.schema",
        ),
        ({"response_format": format_of({"$ref": "#/$defs/none"})}, "response_format.json_schema.schema"),
        ({"response_format": format_of({"items": {"$id": "a"}})}, "response_format.json_schema.schema"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"grammar": "root ::= other"}, "grammar"),
        ({"grammar": "root ::= ((("}, "grammar"),
        ({"grammar": "root ::= " + '"a"{2000000}'}, "grammar"),
    ],
)
def test_errors(stories, body, param):
    with pytest.raises(openai.BadRequestError) as caught:
        ask(stories, "stories", False, extra_body=body)
    assert caught.value.param == param and caught.value.message


def test_load_with_grammars(stories):
    """The same bytes at once as alone."""
    import concurrent.futures

    def one(seed):
        return ask(
            stories,
            "stories",
            False,
            seed=seed,
            max_tokens=60,
            temperature=1.5,
            extra_body={"response_format": format_of(PERSON)},
        )

    alone = [one(seed) for seed in range(12)]
    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        assert list(pool.map(one, range(12))) == alone
