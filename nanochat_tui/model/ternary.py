"""The one definition of a ternary group: its scale and its trits.

Absmean quantisation (BitNet b1.58) per group of consecutive inputs, with the scale rounded to
float16 *before* the trits are chosen, so that what the trainer's forward pass uses is exactly
what an exported file holds. The trainer (PyTorch) and the exporter both follow this module; a
test compares them on every group of a trained model.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

MIN_SCALE = 2.0**-14
"""Smallest group scale: the smallest normal float16, so that no scale is subnormal or zero."""


_BORDER = 0.499
"""Share of the scale up to which a drawn weight is a zero: not quite half of it, which float16 might round over."""


def least_squares_scales(magnitudes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the scales s that make the sum of (w - s q)^2 over trits q as small as it can be.

    `magnitudes` are |w|, float64 [..., group]. Of all choices of k weights that are not zero the k largest are best,
    with s their mean; the error left is least where (sum of the k largest)^2 / k is largest. At that optimum a weight
    is not zero exactly where it is above s / 2, so trits follow from the scale as they do from any other.
    """
    ordered = -np.sort(-magnitudes, axis=-1)
    sums = np.cumsum(ordered, axis=-1)
    counts = np.arange(1, magnitudes.shape[-1] + 1)
    best = (sums * sums / counts).argmax(axis=-1)[..., None]
    found: NDArray[np.float64] = (np.take_along_axis(sums, best, -1) / (best + 1))[..., 0]
    return found


def ternarise(
    weight: NDArray[np.float32], group_size: int, *, least_squares: bool = False
) -> tuple[NDArray[np.int8], NDArray[np.float16]]:
    """Split a matrix into trits and group scales.

    Parameters: weight float32 [..., columns], columns a multiple of `group_size`.
    Returns: trits int8 [..., columns] in {-1, 0, 1}; scales float16 [..., columns / group_size].
    The scale is mean |w| of the group accumulated in float64 (with `least_squares` that of the least squared error, see
    `least_squares_scales`), rounded to float32, then float16, at least 2^-14;
    a trit is w / scale rounded half to even in float32 and clipped.
    Raises ValueError if the columns do not divide or a weight is not finite.
    """
    *rows, columns = weight.shape
    if columns % group_size:
        raise ValueError(f"{columns} columns are not a multiple of the group size {group_size}")
    groups = weight.astype(np.float32, copy=False).reshape(*rows, columns // group_size, group_size)
    mean = np.abs(groups).mean(axis=-1, dtype=np.float64)
    if not np.isfinite(mean).all():
        raise ValueError("a weight is not finite")
    if least_squares:
        mean = least_squares_scales(np.abs(groups).astype(np.float64))
    # by way of float32, because PyTorch converts float64 to float16 in those two steps
    scales = np.maximum(mean, MIN_SCALE).astype(np.float32).astype(np.float16)
    ratio = groups / scales.astype(np.float32)[..., None]
    trits = np.clip(np.rint(ratio), -1, 1).astype(np.int8)
    return trits.reshape(weight.shape), scales


def latent(
    trits: NDArray[np.int8], scales: NDArray[np.float16], *, least_squares: bool = False, seed: int = 0
) -> NDArray[np.float32]:
    """Return weights to train on from, float32 [rows, columns], of which `ternarise` makes the same trits and scales.

    Where the weights lay within their trits is lost. They are drawn as trained weights lie, normal with a mean
    magnitude of the scale: zeros evenly up to half the scale, others beyond it, and the latter then moved so that the
    group's mean magnitude is its scale. With all weights of a trit at one place none would change before a long
    training has moved them, and then all at once. With `least_squares` they are the trits times the scale.
    Scales of groups of zeros are not kept, for they mean nothing.
    """
    rows, columns = trits.shape
    signs = trits.reshape(rows, scales.shape[1], -1)
    scale = scales.astype(np.float64)[..., None]
    if least_squares:
        return (signs * scale).astype(np.float32).reshape(rows, columns)
    rng = np.random.default_rng(seed)
    zeros = np.where(signs == 0, rng.uniform(-_BORDER, _BORDER, signs.shape), 0.0)
    count = (signs != 0).sum(axis=-1, keepdims=True)
    zeros[np.broadcast_to(count == 0, zeros.shape)] = 0.0
    # in units of the scale, whose magnitudes' mean is 1: the deviation of a normal distribution is then √(π / 2)
    beyond = np.abs(rng.normal(0.0, np.sqrt(np.pi / 2), signs.shape))
    while (short := beyond <= 0.5).any():
        beyond[short] = np.abs(rng.normal(0.0, np.sqrt(np.pi / 2), int(short.sum())))
    least = 1 - _BORDER
    excess = np.where(signs != 0, beyond - 0.5, 0.0)
    wanted = signs.shape[-1] - np.abs(zeros).sum(axis=-1, keepdims=True) - least * count
    excess *= wanted / np.where(count == 0, 1.0, excess.sum(axis=-1, keepdims=True))
    found: NDArray[np.float32] = ((zeros + signs * (least + excess)) * scale).astype(np.float32)
    return found.reshape(rows, columns)


def dequantise(trits: NDArray[np.int8], scales: NDArray[np.float16]) -> NDArray[np.float32]:
    """Return trits times scales as float32 of the trits' shape."""
    groups = trits.reshape(*scales.shape, -1).astype(np.float32)
    return (groups * scales.astype(np.float32)[..., None]).reshape(trits.shape)
