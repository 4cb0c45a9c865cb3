"""Tile registers (Intel AMX): sixteen rows of 64 bytes each, and int8 products of whole tiles.

The operations are LLVM's with the register's number as a constant: which register holds what is the kernel's decision,
and LLVM's own allocation of tiles would need types that its optimiser handles badly. A thread's registers exist from
`configure` to `release`; between kernels they are released, so that the system has 8 KB less to save whenever it
switches threads, and code of other libraries that configures them otherwise meets none of ours.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llvmlite import ir

from nanochat_tui.engine.simd.emitter import I8, VI32
from nanochat_tui.engine.simd.x86 import Vnni

REGISTERS, TILE_ROWS, ROW_BYTES = 8, 16, 64
TILE_BYTES = TILE_ROWS * ROW_BYTES
PALETTE = 1


Sizes = Mapping[int, tuple[int, int]]
"""Rows and bytes per row of registers by number; those that are not named have all."""


def configuration(sizes: Sizes | None = None) -> bytes:
    """Return what `ldtilecfg` reads, 64 bytes: palette 1, then every register's bytes per row and its rows."""
    chosen = [(sizes or {}).get(number, (TILE_ROWS, ROW_BYTES)) for number in range(REGISTERS)]
    rows, widths = zip(*chosen, strict=True)
    return struct.pack("<BB14x8H16x8B8x", PALETTE, 0, *widths, *rows)


class TileRegisters:
    """Writes operations on tile registers into the emitter's function. Strides are bytes, constant or IR values."""

    def __init__(self, e: Any) -> None:
        self._e = e

    def configure(self, sizes: Sizes | None = None) -> None:
        """Make all eight registers available; emit it first, in the function's entry block."""
        e = self._e
        place = e.b.alloca(VI32)
        e.b.store(ir.Constant(VI32, list(struct.unpack("<16i", configuration(sizes)))), place)
        self._configure(e.b.ptrtoint(place, ir.IntType(64)))

    def _configure(self, address: Any) -> None:
        self._call("ldtilecfg", self._pointer(address))

    def release(self) -> None:
        """Give the registers back."""
        self._call("tilerelease")

    def zero(self, number: int) -> None:
        """Fill a register with zeros."""
        self._call("tilezero", I8(number))

    def load(self, number: int, address: Any, stride: int = ROW_BYTES) -> None:
        """Read a register's 16 rows, `stride` bytes apart."""
        self._call("tileloadd64", I8(number), self._pointer(address), self._e.i64(stride))

    def store(self, number: int, address: Any, stride: int = ROW_BYTES) -> None:
        """Write a register's 16 rows, `stride` bytes apart."""
        self._call("tilestored64", I8(number), self._pointer(address), self._e.i64(stride))

    def dot(self, total: int, left: int, right: int) -> None:
        """Add int8 products: total[m][n] += left[m][4k + j] · right[k][4n + j], summed over k and j, in int32."""
        self._call("tdpbssd", I8(total), I8(left), I8(right))

    def _pointer(self, address: Any) -> Any:
        return self._e.b.inttoptr(address, I8.as_pointer())

    def _call(self, name: str, *arguments: Any) -> None:
        self._e.call(f"llvm.x86.{name}", ir.VoidType(), list(arguments))


@dataclass(frozen=True)
class Amx(Vnni):
    """As `Vnni`, and tile registers for the products of 16 and more tokens with ternary weights."""

    name: str = "avx512-amx"
    tiles: type[TileRegisters] | None = TileRegisters
