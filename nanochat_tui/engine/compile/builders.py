"""The parts of the compiled program, and what makes each."""

from __future__ import annotations

from nanochat_tui.engine.compile.lower import kernels_of, lowered
from nanochat_tui.engine.kernels import program  # noqa: F401 - registers the program and its kernels
from nanochat_tui.engine.kernels.screen import screened_logits
from nanochat_tui.engine.simd.library import Target, compile_functions, compile_object

SAMPLER, SCREEN = "sample", screened_logits.__name__
"""Functions that are compiled apart from the rest of the program: to divide the work between processes, and because it
is not always wanted."""


def build_program(target: Target) -> list[bytes]:
    """Compile the program without its sampler for a target; return the object code, which has `objects.ENTRY_NAME`."""
    functions = lowered("work", "work", target.known, apart=frozenset({SAMPLER}))
    return [compile_functions(target, functions, "work")]


def build_kernels(target: Target) -> list[bytes]:
    """Compile the kernels that a target's program calls, and the sampler; return the object code of each."""
    kernels = compile_object(target, names=kernels_of("work", target.known))
    return [kernels, compile_functions(target, lowered("work", SAMPLER, target.known), SAMPLER)]


def build_screen(target: Target) -> list[bytes]:
    """Compile what screens an output table, with its kernels; return the object code of each."""
    kernels = compile_object(target, names=kernels_of(SCREEN, target.known))
    return [kernels, compile_functions(target, lowered(SCREEN, SCREEN, target.known), SCREEN)]


BUILDERS = {"program": build_program, "kernels": build_kernels, "screen": build_screen}
"""What makes the parts of `compile_cache.PARTS`."""
