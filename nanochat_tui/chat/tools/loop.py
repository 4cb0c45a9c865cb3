"""A reply with tools: the model is asked, its calls are made, it is asked again, until it answers in text."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from threading import Event as CancelEvent

from nanochat_tui.chat.backend import Backend, Event, Finished, Message, Request, Stats, Token, ToolCall
from nanochat_tui.chat.tools.records import CallRecord
from nanochat_tui.chat.tools.toolbox import STOPPED, Asker, Toolbox, record_of

BOUND = "Not made: the model has called tools {rounds} times in this reply; it continues when the user does."


def answer(
    backend: Backend, request: Request, toolbox: Toolbox, ask: Asker, cancel: CancelEvent, *, first: int = 0
) -> Iterator[Event | CallRecord]:
    """Answer a request whose model may use tools; `Finished` comes once, at the end of all rounds.

    Records of calls come with each change of their state. Figures are those of all rounds together. first: the number
    of the first round, for a reply that is continued. Raises `UserError` as `Backend.chat` does.
    """
    limits = toolbox.limits
    size = backend.context_size
    most = min(limits.max_tokens, size // 4) if size else limits.max_tokens
    before = 0
    text = request.prefix
    """All that was said so far: what is said behind calls begins a paragraph of its own."""
    waited: float | None = None
    for number in range(first, first + limits.rounds + 1):
        calls: list[ToolCall] = []
        said: list[str] = []
        last = Stats(None, None, 0, size)
        ended = Finished("stop")
        for event in backend.chat(request, cancel):
            match event:
                case ToolCall():
                    calls.append(event)
                    continue
                case Token(thinking=False) if event.text:
                    gap = _gap(text) if number > first and not said else ""
                    said.append(event.text)
                    text += gap + event.text
                    yield replace(event, text=gap + event.text)
                    continue
                case Stats():
                    last = event
                    waited = event.seconds_to_first_token if waited is None else waited
                    yield replace(event, generated=before + event.generated, seconds_to_first_token=waited)
                    continue
                case Finished():
                    ended = event
                    break
            yield event
        if not calls or ended.reason == "cancelled":
            yield ended
            return
        before += last.generated
        records: list[CallRecord] = []
        bound = number == first + limits.rounds
        for call in calls:
            record = record_of(call, number)
            if bound:
                steps = iter([replace(record, state="denied", result=BOUND.format(rounds=limits.rounds))])
            elif cancel.is_set():
                steps = iter([replace(record, state="cancelled", result=STOPPED)])
            else:
                steps = toolbox.run(record, ask, cancel, backend.count, most)
            for step in steps:
                record = step
                yield step
            records.append(record)
        if bound or cancel.is_set():
            yield Finished("cancelled" if cancel.is_set() else "stop")
            return
        request = _next(request, "".join(said), records)


def _gap(text: str) -> str:
    """Return the line ends that part a text from a paragraph behind it."""
    return "\n" * (2 - len(text[-2:]) + len(text[-2:].rstrip("\n"))) if text.strip() else ""


def _next(request: Request, said: str, records: list[CallRecord]) -> Request:
    """Return the request that follows: what was said and called, and what the tools answered."""
    called = Message("assistant", request.prefix + said, tuple(record.call for record in records))
    messages = (*request.messages, called, *(record.answer for record in records))
    return replace(request, messages=messages, prefix="", prefix_ids=(), prefix_thinking=False, tool_choice="auto")
