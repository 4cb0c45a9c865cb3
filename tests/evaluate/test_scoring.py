"""Windows, scores and averages against plain references."""

import math
from pathlib import Path

import numpy as np
import pytest

from nanochat_tui.errors import UserError
from nanochat_tui.evaluate.held_out import Document, choose, open_held_out
from nanochat_tui.evaluate.scoring import Scored, Windows, score_documents, token_scores
from nanochat_tui.evaluate.summary import ratio, summarise, wilson

VOCAB = 11


class Bigram:
    """Logits that depend on the last token and on how many came before it, so that windows can be told apart."""

    def __init__(self) -> None:
        self.table = np.random.default_rng(0).normal(size=(VOCAB, VOCAB)).astype(np.float32)
        self.seen: list[int] = []

    def logits(self, ids: np.ndarray, /) -> np.ndarray:
        self.seen.append(len(ids))
        return self.table[ids] * (1 + np.arange(len(ids), dtype=np.float32)[:, None] / 8)

    def nats(self, before: np.ndarray, target: int) -> float:
        z = self.table[before[-1]].astype(float) * (1 + (len(before) - 1) / 8)
        return float(np.log(np.exp(z).sum()) - z[target])


def _document(count: int, crate: str = "a", seed: int = 1) -> Document:
    ids = np.random.default_rng(seed).integers(0, VOCAB, count)
    return Document(ids.astype(np.int64), 3 * count, crate, "src/lib.rs")


@pytest.mark.parametrize("count", [2, 7, 8, 9, 16, 17, 40])
@pytest.mark.parametrize("stride", [8, 3, 1])
def test_each_target_is_scored_once_with_the_context_its_window_gives(count: int, stride: int) -> None:
    model, document = Bigram(), _document(count)
    (scored,) = score_documents(model, [document], Windows(8, stride))
    for target in range(1, count):
        # the first window, of those that begin at multiples of the stride, whose inputs reach the token before
        start = next(s for s in range(0, count, stride) if target <= s + 8)
        expected = model.nats(document.ids[start:target], int(document.ids[target]))
        assert scored.nats[target - 1] == pytest.approx(expected, rel=1e-5)
    assert max(model.seen) <= 8


def test_token_scores_survive_large_logits() -> None:
    logits = np.array([[1000.0, 0.0, -1000.0], [0.0, 0.0, 0.0]], np.float32)
    nats, hits = token_scores(logits, np.array([1, 2]))
    assert nats == pytest.approx([1000.0, math.log(3)])
    assert hits.tolist() == [False, False]


def test_a_stride_outside_the_window_is_refused() -> None:
    with pytest.raises(UserError, match="stride of 1 to 8"):
        Windows(8, 9)


def test_summary_adds_up_by_crate_and_over_all() -> None:
    rng = np.random.default_rng(4)
    scored = [
        Scored(document, rng.uniform(0, 5, 19), rng.random(19) < 0.4)
        for document in (_document(20, crate, seed) for seed, crate in enumerate("aabcdd"))
    ]
    whitespace = np.zeros(VOCAB, bool)
    whitespace[[1, 2]] = True
    found = summarise(scored, "w", whitespace)
    nats = np.concatenate([one.nats for one in scored])
    hits = np.concatenate([one.hits for one in scored])
    targets = np.concatenate([one.targets for one in scored])
    assert found.nats.value == pytest.approx(nats.mean())
    assert found.perplexity == pytest.approx(math.exp(nats.mean()))
    assert found.bits_per_byte.value == pytest.approx(nats.sum() / math.log(2) / (6 * 60))
    assert found.accuracy.value == pytest.approx(hits.mean())
    assert found.accuracy_no_whitespace.value == pytest.approx(hits[~np.isin(targets, [1, 2])].mean())
    assert [(row.crate, row.documents) for row in found.crates] == [("a", 2), ("b", 1), ("c", 1), ("d", 2)]
    assert found.to_json()["crates"][0]["bytes"] == 120


def test_the_error_of_a_ratio_is_what_resampling_gives() -> None:
    rng = np.random.default_rng(0)
    bottom = rng.integers(50, 400, 60).astype(float)
    top = bottom * rng.normal(1.2, 0.2, 60)
    figure = ratio(top, bottom)
    draws = [rng.integers(0, 60, 60) for _ in range(4000)]
    spread = np.std([top[d].sum() / bottom[d].sum() for d in draws])
    assert figure.error == pytest.approx(spread, rel=0.1)
    assert math.isnan(ratio([1.0], [2.0]).error)


def test_the_interval_of_a_rate() -> None:
    low, high = wilson(0, 121)
    assert low == 0
    assert high == pytest.approx(0.0308, abs=1e-3)
    low, high = wilson(50, 100)
    assert (low, high) == (pytest.approx(0.404, abs=1e-3), pytest.approx(0.596, abs=1e-3))


def test_documents_are_chosen_evenly() -> None:
    documents = [_document(100, seed=n) for n in range(50)]
    chosen = choose(documents, 1000)
    places = [n for n, document in enumerate(documents) if any(document is other for other in chosen)]
    assert 9 <= len(places) <= 11
    assert max(np.diff(places)) <= 6
    assert choose(documents, None) == documents


def test_a_folder_without_data_is_refused_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a folder"):
        open_held_out(tmp_path / "none")
    with pytest.raises(UserError, match=r"no dataset\.json"):
        open_held_out(tmp_path)
    (tmp_path / "dataset.json").write_text('{"dtype": "u16", "vocab_size": 9}', encoding="utf-8")
    with pytest.raises(UserError, match="prepare the data again"):
        open_held_out(tmp_path)
