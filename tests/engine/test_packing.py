"""Layouts: what was packed comes out again, straight from the codes."""

from __future__ import annotations

import numpy as np
import pytest

from nanochat_tui.engine.layout import memory
from nanochat_tui.engine.layout.memory import aligned, lasting
from nanochat_tui.engine.weights.pack import needs_small_groups, pack_dense, pack_q8, pack_ternary, q8_parts
from nanochat_tui.engine.weights.pack_words import words_and_scales, words_of_codes
from nanochat_tui.formats.tensor_types import TENSOR_TYPES, encode_ternary_matrix, ternary_codes


def unpack(weights: np.ndarray) -> np.ndarray:
    """uint32 [blocks, columns / 16, 16] -> codes [rows, columns], by the description in `pack`."""
    blocks, steps, _ = weights.shape
    out = np.zeros((blocks * 16, steps * 16), np.uint8)
    for block in range(blocks):
        for step in range(steps):
            for row in range(16):
                word = int(weights[block, step, row])
                for column in range(16):
                    byte, pair = column % 4, column // 4
                    out[block * 16 + row, step * 16 + column] = word >> (8 * byte + 2 * pair) & 3
    return out


@pytest.mark.parametrize("kind", ["Q2_0", "Q2_0_g128", "PQ2_0", "TQ1_0", "TQ2_0"])
@pytest.mark.parametrize("group", [64, 128])
def test_ternary_from_every_block_type(kind: str, group: int) -> None:
    rng = np.random.default_rng(1)
    tensor_type = TENSOR_TYPES[kind]
    block = max(group, tensor_type.block_elements)
    rows, columns = 21, 512
    trits = rng.integers(-1, 2, (rows, columns)).astype(np.int8)
    scales = rng.uniform(0.1, 2, (rows, columns // block)).astype(np.float16)
    codes, found = ternary_codes(tensor_type, encode_ternary_matrix(tensor_type, trits, scales))
    packed = pack_ternary(codes.reshape(rows, columns), found.reshape(rows, -1), group)
    whole = unpack(packed.weights)
    np.testing.assert_array_equal(whole[:rows].astype(int) - 1, trits)
    assert (whole[rows:] == 1).all()
    assert packed.scales.shape == (2, columns // group, 16)
    spread = packed.scales.transpose(0, 2, 1).reshape(32, -1)
    np.testing.assert_array_equal(spread[:rows], np.repeat(scales, block // group, axis=1))
    assert packed.weights.ctypes.data % 64 == 0


@pytest.mark.parametrize("kind", ["Q2_0", "Q2_0_g128", "PQ2_0", "PTQ1_0", "TQ1_0", "TQ2_0"])
@pytest.mark.parametrize("blocks", [1, 1283])
def test_words_are_those_of_the_codes(kind: str, blocks: int) -> None:
    """Any bytes whatever, also those that no encoder writes, and every byte everywhere in a block."""
    tensor_type = TENSOR_TYPES[kind]
    data = np.random.default_rng(blocks).integers(0, 256, (blocks, tensor_type.block_bytes)).astype(np.uint8)
    data[:256] = np.arange(256, dtype=np.uint8)[:blocks, None]
    data.flags.writeable = False  # as a file's pages are
    words, scales = words_and_scales(tensor_type, data)
    codes, wanted = ternary_codes(tensor_type, data)
    np.testing.assert_array_equal(words, words_of_codes(codes))
    assert words.dtype == np.uint32 and words.flags.c_contiguous
    np.testing.assert_array_equal(scales.view(np.uint16), wanted.view(np.uint16))
    np.testing.assert_array_equal(unpack(np.repeat(words[:3, :, None], 16, axis=2))[::16], codes[:3])
    other = np.asfortranarray(data)
    np.testing.assert_array_equal(words_and_scales(tensor_type, other)[0], words)


def test_pairs_of_small_blocks() -> None:
    same = np.repeat(np.array([[1, 2], [3, 4]], np.float16), 2, axis=1)
    assert not needs_small_groups(same, 64)
    assert needs_small_groups(same[:, :3], 64)
    assert not needs_small_groups(same[:, :3], 128)
    same[1, 3] = 9
    assert needs_small_groups(same, 64)


@pytest.mark.parametrize("bias", [0, 128])
def test_q8(bias: int) -> None:
    rng = np.random.default_rng(2)
    values = rng.normal(size=(70, 96)).astype(np.float32)
    blocks = TENSOR_TYPES["Q8_0"].encode(values.reshape(-1, 32))
    quants, scales = q8_parts(blocks, 96)
    np.testing.assert_array_equal(
        quants * np.repeat(scales.astype(np.float32), 32, axis=1),
        TENSOR_TYPES["Q8_0"].decode(blocks).reshape(70, 96),
    )
    packed = pack_q8(quants, scales, bias, 64)
    assert packed.weights.shape == (8, 24, 16)
    stored = packed.weights.transpose(0, 2, 1).copy().view(np.uint8).reshape(128, 96).astype(np.int16)
    stored = stored - bias if bias else stored.astype(np.uint8).view(np.int8).astype(np.int16)
    np.testing.assert_array_equal(stored[:70], quants)
    assert (stored[70:] == 0).all()
    np.testing.assert_array_equal(packed.scales.transpose(0, 2, 1).reshape(128, 3)[:70], scales)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_dense(dtype: type) -> None:
    values = np.random.default_rng(3).normal(size=(35, 64)).astype(dtype)
    packed = pack_dense(values, 16)
    np.testing.assert_array_equal(packed.weights.transpose(0, 2, 1).reshape(48, 64)[:35], values)


def test_aligned() -> None:
    for shape in (1, 7, (3, 5)):
        a = aligned(shape, np.float32, 2.0)
        assert a.ctypes.data % 64 == 0
        assert (a == 2).all()
        assert a.flags.c_contiguous


def test_lasting_arrays_lie_side_by_side_and_give_their_memory_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_piece", memory._Piece())
    monkeypatch.setattr(memory, "PIECE_BYTES", 1 << 12)
    first, second = lasting((100,), np.uint8), lasting((3, 5), np.float32)
    assert first.ctypes.data % memory.HUGE_PAGE == 0
    assert second.ctypes.data - first.ctypes.data == 128, "the next cache line"
    made = [first, second, *(lasting((n,), np.uint16) for n in (1, 700, 1500, 2047, 9000))]
    for number, array in enumerate(made):
        array[...] = number + 1
    assert [set(array.reshape(-1).tolist()) for array in made] == [{n + 1} for n in range(len(made))], "none overlap"
    assert made[-1].ctypes.data % memory.HUGE_PAGE == 0, "what is larger than a piece has its own"
    piece = memory._piece._raw
    assert piece is not None and piece() is not None
    del array, first, second, made
    assert piece() is None
