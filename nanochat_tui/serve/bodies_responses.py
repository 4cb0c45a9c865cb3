"""What clients send to `/v1/responses`, and the same as a conversation in the words of chat completions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from nanochat_tui.serve.bodies import MAX_MESSAGES, MAX_PARTS, ChatBody, refuse
from nanochat_tui.serve.bodies_messages import chat_body
from nanochat_tui.serve.body_types import MAX_INT, Body, Whole, said_as

MAX_ID = 200
"""Characters of the id of a response."""
MAX_METADATA = 16
"""Pairs, as OpenAI has it."""
_TEXTS = ("input_text", "output_text", "text", "reasoning_text", "refusal")


class InputPart(Body):
    """A piece of an item; only text is understood."""

    type: Literal["input_text", "output_text", "text", "reasoning_text", "refusal"]
    text: str | None = None
    refusal: str | None = None


class InputItem(Body):
    """A message, or what the assistant thought before the message that follows."""

    type: Literal["message", "reasoning"] | None = "message"
    role: Literal["user", "assistant", "system", "developer"] | None = None
    content: Annotated[
        str | Annotated[list[InputPart], Field(max_length=MAX_PARTS, fail_fast=True)] | None,
        said_as('give a text, or a list of parts like {"type": "input_text", "text": "…"}'),
    ] = None

    @model_validator(mode="before")
    @classmethod
    def _kinds(cls, raw: Any) -> Any:
        if not isinstance(raw, dict):
            return raw
        kind = raw.get("type")
        if isinstance(kind, str) and kind not in ("message", "reasoning"):
            raise _unsupported("items", kind)
        parts = raw.get("content")
        for part in parts if isinstance(parts, list) else ():
            inner = part.get("type") if isinstance(part, dict) else None
            if isinstance(inner, str) and inner not in _TEXTS:
                raise _unsupported("content", inner)
        return raw

    @model_validator(mode="after")
    def _whole(self) -> InputItem:
        if self.type != "reasoning" and (self.role is None or self.content is None):
            raise PydanticCustomError("kind", "give a message with role and content")
        return self

    @property
    def text(self) -> str:
        """The content as one string."""
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text or part.refusal or "" for part in self.content or ())

    def row(self) -> dict[str, Any]:
        """Return the item as it is listed."""
        if self.type == "reasoning":
            return {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": self.text}]}
        kind = "output_text" if self.role == "assistant" else "input_text"
        part: dict[str, Any] = {"type": kind, "text": self.text}
        if kind == "output_text":
            part["annotations"] = []
        return {"type": "message", "role": self.role, "status": "completed", "content": [part]}


def _unsupported(what: str, kind: str) -> PydanticCustomError:
    return PydanticCustomError(
        "unsupported_parameter",
        "{what} of type {kind} are not supported by this server, only messages of text",
        {"name": "input", "what": what, "kind": kind[:50]},
    )


class ReasoningOption(Body):
    """How much the model is to think; summaries are not written."""

    effort: str | None = Field(None, max_length=50, description="As `reasoning_effort` of chat completions.")
    summary: Literal["auto", "concise", "detailed"] | None = Field(None, description="Never written; ignored.")
    generate_summary: Literal["auto", "concise", "detailed"] | None = None


class InputBody(Body):
    """`POST /v1/responses/input_tokens`, and what a request for a response shares with it."""

    model: str | None = Field(None, max_length=500, description="Id of the model; left out, the one that is served.")
    input: Annotated[
        str | Annotated[list[InputItem], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)],
        said_as("give a text, or a list of messages"),
    ]
    instructions: str | None = Field(None, description="A system message for this response alone.")
    previous_response_id: str | None = Field(None, max_length=MAX_ID, description="The response to go on from.")
    reasoning: ReasoningOption | None = None

    @model_validator(mode="before")
    @classmethod
    def _fields(cls, raw: Any) -> Any:
        refuse("responses", raw)
        return raw

    @property
    def items(self) -> list[InputItem]:
        """The input as items."""
        if isinstance(self.input, str):
            return [InputItem(role="user", content=self.input)]
        return self.input

    def messages(self) -> list[dict[str, Any]]:
        """Return the input as messages of a chat completion."""
        found: list[dict[str, Any]] = []
        thoughts = ""
        for item in self.items:
            if item.type == "reasoning":
                thoughts += item.text
                continue
            row: dict[str, Any] = {"role": item.role, "content": item.text}
            if item.role == "assistant" and thoughts:
                row["reasoning_content"] = thoughts
            thoughts = ""
            found.append(row)
        return found

    def chat(self, before: Sequence[dict[str, Any]]) -> ChatBody:
        """Return the request as a chat completion; before: the conversation that it goes on from. Raises ApiError."""
        return chat_body(self.fields(before))

    def fields(self, before: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Return the fields of a chat completion."""
        system = [{"role": "system", "content": self.instructions}] if self.instructions else []
        fields: dict[str, Any] = {
            "model": self.model,
            "messages": [*system, *before, *self.messages()],
            "continue_final_message": False,
        }
        if self.reasoning is not None and self.reasoning.effort is not None:
            fields["reasoning_effort"] = self.reasoning.effort
        return fields


class ResponsesBody(InputBody):
    """`POST /v1/responses`."""

    max_output_tokens: Whole | None = Field(None, ge=1, le=MAX_INT, description="Thinking included; left out, all.")
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    stream: bool | None = False
    store: bool | None = Field(True, description="Keep it for previous_response_id, in memory and for a while.")
    metadata: Annotated[
        dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]] | None,
        Field(max_length=MAX_METADATA),
    ] = Field(None, description="Given back as it is.")

    def fields(self, before: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Return the fields of a chat completion."""
        own = {"max_tokens": self.max_output_tokens, "temperature": self.temperature, "top_p": self.top_p}
        return super().fields(before) | {name: value for name, value in own.items() if value is not None}
