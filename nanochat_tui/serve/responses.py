"""A reply in the words of `/v1/responses`: `response.created` to `response.completed`, or one response."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import BaseModel

from nanochat_tui.model.chat.tools.calls import ToolCall
from nanochat_tui.serve.bodies_responses import ResponsesBody
from nanochat_tui.serve.errors import ApiError
from nanochat_tui.serve.following import End, Piece, named_event

PING = b": still working\n\n"


class CachedDetails(BaseModel):
    """Prompt tokens that were not computed again."""

    cached_tokens: int


class ReasoningDetails(BaseModel):
    """Tokens of thinking."""

    reasoning_tokens: int


class ResponseUsage(BaseModel):
    """Token counts."""

    input_tokens: int
    input_tokens_details: CachedDetails
    output_tokens: int
    output_tokens_details: ReasoningDetails
    total_tokens: int


class ResponseObject(BaseModel):
    """The answer to `POST /v1/responses`; further fields repeat the request."""

    id: str
    object: Literal["response"] = "response"
    created_at: int
    status: Literal["in_progress", "completed", "incomplete", "failed"]
    model: str
    output: list[dict[str, Any]]
    usage: ResponseUsage | None = None
    previous_response_id: str | None = None


class InputTokens(BaseModel):
    """The answer to `POST /v1/responses/input_tokens`."""

    object: Literal["response.input_tokens"] = "response.input_tokens"
    input_tokens: int


class InputItems(BaseModel):
    """The answer to `GET /v1/responses/ID/input_items`."""

    object: Literal["list"] = "list"
    data: list[dict[str, Any]]
    first_id: str | None
    last_id: str | None
    has_more: bool = False


class Deleted(BaseModel):
    """The answer to `DELETE /v1/responses/ID`."""

    id: str
    object: Literal["response"] = "response"
    deleted: Literal[True] = True


def new_id(prefix: str) -> str:
    """Return a name that nobody can guess."""
    return f"{prefix}_{uuid.uuid4().hex}"


@dataclass
class ResponseWriter:
    """The dialect of `/v1/responses`. keep: is given the whole response, and the assistant's message, at its end."""

    body: ResponsesBody
    model: str
    temperature: float
    top_p: float
    keep: Callable[[dict[str, Any], dict[str, Any]], None]
    id: str = field(default_factory=lambda: new_id("resp"))
    created: int = field(default_factory=lambda: int(time.time()))
    output: list[dict[str, Any]] = field(default_factory=list)
    number: int = 0

    def _event(self, name: str, /, **more: Any) -> bytes:
        row = {"type": name, "sequence_number": self.number, **more}
        self.number += 1
        return named_event(row)

    def response(self, status: str, **more: Any) -> dict[str, Any]:
        """Return the response as it is now."""
        body = self.body
        effort = body.reasoning.effort if body.reasoning else None
        form = body.text.format if body.text else None
        choice = body.tool_choice or "auto"
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "max_tool_calls": None,
            "metadata": body.metadata or {},
            "model": self.model,
            "output": [],
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "previous_response_id": body.previous_response_id,
            "reasoning": {"effort": effort, "summary": None},
            "store": body.store is not False,
            "temperature": self.temperature,
            "text": {"format": form.model_dump(by_alias=True, exclude_none=True) if form else {"type": "text"}},
            "tool_choice": choice if isinstance(choice, str) else choice.model_dump(),
            "tools": [tool.model_dump() for tool in body.tools or ()],
            "top_logprobs": 0,
            "top_p": self.top_p,
            "truncation": "disabled",
            "usage": None,
            "user": None,
            **more,
        }

    def opening(self) -> list[bytes]:
        """Return that it was created and is on its way."""
        begun = self.response("in_progress")
        return [self._event("response.created", response=begun), self._event("response.in_progress", response=begun)]

    def ping(self) -> bytes:
        """Return a comment."""
        return PING

    def write(self, piece: Piece) -> list[bytes]:
        """Take text; a change between thinking and answer begins a new item."""
        if piece.call is not None:
            return self._write_call(piece.call)
        kind = "reasoning" if piece.thinking else "message"
        events = []
        if not self.output or self.output[-1]["type"] != kind:
            events += [*self._end_item("completed"), *self._begin_item(kind)]
        self.output[-1]["content"][0]["text"] += piece.text
        name = "response.reasoning_text.delta" if piece.thinking else "response.output_text.delta"
        more: dict[str, Any] = {} if piece.thinking else {"logprobs": []}
        return [*events, self._event(name, **self._place(), delta=piece.text, **more)]

    def _write_call(self, call: ToolCall) -> list[bytes]:
        events = self._end_item("completed")
        item = {"id": new_id("fc"), "type": "function_call", "status": "in_progress", "call_id": call.id}
        item |= {"name": call.name, "arguments": ""}
        self.output.append(item)
        at = {"output_index": len(self.output) - 1}
        events.append(self._event("response.output_item.added", **at, item=item))
        place = {**at, "item_id": item["id"]}
        events.append(self._event("response.function_call_arguments.delta", **place, delta=call.arguments))
        item |= {"arguments": call.arguments, "status": "completed"}
        done = {"name": call.name, "arguments": call.arguments}
        events.append(self._event("response.function_call_arguments.done", **place, **done))
        return [*events, self._event("response.output_item.done", **at, item=item)]

    def _place(self) -> dict[str, Any]:
        return {"item_id": self.output[-1]["id"], "output_index": len(self.output) - 1, "content_index": 0}

    def _begin_item(self, kind: str) -> list[bytes]:
        item: dict[str, Any]
        if kind == "reasoning":
            item = {"id": new_id("rs"), "type": kind, "summary": [], "content": [], "status": "in_progress"}
            part: dict[str, Any] = {"type": "reasoning_text", "text": ""}
        else:
            item = {"id": new_id("msg"), "type": kind, "role": "assistant", "content": [], "status": "in_progress"}
            part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        self.output.append(item)
        added = self._event("response.output_item.added", output_index=len(self.output) - 1, item=item)
        item["content"] = [part]
        return [added, self._event("response.content_part.added", **self._place(), part=part)]

    def _end_item(self, status: str) -> list[bytes]:
        if not self.output or self.output[-1]["type"] == "function_call":  # which came whole
            return []
        item = self.output[-1]
        part = item["content"][0]
        item["status"] = status
        thinking = item["type"] == "reasoning"
        name = "response.reasoning_text.done" if thinking else "response.output_text.done"
        more: dict[str, Any] = {} if thinking else {"logprobs": []}
        return [
            self._event(name, **self._place(), text=part["text"], **more),
            self._event("response.content_part.done", **self._place(), part=part),
            self._event("response.output_item.done", output_index=len(self.output) - 1, item=item),
        ]

    def closing(self, end: End) -> list[bytes]:
        """Return the end of the last item, and the whole response."""
        events = []
        if not self.output or (self.output[-1]["type"] == "reasoning" and not end.cut):
            events += [*self._end_item("completed"), *self._begin_item("message")]  # clients look for a message
        events += self._end_item("incomplete" if end.cut else "completed")
        whole = self.whole(end)
        if self.body.store is not False:
            self.keep(whole, self._answer())
        return [*events, self._event(f"response.{whole['status']}", response=whole)]

    def _answer(self) -> dict[str, Any]:
        answer: dict[str, Any] = {"role": "assistant", "content": self._said("message")}
        if thought := self._said("reasoning"):
            answer["reasoning_content"] = thought
        if calls := [item for item in self.output if item["type"] == "function_call"]:
            answer["tool_calls"] = [
                {"id": c["call_id"], "type": "function", "function": {"name": c["name"], "arguments": c["arguments"]}}
                for c in calls
            ]
        return answer

    def _said(self, kind: str) -> str:
        return "".join(item["content"][0]["text"] for item in self.output if item["type"] == kind)

    def failing(self, error: ApiError) -> list[bytes]:
        """Return the error as an event, and the response that failed."""
        detail = error.detail
        failed = self.response("failed", error={"code": "server_error", "message": detail.message}, output=self.output)
        return [
            self._event("error", code=detail.code, message=detail.message, param=detail.param),
            self._event("response.failed", response=failed),
        ]

    def whole(self, end: End) -> dict[str, Any]:
        """Return the response."""
        usage = ResponseUsage(
            input_tokens=end.prompt_tokens,
            input_tokens_details=CachedDetails(cached_tokens=end.cached_tokens),
            output_tokens=end.tokens,
            output_tokens_details=ReasoningDetails(reasoning_tokens=end.thinking_tokens),
            total_tokens=end.prompt_tokens + end.tokens,
        )
        return self.response(
            "incomplete" if end.cut else "completed",
            output=self.output,
            usage=usage.model_dump(),
            incomplete_details={"reason": "max_output_tokens"} if end.cut else None,
        )
