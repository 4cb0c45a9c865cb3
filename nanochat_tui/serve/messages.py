"""A reply in Anthropic's words: `message_start` to `message_stop`, or one message."""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import BaseModel

from nanochat_tui.model.chat.tools.calls import ToolCall
from nanochat_tui.serve.errors import ApiError
from nanochat_tui.serve.following import End, Piece, named_event


class MessageBlock(BaseModel):
    """Text, what the model thought before it (without a signature: what is sent back is trusted), or a call."""

    type: Literal["text", "thinking", "tool_use"]
    text: str | None = None
    thinking: str | None = None
    signature: str | None = None
    id: str | None = None
    name: str | None = None
    input: dict[str, Any] | None = None


class MessageUsage(BaseModel):
    """Token counts; prompt tokens from the cache are counted apart, as Anthropic does."""

    input_tokens: int
    output_tokens: int
    cache_creation_input_tokens: int = 0
    cache_read_input_tokens: int = 0


class Message(BaseModel):
    """The answer to `POST /v1/messages`."""

    id: str
    type: Literal["message"] = "message"
    role: Literal["assistant"] = "assistant"
    model: str
    content: list[MessageBlock]
    stop_reason: Literal["end_turn", "max_tokens", "stop_sequence", "tool_use", "model_context_window_exceeded"] | None
    stop_sequence: str | None
    usage: MessageUsage


class TokenCount(BaseModel):
    """The answer to `POST /v1/messages/count_tokens`."""

    input_tokens: int


class MessageError(BaseModel):
    """What went wrong."""

    type: str
    message: str


class MessageErrorBody(BaseModel):
    """The body of every answer of these routes that is not a success."""

    type: Literal["error"] = "error"
    error: MessageError


@dataclass
class MessageWriter:
    """The dialect of `/v1/messages`."""

    model: str
    prompt_tokens: int
    max_tokens: int
    id: str = field(default_factory=lambda: "msg_" + uuid.uuid4().hex)
    blocks: list[dict[str, Any]] = field(default_factory=list)

    def opening(self) -> list[bytes]:
        """Return the message without its content. How much of the prompt is cached is known at the end only."""
        usage = MessageUsage(input_tokens=self.prompt_tokens, output_tokens=0)
        message = self._message([], None, None, usage)
        return [named_event({"type": "message_start", "message": message}), self.ping()]

    def ping(self) -> bytes:
        """Return Anthropic's own sign of life."""
        return named_event({"type": "ping"})

    def write(self, piece: Piece) -> list[bytes]:
        """Take text; a change between thinking and answer begins a new block."""
        if piece.call is not None:
            return self._write_call(piece.call)
        kind = "thinking" if piece.thinking else "text"
        events = []
        if not self.blocks or self.blocks[-1]["type"] != kind:
            events += [*self._end_block(), self._begin_block(kind)]
        self.blocks[-1][kind] += piece.text
        delta = {"type": f"{kind}_delta", kind: piece.text}
        events.append(self._of_block("content_block_delta", delta=delta))
        return events

    def _write_call(self, call: ToolCall) -> list[bytes]:
        begun = {"type": "tool_use", "id": "toolu_" + call.id.removeprefix("call_"), "name": call.name, "input": {}}
        events = self._end_block()
        self.blocks.append({**begun, "input": json.loads(call.arguments)})
        events.append(self._of_block("content_block_start", content_block=begun))
        delta = {"type": "input_json_delta", "partial_json": call.arguments}
        return [*events, self._of_block("content_block_delta", delta=delta)]

    def _begin_block(self, kind: str) -> bytes:
        made: dict[str, Any] = {"type": kind, kind: ""} | ({"signature": ""} if kind == "thinking" else {})
        self.blocks.append(made)
        return self._of_block("content_block_start", content_block=dict(made))

    def _end_block(self) -> list[bytes]:
        return [self._of_block("content_block_stop")] if self.blocks else []

    def _of_block(self, name: str, **more: Any) -> bytes:
        return named_event({"type": name, "index": len(self.blocks) - 1, **more})

    def closing(self, end: End) -> list[bytes]:
        """Return the end of the last block, reason and counts, and the end."""
        events = []
        if not any(block["type"] in ("text", "tool_use") for block in self.blocks) and not (end.cut and self.blocks):
            events += [*self._end_block(), self._begin_block("text")]  # clients look for a text
        events += self._end_block()
        delta = {"stop_reason": self._reason(end), "stop_sequence": end.stop}
        events.append(named_event({"type": "message_delta", "delta": delta, "usage": _usage(end).model_dump()}))
        return [*events, named_event({"type": "message_stop"})]

    def failing(self, error: ApiError) -> list[bytes]:
        """Return the error as an event."""
        return [named_event(error.body("/v1/messages"))]

    def whole(self, end: End) -> dict[str, Any]:
        """Return the message."""
        return self._message(self.blocks, self._reason(end), end.stop, _usage(end))

    def _reason(self, end: End) -> str:
        if end.cut:
            return "max_tokens" if end.tokens >= self.max_tokens else "model_context_window_exceeded"
        if any(block["type"] == "tool_use" for block in self.blocks):
            return "tool_use"
        return "end_turn" if end.stop is None else "stop_sequence"

    def _message(
        self, blocks: list[dict[str, Any]], reason: str | None, stop: str | None, usage: MessageUsage
    ) -> dict[str, Any]:
        return {
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "model": self.model,
            "content": blocks,
            "stop_reason": reason,
            "stop_sequence": stop,
            "usage": usage.model_dump(),
        }


def _usage(end: End) -> MessageUsage:
    return MessageUsage(
        input_tokens=end.prompt_tokens - end.cached_tokens,
        output_tokens=end.tokens,
        cache_read_input_tokens=end.cached_tokens,
    )
