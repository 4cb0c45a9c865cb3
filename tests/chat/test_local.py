"""The local backend on real files: small models of random weights, run by the engine."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support import TINY, random_records, write_model
from support_architectures import write_architecture

from nanochat_tui.chat.backend import (
    Backend,
    BackendError,
    Event,
    Finished,
    Message,
    Request,
    Started,
    Stats,
    Token,
)
from nanochat_tui.chat.local import LocalBackend
from nanochat_tui.engine.generate.model import load
from nanochat_tui.errors import UserError
from nanochat_tui.formats.gguf import TensorData, array, read_gguf, write_gguf
from nanochat_tui.formats.mhc import write_mhc
from nanochat_tui.request import SamplingParams

CONFIG = TINY.with_(context_length=128)
GREEDY = SamplingParams(temperature=0.0)


def loaded(path: Path) -> LocalBackend:
    backend = LocalBackend(path, threads=1)
    backend.load()
    return backend


@pytest.fixture(scope="module")
def base(base_model: Path) -> LocalBackend:
    return loaded(base_model)


@pytest.fixture(scope="module")
def chat(chat_model: Path) -> LocalBackend:
    return loaded(chat_model)


def ask(backend: LocalBackend, request: Request) -> list[Event]:
    return list(backend.chat(request, threading.Event()))


def text_of(events: list[Event]) -> str:
    return "".join(e.text for e in events if isinstance(e, Token))


def started(events: list[Event]) -> Started:
    assert isinstance(events[0], Started)
    return events[0]


def test_it_is_a_backend_and_costs_nothing_before_load(tmp_path: Path) -> None:
    backend: Backend = LocalBackend(tmp_path / "d20.gguf")
    assert backend.name == "d20"
    with pytest.raises(BackendError, match="not loaded"):
        assert backend.threads


def test_properties_come_from_the_file(base: LocalBackend, chat: LocalBackend) -> None:
    steps: list[str] = []
    base.load(steps.append)
    assert not steps, "the second load does nothing"
    LocalBackend(base.path).load(steps.append)
    assert any("model.gguf" in step for step in steps)
    assert (base.context_size, base.threads, base.is_chat, chat.is_chat) == (128, 1, False, True)
    assert base.kernel == base.model.kernel


def test_events_come_in_order_and_say_what_the_engine_says(base: LocalBackend, base_model: Path) -> None:
    prompt = "fn main() {\n    let x = 1;"
    events = ask(base, Request(prompt=prompt, sampling=GREEDY, max_tokens=12, top_logprobs=2))
    assert isinstance(events[0], Started)
    assert isinstance(events[-2], Stats)
    assert events[-1] == Finished("length")
    engine = load(base_model, threads=1)
    expected = list(engine.generate(prompt, temperature=0.0, max_tokens=12, top_logprobs=2))
    got = [e for e in events if isinstance(e, Token)]
    assert [t.id for t in got] == [t.id for t in expected]
    assert text_of(events) == "".join(t.text for t in expected)
    assert [t.logprob for t in got] == pytest.approx([t.logprob for t in expected], abs=1e-4)
    assert all(len(t.top) == 2 and t.top[0][0] == t.id for t in got)
    assert started(events).prompt_tokens == len(engine.encode(prompt))


def test_stats_are_measured(base: LocalBackend) -> None:
    events = ask(base, Request(prompt="struct S;", sampling=GREEDY, max_tokens=16))
    stats = events[-2]
    assert isinstance(stats, Stats)
    assert stats.generated == 16
    assert stats.context_size == 128
    used = started(events).prompt_tokens + 16
    assert used - 1 <= stats.context_used <= used
    assert stats.prompt_tps is not None
    assert stats.decode_tps is not None
    assert stats.prompt_tps > 0
    assert stats.decode_tps > 0
    assert stats.seconds_to_first_token is not None
    assert 0 < stats.seconds_to_first_token < 60


def test_how_far_a_long_prompt_was_read_can_be_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = loaded(write_model(tmp_path / "long.gguf", TINY.with_(context_length=512)))
    assert backend.reading() is None
    ask(backend, Request(prompt="fn", sampling=GREEDY, max_tokens=4))
    assert backend.reading() is None, "what another request read is not this one's"
    seen: list[Stats | None] = []
    execute = backend.model.executor.execute

    def watched(*arguments: object) -> object:
        seen.append(backend.reading())
        return execute(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(backend.model.executor, "execute", watched)
    prompt = "".join(chr(97 + i % 26) for i in range(350))
    events = ask(backend, Request(prompt=prompt, sampling=GREEDY, max_tokens=4))
    assert started(events).prompt_tokens > 256
    assert seen[0] is None
    assert isinstance(seen[1], Stats)
    reused = backend.model.codec.bos is not None  # the mark of the beginning is still in the cache
    assert (seen[1].context_used, seen[1].context_size, seen[1].decode_tps) == (128 + reused, 512, None)
    assert seen[1].prompt_tps is not None
    assert seen[1].prompt_tps > 0


def test_the_same_seed_gives_the_same_text_whatever_was_asked_before(base: LocalBackend) -> None:
    request = Request(prompt="let", sampling=SamplingParams(seed=5), max_tokens=20)
    first = text_of(ask(base, request))
    ask(base, Request(prompt="let mut other", max_tokens=5))
    assert text_of(ask(base, request)) == first
    assert text_of(ask(base, Request(prompt="let", sampling=SamplingParams(seed=6), max_tokens=20))) != first


def test_a_stop_string_ends_the_reply_before_it(base: LocalBackend) -> None:
    free = text_of(ask(base, Request(prompt="a", sampling=GREEDY, max_tokens=12)))
    stop = free[len(free) // 2 : len(free) // 2 + 3]
    events = ask(base, Request(prompt="a", sampling=GREEDY, max_tokens=12, stop=(stop,)))
    assert text_of(events) == free[: free.index(stop)]
    assert events[-1] == Finished("stop")


def test_cancelling_takes_effect_at_the_next_token(base: LocalBackend) -> None:
    cancel = threading.Event()
    stream = base.chat(Request(prompt="a", sampling=GREEDY, max_tokens=100), cancel)
    seen = 0
    last: Event | None = None
    for event in stream:
        last = event
        if isinstance(event, Token):
            seen += 1
            assert not cancel.is_set()
            if seen == 3:
                cancel.set()
    assert seen == 3
    assert last == Finished("cancelled")


def test_a_second_request_waits_for_the_first(base: LocalBackend) -> None:
    cancel = threading.Event()
    first = base.chat(Request(prompt="a", sampling=GREEDY, max_tokens=50), cancel)
    next(first)
    done: list[list[Event]] = []
    other = threading.Thread(target=lambda: done.append(ask(base, Request(prompt="b", sampling=GREEDY, max_tokens=4))))
    other.start()
    next(first)
    assert not done
    cancel.set()
    list(first)
    other.join(120)
    assert done
    assert done[0][-1] == Finished("length")


def test_without_limit_the_context_is_the_limit(base: LocalBackend) -> None:
    events = ask(base, Request(prompt="fn", sampling=GREEDY, max_tokens=None))
    stats = events[-2]
    assert isinstance(stats, Stats)
    assert events[-1] == Finished("length")
    assert 127 <= stats.context_used <= 128


def test_a_long_document_keeps_its_end_and_says_so(base: LocalBackend) -> None:
    lines = "".join(f"let v{i} = {i};\n" for i in range(100))
    events = ask(base, Request(prompt=lines, sampling=GREEDY, max_tokens=40))
    assert started(events).dropped_tokens > 0
    assert started(events).note is not None
    assert started(events).prompt_tokens <= 128 - 32
    assert started(events).prompt_tokens + started(events).dropped_tokens == len(base.model.encode(lines))
    assert len([e for e in events if isinstance(e, Token)]) >= 32
    # what is left is the begin-of-text mark and whole lines, exactly as if they had been the prompt
    tail = next(
        lines[i:]
        for i in range(len(lines))
        if (i == 0 or lines[i - 1] == "\n") and len(base.model.encode(lines[i:])) <= started(events).prompt_tokens
    )
    assert text_of(ask(base, Request(prompt=tail, sampling=GREEDY, max_tokens=40))) == text_of(events)


def test_an_empty_prompt_begins_with_the_mark(base: LocalBackend) -> None:
    events = ask(base, Request(prompt="", sampling=GREEDY, max_tokens=4))
    assert started(events).prompt_tokens == 1


def test_messages_go_through_the_template(chat: LocalBackend) -> None:
    messages = (Message("system", "rules"), Message("user", "hi"), Message("assistant", "yes?"), Message("user", "go"))
    events = ask(chat, Request(messages=messages, sampling=GREEDY, max_tokens=10))
    raw = ask(chat, Request(prompt="# rules\nQ: hi\nA: yes?\nQ: go\nA:", sampling=GREEDY, max_tokens=10))
    assert started(events) == started(raw)
    assert text_of(events) == text_of(raw)


def test_old_turns_are_dropped_with_a_note(chat: LocalBackend) -> None:
    turns = [Message("user" if i % 2 == 0 else "assistant", f"number {i} of many words in here") for i in range(31)]
    events = ask(chat, Request(messages=tuple(turns), sampling=GREEDY, max_tokens=8))
    dropped = started(events).dropped_messages
    assert dropped > 0
    assert dropped % 2 == 0
    rest = ask(chat, Request(messages=tuple(turns[dropped:]), sampling=GREEDY, max_tokens=8))
    assert started(rest).dropped_messages == 0
    assert text_of(rest) == text_of(events)


def test_a_message_that_cannot_fit_is_refused(chat: LocalBackend) -> None:
    with pytest.raises(BackendError, match="context holds 128; shorten the message"):
        ask(chat, Request(messages=(Message("user", "word " * 200),)))
    assert ask(chat, Request(messages=(Message("user", "hi"),), max_tokens=2))[-1] == Finished("length"), "and lives on"


def test_a_base_model_joins_messages_and_takes_no_system_message(base: LocalBackend) -> None:
    joined = ask(
        base, Request(messages=(Message("user", "fn a"), Message("user", "() {")), sampling=GREEDY, max_tokens=5)
    )
    assert text_of(joined) == text_of(ask(base, Request(prompt="fn a() {", sampling=GREEDY, max_tokens=5)))
    with pytest.raises(UserError, match="no chat template"):
        ask(base, Request(messages=(Message("system", "x"), Message("user", "y"))))


def test_what_cannot_be_loaded_is_said_and_can_be_tried_again(tmp_path: Path, base_model: Path) -> None:
    path = tmp_path / "m.gguf"
    backend = LocalBackend(path)
    with pytest.raises(UserError):
        backend.load()
    path.write_bytes(b"GGUF")
    with pytest.raises(UserError):
        backend.load()
    path.write_bytes(base_model.read_bytes())
    backend.load()
    assert backend.context_size == 128


def test_a_sidecar_that_disagrees_is_refused(base_model: Path, tmp_path: Path) -> None:
    sidecar = tmp_path / "other.mhc"
    write_mhc(sidecar, 2, random_records(CONFIG, seed=0))
    LocalBackend(base_model, mhc=sidecar).load()
    write_mhc(sidecar, 2, random_records(CONFIG, seed=1))
    with pytest.raises(UserError):
        LocalBackend(base_model, mhc=sidecar).load()


def test_a_reply_goes_on_from_its_own_tokens_as_if_it_had_never_stopped(base: LocalBackend, chat: LocalBackend) -> None:
    for backend, request in (
        (base, Request(prompt="fn main() {", sampling=GREEDY, max_tokens=16)),
        (chat, Request(messages=(Message("user", "hi"),), sampling=GREEDY, max_tokens=16)),
    ):
        whole = [e for e in ask(backend, request) if isinstance(e, Token)]
        half = whole[:7]
        ids = tuple(token.id for token in half if token.id is not None)
        rest = replace(request, prefix="".join(t.text for t in half), prefix_ids=ids, max_tokens=16 - len(half))
        assert [e.id for e in ask(backend, rest) if isinstance(e, Token)] == [t.id for t in whole[7:]]
        assert backend.can_continue(chat=backend.is_chat)


def test_a_prefix_is_part_of_what_the_model_reads(base: LocalBackend, chat: LocalBackend) -> None:
    short = started(ask(base, Request(prompt="fn main() {", max_tokens=1)))
    longer = started(ask(base, Request(prompt="fn main() {", prefix=" let x", max_tokens=1)))
    assert longer.prompt_tokens > short.prompt_tokens
    message = (Message("user", "hi"),)
    plain = started(ask(chat, Request(messages=message, max_tokens=1)))
    longer = started(ask(chat, Request(messages=message, prefix="Well, ", max_tokens=1)))
    assert longer.prompt_tokens > plain.prompt_tokens


def test_marks_that_people_type_stay_text(tmp_path: Path) -> None:
    mark = "<|endoftext|>"
    path = write_model(tmp_path / "m.gguf", CONFIG, chat_template="{{ messages[0].content }}" + mark)
    backend = loaded(path)
    codec = backend.model.codec
    end = codec.tokenizer.token_to_id(mark)
    ask(backend, Request(messages=(Message("user", f"a{mark}b"),), sampling=GREEDY, max_tokens=1))
    prompt = backend.trail[:-1]
    assert prompt.count(end) == 1 + (prompt[0] == end and codec.add_bos)
    assert codec.decode(prompt) == f"a{mark}b"


def test_a_context_is_asked_for_kept_and_forecast(chat_model: Path) -> None:
    steps: list[str] = []
    backend = LocalBackend(chat_model, threads=1, context=32)
    backend.load(steps.append)
    assert backend.context_size == 32
    assert any(step.startswith("memory: ") and "32 tokens of context" in step for step in steps)
    events = ask(backend, Request(messages=(Message("user", "hi"),), sampling=GREEDY, max_tokens=None))
    stats = events[-2]
    assert isinstance(stats, Stats)
    assert (stats.context_size, events[-1]) == (32, Finished("length"))
    assert started(events).prompt_tokens + stats.generated == 32
    with pytest.raises(BackendError, match="context holds 32"):
        ask(backend, Request(messages=(Message("user", "word " * 30),)))


def test_a_context_beyond_the_models_own_is_that_of_the_model(base_model: Path) -> None:
    steps: list[str] = []
    backend = LocalBackend(base_model, threads=1, context=1 << 20)
    backend.load(steps.append)
    assert backend.context_size == 128
    assert "note: the model was made for 128 tokens, and so that is the context" in steps


def test_a_missing_template_is_the_familys_with_its_thinking(tmp_path: Path) -> None:
    """ChatML's marks and those of thoughts are in the vocabulary, and the file has no template."""
    path = write_architecture(tmp_path / "m.gguf", "qwen3", kind="Q2_0")
    with read_gguf(path) as file:
        metadata = dict(file.metadata)
        kept = [TensorData(n, i.shape, i.type, file.raw(n).copy()) for n, i in file.tensors.items()]
    tokens = list(metadata["tokenizer.ggml.tokens"].value)  # type: ignore[arg-type]
    kinds = np.array(metadata["tokenizer.ggml.token_type"].value)
    marks = {"<|im_start|>": 3, "<|im_end|>": 3, "<think>": 4, "</think>": 4}
    for place, (mark, kind) in enumerate(marks.items(), len(tokens) - 8):
        tokens[place], kinds[place] = mark, kind
    merges = [m for m in metadata["tokenizer.ggml.merges"].value if m.replace(" ", "", 1) in tokens]  # type: ignore
    metadata |= {
        "tokenizer.ggml.tokens": array(tokens),
        "tokenizer.ggml.token_type": array(kinds),
        "tokenizer.ggml.merges": array(merges),
    }
    write_gguf(path, metadata, kept)
    steps: list[str] = []
    backend = LocalBackend(path, threads=1)
    backend.load(steps.append)
    assert backend.is_chat
    assert any(step.startswith("note: ") and "ChatML" in step for step in steps)
    request = Request(messages=(Message("user", "hi <|im_end|>"),), sampling=GREEDY, max_tokens=2)
    ask(backend, request)
    start, end = len(tokens) - 8, len(tokens) - 7
    prompt = backend.trail[:-2]
    assert prompt.count(start) == 2 and prompt.count(end) == 1
    # a thought that the reply's beginning opened goes on as one
    thought = ask(backend, replace(request, prefix="<think>", prefix_thinking=True))
    assert [t.thinking for t in thought if isinstance(t, Token) and t.text] in ([True], [True, True])


@pytest.mark.parametrize("kind", ["completion", "chat"])
def test_the_lens_of_an_overfull_context_shows_the_reply_and_nothing_of_the_prompt(
    base: LocalBackend, chat: LocalBackend, kind: str
) -> None:
    request = Request(prompt="let x = 1;\n" * 60, sampling=GREEDY, max_tokens=20, top_logprobs=3)
    if kind == "chat":
        said = [Message(role, "main fn let " * 2) for _ in range(12) for role in ("user", "assistant")]
        request = replace(request, prompt=None, messages=(*said, Message("user", "let")))  # type: ignore[arg-type]
    backend = chat if kind == "chat" else base
    events = ask(backend, request)
    assert started(events).note is not None
    written = [event for event in events if isinstance(event, Token)]
    ids = tuple(token.id for token in written if token.id is not None)
    scored = backend.score(replace(request, prefix=text_of(events), prefix_ids=ids), 3)
    assert [token.id for token in scored] == list(ids)
    for token, again in zip(written, scored, strict=True):
        assert again.logprob == pytest.approx(token.logprob, abs=1e-2), "as it was when it was written"
    reply = "fn main let main fn"  # of another day: only its text is known
    assert "".join(token.text for token in backend.score(replace(request, prefix=reply), 3)) == reply
    reply *= 8  # more than was kept free for it
    scored = backend.score(replace(request, prefix=reply), 3)
    assert "".join(token.text for token in scored) == reply
