"""What Anthropic's clients send to `/v1/messages`, and the same as a conversation in OpenAI's words."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from nanochat_tui.serve.bodies import MAX_MESSAGES, MAX_PARTS, MAX_STOPS, ChatBody, StopString, refuse
from nanochat_tui.serve.body_types import MAX_INT, Body, Whole, said_as
from nanochat_tui.serve.errors import from_validation

SYSTEM_AS = 'give a text, or a list of parts like {"type": "text", "text": "…"}'


class TextBlock(Body):
    """A piece of text; marks for a cache of prompts are ignored, because there is one anyway."""

    type: Literal["text"]
    text: str


class ThinkingBlock(Body):
    """What the assistant thought, as it was sent to the client; signatures are not looked at."""

    type: Literal["thinking"]
    thinking: str


class RedactedBlock(Body):
    """Thoughts that only their maker can read; they are left out."""

    type: Literal["redacted_thinking"]


Block = TextBlock | ThinkingBlock | RedactedBlock


class Turn(Body):
    """One turn of a conversation."""

    role: Literal["user", "assistant", "system"]
    content: Annotated[
        str
        | Annotated[list[Annotated[Block, Field(discriminator="type")]], Field(max_length=MAX_PARTS, fail_fast=True)],
        said_as('give a text, or a list of blocks like {"type": "text", "text": "…"}'),
    ]

    @model_validator(mode="before")
    @classmethod
    def _kinds(cls, raw: Any) -> Any:
        blocks = raw.get("content") if isinstance(raw, dict) else None
        for block in blocks if isinstance(blocks, list) else ():
            kind = block.get("type") if isinstance(block, dict) else None
            if isinstance(kind, str) and kind not in ("text", "thinking", "redacted_thinking"):
                raise PydanticCustomError(
                    "unsupported_parameter",
                    "content of type {kind} is not supported by this server, only text",
                    {"name": "messages", "kind": kind[:50]},
                )
        return raw

    @property
    def text(self) -> str:
        """What was said."""
        if isinstance(self.content, str):
            return self.content
        return "".join(block.text for block in self.content if isinstance(block, TextBlock))

    @property
    def thoughts(self) -> str:
        """What was thought."""
        if isinstance(self.content, str):
            return ""
        return "".join(block.thinking for block in self.content if isinstance(block, ThinkingBlock))


class ThinkingOption(Body):
    """Whether the model is to think. A budget of tokens is not kept: `max_tokens` counts thinking and answer."""

    type: Literal["enabled", "disabled", "adaptive", "between_tools"]
    budget_tokens: Whole | None = Field(None, ge=1, le=MAX_INT)


class CountBody(Body):
    """`POST /v1/messages/count_tokens`."""

    model: str = Field(max_length=500, description="Id of the model.")
    messages: list[Turn] = Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)
    system: Annotated[
        str | Annotated[list[TextBlock], Field(max_length=MAX_PARTS, fail_fast=True)] | None, said_as(SYSTEM_AS)
    ] = None
    thinking: ThinkingOption | None = None

    @model_validator(mode="before")
    @classmethod
    def _fields(cls, raw: Any) -> Any:
        refuse("messages", raw)
        return raw

    def chat(self) -> ChatBody:
        """Return the same request in OpenAI's words. Raises ApiError."""
        return chat_body(self.fields())

    def fields(self) -> dict[str, Any]:
        """Return the fields of a chat completion."""
        messages: list[dict[str, Any]] = []
        system = self.system if isinstance(self.system, str) else "\n".join(part.text for part in self.system or ())
        if system:
            messages.append({"role": "system", "content": system})
        for turn in self.messages:
            _add(messages, turn)
        fields: dict[str, Any] = {"model": self.model, "messages": messages}
        if self.thinking is not None and self.thinking.type in ("enabled", "disabled"):
            fields["chat_template_kwargs"] = {"enable_thinking": self.thinking.type == "enabled"}
        return fields


class MessagesBody(CountBody):
    """`POST /v1/messages`."""

    max_tokens: Whole = Field(ge=1, le=MAX_INT, description="Most tokens of the reply, thinking included.")
    stop_sequences: Annotated[list[StopString] | None, Field(max_length=MAX_STOPS, fail_fast=True)] = None
    stream: bool | None = False
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    top_k: Whole | None = Field(None, ge=-1, le=MAX_INT, description="0 or -1: all.")

    def fields(self) -> dict[str, Any]:
        """Return the fields of a chat completion."""
        own = {
            "max_tokens": self.max_tokens,
            "stop": self.stop_sequences or None,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
        }
        return super().fields() | {name: value for name, value in own.items() if value is not None}


def _add(messages: list[dict[str, Any]], turn: Turn) -> None:
    """Add a turn; turns of the same speaker are one, as Anthropic has it, for templates that insist on taking turns."""
    if messages and messages[-1]["role"] == turn.role:
        messages[-1]["content"] += "\n" + turn.text
    else:
        messages.append({"role": turn.role, "content": turn.text})
    if turn.role == "assistant" and turn.thoughts:
        messages[-1]["reasoning_content"] = messages[-1].get("reasoning_content", "") + turn.thoughts


def chat_body(fields: dict[str, Any]) -> ChatBody:
    """Return a chat completion's body of its fields. Raises ApiError."""
    try:
        return ChatBody.model_validate(fields)
    except ValidationError as error:
        raise from_validation(error.errors(include_url=False)) from error
