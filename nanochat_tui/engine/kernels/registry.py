"""The program around the kernels: plain Python functions that Numba turns into LLVM IR.

The functions of the program are written once, as Python marked `@compiled` with their types. `program_ir`
copies them into a namespace of their own, lets Numba type and lower them (without optimising: LLVM does that once,
for the whole of program and kernels together), and returns the text of the module. So several targets can live in
one process, no variant can call another variant's code, and code of an instruction set that the processor
lacks never comes into being.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import cache
from types import FunctionType
from typing import Any, TypeVar

from nanochat_tui.engine.simd.library import declare_placeholders

_F = TypeVar("_F", bound=Callable[..., Any])
_TYPES = {"i": "int64", "f": "float32", "d": "float64", "v": "void"}
_program: dict[str, tuple[FunctionType, str]] = {}
_lock = threading.Lock()


def compiled(signature: str) -> Callable[[_F], _F]:
    """Mark a function as part of the program; names are unique across the engine's kernel files.

    signature: types of result and arguments, "i:if" = int64 (int64, float32); d is float64, v nothing.
    Callees are marked before their callers. Fixed types keep Numba from compiling a function once per caller.
    """

    def decorate(function: _F) -> _F:
        if not isinstance(function, FunctionType) or function.__name__ in _program:
            raise TypeError(f"{function!r} cannot be part of the program")
        result, parameters = signature.split(":")
        text = f"{_TYPES[result]}({', '.join(_TYPES[p] for p in parameters)})"
        _program[function.__name__] = (function, text)
        return function

    return decorate


@cache
def program_ir(entry: str) -> tuple[str, str]:
    """Return the LLVM IR of the program and the symbol of its entry, which has Numba's own calling convention.

    It is the same for every target, so it is made once per process.
    """
    import numba

    declare_placeholders()
    options: dict[str, Any] = {"error_model": "numpy", "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
    with _lock:
        namespace: dict[str, Any] = {}
        for function, _ in _program.values():
            namespace.update(function.__globals__)
        namespace["__name__"] = __name__
        config: Any = numba.config
        optimisation, disabled = config.OPT, config.DISABLE_JIT
        # NUMBA_DISABLE_JIT is for stepping through Python functions; these have no meaning in Python
        config.OPT, config.DISABLE_JIT = type(optimisation)(0), 0
        try:
            for name, (function, signature) in _program.items():
                copy = FunctionType(function.__code__, namespace, name, function.__defaults__)
                made: Any = numba.njit(signature, **options)(copy)
                namespace[name] = made
                if name == entry:
                    (compiled_entry,) = made.overloads.values()
                    return compiled_entry.library.get_llvm_str(), compiled_entry.fndesc.llvm_func_name
        finally:
            config.OPT, config.DISABLE_JIT = optimisation, disabled
    raise KeyError(entry)
