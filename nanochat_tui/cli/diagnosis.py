"""The facts `doctor` prints. Every one is looked up; what cannot be found out says why, and nothing here may fail."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from collections.abc import Callable
from pathlib import Path

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

    memory = psutil.virtual_memory()
    return {
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cores": psutil.cpu_count(logical=False) or os.cpu_count(),
        "threads": os.cpu_count(),
        "usable threads": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory GiB": round(memory.total / 2**30, 1),
        "memory available GiB": round(memory.available / 2**30, 1),
    }


def _engine() -> Rows:
    from nanochat_tui.engine import amx
    from nanochat_tui.engine.dispatch import available_kernels, choose_kernel, cpu_name
    from nanochat_tui.engine.processors import default_threads

    info = choose_kernel()
    return {
        "kernel": info.name,
        "description": info.description,
        "kernels that run here": [kernel.name for kernel in available_kernels()],
        "processor": cpu_name(),
        "features used": sorted(info.cpu_features),
        "AMX": amx.in_words(info),
        "threads by default": default_threads(),
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
    from nanochat_tui.engine.compile_cache import cache_directory
    from nanochat_tui.model.shipped import shipped_model

    package = Path(__file__).resolve().parent.parent
    shipped = shipped_model()
    compiled = cache_directory()
    return {
        "package": str(package),
        "python": sys.executable,
        "shipped model": str(shipped) if shipped else None,
        "compiled kernels": str(compiled) if compiled else "nowhere private and writable; compiled at every start",
    }
