"""Adapters (see `formats.adapters`) packed for the matrices they belong to, stacked and reordered as those are.

Adapters of one matrix are put together: their ranks one after another, each with its scale in the second half. Of a
stack of tensors every tensor has ranks of its own, and zeros for the rows of the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nanochat_tui.engine.layout.memory import round_up
from nanochat_tui.engine.layout.slots import ROW_BLOCK
from nanochat_tui.engine.weights.matrices import Matrix, MatrixPlan
from nanochat_tui.engine.weights.pack import pack_dense
from nanochat_tui.errors import UserError
from nanochat_tui.formats.adapters import Adapter, read_adapter
from nanochat_tui.formats.gguf import GGUFFile
from nanochat_tui.model.architectures.description import Architecture
from nanochat_tui.text import display_safe

Half = NDArray[np.float32]
MATRICES = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
"""Matrices of a block that adapters are applied to."""


@dataclass(frozen=True, slots=True)
class LoraFile:
    """An adapter to apply, as it is asked for: its file and a factor of its own scale."""

    path: Path
    scale: float = 1.0


class Adapters:
    """The adapters of a model, checked against its file."""

    def __init__(self, files: Sequence[LoraFile], model: GGUFFile, shape: Architecture) -> None:
        """Read the files. Raises UserError for one that is damaged, another model's, or for matrices without one."""
        self._found = [(read_adapter(file.path), file) for file in files]
        if files and shape.rotation is not None:
            raise UserError("adapters are not applied to models whose activations are rotated; leave --lora out")
        for adapter, file in self._found:
            _check(adapter, file, model, shape)

    @property
    def nbytes(self) -> int:
        """Bytes of all pairs, about what they take packed."""
        return sum(4 * adapter.parameters for adapter, _ in self._found)

    def added(self, matrix: Matrix, plan: MatrixPlan) -> Matrix:
        """Return a matrix with what belongs to its tensors: outputs get up (down x) added.

        down: float32 [rank][columns], up: [rows][rank]; the rank is of all adapters together, in whole blocks.
        """
        downs: list[Half] = []
        ups: list[Half] = []
        for down, up in self._halves(plan):
            downs.append(down)
            ups.append(up)
        if not downs:
            return matrix
        down, up = np.concatenate(downs), np.concatenate(ups, axis=1)
        missing = round_up(len(down), ROW_BLOCK) - len(down)
        up = np.pad(up, ((0, 0), (0, missing)))
        return replace(matrix, down=pack_dense(down, ROW_BLOCK), up=pack_dense(up, plan.multiple))

    def _halves(self, plan: MatrixPlan) -> Iterator[tuple[Half, Half]]:
        """Yield a [rank, columns] and b [rows of the stack, rank], scaled, of every adapter of each of the tensors."""
        count = sum(len(wanted) for _, wanted in plan.stack)
        for name in plan.names:
            for adapter, file in self._found:
                if name not in adapter.pairs:
                    continue
                down, up = adapter.pairs[name]
                rows: Half = np.zeros((count, len(down)), np.float32)
                start = 0
                for tensor, wanted in plan.stack:
                    if tensor == name:
                        rows[start : start + len(wanted)] = up[np.asarray(wanted)]
                    start += len(wanted)
                yield down, rows * np.float32(adapter.scale(name) * file.scale)


def _check(adapter: Adapter, file: LoraFile, model: GGUFFile, shape: Architecture) -> None:
    shown = display_safe(str(file.path))
    if not np.isfinite(file.scale):
        raise UserError(f"the scale {file.scale} of the adapter {shown} is no number; give one such as 0.5")
    if adapter.architecture != shape.name:
        other = display_safe(adapter.architecture) or "not named"
        raise UserError(f"the adapter {shown} is for the architecture {other}, and the model is {shape.name}")
    usable = {
        f"blk.{number}.{name}.weight"
        for number, layer in enumerate(shape.layers)
        for name in MATRICES
        if not (layer.ffn.experts and name.startswith("ffn"))
    }
    for name, (down, up) in adapter.pairs.items():
        said = display_safe(name)
        if name not in usable or name not in model.tensors:
            kinds = ", ".join(MATRICES)
            raise UserError(f"the adapter {shown} changes {said}; adapters are applied to {kinds} of blocks only")
        rows, columns = len(up), down.shape[1]
        if model.tensor(name).shape != (rows, columns):
            wanted = " x ".join(map(str, model.tensor(name).shape))
            raise UserError(f"the adapter {shown} is for {said} of {rows} x {columns}, and the model's is {wanted}")
