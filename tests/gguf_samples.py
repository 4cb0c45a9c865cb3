"""GGUF files for the tests: a small nanochat-like one, and containers put together by hand to be wrong."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from nanochat_tui.formats.gguf import (
    GGUFValue,
    TensorData,
    ValueType,
    array,
    boolean,
    f32,
    i32,
    string,
    tensor_from_array,
    u32,
    u64,
)
from nanochat_tui.formats.tensor_types import TENSOR_TYPES, type_by_id


def metadata(tokens: int = 300) -> dict[str, GGUFValue]:
    """Keys such as an exported model has, and one of every remaining value type."""
    words = [f"Ġtoken{i}" if i % 3 else f"é{i}" for i in range(tokens)]
    return {
        "general.architecture": string("nanochat"),
        "general.name": string("a small file, not a model"),
        "nanochat.block_count": u32(2),
        "nanochat.embedding_length": u32(256),
        "nanochat.attention.layer_norm_rms_epsilon": f32(1e-6),
        "nanochat.rope.freq_base": f32(10_000.0),
        "nanochat.mhc.stream_count": u32(2),
        "nanochat.text.indentation": u32(4),
        "tokenizer.ggml.model": string("gpt2"),
        "tokenizer.ggml.pre": string("gpt-2"),
        "tokenizer.ggml.tokens": array(words),
        "tokenizer.ggml.token_type": array(np.ones(tokens, np.int32)),
        "tokenizer.ggml.merges": array([f"{a} {b}" for a, b in pairwise(words)]),
        "tokenizer.ggml.scores": array(np.linspace(-1, 0, tokens, dtype=np.float32)),
        "tokenizer.ggml.eos_token_id": u32(tokens - 1),
        "tokenizer.ggml.add_bos_token": boolean(True),
        "tokenizer.chat_template": string("{% for m in messages %}{{ m.content }}\n{% endfor %}"),
        "test.i32": i32(-5),
        "test.u64": u64(2**63 + 1),
        "test.u8": GGUFValue(ValueType.U8, 255),
        "test.i8": GGUFValue(ValueType.I8, -128),
        "test.u16": GGUFValue(ValueType.U16, 65_535),
        "test.i16": GGUFValue(ValueType.I16, -32_768),
        "test.i64": GGUFValue(ValueType.I64, -(2**63)),
        "test.f64": GGUFValue(ValueType.F64, math.pi),
        "test.bools": array(np.array([True, False, True])),
        "test.empty": array([], ValueType.STRING),
        "test.empty_text": string(""),
    }


def tensors(names: Sequence[str] | None = None, instead: Sequence[str] = ()) -> list[TensorData]:
    """Return one tensor of every type that can be written, and random bytes of every other one.

    Of types that share an id, the usual one, or the one in `instead`: a file can hold only one of them.
    """
    rng = np.random.default_rng(7)
    found = []
    for name, kind in TENSOR_TYPES.items():
        chosen = next((other for other in instead if TENSOR_TYPES[other].id == kind.id), type_by_id(kind.id).name)
        if (names is not None and name not in names) or name != chosen:
            continue
        if kind.encoder is not None:
            values = rng.standard_normal((8, 256)).astype(np.float32)
            found.append(tensor_from_array(f"blk.0.{name}.weight", values, kind))
        else:
            data = rng.integers(0, 256, kind.nbytes(8 * 256), dtype=np.uint8)
            found.append(TensorData(f"blk.0.{name}.weight", (8, 256), kind, data))
    return found


def text(value: str | bytes) -> bytes:
    encoded = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(encoded)) + encoded


def key(name: str | bytes, kind: int, payload: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + payload


def info(name: str | bytes, dims: Sequence[int], kind: int, offset: int) -> bytes:
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


def container(
    *,
    keys: Sequence[bytes] = (),
    infos: Sequence[bytes] = (),
    data: bytes = b"",
    magic: bytes = b"GGUF",
    version: int = 3,
    n_tensors: int | None = None,
    n_keys: int | None = None,
    alignment: int = 32,
) -> bytes:
    head = magic + struct.pack(
        "<IQQ",
        version,
        len(infos) if n_tensors is None else n_tensors,
        len(keys) if n_keys is None else n_keys,
    )
    head += b"".join(keys) + b"".join(infos)
    return head + (bytes(-len(head) % alignment) + data if infos else b"")
