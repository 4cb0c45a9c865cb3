"""Replies with tools, from servers of models and from the engine, with a real server of tools behind them."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tool_templates
from mcp_support import WAIT, entry, write_config
from openai_server import serving
from support import TINY, write_model

from nanochat_tui.chat.backend import (
    Backend,
    Event,
    Finished,
    Message,
    Request,
    Started,
    Token,
    ToolCall,
    ToolSpec,
    with_single_calls,
    without_calls,
)
from nanochat_tui.chat.local import LocalBackend
from nanochat_tui.chat.remote import RemoteBackend
from nanochat_tui.chat.tools.approvals import Approvals
from nanochat_tui.chat.tools.config import read_servers
from nanochat_tui.chat.tools.loop import answer
from nanochat_tui.chat.tools.records import CallRecord, Segment, call_from_dict, messages_of, segments
from nanochat_tui.chat.tools.toolbox import Limits, Toolbox
from nanochat_tui.request import Grammar, SamplingParams

pytest.importorskip("mcp")

ASK = (Message("user", "say hello"),)
LONG = TINY.with_(context_length=4096)


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Toolbox]:
    config = write_config(tmp_path_factory.mktemp("tools") / "mcp.json", t=entry())
    made = Toolbox(read_servers(config), Approvals(), Limits(rounds=2), ["t.echo", "t.flip"])
    made.ready(WAIT, threading.Event())
    yield made
    made.close()


def replies(backend: Backend, box: Toolbox, tool: str = "echo", **more: Any) -> list[Event | CallRecord]:
    backend.load()
    # a random model would write properties without end
    tools = tuple(
        replace(spec, parameters={**spec.parameters, "additionalProperties": False})
        for spec in box.specs()
        if spec.name == f"t__{tool}"
    )
    request = Request(messages=ASK, tools=tools, **more)
    return list(answer(backend, request, box, lambda record, tool: "once", threading.Event()))


def said(events: list[Event | CallRecord]) -> str:
    return "".join(event.text for event in events if isinstance(event, Token))


def ended(events: list[Event | CallRecord]) -> list[CallRecord]:
    return [event for event in events if isinstance(event, CallRecord) and event.state not in ("waiting", "running")]


def test_a_server_of_models_is_told_of_tools_and_of_their_results(box: Toolbox) -> None:
    calls = [("t__echo", {"text": "one"}), ("t__echo", {"text": "two"})]
    with serving(script=[calls, "It said\none and two."]) as server:
        events = replies(RemoteBackend(server.url), box)
    first, second = server.requests
    assert [tool["function"]["name"] for tool in first["tools"]] == ["t__echo"]
    assert first["tools"][0]["function"]["parameters"]["required"] == ["text"]
    assert [call.result for call in ended(events)] == ["echo: one", "echo: two"]
    assert said(events) == "It said\none and two."
    assert [event for event in events if isinstance(event, Finished)] == [Finished("stop")]
    _, asked, one, two = second["messages"]
    assert [json.loads(call["function"]["arguments"]) for call in asked["tool_calls"]] == [
        {"text": "one"},
        {"text": "two"},
    ]
    assert (one["role"], one["content"]) == ("tool", "echo: one")
    assert [one["tool_call_id"], two["tool_call_id"]] == [call["id"] for call in asked["tool_calls"]]


def test_what_is_said_behind_calls_begins_a_paragraph(box: Toolbox) -> None:
    class Says:
        context_size = 0
        rounds = iter([["Let me", " look."], ["Done", "."]])

        def count(self, text: str) -> int:
            return len(text)

        def chat(self, request: Request, cancel: threading.Event) -> Iterator[Event]:
            yield Started(1)
            yield from (Token(word) for word in next(self.rounds))
            if len(request.messages) == 1:
                yield ToolCall("t__flip", '{"on": true}')
            else:
                assert request.messages[1].content == "Let me look."
            yield Finished("stop")

    request = Request(messages=ASK, tools=box.specs())
    events = answer(Says(), request, box, lambda record, tool: "once", threading.Event())  # type: ignore[arg-type]
    assert said(list(events)) == "Let me look.\n\nDone."
    call = CallRecord("1", "f", state="done", at=12)
    assert [s.text for s in segments(["Let me look.\n\nDone."], [call])] == ["Let me look.", "Done."]


def test_rounds_have_a_bound(box: Toolbox) -> None:
    with serving(script=[[("t__echo", {"text": str(number)})] for number in range(9)]) as server:
        events = replies(RemoteBackend(server.url), box)
    assert [call.state for call in ended(events)] == ["done", "done", "denied"]
    assert "2 times" in ended(events)[-1].result
    assert len(server.requests) == 3
    assert isinstance(events[-1], Finished)


def test_a_server_that_refuses_tools_answers_without_them(box: Toolbox) -> None:
    """As a llama-server does that was started without --jinja."""
    with serving(refuses_tools=True, words=["Hello."]) as server:
        events = replies(RemoteBackend(server.url), box)
    assert ["tools" in request for request in server.requests] == [True, False]
    assert said(events) == "Hello."
    started = next(event for event in events if isinstance(event, Started))
    assert started.note is not None
    assert "requires --jinja" in started.note


@pytest.mark.parametrize("template", ["QWEN3", "QWEN35", "LLAMA3"])
def test_the_engine_calls_tools_in_the_form_of_its_template(box: Toolbox, tmp_path: Path, template: str) -> None:
    file = write_model(tmp_path / "model.gguf", LONG, chat_template=getattr(tool_templates, template))
    hot = SamplingParams(temperature=1.0, seed=3)
    events = replies(LocalBackend(file), box, "flip", tool_choice="required", sampling=hot, max_tokens=400)
    call = ended(events)[0]
    wanted = json.loads(call.arguments)["on"]
    assert (call.state, call.title) == ("done", "t.flip")
    assert call.result == ("on" if wanted else "off")
    starts = [event for event in events if isinstance(event, Started)]
    assert len(starts) >= 2  # the result was read, and an answer written
    assert starts[1].prompt_tokens is not None
    assert starts[0].prompt_tokens is not None
    assert starts[1].prompt_tokens > starts[0].prompt_tokens
    assert [event for event in events if isinstance(event, Finished)] == events[-1:]


def test_an_engine_without_a_place_for_tools_answers_without_them(box: Toolbox, tmp_path: Path) -> None:
    plain = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"
    file = write_model(tmp_path / "model.gguf", LONG, chat_template=plain)
    events = replies(LocalBackend(file), box, max_tokens=4)
    started = events[0]
    assert isinstance(started, Started)
    assert started.note is not None
    assert "no place for tools" in started.note
    assert isinstance(events[-1], Finished)


def test_definitions_that_do_not_fit_are_left_out(tmp_path: Path) -> None:
    template = tool_templates.QWEN3
    file = write_model(tmp_path / "model.gguf", TINY.with_(context_length=256), chat_template=template)
    backend = LocalBackend(file)
    tools = (ToolSpec("long", "word " * 500),)
    events = list(backend.chat(Request(messages=ASK, tools=tools, max_tokens=4), threading.Event()))
    assert isinstance(events[0], Started)
    assert "do not fit" in events[0].no_tools
    assert isinstance(events[-1], Finished)


def test_results_that_do_not_fit_together_leave_the_last(tmp_path: Path) -> None:
    file = write_model(tmp_path / "model.gguf", TINY.with_(context_length=1400), chat_template=tool_templates.QWEN3)
    backend = LocalBackend(file)
    calls = [ToolCall("f", "{}", str(number)) for number in range(3)]
    talk = [m for c in calls for m in (Message("assistant", "", (c,)), Message("tool", "result " * 40, call_id=c.id))]
    request = Request(messages=(*ASK, *talk), tools=(ToolSpec("f"),), max_tokens=4)
    events = list(backend.chat(request, threading.Event()))
    assert isinstance(events[0], Started)
    assert events[0].dropped_messages == 2
    assert isinstance(events[-1], Finished)


def test_tools_and_a_grammar_exclude_each_other() -> None:
    with pytest.raises(Exception, match="exclude each other"):
        Request(messages=ASK, tools=(ToolSpec("a"),), grammar=Grammar.json_object())


def test_a_reply_with_calls_becomes_messages_again() -> None:
    first = CallRecord("1", "f", state="done", result="A", at=5)
    second = CallRecord("2", "f", state="cancelled", at=9, round=1)
    reply = segments(["Look. And"], [first, second])
    assert reply == [Segment("Look.", (first,)), Segment(" And", (second,)), Segment("")]
    whole = messages_of(reply, whole=True)
    assert [(m.role, m.content) for m in whole] == [("assistant", "Look."), ("tool", "A"), ("assistant", " And")]
    assert whole[0].calls == (ToolCall("f", "{}", "1"),)
    going_on = messages_of(reply, whole=False)
    assert [m.role for m in going_on] == ["assistant", "tool", "assistant", "tool"]
    assert "broken off" in going_on[-1].content
    assert messages_of(segments([""], [first]), whole=True) == []
    many = Message("assistant", "Both.", (ToolCall("f", "{}", "1"), ToolCall("g", "{}", "2")))
    answers = (Message("tool", "A", call_id="1"), Message("tool", "B", call_id="2"))
    single = with_single_calls((*ASK, many, *answers))
    assert [(m.role, m.content, len(m.calls)) for m in single[1:]] == [
        ("assistant", "Both.", 1),
        ("tool", "A", 0),
        ("assistant", "", 1),
        ("tool", "B", 0),
    ]
    flat = without_calls([*ASK, *messages_of(segments(["Look. Done"], [first]), whole=True)])
    assert flat == (*ASK, Message("assistant", "Look.\n\n Done"))


@pytest.mark.parametrize(
    "data", [{}, {"state": "running", "at": -1, "seconds": "x"}, {"arguments": None, "round": 1.5}]
)
def test_a_damaged_record_is_a_call_that_was_broken_off(data: dict[str, Any]) -> None:
    assert call_from_dict(data).state == "cancelled"
