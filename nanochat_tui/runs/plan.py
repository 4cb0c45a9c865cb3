"""A training on paper: parameters, arithmetic, memory per device, hours and devices at a given speed.

Nothing here looks at this machine; `estimate` says what a run costs where it is started.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from nanochat_tui.errors import UserError
from nanochat_tui.runs.config import TrainConfig
from nanochat_tui.runs.estimate import checkpoint_bytes, flops_per_token
from nanochat_tui.runs.memory import Memory, memory_parts

TOKENS_PER_PARAMETER = 20
"""Tokens for each active parameter where the configuration names no length (Hoffmann et al. 2022)."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a configuration needs. Bytes, tokens and hours; None where a speed would be needed to tell."""

    config: str
    parameters: int
    active_parameters: int
    """Those a token is computed with: all of a dense model, fewer of a mixture of experts."""
    ternary_parameters: int
    flops_per_token: float
    tokens_per_step: int
    """Of all devices together."""
    tokens: int
    steps: int
    tokens_basis: str
    """Where the number of tokens comes from, in words."""
    flops: float
    """Of the whole training."""
    checkpoint_bytes: int
    devices: int
    memory: Memory
    """Per device, each with the whole model."""
    sharded_memory: Memory | None
    """Per device where weights, gradients and moments are shared between the devices; None for one device."""
    tokens_per_second: float | None
    """Of all devices together."""
    hours: float | None
    device_hours: float | None
    devices_for_hours: int | None
    """Devices at which the training takes the hours asked for."""


def _length(
    config: TrainConfig, train_tokens: int | None, devices: int, tokens_per_second: float | None
) -> tuple[int, str]:
    """Tokens of the training, and the setting they come from: the first limit that is reached."""
    limits: list[tuple[int, str]] = []
    if config.steps:
        limits.append((config.steps * devices * config.tokens_per_step, f"{config.steps:,} steps"))
    if config.tokens:
        limits.append((config.tokens, "as configured"))
    if config.epochs and train_tokens:
        limits.append((math.ceil(config.epochs * train_tokens), f"{config.epochs:g} epochs of the data"))
    if config.minutes and tokens_per_second:
        limits.append((int(config.minutes * 60 * devices * tokens_per_second), f"{config.minutes:g} minutes"))
    wanted = TOKENS_PER_PARAMETER * config.model_shape().active_parameters
    return min(limits, default=(wanted, f"{TOKENS_PER_PARAMETER} per active parameter"))


def make_plan(
    config: TrainConfig,
    *,
    train_tokens: int | None = None,
    tokens_per_second: float | None = None,
    devices: int = 1,
    hours: float | None = None,
) -> Plan:
    """Return the plan of a configuration.

    Parameters: `train_tokens` of the data, where a length in epochs needs them; `tokens_per_second` of one device;
    `devices` that each take micro-batches of the configured size; `hours` the training may take, which asks for the
    number of devices. Speeds are taken to add up over devices. Raises UserError for `hours` without a speed.
    """
    for name, value in (("hours", hours), ("tok-per-s", tokens_per_second)):
        if value is not None and not 0 < value < math.inf:
            raise UserError(f"--{name} is {value:g} and must be a number above 0")
    if hours is not None and tokens_per_second is None:
        raise UserError("the devices for a time follow from the speed of one; give it with --tok-per-s")
    shape = config.model_shape()
    per_step = devices * config.tokens_per_step
    tokens, basis = _length(config, train_tokens, devices, tokens_per_second)
    flops = flops_per_token(config)
    speed = None if tokens_per_second is None else devices * tokens_per_second
    return Plan(
        config=config.config,
        parameters=shape.parameters,
        active_parameters=shape.active_parameters,
        ternary_parameters=shape.ternary_parameters,
        flops_per_token=flops,
        tokens_per_step=per_step,
        tokens=tokens,
        steps=math.ceil(tokens / per_step),
        tokens_basis=basis,
        flops=flops * tokens,
        checkpoint_bytes=checkpoint_bytes(config),
        devices=devices,
        memory=memory_parts(config),
        sharded_memory=memory_parts(config, devices) if devices > 1 else None,
        tokens_per_second=speed,
        hours=tokens / speed / 3600 if speed else None,
        device_hours=tokens / tokens_per_second / 3600 if tokens_per_second else None,
        devices_for_hours=(
            math.ceil(tokens / tokens_per_second / 3600 / hours) if tokens_per_second and hours else None
        ),
    )
