"""GGUF in one import: reading, writing, typed metadata.

Example::

    with read_gguf("model.gguf") as file:
        layers = metadata_int(file.metadata, "nanochat.block_count")
        weights = file.array("blk.0.attn_q.weight")
"""

from nanochat_tui.formats.errors import FormatError
from nanochat_tui.formats.gguf.layout import TensorInfo
from nanochat_tui.formats.gguf.reader import GGUFFile, read_gguf
from nanochat_tui.formats.gguf.values import (
    GGUFValue,
    ValueType,
    array,
    boolean,
    f32,
    i32,
    metadata_bool,
    metadata_float,
    metadata_int,
    metadata_integers,
    metadata_string,
    metadata_strings,
    string,
    u32,
    u64,
)
from nanochat_tui.formats.gguf.writer import TensorData, TensorSource, tensor_from_array, write_gguf

__all__ = [
    "FormatError",
    "GGUFFile",
    "GGUFValue",
    "TensorData",
    "TensorInfo",
    "TensorSource",
    "ValueType",
    "array",
    "boolean",
    "f32",
    "i32",
    "metadata_bool",
    "metadata_float",
    "metadata_int",
    "metadata_integers",
    "metadata_string",
    "metadata_strings",
    "read_gguf",
    "string",
    "tensor_from_array",
    "u32",
    "u64",
    "write_gguf",
]
