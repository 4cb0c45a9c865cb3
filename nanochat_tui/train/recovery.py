"""What a run is saved from and goes back to: its good checkpoints, the best one, its data that vanished."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nanochat_tui.errors import UserError, plain_reason
from nanochat_tui.formats.checksums import STATE_FILE, verify_sealed
from nanochat_tui.runs.directory import RunDirectory, read_json
from nanochat_tui.text import display_safe
from nanochat_tui.train.resuming import step_of

RECOVERY = "recovery"
"""Key of state.json: what `Recovery` keeps, and whether the checkpoint is good."""
RATE_FACTOR = 0.5
"""What the learning rate is multiplied with at each rollback."""


class Recovery:
    """Rollbacks of a run: up to `allowed` times back to the last good checkpoint, at half the rate each time.

    The data between the checkpoint and the divergence is passed over, for the same batches at the same weights are what
    broke the run (as Chowdhery et al. 2022, arXiv 2204.02311, section 5.1).
    """

    def __init__(self, allowed: int) -> None:
        self.allowed, self.done = allowed, 0

    @property
    def scale(self) -> float:
        """Factor of the learning rate."""
        return RATE_FACTOR**self.done

    def target(self, run: RunDirectory) -> Path | None:
        """The newest whole checkpoint that was good when it was written; None without one, or when all is used up."""
        if self.done >= self.allowed:
            return None
        for path in sorted(run.checkpoints(), key=step_of, reverse=True):
            with contextlib.suppress(UserError):
                state = read_json(path / STATE_FILE)
                if (state.get(RECOVERY) or {}).get("good", True):
                    verify_sealed(path, state)
                    return path
        return None

    def state(self, *, good: bool, skipped: int) -> dict[str, Any]:
        """Fields for state.json."""
        return {"good": good, "skipped": skipped, "rollbacks": self.done}

    def load(self, saved: dict[str, Any]) -> int:
        """Continue as a checkpoint says; returns the steps skipped until then."""
        self.done = int(saved.get("rollbacks", 0))
        return int(saved.get("skipped", 0))


class BestCheckpoint:
    """The step of the lowest validation loss so far."""

    def __init__(self) -> None:
        self.step, self.loss = -1, math.inf

    def load(self, run: RunDirectory) -> None:
        """Take over what a run's rows say, as far as the checkpoint is still there."""
        self.step, self.loss = -1, math.inf
        steps = {step_of(path) for path in run.checkpoints()}
        for row in run.metrics():
            loss = row.get("val_loss")
            if isinstance(loss, float) and row["step"] in steps:
                self.look(row["step"], loss)

    def spare(self, run: RunDirectory, name: str, step: int) -> None:
        """Give the best checkpoint a name of its own where the one of `step` is about to take its `name`."""
        present, own = run.path / name, run.path / f"step_{self.step}"
        if self.step not in (-1, step) and not own.exists() and present.is_dir() and step_of(present) == self.step:
            with contextlib.suppress(OSError):  # then nothing can be saved either, which is said there
                present.rename(own)

    def look(self, step: int, loss: float) -> bool:
        """Take in an evaluation; returns whether it is the best."""
        if not loss < self.loss:
            return False
        self.step, self.loss = step, loss
        return True


class DataLostError(UserError):
    """A file of the training data vanished or was cut while it was in use."""

    exit_code = 1


class DataGuard:
    """Sizes of files that are mapped into memory: reading past the end of one that was cut would kill the process."""

    def __init__(self, files: Sequence[Path]) -> None:
        self._sizes = {path: path.stat().st_size for path in files}

    def add(self, *others: DataGuard) -> None:
        """Look after the files of others, too."""
        for other in others:
            self._sizes |= other._sizes

    def check(self) -> None:
        """Raise DataLostError when a file is gone or shorter than it was."""
        for path, size in self._sizes.items():
            try:
                now = path.stat().st_size
            except OSError as error:
                problem = f"is gone ({plain_reason(error)})"
            else:
                if now >= size:
                    continue
                problem = f"was cut from {size:,} to {now:,} bytes"
            raise DataLostError(
                f"the data file {display_safe(str(path))} {problem} during the training; put it back, then resume"
            )
