"""Tools: definitions, calls and results with a model of a family that was trained to use them, and one that was not."""

import json

import jsonschema
import openai
import pytest

WEATHER = {
    "type": "object",
    "properties": {"zip": {"type": "integer", "minimum": 1, "maximum": 99999}, "unit": {"$ref": "#/$defs/unit"}},
    "required": ["zip", "unit"],
    "additionalProperties": False,
    "$defs": {"unit": {"enum": ["celsius", "fahrenheit"]}},
}
LAMP = {
    "type": "object",
    "properties": {"on": {"type": "boolean"}, "color": {"$ref": "#/$defs/unit"}},
    "required": ["on"],
    "additionalProperties": False,
    "$defs": {"unit": {"enum": ["red", "blue"]}},
}
SCHEMAS = {"weather": WEATHER, "lamp": LAMP, "now": {"type": "object", "maxProperties": 0}}


def tool(name, parameters=None):
    function = {"name": name, "description": f"What {name} does"}
    return {"type": "function", "function": {**function, **({"parameters": parameters} if parameters else {})}}


TOOLS = [tool("weather", WEATHER), tool("lamp", LAMP), tool("now")]
USER = [{"role": "user", "content": "How is the weather?"}]


def reply(server, **options):
    body = {"messages": USER, "tools": TOOLS, "seed": 1, "max_tokens": 300, **options}
    return server.client().chat.completions.create(model="tools", **body)


def check(choice):
    for call in choice.message.tool_calls:
        assert call.type == "function"
        jsonschema.validate(json.loads(call.function.arguments), SCHEMAS[call.function.name])


def test_required(tool_server):
    called = set()
    for seed in range(40):
        choice = reply(tool_server, tool_choice="required", seed=seed, parallel_tool_calls=False).choices[0]
        assert choice.finish_reason == "tool_calls" and choice.message.content is None
        assert len(choice.message.tool_calls) == 1
        check(choice)
        called.add(choice.message.tool_calls[0].function.name)
    assert called == set(SCHEMAS)


def test_required_may_call_several(tool_server):
    counts = set()
    for seed in range(40):
        choice = reply(tool_server, tool_choice="required", seed=seed, max_tokens=500).choices[0]
        check(choice)
        ids = [call.id for call in choice.message.tool_calls]
        assert len(set(ids)) == len(ids)
        counts.add(len(ids))
    assert len(counts) > 1


@pytest.mark.parametrize("name", SCHEMAS)
def test_named(tool_server, name):
    choice = reply(tool_server, tool_choice={"type": "function", "function": {"name": name}}).choices[0]
    assert [call.function.name for call in choice.message.tool_calls] == [name]
    assert choice.finish_reason == "tool_calls"
    check(choice)


def test_a_call_that_a_stop_text_cuts_off_is_not_complete(tool_server):
    choice = reply(tool_server, tool_choice="required", stop=["name"]).choices[0]
    assert choice.finish_reason == "length" and not choice.message.tool_calls


@pytest.mark.parametrize("options", [{}, {"n": 3}, {"logprobs": True, "top_logprobs": 2}])
def test_stream_is_the_reply(tool_server, options):
    options = {"tool_choice": "required", "seed": 5, **options}
    whole = reply(tool_server, **options)
    assert reply(tool_server, **options).choices == whole.choices
    parts = [p.choices[0] for p in reply(tool_server, stream=True, **options)]
    for choice in whole.choices:
        mine = [p for p in parts if p.index == choice.index]
        calls = [c for p in mine for c in p.delta.tool_calls or []]
        assert [c.index for c in calls] == list(range(len(calls)))
        assert [(c.id, c.function.name, c.function.arguments) for c in calls] == [
            (c.id, c.function.name, c.function.arguments) for c in choice.message.tool_calls
        ]
        assert "".join(p.delta.content or "" for p in mine) == (choice.message.content or "")
        assert mine[-1].finish_reason == choice.finish_reason
        logprobs = [t for p in mine if p.logprobs for t in p.logprobs.content]
        assert logprobs == (choice.logprobs.content if choice.logprobs else [])


def test_results_go_back(tool_server):
    """The message of a reply can be sent back as it is, with the results of its calls."""
    first = reply(tool_server, tool_choice="required", seed=3)
    messages = USER + [first.choices[0].message.model_dump()]
    for call in first.choices[0].message.tool_calls:
        messages.append({"role": "tool", "tool_call_id": call.id, "content": "-3"})
    second = reply(tool_server, messages=messages, tool_choice="none", max_tokens=10)
    assert second.choices[0].message.tool_calls is None
    assert second.usage.prompt_tokens > 10
    messages += [second.choices[0].message.model_dump(), {"role": "user", "content": "Why?"}]
    assert reply(tool_server, messages=messages, max_tokens=10).usage.prompt_tokens > second.usage.prompt_tokens


def prompt(server, **body):
    tokens = server.json("/tokenize", body)["tokens"]
    return server.json("/detokenize", {"tokens": tokens})["prompt"], tokens


def test_layout(tool_server):
    """As the published template of Qwen 2.5 has it; the marks of calls are tokens of the vocabulary."""
    call = {"id": "a", "type": "function", "function": {"name": "now", "arguments": '{"z":1}'}}
    text, tokens = prompt(
        tool_server,
        tools=[TOOLS[2]],
        messages=USER
        + [
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "a", "content": "noon"},
        ],
    )
    definition = '{"type": "function", "function": {"name": "now", "description": "What now does"}}'
    assert f"<tools>\n{definition}\n</tools>\n" in text
    begin, end = "<|im_start|>", "<|im_end|>\n"
    default = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
    assert text.startswith(f"{begin}system\n{default}\n\n# Tools\n\n")
    assert text[text.index(f"{end}{begin}user\n") :] == (
        f"{end}{begin}user\nHow is the weather?{end}{begin}assistant\n"
        f'<tool_call>\n{{"name": "now", "arguments": {{"z": 1}}}}\n</tool_call>{end}'
        f"{begin}user\n<tool_response>\nnoon\n</tool_response>{end}{begin}assistant\n"
    )
    own = [prompt(tool_server, prompt=mark)[1][-1] for mark in ("<tool_call>", "</tool_call>", "<tool_response>")]
    assert [tokens.count(id) for id in own] == [3, 3, 1]
    mine = prompt(tool_server, tools=TOOLS, messages=[{"role": "system", "content": "Be kind."}] + USER)[0]
    assert mine.startswith(f"{begin}system\nBe kind.\n\n# Tools\n\n")


def test_llama_layout(llama_tools):
    """As the published template of Llama 3.1 has it."""
    call = {"id": "a", "type": "function", "function": {"name": "now", "arguments": '{"z":1}'}}
    messages = USER + [
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "a", "content": 'noon "sharp"'},
    ]
    dates = "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"

    def message(role, content):
        return f"<|start_header_id|>{role}<|end_header_id|>\n\n{content}<|eot_id|>"

    after = (
        message("assistant", '{"name": "now", "parameters": {"z": 1}}')
        + message("ipython", '"noon \\"sharp\\""')
        + "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    definitions = "".join(json.dumps(t, indent=4) + "\n\n" for t in TOOLS)
    functions = (
        "Given the following functions, please respond with a JSON for a function call with its proper arguments that best "
        'answers the given prompt.\n\nRespond in the format {"name": function name, "parameters": dictionary of argument '
        f"name and its value}}.Do not use variables.\n\n{definitions}"
    )
    for system in ("", "Be kind."):
        start = [{"role": "system", "content": f" {system} "}] if system else []
        with_tools = message("system", "Environment: ipython\n" + dates + system) + message("user", functions + USER[0]["content"])
        assert prompt(llama_tools, tools=TOOLS, messages=start + messages)[0] == with_tools + after
        without = message("system", dates + system) + message("user", USER[0]["content"])
        assert prompt(llama_tools, messages=start + messages)[0] == without + after


def test_llama_calls_once(llama_tools):
    for seed in range(10):
        choice = reply(llama_tools, tool_choice="required", seed=seed).choices[0]
        assert choice.finish_reason == "tool_calls" and choice.message.content is None
        assert len(choice.message.tool_calls) == 1
        check(choice)
    messages = USER + [choice.message.model_dump(), {"role": "tool", "tool_call_id": choice.message.tool_calls[0].id, "content": "-3"}]
    second = reply(llama_tools, messages=messages, max_tokens=10).choices[0]
    assert second.message.tool_calls is None and second.message.content


def test_auto_without_a_call(tool_server):
    choice = reply(tool_server, max_tokens=20).choices[0]
    assert choice.message.tool_calls is None and choice.message.content and choice.finish_reason in ("stop", "length")


def test_langchain(tool_server):
    langchain = pytest.importorskip("langchain_openai")

    def weather(zip: int, unit: str) -> str:
        """The weather of a place."""

    model = langchain.ChatOpenAI(base_url=tool_server.url + "/v1", api_key="none", model="tools", seed=1, max_tokens=300)
    message = model.bind_tools([weather], tool_choice="weather", strict=False).invoke("How is the weather?")
    assert [c["name"] for c in message.tool_calls] == ["weather"] and set(message.tool_calls[0]["args"]) == {"zip", "unit"}
    text = model.invoke("Hello").content
    assert text and "".join(part.content for part in model.stream("Hello")) == text


@pytest.mark.parametrize(
    "options, param",
    [
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        ({"tool_choice": {"type": "function", "function": {"name": "other"}}}, "tool_choice.function.name"),
        ({"tools": [tool("a", {"type": "object", "properties": {"b": {"not": {}}}})], "tool_choice": "required"}, "tools"),
        ({"messages": USER + [{"role": "tool", "tool_call_id": "a", "content": "x"}]}, "messages[1].role"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
    ],
)
def test_errors(tool_server, options, param):
    with pytest.raises(openai.BadRequestError) as caught:
        reply(tool_server, **options)
    assert caught.value.param == param and caught.value.message


def test_models_without_tools(chat):
    with pytest.raises(openai.BadRequestError) as caught:
        chat.client().chat.completions.create(model="chat", messages=USER, tools=TOOLS)
    assert caught.value.param == "tools"
