"""Reading a description's values from metadata, with limits that no real model comes near."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from nanochat_tui.errors import UserError
from nanochat_tui.formats.gguf import (
    GGUFFile,
    GGUFValue,
    metadata_bool,
    metadata_float,
    metadata_int,
    metadata_integers,
    metadata_string,
)
from nanochat_tui.model.architectures.description import Attention, FeedForward, Rope, Scaling
from nanochat_tui.text import display_safe

MAX_EXPERTS = 4096
MAX_LAYERS = 1024
"""More blocks than any model has: a damaged count is refused before tensors are looked for."""
MAX_WIDTH = 1 << 24
MAX_POSITIONS = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Keys:
    """Metadata and tensor shapes of a file, read below the prefix of its architecture."""

    prefix: str
    metadata: Mapping[str, GGUFValue]
    shapes: Mapping[str, tuple[int, ...]]
    used: set[str] = field(default_factory=set, compare=False)
    """Keys that were read: what a description did not ask for is looked at by `namespace`."""

    @classmethod
    def of(cls, file: GGUFFile) -> Keys:
        """Return the keys of a file's own architecture."""
        name = metadata_string(file.metadata, "general.architecture")
        return cls(name, file.metadata, {info.name: info.shape for info in file.tensors.values()})

    def _name(self, key: str) -> str:
        name = f"{self.prefix}.{key}"
        self.used.add(name)
        return name

    def value(self, key: str) -> GGUFValue | None:
        """Return a value as it is in the file, or None."""
        return self.metadata.get(self._name(key))

    def count(self, key: str, default: int | None = None, *, maximum: int = MAX_WIDTH, minimum: int = 1) -> int:
        """Return an integer within limits; without default the key has to be there. Raises UserError."""
        name = self._name(key)
        if default is None:
            return metadata_int(self.metadata, name, minimum=minimum, maximum=maximum)
        return metadata_int(self.metadata, name, default, minimum=minimum, maximum=maximum)

    def number(self, key: str, default: float | None = None) -> float:
        """Return a positive float, as the shortest decimal that is this float32. Raises UserError."""
        name = self._name(key)
        value = metadata_float(self.metadata, name) if default is None else metadata_float(self.metadata, name, default)
        if value <= 0:
            raise UserError(f"the file's {name} is {value:g} and must be above 0; export it again")
        return float(str(np.float32(value)))

    def text(self, key: str, default: str) -> str:
        """Return a text. Raises UserError if it is something else."""
        return metadata_string(self.metadata, self._name(key), default)

    def flag(self, key: str, default: bool) -> bool:
        """Return a truth value. Raises UserError if it is something else."""
        return metadata_bool(self.metadata, self._name(key), default)

    def has(self, key: str) -> bool:
        """Whether the file has a key."""
        return self._name(key) in self.metadata

    def per_layer(self, key: str, layers: int) -> list[int] | None:
        """Return an array with one entry per layer (numbers or truth values), or None. Raises UserError."""
        name = self._name(key)
        found = self.metadata.get(name)
        if found is None:
            return None
        values = found.value
        if isinstance(values, np.ndarray) and values.dtype == np.dtype(bool):
            listed = [int(v) for v in values]
        else:
            listed = [int(v) for v in metadata_integers(self.metadata, name)]
        if len(listed) < layers:
            raise UserError(f"the file's {name} has {len(listed)} entries for {layers} layers; export it again")
        return listed[:layers]

    @property
    def layers(self) -> int:
        """Number of blocks."""
        return self.count("block_count", maximum=MAX_LAYERS)

    @property
    def dim(self) -> int:
        """Width of the residual stream."""
        return self.count("embedding_length")

    @property
    def context(self) -> int:
        """Longest context that the model was made for."""
        return self.count("context_length", maximum=MAX_POSITIONS)

    @property
    def epsilon(self) -> float:
        """The norms' epsilon."""
        return self.number("attention.layer_norm_rms_epsilon")

    @property
    def vocabulary(self) -> int:
        """Rows of the embedding: what the file holds, whatever a key claims."""
        shape = self.shapes.get("token_embd.weight", ())
        if len(shape) != 2:
            raise UserError("the file has no embedding (token_embd.weight), so it is no model to run on its own")
        return shape[0]

    @property
    def tied(self) -> bool:
        """Whether the embedding is the head too."""
        return "output.weight" not in self.shapes

    @property
    def optional(self) -> frozenset[str]:
        """Biases and scales of matrices."""
        ends = (".bias", ".scale")
        return frozenset(name for name in self.shapes if name.startswith("blk.") and name.endswith(ends))

    def _heads(self, key: str, default: int | None = None) -> int:
        """Return a number of heads. An array has one per layer, 0 for a layer without attention; the others agree."""
        name = self._name(key)
        if not self._is_array(key):
            return self.count(key, default)
        found = set(metadata_integers(self.metadata, name).tolist()) - {0}
        if len(found) != 1:
            raise UserError(
                f"the attention layers have different numbers of heads or none at all ({display_safe(name)}), and this "
                "version runs only models in which they are alike; take another model"
            )
        heads = int(found.pop())
        if not 0 < heads <= MAX_WIDTH:
            raise UserError(
                f"the file's {display_safe(name)} holds {heads}, which is no number of heads; fetch it again"
            )
        return heads

    def _is_array(self, key: str) -> bool:
        found = self.metadata.get(self._name(key))
        return found is not None and isinstance(found.value, np.ndarray)

    def without_attention(self, layers: int) -> list[int] | None:
        """Return 1 for every layer that has no key heads and 0 for the others, or None if the file does not tell."""
        key = "attention.head_count_kv"
        listed = self.per_layer(key, layers) if self._is_array(key) else None
        return None if listed is None or all(listed) else [int(heads == 0) for heads in listed]

    def attention(self, *, qk_norm: bool = False, sub_norm: bool = False, hybrid: bool = False) -> Attention:
        """Return the usual description of attention: head counts, and a head width that may be given.

        hybrid: other layers than attention are expected. Raises UserError.
        """
        heads = self._heads("attention.head_count")
        kv_heads = self._heads("attention.head_count_kv", heads)
        if not hybrid and self.without_attention(self.layers) is not None:
            raise UserError(
                f"the file's {self.prefix}.attention.head_count_kv says that a layer has no attention, and models of "
                "this architecture have it in every layer; the file is damaged, fetch it again"
            )
        if self.has("attention.key_length"):
            width = self.count("attention.key_length")
        elif self.dim % heads:
            raise UserError(f"{heads} heads do not divide the width {self.dim}; the file is damaged")
        else:
            width = self.dim // heads
        if self.count("attention.value_length", width) != width:
            raise UserError(
                "keys and values of different widths cannot be run by this version; use llama.cpp for this model"
            )
        if heads % kv_heads:
            raise UserError(f"{heads} query heads cannot share {kv_heads} key heads; the file is damaged")
        return Attention(heads, kv_heads, width, qk_norm=qk_norm, sub_norm=sub_norm)

    def window(self) -> int:
        """Return the positions that every layer sees, its own included; 0 for all of them. Raises UserError."""
        window = self.count("attention.sliding_window", 0, minimum=0, maximum=MAX_POSITIONS)
        window = 0 if window >= self.context else window
        if self.has("attention.sliding_window_pattern") and window:
            raise UserError(
                f"the file gives some layers a window of {window} positions ({self.prefix}.attention."
                "sliding_window_pattern), which this version does not do for this architecture; use llama.cpp"
            )
        return window

    def feed_forward(self) -> FeedForward:
        """Return the usual gated feed-forward part."""
        return FeedForward(self.count("feed_forward_length"))

    def rope(self, dims: int, *, interleaved: bool = False, theta: float = 10_000.0) -> Rope:
        """Return how positions are rotated; dims: what `rope.dimension_count` is when it is not there."""
        dims = self.count("rope.dimension_count", dims)
        # as llama.cpp reads it: without a type a factor is a linear one, and the type "none" overrules a factor
        kind = self.text("rope.scaling.type", "linear")
        if kind not in ("none", "linear", "yarn"):
            raise UserError(
                f"positions scaled by {display_safe(kind)} cannot be run by this version, only linear and yarn; use "
                "llama.cpp for this model"
            )
        scaling: Scaling = "linear" if kind == "linear" else "yarn" if kind == "yarn" else "none"
        factor = self.number("rope.scaling.factor", self.number("rope.scale_linear", 1.0))
        if self.number("rope.scaling.yarn_ext_factor", 1.0) != 1.0:
            raise UserError(
                "a YaRN extrapolation factor other than 1 cannot be run by this version; use llama.cpp for this model"
            )
        original = self.count("rope.scaling.original_context_length", self.context, maximum=MAX_POSITIONS)
        if dims % 2:
            raise UserError(f"{dims} rotated components are odd, and they turn in pairs; the file is damaged")
        if factor == 1.0 and scaling == "linear":
            scaling = "none"
        return Rope(
            dims,
            self.number("rope.freq_base", theta),
            interleaved=interleaved,
            scaling=scaling,
            factor=factor,
            original_context=original,
            attention_factor=self.number("rope.scaling.attn_factor", 1.0),
            beta_fast=self.number("rope.scaling.yarn_beta_fast", 32.0),
            beta_slow=self.number("rope.scaling.yarn_beta_slow", 1.0),
            has_factors="rope_freqs.weight" in self.shapes,
        )
