"""Rows of the table that stand for no token are never chosen, whatever their logits would be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support import tiny_tokenizer
from support_architectures import DIM, VOCAB, draft, finish

from nanochat_tui.engine.generate.model import load
from nanochat_tui.engine.generate.session import Session
from nanochat_tui.formats.gguf import TensorData, tensor_from_array
from nanochat_tui.formats.tensor_types import TENSOR_TYPES
from nanochat_tui.model.tokenizer import TextCodec

PADDED = VOCAB + 84
IDS = [3, 40, 7, 200]


@pytest.fixture(scope="module")
def padded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose padding would win every draw: its rows come in pairs of opposite sign, much longer than others."""
    d = draft("llama", tied=False, table="F16")
    rng = np.random.default_rng(4)
    for place, tensor in enumerate(d.tensors):
        if tensor.name in ("token_embd.weight", "output.weight"):
            rows = tensor.data.view(np.float16).reshape(VOCAB, DIM).astype(np.float32)
            strange = rng.normal(0.0, 3.0, ((PADDED - VOCAB) // 2, DIM)).astype(np.float32)
            whole = np.concatenate([rows, strange, -strange])
            found: TensorData = tensor_from_array(tensor.name, whole, TENSOR_TYPES["F16"])
            d.tensors[place] = found
    return finish(d, tmp_path_factory.mktemp("padded") / "m.gguf")


def test_padding_is_never_chosen(padded: Path) -> None:
    for threads in (1, 2, 3, 6, 8):
        model = load(padded, threads=threads)
        assert model.config.vocab_size == PADDED
        session = Session(model)
        for temperature in (0.0, 1.0, 3.0):
            drawn = [
                t.id for t in session.generate(IDS, max_tokens=12, temperature=temperature, top_k=0, top_p=1.0, seed=1)
            ]
            assert drawn and max(drawn) < VOCAB
        model.close()


def test_its_logits_are_minus_infinity(padded: Path) -> None:
    alone = load(padded, threads=1).logits(IDS)
    assert np.isneginf(alone[:, VOCAB:]).all() and np.isfinite(alone[:, :VOCAB]).all()
    for threads in (2, 6, 8):
        model = load(padded, threads=threads)
        np.testing.assert_array_equal(model.logits(IDS), alone, err_msg=f"{threads} threads")
        model.close()


def test_only_tokens_are_alternatives(padded: Path) -> None:
    model = load(padded, threads=1)
    logits = model.logits(IDS)[-1, :VOCAB].astype(np.float64)
    logprobs = logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())
    (token,) = Session(model).generate(IDS, max_tokens=1, temperature=0.0, top_logprobs=VOCAB + 50)
    assert sorted(id for id, _, _ in token.top) == list(range(VOCAB)), "each once, and nothing else"
    np.testing.assert_allclose([logprob for *_, logprob in token.top], np.sort(logprobs)[::-1], rtol=0, atol=1e-4)


def test_the_rows_would_have_won(padded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TextCodec, "named_rows", lambda self, rows: rows)
    model = load(padded, threads=1)
    first = next(Session(model).generate(IDS, max_tokens=1, temperature=0.0))
    assert first.id >= VOCAB


def test_named_rows_end_with_the_last_token() -> None:
    codec = TextCodec(tiny_tokenizer(VOCAB), None, None, False, unused=(VOCAB - 1, VOCAB - 2, 5))
    assert [codec.named_rows(rows) for rows in (VOCAB + 50, VOCAB, VOCAB - 10)] == [VOCAB - 2, VOCAB - 2, VOCAB - 10]
