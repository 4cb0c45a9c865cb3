"""What a run does beyond plain next-token training, each thing switched by its settings and off by default.

The training loop tells this object where it is; what was done comes back as keys of metrics.jsonl. What a resume needs
beyond weights and moments goes through `state`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor

from nanochat_tui.runs.config import TrainConfig
from nanochat_tui.runs.mhc_health import mhc_problems
from nanochat_tui.train.collider import TokenFilter, open_reference
from nanochat_tui.train.fire import reinitialise
from nanochat_tui.train.mhc_analysis import StreamAnalysis
from nanochat_tui.train.model import NanochatModel
from nanochat_tui.train.mtp import TokensAhead
from nanochat_tui.train.resuming import METHODS, Resumed
from nanochat_tui.train.schedule import Schedule


class Methods:
    """The switched methods of one run. `log` takes lines for log.txt."""

    def __init__(
        self, config: TrainConfig, model: NanochatModel, log: Callable[[str], None], *, compiled: bool = False
    ) -> None:
        self.config, self.model, self.log = config, model, log
        self.ahead: TokensAhead | None = None
        if config.mtp_depth:
            self.ahead = TokensAhead(model, config.mtp_weight, compiled=compiled)
        self.filter: TokenFilter | None = None
        if config.collider_ratio:
            path, weights = config.collider_reference, model.token_embd.weight
            reference = open_reference(path, model.config, weights.device, model.compute_dtype) if path else None
            self.filter = TokenFilter(config.collider_ratio, reference)
        self.streams = StreamAnalysis(model) if config.mhc_analysis else None
        self._warned: set[str] = set()
        self._fire_pending = False
        self._fired_at: int | None = None
        """Step before which FIRE was applied last: a checkpoint of that very step is not to have it twice."""
        self._sums: tuple[list[Tensor], int, list[float]] = [], 0, []
        """What the methods had added up before this step."""
        self._row: dict[str, Any] = {}
        """What the next row of metrics.jsonl will say."""

    def resumed(self, found: Resumed, schedule: Schedule) -> None:
        """Take over from a checkpoint; `schedule` is the run's from here on."""
        saved = found.state.get(METHODS) or {}
        self._row = dict(saved.get("row", {}))
        if self.ahead is not None and "mtp" in saved:
            self.ahead.load_state(**saved["mtp"])
        if self.filter is not None and "collider" in saved:
            self.filter.sums = [float(value) for value in saved["collider"]]
        rewarms = schedule.rewarm_step == found.step > 0 and schedule.rewarm_from < 1
        self._fired_at = saved.get("fired_at")
        self._fire_pending = bool(saved.get("fire_pending")) or rewarms or found.other_data

    def begin_step(self, step: int, reset_optimizer: Callable[[], None]) -> None:
        """Do what is due before step number `step`."""
        config = self.config
        ahead, kept = self.ahead, self.filter
        self._sums = list(ahead.sums) if ahead else [], ahead.count if ahead else 0, list(kept.sums) if kept else []
        due = config.fire and (self._fire_pending or step == config.fire_step) and step != self._fired_at
        self._fire_pending = False
        if not due:
            return
        self._fired_at = step
        reset_optimizer()
        report = reinitialise(
            self.model.named_parameters(),
            iterations=config.fire_iterations,
            matrices=config.fire_matrices,
            group_size=self.model.config.group_size,
            least_squares=self.model.config.least_squares,
        )
        self._row |= report.row()
        self.log(f"step {step}: {report.line()}")

    @property
    def backward(self) -> tuple[TokensAhead | None, TokenFilter | None]:
        """What `step.backward` takes beyond the batch."""
        return self.ahead, self.filter

    def drop(self) -> None:
        """Forget what a step added whose loss or gradient is not a number."""
        if self.ahead is not None:
            self.ahead.sums, self.ahead.count = list(self._sums[0]), self._sums[1]
        if self.filter is not None:
            self.filter.sums = list(self._sums[2])

    def observe(self, inputs: Tensor) -> None:
        """Look at the gradients of a step, before they are clipped; `inputs` is its last micro-batch."""
        if self.streams is not None:
            self.streams.observe(inputs)

    def take_row(self) -> dict[str, Any]:
        """Keys for the row that is written now; the next one begins empty."""
        row, self._row = self._row, {}
        if self.ahead is not None:
            row |= self.ahead.row()
        if self.filter is not None:
            row |= self.filter.row()
        if self.model.config.n_experts:
            row |= _expert_row(self.model)
        if self.streams is not None:
            row |= self.streams.row()
            for problem in mhc_problems(row.get("mhc", [])):
                if problem not in self._warned:
                    self._warned.add(problem)
                    self.log(f"warning: {problem}")
        # a run that does not skip steps ends with such a row, and JSON has no word for it
        return {key: value for key, value in row.items() if not isinstance(value, float) or math.isfinite(value)}

    def facts(self) -> dict[str, Any]:
        """What config.json and every state.json say of it beyond the configuration."""
        return {}

    def state(self) -> dict[str, Any]:
        """What state.json keeps of it."""
        mtp = {"mtp": self.ahead.state()} if self.ahead is not None else {}
        collider = {"collider": self.filter.sums} if self.filter is not None else {}
        return {"fire_pending": self._fire_pending, "fired_at": self._fired_at, "row": self._row, **mtp, **collider}


def _expert_row(model: NanochatModel) -> dict[str, float]:
    """How unevenly a mixture's experts were used since the last row: the most used one's share, times their number.

    The mean and the largest of all blocks; 1 is even, and the number of experts means that one does everything.
    """
    loads = [block.load / block.load.sum().clamp(min=1) * model.config.n_experts for block in model.blocks]
    if not any(float(load.sum()) for load in loads):
        return {}
    for block in model.blocks:
        block.load.zero_()
    most = [float(load.max()) for load in loads]
    return {"expert_load": sum(most) / len(most), "expert_load_max": max(most)}
