"""GPUs by NVML: absent ones for real, present ones by a stand-in with NVML's own calls."""

import os
import sys
import types

import psutil
import pytest

from nanochat_tui.runs.hardware import Gpu, GpuMonitor, process_memory


def test_without_the_package_there_are_no_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)  # as Python itself marks a module that cannot be imported
    monitor = GpuMonitor()
    assert not monitor.available
    assert monitor.read() == []


def test_with_the_package_but_without_a_driver_neither() -> None:
    pynvml = pytest.importorskip("pynvml")
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        assert GpuMonitor().read() == []
    else:
        assert GpuMonitor().available


class _Error(Exception):
    pass


def _nvml() -> types.ModuleType:
    """Two GPUs of which the second answers nothing, as one that fell off the bus."""
    module = types.ModuleType("pynvml")

    def only_first(value: object) -> object:
        def call(handle: int, *_: object) -> object:
            if handle:
                raise _Error
            return value

        return call

    def refuse(*_: object) -> object:
        raise _Error

    parts: dict[str, object] = {
        "NVMLError": _Error,
        "NVML_TEMPERATURE_GPU": 0,
        "nvmlInit": lambda: None,
        "nvmlDeviceGetCount": lambda: 2,
        "nvmlDeviceGetHandleByIndex": lambda index: index,
        "nvmlDeviceGetName": only_first(b"NVIDIA L4"),
        "nvmlDeviceGetMemoryInfo": only_first(types.SimpleNamespace(used=5 << 30, total=24 << 30)),
        "nvmlDeviceGetUtilizationRates": only_first(types.SimpleNamespace(gpu=87)),
        "nvmlDeviceGetPowerUsage": only_first(71_500),
        "nvmlDeviceGetTemperature": refuse,
    }
    for name, part in parts.items():
        setattr(module, name, part)
    return module


def test_what_a_gpu_does_not_tell_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", _nvml())
    assert GpuMonitor().read() == [Gpu("NVIDIA L4", 87, 5 << 30, 24 << 30, 71.5, None)]


def test_memory_of_a_process_and_of_none() -> None:
    mine = process_memory(os.getpid())
    assert mine is not None
    assert mine >= psutil.Process().memory_info().rss * 0.9
    assert process_memory(None) is None
    assert process_memory(2**22 + 1) is None
