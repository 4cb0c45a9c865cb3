"""Static mHC-lite: what the numbers of an mHC record mean, and whether they can be trusted.

A token's residual state is N streams x [N, dim]. Every sub-layer F (attention or feed-forward, with its
own pre-norm) reads one vector from them, and its output y is written back and mixed:

    h  = p · x                      read weights p in (0, 1)
    x' = H (x + q yᵀ)               write weights q in (0, c), H doubly stochastic
    x' = H x + q yᵀ                 N = 4, version 1 only: mixed before the write

Sources: mHC (arXiv 2512.24880), mHC-lite (arXiv 2601.05732: H as a convex combination of permutation
matrices, so it needs no Sinkhorn iteration); the file's record layout is nanochat-rs-ternary's. The weights
do not depend on the token, which is the "static" in the name.
"""

from __future__ import annotations

from itertools import permutations
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nanochat_tui.errors import UserError
from nanochat_tui.model.config import MHC_RECORD_FLOATS

CURRENT_VERSION = 2
"""The version of the meaning that is written; 1 is the original's and differs for N = 4 alone."""

PERMUTATIONS: NDArray[np.float64] = np.array(
    [[[float(j == target) for j in range(4)] for target in order] for order in permutations(range(4))]
)
"""The 24 permutation matrices of 4 streams [24, 4, 4], lexicographic: P[i, order[i]] = 1."""


class MhcError(UserError):
    """mHC records that cannot be used."""


class StreamMatrices(NamedTuple):
    """The weights of n records over N streams, as the forward pass uses them (float32)."""

    pre: NDArray[np.float32]
    """Read weights p [n, N]."""
    residual: NDArray[np.float32]
    """Mixing matrices H [n, N, N]; new stream i takes H[i, j] of old stream j."""
    post: NDArray[np.float32]
    """Write weights q [n, N]."""


def mixes_before_write(n_streams: int, version: int) -> bool:
    """Whether the sub-layer's output escapes the mixing: the original's version 1 with 4 streams."""
    return n_streams == 4 and version == 1


def write_ceiling(n_streams: int, version: int) -> float:
    """Largest write weight, the c in q = c · sigmoid(...)."""
    return 4.0 if n_streams == 4 and version != 1 else 2.0


def record_names(n_records: int) -> list[str]:
    """Tensor names of the records in file order: attention, then feed-forward, of every block."""
    return [f"blk.{index // 2}.{'ffn' if index % 2 else 'attn'}_mhc" for index in range(n_records)]


def _sigmoid(x: NDArray[np.float64]) -> NDArray[np.float64]:
    # tanh never overflows, so that logits of any size give 0 or 1 and no warning
    value: NDArray[np.float64] = 0.5 * (1.0 + np.tanh(0.5 * x))
    return value


def _softmax(x: NDArray[np.float64]) -> NDArray[np.float64]:
    weights: NDArray[np.float64] = np.exp(x - x.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return weights


def stream_matrices(records: ArrayLike, n_streams: int, version: int = CURRENT_VERSION) -> StreamMatrices:
    """Turn records into read, mixing and write weights.

    Parameters: records [n, 9] for 2 streams (alpha logit, then pre logits, pre biases, post logits and post
    biases, 2 each) or [n, 40] for 4 (24 permutation logits, then the same with 4 each); version 1 or 2.
    Computed in float64 and rounded once to float32.
    Raises MhcError if the shape, the number of streams or the version is unknown, or a value is not finite.
    """
    if n_streams not in MHC_RECORD_FLOATS:
        raise MhcError(f"mHC records exist for 2 or 4 streams, not for {n_streams}")
    if version not in (1, 2):
        raise MhcError(f"mHC version {version} is unknown; this program reads 1 and 2")
    values = np.asarray(records, dtype=np.float64)
    width = MHC_RECORD_FLOATS[n_streams]
    if values.ndim != 2 or values.shape[1] != width:
        raise MhcError(f"mHC records of {n_streams} streams have shape [n, {width}], not {list(values.shape)}")
    bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
    if bad.size:
        raise MhcError(f"mHC record {bad[0]} holds a value that is not finite; the file is damaged")
    n = n_streams
    head = width - 4 * n
    pre_logit, pre_bias, post_logit, post_bias = np.split(values[:, head:], 4, axis=1)
    if n == 2:
        a = _sigmoid(values[:, 0])
        residual = np.stack([np.stack([a, 1 - a], axis=-1), np.stack([1 - a, a], axis=-1)], axis=1)
    else:
        residual = np.tensordot(_softmax(values[:, :head]), PERMUTATIONS, axes=1)
    return StreamMatrices(
        _sigmoid(pre_logit + pre_bias).astype(np.float32),
        residual.astype(np.float32),
        (write_ceiling(n, version) * _sigmoid(post_logit + post_bias)).astype(np.float32),
    )


def read_streams(x: NDArray[np.float32], pre: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return h = p · x: x [..., N, dim], pre [N] -> [..., dim]."""
    h: NDArray[np.float32] = np.einsum("i,...id->...d", pre, x)
    return h


def write_streams(
    x: NDArray[np.float32],
    y: NDArray[np.float32],
    residual: NDArray[np.float32],
    post: NDArray[np.float32],
    *,
    mix_first: bool = False,
) -> NDArray[np.float32]:
    """Return the streams after a sub-layer: H (x + q yᵀ), or H x + q yᵀ when `mix_first`.

    Parameters: x [..., N, dim], y [..., dim], residual [N, N], post [N].
    """
    written = post[:, None] * y[..., None, :]
    mixed: NDArray[np.float32] = residual @ x + written if mix_first else residual @ (x + written)
    return mixed


def expand_streams(embedding: NDArray[np.float32], n_streams: int) -> NDArray[np.float32]:
    """Start every stream as a copy of the embedding: [..., dim] -> [..., N, dim]."""
    return np.repeat(embedding[..., None, :], n_streams, axis=-2)


def collapse_streams(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Leave the streams by their mean: [..., N, dim] -> [..., dim]."""
    mean: NDArray[np.float32] = x.mean(axis=-2, dtype=np.float32)
    return mean


def check_sidecar(
    sidecar: NDArray[np.float32],
    sidecar_streams: int,
    sidecar_version: int,
    *,
    n_streams: int,
    version: int,
    n_records: int,
    inside: NDArray[np.float32] | None = None,
) -> None:
    """Raise MhcError, saying how, if a `.mhc` file does not belong to a model.

    The model is described by its number of streams, version and records (2 per block), and by the records
    inside its own file [n_records, 9|40] where it has them; those must agree bit for bit.
    """
    if n_streams == 1:
        raise MhcError("the model has a plain residual and takes no .mhc file; leave it away")
    if sidecar_streams != n_streams:
        raise MhcError(
            f"the .mhc file is for {sidecar_streams} streams but the model has {n_streams}; it belongs to another model"
        )
    if len(sidecar) != n_records:
        raise MhcError(
            f"the .mhc file has {len(sidecar)} records but the model needs {n_records} (2 per block); "
            "it belongs to another model"
        )
    if n_streams == 4 and sidecar_version != version:
        raise MhcError(
            f"the .mhc file is of version {sidecar_version} but the model of version {version}; export both again"
        )
    if inside is None:
        return
    differs = np.flatnonzero((sidecar.view(np.uint32) != inside.view(np.uint32)).any(axis=1))
    if differs.size:
        raise MhcError(
            f"the .mhc file disagrees with the records inside the model from record {differs[0]} on; "
            "it belongs to another model (leave it away to use the records inside)"
        )
