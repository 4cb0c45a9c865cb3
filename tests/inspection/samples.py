"""Files of known content for the tests of inspection: matrices of any ternary type, and models in two versions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nanochat_tui.formats.gguf import GGUFValue, TensorData, write_gguf
from nanochat_tui.formats.tensor_types import TENSOR_TYPES, encode_ternary_matrix
from nanochat_tui.formats.ternary_blocks import join_i2_s

TERNARY = ["Q2_0", "Q2_0_g128", "PQ2_0", "TQ1_0", "TQ2_0", "PTQ1_0", "Q1_0", "STQ1_0", "I2_S"]
"""Every type of trits that the project can write."""


def random_trits(rng: np.random.Generator, kind: str, rows: int, columns: int) -> NDArray[np.int8]:
    """Return a matrix that the type can hold: all trits, no zeros, or one zero in each of Sherry's groups."""
    if kind == "Q1_0":
        return rng.choice(np.array([-1, 1], np.int8), (rows, columns))
    if kind == "STQ1_0":
        lanes = rng.choice(np.array([-1, 1], np.int8), (rows, columns // 64, 4, 16))
        np.put_along_axis(lanes, rng.integers(0, 4, (rows, columns // 64, 1, 16)), np.int8(0), axis=2)
        return lanes.reshape(rows, columns)
    return rng.choice(np.array([-1, 0, 1], np.int8), (rows, columns), p=[0.25, 0.45, 0.3])


def matrix(name: str, kind: str, trits: NDArray[np.int8], scales: NDArray[np.float16]) -> TensorData:
    """Return a tensor of these trits; scales are [rows, columns / 256], and I2_S takes the first alone."""
    if kind == "I2_S":
        data = join_i2_s((trits.reshape(-1, 128) + 1).astype(np.uint8), np.float32(scales.flat[0]))
        return TensorData(name, trits.shape, TENSOR_TYPES[kind], data)
    return TensorData(name, trits.shape, TENSOR_TYPES[kind], encode_ternary_matrix(TENSOR_TYPES[kind], trits, scales))


def write_matrix(
    path: Path,
    kind: str,
    rows: int = 6,
    columns: int = 512,
    seed: int = 0,
    metadata: Mapping[str, GGUFValue] | None = None,
) -> tuple[NDArray[np.int8], NDArray[np.float16]]:
    """Write a file with one ternary matrix `w` and return its trits and scales."""
    rng = np.random.default_rng(seed)
    trits = random_trits(rng, kind, rows, columns)
    scales = rng.uniform(0.01, 0.1, (rows, columns // 256)).astype(np.float16)
    write_gguf(path, dict(metadata or {}), [matrix("w", kind, trits, scales)])
    return trits, scales
