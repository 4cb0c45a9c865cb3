"""Replies that follow a schema, a grammar or a pattern, and biases, asked for by every name that clients use."""

from __future__ import annotations

import json
import re
import threading
from pathlib import Path
from typing import Any

import jsonschema_rs
import openai
import pytest
from pydantic import BaseModel
from servers import PROMPT, Running

from nanochat_tui.chat.backend import Message, Request, Token
from nanochat_tui.chat.remote import RemoteBackend
from nanochat_tui.cli.app import dispatch
from nanochat_tui.errors import UserError
from nanochat_tui.request import Grammar

ASK = [{"role": "user", "content": "hello"}]
SCHEMA = {
    "type": "object",
    "properties": {"size": {"enum": ["small", "large"]}, "count": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["size", "count"],
    "additionalProperties": False,
}
GBNF = 'root ::= "let " [a-z]{3} " = " [0-9]{1,3} ";"'
HOT: dict[str, Any] = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "seed": 1, "max_tokens": 100}


def follows(text: str) -> None:
    jsonschema_rs.validate(SCHEMA, json.loads(text))


WAYS: list[tuple[dict[str, Any], str | None]] = [
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA, "strict": True}}},
        None,
    ),
    ({"response_format": {"type": "json_object", "schema": SCHEMA}}, None),
    ({"json_schema": SCHEMA}, None),
    ({"guided_json": json.dumps(SCHEMA)}, None),
    ({"structured_outputs": {"json": SCHEMA}}, None),
    ({"grammar": GBNF}, r"let [a-z]{3} = [0-9]{1,3};"),
    ({"guided_grammar": "start: /[xy]{4}/"}, r"[xy]{4}"),
    ({"structured_outputs": {"grammar": GBNF}}, r"let [a-z]{3} = [0-9]{1,3};"),
    ({"guided_regex": "[a-c]{3}"}, "[a-c]{3}"),
    ({"structured_outputs": {"regex": "[a-c]{3}"}}, "[a-c]{3}"),
    ({"guided_choice": ["yes", "no"]}, "yes|no"),
    ({"structured_outputs": {"choice": ["yes", "no"]}}, "yes|no"),
]


@pytest.mark.parametrize(("asked", "pattern"), WAYS, ids=lambda value: str(value)[:40])
def test_every_name_of_a_constraint_is_followed(chat: Running, asked: dict[str, Any], pattern: str | None) -> None:
    for path, prompt in (("/v1/chat/completions", {"messages": ASK}), ("/v1/completions", {"prompt": PROMPT})):
        reply = chat.post(path, **prompt, **HOT, **asked).json()
        (choice,) = reply["choices"]
        text = choice["message"]["content"] if "message" in choice else choice["text"]
        assert choice["finish_reason"] == "stop"
        assert re.fullmatch(pattern, text) if pattern else follows(text) is None


def test_any_json_object(chat: Running) -> None:
    reply = chat.post(
        "/v1/chat/completions", messages=ASK, response_format={"type": "json_object"}, temperature=0, max_tokens=30
    ).json()
    (choice,) = reply["choices"]
    text = choice["message"]["content"]
    assert text.lstrip().startswith("{")
    assert choice["finish_reason"] == "length" or isinstance(json.loads(text), dict)


def test_the_official_client_parses_into_a_model(chat: Running) -> None:
    client = chat.openai().chat.completions

    class Small(BaseModel):
        fine: bool
        tags: list[bool]

    reply = client.parse(model="tiny", messages=ASK, response_format=Small, temperature=0, max_tokens=400)
    parsed = reply.choices[0].message.parsed
    assert isinstance(parsed, Small)
    whole = client.create(model="tiny", messages=ASK, extra_body={"json_schema": SCHEMA}, **_openai())
    chunks = client.create(model="tiny", messages=ASK, extra_body={"json_schema": SCHEMA}, stream=True, **_openai())
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == whole.choices[0].message.content
    follows(text)


def _openai() -> dict[str, Any]:
    return {"temperature": 1.0, "seed": 3, "max_tokens": 100}


def test_several_replies_each_follow(chat: Running) -> None:
    reply = chat.openai().chat.completions.create(
        model="tiny", messages=ASK, n=4, logprobs=True, top_logprobs=2, extra_body={"json_schema": SCHEMA}, **_openai()
    )
    texts = [choice.message.content or "" for choice in reply.choices]
    for text, choice in zip(texts, reply.choices, strict=True):
        follows(text)
        assert choice.logprobs is not None and choice.logprobs.content
        assert "".join(entry.token for entry in choice.logprobs.content) == text
    assert len(set(texts)) > 1


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"response_format": {"type": "json_schema"}}, "response_format"),
    ({"response_format": {"type": "xml"}}, "response_format.type"),
    ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "thing"}}}}, "response_format"),
    ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"not": {}}}}}, "response_format"),
    ({"json_schema": "{"}, "json_schema"),
    ({"json_schema": 3}, "json_schema"),
    ({"grammar": "root ::= ("}, "grammar"),
    ({"guided_regex": "("}, "guided_regex"),
    ({"guided_choice": []}, "guided_choice"),
    ({"grammar": GBNF, "guided_regex": "a"}, "guided_regex"),
    ({"logit_bias": {"5": 101}}, "logit_bias"),
    ({"logit_bias": {"x": 1}}, "logit_bias"),
    ({"logit_bias": {"999999": 1}}, "logit_bias"),
    ({"logit_bias": [[1, 2, 3]]}, "logit_bias"),
    ({"logit_bias": {str(i): 1 for i in range(1025)}}, "logit_bias"),
    ({"reasoning_effort": "enormous"}, "reasoning_effort"),
]


@pytest.mark.parametrize(("asked", "name"), REFUSED, ids=lambda value: str(value)[:50])
def test_what_cannot_be_followed_is_refused_by_name(chat: Running, asked: dict[str, Any], name: str) -> None:
    answer = chat.post("/v1/chat/completions", messages=ASK, **asked)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == name
    # the server goes on
    assert chat.post("/v1/chat/completions", messages=ASK, max_tokens=1).status_code == 200


def test_what_means_nothing_is_let_pass(chat: Running) -> None:
    plain = chat.post("/v1/chat/completions", messages=ASK, temperature=0, max_tokens=9).json()["choices"]
    unused: dict[str, Any] = {
        "response_format": {"type": "text"}, "grammar": "", "json_schema": None, "logit_bias": {},
        "reasoning_effort": "high", "reasoning_budget": 0, "guided_json": {},
    }  # fmt: skip
    same = chat.post("/v1/chat/completions", messages=ASK, temperature=0, max_tokens=9, **unused).json()["choices"]
    assert same == plain


def test_biases(chat: Running) -> None:
    client = chat.openai().completions
    for bias in ({"7": 100}, {"7": 100, "8": -100}):
        text = client.create(model="tiny", prompt=PROMPT, logit_bias=bias, max_tokens=5).choices[0].text
        assert text == "((((("  # the vocabulary begins with "!"
    listed = chat.post(
        "/v1/completions", prompt=PROMPT, max_tokens=2, logit_bias=[[7, False], [8, 90], [7, False]]
    ).json()
    assert listed["choices"][0]["text"] == "))"


# ---- the chat's own ways


def reply_of(backend: RemoteBackend, grammar: Grammar) -> str:
    request = Request(messages=(Message("user", "hello"),), grammar=grammar, max_tokens=100)
    return "".join(event.text for event in backend.chat(request, threading.Event()) if isinstance(event, Token))


def test_an_attached_server_gets_the_grammar(chat: Running) -> None:
    backend = RemoteBackend(chat.url, None)
    backend.load()
    follows(reply_of(backend, Grammar.json_schema(SCHEMA)))
    assert re.fullmatch(r"let [a-z]{3} = [0-9]{1,3};", reply_of(backend, Grammar.grammar(GBNF)))
    assert re.fullmatch("[a-c]{3}", reply_of(backend, Grammar.regex("[a-c]{3}")))
    assert reply_of(backend, Grammar.choices(["yes", "no"])) in ("yes", "no")
    backend.close()


def test_the_command_line(chat_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "schema.json"
    file.write_text(json.dumps(SCHEMA))
    assert dispatch(["chat", str(chat_file), "-p", "hello", "--json-schema", f"@{file}"]) == 0
    follows(capsys.readouterr().out)
    assert dispatch(["chat", str(chat_file), "-p", "hello", "--raw", "--grammar", GBNF]) == 0
    assert re.fullmatch(r"let [a-z]{3} = [0-9]{1,3};\n", capsys.readouterr().out)
    assert dispatch(["chat", str(chat_file), "-p", "hello", "--regex", "[a-c]{3}"]) == 0
    assert re.fullmatch(r"[a-c]{3}\n", capsys.readouterr().out)
    for wrong in (["--regex", "a", "--grammar", GBNF], ["--json-schema", "@/nowhere"], ["--json-schema", "{"]):
        with pytest.raises(UserError) as refused:
            dispatch(["chat", str(chat_file), "-p", "hello", *wrong])
        assert refused.value.exit_code == 2


def test_openai_raises_for_a_schema_that_is_none(chat: Running) -> None:
    with pytest.raises(openai.BadRequestError, match="Invalid type"):
        chat.openai().chat.completions.create(
            model="tiny",
            messages=ASK,
            response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "thing"}}},
        )


def test_props_and_slots_say_what_runs(chat: Running) -> None:
    with chat.client() as client:
        props, slots = client.get("/props").json(), client.get("/slots").json()
    assert props["chat_template"] == chat.service.model.chat_template != ""
    assert props["default_generation_settings"]["params"]["temperature"] == 0.8
    assert [slot["id"] for slot in slots] == list(range(props["total_slots"]))
    assert {slot["n_ctx"] for slot in slots} == {chat.service.context}
    assert str(chat.service.model.path.parent) not in json.dumps(props)
