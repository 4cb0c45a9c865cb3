"""The look inside, against the engine's own logits and the definition of the streams."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support import TINY, write_model
from support_architectures import write_architecture

from nanochat_tui.chat import trace
from nanochat_tui.chat.trace import Tracer
from nanochat_tui.engine.generate.model import load
from nanochat_tui.errors import UserError
from nanochat_tui.tui.chat.inside import Inside, matrix_rows
from nanochat_tui.tui.chat.live_panel import WIDTH

IDS = [5, 17, 40, 41, 99, 3]


@pytest.mark.parametrize("streams", [1, 2, 4])
def test_the_last_layer_says_what_the_engine_says(tmp_path: Path, streams: int) -> None:
    path = write_model(tmp_path / "m.gguf", TINY.with_(n_streams=streams))
    traced = Tracer(path).trace(IDS)
    logits = load(path, threads=1).logits(IDS)[-1].astype(np.float64)
    share = 1 / np.exp(logits - logits.max()).sum()
    assert traced.tops[-1] == int(logits.argmax())
    assert float(traced.shares[-1]) == pytest.approx(share, rel=0.15), "but for the engine's int8 rounding"
    layers = 2 * TINY.n_layers
    assert traced.norms.shape == (layers, streams)
    assert len(traced.tops) == layers
    assert 0 <= traced.depth <= traced.settled < layers
    assert all(traced.tops[i] == traced.tops[-1] for i in range(traced.settled, layers))
    if streams == 1:
        assert (traced.cosines == 1).all()
    else:
        assert (np.abs(traced.cosines) <= 1 + 1e-6).all()
        assert (traced.cosines < 0.9999).any(), "random records make the streams differ"


def test_other_files_and_lengths_are_refused(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.gguf")
    with pytest.raises(UserError, match="1 to 1024"):
        Tracer(path).trace([])
    with pytest.raises(UserError, match="1 to 1024"):
        Tracer(path).trace([1] * 2000)


def test_other_architectures_and_large_models_are_told_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"for nanochat models alone; this one is qwen3, so there are none"):
        Tracer(write_architecture(tmp_path / "q.gguf", "qwen3"))
    monkeypatch.setattr(trace, "MOST_PARAMETERS", 1000)
    with pytest.raises(UserError, match=r"million parameters.*F3 shows its hyper-connections"):
        Tracer(write_model(tmp_path / "m.gguf"))


@pytest.mark.parametrize("streams", [2, 4])
def test_the_panel_shows_read_and_write_weights_and_alpha_for_any_streams(tmp_path: Path, streams: int) -> None:
    tracer = Tracer(write_model(tmp_path / "m.gguf", TINY.with_(n_streams=streams)))
    inside = Inside(tracer.matrices, tracer.trace(IDS), ("a",) * 4)
    rows = "\n".join(str(row) for row in matrix_rows(inside))
    assert tracer.matrices is not None
    for weights in (tracer.matrices.pre, tracer.matrices.post):
        for value in weights.reshape(-1):
            assert f"{value:.2f}".removeprefix("0") in rows or f"{value:.1f}" in rows
    assert "read" in rows
    assert "write" in rows
    alpha = rows.partition("alpha per record\n")[2].split()
    expected = [float(np.diagonal(h).mean()) for h in tracer.matrices.residual]
    assert [float(value) for value in alpha] == pytest.approx(expected, abs=0.051)
    assert max(len(row) for row in rows.splitlines()) <= WIDTH
