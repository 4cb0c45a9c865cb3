"""The look inside, against the engine's own logits and the definition of the streams."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support import TINY, write_model

from nanochat_tui.chat.trace import Tracer
from nanochat_tui.engine.model import load
from nanochat_tui.errors import UserError

IDS = [5, 17, 40, 41, 99, 3]


@pytest.mark.parametrize("streams", [1, 2, 4])
def test_the_last_layer_says_what_the_engine_says(tmp_path: Path, streams: int) -> None:
    path = write_model(tmp_path / "m.gguf", TINY.with_(n_streams=streams))
    trace = Tracer(path).trace(IDS)
    logits = load(path, threads=1).logits(IDS)[-1].astype(np.float64)
    share = 1 / np.exp(logits - logits.max()).sum()
    assert trace.tops[-1] == int(logits.argmax())
    assert float(trace.shares[-1]) == pytest.approx(share, rel=0.15), "but for the engine's int8 rounding"
    layers = 2 * TINY.n_layers
    assert trace.norms.shape == (layers, streams)
    assert len(trace.tops) == layers
    assert 0 <= trace.depth <= trace.settled < layers
    assert all(trace.tops[i] == trace.tops[-1] for i in range(trace.settled, layers))
    if streams == 1:
        assert (trace.cosines == 1).all()
    else:
        assert (np.abs(trace.cosines) <= 1 + 1e-6).all()
        assert (trace.cosines < 0.9999).any(), "random records make the streams differ"


def test_other_files_and_lengths_are_refused(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.gguf")
    with pytest.raises(UserError, match="1 to 1024"):
        Tracer(path).trace([])
    with pytest.raises(UserError, match="1 to 1024"):
        Tracer(path).trace([1] * 2000)
