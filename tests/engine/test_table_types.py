"""The project's own files with tables that others' tools have quantised further."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType, quants
from support import TINY, random_tensors, tiny_tokenizer

from nanochat_tui.engine.generate.model import load
from nanochat_tui.formats.gguf import TensorData, tensor_from_array, write_gguf
from nanochat_tui.formats.tensor_types import TENSOR_TYPES
from nanochat_tui.model.architectures import nanochat
from nanochat_tui.model.tokenizer import to_gguf_metadata


@pytest.mark.parametrize("type_name", ["Q4_0", "Q5_1"])
def test_a_nanochat_file_with_a_smaller_table_runs_as_its_float_twin(type_name: str, tmp_path: Path) -> None:
    made = tiny_tokenizer(TINY.vocab_size)
    metadata = nanochat.to_metadata(TINY) | to_gguf_metadata(made, bos=0, eos=0, add_bos=True)
    tensors = {tensor.name: tensor for tensor in random_tensors(TINY, embedding="F16")}
    table = tensors["token_embd.weight"]
    values = table.type.decode(table.data.reshape(-1, table.type.block_bytes)).reshape(table.shape)
    blocks = quants.quantize(values, GGMLQuantizationType[type_name])
    read = quants.dequantize(blocks, GGMLQuantizationType[type_name]).astype(np.float32)
    logits = []
    for name, one in (
        (type_name, TensorData(table.name, table.shape, TENSOR_TYPES[type_name], blocks)),
        ("F32", tensor_from_array(table.name, read, TENSOR_TYPES["F32"])),
    ):
        path = tmp_path / f"{name}.gguf"
        write_gguf(path, metadata, list((tensors | {table.name: one}).values()))
        logits.append(load(path, threads=1, activations="float").logits([1, 5, 9, 2]))
    np.testing.assert_allclose(*logits, atol=1e-4)
