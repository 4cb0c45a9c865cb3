"""Settings are declared once: every surface has the same defaults and the same bounds."""

from __future__ import annotations

import inspect
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from typer.main import get_command

import nanochat_tui as nc
from nanochat_tui import serve
from nanochat_tui.chat.backend import Request
from nanochat_tui.cli.app import application
from nanochat_tui.engine.generate.scheduler import Batcher
from nanochat_tui.engine.generate.session import Session
from nanochat_tui.errors import UserError
from nanochat_tui.request import REQUEST, SAMPLING, GenerationRequest, SamplingParams, with_settings
from nanochat_tui.serve.bodies import ChatBody, CompletionBody
from nanochat_tui.tui.chat.settings_form import FIELDS, FieldError, from_text, to_text
from nanochat_tui.tui.preferences import Preferences
from nanochat_tui.tui.preferences import Sampling as SamplingPreferences

EVERYDAY = [name for name, one in SAMPLING.items() if one.everyday]
PREFERRED = [name for name in EVERYDAY if not SAMPLING[name].blank]
FOREIGN_VALUES = {("top_p", 0), ("top_k", -1)}
"""Values that OpenAI's or vLLM's interface allows in addition."""


def edges(name: str) -> list[tuple[Any, bool]]:
    """Values at the bounds of a setting and just outside, and whether each is allowed."""
    one = SAMPLING[name]
    step = 1 if one.is_whole else 1e-9
    found: list[tuple[Any, bool]] = [] if one.is_whole else [(float("nan"), False), (float("inf"), False)]
    if one.low is not None:
        found += [(one.low, not one.above), (one.low - step, False), (one.low + step, True)]
    if one.high is not None:
        found += [(one.high, True), (one.high * (1 + 1e-9) + step, False)]
    kind = int if one.is_whole else float
    return [(kind(value) if math.isfinite(value) else value, fine) for value, fine in found]


def accepts(make: Any, name: str, value: Any) -> bool:
    try:
        make({name: value})
    except (UserError, ValidationError):
        return False
    return True


def form(values: dict[str, Any]) -> None:
    from_text(to_text(SamplingParams(), 256) | {name: repr(value) for name, value in values.items()})


@pytest.mark.parametrize("name", SAMPLING)
def test_bounds_are_the_same_everywhere(name: str) -> None:
    surfaces: dict[str, Any] = {
        "library": lambda values: GenerationRequest.of(**values),
        "completions": lambda values: CompletionBody(prompt="x", **values).sampling,
        "chat": lambda values: ChatBody.model_validate({"messages": [{"role": "user", "content": "x"}], **values}),
    }
    if name in EVERYDAY:
        surfaces["form"] = form
    if name in PREFERRED:
        surfaces["preferences"] = lambda values: SamplingPreferences(**values)
    for value, fine in edges(name):
        for surface, make in surfaces.items():
            expected = fine or (surface in ("chat", "completions") and (name, value) in FOREIGN_VALUES)
            assert accepts(make, name, value) == expected, (surface, name, value)


def test_defaults_are_the_same_everywhere() -> None:
    usual = SamplingParams()
    assert CompletionBody(prompt="x").sampling == usual
    assert Preferences().session_settings().sampling == usual
    assert Preferences().session_settings().max_tokens == GenerationRequest().max_tokens
    assert from_text(to_text(usual, 256)) == (usual, 256)
    command = get_command(application(["chat"]))
    options = {one.name: one.default for one in command.commands["chat"].params}  # type: ignore[attr-defined]
    for name in (*EVERYDAY, "max_tokens"):
        assert options[name] == (SAMPLING | REQUEST)[name].default


def test_the_servers_page_begins_with_the_same_defaults() -> None:
    page = (Path(serve.__file__).parent / "static" / "index.html").read_text()
    (found,) = re.findall(r"const FIELDS = \{(.*?)\};", page)
    defaults = {name.strip(): float(value) for name, value in (pair.split(":") for pair in found.split(","))}
    assert len(defaults) > 4
    assert defaults == {name: (SAMPLING | REQUEST)[name].default for name in defaults}


def test_every_surface_has_every_setting_it_should_have() -> None:
    assert [one.name for one in FIELDS] == [*EVERYDAY, "max_tokens"]
    assert set(SAMPLING) <= set(ChatBody.model_fields) & set(CompletionBody.model_fields)
    assert set(PREFERRED) <= set(SamplingPreferences.model_fields)
    for function in (nc.Model.generate, nc.Model.chat, nc.Chat, nc.Chat.send, Session.generate, Batcher.submit):
        assert {*SAMPLING, *REQUEST, "stop", "logprobs"} <= set(inspect.signature(function).parameters)


def test_foreign_values_are_translated() -> None:
    body = CompletionBody(prompt="x", top_k=-1, top_p=0.0, seed=-1, repetition_penalty=1.5)  # type: ignore[call-arg]
    assert body.sampling == SamplingParams(top_k=0, top_p=1e-6, repeat_penalty=1.5)
    nulls = dict.fromkeys(SAMPLING)
    assert CompletionBody(prompt="x", **nulls).sampling == SamplingParams()


def test_settings_are_set_by_name_over_others() -> None:
    base = GenerationRequest(sampling=SamplingParams(top_k=3), max_tokens=5)
    found = GenerationRequest.of(base, temperature=0.5, stop="x")
    assert found == GenerationRequest(sampling=SamplingParams(0.5, 3), max_tokens=5, stop=("x",))
    assert GenerationRequest.of(SamplingParams(top_k=3), max_tokens=5) == base
    assert GenerationRequest.of(base) is base
    asked = with_settings(Request(prompt="a"), top_p=0.5, max_tokens=7)
    assert asked == replace(Request(prompt="a", sampling=SamplingParams(top_p=0.5)), max_tokens=7)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"temprature": 1}, r"no such setting \('temprature'\)"),
        ({"top_p": "x"}, "top_p is text"),
        ({"top_k": -(10**5000)}, "top_k must be 0 or more, not a number of thousands of digits"),
        ({"temperature": 10**400}, "temperature must be 0 or more"),
        ({"min_tokens": -1}, "min_tokens must be 0 or more, not -1"),
        ({"max_tokens": -1}, "max_tokens must be 0 or more"),
        ({"top_logprobs": 1001}, "top_logprobs must be 0 to 1000"),
        ({"presence_penalty": 3}, "presence_penalty must be -2 to 2"),
        ({"stop": {"a": 1}}, "stop is of the type dict"),
        ({"stop_token_ids": ["a"]}, "stop_token_ids holds something text"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        GenerationRequest.of(**settings)


def test_a_form_refuses_no_token_at_all() -> None:
    with pytest.raises(FieldError, match="max_tokens must be 1 or more"):
        from_text(to_text(SamplingParams(), 256) | {"max_tokens": "0"})
