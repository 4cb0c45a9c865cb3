"""One way from messages to prompts, for the chat, the server and the library."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support import TINY, write_model
from test_chat_prompt import CODEC, OPEN, START, TALK, spelled

from nanochat_tui.chat.backend import Message, Request
from nanochat_tui.chat.local import LocalBackend
from nanochat_tui.engine.generate.model import load
from nanochat_tui.model.chat.families import ALPACA, CHATML
from nanochat_tui.model.chat.prompt import PromptBuilder, SystemMessageError
from nanochat_tui.request import Token
from nanochat_tui.serve.bodies import ChatBody
from nanochat_tui.serve.errors import ApiError
from nanochat_tui.serve.prompts import chat_ids

THINKER = CHATML.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}") + "{# </think> #}"
SYSTEM = [{"role": "system", "content": "Be brief."}, *TALK]


def split(builder: PromptBuilder, reply: list[str], **options: Any) -> list[tuple[str, bool]]:
    splitter = builder.continued(**options) if options else builder.splitter(builder.messages_ids(TALK))
    found = [piece for text in reply for piece in splitter.token(Token(text))]
    return [(piece.text, piece.thinking) for piece in [*found, *splitter.rest()] if piece.text]


def test_messages_go_through_the_template() -> None:
    ids = PromptBuilder(CODEC, CHATML).messages_ids(SYSTEM)
    assert ids.count(START) == 3
    text = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert spelled(CODEC, ids) == text


def test_without_a_template_messages_are_text_and_a_system_message_is_refused() -> None:
    builder = PromptBuilder(CODEC, None)
    assert builder.messages_ids([*TALK, {"role": "assistant", "content": " there"}]) == CODEC.encode("Hi there")
    with pytest.raises(SystemMessageError, match="cannot take a system message; leave it out"):
        builder.messages_ids(SYSTEM)


@pytest.mark.parametrize("template", [CHATML, None])
def test_exact_tokens_of_a_beginning_go_before_its_text(template: str | None) -> None:
    builder = PromptBuilder(CODEC, template)
    before = builder.messages_ids(TALK)
    assert builder.messages_ids(TALK, prefix="ab") == [*before, *CODEC.encode("ab")]
    assert builder.messages_ids(TALK, prefix="ab", prefix_ids=[7, 8]) == [*before, 7, 8]
    assert builder.text_ids("x", prefix="y", prefix_ids=[7]) == [*CODEC.encode("x"), 7]


def test_thinking_is_told_from_the_answer() -> None:
    opened = PromptBuilder(CODEC, THINKER)
    assert opened.messages_ids(TALK)[-2] == OPEN
    assert split(opened, ["hm", "</think>", "so"]) == [("hm", True), ("so", False)]
    closed = PromptBuilder(CODEC, CHATML, ("<think>", "</think>"))
    assert split(closed, ["<think>hm", "</think>so"]) == [("hm", True), ("so", False)]
    assert split(closed, ["hm</think>", "so"], inside=True) == [("hm", True), ("so", False)]
    for plain in (PromptBuilder(CODEC, CHATML), PromptBuilder(CODEC, None, ("<think>", "</think>"))):
        assert split(plain, ["<think>hm"]) == [("<think>hm", False)]


@pytest.mark.parametrize("template", [ALPACA, None])
def test_chat_and_server_make_the_same_prompt(
    template: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(write_model(tmp_path / "model.gguf", TINY.with_(context_length=512)), threads=1)
    model.chat_template = template
    backend = LocalBackend(model.path)
    monkeypatch.setattr(backend, "_loaded", (model, None))
    talk = [("user", "Hi"), ("assistant", "Hello."), ("user", "Why?")]
    messages: list[Any] = [{"role": role, "content": text} for role, text in talk]
    request = Request(messages=tuple(Message(role, text) for role, text in talk))  # type: ignore[arg-type]
    assert backend._fit(model, request).ids == chat_ids(model, ChatBody(messages=messages), 512)
    if template is None:
        with pytest.raises(SystemMessageError):
            backend._fit(model, Request(messages=(Message("system", "x"), *request.messages)))
        with pytest.raises(ApiError, match="--chat-template"):
            chat_ids(model, ChatBody(messages=[{"role": "developer", "content": "x"}, *messages]), 512)
