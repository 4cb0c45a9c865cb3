"""What a configuration will cost before it is started: parameters, memory, time.

Arithmetic per token counts a multiplication and an addition as two, forward and backward as three forward passes
(Kaplan et al. 2020, with attention's own products added). Memory is the sum of what the trainer is known to hold,
compared with the resident size of real runs of 8 x 512 tokens (d20: 2.7 GB estimated, 2.46 measured; tiny with 50,257
ids: 1.40 and 1.32).
Time follows from runs measured on the same machine, or from a known GPU's peak, and is otherwise not estimated.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from nanochat_tui.errors import UserError
from nanochat_tui.runs.config import TrainConfig
from nanochat_tui.runs.directory import RunDirectory
from nanochat_tui.runs.hardware import peak_flops
from nanochat_tui.runs.memory import Memory, memory_parts
from nanochat_tui.runs.metrics import MetricsTail

ASSUMED_UTILISATION = 0.3
"""Share of a GPU's peak that small models reach; used only where nothing was measured."""

ELSEWHERE = "not known, it runs on another machine"
FAR = 4.0
"""Ratio of arithmetic per token beyond which a speed can hardly be carried over."""


@dataclass(frozen=True, slots=True)
class Measured:
    """A speed seen on some machine."""

    run: str
    tokens_per_second: float
    flops_per_token: float
    device: str
    host: str


@dataclass(frozen=True, slots=True)
class Estimate:
    """What to expect of a run. Bytes, seconds and counts; None where nothing sensible can be said."""

    parameters: int
    active_parameters: int
    ternary_parameters: int
    tokens_per_step: int
    total_steps: int | None
    total_tokens: int | None
    memory_bytes: int
    memory: Memory
    checkpoint_bytes: int
    flops_per_token: float
    tokens_per_second: float | None
    seconds: float | None
    basis: str
    """Where the speed comes from, in words."""


def flops_per_token(config: TrainConfig) -> float:
    """Floating-point operations of training on one token."""
    shape = config.model_shape()
    rows = shape.vocab_size
    if frequent := config.head_columns(cuda=config.device.startswith("cuda")):
        rows = min(rows, frequent + config.head_sampled)
    matrices = shape.active_ternary_parameters + (1 + shape.nextn) * shape.dim * rows
    attention = (shape.n_layers + shape.nextn) * shape.dim * config.sequence_length
    return 6.0 * (matrices + attention)


def memory_bytes(config: TrainConfig) -> int:
    """Bytes the trainer will hold at its peak."""
    return memory_parts(config).total


def checkpoint_bytes(config: TrainConfig) -> int:
    """Bytes of one checkpoint: weights and moments in float32."""
    shape = config.model_shape()
    table = shape.vocab_size * shape.dim * (1 if shape.tied else 2)
    return 4 * (shape.parameters + 2 * table + shape.ternary_parameters)


def planned_steps(config: TrainConfig, train_tokens: int | None, tokens_per_second: float | None) -> int | None:
    """Steps until the first limit is reached; None when it cannot be told."""
    limits: list[float] = []
    if config.steps:
        limits.append(config.steps)
    if config.tokens:
        limits.append(np.ceil(config.tokens / config.tokens_per_step))
    if config.epochs and train_tokens:
        limits.append(np.ceil(config.epochs * train_tokens / config.tokens_per_step))
    if config.minutes and tokens_per_second:
        limits.append(np.floor(config.minutes * 60 * tokens_per_second / config.tokens_per_step))
    return max(1, int(min(limits))) if limits else None


def estimate(
    config: TrainConfig,
    train_tokens: int | None = None,
    measured: Iterable[Measured] = (),
    *,
    elsewhere: bool = False,
) -> Estimate:
    """Estimate what a configuration will cost; `measured` are speeds of earlier runs, see `measured_speeds`.

    `elsewhere`: it will run on another machine, of which no speed is known.
    """
    shape = config.model_shape()
    flops = flops_per_token(config)
    speed, basis = (None, ELSEWHERE) if elsewhere else _speed(config, flops, list(measured))
    steps = planned_steps(config, train_tokens, speed)
    tokens = steps * config.tokens_per_step if steps else None
    seconds = tokens / speed if tokens and speed else (config.minutes * 60 if config.minutes else None)
    return Estimate(
        shape.parameters,
        shape.active_parameters,
        shape.ternary_parameters,
        config.tokens_per_step,
        steps,
        tokens,
        memory_bytes(config),
        memory_parts(config),
        checkpoint_bytes(config),
        flops,
        speed,
        seconds,
        basis,
    )


def _speed(config: TrainConfig, flops: float, measured: list[Measured]) -> tuple[float | None, str]:
    host = socket.gethostname()
    wanted = None if config.device == "auto" else config.device.split(":")[0]
    here = [m for m in measured if m.host == host and (wanted is None or m.device.split(":")[0] == wanted)]
    if here:
        # the run whose arithmetic is nearest says most about this one
        nearest = min(here, key=lambda m: abs(np.log(m.flops_per_token / flops)))
        speed = nearest.tokens_per_second * nearest.flops_per_token / flops
        far = max(nearest.flops_per_token / flops, flops / nearest.flops_per_token) > FAR
        doubt = ", a model of quite another size: a rough estimate" if far else ""
        return speed, f"measured in {nearest.run}, scaled by the arithmetic{doubt}"
    from nanochat_tui.runs.hardware import GpuMonitor

    gpus = GpuMonitor().read() if wanted != "cpu" else []
    peak = peak_flops(gpus[0].name, "bfloat16") if gpus else None
    if peak:
        return (
            ASSUMED_UTILISATION * peak / flops,
            f"{ASSUMED_UTILISATION:.0%} of the peak of {gpus[0].name}, an assumption",
        )
    return None, "no run was measured on this machine yet"


def measured_speeds(runs: Iterable[Path]) -> list[Measured]:
    """Median speeds of the given run directories; those without enough rows or settings are left out."""
    found = []
    for path in runs:
        try:
            recorded = RunDirectory(path).config()
            config = TrainConfig.model_validate({k: v for k, v in recorded["config"].items() if v is not None})
        except (UserError, ValidationError, KeyError, AttributeError):
            continue
        speed = recent_speed(path)
        if speed is None:
            continue
        environment: dict[str, Any] = recorded.get("environment", {})
        found.append(
            Measured(
                path.name,
                speed,
                flops_per_token(config),
                str(environment.get("device", "cpu")),
                str(environment.get("host", "")),
            )
        )
    return found


def recent_speed(path: Path) -> float | None:
    """Median tokens per second of a run's last hundred rows; None before there are three."""
    tail = MetricsTail(path / "metrics.jsonl")
    while tail.poll():
        pass
    speeds = tail.series.curve("tok_per_s")[1][-100:]
    return float(np.median(speeds)) if len(speeds) >= 3 else None


def utilisation(config: TrainConfig, environment: dict[str, Any], tokens_per_second: float) -> float | None:
    """Model FLOP/s utilisation, a share of the device's peak; None where the peak is not known."""
    peak = peak_flops(str(environment.get("device_name", "")), str(environment.get("dtype", "")))
    return tokens_per_second * flops_per_token(config) / peak if peak else None
