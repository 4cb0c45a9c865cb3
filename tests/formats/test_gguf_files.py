"""GGUF files that are right: what is written is read back, by us and as the format says."""

import struct
from pathlib import Path
from typing import Any

import gguf_samples as samples
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from nanochat_tui.errors import WriteError
from nanochat_tui.formats.errors import FormatError
from nanochat_tui.formats.gguf import GGUFFile, GGUFValue, TensorData, TensorSource, ValueType, read_gguf, write_gguf
from nanochat_tui.formats.gguf.values import FIXED
from nanochat_tui.formats.tensor_types import TENSOR_TYPES, type_by_id


def test_every_type_and_value_survives(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    metadata, tensors = samples.metadata(), samples.tensors()
    write_gguf(path, metadata, tensors)
    with read_gguf(path) as file:
        assert file.version == 3
        assert file.size == path.stat().st_size
        assert file.metadata == metadata
        assert list(file.metadata) == list(metadata)
        assert list(file.tensors) == [tensor.name for tensor in tensors]
        for tensor in tensors:
            found = file.tensors[tensor.name]
            assert (found.shape, found.type, found.nbytes) == (tensor.shape, tensor.type, tensor.data.nbytes)
            assert found.offset % 32 == 0
            blocks = file.blocks(tensor.name)
            assert not blocks.flags.writeable
            assert tensor.data.tobytes() == blocks.tobytes() + file.tail(tensor.name).tobytes()
            with np.errstate(all="ignore"):
                expected = tensor.type.decode(blocks, file.tail(tensor.name)).reshape(tensor.shape)
                np.testing.assert_array_equal(file.array(tensor.name), expected)


def test_a_disk_without_room_is_said_before_anything_is_written(tmp_path: Path) -> None:
    def chunks() -> list[np.ndarray]:
        raise AssertionError("nothing should be made")

    huge = TensorSource("w", (1 << 32, 1 << 24), TENSOR_TYPES["F16"], chunks)
    with pytest.raises(WriteError, match=r"would take 144115188\.08 GB, and its disk has .* GB left; make room"):
        write_gguf(tmp_path / "a.gguf", {}, [huge])
    assert not list(tmp_path.iterdir())


def test_bytes_are_those_of_the_format(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    data = np.arange(6, dtype="<f4")
    write_gguf(
        path,
        {"general.architecture": GGUFValue(ValueType.STRING, "x"), "n": GGUFValue(ValueType.U32, 7)},
        [TensorData("t", (2, 3), TENSOR_TYPES["F32"], data.view(np.uint8))],
    )
    by_hand = samples.container(
        keys=[samples.key("general.architecture", 8, samples.text("x")), samples.key("n", 4, struct.pack("<I", 7))],
        infos=[samples.info("t", [3, 2], 0, 0)],  # ne order: the contiguous dimension first
        data=data.tobytes() + bytes(8),  # the last tensor is padded too
    )
    assert path.read_bytes() == by_hand


def test_writing_is_deterministic_and_atomic(tmp_path: Path) -> None:
    one, two = tmp_path / "1.gguf", tmp_path / "2.gguf"
    for path in (one, two):
        write_gguf(path, samples.metadata(), samples.tensors())
    assert one.read_bytes() == two.read_bytes()
    before = one.read_bytes()
    with pytest.raises(FormatError):
        write_gguf(one, samples.metadata(), [*samples.tensors(), samples.tensors()[0]])
    assert one.read_bytes() == before
    with pytest.raises(WriteError):
        write_gguf(tmp_path / "none" / "a.gguf", {}, [])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1.gguf", "2.gguf"]


def values() -> st.SearchStrategy[GGUFValue]:
    def scalars(kind: ValueType) -> st.SearchStrategy[Any]:
        if kind is ValueType.STRING:
            return st.text(st.characters(codec="utf-8"))
        if kind is ValueType.BOOL:
            return st.booleans()
        if kind in (ValueType.F32, ValueType.F64):
            return st.floats(width=32 if kind is ValueType.F32 else 64, allow_nan=False)
        limits = np.iinfo(FIXED[kind])
        return st.integers(int(limits.min), int(limits.max))

    def arrays(kind: ValueType) -> st.SearchStrategy[Any]:
        if kind is ValueType.STRING:
            return st.lists(scalars(kind), max_size=5)
        dtype = np.dtype(bool) if kind is ValueType.BOOL else FIXED[kind]
        return hnp.arrays(dtype, st.integers(0, 5), elements=None if kind is ValueType.BOOL else scalars(kind))

    plain = [kind for kind in ValueType if kind is not ValueType.ARRAY]
    return st.one_of(
        *(scalars(kind).map(lambda value, kind=kind: GGUFValue(kind, value)) for kind in plain),
        *(arrays(kind).map(lambda value, kind=kind: GGUFValue(ValueType.ARRAY, value, kind)) for kind in plain),
    )


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(
    metadata=st.dictionaries(st.text(st.characters(codec="utf-8"), min_size=1, max_size=20), values(), max_size=6),
    tensors=st.dictionaries(
        st.text(st.characters(codec="utf-8"), min_size=1, max_size=20),
        st.tuples(
            st.sampled_from(sorted(name for name, kind in TENSOR_TYPES.items() if type_by_id(kind.id) is kind)),
            st.lists(st.integers(1, 3), min_size=1, max_size=4),
        ),
        max_size=6,
    ),
    alignment=st.sampled_from([1, 8, 32, 4096]),
)
def test_round_trip(
    tmp_path_factory: pytest.TempPathFactory,
    metadata: dict[str, GGUFValue],
    tensors: dict[str, tuple[str, list[int]]],
    alignment: int,
) -> None:
    metadata["general.alignment"] = GGUFValue(ValueType.U32, alignment)
    contents = []
    for name, (type_name, dims) in tensors.items():
        kind = TENSOR_TYPES[type_name]
        shape = (*dims[:-1], dims[-1] * kind.block_elements)
        data = np.arange(kind.nbytes(int(np.prod(shape))), dtype=np.int64).astype(np.uint8)
        contents.append(TensorData(name, shape, kind, data))
    path = tmp_path_factory.getbasetemp() / "round.gguf"
    write_gguf(path, metadata, contents)
    with read_gguf(path) as file:
        assert file.metadata == metadata
        assert list(file.tensors) == [tensor.name for tensor in contents]
        for tensor in contents:
            found = file.tensors[tensor.name]
            assert (found.shape, found.type) == (tensor.shape, tensor.type)
            np.testing.assert_array_equal(file.raw(tensor.name), tensor.data)


def test_version_2_and_a_file_without_tensors_are_read() -> None:
    file = GGUFFile(samples.container(version=2, keys=[samples.key("a", 7, b"\1")]))
    assert (file.version, file.tensors, file.metadata["a"].value) == (2, {}, True)


def test_tensors_may_lie_in_another_order_than_the_table(tmp_path: Path) -> None:
    data = np.arange(16, dtype="<f4").tobytes()
    file = GGUFFile(samples.container(infos=[samples.info("b", [8], 0, 32), samples.info("a", [8], 0, 0)], data=data))
    assert list(file.tensors) == ["b", "a"]
    assert file.array("b").tolist() == list(range(8, 16))


def test_bytes_behind_the_last_tensor_do_no_harm() -> None:
    data = np.arange(8, dtype="<f4").tobytes()
    file = GGUFFile(samples.container(infos=[samples.info("a", [8], 0, 0)], data=data + bytes(1000)))
    assert file.tensors["a"].nbytes == 32


def test_arrays_outlive_the_file_and_a_closed_file_says_so(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    write_gguf(path, samples.metadata(), samples.tensors(["F32"]))
    with read_gguf(path) as file:
        blocks = file.blocks("blk.0.F32.weight")
        expected = blocks.copy()
    np.testing.assert_array_equal(blocks, expected)
    assert len(file.metadata["tokenizer.ggml.token_type"].value) == 300  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="closed"):
        file.array("blk.0.F32.weight")
    file.close()


def test_large_tensors_are_decoded_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.gguf"
    write_gguf(path, {}, samples.tensors(["Q8_0"]))
    with read_gguf(path) as file:
        whole = file.array("blk.0.Q8_0.weight")
        monkeypatch.setattr("nanochat_tui.formats.gguf.reader._DECODE_BYTES", 100)
        np.testing.assert_array_equal(file.array("blk.0.Q8_0.weight"), whole)


@pytest.mark.parametrize(("group_type", "size"), [("Q2_0", 18 * 32), ("Q2_0_g128", 34 * 16)])
def test_both_kinds_of_id_42_are_told_apart(tmp_path: Path, group_type: str, size: int) -> None:
    path = tmp_path / "a.gguf"
    tensors = samples.tensors(["Q2_0", "Q2_0_g128", "F32"], [group_type])
    write_gguf(path, {}, tensors)
    with read_gguf(path) as file:
        found = file.tensors[f"blk.0.{group_type}.weight"]
        assert (found.type.name, found.nbytes) == (group_type, size)
    with path.open("ab") as handle:  # what it is can no longer be told
        handle.write(bytes(5000))
    with pytest.raises(FormatError, match="cannot be told"):
        read_gguf(path)
    write_gguf(path, {}, tensors[::-1])  # with a tensor behind it, it can
    with path.open("ab") as handle:
        handle.write(bytes(5000))
    with read_gguf(path) as file:
        assert file.tensors[f"blk.0.{group_type}.weight"].type.name == group_type


def test_mixed_meanings_of_id_42_are_neither_written_nor_read(tmp_path: Path) -> None:
    both = samples.tensors(["Q2_0"]) + samples.tensors(["Q2_0_g128"], ["Q2_0_g128"])
    with pytest.raises(FormatError, match="of different types, of Q2_0, Q2_0_g128"):
        write_gguf(tmp_path / "a.gguf", {}, both)
    mixed = samples.container(
        infos=[samples.info("a", [2048], 42, 0), samples.info("b", [2048], 42, 576)], data=bytes(576 + 544)
    )
    with pytest.raises(FormatError, match="of different types, of Q2_0, Q2_0_g128"):
        GGUFFile(mixed)
    with pytest.raises(FormatError, match="fits none of Q2_0, Q2_0_g128, STQ1_0"):
        GGUFFile(samples.container(infos=[samples.info("a", [1024], 42, 0)], data=bytes(100)))


def test_a_group_128_tensor_too_small_to_be_told_apart_is_not_written(tmp_path: Path) -> None:
    kind = TENSOR_TYPES["Q2_0_g128"]
    tiny = TensorData("a", (1, 128), kind, np.zeros(34, np.uint8))
    with pytest.raises(FormatError, match="would be read back as Q2_0"):
        write_gguf(tmp_path / "a.gguf", {}, [tiny])


def test_a_gpt2_vocabulary_parses(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    write_gguf(path, samples.metadata(tokens=50_257), [])
    with read_gguf(path) as file:
        assert len(file.metadata["tokenizer.ggml.merges"].value) == 50_256  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("tensor", "reason"),
    [
        (TensorData("", (2,), TENSOR_TYPES["F32"], np.zeros(8, np.uint8)), "named with 0 bytes"),
        (TensorData("x" * 300, (2,), TENSOR_TYPES["F32"], np.zeros(8, np.uint8)), "named with 300 bytes"),
        (TensorData("a", (2,), TENSOR_TYPES["F32"], np.zeros(9, np.uint8)), "takes 8 bytes"),
        (TensorData("a", (2, 0), TENSOR_TYPES["F32"], np.zeros(0, np.uint8)), "impossible shape"),
        (TensorData("a", (), TENSOR_TYPES["F32"], np.zeros(4, np.uint8)), "impossible shape"),
        (TensorData("a", (1, 1, 1, 1, 1), TENSOR_TYPES["F32"], np.zeros(4, np.uint8)), "impossible shape"),
        (TensorData("a", (4, 16), TENSOR_TYPES["Q8_0"], np.zeros(68, np.uint8)), "does not divide"),
        (TensorData("a\ud800", (1,), TENSOR_TYPES["F32"], np.zeros(4, np.uint8)), "not valid Unicode"),
    ],
)
def test_tensors_that_cannot_be_written(tmp_path: Path, tensor: TensorData, reason: str) -> None:
    with pytest.raises(FormatError, match=reason):
        write_gguf(tmp_path / "a.gguf", {}, [tensor])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        ({"": samples.u32(1)}, "named with 0 bytes"),
        ({"general.alignment": samples.u32(24)}, "power of two"),
        ({"general.alignment": samples.string("32")}, "string and not u32"),
        ({"a": GGUFValue(ValueType.ARRAY, ["x", 1], ValueType.STRING)}, "list of strings"),  # type: ignore[list-item]
        ({"a": samples.string("\ud800")}, "not valid Unicode"),
    ],
)
def test_metadata_that_cannot_be_written(tmp_path: Path, metadata: dict[str, GGUFValue], reason: str) -> None:
    with pytest.raises(FormatError, match=reason):
        write_gguf(tmp_path / "a.gguf", metadata, [])
