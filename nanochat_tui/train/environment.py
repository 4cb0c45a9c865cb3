"""What a run's figures depend on in addition to its configuration: device, types, threads, versions."""

from __future__ import annotations

import os
import platform
import shutil
import socket
from dataclasses import dataclass
from typing import Any

import torch

from nanochat_tui.errors import UserError
from nanochat_tui.runs.config import TrainConfig
from nanochat_tui.system import usable_cpu_count
from nanochat_tui.train.world import ALONE, World
from nanochat_tui.version import __version__


@dataclass(frozen=True)
class Environment:
    """Resolved device, product type and whether the trunk is compiled."""

    device: torch.device
    dtype: torch.dtype
    compiled: bool
    threads: int

    def to_json(self) -> dict[str, Any]:
        """Fields an exact resume depends on, and the versions."""
        return {
            "device": str(self.device),
            "device_name": torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else _cpu_name(),
            "instruction_set": torch.backends.cpu.get_cpu_capability(),
            "dtype": str(self.dtype).removeprefix("torch."),
            "compiled": self.compiled,
            "threads": self.threads,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "nanochat_tui": __version__,
            "host": socket.gethostname(),
        }


EXACT_KEYS = ("device", "device_name", "instruction_set", "dtype", "compiled", "threads", "torch")
"""A resumed run repeats the original bit for bit only while these are the same."""


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:  # noqa: PTH123
            return next((line.split(":", 1)[1].strip() for line in file if line.startswith("model name")), "cpu")
    except OSError:
        return platform.processor() or "cpu"


def resolve_environment(config: TrainConfig, world: World = ALONE) -> Environment:
    """Choose device, type and compilation; raises UserError when the asked device is not there."""
    name = config.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise UserError("--device cuda: this PyTorch finds no CUDA device; use --device cpu or install a CUDA build")
    if name == "cuda" and world.size > 1:
        name = f"cuda:{world.local_rank}"
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"--device {name}: there are only {torch.cuda.device_count()} CUDA devices")
    if config.dtype != "auto":
        dtype = getattr(torch, config.dtype)
    else:
        # on a CPU without bfloat16 matrix instructions the type is emulated, several times slower than float32
        dtype = torch.bfloat16 if device.type == "cuda" or _cpu_has_bf16() else torch.float32
    threads = config.threads or max(1, usable_cpu_count() // world.local_size)
    torch.set_num_threads(threads)
    # of experts multiplied one by one a compiler makes dozens of small pieces, which it takes minutes for
    whole = not config.model_shape().n_experts and any(map(shutil.which, ("g++", "clang++", "c++")))
    compiled = config.compile and (device.type == "cuda" or whole)
    return Environment(device, dtype, bool(compiled), threads)


def _cpu_has_bf16() -> bool:
    """Whether the processor multiplies bfloat16 itself: AMX tiles or AVX-512's dot product."""
    checks = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return any(check() for name in checks if (check := getattr(torch.cpu, name, None)) is not None)


MALLOC_SETTINGS = {
    "MALLOC_MMAP_THRESHOLD_": str(1 << 33),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 34),
    "MALLOC_TOP_PAD_": str(1 << 28),
}
"""glibc gives large blocks back to the system at once, and every step faults them in again; with these it
keeps them. Twice the speed of the products measured on two cores."""


def allocator_environment() -> dict[str, str] | None:
    """Environment to restart the process with so that freed memory is kept; None where it is set or not glibc."""
    if platform.libc_ver()[0] != "glibc" or any(k in os.environ for k in (*MALLOC_SETTINGS, "LD_PRELOAD")):
        return None
    return {**os.environ, **MALLOC_SETTINGS}
