"""Our files read by the gguf package, and its files read by us, for the types that it knows."""

from pathlib import Path

import gguf
import gguf_samples as samples
import numpy as np
import pytest
from gguf import quants

from nanochat_tui.formats.gguf import ValueType, read_gguf, write_gguf
from nanochat_tui.formats.tensor_types import TENSOR_TYPES

SHARED = [name for name in TENSOR_TYPES if name in gguf.GGMLQuantizationType.__members__]


def test_the_package_reads_what_we_write(tmp_path: Path) -> None:
    path = tmp_path / "ours.gguf"
    metadata, tensors = samples.metadata(), samples.tensors(SHARED)
    del metadata["test.empty"]  # the package cannot read an empty array
    write_gguf(path, metadata, tensors)
    theirs = gguf.GGUFReader(path)
    with read_gguf(path) as ours:
        assert theirs.data_offset == ours.data_start
        for key, value in metadata.items():
            field = theirs.get_field(key)
            assert field is not None
            assert [int(t) for t in field.types[:1]] == [value.type], key
            expected = value.value.tolist() if isinstance(value.value, np.ndarray) else value.value
            assert field.contents() == (pytest.approx(expected) if value.type is ValueType.F32 else expected), key
        assert [t.name for t in theirs.tensors] == list(ours.tensors)
        for tensor in theirs.tensors:
            info = ours.tensors[tensor.name]
            assert tuple(reversed(tensor.shape.tolist())) == info.shape
            assert (int(tensor.tensor_type), tensor.data_offset, int(tensor.n_bytes)) == (
                info.type.id,
                info.offset,
                info.nbytes,
            )
            assert tensor.data.tobytes() == ours.raw(tensor.name).tobytes()


@pytest.mark.parametrize("alignment", [32, 128])
def test_we_read_what_the_package_writes(tmp_path: Path, alignment: int) -> None:
    path = tmp_path / "theirs.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_custom_alignment(alignment)
    writer.add_block_count(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_add_bos_token(False)
    writer.add_token_list(["a", "é", "\n"])
    writer.add_token_types([1, 1, 6])
    writer.add_key_value("some.negative", -3, gguf.GGUFValueType.INT64)
    values = np.random.default_rng(0).standard_normal((6, 512)).astype(np.float32)
    kinds = [gguf.GGMLQuantizationType[name] for name in ("F32", "F16", "BF16", "Q8_0", "TQ1_0", "TQ2_0", "Q4_0")]
    expected = {}
    for kind in kinds:
        data = quants.quantize(values, kind)
        expected[f"t.{kind.name}"] = quants.dequantize(data, kind)
        writer.add_tensor(f"t.{kind.name}", data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with read_gguf(path) as file:
        assert file.alignment == alignment
        plain = {key: value.value for key, value in file.metadata.items()}
        assert plain["general.architecture"] == "llama"
        assert plain["llama.block_count"] == 2
        assert plain["llama.attention.layer_norm_rms_epsilon"] == float(np.float32(1e-5))
        assert plain["tokenizer.ggml.add_bos_token"] is False
        assert plain["tokenizer.ggml.tokens"] == ["a", "é", "\n"]
        assert plain["tokenizer.ggml.token_type"].tolist() == [1, 1, 6]  # type: ignore[union-attr]
        assert plain["some.negative"] == -3
        assert list(file.tensors) == list(expected)
        for name, array in expected.items():
            assert file.tensors[name].shape == (6, 512)
            np.testing.assert_array_equal(file.array(name), array)
