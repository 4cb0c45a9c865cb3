"""The grammar of replies with calls of tools: arguments after their schemas, where that is demanded."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any, Literal

from nanochat_tui.model.chat.tools.formats import ToolFormat
from nanochat_tui.request import Grammar

ANYTHING: dict[str, Any] = {"type": "object"}
WHITESPACE = r"( |\n[ \t]{0,20})?"
FREE = r"/(.|\n)*/"
_END = "\n</parameter>\n"
_KEPT = ("$defs", "definitions")


def call_grammar(
    form: ToolFormat,
    tools: Mapping[str, Mapping[str, Any]],
    *,
    choice: Literal["auto", "required"],
    parallel: bool,
    strict: Collection[str] = (),
) -> Grammar:
    """Return the grammar of a reply with calls of tools, whose schemas of arguments are given by name.

    choice: whether there may be text and no call. parallel: whether there may be several. strict: with "auto", the
    tools whose arguments follow their schemas; those of others are any object.
    """
    lines = [f"call: {_literal(form.opening)} ({' | '.join(f'tool_{i}' for i in range(len(tools)))}) "
             f"{_literal(form.closing)}"]  # fmt: skip
    for index, (name, schema) in enumerate(tools.items()):
        exact = choice == "required" or name in strict
        lines += _tool(form, index, name, schema if exact else ANYTHING)
    gap = r"GAP: /\n{1,2}/" if form.begin else r"GAP: /; |\n/"
    lines.append(gap)
    if choice == "required":
        lines.insert(0, "start: call (GAP call)*" if parallel else "start: call")
    elif form.begin:
        # text up to the mark that begins a call is one lexeme with it
        lines[0] = lines[0].replace(_literal(form.opening), f"head {_literal(_behind(form))}", 1)
        lines.insert(0, "start: call* SAID" if parallel else "start: call | SAID")
        lines += [r"SAID: /(.|\n)*/", f"head[lazy]: SAID {_literal(form.begin)}"]
    else:
        lines.insert(0, "start: SAID | call (GAP call)*" if parallel else "start: SAID | call")
        lines.append(r"SAID: /[^{](.|\n)*/")
    return Grammar.grammar("%llguidance {}\n" + "\n".join(lines) + "\n")


def _literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False) if text else ""


def _behind(form: ToolFormat) -> str:
    return form.opening[form.opening.find(form.begin) + len(form.begin) :]


def _json(schema: Mapping[str, Any] | bool) -> str:
    whole: Any = schema if isinstance(schema, bool) else {**schema, "x-guidance": {"whitespace_pattern": WHITESPACE}}
    return f"%json {json.dumps(whole, ensure_ascii=False)}"


def _tool(form: ToolFormat, index: int, name: str, schema: Mapping[str, Any]) -> list[str]:
    rule = f"tool_{index}"
    if form.style == "json":
        begin = f"{{{_literal(form.name_key)}: {_literal(name)}, {_literal(form.arguments_key)}: "
        arguments = {"type": "object", **schema}
        return [f'{rule}: {_literal(begin)} {rule}_arguments "}}"', f"{rule}_arguments: {_json(arguments)}"]
    properties = schema.get("properties")
    shared = {key: schema[key] for key in _KEPT if key in schema}
    lines, parts = [], []
    for place, (key, kind) in enumerate(properties.items() if isinstance(properties, Mapping) else ()):
        value = f"{rule}_value_{place}"
        free = _is_free_text(kind)
        head, tail = f"<parameter={key}>\n", "" if free else _END
        optional = "" if key in schema.get("required", ()) else "?"
        parts.append(f"({_literal(head)} {value} {_literal(tail)}){optional}")
        lines.append(f"{value}[suffix={_literal(_END)}]: {FREE}" if free else f"{value}: {_value(kind, shared)}")
    if not isinstance(properties, Mapping):
        parts.append(rf"(/<parameter=[a-zA-Z0-9_]{{1,64}}>\n/ {rule}_any)*")
        lines.append(f"{rule}_any[suffix={_literal(_END)}]: {FREE}")
    begin = _literal(f"<function={name}>\n")
    return [f"{rule}: {begin} {' '.join(parts)} {_literal('</function>')}", *lines]


def _is_free_text(kind: Any) -> bool:
    return isinstance(kind, Mapping) and kind.get("type") == "string" and not {"enum", "const", "pattern"} & set(kind)


def _value(kind: Any, shared: Mapping[str, Any]) -> str:
    if isinstance(kind, Mapping):
        texts = [kind["const"]] if "const" in kind else kind.get("enum")
        if isinstance(texts, list) and texts and all(isinstance(text, str) and text for text in texts):
            return " | ".join(_literal(text) for text in texts)
        if kind.get("type") == "string" and isinstance(kind.get("pattern"), str):
            pattern: str = kind["pattern"]
            return "/" + pattern.removeprefix("^").removesuffix("$").replace("/", r"\/") + "/"
        return _json({**shared, **kind})
    return _json(True)
