"""Compiled kernels of every instruction set this machine has, to be called with arrays.

These are not in conftest.py, as a test that imports them would get another folder's when several are run together.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from nanochat_tui.engine.compile.choose import available_kernels
from nanochat_tui.engine.compile.targets import KERNELS as INFOS
from nanochat_tui.engine.compile.targets import compiled_for, cpu_feature_text, cpu_name
from nanochat_tui.engine.kernels import matrices, program, rows, screen  # these register every kernel
from nanochat_tui.engine.layout import kinds
from nanochat_tui.engine.simd.isa import ISAS, Isa
from nanochat_tui.engine.simd.library import KERNELS, Target, compile_object, load_object
from nanochat_tui.engine.simd.objects import symbol

assert program, screen
assert matrices, rows
EVERY_NAME = [kernel.name for kernel in available_kernels()]
KERNEL_NAMES = [name for name in EVERY_NAME if name != "avx-vnni" or "avx512-vnni" not in EVERY_NAME]
"""For tests of whole programs: two widths of one instruction differ in the kernels alone, and programs take long."""
BASIC = frozenset({*kinds.TERNARY_NAMES, kinds.Q8})
C_TYPES = {"i": ctypes.c_int64, "f": ctypes.c_float, "v": None}


@dataclass
class Kernels:
    """Compiled kernels of one instruction set, called with arrays in place of addresses."""

    isa: Isa
    group: int
    addresses: dict[str, int]

    def __getattr__(self, name: str) -> Callable[..., Any]:
        result, parameters = KERNELS[name].signature.split(":")
        kind = ctypes.CFUNCTYPE(C_TYPES[result], *(C_TYPES[p] for p in parameters))
        function = kind(self.addresses[symbol(name)])

        def call(*arguments: Any) -> Any:
            return function(*(a.ctypes.data if isinstance(a, np.ndarray) else a for a in arguments))

        return call


_made: dict[tuple[str, int, frozenset[int]], Kernels] = {}


def kernels_for(name: str, group: int = 128, some: frozenset[int] = BASIC) -> Kernels:
    if (name, group, some) not in _made:
        (info,) = (info for info in INFOS if info.name == name)
        # the portable kernels for this processor, as for its lowest kind they take three times as long to compile
        made_for = (cpu_name(), cpu_feature_text()) if name == "portable" else compiled_for(info)
        target = Target(ISAS[name], group, *made_for, some)
        names = [symbol(kernel.name) for kernel in KERNELS.values() if kernel.is_in(target)]
        _made[name, group, some] = Kernels(ISAS[name], group, load_object(target, compile_object(target), names))
    return _made[name, group, some]
