"""torchtitan's own `torchtitan.train` on processors: it knows accelerators only, so its device is named here first.

    torchrun … on_processors.py LOSSES --module titan_runs --config …

What it prints rounded goes to the file LOSSES in full: a line of JSON for each step.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from torchtitan.tools import utils

utils.device_type = "cpu"
utils.device_module = SimpleNamespace(
    set_device=lambda device: None,
    current_device=lambda: 0,
    device_count=lambda: 1,
    synchronize=lambda: None,
    get_device_name=lambda device: "processors",
    get_device_properties=lambda device: SimpleNamespace(total_memory=1 << 34),
    memory_stats=lambda device: {},
    reset_peak_memory_stats=lambda: None,
    empty_cache=lambda: None,
)

from torchtitan import train  # noqa: E402
from torchtitan.components.metrics import MetricsProcessor  # noqa: E402
from torchtitan.distributed import fsdp  # noqa: E402

LOSSES = Path(sys.argv.pop(1))


def log(self: Any, step: int, loss: float, _: float, norm: float, extra_metrics: Any = None) -> None:
    if os.environ["RANK"] == "0":
        with LOSSES.open("a") as file:
            file.write(json.dumps({"step": step, "loss": loss, "norm": norm}) + "\n")


undivided = fsdp.disable_fsdp_gradient_division


def summed(model: Any) -> None:
    """As torchtitan, but gloo cannot add and multiply at once."""
    undivided(model)
    for module in model.modules():
        if isinstance(module, fsdp.FSDPModule):
            module.set_force_sum_reduction_for_comms(True)


fsdp.disable_fsdp_gradient_division = summed
MetricsProcessor.log = log
train.main()
