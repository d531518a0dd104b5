#!/usr/bin/env python3
"""schema.py PROGRAM TEXT_MODEL CHAT_MODEL: checks the files of run-batch against the types of OpenAI's Python package.

Its requests are valid for that package, and its results are what the package would return: each field has a type there.
"""
import json
import subprocess
import sys

from openai.types import Completion
from openai.types.chat import ChatCompletion
from openai.types.chat.completion_create_params import CompletionCreateParamsNonStreaming as ChatParams
from openai.types.completion_create_params import CompletionCreateParamsNonStreaming as TextParams
from openai.types.shared import ErrorObject
from pydantic import BaseModel, ConfigDict, TypeAdapter


# A line of an output file: https://platform.openai.com/docs/api-reference/batch/request-output
class Response(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    status_code: int
    request_id: str
    body: dict


class Error(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    code: str
    message: str


class Line(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    id: str
    custom_id: str
    response: Response
    error: Error | None


def expect_known_fields(value, path):
    """No object has a field without a type."""
    if isinstance(value, BaseModel):
        assert not value.model_extra, f"{path}: unknown fields {list(value.model_extra)}"
        for name, field in value:
            expect_known_fields(field, f"{path}.{name}")
    elif isinstance(value, list):
        for item in value:
            expect_known_fields(item, path)


SAMPLING = {"temperature": 0.5, "top_p": 0.9, "seed": 3, "max_tokens": 4, "stop": ["x"], "frequency_penalty": 0.5,
            "presence_penalty": 0.5, "logit_bias": {"5": -1}, "n": 1, "user": "u"}
TEXTS = [{"prompt": "Once upon a time"}, {"prompt": [1, 300], "logprobs": 2}, {"prompt": ["The"], **SAMPLING},
         {"prompt": "a", "temperature": 3000}]
CHATS = [{"messages": [{"role": "user", "content": "hi"}], "max_completion_tokens": 5},
         {"messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "a"},
                       {"role": "assistant", "content": "b"}, {"role": "user", "content": [{"type": "text", "text": "c"}]}],
          "logprobs": True, "top_logprobs": 2, "response_format": {"type": "text"}, **SAMPLING},
         {"messages": [{"role": "user", "content": "hi"}], "n": 2}]


def check(program, model, name, url, bodies, params, result):
    lines = [{"custom_id": f"r{i}", "method": "POST", "url": url, "body": {"model": name, **body}}
             for i, body in enumerate(bodies)]
    for line in lines:
        TypeAdapter(params).validate_python(line["body"])
    text = "".join(json.dumps(line) + "\n" for line in lines) + "no JSON\n"
    run = subprocess.run([program, model, "--name", name, "-i", "-", "-o", "-", "-q"], input=text, check=True,
                         stdout=subprocess.PIPE, encoding="utf-8")
    answers = [Line.model_validate_json(line) for line in run.stdout.splitlines()]
    assert [a.custom_id for a in answers] == [line["custom_id"] for line in lines] + [""]
    for answer in answers:
        response = answer.response
        assert (response.status_code == 200) == (answer.error is None)
        if answer.error:
            body = ErrorObject.model_validate(response.body["error"], strict=True)
        else:
            body = result.model_validate(response.body, strict=True)
        expect_known_fields(body, answer.custom_id)
    assert [a.error is None for a in answers] == [True] * (len(lines) - 1) + [False, False]


def main():
    program, text_model, chat_model = sys.argv[1:]
    check(program, text_model, "text", "/v1/completions", TEXTS, TextParams, Completion)
    check(program, chat_model, "chat", "/v1/chat/completions", CHATS, ChatParams, ChatCompletion)
    print("schema: all files valid")


if __name__ == "__main__":
    main()
