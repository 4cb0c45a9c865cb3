"""Tensor types against the written-out blocks of their definitions and against the gguf package."""

import ast
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import quants
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import nanochat_tui
from nanochat_tui.formats.errors import FormatError
from nanochat_tui.formats.tensor_types import (
    FILE_TYPES,
    TENSOR_TYPES,
    TensorType,
    claimed_type,
    encode_ternary,
    encode_ternary_matrix,
    ternary_codes,
    ternary_matrix,
)
from nanochat_tui.formats.ternary_blocks import split_i2_s

TERNARY = ["TQ1_0", "TQ2_0", "Q2_0", "Q2_0_g128", "PQ2_0"]
SHARED = [
    name
    for name in TENSOR_TYPES
    if name in gguf.GGMLQuantizationType.__members__ and name != "Q1_0"  # the package knows its size only
]


def one_block(name: str, text: str) -> np.ndarray:
    block = np.frombuffer(bytes.fromhex(text), np.uint8).reshape(1, -1)
    assert block.shape[1] == TENSOR_TYPES[name].block_bytes
    return block


def non_zeros(values: np.ndarray) -> dict[int, float]:
    return {int(i): float(values[0, i]) for i in np.flatnonzero(values[0])}


Q2_TAIL = {0: -0.25, 2: 0.25, 3: -0.25, 4: 0.5, 5: -0.25, 7: 0.25}


@pytest.mark.parametrize(
    ("name", "block", "expected"),
    [
        (
            "TQ1_0",
            "CD" + "80" * 31 + "40" + "80" * 15 + "BB" + "7F" * 3 + "0038",
            {
                0: 0.5, 64: -0.5, 128: 0.5, 160: -0.5, 176: 0.5, 192: -0.5, 208: 0.5, 224: -0.5, 240: 0.5,
                244: -0.5, 252: 0.5,
            },
        ),
        ("TQ2_0", "92" + "55" * 31 + "46" + "55" * 31 + "0038", {0: 0.5, 32: -0.5, 96: 0.5, 128: 0.5, 192: -0.5}),
        ("Q2_0", "0034 24 93" + "55" * 13 + "15", Q2_TAIL | {63: -0.25}),
        ("Q2_0_g128", "0034 24 93" + "55" * 29 + "15", Q2_TAIL | {127: -0.25}),
        ("PQ2_0", "0034 24 93" + "55" * 29 + "15", Q2_TAIL | {127: -0.25}),
        ("Q8_0", "0038 01 FF 7F 80" + "00" * 28, {0: 0.5, 1: -0.5, 2: 63.5, 3: -64.0}),
        ("F32", "0000C0BF", {0: -1.5}),
        ("F16", "0038", {0: 0.5}),
        ("BF16", "C0BF", {0: -1.5}),
    ],
)  # fmt: skip
def test_written_out_blocks(name: str, block: str, expected: dict[int, float]) -> None:
    assert non_zeros(TENSOR_TYPES[name].decode(one_block(name, block))) == expected


@pytest.mark.parametrize(
    ("byte", "trits"),
    [
        (0x80, [0, 0, 0, 0, 0]), (0x00, [-1] * 5), (0xFF, [1] * 5), (0xCD, [1, 0, -1, 0, 1]),
        (0x40, [-1, 1, -1, 1, -1]), (0xAB, [1, -1, -1, -1, -1]), (0x03, [-1, -1, -1, -1, 1]),
    ],
)  # fmt: skip
def test_base_three_bytes(byte: int, trits: list[int]) -> None:
    block = np.zeros((1, 54), np.uint8)
    block[0, 7] = byte
    codes, _ = ternary_codes(TENSOR_TYPES["TQ1_0"], block)
    assert (codes[0, 7:160:32].astype(int) - 1).tolist() == trits


@pytest.mark.parametrize(
    ("byte", "trits"), [(0x7F, [0, 0, 0, 0]), (0xFD, [1, 1, 1, 1]), (0xBB, [1, -1, 0, 1])]
)  # fmt: skip
def test_bytes_of_four_trits(byte: int, trits: list[int]) -> None:
    for name, place, first, stride in (("TQ1_0", 48, 240, 4), ("PTQ1_0", 24, 120, 2)):
        kind = TENSOR_TYPES[name]
        block = np.zeros((1, kind.block_bytes), np.uint8)
        block[0, place] = byte
        codes, _ = ternary_codes(kind, block)
        assert (codes[0, first::stride].astype(int) - 1).tolist() == trits
        encoded = encode_ternary(kind, codes, np.zeros(1, np.float16))
        assert encoded[0, place] == byte


@pytest.mark.parametrize("name", SHARED)
def test_sizes_and_values_agree_with_the_gguf_package(name: str) -> None:
    kind = TENSOR_TYPES[name]
    theirs = gguf.GGMLQuantizationType[name]
    assert theirs == kind.id
    assert gguf.constants.GGML_QUANT_SIZES[theirs] == (kind.block_elements, kind.block_bytes)
    blocks = np.random.default_rng(kind.id).integers(0, 256, (64, kind.block_bytes), dtype=np.uint8)
    if kind.block_elements == 1 and name != "BF16":
        expected = blocks.view({"F32": "f4", "F16": "f2", "F64": "f8"}.get(name, name.lower().replace("i", "int")))
        with np.errstate(over="ignore"):
            expected = expected.astype(np.float32)
    else:
        with np.errstate(all="ignore"):  # random scales overflow
            expected = quants.dequantize(blocks, theirs)
    with np.errstate(all="ignore"):
        found = kind.decode(blocks)
    assert found.dtype == np.float32
    assert found.shape == (64, kind.block_elements)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("name", ["TQ1_0", "TQ2_0", "BF16", "F16"])
def test_encoders_agree_with_the_gguf_package(name: str) -> None:
    kind = TENSOR_TYPES[name]
    rng = np.random.default_rng(1)
    if kind.is_ternary:  # values that the type holds exactly; off them the packages may round differently
        scales = rng.uniform(0.01, 2, (50, 1)).astype(np.float16).astype(np.float32)
        values = rng.integers(-1, 2, (50, kind.block_elements)).astype(np.float32) * scales
    else:
        values = rng.standard_normal((5000, 1)).astype(np.float32)
    expected = quants.quantize(values, gguf.GGMLQuantizationType[name])
    np.testing.assert_array_equal(kind.encode(values), np.ascontiguousarray(expected).view(np.uint8))


def test_q8_0_is_defined_by_the_stored_scale() -> None:
    kind = TENSOR_TYPES["Q8_0"]
    values = np.random.default_rng(2).standard_normal((400, 32)).astype(np.float32)
    values[0] = 0
    values[1] = np.linspace(-1, 1, 32) * 1e-7  # the scale is below the smallest float16: everything becomes zero
    blocks = kind.encode(values)
    scale = np.float32(np.float16(np.float32(np.abs(values[7]).max()) / np.float32(127)))
    quants_7 = np.clip(np.rint(values[7] / scale), -127, 127)
    np.testing.assert_array_equal(kind.decode(blocks)[7], quants_7.astype(np.float32) * scale)
    assert not kind.decode(blocks)[:2].any()
    # within half a step, and a little more where the rounded scale cannot reach the largest value
    step = blocks[:, :2].copy().view(np.float16).astype(np.float32)
    assert (np.abs(kind.decode(blocks) - values) <= step * 0.51 + 127 * step * 2**-11 + 1e-7).all()
    np.testing.assert_array_equal(kind.encode(kind.decode(blocks))[2:], blocks[2:])


@settings(max_examples=40)
@given(name=st.sampled_from(TERNARY), data=st.data())
def test_codes_and_scales_survive_exactly(name: str, data: st.DataObject) -> None:
    kind = TENSOR_TYPES[name]
    n = data.draw(st.integers(0, 3))
    codes = data.draw(
        hnp.arrays(np.uint8, (n, kind.block_elements), elements=st.integers(0, kind.max_code), fill=st.nothing())
    )
    scales = data.draw(hnp.arrays(np.uint16, n)).view(np.float16)  # every bit pattern, NaN too
    blocks = encode_ternary(kind, codes, scales)
    assert blocks.shape == (n, kind.block_bytes)
    found, found_scales = ternary_codes(kind, blocks)
    np.testing.assert_array_equal(found, codes)
    assert found_scales.tobytes() == scales.tobytes()


@given(name=st.sampled_from(TERNARY), data=st.data())
def test_decoding_is_codes_times_scale(name: str, data: st.DataObject) -> None:
    kind = TENSOR_TYPES[name]
    blocks = data.draw(hnp.arrays(np.uint8, (2, kind.block_bytes)))
    codes, scales = ternary_codes(kind, blocks)
    with np.errstate(all="ignore"):
        expected = (codes.astype(np.float32) - 1) * scales.astype(np.float32)[:, None]
        np.testing.assert_array_equal(kind.decode(blocks), expected)


@given(hnp.arrays(np.float32, (5, 1), elements=st.floats(width=32, allow_nan=True, allow_infinity=True)))
def test_bf16_is_the_nearest_value(values: np.ndarray) -> None:
    kind = TENSOR_TYPES["BF16"]
    found = kind.decode(kind.encode(values))
    finite = np.isfinite(values) & (np.abs(values) < 3.3e38)
    np.testing.assert_array_equal(np.isnan(found), np.isnan(values))
    assert (np.abs(found[finite] - values[finite]) <= np.abs(values[finite]) * 2.0**-8 + 1e-40).all()
    np.testing.assert_array_equal(kind.decode(kind.encode(found)), found)


@pytest.mark.parametrize("name", ["Q8_0", *TERNARY])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_quantised_types_refuse_what_is_not_finite(name: str, bad: float) -> None:
    kind = TENSOR_TYPES[name]
    values = np.ones((2, kind.block_elements), np.float32)
    values[1, 3] = bad
    with pytest.raises(FormatError, match="NaN or infinite"):
        kind.encode(values)


def test_values_beyond_float16_are_refused() -> None:
    for name, value in (("F16", 70_000), ("Q8_0", 1e7), ("PQ2_0", 70_000)):
        kind = TENSOR_TYPES[name]
        with pytest.raises(FormatError):
            kind.encode(np.full((1, kind.block_elements), value, np.float32))


@pytest.mark.parametrize(("name", "repeat"), [("Q2_0", 2), ("PQ2_0", 1), ("Q2_0_g128", 1)])
def test_a_group_128_matrix_is_held_exactly(name: str, repeat: int) -> None:
    rng = np.random.default_rng(3)
    trits = rng.integers(-1, 2, (5, 384)).astype(np.int8)
    scales = rng.uniform(0.01, 1, (5, 3)).astype(np.float16)
    kind = TENSOR_TYPES[name]
    blocks = encode_ternary_matrix(kind, trits, scales)
    found, found_scales = ternary_matrix(kind, blocks, (5, 384))
    np.testing.assert_array_equal(found, trits)
    np.testing.assert_array_equal(found_scales, np.repeat(scales, repeat, axis=1))
    np.testing.assert_array_equal(
        kind.decode(blocks).reshape(5, 384), trits * np.repeat(scales.astype(np.float32), 128, axis=1)
    )


def test_larger_blocks_take_groups_that_agree_only() -> None:
    trits = np.ones((2, 512), np.int8)
    scales = np.repeat(np.array([[0.5, 0.25], [1, 2]], np.float16), 2, axis=1)
    found, found_scales = ternary_matrix(
        TENSOR_TYPES["TQ2_0"], encode_ternary_matrix(TENSOR_TYPES["TQ2_0"], trits, scales), (2, 512)
    )
    assert (found == 1).all()
    assert found_scales.tolist() == [[0.5, 0.25], [1, 2]]
    scales[1, 1] = 3
    with pytest.raises(FormatError, match="one scale per 256"):
        encode_ternary_matrix(TENSOR_TYPES["TQ2_0"], trits, scales)


def test_wrong_codes_shapes_and_types_are_refused_by_name() -> None:
    tq1, pq2 = TENSOR_TYPES["TQ1_0"], TENSOR_TYPES["PQ2_0"]
    one = np.ones(1, np.float16)
    with pytest.raises(FormatError, match="TQ1_0 holds codes 0 to 2"):
        encode_ternary(tq1, np.full((1, 256), 3, np.uint8), one)
    with pytest.raises(FormatError, match="shape"):
        encode_ternary(pq2, np.zeros((1, 64), np.uint8), one)
    with pytest.raises(FormatError, match="float16"):
        encode_ternary(pq2, np.zeros((1, 128), np.uint8), np.ones(1, np.float32))  # type: ignore[arg-type]
    with pytest.raises(FormatError, match="F32 is not ternary"):
        ternary_codes(TENSOR_TYPES["F32"], np.zeros((1, 4), np.uint8))
    with pytest.raises(FormatError, match="shape"):
        pq2.decode(np.zeros((1, 33), np.uint8))
    with pytest.raises(FormatError, match="bytes"):
        pq2.decode(np.zeros((1, 34), np.int8))  # type: ignore[arg-type]
    with pytest.raises(FormatError, match="Q6_K"):
        TENSOR_TYPES["Q6_K"].encode(np.zeros((1, 256), np.float32))
    with pytest.raises(FormatError, match="−1 to 1"):
        encode_ternary_matrix(pq2, np.full((1, 128), 2, np.int8), np.ones((1, 1), np.float16))
    with pytest.raises(FormatError, match="do not divide"):
        encode_ternary_matrix(pq2, np.ones((1, 128), np.int8), np.ones((1, 3), np.float16))


@pytest.mark.parametrize(
    "kind", [kind for kind in TENSOR_TYPES.values() if kind.code_order], ids=lambda kind: kind.name
)
def test_code_order_says_how_two_bits_lie(kind: TensorType) -> None:
    blocks = np.random.default_rng(3).integers(0, 256, (7, kind.block_bytes), np.uint8)
    tail = np.zeros(kind.tail_bytes, np.uint8)
    codes = split_i2_s(blocks, tail)[0] if kind.has_tensor_scale else ternary_codes(kind, blocks)[0]
    packed = blocks[:, slice(*kind.codes_at)]
    assert packed.shape[1] * 4 == kind.block_elements
    if kind.code_order == "sequential":
        expected = np.stack([packed >> shift & 3 for shift in (0, 2, 4, 6)], axis=-1)
    else:
        shifts = (0, 2, 4, 6) if kind.code_order == "strided" else (6, 4, 2, 0)
        expected = np.stack([packed.reshape(7, -1, 32) >> shift & 3 for shift in shifts], axis=-2)
    expected = expected.reshape(7, -1)
    if kind.max_code < 3:
        expected[expected == 3] = 1
    assert np.array_equal(codes, expected)


def test_file_types_are_read_as_they_are_written_where_they_are_certain() -> None:
    certain = {name: claimed_type(number) for name, number in FILE_TYPES.items()}
    assert {name for name, claimed in certain.items() if claimed is None} == {"Q1_0", "I2_S", "Q2_0"}
    assert all(claimed in (None, name) for name, claimed in certain.items())
    assert set(FILE_TYPES) <= set(TENSOR_TYPES)


def test_nothing_outside_formats_asks_for_i2_s_by_name() -> None:
    package = Path(nanochat_tui.__file__).parent
    asking = [
        f"{path.relative_to(package)}:{node.lineno}"
        for path in package.rglob("*.py")
        if path.parts[len(package.parts)] != "formats"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Compare) and '"I2_S"' in ast.unparse(node).replace("'", '"')
    ]
    assert not asking, "the facts are fields of TensorType"
