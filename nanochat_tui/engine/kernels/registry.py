"""The mark of the functions around the kernels: plain Python that Numba turns into LLVM IR (see `compile.lower`).

They are written once, with their types, and specialised for a model, so several targets can live in one process, no
variant can call another variant's code, and code of an instruction set that the processor lacks never comes into being.
"""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any, TypeVar

from nanochat_tui.engine.kernels.table_check import check
from nanochat_tui.engine.layout.table import plain
from nanochat_tui.engine.simd.library import SIGNATURES

_F = TypeVar("_F", bound=Callable[..., Any])
PROGRAM: dict[str, tuple[FunctionType, str]] = {}
"""Function and plain signature of everything that is marked, by name."""


def compiled(signature: str) -> Callable[[_F], _F]:
    """Mark a function as part of the program; names are unique across the engine's kernel files.

    signature: types of result and arguments, "i:if" = int64 (int64, float32); d is float64, v nothing, and a capital
    letter the address of a table (see `layout.table`): "v:MJ" takes a MODEL and a JOB. Fixed types keep Numba from
    compiling a function once per caller. Raises TypeError, when the function is defined, if it takes a slot or a row of
    one table for another's.
    """

    def decorate(function: _F) -> _F:
        if not isinstance(function, FunctionType) or function.__name__ in PROGRAM:
            raise TypeError(f"{function!r} cannot be part of the program")
        check(function, signature, SIGNATURES)
        SIGNATURES[function.__name__] = signature
        PROGRAM[function.__name__] = (function, plain(signature))
        return function

    return decorate
