"""Files of the original nanochat-rs-ternary, turned into valid GGUF of the architecture `nanochat`.

The original misspells GGUF's magic as `GUGF`, writes dimensions outermost first, and stores ternary matrices as a type
100, Q1_58: all codes, two bits each, four to a byte, the lowest first (00 is 0, 01 is +1, 11 is −1), then a float32
scale per group. Everything else is GGUF version 3. Source: nanochat-rs-ternary, crates/ternary-core/src/gguf.rs.

Trits are kept exactly and scales rounded to float16, which is all that tensor types of GGUF have; `Imported` says by
how much. The files have no tokenizer: its metadata goes into `extra`, or a `tokenizer.json` is given when the model is
run. Models that the original can describe and `nanochat` cannot are refused.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from nanochat_tui.formats.errors import FormatError
from nanochat_tui.formats.gguf.header import (
    MAGIC,
    ORIGINAL_MAGIC,
    Buffer,
    Cursor,
    let_go,
    map_file,
    read_head,
)
from nanochat_tui.formats.gguf.layout import LayoutError, Placed, place
from nanochat_tui.formats.gguf.values import GGUFValue, f32, metadata_float, metadata_int, metadata_string, string, u32
from nanochat_tui.formats.gguf.writer import TensorData, tensor_from_array, write_gguf
from nanochat_tui.formats.mhc import MhcFile, read_mhc
from nanochat_tui.formats.recognise import HEAD_BYTES, recognise
from nanochat_tui.formats.tensor_types import FILE_TYPES, TENSOR_TYPES, encode_ternary_matrix
from nanochat_tui.text import display_safe

ARCHITECTURE: Final = "nanochat-ternary"
Q1_58: Final = 100
MAX_LAYERS: Final = 1024
MAX_WIDTH: Final = 1 << 24

_NORM_EPS: Final = 1e-6
"""Not in the file: the original has it in its code."""
_TERNARY: Final = {
    "attention.wq": "attn_q",
    "attention.wk": "attn_k",
    "attention.wv": "attn_v",
    "attention.wo": "attn_output",
    "ffn.w_gate": "ffn_gate",
    "ffn.w_up": "ffn_up",
    "ffn.w_down": "ffn_down",
}
_OTHER_MODELS: Final = (
    "n_experts",
    "n_active_experts",
    "deltanet_ratio_pct",
    "deltanet_v_heads",
    "deltanet_qk_heads",
    "use_shared_expert",
    "expert_dim",
    "gated_attention",
    "rope_scale",
)
"""Keys of models with another forward pass, unless they are 0 (or, for a factor, 1)."""
_TRITS: Final = np.array([0, 1, 2, -1], np.int8)
"""Trit by code; 2 marks the code that means nothing."""

Matrix = tuple[NDArray[np.int8], NDArray[np.float32]]


@dataclass(frozen=True, slots=True, eq=False)
class Imported:
    """A model of the original as `write_gguf` takes it."""

    metadata: dict[str, GGUFValue]
    tensors: list[TensorData]
    scale_error: float
    """Largest change of a group's scale by rounding to float16, as a share of it; groups of zeros do not count."""
    notes: tuple[str, ...]
    """What a person should know about the model, a sentence each; usually nothing."""


class _Original:
    """A parsed file: metadata, and tensors whose bytes are known to be there. Shapes are [outputs, inputs]."""

    def __init__(self, data: Buffer) -> None:
        cursor = Cursor(data)
        cursor.skip(4, "the header")
        version = cursor.u32("the header")
        if version != 3:
            raise LayoutError(f"its version is {version} and only 3 is known")
        self.metadata, raws, self._alignment, self._start = read_head(cursor)
        self._data = data
        self._unused = {item.raw.name: item for item in place(raws, cursor.size - self._start, self._alignment)}

    def __len__(self) -> int:
        return len(self._unused)

    def __contains__(self, name: str) -> bool:
        return name in self._unused

    def take(self, name: str) -> Placed:
        """Return a tensor that the model needs, once."""
        found = self._unused.pop(name, None)
        if found is None:
            raise LayoutError(f"it has no tensor {name}")
        return found

    def leftover(self) -> str | None:
        """Return the name of a tensor that was not used."""
        return next(iter(self._unused), None)

    def plain(self, item: Placed, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """Return an F32 or F16 tensor of this shape as finite float32."""
        name = display_safe(item.raw.name)
        self._shape(item, shape)
        if item.raw.type_id not in (0, 1):
            raise LayoutError(f"tensor {name} is of type id {item.raw.type_id} and should be F32 or F16")
        size, dtype = (4, "<f4") if item.raw.type_id == 0 else (2, "<f2")
        values: NDArray[np.float32] = self._bytes(item, item.elements * size).view(dtype).astype(np.float32)
        if not np.isfinite(values).all():
            raise LayoutError(f"tensor {name} holds NaN or infinity")
        return values.reshape(shape)

    def ternary(self, item: Placed, shape: tuple[int, int], group: int) -> Matrix:
        """Return a Q1_58 tensor of this shape: trits int8 of it, scales float32 [outputs, inputs / group]."""
        name = display_safe(item.raw.name)
        self._shape(item, shape)
        if item.raw.type_id != Q1_58:
            raise LayoutError(f"tensor {name} is of type id {item.raw.type_id} and should be Q1_58 (100)")
        rows, columns = shape
        if columns % group or columns % 4:
            raise LayoutError(f"rows of tensor {name} have {columns} weights, no whole number of groups of {group}")
        packed, groups = rows * columns // 4, rows * columns // group
        data = self._bytes(item, packed + 4 * groups)
        codes = (data[:packed, None] >> np.array([0, 2, 4, 6], np.uint8)) & np.uint8(3)
        trits = _TRITS[codes].reshape(shape)
        if (trits == 2).any():
            raise LayoutError(f"tensor {name} holds a code that no trit has")
        scales = data[packed:].view("<f4").reshape(rows, columns // group).astype(np.float32)
        if not np.isfinite(scales).all():
            raise LayoutError(f"tensor {name} has a scale that is NaN or infinite")
        return trits, scales

    def _shape(self, item: Placed, shape: tuple[int, ...]) -> None:
        if item.raw.dims != shape:
            name = display_safe(item.raw.name)
            raise LayoutError(f"tensor {name} has the shape {list(item.raw.dims)} and should have {list(shape)}")

    def _bytes(self, item: Placed, nbytes: int) -> NDArray[np.uint8]:
        slack = item.span - nbytes
        if slack < 0 or (slack >= self._alignment and not item.is_last):
            raise LayoutError(f"tensor {display_safe(item.raw.name)} takes {nbytes} bytes and has {item.span}")
        return np.frombuffer(self._data, np.uint8, nbytes, self._start + item.raw.offset)


@dataclass(frozen=True, slots=True)
class _Shape:
    dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    vocab_size: int
    context_length: int
    group: int
    n_streams: int
    tied: bool
    rope_theta: float

    def problem(self) -> str | None:
        """Say why no model can have this shape, or None."""
        if self.dim % self.n_heads or self.n_heads % self.n_kv_heads or self.dim // self.n_heads % 2:
            return f"{self.dim} wide, it cannot have {self.n_heads} heads for {self.n_kv_heads} of keys"
        if self.n_streams not in (1, 2, 4):
            return f"it has {self.n_streams} residual streams, not 1, 2 or 4"
        return None if self.rope_theta > 0 else f"its rope_theta is {self.rope_theta:g} and must be above 0"


def _shape(metadata: Mapping[str, GGUFValue]) -> _Shape:
    def count(key: str, maximum: int = MAX_WIDTH) -> int:
        return metadata_int(metadata, f"nanochat.{key}", minimum=1, maximum=maximum)

    heads = count("n_heads")
    tied = _number(metadata.get("nanochat.weight_tied"))
    if tied not in (0, 1):
        raise LayoutError("its nanochat.weight_tied is neither 0 nor 1")
    group = "model.group_size" if "nanochat.group_size" not in metadata else "nanochat.group_size"
    return _Shape(
        dim=count("dim"),
        n_layers=count("n_layers", MAX_LAYERS),
        n_heads=heads,
        n_kv_heads=count("n_kv_heads", heads),
        vocab_size=count("vocab_size"),
        context_length=count("max_seq_len", 2**31 - 1),
        group=metadata_int(metadata, group, minimum=1, maximum=MAX_WIDTH),
        n_streams=count("mhc_n_streams"),
        tied=bool(tied),
        rope_theta=metadata_float(metadata, "nanochat.rope_theta"),
    )


def _number(found: GGUFValue | None) -> float | None:
    """Return a number or truth value (the original writes either); None for anything else."""
    return found.value if found is not None and isinstance(found.value, int | float) else None


def _unsupported(metadata: Mapping[str, GGUFValue]) -> str | None:
    """Say what in a file `nanochat` has no place for, or None."""
    architecture = metadata_string(metadata, "general.architecture", "")
    if architecture != ARCHITECTURE:
        return f"its architecture is {display_safe(architecture) or 'not named'} and not {ARCHITECTURE}"
    for key, found in metadata.items():
        neutral = (0, 1) if key == "nanochat.rope_scale" else (0,)
        other = key.removeprefix("nanochat.") in _OTHER_MODELS and _number(found) not in neutral
        if key.startswith("nanochat.loop.") or other:
            return f"its {display_safe(key)} asks for a forward pass that this project does not have"
    return None


def import_gugf(
    source: str | os.PathLike[str] | bytes,
    mhc: str | os.PathLike[str] | None = None,
    *,
    embedding: Literal["F16", "Q8_0"] = "F16",
    ternary: Literal["Q2_0", "PQ2_0"] = "Q2_0",
    name: str | None = None,
    extra: Mapping[str, GGUFValue] | None = None,
) -> Imported:
    """Read a file of the original, whichever of the two magics it has, as a model of the architecture `nanochat`.

    Parameters: a path, or the bytes; the `.mhc` file that belongs to it, without which a model of several residual
    streams is not whole; tensor types of the embedding (and head) and of the ternary matrices; the model's name for
    people (default: the file's); further metadata, such as a tokenizer's.
    Raises FormatError if a file is unreadable, damaged or lying, if the two do not belong together, or if the model is
    one that `nanochat` cannot describe.
    """
    if isinstance(source, bytes):
        data: Buffer = source
        label = "the data"
    else:
        data = map_file(source)
        label = display_safe(str(source))
        name = name or Path(source).stem
    try:
        magic = bytes(data[:4])
        if magic not in (ORIGINAL_MAGIC, MAGIC):
            what = recognise(bytes(data[:HEAD_BYTES])) or f"unknown (bytes {magic.hex(' ')}); check the path"
            raise FormatError(f"{label} is not a model of nanochat-rs-ternary: it is {what}")
        original = _Original(data)
        reason = _unsupported(original.metadata)
        if reason is None:
            shape = _shape(original.metadata)
            reason = shape.problem()
        if reason is not None:
            raise FormatError(f"{label} cannot be converted: {reason}")
        sidecar = _sidecar(shape, mhc, label)
        return _convert(original, shape, sidecar, embedding, ternary, name or "nanochat", dict(extra or {}))
    except LayoutError as error:
        raise FormatError(
            f"{label} is not a sound file of nanochat-rs-ternary: {error}; copy or export it again"
        ) from None
    finally:
        let_go(data if not isinstance(data, bytes) else None)


def convert_gugf(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    mhc: str | os.PathLike[str] | None = None,
    *,
    embedding: Literal["F16", "Q8_0"] = "F16",
    ternary: Literal["Q2_0", "PQ2_0"] = "Q2_0",
    name: str | None = None,
    extra: Mapping[str, GGUFValue] | None = None,
) -> Imported:
    """Write what `import_gugf` reads as a GGUF file, atomically, and return it. Raises as that and `write_gguf` do."""
    found = import_gugf(source, mhc, embedding=embedding, ternary=ternary, name=name, extra=extra)
    write_gguf(target, found.metadata, found.tensors)
    return found


def _sidecar(shape: _Shape, mhc: str | os.PathLike[str] | None, label: str) -> MhcFile | None:
    if shape.n_streams == 1:
        if mhc is not None:
            raise FormatError(f"{label} has a plain residual, so that no .mhc file belongs to it; leave it away")
        return None
    if mhc is None:
        raise FormatError(
            f"{label} has {shape.n_streams} residual streams, whose parameters are in an .mhc file; give it too"
        )
    found = read_mhc(mhc)
    expected = (shape.n_streams, 2 * shape.n_layers)
    if (found.n_streams, len(found.records)) != expected:
        raise FormatError(
            f"{display_safe(str(mhc))} has {len(found.records)} records of {found.n_streams} streams and {label} needs "
            f"{expected[1]} of {expected[0]}; give the .mhc file that was exported with the model"
        )
    return found


def _convert(
    original: _Original,
    shape: _Shape,
    sidecar: MhcFile | None,
    embedding: str,
    ternary: str,
    name: str,
    extra: dict[str, GGUFValue],
) -> Imported:
    needed = 2 + (not shape.tied) + 9 * shape.n_layers
    if len(original) != needed:  # before anything is done per layer: the number of layers is only a claim
        raise LayoutError(f"it has {len(original)} tensors, and a model of {shape.n_layers} blocks has {needed}")
    table, kind = TENSOR_TYPES[embedding], TENSOR_TYPES[ternary]
    if shape.group % kind.block_elements:
        raise FormatError(
            f"the model has a scale for every {shape.group} weights, which {ternary} cannot hold; "
            "only multiples of 64 can be converted, by Q2_0, or of 128, by PQ2_0"
        )
    vocabulary = (shape.vocab_size, shape.dim)
    tensors = [
        tensor_from_array("token_embd.weight", original.plain(original.take("tok_embed.weight"), vocabulary), table),
        _norm("output_norm.weight", original, "norm_final.weight", shape.dim),
    ]
    if not shape.tied:
        head = original.plain(original.take("lm_head.weight"), vocabulary)
        tensors.append(tensor_from_array("output.weight", head, table))
    hidden = 0
    worst = 0.0
    counts_for_scales = True
    for layer in range(shape.n_layers):
        parts: dict[str, TensorData] = {}
        for theirs, ours in _TERNARY.items():
            item = original.take(f"blocks.{layer}.{theirs}.weight")
            if not hidden and ours == "ffn_gate":
                hidden = item.raw.dims[0]
            trits, scales = original.ternary(item, _matrix_shape(ours, shape, hidden), shape.group)
            rounded, error = _round(scales, trits, shape.group)
            worst = max(worst, error)
            counts_for_scales = counts_for_scales and _are_counts(scales, trits, shape.group)
            blocks = encode_ternary_matrix(kind, trits, rounded)
            parts[ours] = TensorData(f"blk.{layer}.{ours}.weight", trits.shape, kind, blocks)
        for norm in ("attn", "ffn"):
            target = f"blk.{layer}.{norm}_norm.weight"
            parts[f"{norm}_norm"] = _norm(target, original, f"blocks.{layer}.norm_{norm}.weight", shape.dim)
        tensors += _block(parts)
        if sidecar is not None:
            tensors += _records(sidecar, layer)
    unknown = original.leftover()
    if unknown is not None:
        raise LayoutError(f"it holds the tensor {display_safe(unknown)}, which its model has no place for")
    metadata = _metadata(shape, hidden, sidecar, name, ternary) | extra
    return Imported(metadata, tensors, worst, tuple(_notes(shape, worst, counts_for_scales)))


def _matrix_shape(part: str, shape: _Shape, hidden: int) -> tuple[int, int]:
    kv = shape.dim // shape.n_heads * shape.n_kv_heads
    if part in ("ffn_gate", "ffn_up"):
        return hidden, shape.dim
    if part == "ffn_down":
        return shape.dim, hidden
    return (kv if part in ("attn_k", "attn_v") else shape.dim), shape.dim


def _norm(target: str, original: _Original, source: str, dim: int) -> TensorData:
    return tensor_from_array(target, original.plain(original.take(source), (dim,)), TENSOR_TYPES["F32"])


def _block(parts: Mapping[str, TensorData]) -> list[TensorData]:
    """Return a block's tensors in the order of the project's own files."""
    attention = ("attn_norm", "attn_q", "attn_k", "attn_v", "attn_output")
    return [parts[part] for part in (*attention, "ffn_norm", "ffn_gate", "ffn_up", "ffn_down")]


def _records(sidecar: MhcFile, layer: int) -> list[TensorData]:
    return [
        tensor_from_array(f"blk.{layer}.{part}_mhc", sidecar.records[2 * layer + index], TENSOR_TYPES["F32"])
        for index, part in enumerate(("attn", "ffn"))
    ]


def _round(scales: NDArray[np.float32], trits: NDArray[np.int8], group: int) -> tuple[NDArray[np.float16], float]:
    """Return scales as float16, and the largest relative change among groups that are not all zeros."""
    with np.errstate(over="ignore"):
        rounded = scales.astype(np.float16)
    if np.isinf(rounded).any():
        raise LayoutError("a group's scale is beyond float16 (65504)")
    live = trits.reshape(*scales.shape, group).any(axis=-1) & (scales != 0)
    exact = scales[live].astype(np.float64)
    return rounded, float((np.abs(rounded[live] - exact) / np.abs(exact)).max(initial=0.0))


def _are_counts(scales: NDArray[np.float32], trits: NDArray[np.int8], group: int) -> bool:
    """Whether every scale is the share of its group's weights that are not zero."""
    counts = np.count_nonzero(trits.reshape(*scales.shape, group), axis=-1)
    return bool((np.abs(scales * group - counts) <= 1e-3).all())


def _metadata(shape: _Shape, hidden: int, sidecar: MhcFile | None, name: str, ternary: str) -> dict[str, GGUFValue]:
    return {
        "general.architecture": string("nanochat"),
        "general.name": string(name),
        "general.file_type": u32(FILE_TYPES[ternary]),
        "general.quantization_version": u32(2),
        "nanochat.block_count": u32(shape.n_layers),
        "nanochat.context_length": u32(shape.context_length),
        "nanochat.embedding_length": u32(shape.dim),
        "nanochat.feed_forward_length": u32(hidden),
        "nanochat.attention.head_count": u32(shape.n_heads),
        "nanochat.attention.head_count_kv": u32(shape.n_kv_heads),
        "nanochat.attention.layer_norm_rms_epsilon": f32(_NORM_EPS),
        "nanochat.rope.freq_base": f32(shape.rope_theta),
        "nanochat.vocab_size": u32(shape.vocab_size),
        "nanochat.mhc.stream_count": u32(shape.n_streams),
        "nanochat.mhc.version": u32(2 if sidecar is None else sidecar.version),
        "nanochat.ternary.group_size": u32(shape.group),
        "nanochat.text.indentation": u32(0),
    }


def _notes(shape: _Shape, worst: float, counts_for_scales: bool) -> Iterator[str]:
    if counts_for_scales:
        yield (
            "every scale is the share of weights in its group that are not zero, as the original's export wrote by "
            "mistake until 16 February 2026; the trained scales are lost, and the model will not write sense"
        )
    if shape.n_kv_heads < shape.n_heads:
        yield (
            "the original trained models with fewer key than query heads with another pairing of them than it ran "
            "them with; this file is run as the original ran it"
        )
    if not math.isclose(worst, 0, abs_tol=2.0**-10):
        yield f"some scales are too small for float16, which changes their weights by up to {worst:.1%}"
