"""Hadamard-rotated files: what their `prism.hadamard.*` keys say.

Such a file's weights were multiplied by a signed blockwise Walsh-Hadamard matrix; whoever runs it without rotating the
activations too gets garbage, and no tensor type tells.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nanochat_tui.errors import UserError, display_safe
from nanochat_tui.formats.gguf import GGUFValue, metadata_bool, metadata_int, metadata_string, metadata_strings

PREFIX = "prism.hadamard."
KNOWN_VERSIONS = (1, 2)


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


def rotation(metadata: Mapping[str, GGUFValue]) -> Rotation | None:
    """Return the rotation that a file's keys describe, or None if it has none of them. Never raises."""
    if not any(key.startswith(PREFIX) for key in metadata):
        return None
    problems: list[str] = []

    def integer(key: str) -> int:
        try:
            return metadata_int(metadata, PREFIX + key, minimum=1)
        except UserError as error:
            problems.append(str(error))
            return 0

    def names(key: str, needed: bool) -> list[str]:
        if not needed and PREFIX + key not in metadata:
            return []
        try:
            return metadata_strings(metadata, PREFIX + key)
        except UserError as error:
            problems.append(str(error))
            return []

    version, block = integer("version"), integer("block_size")
    weights, inverse = names("weight_names", True), names("inverse_weight_names", False)
    try:
        sign_mode = metadata_string(metadata, PREFIX + "sign_mode", "identity")
        tied = metadata_bool(metadata, PREFIX + "tied_output", False)
    except UserError as error:
        problems.append(str(error))
        sign_mode, tied = "unknown", False
    if version and version not in KNOWN_VERSIONS:
        problems.append(f"its version {version} is not known")
    if block & (block - 1):
        problems.append(f"its block size {block} is not a power of two")
    if sign_mode not in ("identity", "explicit"):
        problems.append(f"its sign mode {display_safe(sign_mode, 40)} is not known")
    return Rotation(
        version, block, len(weights), len(inverse), display_safe(sign_mode, 40), tied, problems[0] if problems else None
    )
