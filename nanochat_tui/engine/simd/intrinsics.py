"""Make emitted kernels and single memory operations callable from Numba code."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core.typing.templates import ConcreteTemplate, infer_global
from numba.core.typing.templates import signature as make_signature
from numba.extending import lower_builtin

from nanochat_tui.engine.layout.table import plain
from nanochat_tui.engine.simd.emitter import F32, I8, I16, I32, I64
from nanochat_tui.engine.simd.library import KERNELS, SIGNATURES, EmittedKernel, function_type
from nanochat_tui.engine.simd.objects import symbol

_NUMBA = {"i": types.int64, "f": types.float32, "d": types.float64, "v": types.void}


def _intrinsic(signature: str, like: Callable[..., Any], call: Callable[..., Any]) -> Any:
    """Make a function of fixed types known to Numba; `call(builder, values)` emits it and returns its value.

    A template of one signature is all that Numba has to look at, for each of thousands of calls.
    """
    result, parameters = signature.split(":")
    types_of = [_NUMBA[p] for p in parameters]

    def stub(*_):
        raise TypeError(f"{like.__name__} exists in compiled code only")

    stub.__name__, stub.__doc__ = like.__name__, like.__doc__
    known = {"key": stub, "cases": [make_signature(_NUMBA[result], *types_of)]}
    infer_global(stub, types.Function(type(like.__name__, (ConcreteTemplate,), known)))

    @lower_builtin(stub, *types_of)
    def lower(context, builder, _, values):
        value = call(builder, values)
        return context.get_dummy_value() if result == "v" else value

    return stub


def kernel(
    signature: str, kind: int | None = None, tokens: int = 1, *, tiles: bool = False
) -> Callable[[Callable[..., Any]], Any]:
    """Register `emit(e, target, *arguments)` as a kernel and return a function for Numba code that calls it.

    `signature` names the result, then the arguments: "v:iif" takes two int64 (addresses, counts) and a float32 and
    returns nothing; capital letters are addresses of tables (see `layout.table`). kind: the kind of matrix (see
    `layout.kinds`), tokens: the size of tile, tiles: the tile registers without which it is left out; such a kernel is
    called by other kernels only.
    """

    def decorate(emit: Callable[..., Any]) -> Any:
        name = emit.__name__
        if name in KERNELS:
            raise ValueError(f"two kernels are called {name}")
        SIGNATURES[name] = signature
        KERNELS[name] = EmittedKernel(name, plain(signature), emit, kind, tokens, tiles)

        return linked(plain(signature), emit)

    return decorate


def linked(signature: str, like: Callable[..., Any]) -> Any:
    """Return a function for Numba code that calls what is linked by the name of `like`: a kernel, another function."""

    def call(builder, values):
        name = symbol(like.__name__)
        function = builder.module.globals.get(name)
        if function is None:
            function = ir.Function(builder.module, function_type(signature), name)
        return builder.call(function, values)

    return _intrinsic(signature, like, call)


def _single(signature: str) -> Callable[[Callable[..., Any]], Any]:
    """Make one instruction, `emit(builder, *arguments)`, callable; it is emitted in place."""

    def decorate(emit: Callable[..., Any]) -> Any:
        return _intrinsic(signature, emit, lambda builder, values: emit(builder, *values))

    return decorate


def _pointer(b, address, kind):
    return b.inttoptr(address, kind.as_pointer())


@_single("i:i")
def load_i64(b, address):
    """Read an int64."""
    return b.load(_pointer(b, address, I64))


@_single("v:ii")
def store_i64(b, address, value):
    """Write an int64."""
    b.store(value, _pointer(b, address, I64))


@_single("i:ii")
def get(b, table, slot):
    """Read a slot of a table of int64."""
    return b.load(_pointer(b, b.add(table, b.shl(slot, I64(3))), I64))


@_single("v:iii")
def put(b, table, slot, value):
    """Write a slot of a table of int64."""
    b.store(value, _pointer(b, b.add(table, b.shl(slot, I64(3))), I64))


@_single("i:i")
def load_i32(b, address):
    """Read an int32, sign-extended."""
    return b.sext(b.load(_pointer(b, address, I32)), I64)


@_single("v:ii")
def store_i32(b, address, value):
    """Write the low 32 bits."""
    b.store(b.trunc(value, I32), _pointer(b, address, I32))


@_single("i:i")
def load_u8(b, address):
    """Read a byte, zero-extended."""
    return b.zext(b.load(_pointer(b, address, I8)), I64)


@_single("v:ii")
def store_u8(b, address, value):
    """Write the low byte."""
    b.store(b.trunc(value, I8), _pointer(b, address, I8))


@_single("i:i")
def load_u16(b, address):
    """Read 16 bits, zero-extended."""
    return b.zext(b.load(_pointer(b, address, I16)), I64)


@_single("f:i")
def load_f32(b, address):
    """Read a float32."""
    return b.load(_pointer(b, address, F32))


@_single("v:if")
def store_f32(b, address, value):
    """Write a float32."""
    b.store(value, _pointer(b, address, F32))


@_single("i:f")
def bits_of_f32(b, value):
    """Return the bits of a float32."""
    return b.zext(b.bitcast(value, I32), I64)


@_single("f:i")
def f32_from_bits(b, bits):
    """Return the float32 with these bits."""
    return b.bitcast(b.trunc(bits, I32), F32)


@_single("i:i")
def trailing_zeros(b, bits):
    """Return the place of the lowest bit that is set, of at least one."""
    return b.cttz(bits, ir.IntType(1)(1))


@_single("i:ii")
def atomic_add(b, address, value):
    """Add to an int64 shared between threads and return what it was."""
    return b.atomic_rmw("add", _pointer(b, address, I64), value, "seq_cst")


@_single("i:i")
def atomic_load(b, address):
    """Read an int64 shared between threads; later reads see what its writer wrote before."""
    return b.load_atomic(_pointer(b, address, I64), "acquire", 8)


@_single("v:ii")
def atomic_store(b, address, value):
    """Write an int64 shared between threads, after everything written before."""
    b.store_atomic(value, _pointer(b, address, I64), "release", 8)


@_single("i:ii")
def atomic_max(b, address, value):
    """Raise an int64 shared between threads to a value and return what it was."""
    return b.atomic_rmw("max", _pointer(b, address, I64), value, "seq_cst")


@_single("i:iii")
def exchange_if(b, address, expected, value):
    """Write an int64 shared between threads if it is what is expected; return what it was."""
    pair = b.cmpxchg(_pointer(b, address, I64), expected, value, "seq_cst", "acquire")
    return b.extract_value(pair, 0)


def _external(b, name, result, arguments):
    function = b.module.globals.get(name)
    if function is None:
        function = ir.Function(b.module, ir.FunctionType(result, [argument.type for argument in arguments]), name)
    return b.call(function, arguments)


@_single("v:")
def relax(b):
    """Tell the processor that this is a waiting loop, where it has a word for it."""
    if platform.machine().lower() in ("x86_64", "amd64"):
        _external(b, "llvm.x86.sse2.pause", ir.VoidType(), [])


FUTEX = {"x86_64": 202, "amd64": 202, "aarch64": 98, "arm64": 98}
"""Numbers of Linux's system call futex, by processor."""
FUTEX_WAIT, FUTEX_WAKE = 128, 129
"""Its operations, for threads of one process."""
NAP_MICROSECONDS = 100
"""How long a thread sleeps at a time where no other thread can wake it."""


def _futex() -> int:
    """Return the number of futex on this platform, 0 if there is none."""
    return FUTEX.get(platform.machine().lower(), 0) if sys.platform == "linux" and sys.byteorder == "little" else 0


@_single("v:iii")
def nap(b, address, expected, limit):
    """Sleep until `wake`, at once awake if the int64 at the address is not what is expected (its low 32 bits).

    limit: address of how long at most, int64 seconds and nanoseconds. Elsewhere than on Linux always for a moment.
    """
    number = _futex()
    if number:
        low = b.zext(b.trunc(expected, I32), I64)
        _external(b, "syscall", I64, [I64(number), address, I64(FUTEX_WAIT), low, limit, I64(0), I64(0)])
    elif os.name == "nt":
        _external(b, "Sleep", ir.VoidType(), [I32(1)])
    else:
        _external(b, "usleep", I32, [I32(NAP_MICROSECONDS)])


@_single("v:i")
def wake(b, address):
    """Wake all threads that `nap` at an address."""
    number = _futex()
    if number:
        every = I64((1 << 31) - 1)
        _external(b, "syscall", I64, [I64(number), address, I64(FUTEX_WAKE), every, I64(0), I64(0), I64(0)])
