"""Generators of reasoning-gym as a taskset of verifiers. Importing it needs both libraries."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import verifiers.v1 as vf

from nanochat_tui.evaluate.environments import ASK

_MARKED = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


def answer_of(reply: str) -> str:
    """The text between the last pair of answer marks, or all of a reply without."""
    found = _MARKED.findall(reply)
    return str(found[-1] if found else reply).strip()


class GymData(vf.TaskData):  # type: ignore[misc]
    """A question of a generator."""

    answer: str
    entry: dict[str, Any]
    """What the generator's verifier takes."""


class GymTask(vf.Task[GymData, vf.State, vf.TaskConfig]):  # type: ignore[misc]
    """A question, scored by the verifier of the dataset it came from."""

    def __init__(self, data: GymData, config: Any, dataset: Any) -> None:
        super().__init__(data, config)
        self.dataset = dataset

    @vf.reward  # type: ignore[untyped-decorator]
    async def right(self, trace: Any) -> float:
        """What the generator's own verifier says of the answer, 0 to 1."""
        return float(self.dataset.score_answer(answer_of(trace.last_reply), self.data.entry))


class GymTaskset(vf.Taskset[GymTask, vf.TasksetConfig]):  # type: ignore[misc]
    """All questions of a dataset of reasoning-gym."""

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config)
        self.dataset = dataset

    def load(self) -> Iterator[GymTask]:
        """Yield its questions in order."""
        for entry in self.dataset:
            data = GymData(prompt=f"{entry['question']}\n{ASK}", answer=str(entry["answer"]), entry=dict(entry))
            yield GymTask(data, self.config.task, self.dataset)
