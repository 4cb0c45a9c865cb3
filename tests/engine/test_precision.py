"""Rounding activations costs no more than it must: several scales per token, except where a model was trained with one.

The measure is the engine itself with float activations, which `test_architectures` compares with references.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from kernel_support import EVERY_NAME, kernels_for
from references import common
from references.dense import dense
from support import TINY, write_model
from support_architectures import HIDDEN, VOCAB, draft, finish, write_architecture
from test_kernels import multiply
from test_tables import random_blocks, some_of, values_of

from nanochat_tui.engine.generate.model import Model, load
from nanochat_tui.engine.layout import kinds
from nanochat_tui.engine.layout import slots as s
from nanochat_tui.engine.layout.memory import aligned
from nanochat_tui.engine.weights.load import load_weights
from nanochat_tui.engine.weights.pack import pack_ternary
from nanochat_tui.engine.weights.pack_blocks import KIND_OF_TYPE, pack_blocks
from nanochat_tui.formats.gguf import read_gguf
from nanochat_tui.model.support import require_described

IDS = [int(i) for i in np.random.default_rng(5).integers(0, VOCAB, 48)]
OUTLIERS = {7: 50.0, 130: 500.0, HIDDEN - 1: 200.0}
"""Channels of the feed-forward product and how many times the rest they are, as in Qwen3's `ffn_down` inputs."""


SUPERBLOCKS = ("TQ2_0", "Q6_K")
"""Types whose inputs llama.cpp rounds with one scale per 256 columns."""


def relative(path: Path, model: Model) -> float:
    """Return the rms distance of a model's logits from its float path, in deviations."""
    exact = load(path, threads=1, activations="float", kv="f32")
    wanted = exact.logits(IDS).astype(np.float64)
    found = model.logits(IDS)
    exact.close()
    model.close()
    return float(np.sqrt(np.mean((found - wanted) ** 2)) / wanted.std())


@pytest.mark.parametrize(("kind", "table"), [("Q2_0", "Q2_0"), ("TQ2_0", "Q6_K"), ("Q4_0", "Q8_0"), ("PQ2_0", "PQ2_0")])
def test_outlier_channels_cost_their_own_block_only(
    kind: str, table: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No further from float than the reference forward pass with llama.cpp's blocks, and far nearer than one scale."""
    path = finish(draft("qwen3", kind=kind, table=table, outliers=OUTLIERS), tmp_path / "m.gguf")
    several = load(path, threads=1)
    one = load(path, threads=1)
    one.executor._tables.model[s.TOKEN_SCALES] = 1  # the same kernels with the same scale in every block
    fine, coarse = relative(path, several), relative(path, one)
    monkeypatch.setattr(common, "rounded", lambda x, name, **_: as_llama_cpp(x, 256 if name in SUPERBLOCKS else 32))
    with read_gguf(path) as file:
        exact, theirs = dense(file, IDS), dense(file, IDS, rounded=True)
    # which values fall on a border is chance, and each changes what follows
    assert fine < 1.1 * np.sqrt(np.mean((theirs - exact) ** 2)) / exact.std()
    assert coarse > 2.5 * fine


def as_llama_cpp(x: np.ndarray, block: int) -> np.ndarray:
    """Rows as llama.cpp rounds them: Q8_0 (32 columns, a float16 scale) or Q8_K (256 columns, a float32 scale)."""
    parts = x.reshape(len(x), -1, block).astype(np.float32)
    d = np.abs(parts).max(-1, keepdims=True) / np.float32(127)
    q = np.clip(np.rint(parts / d), -127, 127)
    return (q * (d.astype(np.float16) if block == 32 else d).astype(np.float64)).reshape(x.shape)


@pytest.mark.parametrize("outliers", [False, True])
@pytest.mark.parametrize(("kind", "block"), [("Q2_0", 32), ("Q4_0", 32), ("TQ2_0", 256), ("Q6_K", 256)])
def test_a_product_is_no_further_from_exact_than_with_llama_cpps_rounding(
    kind: str, block: int, outliers: bool
) -> None:
    """Its choice of blocks by type is that of llama-cpp-python 0.3.36; the integers are exact in both engines."""
    rng, columns, tokens = np.random.default_rng(2), 1024, 64
    x = rng.normal(size=(tokens, columns)).astype(np.float32)
    if outliers:
        x[:, [7, 300, 301, 800]] *= (50, 500, 200, 100)
    if kind.startswith("T") or kind == "Q2_0":
        number, group = kinds.TERNARY_FINE, 64 if kind == "Q2_0" else 128
        k = kernels_for(EVERY_NAME[0], group)
        codes = rng.integers(0, 3, (48, columns)).astype(np.uint8)
        scales = rng.uniform(0.01, 0.02, (48, columns // group)).astype(np.float16)
        packed = pack_ternary(codes, scales, group)
        weights = (codes.astype(np.float64) - 1) * np.repeat(scales.astype(np.float64), group, axis=1)
    else:
        number = KIND_OF_TYPE[kind]
        k = kernels_for(EVERY_NAME[0], some=some_of(number))
        blocks = random_blocks(kind, 48, columns)
        packed = pack_blocks(kind, blocks, columns, bias=k.isa.q8_bias)
        weights = values_of(kind, blocks, columns).astype(np.float64)
    matrix = np.zeros(s.MATRIX_SLOTS, np.int64)
    matrix[s.MATRIX_KIND], matrix[s.MATRIX_COLUMNS], matrix[s.MATRIX_PADDED] = number, columns, columns
    x8, sums, scale = (aligned(columns, kind, 0) for kind in (np.int8, np.int32, np.float32))
    rounded = []
    for row in x:
        k.quantise_for(matrix, row, 1, 0, x8, sums, scale, 0)
        unit = kinds.scale_columns(number)
        rounded.append((x8.copy(), scale[: columns // unit].copy()))
    q, a = (np.stack(parts) for parts in zip(*rounded, strict=True))
    ours = multiply(k, number, packed, q, a)
    exact = x.astype(np.float64) @ weights.T
    off = [np.sqrt(np.mean((y - exact) ** 2)) for y in (ours, as_llama_cpp(x, block) @ weights.T)]
    print(f"{kind}: ours {off[0]:.5f}, llama.cpp {off[1]:.5f}")
    assert 0 < off[0] <= off[1]


@pytest.mark.parametrize("name", ["bitnet", "bitnet-25", "bitnet-b1.58"])
def test_bitnet_keeps_one_scale_per_token_in_its_linears_and_has_several_in_its_head(name: str, tmp_path: Path) -> None:
    path = write_architecture(tmp_path / "m.gguf", name, kind="TQ2_0", table="TQ2_0")
    with read_gguf(path) as file:
        shape = require_described(file)
        weights = load_weights(file, shape, as_float=False, bias=128, mhc=None)
    assert shape.token_scales
    assert {matrix.kind for layer in weights.layers for matrix in layer.matrices} == {kinds.TERNARY}
    assert weights.head.kind == kinds.TERNARY_FINE


@pytest.mark.parametrize("name", ["llama", "qwen3", "qwen35", "maple"])
def test_other_architectures_have_several_except_for_a_scale_per_tensor(name: str, tmp_path: Path) -> None:
    for kind, wanted in (("TQ2_0", kinds.TERNARY_FINE), ("I2_S", kinds.TERNARY_ROW)):
        path = write_architecture(tmp_path / f"{kind}.gguf", name, kind=kind)
        with read_gguf(path) as file:
            shape = require_described(file)
            weights = load_weights(file, shape, as_float=False, bias=128, mhc=None)
        assert not shape.token_scales
        found = {matrix.kind for layer in weights.layers for matrix in layer.matrices}
        assert found - kinds.DENSE == {wanted}


def test_a_head_of_floats_reads_rounded_activations_only_where_that_was_trained(tmp_path: Path) -> None:
    ours = load(write_model(tmp_path / "n.gguf", TINY, embedding="F16"), threads=1)
    assert ours.executor._tables.model[s.ROUND_HEAD] == 1
    theirs = load(write_architecture(tmp_path / "m.gguf", "qwen3", table="F16"), threads=1)
    assert theirs.executor._tables.model[s.ROUND_HEAD] == 0
    ours.close()
    theirs.close()
