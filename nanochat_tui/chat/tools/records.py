"""A call of a tool as it is shown and kept, and how a reply with calls becomes messages again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby
from typing import Any, Literal, get_args

from nanochat_tui.chat.backend import Message, ToolCall

State = Literal["waiting", "running", "done", "failed", "denied", "cancelled"]
OPEN: tuple[State, ...] = ("waiting", "running")
BROKEN = "The call was broken off, and there is no result."
"""What a model is told of a call whose result never came."""


@dataclass(frozen=True, slots=True)
class CallRecord:
    """One call of a tool: what was asked, what became of it, and where in the reply it stands.

    `function` is the tool's name as the model knows it, `server` and `tool` as people do. `part` and `at` say behind
    which part of the reply, and after how many characters of it, `round` which calls were made together.
    """

    id: str
    function: str
    server: str = ""
    tool: str = ""
    arguments: str = "{}"
    state: State = "waiting"
    result: str = ""
    seconds: float | None = None
    round: int = 0
    part: int = 0
    at: int = 0

    @property
    def title(self) -> str:
        """The tool's name, for people."""
        return f"{self.server}.{self.tool}" if self.server else self.function

    @property
    def outcome(self) -> str:
        """How the call stands, in a few words."""
        if self.state in ("done", "failed") and self.seconds is not None:
            return f"{self.state} {'in' if self.state == 'done' else 'after'} {self.seconds:.1f} s"
        return {"waiting": "waiting for approval"}.get(self.state, self.state)

    @property
    def call(self) -> ToolCall:
        """The call as a model made it."""
        return ToolCall(self.function, self.arguments, self.id)

    @property
    def answer(self) -> Message:
        """What the model is told."""
        return Message("tool", self.result or BROKEN, call_id=self.id, name=self.function)

    @property
    def said(self) -> str:
        """Everything a search may look for."""
        return f"{self.title} {self.arguments}\n{self.result}"


def call_from_dict(data: Mapping[str, Any]) -> CallRecord:
    """Undo `dataclasses.asdict`; what makes no sense is left out, and a call that was not over was broken off."""

    def text(name: str) -> str:
        return str(data.get(name) or "")

    def number(name: str) -> int:
        value = data.get(name)
        return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 31 else 0

    state, seconds = data.get("state"), data.get("seconds")
    known = state in get_args(State) and state not in OPEN
    return CallRecord(
        text("id"),
        text("function"),
        text("server"),
        text("tool"),
        text("arguments"),
        state if known else "cancelled",  # type: ignore[arg-type]
        text("result"),
        float(seconds) if isinstance(seconds, int | float) and 0 <= seconds < 1e9 else None,
        number("round"),
        number("part"),
        number("at"),
    )


def calls_from(data: object) -> tuple[CallRecord, ...]:
    """Return the calls of a list of dictionaries; anything else holds none."""
    return tuple(call_from_dict(one) for one in data if isinstance(one, dict)) if isinstance(data, list) else ()


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of a reply: text, and the calls that were made together behind it; the last one has none."""

    text: str
    calls: tuple[CallRecord, ...] = ()


def segments(parts: Sequence[str], calls: Iterable[CallRecord]) -> list[Segment]:
    """Return the texts and the calls of a reply in order; a text may be ''."""
    starts = [0, *accumulate(map(len, parts))]
    text = "".join(parts)
    made: list[Segment] = []
    begun = 0  # the line ends before a paragraph belong to neither
    for _, together in groupby(calls, key=lambda call: (call.part, call.round)):
        group = tuple(together)
        end = max(begun, min(starts[min(group[0].part, len(parts))] + group[0].at, len(text)))
        made.append(Segment(text[begun:end].lstrip("\n") if made else text[begun:end], group))
        begun = end
    return [*made, Segment(text[begun:].lstrip("\n") if made else text[begun:])]


def messages_of(reply: Sequence[Segment], *, whole: bool) -> list[Message]:
    """Return a reply as messages: what the model said with its calls, and what the tools answered.

    With `whole`, calls without any text behind them are left out: templates want an answer before the next message.
    Otherwise the text of the last segment is: there the reply continues.
    """
    kept = list(reply)
    while whole and len(kept) > 1 and not kept[-1].text.strip():
        kept[-2:] = [Segment(kept[-2].text)]
    made: list[Message] = []
    for segment in kept:
        if segment.calls:
            made.append(Message("assistant", segment.text, tuple(call.call for call in segment.calls)))
            made += [call.answer for call in segment.calls]
        elif whole and segment.text:
            made.append(Message("assistant", segment.text))
    return made
