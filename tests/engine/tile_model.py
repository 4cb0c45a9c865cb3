"""Tile registers in software: the same operations in plain IR, so that kernels for AMX run on any processor.

After Intel's description (Software Developer's Manual, volume 2, LDTILECFG and what follows it): registers have the
rows and columns that the configuration says, loading clears the rest of a register, and whatever a processor answers
with an invalid-opcode or general-protection exception ends the program here as well, by `llvm.trap`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llvmlite import ir

from nanochat_tui.engine.simd.amx import PALETTE, REGISTERS, ROW_BYTES, TILE_BYTES, Amx, TileRegisters
from nanochat_tui.engine.simd.base import Isa
from nanochat_tui.engine.simd.emitter import I8, I16, I32, I64

COLUMNS_AT, ROWS_AT = 16, 48


class ModelledTiles(TileRegisters):
    """Registers and configuration lie in the frame of the function."""

    def __init__(self, e: Any) -> None:
        super().__init__(e)
        b = e.b
        self._registers, self._config = (
            b.ptrtoint(b.alloca(ir.ArrayType(I8, size)), I64) for size in (REGISTERS * TILE_BYTES, 64)
        )
        e.store(I8(0), self._config)  # no palette: nothing is allowed

    def _demand(self, condition: Any) -> None:
        with self._e.b.if_then(self._e.b.not_(condition), likely=False):
            self._e.call("llvm.trap", ir.VoidType(), [])

    def _configured(self) -> None:
        self._demand(self._e.b.icmp_unsigned("==", self._e.load(I8, self._config), I8(PALETTE)))

    def _rows(self, number: int) -> Any:
        return self._e.b.zext(self._e.load(I8, self._config, ROWS_AT + number), I64)

    def _columns(self, number: int) -> Any:
        return self._e.b.zext(self._e.load(I16, self._config, COLUMNS_AT + 2 * number), I64)

    def _address(self, number: int) -> Any:
        return self._e.add(self._registers, number * TILE_BYTES)

    def _configure(self, address: Any) -> None:
        e, b = self._e, self._e.b
        for at in range(64):
            e.store(e.load(I8, address, at), self._config, at)
        self._configured()
        for at in range(1, 16):  # no row to start at, and nothing in what is reserved
            self._demand(b.icmp_unsigned("==", e.load(I8, self._config, at), I8(0)))
        for number in range(REGISTERS):
            rows, columns = self._rows(number), self._columns(number)
            self._demand(b.icmp_unsigned("<=", rows, I64(16)))
            self._demand(b.icmp_unsigned("<=", columns, I64(ROW_BYTES)))
            self._demand(b.icmp_unsigned("==", b.urem(columns, I64(4)), I64(0)))
            self._clear(number)

    def _clear(self, number: int) -> None:
        e = self._e
        e.loop(0, TILE_BYTES, 8, [], lambda at: e.store(I64(0), e.add(self._address(number), at)))

    def release(self) -> None:
        self._e.store(I8(0), self._config)

    def zero(self, number: int) -> None:
        self._configured()
        self._clear(number)

    def _copy(self, number: int, move: Any) -> None:
        e = self._e

        def row(r: Any) -> None:
            own = e.add(self._address(number), e.mul(r, ROW_BYTES))
            e.loop(0, self._columns(number), 1, [], lambda c: move(e.add(own, c), r, c))

        e.loop(0, self._rows(number), 1, [], row)

    def load(self, number: int, address: Any, stride: int = ROW_BYTES) -> None:
        e = self._e
        self._configured()
        self._clear(number)
        self._copy(number, lambda own, r, c: e.store(e.load(I8, e.add(address, e.mul(r, stride), c)), own))

    def store(self, number: int, address: Any, stride: int = ROW_BYTES) -> None:
        e = self._e
        self._configured()
        self._copy(number, lambda own, r, c: e.store(e.load(I8, own), e.add(address, e.mul(r, stride), c)))

    def dot(self, total: int, left: int, right: int) -> None:
        e, b = self._e, self._e.b
        self._configured()
        assert len({total, left, right}) == 3, "the processor refuses to multiply a register by itself"
        quads = b.udiv(self._columns(left), I64(4))
        for one, other in (
            (self._rows(total), self._rows(left)),
            (self._columns(total), self._columns(right)),
            (quads, self._rows(right)),
        ):
            self._demand(b.icmp_unsigned("==", one, other))

        def element(m: Any, n: Any) -> None:
            place = e.add(self._address(total), e.mul(m, ROW_BYTES), e.mul(n, 4))

            def quad(k: Any, running: Any) -> list[Any]:
                for j in range(4):
                    x = e.load(I8, e.add(self._address(left), e.mul(m, ROW_BYTES), e.mul(k, 4)), j)
                    w = e.load(I8, e.add(self._address(right), e.mul(k, ROW_BYTES), e.mul(n, 4)), j)
                    running = b.add(running, b.mul(b.sext(x, I32), b.sext(w, I32)))
                return [running]

            e.store(e.loop(0, quads, 1, [e.load(I32, place)], quad)[0], place)

        columns = b.udiv(self._columns(total), I64(4))
        e.loop(0, self._rows(total), 1, [], lambda m: e.loop(0, columns, 1, [], lambda n: element(m, n)) and None)


@dataclass(frozen=True)
class ModelledAmx(Amx):
    """The AVX-512 kernels with tile registers in software."""

    name: str = "avx512-amx"
    tiles: type[TileRegisters] | None = ModelledTiles


@dataclass(frozen=True)
class ModelledPortable(Isa):
    """Generic code with tile registers in software, for processors without AVX-512."""

    name: str = "portable-tiles"
    tile: int = 16
    queries: int = 8
    tiles: type[TileRegisters] | None = ModelledTiles
