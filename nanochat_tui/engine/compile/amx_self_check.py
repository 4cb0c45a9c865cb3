"""The self-check of the kernels with tile registers, for a process of its own (see `compile.amx_check`).

It lies next to the kernels so that a change of it, like one of theirs, makes older verdicts void.
"""

from __future__ import annotations

import ctypes
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nanochat_tui.engine.kernels import linear  # noqa: F401 - registers the kernels to compare with
from nanochat_tui.engine.kernels.blocked import TOKENS
from nanochat_tui.engine.layout.kinds import ACTIVATION_BLOCK, PER_TOKEN, TERNARY_NAMES, TERNARY_ROW, tile_scratch
from nanochat_tui.engine.layout.memory import aligned
from nanochat_tui.engine.simd.isa import ISAS
from nanochat_tui.engine.simd.library import KERNELS, Target, compile_object, load_object
from nanochat_tui.engine.simd.objects import symbol

NAME = "avx512-amx"
GROUPS = (64, 128)
SIZES = ((48, 256, 3), (1024, 1024, 8))
"""Rows, columns and tiles of 16 tokens: an odd number of everything, and enough to take its time."""
ROUNDS = 15


@dataclass
class Product:
    """A random product and room for its result. codes 0 to 3 are all legal."""

    kind: int
    group: int
    rows: int
    columns: int
    tiles: int

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.rows + self.group + self.kind)
        self.weights = rng.integers(0, 1 << 32, self.rows * self.columns // 16, np.uint32)
        groups = self.columns // self.group
        scales = rng.uniform(0.01, 0.2, self.rows if self.kind == TERNARY_ROW else self.rows * groups)
        self.scales = scales.astype(np.float32 if self.kind == TERNARY_ROW else np.float16)
        self.x: NDArray[np.int8] = aligned((self.tiles, self.columns // 4, TOKENS, 4), np.int8)
        self.x[...] = rng.integers(-127, 128, self.x.shape)
        unit = self.group if self.kind in PER_TOKEN else ACTIVATION_BLOCK
        by_group = self.x.reshape(self.tiles, self.columns // unit, unit // 4, TOKENS, 4)
        self.init = np.ascontiguousarray(-by_group.sum((2, 4), dtype=np.int32))
        each = 1 if self.kind in PER_TOKEN else self.columns // ACTIVATION_BLOCK
        self.x_scale = rng.uniform(0.001, 0.1, self.tiles * TOKENS * each).astype(np.float32)
        self.scratch: NDArray[np.uint8] = aligned(tile_scratch(self.columns), np.uint8)

    def multiply(self, kernel: Callable[..., Any], fourth: NDArray[Any]) -> tuple[NDArray[np.float32], float]:
        """Return the result [tokens, rows] and the seconds it took. fourth: the fourth argument, sums or scratch."""
        y: NDArray[np.float32] = aligned((self.tiles * TOKENS, self.rows), np.float32, np.nan)
        arrays = (self.weights, self.scales, self.x, fourth, self.x_scale, y)
        numbers = (0, self.rows // 16, self.columns // self.group, 4 * self.rows, 0, self.tiles, 1)
        arguments = [ctypes.c_int64(number) for number in (*(array.ctypes.data for array in arrays), *numbers)]
        began = time.perf_counter()
        kernel(*arguments)
        return y, time.perf_counter() - began


def measure(targets: Sequence[Target]) -> dict[str, float]:
    """Compare the kernels of targets with tile registers with those without, which every such target has as well.

    Returns "equal", whether all bits agree, and "speed", in the largest product of the slowest kind.
    """
    equal, speed = True, float("inf")
    for target in targets:
        pairs = {kind: (f"{name}_tiles", f"{name}_{TOKENS}") for kind, name in TERNARY_NAMES.items()}
        names = [name for pair in pairs.values() for name in pair]
        found = load_object(target, compile_object(target, names), [symbol(name) for name in names])
        for kind, pair in pairs.items():
            tiles, plain = (
                ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * (len(KERNELS[name].signature) - 2))(found[symbol(name)])
                for name in pair
            )
            for size in SIZES:
                product = Product(kind, target.group, *size)
                best = [float("inf"), float("inf")]
                for _ in range(ROUNDS):
                    ours, seconds = product.multiply(tiles, product.scratch)
                    theirs, others = product.multiply(plain, product.init)
                    equal &= np.array_equal(ours.view(np.int32), theirs.view(np.int32))
                    best = [min(best[0], seconds), min(best[1], others)]
            speed = min(speed, best[1] / best[0])
    return {"equal": equal, "speed": speed}


def leave_no_core() -> None:
    """End without a trace, if it is to be: that this process may fail is why it exists."""
    not_dumpable = 4, 0  # PR_SET_DUMPABLE
    ctypes.CDLL(None).prctl(*not_dumpable, 0, 0, 0)


def main(cpu: str, features: str, expected: str) -> None:
    """Print what `measure` finds as JSON. expected: the hash of the sources that are to be tried."""
    from nanochat_tui.engine.compile.amx_check import request_permission
    from nanochat_tui.engine.compile.cache import SOURCES

    if expected != SOURCES:
        sys.exit("these are other sources than the caller's")
    leave_no_core()
    request_permission()  # the parent process has asked before; without permission the first tile ends the process
    found = measure([Target(ISAS[NAME], group, cpu, features, frozenset(TERNARY_NAMES)) for group in GROUPS])
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main(*sys.argv[1:])
