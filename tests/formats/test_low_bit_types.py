"""The types of other programs' low-bit files: written-out blocks, exact storage, and ids with several meanings."""

import json
from dataclasses import replace
from itertools import product
from pathlib import Path

import gguf_samples as samples
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from support import TINY, write_model

from nanochat_tui.engine.generate.model import load
from nanochat_tui.errors import UserError
from nanochat_tui.formats.errors import FormatError
from nanochat_tui.formats.gguf import GGUFFile, TensorData, read_gguf, string, tensor_from_array, write_gguf
from nanochat_tui.formats.gguf.layout import RawInfo, resolve
from nanochat_tui.formats.tensor_types import (
    TENSOR_TYPES,
    encode_ternary,
    encode_ternary_matrix,
    ternary_codes,
    type_by_id,
)
from nanochat_tui.formats.ternary_blocks import join_i2_s, split_i2_s
from nanochat_tui.inspection.summary import inspect_file
from nanochat_tui.inspection.ternary_stats import ternary_statistics

HALF = np.float32(0.5)


def decoded(name: str, text: str) -> np.ndarray:
    kind = TENSOR_TYPES[name]
    data = np.frombuffer(bytes.fromhex(text), np.uint8)
    values = kind.decode(data[: kind.block_bytes].reshape(1, -1), data[kind.block_bytes :] if kind.tail_bytes else None)
    assert data.size == kind.nbytes(kind.block_elements)
    return values[0]


def non_zeros(values: np.ndarray) -> dict[int, float]:
    return {int(i): float(values[i]) for i in np.flatnonzero(values)}


def test_ptq1_0_as_written_out() -> None:
    block = "CD" + "80" * 15 + "40" + "80" * 7 + "BBFD" + "0034"
    plus, minus = [0, 64, 88, 104, 120, 121, 123, 125, 126, 127], [32, 80, 96, 112, 122]
    assert non_zeros(decoded("PTQ1_0", block)) == dict.fromkeys(plus, 0.25) | dict.fromkeys(minus, -0.25)


def test_q1_0_as_written_out() -> None:
    values = decoded("Q1_0", "0038 0D" + "00" * 14 + "80")
    assert np.flatnonzero(values == HALF).tolist() == [0, 2, 3, 127]
    assert (np.abs(values) == HALF).all()
    assert decoded("Q1_0_g32", "0038 0D 00 00 80")[[0, 1, 2, 3, 4, 31]].tolist() == [0.5, -0.5, 0.5, 0.5, -0.5, 0.5]


def test_stq1_0_as_written_out() -> None:
    values = decoded("STQ1_0", "80" + "00" * 31 + "02" + "00" * 7 + "0038")
    assert values[[0, 16, 32, 48]].tolist() == [0, 0.5, 0.5, 0.5]
    assert values[[1, 17, 33, 49]].tolist() == [-0.5, -0.5, 0, -0.5]
    assert np.count_nonzero(values) == 192


def test_i2_s_as_written_out() -> None:
    block = "8615" + "55" * 29 + "54"
    expected = {0: 0.75, 96: 0.75, 32: -0.75, 1: -0.75, 127: -0.75}
    assert non_zeros(decoded("I2_S", block + "0000403F" + "00" * 28)) == expected
    assert non_zeros(decoded("I2_S", block + "0000403F" * 8)) == expected  # some programs repeat the scale
    assert not decoded("I2_S", "FF" * 32 + "0000403F" + "00" * 28).any()  # the fourth code is 0


def test_sherrys_codebook_has_every_pattern_once() -> None:
    blocks = np.zeros((1, 42), np.uint8)
    blocks[0, :8] = [0x10, 0x32, 0x54, 0x76, 0x98, 0xBA, 0xDC, 0xFE]  # groups 0 to 15: every slot
    blocks[0, 8:16] = blocks[0, :8]
    blocks[0, 34:36] = 0xFF  # groups 16 to 31 have the other sign
    codes, _ = ternary_codes(TENSOR_TYPES["STQ1_0"], blocks)
    found = {tuple(lanes) for half in codes[0, :128].reshape(2, 4, 16) for lanes in (half.T - 1).astype(np.int8)}
    assert found == {lanes for lanes in product((-1, 0, 1), repeat=4) if lanes.count(0) == 1}


def storable(name: str, n: int) -> st.SearchStrategy[np.ndarray]:
    """Codes that a type can hold: anything, or no zero, or one zero in four."""
    shape = (n, TENSOR_TYPES[name].block_elements)
    if name.startswith("Q1_0"):
        return hnp.arrays(np.uint8, shape, elements=st.sampled_from([0, 2]), fill=st.nothing())
    if name == "STQ1_0":
        signs = hnp.arrays(np.uint8, (n, 4, 4, 16), elements=st.sampled_from([0, 2]), fill=st.nothing())
        zeros = hnp.arrays(np.intp, (n, 4, 1, 16), elements=st.integers(0, 3), fill=st.nothing())

        def lay(signs: np.ndarray, zeros: np.ndarray) -> np.ndarray:
            out = signs.copy()
            np.put_along_axis(out, zeros, np.uint8(1), axis=2)
            return out.reshape(shape)

        return st.builds(lay, signs, zeros)
    return hnp.arrays(np.uint8, shape, elements=st.integers(0, 2), fill=st.nothing())


@settings(max_examples=40)
@given(name=st.sampled_from(["PTQ1_0", "STQ1_0", "Q1_0", "Q1_0_g32"]), data=st.data())
def test_codes_and_scales_survive_exactly(name: str, data: st.DataObject) -> None:
    kind = TENSOR_TYPES[name]
    codes = data.draw(storable(name, data.draw(st.integers(0, 3))))
    scales = data.draw(hnp.arrays(np.uint16, len(codes))).view(np.float16)  # every bit pattern, NaN too
    blocks = encode_ternary(kind, codes, scales)
    assert blocks.shape == (len(codes), kind.block_bytes)
    found, found_scales = ternary_codes(kind, blocks)
    np.testing.assert_array_equal(found, codes)
    assert found_scales.tobytes() == scales.tobytes()


@settings(max_examples=40)
@given(name=st.sampled_from(["PTQ1_0", "STQ1_0", "Q1_0", "Q1_0_g32"]), data=st.data())
def test_every_block_decodes_and_its_values_survive_encoding(name: str, data: st.DataObject) -> None:
    kind = TENSOR_TYPES[name]
    blocks = data.draw(hnp.arrays(np.uint8, (2, kind.block_bytes)))
    scale = np.frombuffer(np.float16(data.draw(st.floats(2**-14, 1000, width=16))).tobytes(), np.uint8)
    blocks[:, slice(0, 2) if name.startswith("Q1_0") else slice(-2, None)] = scale
    values = kind.decode(blocks)
    codes, scales = ternary_codes(kind, blocks)
    np.testing.assert_array_equal(values, (codes.astype(np.float32) - 1) * scales.astype(np.float32)[:, None])
    np.testing.assert_array_equal(kind.decode(kind.encode(values)), values)


@settings(max_examples=40)
@given(
    codes=st.integers(0, 3).flatmap(
        lambda n: hnp.arrays(np.uint8, (n, 128), elements=st.integers(0, 2), fill=st.nothing())
    ),
    scale=st.floats(width=32, allow_nan=False, allow_infinity=False),
)
def test_i2_s_survives_exactly(codes: np.ndarray, scale: float) -> None:
    data = join_i2_s(codes, np.float32(scale))
    assert data.shape == (TENSOR_TYPES["I2_S"].nbytes(codes.size),)
    blocks, tail = data[:-32].reshape(-1, 32), data[-32:]
    found, found_scale = split_i2_s(blocks, tail)
    np.testing.assert_array_equal(found, codes)
    assert found_scale == np.float32(scale)
    values = TENSOR_TYPES["I2_S"].decode(blocks, tail)
    np.testing.assert_array_equal(values, (codes.astype(np.float32) - 1) * np.float32(scale))
    again = TENSOR_TYPES["I2_S"].encode(values)
    np.testing.assert_array_equal(TENSOR_TYPES["I2_S"].decode(again[:-32].reshape(-1, 32), again[-32:]), values)


def test_ptq1_0_and_pq2_0_hold_the_same_matrices() -> None:
    rng = np.random.default_rng(3)
    trits = rng.integers(-1, 2, (5, 384)).astype(np.int8)
    scales = rng.uniform(0.01, 1, (5, 3)).astype(np.float16)
    one, two = (TENSOR_TYPES[name] for name in ("PTQ1_0", "PQ2_0"))
    np.testing.assert_array_equal(
        one.decode(encode_ternary_matrix(one, trits, scales)), two.decode(encode_ternary_matrix(two, trits, scales))
    )


def test_what_a_type_cannot_hold_is_refused() -> None:
    one = np.ones(1, np.float16)
    for name, codes, reason in (
        ("PTQ1_0", np.full((1, 128), 3, np.uint8), "PTQ1_0 holds codes 0 to 2"),
        ("Q1_0", np.ones((1, 128), np.uint8), "Q1_0 cannot hold"),
        ("STQ1_0", np.zeros((1, 256), np.uint8), "exactly one zero"),
        ("STQ1_0", np.ones((1, 256), np.uint8), "exactly one zero"),
        ("I2_S", np.ones((1, 128), np.uint8), "I2_S is not ternary"),
    ):
        with pytest.raises(FormatError, match=reason):
            encode_ternary(TENSOR_TYPES[name], codes, one)
    for name in ("PTQ1_0", "STQ1_0", "Q1_0", "I2_S"):
        kind = TENSOR_TYPES[name]
        for bad in (np.nan, np.inf):
            with pytest.raises(FormatError, match="NaN or infinite"):
                kind.encode(np.full((1, kind.block_elements), bad, np.float32))
    for name in ("PTQ1_0", "STQ1_0", "Q1_0"):
        with pytest.raises(FormatError, match="65504"):
            TENSOR_TYPES[name].encode(np.full((1, TENSOR_TYPES[name].block_elements), 1e6, np.float32))
    i2_s = TENSOR_TYPES["I2_S"]
    with pytest.raises(FormatError, match="without the 32 bytes"):
        i2_s.decode(np.zeros((1, 32), np.uint8))
    with pytest.raises(FormatError, match="0 to 2"):
        join_i2_s(np.full((1, 128), 3, np.uint8), HALF)


def test_a_float_that_does_not_fit_becomes_the_nearest_kind_of_block() -> None:
    values = np.random.default_rng(4).standard_normal((3, 256)).astype(np.float32)
    sherry = TENSOR_TYPES["STQ1_0"]
    found = sherry.decode(sherry.encode(values)).reshape(3, 4, 4, 16)
    lanes = values.reshape(3, 4, 4, 16)
    assert ((found == 0).sum(axis=2) == 1).all()
    np.testing.assert_array_equal((found == 0).argmax(axis=2), np.abs(lanes).argmin(axis=2))
    assert (np.sign(found) == np.sign(lanes))[found != 0].all()
    binary = TENSOR_TYPES["Q1_0"]
    found = binary.decode(binary.encode(values.reshape(-1, 128)))
    np.testing.assert_array_equal(found > 0, values.reshape(-1, 128) >= 0)
    np.testing.assert_allclose(np.abs(found[:, 0]), np.abs(values.reshape(-1, 128)).mean(axis=1), rtol=1e-3)


def test_a_tensor_with_one_scale_is_written_and_read(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("i2_s") / "a.gguf"
    values = np.random.default_rng(5).integers(-1, 2, (4, 256)).astype(np.float32) * np.float32(0.7)
    write_gguf(path, {}, [tensor_from_array(name, values, TENSOR_TYPES["I2_S"]) for name in ("a", "b")])
    with read_gguf(path) as file:
        info = file.tensors["a"]
        assert (info.type.name, info.nbytes, info.shape) == ("I2_S", 4 * 256 // 4 + 32, (4, 256))
        assert (file.blocks("a").shape, file.tail("a").shape) == ((8, 32), (32,))
        for name in ("a", "b"):
            np.testing.assert_array_equal(file.array(name), values)
        assert file.tail("a").tobytes() == np.float32(0.7).tobytes() + bytes(28)


# ids, by what the bytes say ----------------------------------------------------------------------


def refused(name: str, type_id: int) -> str:
    """How a type is named where it cannot be decoded."""
    return f"the unknown {name}; " if name == f"type {type_id}" else rf"type {name} \(id {type_id}\), which cannot be"


def one_tensor(type_id: int, nbytes: int, dims: tuple[int, ...] = (2048, 2)) -> GGUFFile:
    return GGUFFile(samples.container(infos=[samples.info("a", dims, type_id, 0)], data=bytes(nbytes)))


@pytest.mark.parametrize(
    ("type_id", "nbytes", "name"),
    [
        (42, 18 * 64, "Q2_0"), (42, 34 * 32, "Q2_0_g128"), (42, 42 * 16, "STQ1_0"),
        (43, 42 * 16, "STQ1_0"), (253, 42 * 16, "STQ1_0"), (43, 1000, "type 43"), (253, 1000, "type 253"),
        (40, 36 * 64, "NVFP4"), (40, 6 * 128, "Q1_0_g32"), (40, 1000, "type 40"),
        (41, 18 * 32, "Q1_0"), (143, 28 * 32, "PTQ1_0"), (142, 34 * 32, "PQ2_0"),
        (36, 1024 + 32, "I2_S"), (36, 18 * 128, "IQ4_NL_4_4"),
        (37, 18 * 128, "IQ4_NL_4_8"), (37, 4096, "I8_S"),
        (38, 18 * 128, "IQ4_NL_8_8"), (38, 1024, "TL1"),
        (39, 17 * 128, "MXFP4"), (39, 864, "TL2"),
        (31, 18 * 128, "Q4_0_4_4"), (33, 18 * 128, "Q4_0_8_8"),
        (100, 1280, "Q1_58"), (134, 832, "IQ1_BN"), (135, 1024, "IQ2_BN"), (144, 640, "PQ1_0"), (777, 999, "type 777"),
    ],
)  # fmt: skip
def test_an_id_means_what_its_bytes_say(type_id: int, nbytes: int, name: str) -> None:
    file = one_tensor(type_id, nbytes)
    info = file.tensors["a"]
    assert (info.type.id, info.type.name, info.nbytes, info.shape) == (type_id, name, nbytes, (2, 2048))
    if name in TENSOR_TYPES:
        assert file.array("a").shape == (2, 2048)
    else:
        assert file.raw("a").size == nbytes
        known = (
            rf"type {name} \(id {type_id}\), which cannot be" if name != f"type {type_id}" else f"the unknown {name};"
        )
        with pytest.raises(FormatError, match=f"tensor a is of {known}") as caught:
            file.array("a")
        assert ";" in str(caught.value)  # what to do follows


@pytest.mark.parametrize(
    ("type_id", "nbytes", "reason"),
    [
        (42, 500, "fits none of Q2_0, Q2_0_g128, STQ1_0"), (36, 1024, "fits none of I2_S, IQ4_NL_4_4"),
        (42, 1000, "cannot be told .STQ1_0 would fit"), (36, 1999, "cannot be told .I2_S would fit"),
        (41, 500, "Q1_0 takes 576 bytes and has 500"), (143, 500, "PTQ1_0 takes 896 bytes and has 500"),
        (31, 1000, "Q4_0_4_4 takes 2304 bytes"), (43, 100, "claims 4096 elements in 100 bytes"),
    ],
)  # fmt: skip
def test_an_id_whose_bytes_mean_nothing_is_damage(type_id: int, nbytes: int, reason: str) -> None:
    with pytest.raises(FormatError, match=reason):
        one_tensor(type_id, nbytes)


@pytest.mark.parametrize(
    ("dims", "nbytes", "name"),
    [
        ((5120, 248_320), 357_580_800, "Q2_0"), ((5120, 248_320), 337_715_200, "Q2_0_g128"),
        ((5120, 6144), 8_847_360, "Q2_0"), ((5120, 6144), 8_355_840, "Q2_0_g128"), ((5120, 6144), 5_160_960, "STQ1_0"),
    ],
)  # fmt: skip
def test_the_27b_models_offsets_tell_the_types_of_id_42_apart(dims: tuple[int, int], nbytes: int, name: str) -> None:
    """The offsets of published files, two of them from llama.cpp's complaint; whole models' tables hold no data."""
    raws = [RawInfo("w", dims, 42, 0), RawInfo("output_norm.weight", (5120,), 0, nbytes)]
    found = resolve(raws, 0, nbytes + 4 * 5120, 32)
    assert (found["w"].type.name, found["w"].nbytes) == (name, nbytes)


def test_rows_that_do_not_divide_into_blocks_are_refused() -> None:
    with pytest.raises(FormatError, match="needs a multiple of 128"):
        one_tensor(41, 18, (64, 2))
    with pytest.raises(FormatError, match="fits none of I2_S"):
        one_tensor(36, 64, (64, 2))


def test_a_cut_file_of_an_id_with_many_meanings_is_cut_and_not_mixed() -> None:
    """The end of a Q2_0 tensor has room for an STQ1_0 one."""
    infos = [samples.info("a", [2048], 42, 0), samples.info("b", [2048], 42, 576)]
    with pytest.raises(FormatError, match="tensor b of type Q2_0 takes 576 bytes and has 480; it is cut short"):
        GGUFFile(samples.container(infos=infos, data=bytes(576 + 480)))


def test_one_damaged_tensor_of_several_does_not_change_what_the_id_means() -> None:
    infos = [samples.info("a", [2048], 43, 0), samples.info("b", [2048], 43, 352)]
    assert GGUFFile(samples.container(infos=infos, data=bytes(704))).tensors["b"].type.name == "STQ1_0"
    with pytest.raises(FormatError, match="tensor b of type STQ1_0 takes 336 bytes and has 300; it is cut short"):
        GGUFFile(samples.container(infos=infos, data=bytes(652)))


def test_sherrys_published_id_is_read_and_its_blocks_decode() -> None:
    kind = TENSOR_TYPES["STQ1_0"]
    values = np.random.default_rng(6).standard_normal((8, 256)).astype(np.float32)
    data = kind.encode(values)
    for type_id in (42, 43, 253):
        file = GGUFFile(samples.container(infos=[samples.info("a", [2048], type_id, 0)], data=data.tobytes()))
        np.testing.assert_array_equal(file.array("a"), kind.decode(data).reshape(-1))
        found = file.tensors["a"].type
        assert (found.id, found.is_ternary, ternary_codes(found, file.blocks("a"))[0].max()) == (type_id, True, 2)


def test_types_that_would_be_mistaken_are_not_written(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("mistaken") / "a.gguf"
    tiny = TensorData("a", (1, 64), TENSOR_TYPES["Q1_0_g32"], np.zeros(12, np.uint8))
    both = samples.tensors(["NVFP4"]) + samples.tensors(["Q1_0_g32"], ["Q1_0_g32"])
    write_gguf(path, {}, [tiny])  # 12 bytes are padded to 32, which NVFP4 would not fit into
    with pytest.raises(FormatError, match="of different types, of NVFP4, Q1_0_g32"):
        write_gguf(path, {}, both)
    published = replace(TENSOR_TYPES["STQ1_0"], id=42)
    with pytest.raises(FormatError, match="of different types, of Q2_0, STQ1_0"):
        write_gguf(path, {}, [*samples.tensors(["Q2_0"]), TensorData("s", (1, 256), published, np.zeros(42, np.uint8))])


def test_unknown_ids_are_described_and_not_decoded() -> None:
    assert type_by_id(42) is TENSOR_TYPES["Q2_0"]
    assert type_by_id(40) is TENSOR_TYPES["NVFP4"]
    for type_id, name in ((100, "Q1_58"), (335, "IQ2_BN_R4"), (9999, "type 9999")):
        kind = type_by_id(type_id)
        assert (kind.id, kind.name, kind.is_known, kind.bits_per_weight) == (type_id, name, False, 0.0)
        known = (
            rf"{name} \(id {type_id}\), which cannot be decoded; " if name != "type 9999" else "the unknown type 9999; "
        )
        with pytest.raises(FormatError, match=known):
            kind.decode(np.zeros((1, 1), np.uint8))
    assert TENSOR_TYPES["Q2_0"].bits_per_weight == 2.25
    bits = {"PTQ1_0": 1.75, "STQ1_0": 1.3125, "Q1_0": 1.125, "I2_S": 2.0}
    assert {name: TENSOR_TYPES[name].bits_per_weight for name in bits} == bits


# what is said of them elsewhere ------------------------------------------------------------------


def test_inspection_describes_them(tmp_path: Path) -> None:
    tensors = samples.tensors()
    write_gguf(tmp_path / "a.gguf", {"general.architecture": string("bitnet")}, tensors)
    summary = inspect_file(tmp_path / "a.gguf")
    assert {name: (use.tensors, use.parameters, use.bytes) for name, use in summary.types.items()} == {
        tensor.type.name: (1, 8 * 256, tensor.data.nbytes) for tensor in tensors
    }
    assert summary.types["I2_S"].bytes == 8 * 256 // 4 + 32
    assert "bitnet.attention.head_count" in str(summary.reason)
    json.dumps(summary.to_json(), allow_nan=False)
    with read_gguf(tmp_path / "a.gguf") as file:
        found = {part.name.split(".")[2]: part for part in ternary_statistics(file)}
    assert {"PTQ1_0", "STQ1_0", "Q1_0"} <= set(found)
    assert found["Q1_0"].counts[1] == 0
    assert found["STQ1_0"].counts[1] == 8 * 256 // 4


@pytest.mark.parametrize("name", ["PTQ1_0", "STQ1_0", "Q1_0", "I2_S"])
def test_a_model_in_a_type_without_a_kernel_is_refused_in_words(tmp_path: Path, name: str) -> None:
    with read_gguf(write_model(tmp_path / "runs.gguf", TINY.with_(dim=256, n_heads=4, n_kv_heads=4))) as file:
        tensors = [
            tensor_from_array(info.name, file.array(info.name), TENSOR_TYPES[name])
            if info.name == "blk.1.attn_q.weight"
            else TensorData(info.name, info.shape, info.type, file.raw(info.name))
            for info in file.tensors.values()
        ]
        write_gguf(tmp_path / "a.gguf", file.metadata, tensors)
    sentence = f"the tensor blk.1.attn_q.weight is of type {name}, and this version runs it only as PQ2_0, "
    assert str(inspect_file(tmp_path / "a.gguf").reason).startswith(sentence)
    with pytest.raises(UserError, match=sentence):
        load(tmp_path / "a.gguf")
