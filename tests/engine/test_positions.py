"""Scaled positions: linear, YaRN and frequency factors change every logit as the formulas and llama.cpp say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from references.dense import dense
from support_architectures import VOCAB, WIDTH, Draft, draft, finish

from nanochat_tui.engine.generate.model import load
from nanochat_tui.formats.gguf import f32, read_gguf, string, tensor_from_array, u32
from nanochat_tui.formats.tensor_types import TENSOR_TYPES

IDS = [int(i) for i in np.random.default_rng(7).integers(0, VOCAB, 60)]


def linear(d: Draft) -> None:
    d.keys |= {"rope.scaling.type": string("linear"), "rope.scaling.factor": f32(4.0)}


def yarn(d: Draft) -> None:
    """As Bonsai-8B has it, over a shorter original context, so that the blend falls into the head."""
    d.keys |= {
        "rope.scaling.type": string("yarn"),
        "rope.scaling.factor": f32(4.0),
        "rope.scaling.original_context_length": u32(32),
    }


def factors(d: Draft) -> None:
    values = np.linspace(1.0, 8.0, WIDTH // 2, dtype=np.float32)
    d.tensors.append(tensor_from_array("rope_freqs.weight", values, TENSOR_TYPES["F32"]))


SCALED: list[tuple[str, Callable[[Draft], None]]] = [
    ("llama", linear), ("llama", yarn), ("llama", factors), ("qwen3", yarn), ("bitnet", linear),
]  # fmt: skip
NAMES = [f"{name}-{change.__name__}" for name, change in SCALED]


def twin(name: str, change: Callable[[Draft], None] | None, path: Path) -> Path:
    d = draft(name, twin=True, table="F32")
    if change is not None:
        change(d)
    return finish(d, path)


def logits(path: Path) -> np.ndarray:
    return load(path, threads=1, activations="float", kv="f32").logits(IDS)


@pytest.mark.parametrize(("name", "change"), SCALED, ids=NAMES)
def test_scaled_positions_agree_with_the_formulas(name: str, change: Callable[[Draft], None], tmp_path: Path) -> None:
    path = twin(name, change, tmp_path / "m.gguf")
    with read_gguf(path) as file:
        wanted = dense(file, IDS)
    with read_gguf(twin(name, None, tmp_path / "plain.gguf")) as file:
        assert np.abs(dense(file, IDS) - wanted).max() > 0.1  # it is felt
    np.testing.assert_allclose(logits(path), wanted, atol=1e-3)


@pytest.mark.peer
@pytest.mark.slow
@pytest.mark.parametrize(("name", "change"), [c for c in SCALED if c[0] != "bitnet"])
def test_scaled_positions_agree_with_llama_cpp(name: str, change: Callable[[Draft], None], tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    from nanochat_tui.bench.peer import PeerRunner

    path = twin(name, change, tmp_path / "m.gguf")
    wanted = PeerRunner(path, 1, 64, exact=True).logits(IDS)
    np.testing.assert_allclose(logits(path), wanted, atol=1e-3)


@pytest.mark.peer
@pytest.mark.slow
def test_a_factor_without_a_type_is_llama_cpps(tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    from nanochat_tui.bench.peer import PeerRunner

    d = draft("llama", twin=True, table="F32")
    d.keys["rope.scaling.factor"] = f32(4.0)
    path = finish(d, tmp_path / "m.gguf")
    np.testing.assert_allclose(logits(path), PeerRunner(path, 1, 64, exact=True).logits(IDS), atol=1e-3)
