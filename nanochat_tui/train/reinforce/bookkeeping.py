"""What a reinforcement run keeps in addition to weights and moments: its generation batch, the next row's figures."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nanochat_tui.errors import UserError
from nanochat_tui.runs.config import TrainConfig
from nanochat_tui.runs.reinforce import ReinforceConfig
from nanochat_tui.train.methods import Methods
from nanochat_tui.train.model import NanochatModel
from nanochat_tui.train.reinforce.rollouts import Completion, GenerationBatch, Reward
from nanochat_tui.train.resuming import Resumed
from nanochat_tui.train.schedule import Schedule

REINFORCE = "reinforce"
"""Key of what state.json and config.json say of it."""


class Bookkeeping(Methods):
    """The methods of a run, and what reinforcement adds to its checkpoints and rows."""

    def __init__(
        self,
        config: TrainConfig,
        model: NanochatModel,
        log: Callable[[str], None],
        settings: ReinforceConfig,
        tasks: Mapping[str, Any],
    ) -> None:
        """`tasks` says where prompts and rewards come from, so that a resume finds them again."""
        super().__init__(config, model, log)
        self.settings, self.tasks = settings, dict(tasks)
        self.batch: GenerationBatch | None = None
        """The generation batch in use; None where the next step makes one."""
        self.steps: list[dict[str, float]] = []
        """Figures of the steps since the last row."""

    def resumed(self, found: Resumed, schedule: Schedule) -> None:
        """Take over from a checkpoint."""
        super().resumed(found, schedule)
        self.take_over(found.state.get("methods") or {})

    def take_over(self, saved: Mapping[str, Any]) -> None:
        """Take over what `state` wrote. Raises UserError for a checkpoint of another kind of run."""
        kept = saved.get(REINFORCE)
        if not isinstance(kept, dict):
            raise UserError(
                "the checkpoint is not of a reinforcement run; continue it with nanochat-train train --resume"
            )
        self.batch = None if kept.get("batch") is None else GenerationBatch.from_json(kept["batch"])
        self.steps = [dict(step) for step in kept.get("steps", [])]

    def facts(self) -> dict[str, Any]:
        """What config.json and state.json say of the settings."""
        return {REINFORCE: {"settings": self.settings.model_dump(mode="json"), "tasks": self.tasks}}

    def state(self) -> dict[str, Any]:
        """What state.json keeps of it."""
        batch = None if self.batch is None else self.batch.to_json()
        return super().state() | {REINFORCE: {"batch": batch, "steps": self.steps}}

    def take_row(self) -> dict[str, Any]:
        """Keys for the row that is written now: means over the steps that told them."""
        steps, self.steps = self.steps, []
        names = dict.fromkeys(name for step in steps for name in step)
        means = {name: [step[name] for step in steps if name in step] for name in names}
        row = {name: sum(values) / len(values) for name, values in means.items()}
        if "entropy" in row:  # not that of the loss, which is no cross-entropy here
            row["perplexity"] = math.exp(row["entropy"])
        return super().take_row() | {name: value for name, value in row.items() if math.isfinite(value)}


def batch_figures(
    completions: Sequence[Completion], rewards: Sequence[Reward], equal: float, deviation: float
) -> dict[str, float]:
    """Figures of a generation batch, called as TRL's: reward, its deviation in a group, its parts, lengths.

    `equal` is the share of groups whose rewards are all the same, `deviation` the mean one of a group.
    """
    known = [reward.value for reward in rewards if not math.isnan(reward.value)]
    count = len(completions)
    names = dict.fromkeys(name for reward in rewards for name in reward.parts)
    parts = {name: [reward.parts[name] for reward in rewards if name in reward.parts] for name in names}
    return {
        "reward": sum(known) / len(known) if known else math.nan,
        "reward_std": deviation,
        "frac_reward_zero_std": equal,
        "success": sum(reward.success for reward in rewards) / count,
        **{f"reward_{name}": sum(values) / len(values) for name, values in parts.items()},
        "completion_length": sum(len(c.ids) for c in completions) / count,
        "completion_clipped": sum(c.truncated for c in completions) / count,
    }
