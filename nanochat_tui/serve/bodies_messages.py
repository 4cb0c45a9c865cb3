"""What Anthropic's clients send to `/v1/messages`, and the same as a conversation in OpenAI's words."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from nanochat_tui.serve.bodies import MAX_MESSAGES, MAX_PARTS, MAX_STOPS, ChatBody, StopString, refuse
from nanochat_tui.serve.body_types import MAX_INT, Body, Whole, said_as
from nanochat_tui.serve.errors import from_validation
from nanochat_tui.serve.tools import MAX_TOOLS, ToolName

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


class ToolUseBlock(Body):
    """A call that the assistant made."""

    type: Literal["tool_use"]
    id: str = Field(max_length=1000)
    name: str = Field(max_length=1000)
    input: dict[str, Any]


class ToolResultBlock(Body):
    """What came of a call."""

    type: Literal["tool_result"]
    tool_use_id: str = Field(max_length=1000)
    content: Annotated[
        str | Annotated[list[TextBlock], Field(max_length=MAX_PARTS, fail_fast=True)] | None, said_as(SYSTEM_AS)
    ] = None
    is_error: bool | None = False

    @property
    def text(self) -> str:
        """The result as a template gets it."""
        content = self.content or ""
        text = content if isinstance(content, str) else "".join(part.text for part in content)
        return f"Error: {text}" if self.is_error else text


Block = TextBlock | ThinkingBlock | RedactedBlock | ToolUseBlock | ToolResultBlock
KINDS = ("text", "thinking", "redacted_thinking", "tool_use", "tool_result")


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
            if isinstance(kind, str) and kind not in KINDS:
                raise PydanticCustomError(
                    "unsupported_parameter",
                    "content of type {kind} is not supported by this server, only text, thinking and tools",
                    {"name": "messages", "kind": kind[:50]},
                )
        return raw

    @property
    def blocks(self) -> list[Block]:
        """The content as blocks."""
        return [TextBlock(type="text", text=self.content)] if isinstance(self.content, str) else self.content

    def messages(self) -> list[dict[str, Any]]:
        """Return the turn in OpenAI's words: results of tools are messages of their own, before what follows them."""
        found: list[dict[str, Any]] = []
        for block in self.blocks:
            if isinstance(block, ToolResultBlock):
                found.append({"role": "tool", "tool_call_id": block.tool_use_id, "content": block.text})
                continue
            if not found or found[-1]["role"] == "tool":
                found.append({"role": self.role, "content": ""})
            row = found[-1]
            if isinstance(block, TextBlock):
                row["content"] += block.text
            elif isinstance(block, ThinkingBlock):
                row["reasoning_content"] = row.get("reasoning_content", "") + block.thinking
            elif isinstance(block, ToolUseBlock):
                function = {"name": block.name, "arguments": json.dumps(block.input, ensure_ascii=False)}
                row.setdefault("tool_calls", []).append({"id": block.id, "type": "function", "function": function})
        return found


class ThinkingOption(Body):
    """Whether the model is to think. A budget of tokens is not kept: `max_tokens` counts thinking and answer."""

    type: Literal["enabled", "disabled", "adaptive", "between_tools"]
    budget_tokens: Whole | None = Field(None, ge=1, le=MAX_INT)


class MessageTool(Body):
    """A tool; those that run at Anthropic are refused."""

    type: Annotated[Literal["custom"] | None, said_as("custom is the only kind of tool")] = None
    name: ToolName
    description: str | None = None
    input_schema: dict[str, Any]
    strict: bool | None = None

    def row(self) -> dict[str, Any]:
        """Return the tool in OpenAI's words."""
        function = {"name": self.name, "description": self.description, "parameters": self.input_schema}
        return {"type": "function", "function": {**function, "strict": self.strict}}


class MessageToolChoice(Body):
    """Whether a tool is called, and which."""

    type: Literal["auto", "any", "none", "tool"]
    name: ToolName | None = None
    disable_parallel_tool_use: bool | None = None

    @model_validator(mode="after")
    def _named(self) -> MessageToolChoice:
        if self.type == "tool" and self.name is None:
            raise PydanticCustomError("kind", "tool_choice of type tool needs a name")
        return self

    def fields(self) -> dict[str, Any]:
        """Return the fields of a chat completion."""
        named = {"type": "function", "function": {"name": self.name}}
        choice = {"auto": "auto", "any": "required", "none": "none", "tool": named}[self.type]
        return {"tool_choice": choice, "parallel_tool_calls": not self.disable_parallel_tool_use}


class OutputFormat(Body):
    """The form of the answer."""

    type: Literal["json_schema"]
    schema_: dict[str, Any] = Field(alias="schema")


class OutputConfig(Body):
    """The form of the answer; `effort` is a hint that is not kept."""

    format: OutputFormat | None = None


class CountBody(Body):
    """`POST /v1/messages/count_tokens`."""

    model: str = Field(max_length=500, description="Id of the model.")
    messages: list[Turn] = Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)
    system: Annotated[
        str | Annotated[list[TextBlock], Field(max_length=MAX_PARTS, fail_fast=True)] | None, said_as(SYSTEM_AS)
    ] = None
    thinking: ThinkingOption | None = None
    tools: Annotated[list[MessageTool], Field(max_length=MAX_TOOLS, fail_fast=True)] | None = None
    tool_choice: MessageToolChoice | None = None

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
        if self.tools:
            fields["tools"] = [tool.row() for tool in self.tools]
            fields |= self.tool_choice.fields() if self.tool_choice is not None else {}
        return fields


class MessagesBody(CountBody):
    """`POST /v1/messages`."""

    max_tokens: Whole = Field(ge=1, le=MAX_INT, description="Most tokens of the reply, thinking included.")
    stop_sequences: Annotated[list[StopString] | None, Field(max_length=MAX_STOPS, fail_fast=True)] = None
    stream: bool | None = False
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    top_k: Whole | None = Field(None, ge=-1, le=MAX_INT, description="0 or -1: all.")
    output_config: OutputConfig | None = None

    def fields(self) -> dict[str, Any]:
        """Return the fields of a chat completion."""
        own: dict[str, Any] = {
            "max_tokens": self.max_tokens,
            "stop": self.stop_sequences or None,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
        }
        if self.output_config is not None and self.output_config.format is not None:
            named = {"name": "output", "schema": self.output_config.format.schema_}
            own["response_format"] = {"type": "json_schema", "json_schema": named}
        return super().fields() | {name: value for name, value in own.items() if value is not None}


def _add(messages: list[dict[str, Any]], turn: Turn) -> None:
    """Add a turn; turns of the same speaker are one, as Anthropic has it, for templates that insist on taking turns."""
    for row in turn.messages():
        last = messages[-1] if messages else {}
        if row["role"] != last.get("role") or row["role"] == "tool" or "tool_calls" in last:
            messages.append(row)
            continue
        last["content"] += "\n" + row["content"]
        if thoughts := row.get("reasoning_content"):
            last["reasoning_content"] = last.get("reasoning_content", "") + thoughts
        if "tool_calls" in row:
            last["tool_calls"] = row["tool_calls"]


def chat_body(fields: dict[str, Any]) -> ChatBody:
    """Return a chat completion's body of its fields. Raises ApiError."""
    try:
        return ChatBody.model_validate(fields)
    except ValidationError as error:
        raise from_validation(error.errors(include_url=False)) from error
