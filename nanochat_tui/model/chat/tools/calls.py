"""Finding tool calls in what a model says, while it arrives; bad JSON is repaired where only one reading is left."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nanochat_tui.model.chat.tools.formats import ToolFormat
from nanochat_tui.model.text import overlap

_PARAMETER = re.compile(r"<parameter=([^>\n]+)>\n?(.*?)\n?(?:</parameter>|(?=<parameter=)|\Z)", re.DOTALL)
_FUNCTION = re.compile(r"\s*<function=([^>\n]+)>(.*?)(?:</function>|\Z)\s*\Z", re.DOTALL)
_WORDS = {"True": "true", "False": "false", "None": "null"}
_DECODER = json.JSONDecoder(strict=False)


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that a model wants made. arguments: a JSON object, as text."""

    name: str
    arguments: str
    id: str = field(default_factory=lambda: f"call_{uuid.uuid4().hex[:24]}")


def repaired(text: str) -> Any:
    """Return the value that JSON with small mistakes means. Raises ValueError where that is not certain.

    Mended are line breaks in strings, commas before a closing bracket, Python's words for true, false and null, closing
    brackets that are missing at the end, and ones too many.
    """
    try:
        value, end = _DECODER.raw_decode(text.lstrip())
    except ValueError:
        value, end = _DECODER.raw_decode(_mended(text.lstrip())), -1
        value = value[0]
    if end >= 0 and text.lstrip()[end:].strip().strip("}]").strip():
        raise ValueError("there is more text behind the value")
    return value


def _mended(text: str) -> str:
    out: list[str] = []
    open_brackets: list[str] = []
    place = 0
    while place < len(text):
        char = text[place]
        if char == '"':
            found = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL).match(text, place)
            if found is None:
                raise ValueError("a string is not closed")
            out.append(found[0])
            place = found.end()
            continue
        word = re.compile(r"[A-Za-z]+").match(text, place)
        if word is not None:
            out.append(_WORDS.get(word[0], word[0]))
            place = word.end()
            continue
        if char in "{[":
            open_brackets.append("}" if char == "{" else "]")
        elif char in "}]":
            if not open_brackets or open_brackets[-1] != char:
                raise ValueError("brackets cross each other")
            open_brackets.pop()
            while out and out[-1].isspace():
                out.pop()
            if out and out[-1] == ",":
                out.pop()
        out.append(char)
        place += 1
        if char in "}]" and not open_brackets:
            if text[place:].strip().strip("}]").strip():
                raise ValueError("there is more text behind the value")
            break
    return "".join(out) + "".join(reversed(open_brackets))


class CallSplitter:
    """Tells calls from text while a reply arrives. tools: schemas of the arguments by the tools' names."""

    def __init__(self, form: ToolFormat, tools: Mapping[str, Mapping[str, Any]]) -> None:
        self._form, self._tools = form, tools
        self._held = ""
        self._inside = False
        self._blank = ""
        self.calls: list[ToolCall] = []
        """The calls so far."""

    def feed(self, text: str) -> Iterator[str | ToolCall]:
        """Take text; yield what is certain, in order: pieces of text, and calls."""
        self._held += text
        if self._form.begin:
            yield from self._marked()
        elif not self._inside and self._held.strip():
            # a bare call is the whole reply, so its first character decides
            self._inside = self._held.lstrip().startswith("{")
            if not self._inside:
                self._form = ToolFormat("json", "\0", "\0")
                yield from self._marked()

    def _marked(self) -> Iterator[str | ToolCall]:
        begin, end = self._form.begin, self._form.end
        while self._held:
            if self._inside:
                at = self._held.find(end, len(begin))
                if at < 0:
                    return
                whole, self._held = self._held[: at + len(end)], self._held[at + len(end) :]
                self._inside = False
                yield from self._call(whole)
                continue
            at = self._held.find(begin)
            if at >= 0:
                yield from self._text(self._held[:at])
                self._held, self._inside = self._held[at:], True
                continue
            keep = overlap(self._held, begin)
            ready, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
            yield from self._text(ready)
            return

    def _text(self, text: str) -> Iterator[str]:
        """Yield text without the blank lines before and between calls."""
        text = self._blank + text
        body = text.rstrip()
        self._blank = text[len(body) :]
        if body:
            yield body.lstrip() if self.calls else body

    def _call(self, whole: str) -> Iterator[str | ToolCall]:
        found = self.parse(whole)
        if not found:
            yield from self._text(whole)
            return
        self._blank = ""
        self.calls += found
        yield from found

    def rest(self) -> Iterator[str | ToolCall]:
        """Yield what was held back, at the end of the reply: a call whose closing mark is missing, or text."""
        held, self._held = self._held, ""
        if self._inside and held:
            self._inside = False
            yield from self._call(held)
        elif held:
            yield from self._text(held)
        if self._blank and not self.calls:
            yield self._blank
        self._blank = ""

    def parse(self, whole: str) -> list[ToolCall]:
        """Return the calls in a text with its marks; none if they are not certain."""
        form = self._form
        inner = whole.strip()
        if form.opening.strip():
            inner = inner.removeprefix(form.begin).strip()
        if form.closing.strip():
            inner = inner.removesuffix(form.end).strip()
        if form.style == "function":
            found = self._function(inner)
            return [] if found is None else [found]
        return self._objects(inner)

    def _objects(self, inner: str) -> list[ToolCall]:
        values: list[Any] = []
        try:
            values = [repaired(inner)]
        except (ValueError, RecursionError):
            # several bare calls, parted by semicolons or lines
            while inner:
                try:
                    value, end = _DECODER.raw_decode(inner)
                except (ValueError, RecursionError):
                    return []
                values.append(value)
                inner = inner[end:].lstrip(" ;\r\n\t")
        values = values[0] if len(values) == 1 and isinstance(values[0], list) else values
        calls = [self._made(value) for value in values]
        return [] if any(call is None for call in calls) else [call for call in calls if call is not None]

    def _made(self, value: Any) -> ToolCall | None:
        if not isinstance(value, Mapping) or value.get(self._form.name_key) not in self._tools:
            return None
        arguments = value.get(self._form.arguments_key, {})
        if isinstance(arguments, str):  # written as text once more
            try:
                arguments = repaired(arguments) if arguments.strip() else {}
            except (ValueError, RecursionError):
                return None
        if not isinstance(arguments, Mapping):
            return None
        return ToolCall(value[self._form.name_key], json.dumps(arguments, ensure_ascii=False))

    def _function(self, inner: str) -> ToolCall | None:
        found = _FUNCTION.match(inner)
        if found is None or found[1].strip() not in self._tools:
            return None
        name, body = found[1].strip(), found[2]
        kinds = self._tools[name].get("properties")
        arguments: dict[str, Any] = {}
        end = 0
        for each in _PARAMETER.finditer(body):
            if body[end : each.start()].strip():
                return None
            end = each.end()
            kind = kinds.get(each[1]) if isinstance(kinds, Mapping) else None
            arguments[each[1]] = _valued(each[2], kind)
        if body[end:].strip():
            return None
        return ToolCall(name, json.dumps(arguments, ensure_ascii=False))


def _valued(text: str, schema: Any) -> Any:
    """Return the value of a parameter, which is written as text where it is text, and as JSON otherwise."""
    kind = schema.get("type") if isinstance(schema, Mapping) else None
    if kind == "string":
        return text
    try:
        value = repaired(text)
    except (ValueError, RecursionError):
        return text
    if kind is None and not isinstance(value, dict | list):  # it is not said what it is: a number may be a name
        return value if not isinstance(value, str) else text
    return value


def template_messages(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return messages as chat templates want them: arguments as objects, and the names of tools that answered."""
    names: dict[str, str] = {}
    made = []
    for message in messages:
        plain = dict(message)
        calls = plain.get("tool_calls")
        if calls:
            plain["tool_calls"] = [_plain_call(call, names) for call in calls]
        elif "tool_calls" in plain:
            del plain["tool_calls"]
        if plain.get("role") == "tool" and not plain.get("name"):
            plain["name"] = names.get(str(plain.get("tool_call_id")), "tool")
        made.append(plain)
    return made


def _plain_call(call: Mapping[str, Any], names: dict[str, str]) -> dict[str, Any]:
    function = dict(call["function"])
    names[str(call.get("id"))] = function["name"]
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            value = json.loads(arguments) if arguments.strip() else {}
        except (ValueError, RecursionError):
            value = arguments
        function["arguments"] = value
    return {**call, "type": "function", "function": function}
