"""Tile registers in software: the same operations in plain IR, so that kernels for AMX run on any processor.

After Intel's description (Software Developer's Manual, volume 2, LDTILECFG and what follows it): registers have the
rows and columns that the configuration says, loading clears the rest of a register, and whatever a processor answers
with an exception (invalid opcode, general protection) ends the program here as well, by `llvm.trap`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from llvmlite import ir

from nanochat_tui.engine.simd.amx import PALETTE, REGISTERS, ROW_BYTES, TILE_BYTES, Amx, TileRegisters
from nanochat_tui.engine.simd.base import Isa
from nanochat_tui.engine.simd.emitter import I8, I16, I32, I64, Emitter

CONFIG, START_ROW, COLUMNS, ROWS = REGISTERS * TILE_BYTES, 1, 16, 48
"""The configuration lies behind the registers; places in it."""


class _Processor:
    """Writes the body of one operation. state: address of registers and configuration."""

    def __init__(self, e: Emitter, state: Any) -> None:
        self.e, self.b, self.state = e, e.b, state

    def demand(self, condition: Any) -> None:
        with self.b.if_then(self.b.not_(condition), likely=False):
            self.e.call("llvm.trap", ir.VoidType(), [])

    def equal(self, one: Any, other: Any) -> None:
        self.demand(self.b.icmp_unsigned("==", one, other))

    def at_most(self, value: Any, most: int) -> None:
        self.demand(self.b.icmp_unsigned("<=", value, I64(most)))

    def field(self, kind: Any, place: Any) -> Any:
        return self.b.zext(self.e.load(kind, self.e.add(self.state, CONFIG, place)), I64)

    def must_be_configured(self) -> None:
        self.equal(self.field(I8, 0), I64(PALETTE))

    def rows(self, number: Any) -> Any:
        return self.field(I8, self.e.add(number, ROWS))

    def columns(self, number: Any) -> Any:
        return self.field(I16, self.e.add(self.e.mul(number, 2), COLUMNS))

    def register(self, number: Any) -> Any:
        return self.e.add(self.state, self.e.mul(number, TILE_BYTES))

    def clear(self, number: Any) -> None:
        e = self.e
        e.loop(0, TILE_BYTES, 8, [], lambda at: e.store(I64(0), e.add(self.register(number), at)))


def _configure(p: _Processor, address: Any) -> None:
    e = p.e
    e.loop(0, 64, 1, [], lambda at: e.store(e.load(I8, e.add(address, at)), e.add(p.state, CONFIG, at)))
    p.must_be_configured()
    e.loop(START_ROW, COLUMNS, 1, [], lambda at: p.equal(p.field(I8, at), I64(0)))  # what is reserved is zero as well

    def register(number: Any) -> None:
        p.at_most(p.rows(number), 16)
        p.at_most(p.columns(number), ROW_BYTES)
        p.clear(number)

    e.loop(0, REGISTERS, 1, [], register)


def _release(p: _Processor) -> None:
    p.e.store(I8(0), p.state, CONFIG)


def _zero(p: _Processor, number: Any) -> None:
    p.must_be_configured()
    p.clear(number)


def _copy(p: _Processor, number: Any, address: Any, stride: Any, *, loads: bool) -> None:
    e = p.e
    p.must_be_configured()
    if loads:
        p.clear(number)

    def row(r: Any) -> None:
        def byte(c: Any) -> None:
            own = e.add(p.register(number), e.mul(r, ROW_BYTES), c)
            other = e.add(address, e.mul(r, stride), c)
            e.store(e.load(I8, other if loads else own), own if loads else other)

        e.loop(0, p.columns(number), 1, [], byte)

    e.loop(0, p.rows(number), 1, [], row)


def _load(p: _Processor, number: Any, address: Any, stride: Any) -> None:
    _copy(p, number, address, stride, loads=True)


def _store(p: _Processor, number: Any, address: Any, stride: Any) -> None:
    _copy(p, number, address, stride, loads=False)


def _dot(p: _Processor, total: Any, left: Any, right: Any) -> None:
    e, b = p.e, p.b
    p.must_be_configured()
    for one, other in ((total, left), (total, right), (left, right)):
        p.demand(b.icmp_unsigned("!=", one, other))
    quads, columns = b.udiv(p.columns(left), I64(4)), b.udiv(p.columns(total), I64(4))
    for value in (p.columns(left), p.columns(total)):
        p.equal(b.urem(value, I64(4)), I64(0))
    p.equal(p.rows(total), p.rows(left))
    p.equal(p.columns(total), p.columns(right))
    p.equal(quads, p.rows(right))

    def element(m: Any, n: Any) -> None:
        place = e.add(p.register(total), e.mul(m, ROW_BYTES), e.mul(n, 4))

        def quad(k: Any, running: Any) -> list[Any]:
            for j in range(4):
                x = e.load(I8, e.add(p.register(left), e.mul(m, ROW_BYTES), e.mul(k, 4)), j)
                w = e.load(I8, e.add(p.register(right), e.mul(k, ROW_BYTES), e.mul(n, 4)), j)
                running = b.add(running, b.mul(b.sext(x, I32), b.sext(w, I32)))
            return [running]

        e.store(e.loop(0, quads, 1, [e.load(I32, place)], quad)[0], place)

    def row(m: Any) -> None:
        e.loop(0, columns, 1, [], lambda n: element(m, n))

    e.loop(0, p.rows(total), 1, [], row)


class ModelledTiles(TileRegisters):
    """Registers and configuration lie in the frame of the function; every operation is a function of the module."""

    def __init__(self, e: Any) -> None:
        super().__init__(e)
        self._state = e.b.ptrtoint(e.b.alloca(ir.ArrayType(I8, CONFIG + 64)), I64)
        e.store(I8(0), self._state, CONFIG)  # no palette: nothing is allowed

    def _do(self, operation: Callable[..., None], *arguments: Any) -> None:
        module = self._e.b.module
        name = f"model{operation.__name__}"
        function = module.globals.get(name)
        if function is None:
            kind = ir.FunctionType(ir.VoidType(), [I64] * (1 + len(arguments)))
            function = ir.Function(module, kind, name)
            function.linkage = "internal"
            function.attributes.add("noinline")
            builder = ir.IRBuilder(function.append_basic_block("entry"))
            state, *values = function.args
            operation(_Processor(Emitter(builder, hardware_half=False), state), *values)
            builder.ret_void()
        self._e.b.call(function, [self._state, *map(self._e.i64, arguments)])

    def _configure(self, address: Any) -> None:
        self._do(_configure, address)

    def release(self) -> None:
        self._do(_release)

    def zero(self, number: int) -> None:
        self._do(_zero, number)

    def load(self, number: int, address: Any, stride: int = ROW_BYTES) -> None:
        self._do(_load, number, address, stride)

    def store(self, number: int, address: Any, stride: int = ROW_BYTES) -> None:
        self._do(_store, number, address, stride)

    def dot(self, total: int, left: int, right: int) -> None:
        self._do(_dot, total, left, right)


@dataclass(frozen=True)
class ModelledAmx(Amx):
    """The AVX-512 kernels with tile registers in software."""

    tiles: type[TileRegisters] | None = ModelledTiles


@dataclass(frozen=True)
class ModelledPortable(Isa):
    """Generic code with tile registers in software, for processors without AVX-512."""

    tile: int = 16
    queries: int = 8
    tiles: type[TileRegisters] | None = ModelledTiles
