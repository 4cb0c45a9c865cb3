"""The table of fields is what the server does, and what docs/server.md says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import AliasChoices, BaseModel
from servers import PROMPT, Running

from nanochat_tui.serve.bodies import ChatBody, CompletionBody, DetokenizeBody, TokenizeBody
from nanochat_tui.serve.bodies_embeddings import EmbeddingBody
from nanochat_tui.serve.bodies_infill import InfillBody
from nanochat_tui.serve.bodies_messages import MessagesBody
from nanochat_tui.serve.bodies_responses import ResponsesBody
from nanochat_tui.serve.fields import FIELDS, PATHS, Field, Route, markdown

BODIES: dict[Route, type[BaseModel]] = {
    "chat": ChatBody,
    "completions": CompletionBody,
    "messages": MessagesBody,
    "responses": ResponsesBody,
    "embeddings": EmbeddingBody,
    "infill": InfillBody,
    "tokenize": TokenizeBody,
    "detokenize": DetokenizeBody,
}
LEAST: dict[Route, dict[str, Any]] = {
    "chat": {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 2, "temperature": 0},
    "completions": {"prompt": PROMPT, "max_tokens": 2, "temperature": 0},
    "messages": {
        "model": "tiny",
        "messages": [{"role": "user", "content": "hello"}],
        "max_tokens": 2,
        "temperature": 0,
    },
    "responses": {"input": "hello", "max_output_tokens": 2, "temperature": 0},
    "embeddings": {"input": "hello"},
    "infill": {"input_prefix": "fn a", "input_suffix": "}", "n_predict": 2, "temperature": 0},
    "tokenize": {"content": "hello"},
    "detokenize": {"tokens": [1, 2]},
}
ROUTES = get_args(Route)
REFUSED = [(route, field) for route in ROUTES for field in FIELDS[route] if field.kind == "refused"]
HARMLESS = [(route, field) for route in ROUTES for field in FIELDS[route] if field.kind == "harmless"]


def _names(pair: tuple[Route, Field]) -> str:
    return f"{pair[0]}-{pair[1].name}"


def _reply(running: Running, route: Route, **more: Any) -> Any:
    answer = running.post(PATHS[route], **LEAST[route], **more)
    assert answer.status_code == 200, answer.text
    body = answer.json()
    if route == "responses":
        return [(item["type"], item["content"]) for item in body["output"]]
    return body.get("choices", body.get("content", body))


@pytest.mark.parametrize("route", ROUTES)
def test_what_is_done_is_what_the_bodies_declare(route: Route) -> None:
    declared: set[str] = set()
    for name, info in BODIES[route].model_fields.items():
        alias = info.validation_alias
        declared |= set(map(str, alias.choices)) if isinstance(alias, AliasChoices) else {name}
    assert declared == {field.name for field in FIELDS[route] if field.kind == "done"}
    names = [field.name for field in FIELDS[route]]
    assert len(names) == len(set(names)), "a field stands twice"


@pytest.mark.parametrize("pair", REFUSED, ids=_names)
def test_what_is_refused_is_refused_by_name(chat: Running, pair: tuple[Route, Field]) -> None:
    route, field = pair
    used: tuple[Any, ...] = ("x", 3, ["x"], {"type": "x"}, True, False)
    body = {"tools": [{"type": "function", "function": {"name": "f"}}]} if field.name == "tool_choice" else {}
    body |= {"functions": [{"name": "f"}]} if field.name == "function_call" else {}
    body |= {"repeat_penalty": 1.1} if field.name == "repeat_last_n" else {}
    told = []
    for value in used:
        answer = chat.post(PATHS[route], **{**LEAST[route], **body, field.name: value})
        if answer.status_code == 400:
            error = answer.json()["error"]
            if route == "messages":  # Anthropic's errors are a type and a message
                assert error["type"] == "invalid_request_error" and "is not supported" in error["message"]
                told.append(error["message"].split(" ")[0])
                continue
            assert error["code"] == "unsupported_parameter" and error["param"] in error["message"]
            told.append(error["param"])
    assert told and set(told) <= {field.name, *body}
    if not body or field.name == "repeat_last_n":
        assert set(told) == {field.name} and len(told) >= 4


@pytest.mark.parametrize("pair", HARMLESS, ids=_names)
def test_what_is_harmless_changes_no_reply(chat: Running, pair: tuple[Route, Field]) -> None:
    route, field = pair
    plain = _reply(chat, route)
    for value in (None, 3, "x", True, {"a": 1}, ["x"]):
        assert _reply(chat, route, **{field.name: value}) == plain


@pytest.mark.parametrize(
    ("route", "fields"),
    [
        # what front ends send always, whether it is used or not
        (
            "chat",
            {
                "mirostat": 0,
                "mirostat_tau": 5,
                "typical_p": 1,
                "dry_multiplier": 0,
                "dry_base": 1.75,
                "xtc_probability": 0,
                "xtc_threshold": 0.1,
                "repeat_last_n": 64,
                "repeat_penalty": 1,
                "n_probs": 0,
                "min_keep": 0,
                "dynatemp_range": 0,
                "reasoning_format": "auto",
                "reasoning_effort": "medium",
                "tool_choice": "auto",
                "parallel_tool_calls": True,
                "logit_bias": {},
                "response_format": {"type": "text"},
                "samplers": None,
                "top_n_sigma": -1,
                "cache_prompt": True,
                "id_slot": -1,
                "skip_special_tokens": True,
                "stop": "",
                "seed": -1,
                "top_k": -1,
                "store": False,
                "verbosity": "medium",
            },
        ),
        ("chat", {"tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "none"}),
        ("chat", {"samplers": ["penalties", "temperature", "top_k", "typ_p", "top_p", "min_p"], "typ_p": 1.0}),
        ("chat", {"samplers": ["penalties", "temperature", "top_k", "top_p", "min_p"], "typical_p": 1}),
        ("completions", {"suffix": "", "best_of": 1, "stop": ["", None][:1], "n": 1.0, "top_k": 40.0, "seed": 1.0}),
        ("completions", {"stream": False, "n_predict": 2.0, "min_tokens": 0, "user": "me"}),
    ],
)
def test_values_that_mean_not_used_are_let_pass(chat: Running, route: Route, fields: dict[str, Any]) -> None:
    assert _reply(chat, route, **fields) == _reply(chat, route)


def test_the_documentation_has_the_table() -> None:
    text = (Path(__file__).parents[2] / "docs" / "server.md").read_text(encoding="utf-8")
    found = re.search(r"<!-- fields -->\n(.*?)<!-- /fields -->", text, re.DOTALL)
    assert found is not None
    assert found[1].strip() == markdown().strip(), "paste the output of: python -m nanochat_tui.serve.fields"
