"""From one ternary tensor type to another, weight by weight the same, or not at all.

A ternary weight is a trit times its group's scale. A type with smaller blocks repeats the scale; one with larger blocks
can hold groups that share theirs (a group of zeros goes with any scale); one without zeros, or without the code for
+2, holds what has none. Whatever does not fit is refused by name, and what was written is read back and compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from nanochat_tui.export.errors import ExportError
from nanochat_tui.formats.errors import FormatError
from nanochat_tui.formats.gguf import (
    GGUFFile,
    GGUFValue,
    TensorData,
    TensorInfo,
    TensorSource,
    metadata_string,
    read_gguf,
    u32,
    write_gguf,
)
from nanochat_tui.formats.i2_s_layouts import Layout, to_x86
from nanochat_tui.formats.tensor_types import FILE_TYPES, TENSOR_TYPES, TensorType, encode_ternary, ternary_codes
from nanochat_tui.formats.ternary_blocks import I2_S_TAIL, join_i2_s, split_i2_s
from nanochat_tui.model.shards import open_model
from nanochat_tui.text import display_safe

TARGETS: Final = ("Q2_0", "PQ2_0", "PTQ1_0", "TQ1_0", "TQ2_0", "Q1_0", "I2_S", "STQ1_0")
STOCK_TYPES: Final = frozenset({"Q2_0", "TQ1_0", "TQ2_0", "Q1_0"})
STOCK_ARCHITECTURES: Final = frozenset({"llama", "qwen2", "qwen3", "qwen35", "maple", "bitnet", "minicpm"})
"""What llama.cpp as its project publishes it can load, of what occurs in ternary models."""

CHUNK = 1 << 20
"""Weights converted together: a multiple of every block."""

Bytes = NDArray[np.uint8]


class LossError(FormatError):
    """A tensor that the wanted type cannot hold exactly."""


@dataclass(frozen=True, slots=True)
class Conversion:
    """What was converted. Bytes are of whole files."""

    types: dict[str, int]
    """Number of tensors converted, by their former type."""
    kept: int
    kind: str
    source_bytes: int
    target_bytes: int
    weights: int
    """Converted weights, all compared with the source after writing."""
    scale_error: float
    """Largest relative change of a scale by rounding; 0 unless that was allowed."""
    notes: tuple[str, ...]
    """What a person should know about the file, a sentence each."""


def convert(
    source: Path, target: Path, kind: str = "Q2_0", *, round_scales: bool = False, i2_s: Layout = "x86"
) -> Conversion:
    """Write a GGUF model with all its ternary tensors in another type; files of a split model become one.

    Parameters: the paths; the type, one of TARGETS; whether an I2_S tensor's float32 scale may be rounded to the
    float16 that other types have; the order of codes in the source's I2_S tensors. Weights are otherwise equal, which
    is checked after writing.
    Raises LossError if a tensor does not fit, FormatError if a file is damaged or has no ternary tensor, ExportError
    if what was written differs.
    """
    wanted = TENSOR_TYPES[kind]
    with open_model(source) as file:
        if target.exists() and source.exists() and target.samefile(source):
            raise FormatError("a model cannot be converted onto itself; give another name")
        chosen = [info for info in file.tensors.values() if info.type.has_trits]
        if not chosen:
            raise FormatError(f"{display_safe(source.name)} has no ternary tensors, so there is nothing to convert")
        if i2_s != "x86" and not any(info.type.order_varies for info in chosen):
            raise FormatError(f"{display_safe(source.name)} has no I2_S tensors, so their layout has no place here")
        error = max((_rounding(file, info, wanted, allowed=round_scales) for info in chosen), default=0.0)
        tensors = [_tensor(file, info, wanted, i2_s) for info in file.tensors.values()]
        write_gguf(target, _metadata(file, kind), tensors)
        if not error:
            _verify(file, target, chosen, i2_s)
        types: dict[str, int] = {}
        for info in chosen:
            types[info.type.name] = types.get(info.type.name, 0) + 1
        return Conversion(
            types=types,
            kept=len(file.tensors) - len(chosen),
            kind=kind,
            source_bytes=file.size,
            target_bytes=target.stat().st_size,
            weights=sum(info.elements for info in chosen),
            scale_error=error,
            notes=tuple(_notes(file, kind, error, same=all(_stays(info, wanted, i2_s) for info in chosen))),
        )


def _stays(info: TensorInfo, wanted: TensorType, i2_s: Layout) -> bool:
    """Whether a tensor's bytes are those that are wanted already."""
    return info.type == wanted and (not info.type.order_varies or i2_s == "x86")


def _blocks(file: GGUFFile, info: TensorInfo, i2_s: Layout) -> Bytes:
    """Return a tensor's blocks; of I2_S, in the order that the decoder expects."""
    blocks = file.blocks(info.name)
    return to_x86(blocks, i2_s, info.shape[-1]) if info.type.order_varies else blocks


def _metadata(file: GGUFFile, kind: str) -> dict[str, GGUFValue]:
    metadata = {key: value for key, value in file.metadata.items() if not key.startswith("split.")}
    metadata.pop("general.file_type", None)
    if kind in FILE_TYPES:
        metadata["general.file_type"] = u32(FILE_TYPES[kind])
    return metadata


def _tensor(file: GGUFFile, info: TensorInfo, wanted: TensorType, i2_s: Layout) -> TensorData | TensorSource:
    if not info.type.has_trits or _stays(info, wanted, i2_s):
        return TensorData(info.name, info.shape, info.type, file.raw(info.name)[: info.nbytes])
    block = wanted.block_elements
    if info.shape[-1] % block:
        raise LossError(
            f"tensor {display_safe(info.name)} has rows of {info.shape[-1]} weights, and {wanted.name} needs a "
            f"multiple of {block}; choose a type with smaller blocks, such as Q2_0"
        )
    chunks: Callable[[], Iterator[Bytes]] = partial(_chunks, file, info, wanted, i2_s)
    return TensorSource(info.name, info.shape, wanted, chunks)


def _chunks(file: GGUFFile, info: TensorInfo, wanted: TensorType, i2_s: Layout) -> Iterator[Bytes]:
    name = display_safe(info.name)
    if wanted == info.type:  # I2_S in another order
        yield _blocks(file, info, i2_s)
        yield file.tail(info.name)
        return
    if wanted.has_tensor_scale:
        scale = _one_scale(file, info)
        for codes, _ in _split(file, info, i2_s):
            if codes.size and int(codes.max()) > 2:
                raise LossError(f"tensor {name} holds +2, which I2_S has no code for; choose Q2_0 or TQ2_0")
            yield join_i2_s(codes.reshape(-1, 128), scale)[:-I2_S_TAIL]
        yield join_i2_s(np.zeros((0, 128), np.uint8), scale)
        return
    for codes, scales in _split(file, info, i2_s):
        try:
            yield encode_ternary(wanted, *_regroup(codes, scales, wanted))
        except FormatError as error:
            raise LossError(f"tensor {name} cannot become {wanted.name} without loss: {error}") from None


def _split(file: GGUFFile, info: TensorInfo, i2_s: Layout) -> Iterator[tuple[Bytes, NDArray[np.float16]]]:
    """Yield codes [blocks, elements] and a float16 scale per block, a chunk at a time."""
    kind, blocks = info.type, _blocks(file, info, i2_s)
    step = CHUNK // kind.block_elements
    for start in range(0, len(blocks), step):
        part = blocks[start : start + step]
        if kind.has_tensor_scale:
            codes, scale = split_i2_s(part, file.tail(info.name))
            yield codes, np.full(len(codes), scale, np.float16)
        else:
            yield ternary_codes(kind, part)


def _regroup(codes: Bytes, scales: NDArray[np.float16], wanted: TensorType) -> tuple[Bytes, NDArray[np.float16]]:
    """Return codes and scales in another block size. Raises FormatError if groups that join differ in scale."""
    have, want = codes.shape[1], wanted.block_elements
    if want <= have:
        return codes.reshape(-1, want), np.repeat(scales, have // want)
    grouped = scales.reshape(-1, want // have)
    live = (codes != 1).any(axis=1).reshape(grouped.shape)
    # of a block, the first group that is not all zeros decides; the scale of zeros says nothing
    first = grouped[np.arange(len(grouped)), live.argmax(axis=1)]
    differ = (live & (grouped != first[:, None])).any(axis=1)
    if differ.any():
        raise FormatError(
            f"in {int(differ.sum())} of {len(differ)} blocks of {want}, groups of {have} have different scales, and "
            f"{wanted.name} has one for all; choose a type with smaller blocks, such as Q2_0"
        )
    return codes.reshape(-1, want), first


def _one_scale(file: GGUFFile, info: TensorInfo) -> np.float32:
    """Return the scale that all groups of a tensor share, those of zeros apart. Raises LossError."""
    found: set[float] = set()
    for codes, scales in _split(file, info, "x86"):
        live = (codes != 1).any(axis=1)
        found.update(np.unique(scales[live]).tolist())
        if len(found) > 1:
            raise LossError(
                f"tensor {display_safe(info.name)} has groups of different scales, and I2_S has one for the whole "
                "tensor; choose Q2_0"
            )
    return np.float32(found.pop() if found else 0.0)


def _rounding(file: GGUFFile, info: TensorInfo, wanted: TensorType, *, allowed: bool) -> float:
    """Return by how much rounding changes an I2_S tensor's scale, relatively. Raises LossError if it may not."""
    if not info.type.has_tensor_scale or info.type == wanted:
        return 0.0
    exact = float(info.type.tensor_scale(file.tail(info.name)))
    with np.errstate(over="ignore"):
        rounded = float(np.float16(exact))
    if rounded == exact:
        return 0.0
    error = abs(rounded - exact) / abs(exact) if np.isfinite(exact) and np.isfinite(rounded) else 1.0
    if allowed and error < 1e-2:
        return error
    if error < 1e-2:
        raise LossError(
            f"tensor {display_safe(info.name)} has the float32 scale {exact:.9g}, which {wanted.name} would round to "
            f"float16 ({error:.2%} off); allow it with --round-scales"
        )
    raise LossError(f"tensor {display_safe(info.name)} has the scale {exact:.3g}, which no float16 is near")


def _verify(file: GGUFFile, target: Path, chosen: list[TensorInfo], i2_s: Layout) -> None:
    """Raise ExportError unless every converted weight is what it was."""
    with read_gguf(target) as written:
        for info in chosen:
            other = written.tensor(info.name)
            pairs = zip(_values(file, info, i2_s), _values(written, other, "x86"), strict=True)
            if info.shape != other.shape or not all(np.array_equal(before, after) for before, after in pairs):
                raise ExportError(
                    f"tensor {display_safe(info.name)} differs from its source after writing; {target.name} must not "
                    "be used"
                )


def _values(file: GGUFFile, info: TensorInfo, i2_s: Layout) -> Iterator[NDArray[np.float32]]:
    blocks, tail = _blocks(file, info, i2_s), file.tail(info.name)
    step = CHUNK // info.type.block_elements
    for start in range(0, len(blocks), step):
        yield info.type.decode(blocks[start : start + step], tail).reshape(-1)


def _notes(file: GGUFFile, kind: str, error: float, *, same: bool) -> Iterator[str]:
    if same:
        yield f"all ternary tensors were {kind} already, so the file was copied"
    if error:
        yield f"scales were rounded to float16, which changes weights by up to {error:.3%}"
    name = metadata_string(file.metadata, "general.architecture", "")
    if any(key.startswith("prism.hadamard.") for key in file.metadata):
        yield (
            "the weights are Hadamard-rotated, which llama.cpp as published does not undo: it would load the file and "
            "write nonsense"
        )
    elif kind in STOCK_TYPES and name not in STOCK_ARCHITECTURES:
        yield f"llama.cpp as published does not know the architecture {display_safe(name)}, whatever its tensor types"
