"""What the engine has to know of a model before it looks at a weight: one description for every architecture.

A model is an embedding, layers of a mixer (attention or a recurrence) and a feed-forward part, a norm and a head. What
differs between architectures is said by values, not by code, so that engine, inspection and server ask the same
questions of all of them. All widths are in elements.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from nanochat_tui.model.config import MHC_RECORD_FLOATS

Role = Literal["table", "norm", "ternary", "mhc", "vector"]
Activation = Literal["silu", "relu2"]
Scaling = Literal["none", "linear", "yarn"]


@dataclass(frozen=True, slots=True)
class Part:
    """One tensor of the model: its shape in NumPy's order, rows (outputs) first, and what it is for.

    Roles: table (embedding, head), norm, ternary (a matrix, whatever its type), mhc, vector (other small floats).
    """

    name: str
    shape: tuple[int, ...]
    role: Role


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary positions over the first `dims` components of a head, the rest left as they are.

    interleaved: pairs are (2i, 2i + 1) and not (i, i + dims / 2). With `yarn` cosines and sines are multiplied by
    `magnitude`, and components between the two bounds (turns within the original context) are blended
    (Peng et al. 2023, as llama.cpp computes it). has_factors: `rope_freqs.weight` divides the frequencies.
    """

    dims: int
    theta: float
    interleaved: bool = False
    scaling: Scaling = "none"
    factor: float = 1.0
    original_context: int = 0
    attention_factor: float = 1.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    has_factors: bool = False

    @property
    def magnitude(self) -> float:
        """What cosines and sines are multiplied by."""
        if self.scaling != "yarn":
            return self.attention_factor
        return self.attention_factor * (1.0 + 0.1 * math.log(self.factor))

    def frequencies(self, factors: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
        """Return radians per position of each pair, float64 [dims / 2]; factors: contents of `rope_freqs.weight`."""
        pairs = np.arange(self.dims // 2)
        plain = self.theta ** (-2.0 * pairs / self.dims)
        if factors is not None:
            plain = plain / factors
        if self.scaling == "none":
            return plain
        if self.scaling == "linear":
            return plain / self.factor

        def bound(turns: float) -> float:
            turned = math.log(self.original_context / (turns * 2 * math.pi))
            return self.dims * turned / (2 * math.log(self.theta))

        low = max(0, math.floor(bound(self.beta_fast)))
        high = min(self.dims - 1, math.ceil(bound(self.beta_slow)))
        keep = 1.0 - np.clip((pairs - low) / max(0.001, high - low), 0.0, 1.0)
        return plain / self.factor * (1.0 - keep) + plain * keep


@dataclass(frozen=True, slots=True)
class Attention:
    """Grouped-query attention. `window`: positions seen, the token's own included; 0 = all.

    qk_norm: RMS norm of every query and key head. sub_norm: RMS norm of the output before its projection.
    gated: each query head brings a gate that the head's output is multiplied by, through a sigmoid.
    """

    heads: int
    kv_heads: int
    head_dim: int
    qk_norm: bool = False
    sub_norm: bool = False
    gated: bool = False
    rotates: bool = True
    window: int = 0

    @property
    def q_dim(self) -> int:
        """Width of all query heads."""
        return self.heads * self.head_dim

    @property
    def kv_dim(self) -> int:
        """Width of all key (or value) heads."""
        return self.kv_heads * self.head_dim


@dataclass(frozen=True, slots=True)
class DeltaNet:
    """Gated delta rule: a state [value width, key width] per value head instead of a cache (Yang et al. 2024).

    Value head h reads key head h modulo key_heads. `taps` inputs of a causal convolution precede it.
    """

    key_heads: int
    value_heads: int
    width: int
    taps: int = 4

    @property
    def key_dim(self) -> int:
        """Width of all key (or query) heads."""
        return self.key_heads * self.width

    @property
    def value_dim(self) -> int:
        """Width of all value heads."""
        return self.value_heads * self.width

    @property
    def channels(self) -> int:
        """Width of the convolution: queries, keys and values."""
        return 2 * self.key_dim + self.value_dim

    @property
    def state_floats(self) -> int:
        """Floats that a sequence keeps for this layer: all heads' states and the convolution's last inputs."""
        return self.value_heads * self.width * self.width + (self.taps - 1) * self.channels


@dataclass(frozen=True, slots=True)
class FeedForward:
    """activation(gate) · up, then down. experts > 0: that many of them, `used` per token, chosen by a router.

    clamp: > 0 bounds the gate from above and up on both sides before the product.
    """

    hidden: int
    activation: Activation = "silu"
    sub_norm: bool = False
    experts: int = 0
    used: int = 0
    clamp: float = 0.0


@dataclass(frozen=True, slots=True)
class Layer:
    """One block. ffn_norm: name of the norm before the feed-forward part."""

    mixer: Attention | DeltaNet
    ffn: FeedForward
    ffn_norm: str = "ffn_norm"


@dataclass(frozen=True, slots=True)
class Rotation:
    """A signed blockwise Walsh-Hadamard transform that was folded into weights (keys `prism.hadamard.*`).

    Before each matrix of `forward`: x' = H_block (x · signs[width]) / sqrt(block), block by block; an embedding row z
    of `inverse` means signs · (H z / sqrt(block)). signs: ±1 float32 by width; a width without an entry has none.
    grouped_values: `ssm_out` takes its heads in the order (key head, repeat), not (repeat, key head).
    """

    block: int
    signs: dict[int, NDArray[np.float32]]
    forward: frozenset[str]
    inverse: frozenset[str]
    grouped_values: bool = False


@dataclass(frozen=True, slots=True)
class HyperConnections:
    """Residual streams that a small matrix mixes around every attention and feed-forward part (mHC-lite).

    streams: 1 (a plain residual, no records), 2 or 4. version: of the records' meaning, see `model.mhc`.
    """

    streams: int
    version: Literal[1, 2]


@dataclass(frozen=True, slots=True)
class Architecture:
    """A whole model. Scales multiply: embedding rows, each residual branch, the logits.

    `hyper` is None where the architecture has no such thing. `notes` are sentences for stderr.
    `optional` tensors may be there: biases and scales of matrices, by name with their shape.
    """

    name: str
    dim: int
    vocab_size: int
    context_length: int
    layers: tuple[Layer, ...]
    rope: Rope
    norm_eps: float
    tied: bool = True
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    logit_scale: float = 1.0
    rotation: Rotation | None = None
    hyper: HyperConnections | None = None
    notes: tuple[str, ...] = ()
    unnamed: int = 0
    """Rows at the end of embedding and head that stand for no token: padding, whose logits are -infinity."""
    present: frozenset[str] = frozenset()
    """Names of the file's optional tensors (biases, scales of matrices) that take part."""
    token_scales: bool = False
    """Whether the model was trained with int8 inputs of its linears, one scale per token, which are computed with
    then; for others several scales per token are nearer to what was trained."""
    rounds_head: bool = False
    """Whether the model was trained with the head's input as int8, one scale per 32 values."""
    ignored: frozenset[str] = frozenset()
    """Names of tensors that the file may hold and that take no part: blocks that predict further tokens."""
    own_format: bool = False
    """Whether only this project's exporter writes such files: widths may be any then, tensor types may not."""

    @property
    def n_layers(self) -> int:
        """Number of blocks."""
        return len(self.layers)

    @property
    def attentions(self) -> list[Attention]:
        """The attention layers, in order."""
        return [layer.mixer for layer in self.layers if isinstance(layer.mixer, Attention)]

    @property
    def recurrences(self) -> list[DeltaNet]:
        """The recurrent layers, in order."""
        return [layer.mixer for layer in self.layers if isinstance(layer.mixer, DeltaNet)]

    @property
    def n_streams(self) -> int:
        """Residual streams; 1 is a plain residual."""
        return self.hyper.streams if self.hyper is not None else 1

    @property
    def mhc_records(self) -> int:
        """Number of mHC records: attention and feed-forward of every block; 0 for a plain residual."""
        return 0 if self.n_streams == 1 else 2 * self.n_layers

    @property
    def n_heads(self) -> int:
        """Query heads of an attention layer (all layers agree)."""
        return self.attentions[0].heads

    @property
    def n_kv_heads(self) -> int:
        """Key-value heads of an attention layer (all layers agree)."""
        return self.attentions[0].kv_heads

    @property
    def head_dim(self) -> int:
        """Width of one attention head (all layers agree)."""
        return self.attentions[0].head_dim

    @property
    def n_cached_layers(self) -> int:
        """Layers that keep keys and values."""
        return len(self.attentions)

    @property
    def state_floats(self) -> int:
        """Floats of recurrent state per sequence."""
        return sum(layer.state_floats for layer in self.recurrences)

    @property
    def parameters(self) -> int:
        """Number of weights in the file's tensors."""
        return sum(math.prod(part.shape) for part in self.parts())

    def parts(self) -> Iterator[Part]:
        """Yield every tensor that the model is made of, in the order of this project's files."""
        table = (self.vocab_size, self.dim)
        yield Part("token_embd.weight", table, "table")
        yield Part("output_norm.weight", (self.dim,), "norm")
        if not self.tied:
            yield Part("output.weight", table, "table")
        if self.rope.has_factors:
            yield Part("rope_freqs.weight", (self.rope.dims // 2,), "vector")
        for number, layer in enumerate(self.layers):
            for part in layer_parts(layer, self.dim):
                name = f"blk.{number}.{part.name}"
                yield Part(name, part.shape, part.role)
                if part.role == "ternary":
                    yield from self._extras(name.removesuffix(".weight"), part.shape)
            if self.n_streams > 1:
                record = (MHC_RECORD_FLOATS[self.n_streams],)
                yield Part(f"blk.{number}.attn_mhc", record, "mhc")
                yield Part(f"blk.{number}.ffn_mhc", record, "mhc")

    def _extras(self, stem: str, shape: tuple[int, ...]) -> Iterator[Part]:
        if f"{stem}.bias" in self.present:
            yield Part(f"{stem}.bias", shape[:-1], "vector")
        if f"{stem}.scale" in self.present:
            yield Part(f"{stem}.scale", (1,), "vector")


def layer_parts(layer: Layer, dim: int) -> Iterator[Part]:
    """Yield a block's tensors, named without the block's prefix."""

    def matrix(name: str, rows: int, columns: int) -> Part:
        return Part(f"{name}.weight", (rows, columns), "ternary")

    yield Part("attn_norm.weight", (dim,), "norm")
    mixer, ffn = layer.mixer, layer.ffn
    if isinstance(mixer, Attention):
        yield matrix("attn_q", mixer.q_dim * (2 if mixer.gated else 1), dim)
        yield matrix("attn_k", mixer.kv_dim, dim)
        yield matrix("attn_v", mixer.kv_dim, dim)
        yield matrix("attn_output", dim, mixer.q_dim)
        if mixer.qk_norm:
            yield Part("attn_q_norm.weight", (mixer.head_dim,), "norm")
            yield Part("attn_k_norm.weight", (mixer.head_dim,), "norm")
        if mixer.sub_norm:
            yield Part("attn_sub_norm.weight", (mixer.q_dim,), "norm")
    else:
        yield matrix("attn_qkv", mixer.channels, dim)
        yield matrix("attn_gate", mixer.value_dim, dim)
        yield matrix("ssm_alpha", mixer.value_heads, dim)
        yield matrix("ssm_beta", mixer.value_heads, dim)
        yield Part("ssm_conv1d.weight", (mixer.channels, mixer.taps), "vector")
        yield Part("ssm_dt.bias", (mixer.value_heads,), "vector")
        yield Part("ssm_a", (mixer.value_heads,), "vector")
        yield Part("ssm_norm.weight", (mixer.width,), "norm")
        yield matrix("ssm_out", dim, mixer.value_dim)
    yield Part(f"{layer.ffn_norm}.weight", (dim,), "norm")
    if ffn.experts:
        yield Part("ffn_gate_inp.weight", (ffn.experts, dim), "ternary")
        yield Part("ffn_gate_exps.weight", (ffn.experts, ffn.hidden, dim), "ternary")
        yield Part("ffn_up_exps.weight", (ffn.experts, ffn.hidden, dim), "ternary")
        yield Part("ffn_down_exps.weight", (ffn.experts, dim, ffn.hidden), "ternary")
    else:
        yield matrix("ffn_gate", ffn.hidden, dim)
        yield matrix("ffn_up", ffn.hidden, dim)
        yield matrix("ffn_down", dim, ffn.hidden)
        if ffn.sub_norm:
            yield Part("ffn_sub_norm.weight", (ffn.hidden,), "norm")
