"""From the program's Python functions to LLVM IR, by Numba.

`lowered` specialises the functions that a model can reach (see `specialise`), lets Numba type and lower them (without
optimising: LLVM does that once for all functions of an object file), and returns their text.
"""

from __future__ import annotations

import ast
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from nanochat_tui.engine.compile.specialise import code_of, names_called, specialised
from nanochat_tui.engine.kernels.registry import PROGRAM
from nanochat_tui.engine.simd.intrinsics import linked
from nanochat_tui.engine.simd.library import KERNELS, Lowered, declare_placeholders

_TYPES = {"i": "int64", "f": "float32", "d": "float64", "v": "void"}
_lock = threading.Lock()
Known = frozenset[tuple[str, int]]


@cache
def _reached(entry: str, known: Known) -> dict[str, ast.FunctionDef]:
    """Return the specialised functions that an entry reaches, in the order in which they were marked."""
    return specialised({name: function for name, (function, _) in PROGRAM.items()}, entry, dict(known))


def kernels_of(entry: str, known: Known) -> frozenset[str]:
    """Return the names of the kernels that the program calls, without the help of Numba."""
    trees = _reached(entry, known).values()
    return frozenset(KERNELS) & frozenset().union(*(names_called(tree) for tree in trees))


def _below(root: str, trees: dict[str, ast.FunctionDef], apart: frozenset[str]) -> list[str]:
    """Return the functions that `root` needs in its object file: not those of `apart`, which it links to."""
    found: set[str] = set()
    waiting = [root]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += names_called(trees[name]) & trees.keys() - apart
    return [name for name in trees if name in found]


def lowered(entry: str, root: str, known: Known, apart: frozenset[str] = frozenset()) -> list[Lowered]:
    """Return the functions of a program that `root` needs, with Numba's LLVM IR, the same for every instruction set.

    known: slots' names and the values that they have in all tables of a model. apart: functions that are only linked
    to, as they are in another object file. Every function calls others as C does, so each is lowered by itself.
    """
    from numba.core import compiler as numba_compiler
    from numba.core import sigutils
    from numba.core.compiler_lock import global_compiler_lock
    from numba.core.registry import cpu_target

    compiler: Any = numba_compiler
    signatures: Any = sigutils
    trees = _reached(entry, known)
    declare_placeholders([*KERNELS, *trees])
    flags: Any = compiler.Flags()
    flags.no_compile = flags.no_cpython_wrapper = flags.no_cfunc_wrapper = True
    flags.no_rewrites = True
    flags.error_model = "numpy"
    made = []
    namespace: dict[str, Any] = {}
    for function, _ in PROGRAM.values():
        namespace.update(function.__globals__)
    namespace["__name__"] = __name__
    namespace |= {name: linked(PROGRAM[name][1], PROGRAM[name][0]) for name in trees}
    cpu: Any = cpu_target
    typing, target = cpu.typing_context, cpu.target_context
    with _lock, global_compiler_lock, _unoptimised():
        typing.refresh()
        target.refresh()
        for name in _below(root, trees, apart):
            function, signature = PROGRAM[name]
            result, parameters = signature.split(":")
            text = f"{_TYPES[result]}({', '.join(_TYPES[p] for p in parameters)})"
            arguments, returned = signatures.normalize_signature(text)
            code = code_of(function, trees[name], namespace)
            done = compiler.compile_extra(typing, target, code, arguments, returned, flags, {})
            done.library.finalize()
            made.append(Lowered(name, signature, done.fndesc.llvm_func_name, done.library.get_llvm_str()))
    return made


@contextmanager
def _unoptimised() -> Iterator[None]:
    """Keep Numba from optimising, which LLVM does once for all functions together."""
    import numba

    config: Any = numba.config
    before = config.OPT
    config.OPT = type(before)(0)
    try:
        yield
    finally:
        config.OPT = before
