"""Which kernel a model runs with: the one asked for, or the fastest that this process may use."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from nanochat_tui.engine.compile import targets
from nanochat_tui.engine.compile.targets import KERNELS, TILES, KernelInfo
from nanochat_tui.errors import UserError
from nanochat_tui.text import display_safe

if TYPE_CHECKING:
    from collections.abc import Callable

ENVIRONMENT = "NANOCHAT_KERNEL"


def available_kernels() -> list[KernelInfo]:
    """Return the kernels this processor can run, fastest first."""
    return [kernel for kernel in KERNELS if _obstacle(kernel) is None]


def _obstacle(kernel: KernelInfo, progress: Callable[[str], None] | None = None) -> str | None:
    """Return why a kernel cannot be used here, as what follows its name, or None if it can."""
    features = targets.cpu_features()
    if not kernel.runs_on(features):
        missing = ", ".join(f for f in kernel.cpu_features if f not in features)
        return f"needs {missing}, which this processor lacks"
    if kernel.name == TILES:
        # imported only where the processor may have it
        from nanochat_tui.engine.compile.amx_check import verdict

        found = verdict(progress)
        return None if found.usable else f"cannot be used: {found.reason}"
    return None


def choose_kernel(name: str | None = None, progress: Callable[[str], None] | None = None) -> KernelInfo:
    """Return the kernel to use: `name`, or the environment's NANOCHAT_KERNEL, or the fastest possible.

    progress: called with one line before anything that takes seconds. Raises UserError if the name is unknown or the
    processor lacks what the kernel needs.
    """
    wanted = name or os.environ.get(ENVIRONMENT) or None
    if wanted is None:
        return next(kernel for kernel in KERNELS if _obstacle(kernel, progress) is None)
    obstacle = None
    for kernel in KERNELS:
        if kernel.name == wanted:
            obstacle = _obstacle(kernel, progress)
            if obstacle is None:
                return kernel
    choices = ", ".join(kernel.name for kernel in available_kernels())
    if obstacle is not None:
        raise UserError(f"the kernel {wanted} {obstacle}; it can run: {choices}")
    raise UserError(f"there is no kernel called {display_safe(wanted)}; this processor can run: {choices}")
