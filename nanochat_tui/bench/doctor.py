"""The facts `doctor` prints. Every one is looked up; what cannot be found out says why, and nothing here may fail."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from collections.abc import Callable
from pathlib import Path

from nanochat_tui.system import memory_size, usable_cpu_count

Value = str | int | float | list[str] | None
Rows = dict[str, Value]

_PACKAGES = ("numpy", "numba", "llvmlite", "tokenizers", "gguf", "safetensors", "textual", "typer", "torch")


def diagnose() -> dict[str, Rows]:
    """Return sections of facts by name; JSON-ready."""
    return {
        "versions": _versions(),
        "machine": _machine(),
        "engine": _guarded(_engine),
        "gpu": _guarded(_gpu),
        "paths": _guarded(_paths),
    }


def _guarded(section: Callable[[], Rows]) -> Rows:
    try:
        return section()
    except Exception as exc:  # a doctor who faints at the sight of an illness is of no use
        return {"error": f"{type(exc).__name__}: {exc}"}


def _versions() -> Rows:
    from nanochat_tui import __version__

    rows: Rows = {"nanochat-tui": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            rows[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            rows[package] = None
    return rows


def _machine() -> Rows:
    import psutil

    total, available = memory_size()
    return {
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cores": psutil.cpu_count(logical=False) or os.cpu_count(),
        "threads": os.cpu_count(),
        "usable_threads": usable_cpu_count(),
        "memory_gib": round(total / 2**30, 1),
        "memory_available_gib": round(available / 2**30, 1),
    }


def _engine() -> Rows:
    from nanochat_tui.engine.compile import amx_check as amx
    from nanochat_tui.engine.compile.choose import available_kernels, choose_kernel
    from nanochat_tui.engine.compile.targets import cpu_name
    from nanochat_tui.system import default_threads

    info = choose_kernel()
    return {
        "kernel": info.name,
        "description": info.description,
        "kernels": [kernel.name for kernel in available_kernels()],
        "processor": cpu_name(),
        "features": sorted(info.cpu_features),
        "amx": amx.in_words(info),
        "default_threads": default_threads(),
    }


def _gpu() -> Rows:
    import importlib.util

    if importlib.util.find_spec("torch") is None:
        return {"torch": "not installed; only training uses it (pip install 'nanochat-tui[train]')"}
    import torch  # Imported for its answer only, in this command only.

    if not torch.cuda.is_available():
        return {"torch": torch.__version__, "cuda": "not available"}
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {"torch": torch.__version__, "cuda": torch.version.cuda, "devices": names}


def _paths() -> Rows:
    from nanochat_tui.engine.compile.cache import cache_directory
    from nanochat_tui.model.shipped import shipped_model
    from nanochat_tui.paths import evaluations_directory

    package = Path(__file__).resolve().parent.parent
    base, chat = shipped_model(), shipped_model(chat=True)
    compiled = cache_directory()
    return {
        "package": str(package),
        "python": sys.executable,
        "shipped_model": str(base) if base else None,
        "shipped_chat_model": str(chat) if chat else None,
        "evaluations": str(evaluations_directory()),
        "compiled_kernels": str(compiled) if compiled else "nowhere private and writable; compiled at every start",
    }
