"""What the trainer is handed: completions drawn with given weights, and what they are worth.

Engine and evaluation stay unknown here. Both are called with whole generation batches; what they return is checked.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from nanochat_tui.runs.reinforce import ReinforceConfig

Weights = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class Completion:
    """A reply: its ids, the one that ended it among them, and their log-probabilities as the engine drew them.

    text: without the end. truncated: whether a limit ended it.
    """

    ids: list[int]
    log_probs: list[float]
    text: str
    truncated: bool


@dataclass(frozen=True, slots=True)
class Rolled:
    """Completions in the order they were asked for, and seconds: until the engine had the weights, and of decoding."""

    completions: list[Completion]
    weights_seconds: float = 0.0
    seconds: float = 0.0


class Rollouts(Protocol):
    """Draws one completion of each prompt, by its seed; the same arguments give the same completions."""

    def __call__(self, weights: Weights, prompts: Sequence[Sequence[int]], seeds: Sequence[int]) -> Rolled:
        """`weights` float32 by name, as a checkpoint has them; `prompts` are token ids."""
        ...


class Reward(Protocol):
    """What a completion is worth."""

    @property
    def value(self) -> float:
        """The reward; NaN where it cannot be told."""
        ...

    @property
    def success(self) -> bool:
        """Whether it is what was asked for: MaxRL's reward."""
        ...

    @property
    def parts(self) -> Mapping[str, float]:
        """What the reward is made of, for the metrics."""
        ...


class Rewards(Protocol):
    """Judges completions; `numbers` says for each which prompt of the run it answers."""

    def __call__(self, numbers: Sequence[int], texts: Sequence[str]) -> Sequence[Reward]:
        """Return one reward for each text."""
        ...


@dataclass(slots=True)
class GenerationBatch:
    """A generation batch while it is trained on; goes into checkpoints that are written between its steps."""

    numbers: list[int]
    """Prompt of each completion."""
    completions: list[Completion]
    rewards: list[float]
    successes: list[float]
    old: list[list[float]] | None = None
    """Log-probabilities under the weights it was generated with, by the trainer; known after its first step."""

    def to_json(self) -> dict[str, Any]:
        """Fields for state.json."""
        return {
            "numbers": self.numbers,
            "completions": [[c.ids, _plain(c.log_probs), c.text, c.truncated] for c in self.completions],
            "rewards": _plain(self.rewards),
            "successes": self.successes,
            "old": self.old,
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> GenerationBatch:
        """The batch that `to_json` wrote."""
        completions = [Completion(ids, _floats(probs), text, cut) for ids, probs, text, cut in value["completions"]]
        return cls(value["numbers"], completions, _floats(value["rewards"]), value["successes"], value["old"])


def _plain(values: Iterable[float]) -> list[float | None]:
    """Numbers as JSON has them: it knows no NaN."""
    return [None if math.isnan(value) else value for value in values]


def _floats(values: Iterable[float | None]) -> list[float]:
    return [float("nan") if value is None else value for value in values]


def prompts_of(number: int, count: int, settings: ReinforceConfig, seed: int) -> list[int]:
    """Prompts of generation batch `number` of a run with `count` prompts: each once in an epoch, in a random order."""
    first = number * settings.prompts_per_step
    found = []
    for place in range(first, first + settings.prompts_per_step):
        epoch, at = divmod(place, count)
        found.append(int(np.random.default_rng([seed, epoch]).permutation(count)[at]))
    return found


def seeds_of(number: int, count: int, seed: int) -> list[int]:
    """Seeds of the `count` completions of generation batch `number`."""
    drawn = np.random.SeedSequence([seed, number, 1]).generate_state(count, np.uint64)
    return [int(value >> np.uint64(1)) for value in drawn]
