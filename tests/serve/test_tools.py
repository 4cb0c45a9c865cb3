"""Tools over HTTP with OpenAI's client: demanded, named, strict, parallel, streamed, over several turns, refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import jsonschema_rs
import pytest
import tool_templates
from servers import LONG, Running, files, serving
from support import write_model

from nanochat_tui.serve.bodies import ChatBody
from nanochat_tui.serve.prompts import chat_ids
from nanochat_tui.serve.tools import tools_of

PARAMETERS: dict[str, dict[str, Any]] = {
    "weather": {
        "type": "object",
        "properties": {
            "city": {"type": "string", "enum": ["Rome", "Oslo"]},
            "days": {"type": "integer", "minimum": 1, "maximum": 9},
            "detail": {"type": "boolean"},
        },
        "required": ["city", "days"],
        "additionalProperties": False,
    },
    "alarm": {
        "type": "object",
        "properties": {"on": {"type": "boolean"}},
        "required": ["on"],
        "additionalProperties": False,
    },
}
TOOLS = [
    {"type": "function", "function": {"name": name, "description": "x", "parameters": schema}}
    for name, schema in PARAMETERS.items()
]
ASK: list[Any] = [{"role": "user", "content": "hello"}]
HOT: dict[str, Any] = {"temperature": 1.0, "max_tokens": 400, "model": "tiny", "tools": TOOLS}


@pytest.fixture(scope="module", params=["QWEN3", "QWEN35", "LLAMA3"])
def agent(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    file = tmp_path_factory.mktemp("agent") / "model.gguf"
    template = getattr(tool_templates, request.param)
    with serving(files(write_model(file, LONG, chat_template=template))) as running:
        yield running


def check(calls: Any, names: set[str]) -> None:
    for call in calls:
        assert call.type == "function" and call.id and call.function.name in names
        jsonschema_rs.validate(PARAMETERS[call.function.name], json.loads(call.function.arguments))


@pytest.mark.parametrize("seed", range(3))
def test_a_demanded_call_has_valid_arguments(agent: Running, seed: int) -> None:
    client = agent.openai().chat.completions
    reply = client.create(messages=ASK, tool_choice="required", seed=seed, parallel_tool_calls=False, **HOT)
    (choice,) = reply.choices
    assert choice.finish_reason == "tool_calls" and choice.message.content is None
    assert choice.message.tool_calls is not None and len(choice.message.tool_calls) == 1
    check(choice.message.tool_calls, set(PARAMETERS))


def test_a_named_call_is_of_that_function(agent: Running) -> None:
    named: Any = {"type": "function", "function": {"name": "alarm"}}
    client = agent.openai().chat.completions
    reply = client.create(messages=ASK, tool_choice=named, seed=1, n=3, **HOT)
    for choice in reply.choices:
        assert choice.message.tool_calls is not None and len(choice.message.tool_calls) == 1
        check(choice.message.tool_calls, {"alarm"})


def test_a_stream_brings_the_same_calls_in_pieces(agent: Running) -> None:
    client = agent.openai().chat.completions
    for seed in range(4):
        settings: dict[str, Any] = {"messages": ASK, "tool_choice": "required", "seed": seed, **HOT}
        whole = client.create(**settings).choices[0]
        calls: dict[int, list[str]] = {}
        reason, said = None, ""
        for chunk in client.create(**settings, stream=True):
            (choice,) = chunk.choices
            said += choice.delta.content or ""
            for part in choice.delta.tool_calls or []:
                assert part.function is not None
                if part.index not in calls:
                    assert part.id and part.type == "function" and part.function.name
                    calls[part.index] = [part.function.name, ""]
                calls[part.index][1] += part.function.arguments or ""
            reason = choice.finish_reason or reason
        assert reason == whole.finish_reason and said == (whole.message.content or "")
        assert reason == "length" or not said
        made = whole.message.tool_calls or []
        assert [[call.function.name, call.function.arguments] for call in made] == [calls[i] for i in range(len(calls))]
        check(made if reason == "tool_calls" else (), set(PARAMETERS))


def test_a_reply_that_only_may_call_is_text_or_a_valid_call(agent: Running) -> None:
    strict: Any = [{**tool, "function": {**tool["function"], "strict": True}} for tool in TOOLS]  # type: ignore[dict-item]
    client = agent.openai().chat.completions
    settings = {**HOT, "tools": strict, "max_tokens": 40}
    for seed in range(6):
        (choice,) = client.create(messages=ASK, seed=seed, **settings).choices
        check(choice.message.tool_calls or (), set(PARAMETERS))
        assert (choice.finish_reason == "tool_calls") <= bool(choice.message.tool_calls)
        assert choice.message.content is not None or choice.message.tool_calls


def test_a_conversation_goes_on_with_what_tools_answered(agent: Running) -> None:
    client = agent.openai().chat.completions
    messages = list(ASK)
    for seed in range(3):
        settings = {**HOT, "tool_choice": "required", "seed": seed, "parallel_tool_calls": False}
        reply = client.create(messages=messages, **settings).choices[0].message
        assert reply.tool_calls is not None
        messages.append(reply.model_dump(exclude_none=True))
        messages += [
            {"role": "tool", "tool_call_id": call.id, "content": f"result {seed}"} for call in reply.tool_calls
        ]
    body = ChatBody.model_validate({"messages": json.loads(json.dumps(messages)), "tools": TOOLS})
    model = agent.service.model
    text = model.decode(chat_ids(model, body, 32_768, tools_of(model, body)))
    assert all(f"result {seed}" in text for seed in range(3)) and text.count("Rome") + text.count('"on"') >= 1
    assert client.create(messages=messages, **{**HOT, "max_tokens": 3}).choices[0].finish_reason == "length"


def test_without_a_choice_to_call_the_model_is_told_of_no_tool(agent: Running) -> None:
    client = agent.openai().chat.completions
    plain = client.create(messages=ASK, model="tiny", temperature=0, max_tokens=20)
    none = client.create(messages=ASK, tool_choice="none", **{**HOT, "max_tokens": 20, "temperature": 0})
    assert none.choices[0].message.content == plain.choices[0].message.content
    assert none.usage is not None and plain.usage is not None
    assert none.usage.prompt_tokens == plain.usage.prompt_tokens


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"tool_choice": "required"}, "tool_choice"),
    ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "nothing"}}}, "tool_choice"),
    ({"tools": TOOLS, "tool_choice": "sometimes"}, "tool_choice"),
    ({"tools": [{"type": "search"}]}, "tools.0.type"),
    ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools.0.function.name"),
    ({"tools": TOOLS, "response_format": {"type": "json_object"}}, "response_format"),
    (
        {"tools": [{"function": {"name": "a", "parameters": {"type": "thing"}}}], "tool_choice": "required"},
        "tools",
    ),
]


@pytest.mark.parametrize(("asked", "name"), REFUSED, ids=lambda value: str(value)[:40])
def test_what_cannot_be_done_is_refused_by_name(agent: Running, asked: dict[str, Any], name: str) -> None:
    answer = agent.post("/v1/chat/completions", messages=ASK, **asked)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"].startswith(name)


def test_models_without_a_place_for_tools_refuse_them(chat: Running, base: Running) -> None:
    told = [*ASK, {"role": "tool", "tool_call_id": "c", "content": "sun"}]
    for running in (chat, base):
        for body, name in (({"messages": ASK, "tools": TOOLS}, "tools"), ({"messages": told}, "messages")):
            answer = running.post("/v1/chat/completions", **body)
            assert answer.status_code == 400 and answer.json()["error"]["param"] == name
            assert "tools" in answer.json()["error"]["message"]


def test_an_unused_list_is_let_pass(chat: Running) -> None:
    assert (
        chat.post("/v1/chat/completions", messages=ASK, tools=[], tool_choice="auto", max_tokens=1).status_code == 200
    )


@pytest.mark.clients
def test_litellm_passes_tools_and_calls_through(agent: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # or it asks the network for prices
    litellm = pytest.importorskip("litellm")
    common: dict[str, Any] = {
        "model": "openai/any", "api_base": agent.url + "/v1", "api_key": "none", "num_retries": 0, "messages": ASK,
        "tools": TOOLS, "tool_choice": "required", "temperature": 1.0, "seed": 2, "max_tokens": 400,
    }  # fmt: skip
    (choice,) = litellm.completion(**common).choices
    if choice.finish_reason == "tool_calls":
        check(choice.message.tool_calls, set(PARAMETERS))
    chunks = list(litellm.completion(**common, stream=True))
    (built,) = litellm.stream_chunk_builder(chunks, messages=ASK).choices
    assert [(call.function.name, call.function.arguments) for call in built.message.tool_calls or []] == [
        (call.function.name, call.function.arguments) for call in choice.message.tool_calls or []
    ]
