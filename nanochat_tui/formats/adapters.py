"""Low-rank adapters (LoRA, Hu et al. 2021, arXiv 2106.09685) as GGUF files, in the form that llama.cpp writes.

`general.type` is "adapter", `adapter.type` "lora", `adapter.lora.alpha` a float32; a matrix NAME [outputs, inputs] has
the pair NAME.lora_a [rank, inputs] and NAME.lora_b [outputs, rank]. Its outputs get (alpha / rank) · b a x added, or
b a x if alpha is 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nanochat_tui.formats.errors import FormatError
from nanochat_tui.formats.gguf import (
    GGUFValue,
    f32,
    metadata_float,
    metadata_string,
    read_gguf,
    string,
    tensor_from_array,
    write_gguf,
)
from nanochat_tui.formats.tensor_types import TENSOR_TYPES
from nanochat_tui.text import display_safe

KIND = "adapter"
"""The value of `general.type`."""
DOWN, UP = ".lora_a", ".lora_b"
Matrix = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Adapter:
    """What an adapter file holds. pairs: of each matrix, by its name, a [rank, inputs] and b [outputs, rank]."""

    architecture: str
    alpha: float
    pairs: Mapping[str, tuple[Matrix, Matrix]]
    name: str = ""

    def scale(self, matrix: str) -> float:
        """What b a of a matrix is multiplied by."""
        return self.alpha / len(self.pairs[matrix][0]) if self.alpha else 1.0

    @property
    def parameters(self) -> int:
        """Numbers in all pairs."""
        return sum(a.size + b.size for a, b in self.pairs.values())


def is_adapter(metadata: Mapping[str, GGUFValue]) -> bool:
    """Whether a GGUF file says that it is an adapter and not a model."""
    return metadata_string(metadata, "general.type", "") == KIND


def read_adapter(path: Path) -> Adapter:
    """Read an adapter file. Raises FormatError if it is another kind of file, is damaged or lacks half of a pair."""
    shown = display_safe(str(path))
    if not path.is_file():
        raise FormatError(f"there is no adapter file {shown}; check the path")
    with read_gguf(path) as file:
        kind = metadata_string(file.metadata, "adapter.type", "")
        if not is_adapter(file.metadata):
            raise FormatError(f"{shown} is a model and no adapter (its general.type is not {KIND}); give an adapter")
        if kind != "lora" or "adapter.alora.invocation_tokens" in file.metadata:
            said = "alora" if kind == "lora" else display_safe(kind) or "not named"
            raise FormatError(f"the adapter {shown} is of type {said}; only lora is applied")
        arrays = {name: file.array(name) for name in file.tensors}
        return Adapter(
            metadata_string(file.metadata, "general.architecture", ""),
            metadata_float(file.metadata, "adapter.lora.alpha", 0.0),
            _pairs(arrays, shown),
            metadata_string(file.metadata, "general.name", path.stem),
        )


def _pairs(arrays: Mapping[str, NDArray[np.float32]], shown: str) -> dict[str, tuple[Matrix, Matrix]]:
    pairs = {}
    for name, down in arrays.items():
        stem, ending = (name.removesuffix(DOWN), DOWN) if name.endswith(DOWN) else (name.removesuffix(UP), UP)
        if stem == name:
            raise FormatError(
                f"the adapter {shown} holds {display_safe(name)}, which is no half of a pair; leave it out"
            )
        other = arrays.get(stem + (UP if ending == DOWN else DOWN))
        if other is None:
            raise FormatError(f"the adapter {shown} holds {display_safe(name)} without its other half")
        if ending == UP:
            continue
        if down.ndim != 2 or other.ndim != 2 or other.shape[1] != len(down) or not down.size or not other.size:
            sizes = f"{list(down.shape)} and {list(other.shape)}"
            raise FormatError(f"the pair of {display_safe(stem)} in the adapter {shown} is {sizes}, which do not fit")
        if not (np.isfinite(down).all() and np.isfinite(other).all()):
            raise FormatError(
                f"the pair of {display_safe(stem)} in {shown} holds NaN or infinity; fetch the file again"
            )
        pairs[stem] = (down, other)
    if not pairs:
        raise FormatError(f"the adapter {shown} holds no pair of matrices; fetch the file again")
    return pairs


def write_adapter(path: Path, adapter: Adapter) -> int:
    """Write an adapter file, its matrices as float32; return its bytes. Raises WriteError."""
    metadata = {
        "general.architecture": string(adapter.architecture),
        "general.type": string(KIND),
        "general.name": string(adapter.name),
        "adapter.type": string("lora"),
        "adapter.lora.alpha": f32(adapter.alpha),
    }
    kind = TENSOR_TYPES["F32"]
    tensors = [
        tensor_from_array(name + ending, half, kind)
        for name, pair in sorted(adapter.pairs.items())
        for ending, half in zip((DOWN, UP), pair, strict=True)
    ]
    write_gguf(path, metadata, tensors)
    return path.stat().st_size
