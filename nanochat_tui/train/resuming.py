"""Continuing a run: what a checkpoint says of it, and what is different now."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from torch import Tensor

from nanochat_tui.errors import UserError
from nanochat_tui.model.config import ModelConfig
from nanochat_tui.model.tokenizer.identity import INFILL
from nanochat_tui.model.tokenizer.infill import InfillMarks
from nanochat_tui.runs.config import LENGTHS, TrainConfig
from nanochat_tui.runs.directory import RunDirectory, read_json
from nanochat_tui.text import display_safe
from nanochat_tui.train.checkpoint import load_checkpoint, load_state
from nanochat_tui.train.environment import EXACT_KEYS
from nanochat_tui.train.schedule import Schedule, total_steps

METHODS = "methods"
"""Key of state.json: what `train.methods` keeps of a run."""
SUPERSEDED = "superseded"
"""Folder in a run for checkpoints of a part that was given up by going back."""


@dataclass(slots=True)
class Resumed:
    """A checkpoint, read and judged."""

    path: Path
    weights: dict[str, Tensor]
    moments: dict[str, Tensor]
    step: int
    tokens: int
    sequences: int
    """Training sequences read so far."""
    seconds: float
    wall_seconds: float
    norm: float
    multiplier: float
    """Of the learning rate, in the checkpoint's step."""
    window: list[tuple[float, float]]
    """Losses and seconds of the steps since the last logged one."""
    schedule: Schedule
    saved: dict[str, Any]
    state: dict[str, Any] = field(default_factory=dict)
    """All of the checkpoint's state.json."""
    other_data: bool = False
    """Whether the training data are others than the checkpoint's."""
    marks: InfillMarks | None = None
    """For filling in the middle, where the run was trained with them so far."""
    notes: list[str] = field(default_factory=list)


def read_resumed(
    path: Path,
    config: TrainConfig,
    model: dict[str, Any],
    environment: dict[str, Any],
    data: dict[str, Any],
    *,
    arrays: bool = True,
) -> Resumed:
    """Read a checkpoint and compare it with what the run would be now.

    Parameters: the configuration; the model's shape, the environment and the data's description as they go to
    state.json; whether to read the arrays, too. Raises UserError when the checkpoint is damaged or of another model.
    """
    weights, moments, state = load_checkpoint(path) if arrays else ({}, {}, load_state(path))
    shown = display_safe(str(path))
    try:
        known = {f.name: f.default for f in fields(ModelConfig)}  # what earlier versions could not say
        different = [k for k, v in model.items() if state["model"].get(k, known[k]) != v]
        if different:
            raise UserError(f"{shown} is of another model: {', '.join(different)} differ; leave these options out")
        saved = state["config"]
        step = int(state["step"])
        found = Resumed(
            path,
            weights,
            moments,
            step,
            int(state["tokens"]),
            int(state.get("sequences", step * saved["batch_size"] * saved["grad_accum"] * saved.get("processes", 1))),
            float(state["seconds"]),
            float(state.get("wall_seconds", state["seconds"])),
            float(state.get("grad_norm") or 0.0),
            float(state.get("multiplier", 0.0)),
            [(float(loss), float(took)) for loss, took in state.get("window", [])],
            Schedule(**state["schedule"]),
            saved,
            state,
            bool(_data_changes(state.get("data"), data)),
            InfillMarks.from_json(state.get(INFILL)),
        )
        old = state["environment"]
        for key in EXACT_KEYS:
            if old.get(key) != environment[key]:
                found.notes.append(
                    f"{key} was {old.get(key)!s} and is {environment[key]!s}; losses will not repeat bit for bit"
                )
        found.notes += _changes(saved, config)
        found.notes += _data_changes(state.get("data"), data)
    except (KeyError, TypeError, ValueError, AttributeError):
        raise UserError(
            f"the checkpoint {shown} is not of this trainer: its state.json lacks what a run needs"
        ) from None
    return found


def _changes(saved: dict[str, Any], config: TrainConfig) -> list[str]:
    now = config.model_dump(mode="json")
    same_place = {"data_path", "val_path", "tokenizer"}
    found = []
    for key, value in now.items():
        # a setting of a later version had its default, which changes nothing
        before = saved.get(key, TrainConfig.model_fields[key].default)
        if before == value:
            continue
        if key in same_place and before and value and not Path(before).is_absolute():
            continue  # earlier versions kept it as it was typed
        found.append(f"{key} was {_shown(before)} and is {_shown(value)}")
    return found


def _shown(value: object) -> str:
    return "not set" if value is None else display_safe(str(value))


def _data_changes(saved: object, now: dict[str, Any]) -> list[str]:
    if not isinstance(saved, dict):
        return []

    def fingerprint(description: dict[str, Any]) -> object:
        splits = description.get("splits")
        train = splits.get("train") if isinstance(splits, dict) else None
        return train.get("sha256") if isinstance(train, dict) else None

    def mix(description: dict[str, Any]) -> list[tuple[object, object]]:
        return [(other.get("weight"), other.get("sha256")) for other in description.get("mix") or []]

    before, after = saved.get("train_tokens"), now.get("train_tokens")
    if (fingerprint(saved), before, mix(saved)) == (fingerprint(now), after, mix(now)):
        return []
    return [
        f"the training data are others: {before or 0:,} tokens before, {after or 0:,} now; their order starts again"
    ]


def continued_schedule(found: Resumed, config: TrainConfig, train_tokens: int, per_step: float | None) -> Schedule:
    """The schedule from here on: the saved one, to another end where the length was changed.

    Raises UserError when the new end lies before the checkpoint.
    """
    schedule = found.schedule
    schedule.warmup, schedule.decay_fraction = config.warmup_steps, config.decay_fraction
    schedule.shape = config.decay_shape
    size = found.saved["batch_size"] * found.saved["grad_accum"] * found.saved.get("processes", 1)
    keys = [*LENGTHS, "seq_len"]
    same = all(found.saved.get(key) == getattr(config, key) for key in keys)
    if same and size == config.sequences_per_step:
        return schedule
    total = total_steps(config, train_tokens, found.step, found.wall_seconds, per_step, found.tokens)
    if total <= found.step and total != schedule.total:
        raise UserError(
            f"{display_safe(found.path.name)} is at step {found.step:,} already, and the length asked for ends at "
            f"{total:,}; give a longer one or resume an earlier checkpoint"
        )
    schedule.extend(total, found.step)
    return schedule


def step_of(checkpoint: Path) -> int:
    """The step of a checkpoint; 0 when it cannot be told."""
    try:
        step = read_json(checkpoint / "state.json").get("step")
    except UserError:
        return 0
    return step if isinstance(step, int) else 0


def later_checkpoints(run: RunDirectory, resume: Path, step: int, *, force: bool) -> list[Path]:
    """Checkpoints that a run from `resume` at `step` would contradict there: later ones, or those of another run.

    Raises UserError when there are any, unless with `force`.
    """
    present = run.checkpoints()
    ours = any(c.resolve() == resume.resolve() for c in present)
    later = [c for c in present if not ours or step_of(c) > step]
    if later and not force:
        raise UserError(
            f"{display_safe(str(run.path))} holds {', '.join(c.name for c in later)}, which "
            f"{display_safe(resume.name)} does not lead to; resume the newest one, name another --checkpoint-dir, or "
            "pass --force to set them aside"
        )
    return later


def set_aside(run: RunDirectory, checkpoints: list[Path]) -> None:
    """Move checkpoints into the run's folder of superseded ones, so that nothing of value is overwritten."""
    folder = run.path / SUPERSEDED / time.strftime("%Y%m%d-%H%M%S")
    folder.mkdir(parents=True, exist_ok=True)
    for checkpoint in checkpoints:
        shutil.move(checkpoint, folder / checkpoint.name)
