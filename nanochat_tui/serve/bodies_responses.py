"""What clients send to `/v1/responses`, and the same as a conversation in the words of chat completions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from nanochat_tui.serve.bodies import MAX_MESSAGES, MAX_PARTS, ChatBody, refuse
from nanochat_tui.serve.bodies_messages import chat_body
from nanochat_tui.serve.body_types import MAX_INT, Body, Whole, said_as
from nanochat_tui.serve.tools import MAX_TOOLS, ToolName

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
    """A message, what the assistant thought before the item that follows, a call of a function, or its result."""

    type: Literal["message", "reasoning", "function_call", "function_call_output"] | None = "message"
    role: Literal["user", "assistant", "system", "developer"] | None = None
    content: Annotated[
        str | Annotated[list[InputPart], Field(max_length=MAX_PARTS, fail_fast=True)] | None,
        said_as('give a text, or a list of parts like {"type": "input_text", "text": "…"}'),
    ] = None
    call_id: str | None = Field(None, max_length=1000, description="Of a call and of its result.")
    name: str | None = Field(None, max_length=1000, description="The function that is called.")
    arguments: str | None = None
    output: Annotated[
        str | Annotated[list[InputPart], Field(max_length=MAX_PARTS, fail_fast=True)] | None,
        said_as("give the result as a text, or as a list of parts"),
    ] = None

    @model_validator(mode="before")
    @classmethod
    def _kinds(cls, raw: Any) -> Any:
        if not isinstance(raw, dict):
            return raw
        kind = raw.get("type")
        if isinstance(kind, str) and kind not in ("message", "reasoning", "function_call", "function_call_output"):
            raise _unsupported("items", kind)
        parts = raw.get("content")
        for part in parts if isinstance(parts, list) else ():
            inner = part.get("type") if isinstance(part, dict) else None
            if isinstance(inner, str) and inner not in _TEXTS:
                raise _unsupported("content", inner)
        return raw

    @model_validator(mode="after")
    def _whole(self) -> InputItem:
        if self.type == "function_call" and None in (self.call_id, self.name, self.arguments):
            raise _incomplete("a function_call with call_id, name and arguments")
        if self.type == "function_call_output" and None in (self.call_id, self.output):
            raise _incomplete("a function_call_output with call_id and output")
        if self.type in ("message", None) and (self.role is None or self.content is None):
            raise _incomplete("a message with role and content")
        return self

    @property
    def text(self) -> str:
        """The content as one string."""
        content = self.output if self.type == "function_call_output" else self.content
        if isinstance(content, str):
            return content
        return "".join(part.text or part.refusal or "" for part in content or ())

    @property
    def prefix(self) -> str:
        """What the ids of such items begin with."""
        return {"reasoning": "rs", "function_call": "fc", "function_call_output": "fco"}.get(self.type or "", "msg")

    def row(self) -> dict[str, Any]:
        """Return the item as it is listed."""
        if self.type == "function_call":
            return {
                "type": self.type,
                "call_id": self.call_id,
                "name": self.name,
                "arguments": self.arguments,
                "status": "completed",
            }
        if self.type == "function_call_output":
            return {"type": self.type, "call_id": self.call_id, "output": self.text, "status": "completed"}
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
        "{what} of type {kind} are not supported by this server, only messages of text and calls of functions",
        {"name": "input", "what": what, "kind": kind[:50]},
    )


def _incomplete(what: str) -> PydanticCustomError:
    return PydanticCustomError("invalid_parameter", "give {what}", {"name": "input", "what": what})


class ReasoningOption(Body):
    """How much the model is to think; summaries are not written."""

    effort: str | None = Field(None, max_length=50, description="As `reasoning_effort` of chat completions.")
    summary: Literal["auto", "concise", "detailed"] | None = Field(None, description="Never written; ignored.")
    generate_summary: Literal["auto", "concise", "detailed"] | None = None


class FunctionTool(Body):
    """A function that the model may call; tools that run at OpenAI are refused."""

    type: Annotated[Literal["function"], said_as("function is the only kind of tool")]
    name: ToolName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    def row(self) -> dict[str, Any]:
        """Return the tool in the words of chat completions."""
        return {"type": "function", "function": self.model_dump(exclude={"type"})}


class FunctionChoice(Body):
    """A demand for a call of one function."""

    type: Literal["function"]
    name: ToolName


class TextFormat(Body):
    """The form of the answer."""

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = Field(None, max_length=1000)
    description: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None

    def fields(self) -> dict[str, Any]:
        """Return the fields of a chat completion."""
        if self.type != "json_schema":
            return {"response_format": {"type": self.type}} if self.type == "json_object" else {}
        named = {"name": self.name or "output", "schema": self.schema_, "strict": self.strict}
        return {"response_format": {"type": "json_schema", "json_schema": named}}


class TextOption(Body):
    """The form of the answer; there is one verbosity."""

    format: TextFormat | None = None
    verbosity: Annotated[Literal["medium"] | None, said_as("medium is the only verbosity")] = None


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
    tools: Annotated[list[FunctionTool], Field(max_length=MAX_TOOLS, fail_fast=True)] | None = None
    tool_choice: Annotated[
        Literal["none", "auto", "required"] | FunctionChoice | None,
        said_as('it is none, auto, required, or {"type": "function", "name": …}'),
    ] = None
    parallel_tool_calls: bool | None = True

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
            if item.type == "function_call_output":
                row: dict[str, Any] = {"role": "tool", "tool_call_id": item.call_id, "content": item.text}
            elif item.type == "function_call":
                row = {"role": "assistant", "content": "", "tool_calls": [_call(item)]}
                if found and found[-1]["role"] == "assistant":
                    found[-1].setdefault("tool_calls", []).append(_call(item))
                    continue
            else:
                row = {"role": item.role, "content": item.text}
            if row["role"] == "assistant" and thoughts:
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
        if self.tools:
            choice = self.tool_choice
            if isinstance(choice, FunctionChoice):
                fields["tool_choice"] = {"type": "function", "function": {"name": choice.name}}
            elif choice is not None:
                fields["tool_choice"] = choice
            fields["tools"] = [tool.row() for tool in self.tools]
            fields["parallel_tool_calls"] = self.parallel_tool_calls
        return fields


def _call(item: InputItem) -> dict[str, Any]:
    return {"id": item.call_id, "type": "function", "function": {"name": item.name, "arguments": item.arguments}}


class ResponsesBody(InputBody):
    """`POST /v1/responses`."""

    max_output_tokens: Whole | None = Field(None, ge=1, le=MAX_INT, description="Thinking included; left out, all.")
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    text: TextOption | None = None
    stream: bool | None = False
    store: bool | None = Field(True, description="Keep it for previous_response_id, in memory and for a while.")
    metadata: Annotated[
        dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]] | None,
        Field(max_length=MAX_METADATA),
    ] = Field(None, description="Given back as it is.")

    def fields(self, before: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Return the fields of a chat completion."""
        own = {"max_tokens": self.max_output_tokens, "temperature": self.temperature, "top_p": self.top_p}
        form = self.text.format.fields() if self.text is not None and self.text.format is not None else {}
        return super().fields(before) | form | {name: value for name, value in own.items() if value is not None}
