"""Probabilities of a text's tokens and embeddings: against all logits at once, against NumPy, alone and in a batch."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from references.common import Model as Reference
from support import TINY, write_model
from support_architectures import WRITERS, add_rotation, draft, finish

import nanochat_tui as nc
from nanochat_tui.engine.generate.model import Model
from nanochat_tui.engine.generate.reading import Embedding, Reading, Scores
from nanochat_tui.engine.generate.scheduler import Batcher
from nanochat_tui.formats.gguf import boolean, read_gguf, u32

GREEDY = {"temperature": 0.0}
LONG = TINY.with_(context_length=1024)
RANDOM = np.random.default_rng(5)
TEXTS = [[int(i) for i in RANDOM.integers(1, 300, count)] for count in (1, 2, 3, 40, 127, 129, 400)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return nc.load(write_model(tmp_path_factory.mktemp("reading") / "model.gguf", LONG), threads=2)


def expected(model: Model, ids: list[int]) -> np.ndarray:
    """Log-probabilities of all places, float64 [n, vocab], by the textbook."""
    logits = model.logits(ids).astype(np.float64)
    logits -= logits.max(axis=-1, keepdims=True)
    return np.asarray(logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True)))


@pytest.mark.parametrize(("ids", "start", "top"), list(itertools.product(TEXTS[1:], (1, 2), (0, 3))))
def test_scores_are_the_logits_of_the_whole_text(model: Model, ids: list[int], start: int, top: int) -> None:
    wanted = expected(model, ids)
    found = model.score(ids, start=start, top=top)
    assert [token.id for token in found] == ids[start:]
    for place, token in enumerate(found, start):
        row = wanted[place - 1]
        assert token.logprob == pytest.approx(row[token.id or 0], abs=1e-5)
        assert [i for i, _, _ in token.top] == [int(i) for i in np.argsort(-row, kind="stable")[:top]]
        np.testing.assert_allclose([p for _, _, p in token.top], np.sort(row)[::-1][:top], atol=1e-5)


def test_scored_tokens_have_the_text(model: Model) -> None:
    text = "fn main() { ü 中 }"
    ids = model.encode(text)
    assert model.decode(ids[:3]) + "".join(token.text for token in model.score(text, start=3)) == text


def test_scores_from_a_late_place_and_of_nothing(model: Model) -> None:
    ids = TEXTS[-1]
    assert model.score(ids, start=399) == model.score(ids)[398:]
    assert model.score(ids, start=400) == model.score(ids[:1]) == []
    for start, top in ((0, 0), (1, -1)):
        with pytest.raises(nc.UserError, match="start is 1 or more"):
            model.score(ids, start=start, top=top)
    with pytest.raises(nc.UserError, match="1 to 1024 tokens"):
        model.score([1] * 1025)


STATES: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in WRITERS),
    ("llama", {"tied": False}),
    ("qwen3", {"rotated": 256, "tied": False}),
    ("qwen35", {"rotated": 64}),
    ("nanochat", {}),
]


@pytest.mark.parametrize(("name", "options"), STATES, ids=[f"{name}-{options}" for name, options in STATES])
def test_states_are_what_the_output_table_reads(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    """Multiplied by the file's table, the states give the logits: of every architecture, of merged streams, rotated."""
    if name == "nanochat":
        path = write_model(tmp_path / "model.gguf", LONG)
    else:
        rotated = options.pop("rotated", 0)
        made = draft(name, **options)
        if rotated:
            add_rotation(made, rotated)
        path = finish(made, tmp_path / "model.gguf")
    ids = [int(i) for i in RANDOM.integers(1, 200, 37)]
    with nc.load(path, threads=1, activations="float", kv="f32") as runs, read_gguf(path) as file:
        states = runs.embed([ids], pooling="none", normalize=False)[0]
        assert states.shape == (37, runs.config.dim)
        reference = Reference(file)
        tied = not reference.has("output.weight")
        x = states.astype(np.float64)
        if "output.weight" in reference.rotated or (tied and reference.plain("prism.hadamard.tied_output", False)):
            x = reference.transform(x * reference.signs(reference.dim))
        wanted = x @ reference.weight("token_embd.weight" if tied else "output.weight").T * runs.config.logit_scale
        np.testing.assert_allclose(runs.logits(ids), wanted[:, : runs.config.vocab_size], atol=2e-3)
        together = runs.embed([ids[:5], ids, ids[:20]], pooling="none", normalize=False)
        np.testing.assert_allclose(together[1], states, atol=1e-4)


def test_pooling_is_by_the_book(model: Model) -> None:
    whole = model.embed(TEXTS, pooling="none", normalize=False)
    assert [len(states) for states in whole] == [len(ids) for ids in TEXTS]
    for pooling, of in (("mean", lambda s: s.mean(axis=0)), ("last", lambda s: s[-1]), ("cls", lambda s: s[0])):
        plain = model.embed(TEXTS, pooling=pooling, normalize=False)  # type: ignore[arg-type]
        assert isinstance(plain, np.ndarray) and plain.dtype == np.float32
        wanted = np.array([of(states.astype(np.float64)) for states in whole])
        np.testing.assert_allclose(plain, wanted, atol=1e-5)
        unit = wanted / np.linalg.norm(wanted, axis=1, keepdims=True)
        np.testing.assert_allclose(model.embed(TEXTS, pooling=pooling), unit, atol=1e-6)  # type: ignore[arg-type]
    lengths = [np.linalg.norm(states, axis=-1) for states in model.embed(TEXTS, pooling="none")]
    assert all(np.allclose(each, 1, atol=1e-6) for each in lengths)


def test_forms_of_texts(model: Model) -> None:
    text = "fn main"
    ids = model.encode(text)
    one = model.embed(text)
    assert isinstance(one, np.ndarray) and one.shape == (LONG.dim,)
    for same in (model.embed(ids), model.embed([text])[0], model.embed((ids,))[0], model.embed(np.array(ids))):  # type: ignore[arg-type]
        np.testing.assert_array_equal(one, same)
    empty = model.embed([])
    assert isinstance(empty, np.ndarray) and empty.shape == (0, LONG.dim)
    for wrong, words in (([[]], "1 to 1024 tokens, not 0"), ([[900]], "outside the vocabulary"), (5, "one number")):
        with pytest.raises(nc.UserError, match=words):
            model.embed(wrong)  # type: ignore[arg-type]
    with pytest.raises(nc.UserError, match="'sum' is unknown"):
        model.embed("x", pooling="sum")  # type: ignore[arg-type]


@pytest.mark.parametrize(("number", "name"), [(0, "none"), (1, "mean"), (2, "cls"), (3, "last"), (4, "mean")])
def test_the_file_says_how(number: int, name: str, tmp_path: Path) -> None:
    made = draft("qwen3")
    made.keys["pooling_type"] = u32(number)
    made.plain_keys["tokenizer.ggml.add_eos_token"] = boolean(True)
    path = finish(made, tmp_path / "model.gguf")
    with nc.load(path, threads=1) as model:
        assert (model.embedding.pooling, model.embedding.named) == (name, number != 4)
        ids = [*model.encode("fn"), model.codec.eos]
        assert model.embedding_ids("fn") == ids and model.embedding_ids([1, 2]) == [1, 2]
        np.testing.assert_array_equal(model.embed("fn"), model.embed(ids, pooling=name))  # type: ignore[arg-type]


def readings(model: Model) -> list[tuple[list[int], Reading, int]]:
    found: list[tuple[list[int], Reading, int]] = []
    for number, ids in enumerate(TEXTS):
        found.append((ids, Scores(ids, 1, 2), number % 3))
        found.append((ids, Embedding(len(ids), ("mean", "last", "cls", "none")[number % 4]), 0))
    return found


@pytest.mark.parametrize("kv_tokens", [None, 1024])
def test_a_batch_reads_next_to_replies(model: Model, kv_tokens: int | None) -> None:
    """Bit for bit what the library computes by itself, and replies are those without readings, little memory or not."""
    prompts = [[5, 6, 7], [9] * 70]
    settings = {"max_tokens": 200, "temperature": 0.0, "ignore_eos": True}
    alone = [[t.id for t in model.generate(prompt, **settings)] for prompt in prompts]
    batcher = Batcher(model, max_sequences=6, kv_tokens=kv_tokens)
    try:
        replies = [batcher.submit(prompt, **settings) for prompt in prompts]
        asked = readings(model)
        streams = [batcher.submit(ids, max_tokens=m, reading=r, **GREEDY) for ids, r, m in asked]
        for (ids, reading, most), stream in zip(asked, streams, strict=True):
            said = [token.id for token in stream]
            assert stream.reading is reading
            if isinstance(reading, Scores):
                assert said == [t.id for t in model.generate(ids, max_tokens=most, **GREEDY)]
                wanted = model.score(ids, top=2)
                assert [(s.id, s.logprob) for s in reading.scored] == [(t.id, pytest.approx(t.logprob)) for t in wanted]
            else:
                pooling = ("mean", "last", "cls", "none")[TEXTS.index(ids) % 4]
                wanted_vector = model.embed(ids, pooling=pooling)  # type: ignore[arg-type]
                np.testing.assert_allclose(reading.vector(normalize=True), wanted_vector, atol=1e-5)
        assert [[token.id for token in reply] for reply in replies] == alone
    finally:
        batcher.close()


def test_a_reading_leaves_room_for_replies(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two parts of a long text that is read, a reply continues."""
    order: list[str] = []
    read, execute = model.executor.read, model.executor.execute

    def reading(*arguments: object, **options: object) -> object:
        order.append("read")
        return read(*arguments, **options)  # type: ignore[arg-type]

    def executing(*arguments: object) -> object:
        order.append("step")
        return execute(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(model.executor, "read", reading)
    monkeypatch.setattr(model.executor, "execute", executing)
    batcher = Batcher(model, max_sequences=4)
    try:
        reply = batcher.submit([3, 4], max_tokens=900, ignore_eos=True, temperature=0.0)
        next(reply)
        ids = [int(i) for i in RANDOM.integers(1, 300, 1000)]
        list(batcher.submit(ids, max_tokens=0, reading=Scores(ids)))
        reply.cancel()
        list(reply)
    finally:
        batcher.close()
    first = order.index("read")
    assert order[first : first + 8] == ["read", "step"] * 4 and order.count("read") >= 8


def test_a_cancelled_reading_ends(model: Model) -> None:
    batcher = Batcher(model, max_sequences=2)
    try:
        ids = [1] * 1000
        stream = batcher.submit(ids, max_tokens=0, reading=Scores(ids))
        stream.cancel()
        assert list(stream) == [] and stream.finish_reason == "cancelled"
    finally:
        batcher.close()
