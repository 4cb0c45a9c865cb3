"""Matrices in their files' own blocks: rows and products against the gguf package, on every instruction set."""

from __future__ import annotations

import numpy as np
import pytest
from gguf import GGMLQuantizationType, quants
from kernel_support import EVERY_NAME, kernels_for
from test_kernels import floats_of, multiply

from nanochat_tui.engine.layout import kinds
from nanochat_tui.engine.layout import slots as s
from nanochat_tui.engine.layout.memory import aligned
from nanochat_tui.engine.weights import pack_blocks as packing_tables
from nanochat_tui.engine.weights.pack import Packed, pack_dense, pack_ternary
from nanochat_tui.engine.weights.pack_blocks import KIND_OF_TYPE, pack_blocks
from nanochat_tui.formats.tensor_types import TENSOR_TYPES

F32 = np.float32
NESTED = frozenset({kinds.Q4_K, kinds.Q5_K, kinds.Q6_K, kinds.BF16})
PLAIN = frozenset({kinds.Q8, kinds.Q4_0, kinds.Q4_1, kinds.Q5_1, kinds.F16, kinds.F32})
HALVES = {"Q4_1": (0, 2), "Q5_1": (0, 2), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}
"""Where a block's float16 numbers begin, if not at 0 alone."""


def some_of(kind: int) -> frozenset[int]:
    return NESTED if kind in NESTED else PLAIN


def random_blocks(
    name: str, rows: int, columns: int, scale: float | None = None, fill: int | None = None
) -> np.ndarray:
    """Return blocks of random bytes with float16 numbers of a sane size, or all equal to `scale`."""
    kind, rng = TENSOR_TYPES[name], np.random.default_rng(rows + columns)
    count = rows * columns // kind.block_elements
    blocks = rng.integers(0, 256, (count, kind.block_bytes)).astype(np.uint8)
    if fill is not None:
        blocks[:] = fill
    if name == "Q8_0":  # no quantiser writes -128
        blocks[:, 2:][blocks[:, 2:] == 128] = 127
    for at in HALVES.get(name, (0,)):
        halves = rng.uniform(0.001, 0.1, count) if scale is None else np.full(count, scale)
        blocks[:, at : at + 2] = halves.astype("<f2").view(np.uint8).reshape(count, 2)
    return blocks


def values_of(name: str, blocks: np.ndarray, columns: int) -> np.ndarray:
    """Return what the gguf package reads."""
    return quants.dequantize(blocks, GGMLQuantizationType[name]).reshape(-1, columns)


def row(k, kind: int, packed: Packed, number: int, padded: int = 0) -> np.ndarray:
    matrix = np.zeros(s.MATRIX_SLOTS, np.int64)
    matrix[s.MATRIX_KIND], matrix[s.MATRIX_COLUMNS], matrix[s.MATRIX_PADDED] = (
        kind,
        packed.columns,
        padded or packed.columns,
    )
    matrix[s.MATRIX_WEIGHTS], matrix[s.MATRIX_SCALES] = packed.weights.ctypes.data, packed.scales.ctypes.data
    out = aligned(packed.columns, F32, np.nan)
    k.matrix_row(matrix, number, out)
    return out


@pytest.mark.parametrize("type_name", KIND_OF_TYPE)
@pytest.mark.parametrize("name", EVERY_NAME)
def test_rows_are_those_of_the_file(name: str, type_name: str) -> None:
    kind = KIND_OF_TYPE[type_name]
    k = kernels_for(name, some=some_of(kind))
    blocks = random_blocks(type_name, 21, 512)
    packed, wanted = (
        pack_blocks(type_name, blocks, 512, bias=k.isa.q8_bias, multiple=64),
        values_of(type_name, blocks, 512),
    )
    assert packed.rows == 21
    assert packed.weights.shape[0] == 4
    for number in (0, 1, 15, 16, 20):
        np.testing.assert_array_equal(row(k, kind, packed, number), wanted[number])


@pytest.mark.parametrize("fill", [None, 0xFF, 0x00, 0x7F])
@pytest.mark.parametrize("type_name", KIND_OF_TYPE)
@pytest.mark.parametrize("name", EVERY_NAME)
def test_integers_are_exact(name: str, type_name: str, fill: int | None) -> None:
    """With scales of one and 256 columns a result is one integer, rounded once."""
    kind = KIND_OF_TYPE[type_name]
    k = kernels_for(name, some=some_of(kind))
    blocks = random_blocks(type_name, 35, 256, scale=1.0, fill=fill)
    packed = pack_blocks(type_name, blocks, 256, bias=k.isa.q8_bias)
    wide = values_of(type_name, blocks, 256).astype(np.int64)
    rng = np.random.default_rng(3)
    for x in (rng.integers(-127, 128, (21, 256)), rng.choice([-127, 127], (2, 256)), np.full((1, 256), -127)):
        exact = x.astype(np.int64) @ wide.T
        if kinds.LAYOUTS[kind].minimum:
            # two integers, codes and minima, are rounded before they meet
            np.testing.assert_allclose(
                multiply(k, kind, packed, x.astype(np.int8), np.ones(len(x), F32)), exact, rtol=1e-5, atol=16
            )
        else:
            found = multiply(k, kind, packed, x.astype(np.int8), np.ones(len(x), F32))
            np.testing.assert_array_equal(found, exact.astype(F32))


@pytest.mark.parametrize("type_name", KIND_OF_TYPE)
def test_every_instruction_set_and_tile_gives_the_same_floats(type_name: str) -> None:
    kind, rng = KIND_OF_TYPE[type_name], np.random.default_rng(5)
    rows, columns, tokens = 83, 768, 18
    blocks = random_blocks(type_name, rows, columns)
    x = rng.integers(-127, 128, (tokens, columns)).astype(np.int8)
    a = rng.uniform(0.001, 0.1, (tokens, columns // kinds.scale_columns(kind))).astype(F32)
    wanted = floats_of(x, a) @ values_of(type_name, blocks, columns).astype(np.float64).T
    results = []
    for name in EVERY_NAME:
        k = kernels_for(name, some=some_of(kind))
        packed = pack_blocks(type_name, blocks, columns, bias=k.isa.q8_bias)
        for tile in (t for t in kinds.TILES if t <= k.isa.tile):
            results.append(multiply(k, kind, packed, x, a, tile=tile))
        part = multiply(k, kind, packed, x, a, half=(2, 4))
        np.testing.assert_array_equal(part[:, 32:64], results[0][:, 32:64])
    spread = np.abs(wanted).max()
    np.testing.assert_allclose(results[0], wanted, rtol=1e-4, atol=1e-5 * spread)
    for other in results[1:]:
        np.testing.assert_array_equal(results[0].view(np.int32), other.view(np.int32))


@pytest.mark.parametrize("kind", sorted(kinds.DENSE))
@pytest.mark.parametrize("name", EVERY_NAME)
def test_float_matrices(name: str, kind: int) -> None:
    k, rng = kernels_for(name, some=some_of(kind)), np.random.default_rng(2)
    values = rng.normal(size=(37, 96)).astype(F32)
    if kind == kinds.BF16:
        values = (values.view(np.uint32) & 0xFFFF0000).view(F32)
        stored = (values.view(np.uint32) >> 16).astype(np.uint16)
    else:
        stored = values = values.astype({kinds.F16: np.float16, kinds.F32: F32}[kind])
    packed = pack_dense(stored, 16)
    for number in (0, 20, 36):
        np.testing.assert_array_equal(row(k, kind, packed, number), values[number].astype(F32))
    x = rng.integers(-127, 128, (11, 96)).astype(np.int8)
    a = rng.uniform(0.001, 0.1, 11).astype(F32)
    together = multiply(k, kind, packed, x, a)
    np.testing.assert_allclose(
        together, (x * a[:, None]).astype(np.float64) @ values.astype(np.float64).T, rtol=1e-4, atol=1e-4
    )
    for i in range(11):
        np.testing.assert_array_equal(multiply(k, kind, packed, x[i : i + 1], a[i : i + 1])[0], together[i])


@pytest.mark.parametrize("kind", sorted(kinds.TERNARY_NAMES))
@pytest.mark.parametrize("name", EVERY_NAME)
def test_ternary_rows_and_scales_per_row(name: str, kind: int) -> None:
    by_row = kind == kinds.TERNARY_ROW
    k, rng = kernels_for(name), np.random.default_rng(7)
    codes = rng.integers(0, 4, (37, 384)).astype(np.uint8)
    scales = rng.uniform(0.01, 0.2, (37, 3)).astype(np.float16)
    packed = pack_ternary(codes, scales, 128)
    values = (codes.astype(F32) - 1) * np.repeat(scales.astype(F32), 128, axis=1)
    if by_row:
        row_scales = aligned(48, F32, 0)
        row_scales[:37] = rng.uniform(0.01, 0.2, 37)
        packed = Packed(packed.weights, row_scales, 37, 384)  # type: ignore[arg-type]
        values = (codes.astype(F32) - 1) * row_scales[:37, None]
    for number in (0, 17, 36):
        np.testing.assert_array_equal(row(k, kind, packed, number), values[number])
    x = rng.integers(-127, 128, (19, 384)).astype(np.int8)
    a = rng.uniform(0.001, 0.1, (19, 1 if kind in kinds.PER_TOKEN else 12)).astype(F32)
    together = multiply(k, kind, packed, x, a)
    np.testing.assert_allclose(together, floats_of(x, a) @ values.astype(np.float64).T, rtol=1e-4, atol=1e-3)
    if by_row:
        integers = (x.astype(np.int64) @ (codes.astype(np.int64) - 1).T).astype(F32)
        np.testing.assert_array_equal(together, integers * row_scales[:37] * a)
    for tile in (t for t in kinds.TILES if t <= k.isa.tile):
        np.testing.assert_array_equal(multiply(k, kind, packed, x, a, tile=tile), together)


@pytest.mark.parametrize("scale", [np.inf, -np.inf, np.nan, 65504.0, -65504.0, -0.0])
def test_a_scale_that_is_not_finite_is_an_error(scale: float) -> None:
    blocks = random_blocks("Q6_K", 16, 256)
    blocks[3, 208:] = np.array([scale], "<f2").view(np.uint8)
    if np.isfinite(scale):
        assert scale in pack_blocks("Q6_K", blocks, 256, bias=0).scales
        return
    with pytest.raises(ValueError, match="not finite"):
        pack_blocks("Q6_K", blocks, 256, bias=0)


def test_what_was_read_of_a_table_is_told_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the file's pages can be given back on the way."""
    monkeypatch.setattr(packing_tables, "CHUNK_BYTES", 16 * 34 * 2)
    blocks, told = random_blocks("Q8_0", 40, 32), list[int]()
    pack_blocks("Q8_0", blocks, 32, bias=0, after=told.append)
    assert told == [32 * 34, 16 * 34]  # rows are filled up to 16
