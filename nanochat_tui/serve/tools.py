"""Tools in a request: what clients send, and what becomes of it for prompt, sampler and reply."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from nanochat_tui.errors import UserError
from nanochat_tui.model.chat.tools.calls import CallSplitter
from nanochat_tui.model.chat.tools.formats import NoToolsError, ToolFormat
from nanochat_tui.model.chat.tools.grammar import call_grammar
from nanochat_tui.request import Grammar
from nanochat_tui.serve.body_types import Body, said_as
from nanochat_tui.serve.errors import ApiError

if TYPE_CHECKING:
    from nanochat_tui.engine.generate.model import Model
    from nanochat_tui.serve.bodies import ChatBody

MAX_TOOLS = 128
MAX_CALLS = 128
ToolName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.\-]{1,128}$")]


class FunctionSpec(Body):
    """A function that the model may ask for."""

    name: ToolName
    description: str | None = None
    parameters: dict[str, Any] | None = Field(None, description="A JSON schema of an object.")
    strict: bool | None = Field(None, description="The arguments follow the schema.")


class Tool(Body):
    """A tool; functions are the only kind."""

    type: Annotated[Literal["function"], said_as("function is the only kind of tool")] = "function"
    function: FunctionSpec


class ChosenFunction(Body):
    """The name of the function that is to be called."""

    name: ToolName


class NamedChoice(Body):
    """A demand for a call of one function."""

    type: Literal["function"] = "function"
    function: ChosenFunction


ToolChoice = Annotated[
    Literal["none", "auto", "required"] | NamedChoice,
    said_as('it is none, auto, required, or {"type": "function", "function": {"name": …}}'),
]


class MadeFunction(Body):
    """Name and arguments of a call that was made."""

    name: str = Field(max_length=1000)
    arguments: Annotated[str | dict[str, Any] | None, said_as("give the arguments as JSON text")] = None


class MadeCall(Body):
    """A call in an earlier message of the assistant."""

    id: str | None = Field(None, max_length=1000)
    type: Literal["function"] | None = "function"
    function: MadeFunction

    @property
    def plain(self) -> dict[str, Any]:
        """The call as chat templates take it."""
        arguments = "{}" if self.function.arguments is None else self.function.arguments
        return {"id": self.id, "type": "function", "function": {"name": self.function.name, "arguments": arguments}}


ToolList = Annotated[list[Tool], Field(max_length=MAX_TOOLS, fail_fast=True)]


@dataclass(frozen=True, slots=True)
class Tools:
    """The tools of a request that may be called: as the template gets them, their form, schemas, and the grammar."""

    given: list[dict[str, Any]]
    form: ToolFormat
    schemas: Mapping[str, Mapping[str, Any]]
    grammar: Grammar | None

    def splitter(self) -> CallSplitter:
        """Return what finds the calls in one reply."""
        return CallSplitter(self.form, self.schemas)


def tools_of(model: Model, body: ChatBody) -> Tools | None:
    """Return the tools that a reply may call, None if there are none. Raises ApiError for what cannot be done."""
    talks = any(message.role == "tool" or message.tool_calls for message in body.messages)
    active = bool(body.tools) and body.tool_choice != "none"
    if not talks and not active:
        if body.tool_choice not in (None, "none", "auto") and not body.tools:
            raise ApiError(400, "tool_choice asks for a call and there are no tools; give some", param="tool_choice")
        return None
    form = _form(model, "tools" if active else "messages")
    if not active or not body.tools:
        return None
    if body.constraint is not None:
        name = body.constraint[0]
        raise ApiError(400, f"{name} and tools exclude each other here, unless tool_choice is none", param=name)
    given = [tool.model_dump(exclude_none=True) for tool in body.tools]
    schemas = {tool.function.name: tool.function.parameters or {"type": "object"} for tool in body.tools}
    grammar = _grammar(form, schemas, body)
    if grammar is not None and form.style == "function":  # whose parts are looked at, but not the whole schema
        for schema in schemas.values():
            try:
                model.grammars.check(Grammar.json_schema(schema))
            except UserError as error:
                raise ApiError(400, f"tools: {error}", param="tools") from error
    return Tools(given, form, schemas, grammar)


def _form(model: Model, param: str) -> ToolFormat:
    try:
        return model.prompts.tool_format()
    except NoToolsError as error:
        raise ApiError(400, f"{error}; leave tools out", param=param) from error


def _grammar(form: ToolFormat, schemas: Mapping[str, Mapping[str, Any]], body: ChatBody) -> Grammar | None:
    choice, parallel = body.tool_choice, body.parallel_tool_calls is not False
    strict = {tool.function.name for tool in body.tools or () if tool.function.strict}
    if isinstance(choice, NamedChoice):
        name = choice.function.name
        if name not in schemas:
            raise ApiError(400, f"tool_choice names {name}, which is none of the tools", param="tool_choice")
        return call_grammar(form, {name: schemas[name]}, choice="required", parallel=False)
    if choice == "required":
        return call_grammar(form, schemas, choice="required", parallel=parallel)
    if strict or not parallel:
        return call_grammar(form, schemas, choice="auto", parallel=parallel, strict=strict)
    return None


def tools_text(tools: Tools) -> str:
    """Return the text of the tools as templates write it, to know its length."""
    return json.dumps(tools.given, ensure_ascii=False)
