# ruff: noqa: E501
"""How templates write calls of tools, and calls in what models say: whole, in pieces, with mistakes."""

from __future__ import annotations

import json
from typing import Any

import pytest
import tool_templates

from nanochat_tui.model.chat.families import NAMED
from nanochat_tui.model.chat.template import render
from nanochat_tui.model.chat.tools.calls import CallSplitter, ToolCall, repaired, template_messages
from nanochat_tui.model.chat.tools.formats import NoToolsError, ToolFormat, tool_format

QWEN3 = ToolFormat("json", "<tool_call>\n", "\n</tool_call>")
QWEN35 = ToolFormat("function", "<tool_call>\n", "\n</tool_call>")
LLAMA3 = ToolFormat("json", "", "", "name", "parameters")
TOOLS = {
    "weather": {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}},
    "now": {"type": "object"},
}


@pytest.mark.parametrize(
    ("template", "form"),
    [(tool_templates.QWEN3, QWEN3), (tool_templates.QWEN35, QWEN35), (tool_templates.LLAMA3, LLAMA3)],
    ids=["qwen3", "qwen3.5", "llama3"],
)
def test_the_form_of_a_family_is_found_by_rendering(template: str, form: ToolFormat) -> None:
    assert tool_format(template, "<s>", "</s>") == form


def test_another_templates_form_is_found_too() -> None:
    made = (
        "{% for t in tools or [] %}[AVAILABLE]{{ t | tojson }}[/AVAILABLE]{% endfor %}"
        "{% for m in messages %}{% if m.role == 'tool' %}[RESULT]{{ m.content }}[/RESULT]"
        "{% elif m.tool_calls %}{% for c in m.tool_calls %}<CALL>"
        '{"tool": "{{ c.function.name }}", "input": {{ c.function.arguments | tojson }}}</CALL>{% endfor %}<end>'
        "{% else %}<{{ m.role }}>{{ m.content }}<end>{% endif %}{% endfor %}"
    )
    assert tool_format(made) == ToolFormat("json", "<CALL>", "</CALL>", "tool", "input")


@pytest.mark.parametrize("name", NAMED)
def test_a_template_without_tools_is_refused(name: str) -> None:
    with pytest.raises(NoToolsError, match="no place for tools"):
        tool_format(NAMED[name])


def test_templates_that_lose_calls_answers_or_form_are_refused() -> None:
    tools = "{{ tools | tojson }}"
    for rest, words in (
        ("{% for m in messages %}{{ m.content }}{% endfor %}", "calls"),
        ("{% for m in messages %}{% if m.role != 'tool' %}{{ m.content }}{% endif %}{% endfor %}", "answered"),
        ("{% for m in messages %}{{ m.tool_calls | string }}{{ m.content }};{% endfor %}", "not known"),
        ("{{ raise_exception('no tools') }}", "no tools"),
    ):
        with pytest.raises(NoToolsError, match=words):
            tool_format(tools + rest)


REPLIES: list[tuple[ToolFormat, str, str, list[tuple[str, Any]]]] = [
    (QWEN3, "hello", "hello", []),
    (QWEN3, "a < b <tool", "a < b <tool", []),
    (
        QWEN3,
        'I look.\n<tool_call>\n{"name": "weather", "arguments": {"city": "Köln"}}\n</tool_call>',
        "I look.",
        [("weather", {"city": "Köln"})],
    ),
    (
        QWEN3,
        '<tool_call>{"name":"now","arguments":{}}</tool_call>\n\n<tool_call>\n{"name": "weather", "arguments": '
        '{"city": "}</tool", "days": 2}}\n</tool_call>\n',
        "",
        [("now", {}), ("weather", {"city": "}</tool", "days": 2})],
    ),
    # mistakes with one reading
    (QWEN3, '<tool_call>{"name": "now", "arguments": {}</tool_call>', "", [("now", {})]),
    (QWEN3, '<tool_call>{"name": "weather", "arguments": {"days": 2,}}}</tool_call>', "", [("weather", {"days": 2})]),
    (QWEN3, '<tool_call>{"name": "now", "arguments": {"a": True, "b": None}}', "", [("now", {"a": True, "b": None})]),
    (QWEN3, '<tool_call>{"name": "now", "arguments": "{\\"a\\": 1}"}</tool_call>', "", [("now", {"a": 1})]),
    (QWEN3, '<tool_call>{"name": "weather", "arguments": {"city": "a\nb"}}</tool_call>', "", [("weather", {"city": "a\nb"})]),
    # mistakes with none
    *(
        (QWEN3, text, text, [])
        for text in (
            '<tool_call>{"name": "other", "arguments": {}}</tool_call>',
            '<tool_call>{"name": "now", "arguments": [1]}</tool_call>',
            '<tool_call>{"name": "weather", "arguments": {"city": "Kö',
            '<tool_call>{"name": "weather" "arguments"</tool_call>',
            "<tool_call>now()</tool_call>",
            '<tool_call>{"name": "now", "arguments": {]}</tool_call>',
        )
    ),
    (
        QWEN35,
        "Yes.\n\n<tool_call>\n<function=weather>\n<parameter=city>\nNew\nYork\n</parameter>\n<parameter=days>\n3\n"
        "</parameter>\n</function>\n</tool_call>",
        "Yes.",
        [("weather", {"city": "New\nYork", "days": 3})],
    ),
    (
        QWEN35,
        "<tool_call><function=weather><parameter=city>12</parameter><parameter=x>{\"a\": [1]}</parameter></function>"
        "</tool_call><tool_call>\n<function=now>\n</function>\n</tool_call>",
        "",
        [("weather", {"city": "12", "x": {"a": [1]}}), ("now", {})],
    ),
    (QWEN35, "<tool_call>\n<function=other>\n</function>\n</tool_call>", "<tool_call>\n<function=other>\n</function>\n</tool_call>", []),
    (LLAMA3, '{"name": "weather", "parameters": {"city": "Rome"}}', "", [("weather", {"city": "Rome"})]),
    (LLAMA3, '{"name": "now", "parameters": {}}; {"name": "now", "parameters": {}}', "", [("now", {}), ("now", {})]),
    (LLAMA3, 'It is {"name": "now", "parameters": {}}', 'It is {"name": "now", "parameters": {}}', []),
    (LLAMA3, '{"name": "other"} is no call', '{"name": "other"} is no call', []),
    (LLAMA3, "\n  plain", "\n  plain", []),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(REPLIES)))
def test_calls_are_found_however_the_text_arrives(number: int) -> None:
    form, text, said, calls = REPLIES[number]
    for size in (1, 2, 7, len(text)):
        splitter = CallSplitter(form, TOOLS)
        items = [item for at in range(0, len(text), size) for item in splitter.feed(text[at : at + size])]
        items += splitter.rest()
        assert "".join(item for item in items if isinstance(item, str)) == said
        found = [(item.name, json.loads(item.arguments)) for item in items if isinstance(item, ToolCall)]
        assert found == calls
        assert len({call.id for call in splitter.calls}) == len(calls)


@pytest.mark.parametrize("text", ['{"a": "b', "", "{1}", '{"a" 1}', "[1}", '{"a": 1} more', '{"a": nan}', "{a: 1}"])
def test_what_is_not_certain_is_not_repaired(text: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        repaired(text)


@pytest.mark.parametrize("template", ["QWEN3", "QWEN35", "LLAMA3"])
def test_a_conversation_with_calls_becomes_the_prompt_that_the_model_knows(template: str) -> None:
    form = tool_format(getattr(tool_templates, template), "<s>", "</s>")
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome", "days": 2}'}}
    messages = template_messages(
        [
            {"role": "user", "content": "And?"},
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c1", "content": "sun"},
        ]
    )
    assert messages[2]["name"] == "weather"
    tools = [{"type": "function", "function": {"name": "weather", "parameters": TOOLS["weather"]}}]
    text = render(getattr(tool_templates, template), messages, tools=tools)
    assert "sun" in text
    # what it was shown to have said is what it would have to say
    begin = text.rindex(form.begin or '{"name": "weather", "parameters": {"')
    end = text.index(form.end) + len(form.end) if not form.end else text.rindex(form.end) + len(form.end)
    said = text[begin:end] if form.end else text[begin : text.index("<|eot_id|>", begin)]
    splitter = CallSplitter(form, TOOLS)
    (found,) = [*splitter.feed(said), *splitter.rest()]
    assert isinstance(found, ToolCall) and json.loads(found.arguments) == {"city": "Rome", "days": 2}
