"""What the machine is doing: GPUs through NVML where it is installed, memory of the trainer's process, known peaks."""

from __future__ import annotations

import contextlib
import importlib
import re
from dataclasses import dataclass
from typing import Any

import psutil

PEAKS: tuple[tuple[str, float], ...] = (
    (r"B200", 2250e12),
    (r"H200|H100.*(SXM|HBM3)|H100 80GB", 989e12),
    (r"H100.*(PCIe|NVL)", 756e12),
    (r"A100", 312e12),
    (r"L40S", 362e12),
    (r"L4\b", 121e12),
    (r"A10G?\b", 125e12),
    (r"RTX 5090", 209.5e12),
    (r"RTX 4090", 165.2e12),
    (r"RTX 3090", 71e12),
    (r"A6000", 154.8e12),
)
"""Dense bfloat16 matrix peak with float32 accumulation, FLOP/s, from the makers' data sheets; first match counts."""


def peak_flops(device_name: str, dtype: str) -> float | None:
    """Peak FLOP/s of a device for a type; None where it is not known, as for every CPU and for float32."""
    if dtype != "bfloat16":
        return None
    return next((peak for pattern, peak in PEAKS if re.search(pattern, device_name)), None)


@dataclass(frozen=True, slots=True)
class Gpu:
    """One look at a GPU."""

    name: str
    utilisation: int
    """Percent of the last moment in which a kernel ran."""
    memory_used: int
    memory_total: int
    watts: float | None
    celsius: int | None


class GpuMonitor:
    """Reads all NVIDIA GPUs of this machine; without one, or without nvidia-ml-py, there are none."""

    def __init__(self) -> None:
        self._nvml: Any = None
        self._handles: list[Any] = []
        try:
            nvml = importlib.import_module("pynvml")
            nvml.nvmlInit()
            self._handles = [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount())]
            self._nvml = nvml
        except Exception:
            # no package, no driver, no device, no permission: all mean that there is nothing to show
            self._nvml = None

    @property
    def available(self) -> bool:
        """Whether there is any GPU to look at."""
        return self._nvml is not None and bool(self._handles)

    def read(self) -> list[Gpu]:
        """Look at every GPU; those that do not answer are left out."""
        found = []
        for handle in self._handles if self._nvml is not None else ():
            with contextlib.suppress(self._nvml.NVMLError):
                found.append(self._one(handle))
        return found

    def _one(self, handle: Any) -> Gpu:
        nvml = self._nvml
        name = nvml.nvmlDeviceGetName(handle)
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
        watts = celsius = None
        with contextlib.suppress(nvml.NVMLError):
            watts = nvml.nvmlDeviceGetPowerUsage(handle) / 1000
        with contextlib.suppress(nvml.NVMLError):
            celsius = int(nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU))
        return Gpu(
            name.decode() if isinstance(name, bytes) else str(name),
            int(nvml.nvmlDeviceGetUtilizationRates(handle).gpu),
            int(memory.used),
            int(memory.total),
            watts,
            celsius,
        )


def process_memory(pid: int | None) -> int | None:
    """Resident bytes of a process and its children; None when it cannot be told."""
    if pid is None:
        return None
    try:
        process = psutil.Process(pid)
        total = int(process.memory_info().rss)
        for child in process.children(recursive=True):
            with contextlib.suppress(psutil.Error):
                total += int(child.memory_info().rss)
    except psutil.Error:
        return None
    return total
