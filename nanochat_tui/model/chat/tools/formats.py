"""How a model writes tool calls, found by rendering a call through its chat template.

Two kinds are known: a JSON object with the name and the arguments, between marks (Hermes, Qwen3) or bare (Llama 3), and
`<function=NAME>` with a `<parameter=KEY>` for each argument (Qwen3-Coder, Qwen3.5). Whatever else a template writes
around them is taken over as it is.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal

from nanochat_tui.errors import UserError

NAME, KEY, VALUE, ANSWER, SAID, ASKED = (
    "probe_tool",
    "probe_key",
    "probe_value",
    "probe_answer",
    "probe_said",
    "probe_ask",
)
PROBE: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": NAME,
        "description": "probe",
        "parameters": {"type": "object", "properties": {KEY: {"type": "string"}}, "required": [KEY]},
    },
}
_DECODER = json.JSONDecoder()


class NoToolsError(UserError):
    """A chat template has no place for tools, or writes calls in a way that is not known."""


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """Text around a call. opening, closing: marks, with their blank lines; '' if a call is bare.

    style: "json" is an object with the keys name_key and arguments_key, "function" is `<function=…>`.
    """

    style: Literal["json", "function"]
    opening: str
    closing: str
    name_key: str = "name"
    arguments_key: str = "arguments"

    @property
    def begin(self) -> str:
        """What shows that a call begins: the opening mark without blanks, '' if a call is bare."""
        return self.opening.strip() or ("<function=" if self.style == "function" else "")

    @property
    def end(self) -> str:
        """What shows that a call is over: the closing mark without blanks."""
        return self.closing.strip() or ("</function>" if self.style == "function" else "")


def _conversation(*, called: bool) -> list[dict[str, Any]]:
    call = {"id": "probe00001", "type": "function", "function": {"name": NAME, "arguments": {KEY: VALUE}}}
    reply: dict[str, Any] = {"role": "assistant", "content": "" if called else SAID}
    if called:
        reply["tool_calls"] = [call]
    answer = {"role": "tool", "name": NAME, "tool_call_id": "probe00001", "content": ANSWER}
    asked = {"role": "user", "content": ASKED}
    return [asked, reply, answer if called else asked, {"role": "assistant", "content": SAID}, asked]


@lru_cache(maxsize=16)
def tool_format(template: str, bos: str = "", eos: str = "") -> ToolFormat:
    """Return how a template writes tool calls. Raises NoToolsError if it has no place for them, saying why."""
    from nanochat_tui.model.chat.template import ChatTemplateError, render

    def rendered(messages: list[dict[str, Any]]) -> str:
        try:
            return render(template, messages, bos_token=bos, eos_token=eos, tools=[PROBE])
        except ChatTemplateError as error:
            raise NoToolsError(f"this model's chat template has no place for tools ({error})") from error

    if NAME not in rendered([{"role": "user", "content": ASKED}]):
        raise NoToolsError("this model's chat template has no place for tools, so it cannot be told of them")
    called, plain = rendered(_conversation(called=True)), rendered(_conversation(called=False))
    if ANSWER not in called:
        raise NoToolsError("this model's chat template leaves out what tools answered")
    # the reply's text begins where the two conversations part, and what follows it is the same again
    begin = plain.find(SAID)
    if begin < 0 or plain[:begin] != called[:begin]:
        begin = next((i for i, (a, b) in enumerate(zip(plain, called, strict=False)) if a != b), len(called))
        while begin and called[begin - 1] in "<[":  # two marks that begin alike
            begin -= 1
    rest = plain[plain.find(SAID) + len(SAID) :]
    turn = rest[: rest.find(ASKED)]
    reply = called[begin : called.find(ANSWER, begin)]
    if VALUE not in reply:
        raise NoToolsError("this model's chat template leaves out the calls of tools that were made")
    found = _function(reply) or _object(reply)
    if found is None:
        raise NoToolsError("this model's chat template writes calls of tools in a form that is not known here")
    form, after = found
    return _closed(form, after, turn)


def _function(reply: str) -> tuple[ToolFormat, str] | None:
    begin, end = reply.find(f"<function={NAME}>"), reply.find("</function>")
    if begin < 0 or end < begin or f"<parameter={KEY}>" not in reply:
        return None
    return ToolFormat("function", reply[:begin].lstrip(), ""), reply[end + len("</function>") :]


def _object(reply: str) -> tuple[ToolFormat, str] | None:
    for begin in (i for i, char in enumerate(reply) if char == "{"):
        try:
            value, end = _DECODER.raw_decode(reply, begin)
        except ValueError:
            continue
        inner = value.get("function", value) if isinstance(value, dict) else None
        if not isinstance(inner, dict) or inner is not value:
            continue
        name = next((key for key, each in inner.items() if each == NAME), None)
        arguments = next((key for key, each in inner.items() if each == {KEY: VALUE}), None)
        if name is not None and arguments is not None:
            return ToolFormat("json", reply[:begin].lstrip(), "", name, arguments), reply[end:]
    return None


def _closed(form: ToolFormat, after: str, turn: str) -> ToolFormat:
    """Give a format its closing mark: what stands behind the call, before the end of the turn."""
    end = next((mark for mark in _ends(turn) if mark in after), None)
    closing = after[: after.find(end)] if end else ""
    if not form.opening.strip():
        # a bare object is closed by nothing; what follows belongs to the turn
        return replace(form, opening="", closing="" if not closing.strip().startswith("<") else closing.rstrip())
    wanted = "</" + form.opening.strip().lstrip("<")
    if wanted in after:
        closing = after[: after.find(wanted) + len(wanted)]
    return replace(form, closing=closing.rstrip())


def _ends(turn: str) -> list[str]:
    """Return how the text behind a reply may begin, the longest first."""
    text = turn.lstrip()
    return [text[:size] for size in range(len(text), 0, -1) if text[:size].strip()]
