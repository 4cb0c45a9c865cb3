"""Hadamard-rotated files: what their `prism.hadamard.*` keys say.

Such a file's weights were multiplied by a signed blockwise Walsh-Hadamard matrix; a program that does not
rotate the activations too gets garbage, and no tensor type tells.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nanochat_tui.errors import UserError
from nanochat_tui.formats.gguf import GGUFFile
from nanochat_tui.model.architectures.rotation import PREFIX, read_rotation
from nanochat_tui.text import display_safe


@dataclass(frozen=True, slots=True)
class Rotation:
    """What a file says of its rotation; `problem` is what makes it unusable, or None."""

    version: int
    block_size: int
    weights: int
    """Tensors whose inputs are rotated."""
    inverse: int
    """Tensors whose outputs are rotated back, such as the embedding."""
    sign_mode: str
    tied_output: bool
    problem: str | None

    def to_json(self) -> dict[str, Any]:
        """Return the description as JSON values."""
        return {
            "version": self.version,
            "block_size": self.block_size,
            "weights": self.weights,
            "inverse_weights": self.inverse,
            "sign_mode": self.sign_mode,
            "tied_output": self.tied_output,
            "problem": self.problem,
        }

    def sentence(self) -> str:
        """Say it for people."""
        what = f"version {self.version}, blocks of {self.block_size}, {self.weights} tensors"
        return what if self.problem is None else f"{what}; {self.problem}"


def rotation(file: GGUFFile) -> Rotation | None:
    """Return the rotation that a file's keys describe, or None if it has none of them. Never raises.

    Whether it can be used is asked of the reader that the engine uses.
    """
    metadata = file.metadata
    if not any(key.startswith(PREFIX) for key in metadata):
        return None
    try:
        shapes = {name: info.shape for name, info in file.tensors.items()}
        read_rotation(metadata, shapes, tied="output.weight" not in shapes)
        problem = None
    except UserError as error:
        problem = str(error)

    def said(key: str) -> object:
        found = metadata.get(PREFIX + key)
        return None if found is None else found.value

    def integer(key: str) -> int:
        value = said(key)
        return value if isinstance(value, int) else 0

    def length(key: str) -> int:
        value = said(key)
        return len(value) if isinstance(value, list) else 0

    return Rotation(
        version=integer("version"),
        block_size=integer("block_size"),
        weights=length("weight_names"),
        inverse=length("inverse_weight_names"),
        sign_mode=display_safe(str(said("sign_mode")), 40),
        tied_output=said("tied_output") is True,
        problem=problem,
    )
