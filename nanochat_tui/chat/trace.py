"""What happens inside a model at its last token: the streams after every sub-layer, and what each would say.

The engine keeps no hidden states, so this is computed on the side, by a second forward pass in NumPy with float32
activations. It is for looking, not for text: differences to the engine are those of the engine's int8 rounding.
The logit lens reads the mean of the streams through the model's own last norm and head (nostalgebraist, 2020).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nanochat_tui.errors import UserError, display_safe
from nanochat_tui.formats.gguf import read_gguf
from nanochat_tui.formats.mhc import read_mhc
from nanochat_tui.model.architectures import nanochat
from nanochat_tui.model.mhc import (
    StreamMatrices,
    collapse_streams,
    expand_streams,
    mixes_before_write,
    read_streams,
    record_names,
    stream_matrices,
    write_streams,
)

Floats = NDArray[np.float32]
MOST_PARAMETERS = 200_000_000
"""Larger models would need a gigabyte of floats for a panel."""
MOST_TOKENS = 1024


@dataclass(frozen=True, slots=True)
class Trace:
    """The last token's way through L sub-layers (attention and feed-forward in turn) over N streams."""

    norms: Floats
    """Length of every stream after each sub-layer [L, N]."""
    cosines: Floats
    """Mean cosine between different streams [L]; 1 where there is one stream."""
    tops: tuple[int, ...]
    """The likeliest next token as read after each sub-layer."""
    shares: Floats
    """Its probability [L]."""

    @property
    def depth(self) -> int:
        """The first sub-layer after which the final token is the likeliest one."""
        return self.tops.index(self.tops[-1])

    @property
    def settled(self) -> int:
        """The first sub-layer from which on it stays so."""
        place = len(self.tops) - 1
        while place and self.tops[place - 1] == self.tops[-1]:
            place -= 1
        return place


class Tracer:
    """A nanochat model as float32 arrays. Raises `UserError` for other architectures and for large models."""

    def __init__(self, path: Path, mhc: Path | None = None) -> None:
        with read_gguf(path) as file:
            if not nanochat.is_nanochat(file.metadata):
                named = file.metadata.get("general.architecture")
                kind = display_safe(str(named.value), 40) if named is not None else "of an unnamed kind"
                raise UserError(
                    "Streams and decision depth are computed by a second pass beside the engine, which exists for "
                    f"nanochat models alone; this one is {kind}, so there are none. F3 shows what is in the file."
                )
            self.config = config = nanochat.from_metadata(file.metadata, file.tensors)
            if config.parameters > MOST_PARAMETERS:
                raise UserError(
                    f"The model has {config.parameters / 1e6:.0f} million parameters; streams and decision depth are "
                    f"computed by a second pass in floats for up to {MOST_PARAMETERS / 1e6:.0f} million, so there are "
                    "none. F3 shows its hyper-connections."
                )
            self._w: dict[str, Floats] = {
                name: file.array(name) for name in nanochat.parts(config) if not name.endswith("_mhc")
            }
            self.matrices: StreamMatrices | None = None
            if config.n_streams > 1:
                if mhc is not None:
                    records = np.asarray(read_mhc(mhc).records, np.float32)
                else:
                    records = np.stack([file.array(name) for name in record_names(config.mhc_records)])
                self.matrices = stream_matrices(records, config.n_streams, config.mhc_version)

    def trace(self, ids: Sequence[int]) -> Trace:
        """Follow the last of `ids`. Raises `UserError` if there are none or too many."""
        c, w = self.config, self._w
        if not 0 < len(ids) <= MOST_TOKENS:
            raise UserError(f"The inside is shown for 1 to {MOST_TOKENS} tokens, not {len(ids)}.")
        table = w["token_embd.weight"]
        x = expand_streams(table[np.asarray(ids, np.int64)].astype(np.float32), c.n_streams)
        after: list[Floats] = []
        for layer in range(c.n_layers):
            for kind in ("attn", "ffn"):
                x = self._sublayer(x, layer, kind, len(after))
                after.append(x[-1])
        streams = np.stack(after)  # [L, N, dim]
        norms = np.linalg.norm(streams, axis=-1).astype(np.float32)
        unit = streams / np.maximum(norms[..., None], 1e-12)
        pairs = np.triu_indices(c.n_streams, 1)
        cosines = (
            np.einsum("lid,ljd->lij", unit, unit)[:, pairs[0], pairs[1]].mean(axis=-1) if c.n_streams > 1 else None
        )
        logits = self._norm(collapse_streams(streams), "output_norm.weight") @ w.get("output.weight", table).T
        tops = logits.argmax(axis=-1)
        shares = 1.0 / np.exp(logits - logits.max(axis=-1, keepdims=True)).sum(axis=-1)
        flat = np.ones(len(streams), np.float32)
        return Trace(norms, flat if cosines is None else cosines.astype(np.float32), tuple(map(int, tops)), shares)

    def _sublayer(self, x: Floats, layer: int, kind: str, record: int) -> Floats:
        c, m = self.config, self.matrices
        block = f"blk.{layer}."
        h = x[:, 0] if m is None else read_streams(x, m.pre[record])
        h = self._norm(h, f"{block}{kind}_norm.weight")
        y = self._attention(block, h) if kind == "attn" else self._feed_forward(block, h)
        if m is None:
            return x + y[:, None]
        first = mixes_before_write(c.n_streams, c.mhc_version)
        return write_streams(x, y, m.residual[record], m.post[record], mix_first=first)

    def _norm(self, x: Floats, name: str) -> Floats:
        scale = 1.0 / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + np.float32(self.config.norm_eps))
        normed: Floats = x * scale * self._w[name]
        return normed

    def _feed_forward(self, block: str, h: Floats) -> Floats:
        gate, up = (h @ self._w[f"{block}ffn_{part}.weight"].T for part in ("gate", "up"))
        silu = gate * (0.5 * (1 + np.tanh(0.5 * gate)))
        y: Floats = (silu * up) @ self._w[f"{block}ffn_down.weight"].T
        return y

    def _attention(self, block: str, h: Floats) -> Floats:
        c, n = self.config, len(h)
        heads = {"q": c.n_heads, "k": c.n_kv_heads, "v": c.n_kv_heads}
        q, k, v = (
            (h @ self._w[f"{block}attn_{part}.weight"].T).reshape(n, count, c.head_dim) for part, count in heads.items()
        )
        q, k = self._rotate(q), self._rotate(k)
        shared = c.n_heads // c.n_kv_heads
        k, v = np.repeat(k, shared, axis=1), np.repeat(v, shared, axis=1)
        scores = np.einsum("qhd,khd->hqk", q, k) / np.float32(np.sqrt(c.head_dim))
        scores[:, ~np.tri(n, dtype=bool)] = -np.inf
        scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
        scores /= scores.sum(axis=-1, keepdims=True)
        y: Floats = np.einsum("hqk,khd->qhd", scores, v).reshape(n, -1) @ self._w[f"{block}attn_output.weight"].T
        return y

    def _rotate(self, x: Floats) -> Floats:
        """Rotate pairs (i, i + head_dim / 2) of [tokens, heads, head_dim] by position."""
        half = x.shape[-1] // 2
        angle = np.arange(len(x))[:, None] * self.config.rope_theta ** (-np.arange(half) / half)
        cos, sin = np.cos(angle).astype(np.float32)[:, None], np.sin(angle).astype(np.float32)[:, None]
        low, high = x[..., :half], x[..., half:]
        return np.concatenate([low * cos - high * sin, high * cos + low * sin], axis=-1)
