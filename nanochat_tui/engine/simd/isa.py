"""All instruction sets by name."""

from __future__ import annotations

from nanochat_tui.engine.simd.amx import Amx
from nanochat_tui.engine.simd.arm import NeonDot
from nanochat_tui.engine.simd.base import Isa
from nanochat_tui.engine.simd.x86 import Avx2, Vnni

__all__ = ["ISAS", "Isa"]

ISAS: dict[str, Isa] = {
    isa.name: isa
    for isa in (Amx(), Vnni(), Vnni(name="avx-vnni", tile=4, queries=2, sums=1, bits=256), Avx2(), NeonDot(), Isa())
}
"""Kernels by name, fastest first."""
