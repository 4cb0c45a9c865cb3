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


def dequantise(trits: NDArray[np.int8], scales: NDArray[np.float16]) -> NDArray[np.float32]:
    """Return trits times scales as float32 of the trits' shape."""
    groups = trits.reshape(*scales.shape, -1).astype(np.float32)
    return (groups * scales.astype(np.float32)[..., None]).reshape(trits.shape)
