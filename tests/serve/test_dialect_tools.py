"""Tools and structured output in Anthropic's and OpenAI's newer words, with their clients, over several turns."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import jsonschema_rs
import pytest
import tool_templates
from servers import LONG, Running, files, serving
from support import write_model
from test_dialects import events
from test_tools import PARAMETERS

HELLO: list[dict[str, Any]] = [{"role": "user", "content": "hello"}]
CUSTOM: list[dict[str, Any]] = [
    {"name": name, "description": "x", "input_schema": schema} for name, schema in PARAMETERS.items()
]
FUNCTIONS: list[dict[str, Any]] = [
    {"type": "function", "name": name, "description": "x", "parameters": schema, "strict": False}
    for name, schema in PARAMETERS.items()
]
MESSAGE: dict[str, Any] = {"model": "tiny", "max_tokens": 400, "temperature": 1.0, "messages": HELLO}
RESPONSE: dict[str, Any] = {"model": "tiny", "max_output_tokens": 400, "temperature": 1.0, "input": "hello"}
ONE = {"type": "any", "disable_parallel_tool_use": True}
SHAPE = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"], "additionalProperties": False}


@pytest.fixture(scope="module", params=["QWEN3", "LLAMA3"])
def agent(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    file = tmp_path_factory.mktemp("agent") / "model.gguf"
    template = getattr(tool_templates, request.param)
    with serving(files(write_model(file, LONG, chat_template=template))) as running:
        yield running


def test_a_message_calls_a_tool_and_is_told_its_result(agent: Running) -> None:
    messages = list(HELLO)
    for _ in range(3):
        body = agent.post(
            "/v1/messages", **{**MESSAGE, "messages": messages, "tools": CUSTOM, "tool_choice": ONE}
        ).json()
        assert body["stop_reason"] == "tool_use", body
        (block,) = body["content"]
        assert block["type"] == "tool_use" and block["id"].startswith("toolu_")
        jsonschema_rs.validate(PARAMETERS[block["name"]], block["input"])
        result = {"type": "tool_result", "tool_use_id": block["id"], "content": [{"type": "text", "text": "fine"}]}
        messages += [
            {"role": "assistant", "content": body["content"]},
            {"role": "user", "content": [result, {"type": "text", "text": "go on"}]},
        ]
    prompt = agent.service.model.prompts
    counted = agent.post("/v1/messages/count_tokens", model="tiny", messages=messages, tools=CUSTOM).json()
    without = agent.post("/v1/messages/count_tokens", model="tiny", messages=messages).json()
    assert prompt is not None and counted["input_tokens"] > without["input_tokens"]


def test_a_stream_of_a_message_brings_the_call_as_json(agent: Running) -> None:
    named = {"type": "tool", "name": "alarm"}
    found = events(agent, "/v1/messages", **MESSAGE, tools=CUSTOM, tool_choice=named)
    start = next(e for e in found if e["type"] == "content_block_start" and e["content_block"]["type"] == "tool_use")
    assert start["content_block"]["input"] == {} and start["content_block"]["name"] == "alarm"
    parts = [e["delta"]["partial_json"] for e in found if e["type"] == "content_block_delta"]
    jsonschema_rs.validate(PARAMETERS["alarm"], json.loads("".join(parts)))
    assert [e["delta"]["stop_reason"] for e in found if e["type"] == "message_delta"] == ["tool_use"]
    started = [e["index"] for e in found if e["type"] == "content_block_start"]
    assert started == [e["index"] for e in found if e["type"] == "content_block_stop"] == list(range(len(started)))


def test_a_response_calls_a_function_and_is_told_its_result(agent: Running) -> None:
    settings = {**RESPONSE, "tools": FUNCTIONS, "tool_choice": "required", "parallel_tool_calls": False}
    body = agent.post("/v1/responses", **settings).json()
    (call,) = body["output"]
    assert body["status"] == "completed" and call["type"] == "function_call" and call["status"] == "completed"
    assert body["tool_choice"] == "required" and len(body["tools"]) == 2 and body["parallel_tool_calls"] is False
    jsonschema_rs.validate(PARAMETERS[call["name"]], json.loads(call["arguments"]))
    output = {"type": "function_call_output", "call_id": call["call_id"], "output": "fine"}
    by_id = agent.post("/v1/responses", **{**settings, "input": [output], "previous_response_id": body["id"]}).json()
    whole = [{"role": "user", "content": "hello"}, call, output]
    by_items = agent.post("/v1/responses", **{**settings, "input": whole}).json()
    assert by_id["usage"]["input_tokens"] == by_items["usage"]["input_tokens"], "the same prompt"
    with agent.client() as client:
        listed = client.get(f"/v1/responses/{by_id['id']}/input_items").json()["data"]
    assert [(item["type"], item["output"]) for item in listed] == [("function_call_output", "fine")]


def test_a_stream_of_a_response_brings_the_call_in_events(agent: Running) -> None:
    named = {"type": "function", "name": "alarm"}
    found = events(agent, "/v1/responses", **RESPONSE, tools=FUNCTIONS, tool_choice=named)
    added = next(e for e in found if e["type"] == "response.output_item.added")
    assert added["item"]["type"] == "function_call" and added["item"]["arguments"] == ""
    delta = "".join(e["delta"] for e in found if e["type"] == "response.function_call_arguments.delta")
    done = next(e for e in found if e["type"] == "response.function_call_arguments.done")
    assert delta == done["arguments"] and done["item_id"] == added["item"]["id"]
    assert found[-1]["type"] == "response.completed" and found[-1]["response"]["output"][0]["arguments"] == delta
    assert [e["sequence_number"] for e in found] == list(range(len(found)))


def test_answers_follow_a_schema(agent: Running) -> None:
    form = {"type": "json_schema", "schema": SHAPE}
    body = agent.post("/v1/messages", **MESSAGE, output_config={"format": form, "effort": "low"}).json()
    jsonschema_rs.validate(SHAPE, json.loads(body["content"][0]["text"]))
    body = agent.post("/v1/responses", **RESPONSE, text={"format": {**form, "name": "answer", "strict": True}}).json()
    jsonschema_rs.validate(SHAPE, json.loads(body["output"][-1]["content"][0]["text"]))
    assert body["text"]["format"]["schema"] == SHAPE


@pytest.mark.parametrize(
    ("path", "change", "said"),
    [
        ("/v1/messages", {"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools"),
        ("/v1/messages", {"tools": CUSTOM, "tool_choice": {"type": "tool"}}, "needs a name"),
        ("/v1/messages", {"tools": CUSTOM, "tool_choice": {"type": "tool", "name": "other"}}, "none of the tools"),
        ("/v1/messages", {"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "image"),
        ("/v1/responses", {"tools": [{"type": "web_search"}]}, "function is the only kind"),
        ("/v1/responses", {"tools": FUNCTIONS, "tool_choice": "sometimes"}, "none, auto, required"),
        ("/v1/responses", {"input": [{"type": "function_call", "name": "f"}]}, "call_id, name and arguments"),
        ("/v1/responses", {"input": [{"type": "function_call_output"}]}, "call_id and output"),
        ("/v1/responses", {"text": {"format": {"type": "json_schema", "schema": {"type": "nothing"}}}}, "schema"),
    ],
)
def test_what_cannot_be_done_is_said(agent: Running, path: str, change: dict[str, Any], said: str) -> None:
    asked = {**(MESSAGE if path == "/v1/messages" else RESPONSE), **change}
    answer = agent.post(path, **asked)
    assert answer.status_code == 400 and said in answer.json()["error"]["message"], answer.text


def test_openais_client_calls_functions(agent: Running) -> None:
    client: Any = agent.openai()
    settings = {**RESPONSE, "tools": FUNCTIONS, "tool_choice": "required", "parallel_tool_calls": False}
    whole = client.responses.create(**settings)
    calls = [item for item in whole.output if item.type == "function_call"]
    assert calls
    outputs = [{"type": "function_call_output", "call_id": call.call_id, "output": "fine"} for call in calls]
    again = client.responses.create(**{**settings, "input": outputs, "previous_response_id": whole.id})
    assert any(item.type == "function_call" for item in again.output)
    with client.responses.stream(**settings) as stream:
        names = {event.type for event in stream}
    assert "response.function_call_arguments.done" in names and "response.completed" in names


@pytest.mark.clients
def test_anthropics_client_calls_tools(agent: Running) -> None:
    anthropic = pytest.importorskip("anthropic")
    client = anthropic.Anthropic(base_url=agent.url, api_key="none", max_retries=0, timeout=120)
    asked: dict[str, Any] = {"model": "tiny", "max_tokens": 400, "tools": CUSTOM, "tool_choice": ONE}
    whole = client.messages.create(messages=HELLO, **asked)
    calls = [block for block in whole.content if block.type == "tool_use"]
    assert whole.stop_reason == "tool_use" and calls
    results = [{"type": "tool_result", "tool_use_id": call.id, "content": "fine"} for call in calls]
    messages = [*HELLO, {"role": "assistant", "content": whole.content}, {"role": "user", "content": results}]
    with client.messages.stream(messages=messages, **asked) as stream:
        final = stream.get_final_message()
    assert final.stop_reason == "tool_use"
    for block in final.content:
        jsonschema_rs.validate(PARAMETERS[block.name], block.input)
