"""Tiny GGUF models of every architecture and tensor type, with random weights of known values.

`write_architecture(path, "qwen3", kind="PQ2_0")` writes one; with `twin=True` every tensor holds the same numbers in
F32. Shapes are odd on purpose: the heads together are wider than the model, queries share keys, the vocabulary fills
no block.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from support import tiny_tokenizer

from nanochat_tui.formats.gguf import (
    GGUFValue,
    TensorData,
    array,
    boolean,
    f32,
    string,
    tensor_from_array,
    u32,
    write_gguf,
)
from nanochat_tui.formats.tensor_types import TENSOR_TYPES, encode_ternary, ternary_codes
from nanochat_tui.model.tokenizer import END_OF_TEXT, to_gguf_metadata

LAYERS, DIM, HEADS, KV_HEADS, WIDTH, HIDDEN, VOCAB, CONTEXT = 2, 256, 4, 2, 128, 512, 300, 128
GDN_WIDTH = 64
Values = NDArray[np.float32]


@dataclass
class Draft:
    """A file in the making: keys without their prefix, tensors in order, and what to make of matrices."""

    name: str
    kind: str
    table: str
    twin: bool
    rng: np.random.Generator
    tied: bool = True
    width: int = WIDTH
    """Of an attention head."""
    gdn_width: int = GDN_WIDTH
    """Of a head of the gated delta rule."""
    outliers: dict[int, float] = field(default_factory=dict)
    """Channels of the feed-forward product that are so many times the rest, and that little depends on."""
    keys: dict[str, GGUFValue] = field(default_factory=dict)
    plain_keys: dict[str, GGUFValue] = field(default_factory=dict)
    tensors: list[TensorData] = field(default_factory=list)

    def floats(self, name: str, values: Any, kind: str = "F32") -> None:
        self.tensors.append(tensor_from_array(name, np.asarray(values, np.float32), TENSOR_TYPES[kind]))

    def norm(self, name: str, width: int) -> None:
        self.floats(name, self.rng.uniform(0.8, 1.2, width))

    def matrix(self, name: str, *shape: int, kind: str | None = None, gain: float = 1.2) -> None:
        """A matrix [..., rows, columns] whose outputs have about the size of its inputs."""
        kind = kind or self.kind
        made = random_matrix(self.rng, shape, kind, gain / np.sqrt(shape[-1]))
        if self.outliers and name.endswith(("ffn_up.weight", "ffn_down.weight")):
            part = scaled_rows if name.endswith("ffn_up.weight") else emptied_columns
            made = part(made, self.outliers)
        if self.twin:
            rows = made.data.reshape(-1)
            tail = TENSOR_TYPES[kind].tail_bytes
            blocks = rows[: len(rows) - tail].reshape(-1, TENSOR_TYPES[kind].block_bytes)
            values = TENSOR_TYPES[kind].decode(blocks, rows[len(rows) - tail :] if tail else None)
            self.floats(name, values.reshape(shape))
        else:
            self.tensors.append(TensorData(name, made.shape, made.type, made.data))


def random_matrix(rng: np.random.Generator, shape: tuple[int, ...], kind: str, size: float) -> TensorData:
    """Return a matrix of `kind`; of a ternary one the codes are at random and the scales near `size`."""
    made = TENSOR_TYPES[kind]
    n = int(np.prod(shape)) // made.block_elements
    if kind in {"I2_S", "STQ1_0"}:
        trits = rng.integers(-1, 2, (n, made.block_elements)).astype(np.float32) * np.float32(size)
        return TensorData("", shape, made, made.encode(trits).reshape(-1))
    if made.is_ternary:
        scales = (rng.uniform(0.7, 1.3, n) * size).astype(np.float16)
        codes = rng.integers(0, 3, (n, made.block_elements)).astype(np.uint8)
        if made.name.startswith("Q1_0"):
            codes = (codes // 2 * 2).astype(np.uint8)
        elif made.name in ("Q2_0", "Q2_0_g128", "PQ2_0"):
            codes[rng.random(codes.shape) < 0.02] = 3  # +2 is legal, and rare
        return TensorData("", shape, made, encode_ternary(made, codes, scales))
    if made.encoder is None:
        return TensorData("", shape, made, random_blocks(rng, kind, n, size))
    values = rng.normal(0.0, size, shape).astype(np.float32)
    return tensor_from_array("", values, made)


def random_blocks(rng: np.random.Generator, kind: str, n: int, size: float) -> NDArray[np.uint8]:
    """Return blocks of a type that the project reads and does not write; values of about `size`."""
    blocks = rng.integers(0, 256, (n, TENSOR_TYPES[kind].block_bytes)).astype(np.uint8)

    def half(start: int, value: float) -> None:
        scales = (rng.uniform(0.7, 1.3, n) * value).astype("<f2")
        blocks[:, start : start + 2] = scales.view(np.uint8).reshape(n, 2)

    if kind == "Q6_K":
        half(208, size / (74 * 18.5))
    elif kind in ("Q4_K", "Q5_K"):
        middle, spread = (7.5, 4.6) if kind == "Q4_K" else (15.5, 9.2)
        half(0, size / (32 * spread))
        half(2, size / (32 * spread) * middle)
    elif kind in ("Q4_1", "Q5_1"):
        middle, spread = (7.5, 4.6) if kind == "Q4_1" else (15.5, 9.2)
        half(0, size / spread)
        half(2, -size / spread * middle)
    else:
        half(0, size / (9.2 if kind == "Q5_0" else 4.6))  # Q4_0
    return blocks


HALF_AT = {"Q6_K": 208, "TQ2_0": 64}
"""Where a block's float16 scale is, if not at its beginning."""


def scaled_rows(made: TensorData, factors: dict[int, float]) -> TensorData:
    """Return a matrix with some rows multiplied, by way of their blocks' float16 scales."""
    blocks = made.data.reshape(made.shape[0], -1, made.type.block_bytes).copy()
    at = HALF_AT.get(made.type.name, 0)
    for row, factor in factors.items():
        scales = blocks[row, :, at : at + 2].copy().view("<f2").astype(np.float32) * factor
        blocks[row, :, at : at + 2] = scales.astype("<f2").view(np.uint8)
    return TensorData(made.name, made.shape, made.type, blocks.reshape(-1))


def emptied_columns(made: TensorData, columns: dict[int, float]) -> TensorData:
    """Return a matrix with zeros in some columns, except in each eighth row."""
    kind = made.type
    rows = made.shape[0]
    blocks = made.data.reshape(rows, -1, kind.block_bytes).copy()
    few = np.arange(rows) % 8 != 0
    for column in columns:
        block, place = divmod(column, kind.block_elements)
        if kind.is_ternary:
            codes, scales = ternary_codes(kind, blocks[few, block])
            codes[:, place] = 1
            blocks[few, block] = encode_ternary(kind, codes, scales)
        elif kind.name == "Q4_0":
            _set_bits(blocks, few, block, 2 + place % 16, 4 * (place // 16), 4, 8)
        else:
            half, part, at = place // 128, place % 128 // 32, place % 32
            _set_bits(blocks, few, block, half * 64 + part % 2 * 32 + at, 4 * (part // 2), 4, 0)
            _set_bits(blocks, few, block, 128 + half * 32 + at, 2 * part, 2, 2)
    return TensorData(made.name, made.shape, kind, blocks.reshape(-1))


def _set_bits(
    blocks: NDArray[np.uint8], rows: NDArray[np.bool_], block: int, byte: int, shift: int, bits: int, value: int
) -> None:
    mask = ((1 << bits) - 1) << shift
    blocks[rows, block, byte] = blocks[rows, block, byte] & (255 - mask) | value << shift


def _attention(d: Draft, b: str, *, gated: bool = False, qk_norm: bool = False, sub_norm: bool = False) -> None:
    d.matrix(b + "attn_q.weight", HEADS * d.width * (2 if gated else 1), DIM)
    d.matrix(b + "attn_k.weight", KV_HEADS * d.width, DIM)
    d.matrix(b + "attn_v.weight", KV_HEADS * d.width, DIM)
    d.matrix(b + "attn_output.weight", DIM, HEADS * d.width)
    if qk_norm:
        d.norm(b + "attn_q_norm.weight", d.width)
        d.norm(b + "attn_k_norm.weight", d.width)
    if sub_norm:
        d.norm(b + "attn_sub_norm.weight", HEADS * d.width)


def _ffn(d: Draft, b: str) -> None:
    d.matrix(b + "ffn_gate.weight", HIDDEN, DIM)
    d.matrix(b + "ffn_up.weight", HIDDEN, DIM)
    d.matrix(b + "ffn_down.weight", DIM, HIDDEN)


def _usual_keys(d: Draft, theta: float, layers: int = LAYERS) -> None:
    d.keys |= {
        "block_count": u32(layers),
        "context_length": u32(CONTEXT),
        "embedding_length": u32(DIM),
        "feed_forward_length": u32(HIDDEN),
        "attention.head_count": u32(HEADS),
        "attention.head_count_kv": u32(KV_HEADS),
        "attention.key_length": u32(d.width),
        "attention.value_length": u32(d.width),
        "attention.layer_norm_rms_epsilon": f32(1e-5),
        "rope.freq_base": f32(theta),
    }


def _llama(d: Draft) -> None:
    _usual_keys(d, 500_000.0)
    d.keys["rope.dimension_count"] = u32(d.width)
    for layer in range(LAYERS):
        b = f"blk.{layer}."
        d.norm(b + "attn_norm.weight", DIM)
        _attention(d, b)
        d.norm(b + "ffn_norm.weight", DIM)
        _ffn(d, b)


def _minicpm(d: Draft) -> None:
    _llama(d)
    d.keys |= {"embedding_scale": f32(3.0), "residual_scale": f32(0.7), "logit_scale": f32(2.5)}


def _qwen3(d: Draft) -> None:
    _usual_keys(d, 1e6)
    for layer in range(LAYERS):
        b = f"blk.{layer}."
        d.norm(b + "attn_norm.weight", DIM)
        _attention(d, b, qk_norm=True)
        d.norm(b + "ffn_norm.weight", DIM)
        _ffn(d, b)


def _bitnet(d: Draft) -> None:
    _usual_keys(d, 10_000.0 if d.name == "bitnet" else 500_000.0)
    d.keys["rope.dimension_count"] = u32(d.width)
    for layer in range(LAYERS):
        b = f"blk.{layer}."
        d.norm(b + "attn_norm.weight", DIM)
        _attention(d, b, sub_norm=True)
        d.norm(b + "ffn_norm.weight", DIM)
        _ffn(d, b)
        d.norm(b + "ffn_sub_norm.weight", HIDDEN)


GDN_KEY_HEADS, GDN_VALUE_HEADS, TAPS = 2, 4, 4


def _qwen35(d: Draft, layers: int = 4) -> None:
    _usual_keys(d, 1e7, layers)
    channels = (2 * GDN_KEY_HEADS + GDN_VALUE_HEADS) * d.gdn_width
    d.keys |= {
        "rope.dimension_count": u32(32),
        "rope.dimension_sections": array(np.array([11, 11, 10, 0], np.int32)),
        "full_attention_interval": u32(4),
        "ssm.conv_kernel": u32(TAPS),
        "ssm.state_size": u32(d.gdn_width),
        "ssm.group_count": u32(GDN_KEY_HEADS),
        "ssm.time_step_rank": u32(GDN_VALUE_HEADS),
        "ssm.inner_size": u32(GDN_VALUE_HEADS * d.gdn_width),
    }
    small = "F32" if d.twin else "BF16"
    for layer in range(layers):
        b = f"blk.{layer}."
        d.norm(b + "attn_norm.weight", DIM)
        if (layer + 1) % 4 == 0:
            _attention(d, b, gated=True, qk_norm=True)
        else:
            d.matrix(b + "attn_qkv.weight", channels, DIM)
            d.matrix(b + "attn_gate.weight", GDN_VALUE_HEADS * d.gdn_width, DIM)
            for name in ("ssm_alpha", "ssm_beta"):
                values = d.rng.normal(0, 1.5 / np.sqrt(DIM), (GDN_VALUE_HEADS, DIM)).astype(np.float32)
                stored = tensor_from_array("", values, TENSOR_TYPES["BF16"]).data
                decoded = TENSOR_TYPES["BF16"].decode(stored.reshape(-1, 2)).reshape(values.shape)
                d.floats(f"{b}{name}.weight", decoded, small)
            d.floats(b + "ssm_conv1d.weight", d.rng.normal(0, 0.6, (channels, TAPS)))
            d.floats(b + "ssm_dt.bias", d.rng.uniform(-1, 1, GDN_VALUE_HEADS))
            d.floats(b + "ssm_a", -np.exp(d.rng.uniform(-2, 0.5, GDN_VALUE_HEADS)))
            d.norm(b + "ssm_norm.weight", d.gdn_width)
            d.matrix(b + "ssm_out.weight", DIM, GDN_VALUE_HEADS * d.gdn_width)
        d.norm(b + "post_attention_norm.weight", DIM)
        _ffn(d, b)


EXPERTS, USED, EXPERT_HIDDEN, WINDOW = 8, 3, 256, 16


def _maple(d: Draft, layers: int = 4) -> None:
    _usual_keys(d, 10_000.0, layers)
    d.tied = False
    del d.keys["feed_forward_length"]
    d.keys |= {
        "rope.dimension_count": u32(d.width // 2),
        "attention.sliding_window": u32(WINDOW),
        "attention.sliding_window_pattern": array(np.array([True, True, True, False])),
        "expert_count": u32(EXPERTS),
        "expert_used_count": u32(USED),
        "expert_feed_forward_length": u32(EXPERT_HIDDEN),
        "swiglu_clamp_exp": array(np.full(layers, 1.5, np.float32)),  # low, so that it is felt
        "vocab_size": u32(VOCAB),
    }
    for layer in range(layers):
        b = f"blk.{layer}."
        d.norm(b + "attn_norm.weight", DIM)
        _attention(d, b, qk_norm=True)
        d.norm(b + "ffn_norm.weight", DIM)
        d.floats(b + "ffn_gate_inp.weight", d.rng.normal(0, 2 / np.sqrt(DIM), (EXPERTS, DIM)))
        d.matrix(b + "ffn_gate_exps.weight", EXPERTS, EXPERT_HIDDEN, DIM)
        d.matrix(b + "ffn_up_exps.weight", EXPERTS, EXPERT_HIDDEN, DIM)
        d.matrix(b + "ffn_down_exps.weight", EXPERTS, DIM, EXPERT_HIDDEN)


WRITERS: dict[str, Callable[[Draft], None]] = {
    "llama": _llama,
    "minicpm": _minicpm,
    "qwen3": _qwen3,
    "bitnet": _bitnet,
    "bitnet-25": _bitnet,
    "bitnet-b1.58": _bitnet,
    "qwen35": _qwen35,
    "maple": _maple,
}


def draft(
    name: str,
    *,
    kind: str = "Q2_0",
    table: str = "Q8_0",
    twin: bool = False,
    tied: bool = True,
    seed: int = 0,
    width: int = WIDTH,
    gdn_width: int = GDN_WIDTH,
    outliers: dict[int, float] | None = None,
) -> Draft:
    """Return a model to be changed and then written by `finish`."""
    d = Draft(name, kind, table, twin, np.random.default_rng(seed), tied, width, gdn_width, outliers or {})
    d.matrix("token_embd.weight", VOCAB, DIM, kind=table, gain=1.5)
    d.norm("output_norm.weight", DIM)
    WRITERS[name](d)
    if not d.tied:
        d.matrix("output.weight", VOCAB, DIM, kind=table, gain=1.5)
    return d


def finish(d: Draft, path: Path) -> Path:
    """Write a drafted model."""
    tokenizer = tiny_tokenizer(VOCAB)
    end = tokenizer.token_to_id(END_OF_TEXT)
    metadata = {"general.architecture": string(d.name), "general.name": string("random")}
    metadata |= {f"{d.name}.{key}": value for key, value in d.keys.items()}
    metadata |= d.plain_keys | to_gguf_metadata(tokenizer, bos=end, eos=end, add_bos=False)
    write_gguf(path, metadata, d.tensors)
    return path


def write_architecture(path: Path, name: str, **options: Any) -> Path:
    """Write a model; options as for `draft`."""
    return finish(draft(name, **options), path)


def add_rotation(d: Draft, block: int = 64, *, identity: bool = False, version: int | None = None) -> None:
    """Say that all matrices and the embedding are rotated; the numbers stay, and so mean another model."""
    plain = ("ssm_alpha", "ssm_beta", "ssm_conv1d", "gate_inp")
    blocks = [t for t in d.tensors if t.name.startswith("blk.") and len(t.shape) == 2]
    names = [t.name for t in blocks if not any(part in t.name for part in plain)]
    if not d.tied:
        names.append("output.weight")
    widths = sorted({t.shape[-1] for t in d.tensors if len(t.shape) == 2 and t.shape[-1] >= block})
    signs = np.concatenate([d.rng.choice(np.array([-1, 1]), w) for w in widths]).astype(np.int8)
    p = "prism.hadamard."
    d.plain_keys |= {
        p + "version": u32(version or (2 if d.tied else 1)),
        p + "tied_output": boolean(d.tied),
        p + "block_size": u32(block),
        p + "transform": string("normalized-sylvester-walsh-hadamard"),
        p + "axis": string("input-last-dimension"),
        p + "sign_mode": string("identity" if identity else "explicit"),
        p + "weight_names": array(names),
        p + "inverse_weight_names": array(["token_embd.weight"]),
        p + "gdn_v_grouped": boolean(d.name == "qwen35"),
    }
    if not identity:
        d.plain_keys[p + "sign_widths"] = array(np.array(widths, np.int32))
        d.plain_keys[p + "sign_values"] = array(signs)
