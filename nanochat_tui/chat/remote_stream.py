"""From the chunks of an OpenAI-compatible stream to tokens. Pure: lines in, tokens and counts out.

Chunks come from a stranger: every field may be missing or of another type, and then counts as absent.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from nanochat_tui.chat.backend import BackendError, FinishReason, Token
from nanochat_tui.errors import display_safe


@dataclass
class Reply:
    """What a stream has told so far."""

    reason: FinishReason | None = None
    done: bool = False
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tps: float | None = None
    decode_tps: float | None = None
    drafted: int = 0
    accepted: int = 0
    notes: list[str] = field(default_factory=list)

    def feed(self, line: str) -> Iterator[Token]:
        """Take one line; yield its tokens. Raises `BackendError` if the server reports an error or speaks nonsense."""
        text = line.strip()
        if not text or text.startswith((":", "event:", "id:", "retry:")):
            return
        payload = text.removeprefix("data:").strip()
        if payload == "[DONE]":
            self.done = True
            return
        try:
            data = json.loads(payload)
        except ValueError as exc:
            raise BackendError(f"The server does not speak OpenAI's protocol ({display_safe(text, 80)}).") from exc
        yield from self._chunk(data if isinstance(data, dict) else {})

    def _chunk(self, data: dict[str, Any]) -> Iterator[Token]:
        if error := data.get("error"):
            said = error.get("message", "") if isinstance(error, dict) else str(error)
            raise BackendError(f"The server reports an error: {display_safe(str(said))}")
        self._count(data)
        choices = data.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
        reason = choice.get("finish_reason")
        if reason:
            self.reason = "length" if reason in ("length", "max_tokens") else "stop"
        delta = choice.get("delta", choice.get("message"))
        entries = _entries(choice.get("logprobs"))
        if isinstance(delta, dict):
            thought = _text(delta.get("reasoning_content")) or _text(delta.get("reasoning"))
            said = _text(delta.get("content"))
            if thought:
                yield from _spread(thought, entries if not said else [], thinking=True)
            if said or (entries and not thought):
                yield from _spread(said, entries, thinking=False)
        elif "text" in choice:
            yield from _spread(_text(choice.get("text")), entries, thinking=False)

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


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _whole(value: object, otherwise: int | None) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else otherwise


def _number(value: object) -> float | None:
    valid = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if valid else None  # type: ignore[arg-type]


def _spread(text: str, entries: list[Token], *, thinking: bool) -> Iterator[Token]:
    """Give a chunk's text to its tokens; where they do not spell it, the first one has it all."""
    if not entries:
        if text:
            yield Token(text, thinking=thinking)
        return
    spelled = "".join(entry.text for entry in entries) == text
    for place, entry in enumerate(entries):
        own = entry.text if spelled else text if place == 0 else ""
        yield Token(own, entry.id, entry.logprob, entry.top, thinking)


def _entries(logprobs: object) -> list[Token]:
    """Return the tokens of either shape of `logprobs`: a list of entries, or lists side by side."""
    if not isinstance(logprobs, dict):
        return []
    content = logprobs.get("content")
    if isinstance(content, list):
        return [_entry(entry) for entry in content if isinstance(entry, dict)]
    names, values, tops = (logprobs.get(key) for key in ("tokens", "token_logprobs", "top_logprobs"))
    if not isinstance(names, list):
        return []
    made = []
    for place, name in enumerate(names):
        top = tops[place] if isinstance(tops, list) and place < len(tops) else None
        value = values[place] if isinstance(values, list) and place < len(values) else None
        pairs = [(key, _number(v)) for key, v in top.items()] if isinstance(top, dict) else []
        made.append(Token(_text(name), None, _number(value), _ordered([(k, v) for k, v in pairs if v is not None])))
    return made


def _entry(entry: dict[str, Any]) -> Token:
    top = entry.get("top_logprobs")
    pairs = [
        (_text(other.get("token")), value)
        for other in (top if isinstance(top, list) else [])
        if isinstance(other, dict) and (value := _number(other.get("logprob"))) is not None
    ]
    return Token(_text(entry.get("token")), None, _number(entry.get("logprob")), _ordered(pairs))


def _ordered(pairs: list[tuple[str, float]]) -> tuple[tuple[int, str, float], ...]:
    return tuple((-1, text, value) for text, value in sorted(pairs, key=lambda pair: -pair[1]))
