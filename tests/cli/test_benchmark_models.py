"""The synthetic models of the benchmarks are what their shapes say, in every type that they may have."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
from models import SHAPES, STATE, Shape, write_model

from nanochat_tui.engine.generate.model import load
from nanochat_tui.formats.gguf import read_gguf
from nanochat_tui.model.architectures import describe

SMALL = {"layers": 1, "vocab": 512, "dim": 256, "heads": 2, "kv_heads": 1, "head_dim": 128, "hidden": 512}


def small(name: str, **changes: object) -> Shape:
    """A shape's architecture and types at a size that takes no time; d20 is small already."""
    shape = SHAPES[name]
    if shape.architecture == "nanochat":
        return replace(shape, vocab=512)
    few = {"experts": 8, "used": 2} if shape.experts else {}
    if shape.key_heads:
        few = {"layers": 4, "head_dim": 256, "key_heads": 2, "value_heads": 4, "rotation": 256}
    return replace(shape, **SMALL | few, **changes)


@pytest.mark.parametrize("name", SHAPES)
def test_a_shape_is_a_sound_model(name: str, tmp_path: Path) -> None:
    shape = small(name)
    path = write_model(tmp_path / "m.gguf", shape)
    with read_gguf(path) as file:
        found = describe(file)
        expected = {part.name: part.shape for part in found.parts()}
        assert expected == {info.name: info.shape for info in file.tensors.values()}
        for info in file.tensors.values():
            values = file.array(info.name)
            assert np.isfinite(values).all()
            if values.ndim == 2:
                spread = float(values.std() * np.sqrt(values.shape[1]))
                assert 0.7 < spread < 1.5, (info.name, spread)


@pytest.mark.parametrize("kind", ["Q2_0", "Q2_0_g128", "PQ2_0", "PTQ1_0", "TQ1_0", "TQ2_0", "Q1_0", "I2_S"])
@pytest.mark.parametrize("table", ["Q8_0", "Q6_K", "Q4_K", "Q4_0", "F16"])
def test_any_types(kind: str, table: str, tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.gguf", small("bonsai-1.7b", ternary=kind, table=table, tied=False))
    with read_gguf(path) as file:
        kinds = {info.type.name for info in file.tensors.values()}
        assert kinds == {kind, table, "F32"}
        for name in ("output.weight", "blk.0.ffn_down.weight"):
            values = file.array(name)
            assert 0.7 < float(values.std() * np.sqrt(values.shape[1])) < 1.5


def test_the_published_sizes() -> None:
    """Weights of the shapes by counting, against what is known of the models."""
    for name, low, high in [
        ("bonsai-1.7b", 1.71e9, 1.73e9),
        ("bonsai-4b", 4.0e9, 4.1e9),
        ("bonsai-8b", 8.1e9, 8.3e9),
        ("maple", 20.1e9, 20.3e9),
    ]:
        s = SHAPES[name]
        q, kv = s.heads * s.head_dim, s.kv_heads * s.head_dim
        layer = s.dim * (2 * q + 2 * kv) + 3 * s.dim * s.hidden * max(1, s.experts)
        assert low < s.layers * layer + s.vocab * s.dim * (1 if s.tied else 2) < high


@pytest.mark.parametrize(("name", "gigabytes"), [("bonsai-2-2b", 0.43), ("bonsai-2-4b", 0.95)])
def test_the_published_hybrids(name: str, gigabytes: float, tmp_path: Path) -> None:
    """Bytes of all ternary weights at 1.75 bits, against the published sizes, and that the engine runs the shape."""
    s = SHAPES[name]
    q, kv, values = s.heads * s.head_dim, s.kv_heads * s.head_dim, s.value_heads * STATE
    attention = s.dim * (3 * q + 2 * kv)
    recurrence = s.dim * (2 * s.key_heads * STATE + 3 * values)
    full = sum(not s.recurrent(layer) for layer in range(s.layers))
    mixers = full * attention + (s.layers - full) * recurrence
    weights = mixers + s.layers * 3 * s.dim * s.hidden + s.vocab * s.dim
    assert weights * 1.75 / 8 / 1e9 == pytest.approx(gigabytes, rel=0.05)
    for width in (s.dim, q, values, s.hidden):
        assert width % s.rotation == 0
    logits = load(write_model(tmp_path / "m.gguf", small(name)), threads=1).logits([1, 2, 3])
    assert np.isfinite(logits).all() and 0.1 < logits.std() < 10


@pytest.mark.peer
@pytest.mark.parametrize("name", ["d20-llama", "2b4t", "bonsai-1.7b", "bonsai-8b", "maple"])
def test_llama_cpp_loads_them(name: str, tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    from nanochat_tui.bench.peer import PeerRunner

    shape = small(name)
    runner = PeerRunner(write_model(tmp_path / "m.gguf", shape), 1, 64)
    assert runner.kv_bytes == 2 * 2 * shape.layers * shape.kv_heads * shape.head_dim
    logits = runner.logits([3, 300, 5])
    assert logits.shape == (3, 512)
    assert 0.1 < float(logits.std()) < 10
