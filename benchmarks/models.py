"""Synthetic models of published shapes, for measuring: right in every byte, random in every weight.

    python benchmarks/models.py SHAPE OUT.gguf [--type Q2_0] [--table Q6_K]

A tensor repeats one megabyte of random blocks from random places, so that a model of two gigabytes is written in
seconds. Scales are such that activations keep their size from layer to layer. The vocabulary has its real size and
invented tokens, none of which ends a text.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nanochat_tui.formats.gguf import (
    GGUFValue,
    TensorData,
    TensorSource,
    ValueType,
    array,
    boolean,
    f32,
    string,
    tensor_from_array,
    u32,
    write_gguf,
)
from nanochat_tui.formats.tensor_types import TENSOR_TYPES, TensorType, encode_ternary
from nanochat_tui.model.architectures import nanochat
from nanochat_tui.model.config import PRESETS
from nanochat_tui.model.tokenizer.codec import byte_alphabet

POOL_BYTES = 1 << 20
INTERVAL, TAPS, STATE = 4, 4, 128
"""Of hybrids: every how many layers attention comes, taps of their convolution, width of a head of their states."""
UNROTATED = ("ssm_alpha", "ssm_beta", "ssm_conv1d")
"""Matrices that read what is not rotated."""


@dataclass(frozen=True, slots=True)
class Shape:
    """A decoder's widths in elements, and the types of its matrices and of its embedding and head."""

    architecture: str
    layers: int
    dim: int
    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    vocab: int
    ternary: str
    table: str
    context: int = 4096
    theta: float = 1e6
    eps: float = 1e-6
    tied: bool = True
    experts: int = 0
    used: int = 0
    """Experts of `hidden` units, and how many of them a token takes; 0 for a plain feed-forward part."""
    key_heads: int = 0
    value_heads: int = 0
    """Heads of the gated delta rule in three layers of four, of STATE components each; 0: attention everywhere."""
    rotation: int = 0
    """Block of the Walsh-Hadamard transform that is folded into the weights; 0: none."""

    def recurrent(self, layer: int) -> bool:
        """Whether a layer has a gated delta rule in place of attention."""
        return self.key_heads > 0 and (layer + 1) % INTERVAL != 0

    @property
    def metadata(self) -> dict[str, GGUFValue]:
        """The keys that describe it, under llama.cpp's names."""
        name = self.architecture
        return (
            self._experts_metadata
            | self._hybrid_metadata
            | {
                "general.architecture": string(name),
                f"{name}.block_count": u32(self.layers),
                f"{name}.context_length": u32(self.context),
                f"{name}.embedding_length": u32(self.dim),
                f"{name}.feed_forward_length": u32(self.hidden),
                f"{name}.attention.head_count": u32(self.heads),
                f"{name}.attention.head_count_kv": u32(self.kv_heads),
                f"{name}.attention.key_length": u32(self.head_dim),
                f"{name}.attention.value_length": u32(self.head_dim),
                f"{name}.attention.layer_norm_rms_epsilon": f32(self.eps),
                f"{name}.rope.freq_base": f32(self.theta),
                f"{name}.rope.dimension_count": u32(self._rotary),
                f"{name}.vocab_size": u32(self.vocab),
            }
        )

    @property
    def _rotary(self) -> int:
        """Components of a head that carry positions."""
        if self.key_heads:
            return self.head_dim // 4
        return self.head_dim // 2 if self.experts else self.head_dim

    @property
    def _hybrid_metadata(self) -> dict[str, GGUFValue]:
        """What Qwen 3.5 has in addition to the usual keys."""
        name = self.architecture
        if not self.key_heads:
            return {}
        return {
            f"{name}.full_attention_interval": u32(INTERVAL),
            f"{name}.ssm.conv_kernel": u32(TAPS),
            f"{name}.ssm.state_size": u32(STATE),
            f"{name}.ssm.group_count": u32(self.key_heads),
            f"{name}.ssm.time_step_rank": u32(self.value_heads),
            f"{name}.ssm.inner_size": u32(self.value_heads * STATE),
        }

    @property
    def _experts_metadata(self) -> dict[str, GGUFValue]:
        """What Maple has in addition to the usual keys: experts, and a window in three layers of four."""
        name = self.architecture
        if not self.experts:
            return {}
        return {
            f"{name}.expert_count": u32(self.experts),
            f"{name}.expert_used_count": u32(self.used),
            f"{name}.expert_feed_forward_length": u32(self.hidden),
            f"{name}.attention.sliding_window": u32(512),
            f"{name}.attention.sliding_window_pattern": array(np.arange(1, self.layers + 1) % 4 != 0),
            f"{name}.swiglu_clamp_exp": array(np.full(self.layers, 7.0, np.float32)),
        }


D20 = PRESETS["d20"]
SHAPES = {
    "d20": Shape("nanochat", 6, 256, 4, 4, 64, 768, 50_257, "Q2_0", "Q8_0", 2048, 1e4),
    "d20-llama": Shape("llama", 6, 256, 4, 4, 64, 768, 50_257, "TQ2_0", "Q8_0", 2048, 1e4),
    "2b4t": Shape("bitnet", 30, 2560, 20, 5, 128, 6912, 128_256, "TQ2_0", "Q6_K", 4096, 5e5, 1e-5),
    "1b": Shape("llama", 16, 2048, 32, 8, 64, 8192, 128_256, "TQ2_0", "Q6_K", 8192, 5e5, 1e-5),
    "bonsai-1.7b": Shape("qwen3", 28, 2048, 16, 8, 128, 6144, 151_669, "Q2_0", "Q2_0", 4096),
    "bonsai-4b": Shape("qwen3", 36, 2560, 32, 8, 128, 9728, 151_669, "Q2_0", "Q2_0", 4096),
    "bonsai-8b": Shape("qwen3", 36, 4096, 32, 8, 128, 12_288, 151_669, "Q2_0", "Q2_0", 4096, tied=False),
    "bonsai-2-2b": Shape(
        "qwen35", 24, 2048, 8, 2, 256, 6144, 248_320, "PTQ1_0", "PTQ1_0", 4096, 1e7,
        key_heads=16, value_heads=16, rotation=2048,
    ),
    "bonsai-2-4b": Shape(
        "qwen35", 32, 2560, 16, 4, 256, 9216, 248_320, "PTQ1_0", "PTQ1_0", 4096, 1e7,
        key_heads=16, value_heads=32, rotation=512,
    ),
    "tiny": Shape("llama", 2, 256, 4, 2, 64, 512, 512, "TQ2_0", "Q8_0", 2048, 1e4),
    "maple": Shape(
        "maple", 24, 2048, 16, 4, 128, 512, 151_936, "TQ2_0", "Q4_K", 4096, 1e4, tied=False, experts=256, used=8
    ),
}  # fmt: skip
"""Published shapes by name; 1b is Llama 3.2's with a shorter context; d20-llama is d20 without mHC, as llama.cpp can
run it; tiny is to try a command with."""


def write_model(path: Path, shape: Shape, seed: int = 0) -> Path:
    """Write a model of a shape. Raises ValueError if a type cannot hold a width."""
    rng = np.random.default_rng(seed)
    metadata = nanochat_metadata(shape) if shape.architecture == "nanochat" else shape.metadata
    path.parent.mkdir(parents=True, exist_ok=True)
    made = list(tensors(shape, rng))
    if shape.rotation:
        metadata |= rotation_metadata(shape, made, rng)
    write_gguf(path, metadata | tokenizer_metadata(shape.vocab), made)
    return path


def nanochat_metadata(shape: Shape) -> dict[str, GGUFValue]:
    """Return the keys of d20 with this vocabulary and context."""
    return nanochat.to_metadata(D20.with_(vocab_size=shape.vocab, context_length=shape.context))


def rotation_metadata(
    shape: Shape, made: list[TensorData | TensorSource], rng: np.random.Generator
) -> dict[str, GGUFValue]:
    """Return the keys that say that all matrices and the embedding are rotated, with signs at random."""
    matrices = [each for each in made if len(each.shape) == 2 and not any(part in each.name for part in UNROTATED)]
    widths = sorted({each.shape[-1] for each in matrices})
    signs = np.concatenate([rng.choice(np.array([-1, 1], np.int8), width) for width in widths])
    prefix = "prism.hadamard."
    return {
        f"{prefix}version": u32(2 if shape.tied else 1),
        f"{prefix}block_size": u32(shape.rotation),
        f"{prefix}transform": string("normalized-sylvester-walsh-hadamard"),
        f"{prefix}axis": string("input-last-dimension"),
        f"{prefix}sign_mode": string("explicit"),
        f"{prefix}weight_names": array([each.name for each in matrices if each.name != "token_embd.weight"]),
        f"{prefix}inverse_weight_names": array(["token_embd.weight"]),
        f"{prefix}sign_widths": array(np.array(widths, np.int32)),
        f"{prefix}sign_values": array(signs),
        f"{prefix}gdn_v_grouped": boolean(True),
    } | ({f"{prefix}tied_output": boolean(True)} if shape.tied else {})


def tokenizer_metadata(vocab: int) -> dict[str, GGUFValue]:
    """Return a byte-level vocabulary of this size: the bytes, and names that no text contains."""
    tokens = [*byte_alphabet(), *(f"token{index}" for index in range(256, vocab))]
    return {
        "tokenizer.ggml.model": string("gpt2"),
        "tokenizer.ggml.pre": string("gpt-2"),
        "tokenizer.ggml.tokens": array(tokens),
        "tokenizer.ggml.token_type": array(np.ones(vocab, np.int32)),
        "tokenizer.ggml.merges": array([], ValueType.STRING),
        "tokenizer.ggml.add_bos_token": boolean(False),
    }


def tensors(shape: Shape, rng: np.random.Generator) -> Iterator[TensorData | TensorSource]:
    """Yield the tensors of a model in the order of the forward pass."""
    q, kv, sub_norms = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim, "bitnet" in shape.architecture
    norm = partial(_norm, rng)
    table = partial(_random, rng, kind=shape.table, size=1.0 / np.sqrt(shape.dim))

    def matrix(name: str, rows: int, columns: int) -> TensorSource:
        return _random(rng, name, (rows, columns), shape.ternary, 1.2 / np.sqrt(columns))

    def experts(name: str, rows: int, columns: int) -> TensorSource:
        return _random(rng, name, (shape.experts, rows, columns), shape.ternary, 1.2 / np.sqrt(columns))

    yield table("token_embd.weight", (shape.vocab, shape.dim))
    yield norm("output_norm.weight", shape.dim)
    if not shape.tied:
        yield table("output.weight", (shape.vocab, shape.dim))
    for layer in range(shape.layers):
        b = f"blk.{layer}."
        yield norm(f"{b}attn_norm.weight", shape.dim)
        if shape.recurrent(layer):
            yield from _delta_net(shape, b, rng)
        else:
            yield matrix(f"{b}attn_q.weight", q * (2 if shape.key_heads else 1), shape.dim)
            yield matrix(f"{b}attn_k.weight", kv, shape.dim)
            yield matrix(f"{b}attn_v.weight", kv, shape.dim)
            yield matrix(f"{b}attn_output.weight", shape.dim, q)
            if shape.architecture in ("qwen3", "qwen35", "maple"):
                yield norm(f"{b}attn_q_norm.weight", shape.head_dim)
                yield norm(f"{b}attn_k_norm.weight", shape.head_dim)
        yield norm(f"{b}post_attention_norm.weight" if shape.key_heads else f"{b}ffn_norm.weight", shape.dim)
        if shape.experts:
            router = rng.normal(0.0, 1.0 / np.sqrt(shape.dim), (shape.experts, shape.dim)).astype(np.float32)
            yield tensor_from_array(f"{b}ffn_gate_inp.weight", router, TENSOR_TYPES["F32"])
            yield experts(f"{b}ffn_gate_exps.weight", shape.hidden, shape.dim)
            yield experts(f"{b}ffn_up_exps.weight", shape.hidden, shape.dim)
            yield experts(f"{b}ffn_down_exps.weight", shape.dim, shape.hidden)
        else:
            yield matrix(f"{b}ffn_gate.weight", shape.hidden, shape.dim)
            yield matrix(f"{b}ffn_up.weight", shape.hidden, shape.dim)
            yield matrix(f"{b}ffn_down.weight", shape.dim, shape.hidden)
        if sub_norms:
            yield norm(f"{b}attn_sub_norm.weight", q)
            yield norm(f"{b}ffn_sub_norm.weight", shape.hidden)
        if shape.architecture == "nanochat":
            for part in ("attn", "ffn"):
                record = rng.normal(0.0, 1.0, 9).astype(np.float32)
                yield tensor_from_array(f"{b}{part}_mhc", record, TENSOR_TYPES["F32"])


def _delta_net(shape: Shape, b: str, rng: np.random.Generator) -> Iterator[TensorData | TensorSource]:
    """Yield the mixer of a layer with a gated delta rule."""
    values = shape.value_heads * STATE
    channels = 2 * shape.key_heads * STATE + values

    def matrix(name: str, rows: int, columns: int) -> TensorSource:
        return _random(rng, f"{b}{name}.weight", (rows, columns), shape.ternary, 1.2 / np.sqrt(columns))

    def plain(name: str, numbers: NDArray[np.float64], kind: str = "F32") -> TensorData:
        return tensor_from_array(f"{b}{name}", numbers.astype(np.float32), TENSOR_TYPES[kind])

    yield matrix("attn_qkv", channels, shape.dim)
    yield matrix("attn_gate", values, shape.dim)
    for name in ("ssm_alpha.weight", "ssm_beta.weight"):
        yield plain(name, rng.normal(0.0, 1.0 / np.sqrt(shape.dim), (shape.value_heads, shape.dim)), "BF16")
    yield plain("ssm_conv1d.weight", rng.normal(0.0, 0.5, (channels, TAPS)))
    yield plain("ssm_dt.bias", rng.uniform(-1.0, 1.0, shape.value_heads))
    yield plain("ssm_a", -np.exp(rng.uniform(-2.0, 0.5, shape.value_heads)))
    yield _norm(rng, f"{b}ssm_norm.weight", STATE)
    yield matrix("ssm_out", shape.dim, values)


def _norm(rng: np.random.Generator, name: str, width: int) -> TensorData:
    return tensor_from_array(name, rng.uniform(0.8, 1.2, width).astype(np.float32), TENSOR_TYPES["F32"])


def _random(rng: np.random.Generator, name: str, shape: tuple[int, ...], kind: str, size: float) -> TensorSource:
    """Return a tensor of random weights with about this standard deviation."""
    made = TENSOR_TYPES[kind]
    total = int(np.prod(shape)) // made.block_elements * made.block_bytes
    return TensorSource(name, shape, made, partial(_repeat, int(rng.integers(1 << 30)), made, total, size))


def _repeat(seed: int, kind: TensorType, total: int, size: float) -> Iterable[NDArray[np.uint8]]:
    rng, pool = np.random.default_rng(seed), _pool(kind.name, float(size))
    width = kind.block_bytes
    doubled = np.concatenate([pool, pool])
    left = total
    while left:
        take = min(left, len(pool))
        start = int(rng.integers(len(pool) // width)) * width
        yield doubled[start : start + take]
        left -= take
    if kind.tail_bytes:
        tail = np.zeros(kind.tail_bytes, np.uint8)
        tail[:4] = np.array([size * 1.2], "<f4").view(np.uint8)
        yield tail


@cache
def _pool(name: str, size: float) -> NDArray[np.uint8]:
    """Return about a megabyte of random blocks, flat."""
    kind, rng = TENSOR_TYPES[name], np.random.default_rng(1)
    n = POOL_BYTES // kind.block_bytes
    if name in _K_BLOCKS:
        return _K_BLOCKS[name](rng, n, size).reshape(-1)
    if name == "I2_S":
        values = rng.integers(-1, 2, (n, 128)).astype(np.float32)
        return kind.encode(values)[: n * kind.block_bytes]
    if kind.is_ternary:
        scales = (rng.uniform(0.8, 1.2, n) * size * 1.2).astype(np.float16)
        low = 0 if not name.startswith("Q1_0") else 2
        codes = rng.integers(0, 3, (n, kind.block_elements)).astype(np.uint8)
        return encode_ternary(kind, codes if not low else codes // 2 * 2, scales).reshape(-1)
    return kind.encode(rng.normal(0.0, size, (n, kind.block_elements)).astype(np.float32)).reshape(-1)


def _q6_k(rng: np.random.Generator, n: int, size: float) -> NDArray[np.uint8]:
    """ql[128], qh[64], 16 scales, f16 d: values d·scale·(q − 32) with q from 0 to 63."""
    blocks = rng.integers(0, 256, (n, 210)).astype(np.uint8)
    blocks[:, 192:208] = rng.integers(30, 50, (n, 16))
    blocks[:, 208:] = np.full((n, 1), size / (18.5 * 40), np.float16).view(np.uint8)
    return blocks


def _q4_k(rng: np.random.Generator, n: int, size: float) -> NDArray[np.uint8]:
    """f16 d and dmin, 12 bytes of scales (all 32 here), qs[128]: values d·32·q − dmin·32 with q from 0 to 15."""
    blocks = rng.integers(0, 256, (n, 144)).astype(np.uint8)
    d = size / (32 * 4.6)
    blocks[:, :4] = np.array([[d, 7.5 * d]], np.float16).view(np.uint8)
    blocks[:, 4:12], blocks[:, 12:16] = 32 | 2 << 6, 0
    return blocks


def _q4_0(rng: np.random.Generator, n: int, size: float) -> NDArray[np.uint8]:
    blocks = rng.integers(0, 256, (n, 18)).astype(np.uint8)
    blocks[:, :2] = np.full((n, 1), size / 4.6, np.float16).view(np.uint8)
    return blocks


_K_BLOCKS: dict[str, Callable[[np.random.Generator, int, float], NDArray[np.uint8]]] = {
    "Q6_K": _q6_k,
    "Q4_K": _q4_k,
    "Q4_0": _q4_0,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("out", type=Path)
    parser.add_argument("--type", help="tensor type of the matrices")
    parser.add_argument("--table", help="tensor type of embedding and head")
    options = parser.parse_args()
    shape = SHAPES[options.shape]
    shape = replace(shape, ternary=options.type or shape.ternary, table=options.table or shape.table)
    write_model(options.out, shape)
    print(f"{options.out}: {options.out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
