"""From the events of an OpenAI-compatible stream to tokens. Pure: events in, tokens and counts out.

Events come from a stranger: every field may be missing or of another type, and then counts as absent.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from nanochat_tui.chat.backend import BackendError, FinishReason, Token, ToolCall
from nanochat_tui.chat.remote.events import ServerEvent
from nanochat_tui.text import display_safe

REASONS: dict[str, FinishReason] = {"length": "length", "max_tokens": "length", "model_length": "length"}
"""How servers call the end at a limit; any other reason is an end by the model."""
MAX_CALLS = 128
MAX_ASKED = 1 << 20
"""Most calls of tools in a reply, and most characters of all of them."""
FAILURES = {
    "content_filter": "The server's content filter ended the reply",
    "error": "The server ended the reply with an error",
}
"""Reasons for which a reply is not what the model would have said."""


@dataclass
class Reply:
    """What a stream has told so far. `alternatives` is how many were asked for with every token."""

    alternatives: int = 0
    offered: bool = False
    """Whether the model was offered tools."""
    reason: FinishReason | None = None
    done: bool = False
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tps: float | None = None
    decode_tps: float | None = None
    drafted: int = 0
    accepted: int = 0
    asked: dict[int, list[str]] = field(default_factory=dict)
    """Calls of tools by their number in the reply: id, name and arguments, as far as they came."""
    failure: str = ""
    """Why the server itself ended the reply, in words; '' if it did not."""
    said: bool = False
    """Whether any text of an answer came."""
    _halves: dict[bool, str] = field(default_factory=dict)
    """Per channel (thinking or not) the first half of a character outside the BMP, whose second comes in the next."""

    def feed(self, event: ServerEvent) -> Iterator[Token]:
        """Take one event; yield its tokens. Raises `BackendError` if the server reports an error or speaks nonsense."""
        text = event.text.strip()
        if text == "[DONE]":
            self.done = True
            return
        wrong = event.kind == "error"
        if not text:
            if wrong:
                raise _reported("")
            return
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as exc:
            if wrong:
                raise _reported(text) from None
            if event.kind:  # pings and the like, in a form of their own
                return
            raise BackendError(f"The server does not speak OpenAI's protocol ({display_safe(text, 80)}).") from exc
        if wrong or (isinstance(data, dict) and _is_error(data)):
            raise _reported(message_in(data))
        for chunk in data if isinstance(data, list) else [data]:
            if isinstance(chunk, dict):
                yield from self._chunk(chunk)

    def end(self) -> Iterator[Token]:
        """Yield what the end completes."""
        for thinking, _ in sorted(self._halves.items()):
            self._halves.pop(thinking)
            yield Token("\ufffd", thinking=thinking)

    @property
    def complaint(self) -> str:
        """What cannot be used of a reply that is over, as a sentence; '' if all could."""
        if self.failure:
            return f"{self.failure}" + ("; what had come is kept." if self.said else ".")
        if self.asked and not self.offered and not self.said:
            names = ", ".join(display_safe(name, 60) for name in dict.fromkeys(name for _, name, _ in self.calls))
            return f"The model only called tools ({names}), and it was offered none; ask in another way."
        return ""

    @property
    def calls(self) -> list[tuple[str, str, str]]:
        """Id, name and arguments of the tools that the model called."""
        return [(number, name, text) for number, name, text in self.asked.values() if name]

    def made_calls(self) -> list[ToolCall]:
        """Return the calls of the reply, which is over; none if no tools were offered."""
        if not self.offered:
            return []
        return [
            ToolCall(name, text.strip() or "{}", *([number] if number else []))
            for number, name, text in map(_without_halves, self.calls)
        ]

    def _chunk(self, data: dict[str, Any]) -> Iterator[Token]:
        self._count(data)
        choices = data.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
        reason = choice.get("finish_reason")
        if isinstance(reason, str) and reason:
            self.reason = REASONS.get(reason, "stop")
            if reason in FAILURES:
                said = message_in(choice)
                self.failure = FAILURES[reason] + (f" ({display_safe(said)})" if said else "")
        delta = choice.get("delta") or choice.get("message")
        entries = self._entries(choice.get("logprobs"))
        if isinstance(delta, dict):
            self._called(delta)
            content, thought_inside = _parts(delta.get("content"))
            thought = _text(delta.get("reasoning_content")) or _text(delta.get("reasoning")) or thought_inside
            content += _text(delta.get("refusal"))
            if thought:
                yield from self._spread(thought, entries if not content else [], thinking=True)
            if content or (entries and not thought):
                yield from self._spread(content, entries, thinking=False)
        elif "text" in choice:
            yield from self._spread(_text(choice.get("text")), entries, thinking=False)

    def _called(self, delta: dict[str, Any]) -> None:
        """Put the pieces of calls together. Raises BackendError for more, or longer ones, than a model would write."""
        calls = delta.get("tool_calls")
        for place, call in enumerate(calls if isinstance(calls, list) else []):
            if isinstance(call, dict):
                self._piece(_whole(call.get("index"), place) or 0, _text(call.get("id")), call.get("function"))
        self._piece(0, "", delta.get("function_call"))

    def _piece(self, index: int, number: str, function: object) -> None:
        if not isinstance(function, dict):
            return
        known = self.asked.setdefault(index, ["", "", ""])
        if number and known[0] and number != known[0]:  # servers that number every call 0
            index = max(self.asked) + 1
            known = self.asked.setdefault(index, ["", "", ""])
        arguments = function.get("arguments")
        known[0] = known[0] or number
        known[1] = known[1] or _text(function.get("name"))
        known[2] += json.dumps(arguments) if isinstance(arguments, dict) else _text(arguments)
        if len(self.asked) > MAX_CALLS or sum(len(text) for call in self.asked.values() for text in call) > MAX_ASKED:
            raise BackendError("The server sent calls of tools without end; ask in another way.")

    def _spread(self, text: str, entries: list[Token], *, thinking: bool) -> Iterator[Token]:
        """Give a chunk's text to its tokens; where they do not spell it, the first one has it all."""
        spelled = "".join(entry.text for entry in entries) == text
        for place, entry in enumerate(entries or [Token(text)]):
            own = entry.text if spelled or not entries else text if place == 0 else ""
            whole = self._whole(own, thinking)
            self.said = self.said or bool(whole and not thinking)
            if whole or entries:
                yield Token(whole, entry.id, entry.logprob, entry.top, thinking)

    def _whole(self, text: str, thinking: bool) -> str:
        """Join a character whose halves (a surrogate pair) came in two pieces; a half alone becomes U+FFFD."""
        text = self._halves.pop(thinking, "") + text
        if text.isascii():
            return text
        if "\ud800" <= text[-1] <= "\udbff":
            self._halves[thinking] = text[-1]
            text = text[:-1]
        return without_halves(text)

    def _count(self, data: dict[str, Any]) -> None:
        usage, timings = data.get("usage"), data.get("timings")
        if isinstance(usage, dict):
            self.prompt_tokens = _whole(usage.get("prompt_tokens"), self.prompt_tokens)
            self.completion_tokens = _whole(usage.get("completion_tokens"), self.completion_tokens)
        if isinstance(timings, dict):
            self.prompt_tps = _number(timings.get("prompt_per_second")) or self.prompt_tps
            self.decode_tps = _number(timings.get("predicted_per_second")) or self.decode_tps
            self.drafted = _whole(timings.get("draft_n"), self.drafted) or 0
            self.accepted = _whole(timings.get("draft_n_accepted"), self.accepted) or 0

    def _entries(self, logprobs: object) -> list[Token]:
        """Return the tokens of either shape of `logprobs`: a list of entries, or lists next to one another."""
        if not isinstance(logprobs, dict):
            return []
        content = logprobs.get("content")
        if isinstance(content, list):
            return [self._entry(entry) for entry in content if isinstance(entry, dict)]
        names, values, tops = (logprobs.get(key) for key in ("tokens", "token_logprobs", "top_logprobs"))
        if not isinstance(names, list):
            return []
        made = []
        for place, name in enumerate(names):
            top = tops[place] if isinstance(tops, list) and place < len(tops) else None
            value = values[place] if isinstance(values, list) and place < len(values) else None
            pairs = [(key, _number(v)) for key, v in top.items()] if isinstance(top, dict) else []
            told = self._likeliest([(k, v) for k, v in pairs if v is not None])
            made.append(Token(_text(name), None, _number(value), told))
        return made

    def _entry(self, entry: dict[str, Any]) -> Token:
        top = entry.get("top_logprobs")
        pairs = [
            (_text(other.get("token")), value)
            for other in (top if isinstance(top, list) else [])
            if isinstance(other, dict) and (value := _number(other.get("logprob"))) is not None
        ]
        return Token(_text(entry.get("token")), None, _number(entry.get("logprob")), self._likeliest(pairs))

    def _likeliest(self, pairs: list[tuple[str, float]]) -> tuple[tuple[int, str, float], ...]:
        """Return as many as were asked for: /v1/completions adds the token that was taken to them."""
        ordered = sorted(pairs, key=lambda pair: -pair[1])[: self.alternatives]
        return tuple((-1, without_halves(text), value) for text, value in ordered)


def without_halves(text: str) -> str:
    """Return text with surrogate pairs joined and halves alone replaced by U+FFFD: what UTF-8 can hold."""
    if text.isascii():
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _without_halves(call: tuple[str, str, str]) -> tuple[str, str, str]:
    number, name, text = map(without_halves, call)
    return number, name, text


def message_in(data: object) -> str:
    """Return what an error says, wherever a server puts it; '' if nowhere."""
    for _ in range(4):
        if isinstance(data, dict):
            data = next((data[key] for key in ("error", "message", "detail", "error_msg") if data.get(key)), "")
        elif isinstance(data, list) and data:  # FastAPI's list of what is wrong with a body
            data = data[0] if not isinstance(data[0], dict) else data[0].get("msg", data[0])
        else:
            break
    return data if isinstance(data, str) else "" if isinstance(data, (dict, list)) or data is None else str(data)


def _is_error(data: dict[str, Any]) -> bool:
    return bool(data.get("error")) or data.get("object") == "error" or data.get("type") == "error"


def _reported(said: str) -> BackendError:
    return BackendError(f"The server reports an error: {display_safe(said) or 'it does not say which; see its log'}")


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _parts(content: object) -> tuple[str, str]:
    """Return the answer and the thinking in a content, which is a text or a list of parts of either kind."""
    if not isinstance(content, list):
        return _text(content), ""
    said, thought = "", ""
    for part in content:
        if isinstance(part, dict) and part.get("type") == "thinking":
            inner = part.get("thinking")
            thought += _parts(inner)[0] if isinstance(inner, list) else _text(inner)
        elif isinstance(part, dict):
            said += _text(part.get("text"))
        else:
            said += _text(part)
    return said, thought


def _whole(value: object, otherwise: int | None) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else otherwise


def _number(value: object) -> float | None:
    valid = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if valid else None  # type: ignore[arg-type]
