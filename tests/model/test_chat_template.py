"""Chat templates: what published templates use, and what a hostile one cannot do."""

from __future__ import annotations

import pytest

from nanochat_tui.model.chat.template import ChatTemplateError, render

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
TALK = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "<b>é\n"}]


def test_chatml() -> None:
    expected = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n<b>é\n<|im_end|>\n"
    assert render(CHATML, TALK) == expected + "<|im_start|>assistant\n"
    assert render(CHATML, TALK, add_generation_prompt=False) == expected


def test_tags_leave_no_blank_lines() -> None:
    template = (
        "{{ bos_token }}\n{% for m in messages %}\n  {% if m.role == 'user' %}\n"
        "U:{{ m.content }}\n  {% endif %}\n{% endfor %}\n"
    )
    assert render(template, [{"role": "user", "content": "hi"}], bos_token="<s>") == "<s>\nU:hi\n"


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{{ messages[::-1][0].role }}", "user"),
        ("{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}", "2"),
        ("{{ {'a': '<é>', 'b': [1, none]} | tojson }}", '{"a": "<é>", "b": [1, null]}'),
        ("{{ 5000 | tojson }}", "5000"),
        ("{{ {'b': 1} | tojson(indent=2) }}", '{\n  "b": 1\n}'),
        ("{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m.role }}{% endfor %}", "user"),
        ("{% for m in messages %}{{ loop.index0 }}{% break %}{% endfor %}", "0"),
        ("{% macro f(x) %}[{{ x }}]{% endmacro %}{{ f('a') }}", "[a]"),
        ("{{ enable_thinking is defined }}", "False"),
        ("{{ messages[1].content.split('>')[1].strip() }}", "é"),
        ("{{ messages[0].content is string and messages is sequence }}", "True"),
        ("{{ tools is none }}", "True"),
        ("{% for m in messages %}{{ loop.length }}{{ loop.last }}{% endfor %}", "2False2True"),
        ("{% for m in messages if m.role == 'user' %}{{ loop.previtem is defined }}{% endfor %}", "False"),
        ("{% for k, v in messages[0].items() %}{{ k }}{% else %}none{% endfor %}", "rolecontent"),
        ("{{ strftime_now('%Y') | length }}", "4"),
        ("{{ 'a' ~ 2 ** 10 ~ 'b' * 3 }}", "a1024bbb"),
    ],
)
def test_what_templates_use(template: str, expected: str) -> None:
    assert render(template, TALK) == expected


def test_thinking_switch_reaches_the_template() -> None:
    assert render("{{ enable_thinking }}", TALK, enable_thinking=False) == "False"


def test_a_template_can_refuse() -> None:
    with pytest.raises(ChatTemplateError, match="roles must alternate"):
        render("{{ raise_exception('roles must alternate') }}", TALK)


@pytest.mark.parametrize(
    "template",
    [
        "{% if %}",
        "{{ messages[5].role.x }}",
        "{{ 1 / 0 }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ cycler.__init__.__globals__.os.system('true') }}",
        "{{ 9 ** (9 ** 9) }}",
        "{{ 9 ** 60 ** 60 ** 60 ** 60 }}",
        "{% set ns = namespace(x='a') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
        "{% set ns = namespace(x='a') %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
        "{{ 'a' | center(10000000000) }}",
        "{{ '%10000000000d' | format(1) }}",
        "{{ messages | tojson(indent=10000000000) }}",
        "{{ 'a' * 100000000000 }}",
        "{{ [1] * 100000000000 }}",
        "{{ 'a'.rjust(10000000000) }}",
        "{{ '%10000000000d' % 1 }}",
        "{{ range(10000000000) | list }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% include 'other' %}",
        "x" * 300_000,
    ],
)
def test_damaged_and_hostile_templates_are_refused(template: str) -> None:
    with pytest.raises(ChatTemplateError) as caught:
        render(template, TALK)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("body", ["{{ a }}", "", "{% set x = 1 %}"])
def test_an_endless_template_is_stopped(monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    monkeypatch.setattr("nanochat_tui.model.chat.template.MAX_SECONDS", 0.2)
    loops = "".join(f"{{% for {name} in r %}}" for name in "abcd")
    template = "{% set r = range(9000) | list %}" + loops + body + "{% endfor %}" * 4
    with pytest.raises(ChatTemplateError, match=r"longer than 0\.2 seconds"):
        render(template, TALK)


def test_messages_are_not_changed() -> None:
    talk = [{"role": "user", "content": "x"}]
    with pytest.raises(ChatTemplateError):
        render("{{ messages[0].update({'content': 'y'}) }}", talk)
    assert talk == [{"role": "user", "content": "x"}]
