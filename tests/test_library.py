"""The public library: what README shows, and what callers do with it beyond that."""

from __future__ import annotations

import asyncio
import copy
import pickle
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import write_model
from support_architectures import draft, finish

import nanochat_tui as nc
from nanochat_tui.formats.gguf import string
from nanochat_tui.model.chat.prompt import encode_chat

TEMPLATE = (
    "{% for message in messages %}[{{ message.role }}]{{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("library") / "base.gguf")


@pytest.fixture(scope="module")
def talker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = draft("llama", kind="Q2_0")
    made.plain_keys["tokenizer.chat_template"] = string(TEMPLATE)
    return finish(made, tmp_path_factory.mktemp("library") / "talker.gguf")


def texts(model: nc.Model, messages: list[dict[str, str]], **settings: Any) -> str:
    return model.chat(messages, max_tokens=6, temperature=0, **settings).read()


def test_every_public_name_is_there() -> None:
    for name in nc.__all__:
        assert getattr(nc, name) is not None
    assert issubclass(nc.FormatError, nc.UserError) and issubclass(nc.ArgumentError, TypeError)
    assert set(nc.__all__) <= set(dir(nc))


def test_a_model_closes_with_its_block(base: Path) -> None:
    with nc.load(base, threads=1) as model:
        assert model.generate("a", max_tokens=2, temperature=0).read()
        shown = repr(model)
    assert "random" in shown and "parameters" in shown and "1 threads" in shown and "0x" not in shown
    with pytest.raises(nc.UserError, match="closed"):
        model.generate("a", max_tokens=2).read()


def test_a_conversation_is_the_same_as_its_messages(talker: Path) -> None:
    model = nc.load(talker, threads=1)
    chat = nc.Chat(model, system="short", max_tokens=6, temperature=0)
    first = chat.send("one").read()
    assert chat.messages[-1] == {"role": "assistant", "content": first}
    second = chat.send("two").read()
    messages = [
        {"role": "system", "content": "short"},
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": first},
        {"role": "user", "content": "two"},
    ]
    assert texts(model, messages) == second
    ids = encode_chat(model.codec, TEMPLATE, messages)
    assert model.generate(ids, max_tokens=6, temperature=0).read() == second
    again = nc.Chat(model, messages=messages[:3], max_tokens=6, temperature=0)
    assert again.send("two").read() == second
    assert "4 messages" in repr(again) or "5 messages" in repr(again)


def test_a_conversation_reads_only_what_is_new(talker: Path) -> None:
    chat = nc.Chat(nc.load(talker, threads=1), max_tokens=4, temperature=0)
    chat.send("a first message that is long enough to fill pages of the cache, and more").read()
    reply = chat.send("b")
    reply.read()
    assert reply.stats.reused_tokens > 0


def test_a_message_that_does_not_fit_adds_nothing(talker: Path) -> None:
    chat = nc.Chat(nc.load(talker, threads=1), max_tokens=4)
    with pytest.raises(nc.UserError, match="shorten"):
        chat.send("long " * 500)
    assert chat.messages == []


def test_a_base_model_is_not_talked_to(base: Path) -> None:
    model = nc.load(base, threads=1)
    with pytest.raises(nc.UserError, match=r"no chat template.*Model\.generate"):
        model.chat([{"role": "user", "content": "hello"}])
    with pytest.raises(nc.UserError, match="no chat template"):
        nc.Chat(model)


def test_a_reply_can_be_cancelled_closed_and_left(base: Path) -> None:
    model = nc.load(base, threads=1)
    reply = model.generate("a", max_tokens=100, temperature=0)
    next(reply)
    assert "unfinished" in repr(reply)
    reply.cancel()
    assert len(list(reply)) < 99
    assert reply.finish_reason == "cancelled" and "cancelled" in repr(reply)
    with model.generate("a", max_tokens=100, temperature=0) as left:
        first = next(left)
    assert list(left) == [] and left.finish_reason == "cancelled" and left.text == first.text
    event = threading.Event()
    event.set()
    assert model.generate("a", max_tokens=5, cancel=event).read() == ""


def test_a_reply_in_an_event_loop(base: Path) -> None:
    model = nc.load(base, threads=1)
    wanted = [token.id for token in model.generate("a", max_tokens=20, temperature=0)]

    async def main() -> tuple[list[int], int]:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0)

        other = asyncio.create_task(tick())
        found = [token.id async for token in model.generate("a", max_tokens=20, temperature=0)]
        other.cancel()
        return found, ticks

    found, ticks = asyncio.run(main())
    assert found == wanted and ticks > len(found)


def test_a_model_is_pickled_and_copied_by_path(base: Path) -> None:
    model = nc.load(base, threads=1, kv="int8")
    for other in (pickle.loads(pickle.dumps(model)), copy.copy(model)):  # noqa: S301 (our own bytes)
        assert other is not model and other.executor is not model.executor
        assert (other.path, other.threads, other.kv) == (model.path.resolve(), 1, "int8")
        np.testing.assert_array_equal(other.logits([1, 2, 3]), model.logits([1, 2, 3]))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda m, p: nc.load(p, threads="2"), "threads is text and must be a whole number"),
        (lambda m, p: nc.load(p, context=1.5), "context is a fraction"),
        (lambda m, p: nc.load(5), "path of the model is one number"),
        (lambda m, p: m.generate("a", temperature="x"), "temperature is text and must be a number"),
        (lambda m, p: m.generate("a", top_k=2.5), "top_k is a fraction"),
        (lambda m, p: m.generate("a", max_tokens="x"), "max_tokens is text"),
        (lambda m, p: m.generate("a", stop=5), "stop is one number"),
        (lambda m, p: m.generate("a", stop=[5]), "stop holds something one number"),
        (lambda m, p: m.generate("a", {"top_k": 5}), "params is of the type dict"),
        (lambda m, p: m.generate("a", seed="now"), "seed is text"),
        (lambda m, p: m.generate(5), "the prompt is one number and must be a sequence"),
        (lambda m, p: m.generate([1.5]), "holds something a fraction"),
        (lambda m, p: m.logits([1.5]), "ids holds something a fraction"),
        (lambda m, p: m.logits("ab"), "ids is text"),
        (lambda m, p: m.chat("hello"), "messages is a list"),
    ],
)
def test_wrong_types_are_named(call: Any, words: str, base: Path, model: nc.Model) -> None:
    with pytest.raises(nc.ArgumentError, match=words) as caught:
        call(model, base)
    assert isinstance(caught.value, nc.UserError) and isinstance(caught.value, TypeError)


@pytest.fixture(scope="module")
def model(base: Path) -> nc.Model:
    return nc.load(base, threads=1)


def test_numbers_of_numpy_are_numbers(model: nc.Model) -> None:
    ids = np.array([1, 2, 3], np.int32)
    one = model.generate(ids, max_tokens=int(np.int64(3)), temperature=np.float32(0.0), top_k=np.int64(1)).read()
    assert one == model.generate([1, 2, 3], max_tokens=3, temperature=0, top_k=1).read()
    np.testing.assert_array_equal(model.logits(ids), model.logits([1, 2, 3]))


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([], "no message"),
        ([{"role": "user"}], "message 0 must be"),
        ([{"role": "user", "content": "a"}, {"role": "bot", "content": "b"}], "message 1 has no role that is known"),
    ],
)
def test_messages_are_checked(talker: Path, messages: list[dict[str, str]], words: str) -> None:
    with pytest.raises(nc.UserError, match=words):
        nc.load(talker, threads=1).chat(messages)


def test_an_unknown_setting_is_named(talker: Path) -> None:
    with pytest.raises(nc.ArgumentError, match=r"no such setting.*temprature"):
        nc.load(talker, threads=1).chat([{"role": "user", "content": "a"}], temprature=1)


def test_the_examples_of_the_documentation_run(base: Path, talker: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (Path(__file__).parents[1] / "docs" / "library.md").read_text(encoding="utf-8")
    examples = [part.split("```")[0] for part in text.split("```python\n")[1:]]
    assert len(examples) >= 4
    monkeypatch.chdir(base.parent)
    (base.parent / "model.gguf").write_bytes(base.read_bytes())
    (base.parent / "chat-model.gguf").write_bytes(talker.read_bytes())
    for example in examples:
        exec(compile(example, "docs/library.md", "exec"), {"__name__": "example"})  # noqa: S102 (our own text)
