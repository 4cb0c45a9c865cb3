"""`bench --quality`: figures that agree with their definitions, and a float path that is at no distance from itself."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from support import TINY, write_model
from support_architectures import write_architecture

from nanochat_tui.bench.quality import TEXT, compare, windows
from nanochat_tui.cli.app import dispatch
from nanochat_tui.engine.generate.model import load
from nanochat_tui.errors import UserError

WORDS = ["--quality", "--threads", "1", "--text-tokens", "100"]


def test_windows_leave_out_a_rest_that_tells_nothing() -> None:
    assert windows(list(range(70)), 32) == [list(range(32)), list(range(32, 64))]
    assert [len(part) for part in windows(list(range(90)), 32)] == [32, 32, 26]
    assert windows([1, 2, 3], 32) == [[1, 2, 3]]
    assert [len(part) for part in windows(list(range(20)), 8)] == [8, 8]


def test_the_figures_are_those_of_their_definitions() -> None:
    rng = np.random.default_rng(0)
    texts = [rng.integers(0, 50, n).tolist() for n in (130, 40)]
    exact = [rng.normal(size=(len(ids), 52)).astype(np.float32) for ids in texts]
    ours = [logits + rng.normal(0, 0.1, logits.shape).astype(np.float32) for logits in exact]
    for logits in (*exact, *ours):
        logits[:, 50:] = -np.inf  # rows that stand for no token
    found = compare(texts, ours, exact)
    p, q = (np.concatenate([logits[:, :50] for logits in some]).astype(np.float64) for some in (exact, ours))
    log_p, log_q = (x - np.log(np.exp(x).sum(-1, keepdims=True)) for x in (p, q))
    divergence = (np.exp(log_p) * (log_p - log_q)).sum(-1)
    assert found.tokens == 170
    assert found.divergence == pytest.approx(divergence.mean())
    assert found.worst == pytest.approx(np.quantile(divergence, 0.99))
    assert found.same_top == (p.argmax(-1) == q.argmax(-1)).mean()
    assert found.relative_rms == pytest.approx(np.sqrt(np.mean((p - q) ** 2)) / p.std())
    following = np.concatenate([np.append(ids[1:], -1) for ids in texts])
    told = np.flatnonzero(following >= 0)
    for loss, logs in ((found.float_loss, log_p), (found.loss, log_q)):
        assert loss == pytest.approx(-logs[told, following[told]].mean())


def test_a_model_is_compared_with_its_own_float_path(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_architecture(tmp_path / "m.gguf", "qwen3", kind="Q4_0")
    assert dispatch(["bench", str(path), *WORDS, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    exact, ours = load(path, threads=1, activations="float", kv="f32"), load(path, threads=1)
    ids = ours.encode(TEXT.read_text(encoding="utf-8"))[:100]
    wanted = compare([ids], [ours.logits(ids)], [exact.logits(ids)])
    assert found == {"schema": 1, **wanted.as_json()}
    assert 0 < found["relative_rms"] < 0.03
    assert 0 < found["divergence"] < 0.01
    assert found["tokens"] == 100


def test_float_activations_are_at_no_distance(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_model(tmp_path / "m.gguf", TINY)
    words = [str(path), *WORDS, "--activations", "float", "--kv", "f32"]
    assert dispatch(["bench", *words]) == 0
    said = capsys.readouterr().out
    assert "KL divergence" in said and "0.00% of their deviation" in said and "100.00%" in said


def test_a_text_of_ones_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, text = write_model(tmp_path / "m.gguf", TINY), tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog " * 3)
    dispatch(["bench", str(path), "--quality", "--threads", "1", "--text", str(text), "--json"])
    assert 16 <= json.loads(capsys.readouterr().out)["tokens"] < 140


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--text", "missing.txt", "--quality"], "There is no text missing.txt"),
        (["--text-tokens", "64"], "no place without --quality"),
        (["--quality", "--threads", "1,2"], "--threads is one number"),
    ],
)
def test_what_makes_no_sense_is_one_sentence(words: list[str], reason: str, tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.gguf", TINY)
    with pytest.raises(UserError, match=reason):
        dispatch(["bench", str(path), *words])


def test_texts_that_cannot_be_read_or_are_too_short(tmp_path: Path) -> None:
    path, text = write_model(tmp_path / "m.gguf", TINY), tmp_path / "text.txt"
    text.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="not a text in UTF-8"):
        dispatch(["bench", str(path), "--quality", "--text", str(text)])
    text.write_text("ab")
    with pytest.raises(UserError, match="too few to compare"):
        dispatch(["bench", str(path), "--quality", "--threads", "1", "--text", str(text)])
