#!/usr/bin/env python3
"""Writes replies by random JSON Schemas with ./run, and validates them. Called by tests/grammar/run."""

import collections
import json
import pathlib
import random
import subprocess
import sys
import tempfile

import jsonschema

PROMPT = "JSON: "
PATTERNS = ["^[a-z]{1,8}$", "^(\\d{3}-)?\\d{4}$", "^\\w+@\\w+\\.(com|org)$", "^[^\\s\"]{2,5}$", "a|b$", "^#[0-9a-fA-F]{6}$", ".{3}"]
FORMATS = ["date", "time", "date-time", "uuid"]


def a_value(r):
    return r.choice([None, True, 17, -2.5, "red", "a \"quoted\" word\n", "é😀", [], [1, "x"], {"k": {"n": 0}}])


def number(r, integer):
    schema = {"type": "integer" if integer else "number"}
    low = r.choice([r.randint(-1000, 1000), r.randint(0, 9)] if integer else [r.randint(-50, 50), round(r.uniform(-9, 9), 3)])
    if r.random() < 0.6:
        schema[r.choice(["minimum", "exclusiveMinimum"])] = low
    if r.random() < 0.6:
        schema[r.choice(["maximum", "exclusiveMaximum"])] = low + r.randint(3, 2000)
    return schema


def string(r):
    kind = r.random()
    if kind < 0.3:
        return {"type": "string", "pattern": r.choice(PATTERNS)}
    if kind < 0.5:
        return {"type": "string", "format": r.choice(FORMATS)}
    schema = {"type": "string", "maxLength": r.randint(3, 80)}
    if r.random() < 0.5:
        schema["minLength"] = r.randint(0, 3)
    return schema


def array(r, depth):
    schema = {"type": "array", "items": a_schema(r, depth - 1), "maxItems": r.randint(2, 5)}
    if r.random() < 0.4:
        schema["minItems"] = r.randint(0, 2)
    if r.random() < 0.3:
        schema["prefixItems"] = [a_schema(r, depth - 1) for _ in range(r.randint(1, 3))]
        if r.random() < 0.5:
            schema["items"] = False
            schema.pop("maxItems")
            schema["minItems"] = r.randint(0, len(schema["prefixItems"]))
    return schema


def an_object(r, depth):
    names = r.sample(["name", "age", "a/b", "é", "tags", "n", "na", "x y", "id"], r.randint(0, 5))
    schema = {"type": "object", "properties": {name: a_schema(r, depth - 1) for name in names}}
    schema["required"] = [name for name in names if r.random() < 0.6]
    extra = r.random()
    if extra < 0.4:
        schema["additionalProperties"] = False
    elif extra < 0.6:
        schema["additionalProperties"] = r.choice([True, {"type": "integer"}, {"type": "boolean"}])
    return schema


def a_schema(r, depth):
    simple = [
        lambda: {"type": r.choice(["null", "boolean", "integer", "number"])},
        lambda: {"type": r.sample(["null", "boolean", "integer", "string"], 2)},
        lambda: number(r, True),
        lambda: number(r, False),
        lambda: string(r),
        lambda: {"enum": [a_value(r) for _ in range(r.randint(1, 4))]},
        lambda: {"const": a_value(r)},
        lambda: {"type": "string", "title": "a title", "description": "a text", "maxLength": 20},
    ]
    nested = [
        lambda: array(r, depth),
        lambda: an_object(r, depth),
        lambda: an_object(r, depth),
        lambda: {"anyOf": [a_schema(r, depth - 1) for _ in range(r.randint(1, 3))]},
        lambda: {"oneOf": [{"type": "integer"}, {"type": "string", "maxLength": 9}, {"type": "null"}]},
        lambda: {"oneOf": [{"type": "object", "properties": {"kind": {"const": k}, "v": a_schema(r, 0)}, "required": ["kind"],
                            "additionalProperties": False} for k in ("one", "two")]},
        lambda: {"allOf": [{"type": "object", "properties": {"p": a_schema(r, 0)}, "required": ["p"]},
                           {"properties": {"q": a_schema(r, 0)}}]},
        lambda: {"$ref": "#/$defs/node"},
    ]
    return r.choice(simple if depth <= 0 or r.random() < 0.3 else nested)()


def random_schema(seed):
    r = random.Random(seed)
    schema = a_schema(r, 3)
    node = {"type": "object", "properties": {"v": a_schema(r, 0), "next": {"$ref": "#/$defs/node"}}, "required": ["v"],
            "additionalProperties": False}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "$defs": {"node": node}, **schema}


def check(model, seed, temperature, path):
    schema = random_schema(seed)
    path.write_text(json.dumps(schema))
    run = subprocess.run(["./run", model, "--schema", path, "-t", temperature, "-p", "1", "-s", str(seed), "-i", PROMPT, "-n", "500",
                          "--ctx", "512", "-q"], capture_output=True)
    message = run.stderr.decode()
    if run.returncode == 1 and "it was ended by: " in message:
        return "ended by " + message.split("ended by: ")[1].strip()
    assert run.returncode == 0, f"seed {seed}: {message}\n{json.dumps(schema)}"
    reply = run.stdout.decode()[len(PROMPT):]
    validator = jsonschema.Draft202012Validator(schema, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER)
    errors = [e.message for e in validator.iter_errors(json.loads(reply))]
    assert not errors, f"seed {seed}: {errors}\n{reply}\n{json.dumps(schema)}"
    return "complete and valid"


def main():
    model, count, temperature = sys.argv[1:]
    assert jsonschema.FormatChecker().checkers.get("date-time"), "rfc3339-validator is installed"
    results = collections.Counter()
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(int(count)):
            results[check(model, seed, temperature, pathlib.Path(folder) / "schema.json")] += 1
    print(f"{model}, {count} schemas, temperature {temperature}:", dict(results))
    assert results["complete and valid"] >= 0.9 * int(count), "most replies are complete"


main()
