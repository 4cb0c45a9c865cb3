"""Two evaluations of the same problems: is one model better, or may the choice of problems have said so?"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from math import comb
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nanochat_tui.errors import UserError
from nanochat_tui.evaluate.folder import ABOUT
from nanochat_tui.evaluate.solving import ROWS, Row, read_evaluation
from nanochat_tui.text import display_safe

RESAMPLES = 10_000


@dataclass(frozen=True)
class Comparison:
    """Rates of two models on the same problems, and their difference (the second less the first).

    low, high: 95 % interval of the difference, by a bootstrap over problems; where no problem differs, how large it may
    be all the same. sign_test: the two-sided chance that as uneven a split of the problems which only one of them
    solves more often comes from equal models.
    """

    problems: int
    rates: tuple[float, float]
    low: float
    high: float
    better: tuple[int, int]
    """Problems that the first, and the second, solves more often."""
    sign_test: float

    @property
    def difference(self) -> float:
        """Second rate less the first."""
        return self.rates[1] - self.rates[0]

    @property
    def is_significant(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.low > 0 or self.high < 0


def shares(rows: Sequence[Row]) -> dict[tuple[str, float], float]:
    """Return the share of samples that passed, by problem and temperature where there are several."""
    verdicts: dict[tuple[str, float], list[bool]] = defaultdict(list)
    for row in rows:
        verdicts[row.problem, -1.0 if row.temperature is None else row.temperature].append(row.verdict == "passed")
    return {name: sum(passed) / len(passed) for name, passed in verdicts.items()}


def compare(first: Sequence[Row], second: Sequence[Row]) -> Comparison:
    """Compare two evaluations, paired by problem; the bootstrap's seed is fixed.

    Raises:
        UserError: they have no problem in common.
    """
    a, b = shares(first), shares(second)
    together: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for key in a.keys() & b.keys():  # a problem asked at several temperatures is still one problem
        together[key[0]].append((a[key], b[key]))
    if not together:
        raise UserError("the two evaluations have no problem in common; compare two of the same problems")
    pairs = np.array([np.mean(together[name], axis=0) for name in sorted(together)])
    gains = pairs[:, 1] - pairs[:, 0]
    low, high = interval(gains)
    if not gains.any():
        # a bootstrap of nothing but zeros has no width; the share of problems that differ may be so large all the same
        high = float(1 - 0.05 ** (1 / len(gains)))
        low = -high
    better = int((gains < 0).sum()), int((gains > 0).sum())
    rates = float(pairs[:, 0].mean()), float(pairs[:, 1].mean())
    return Comparison(len(pairs), rates, low, high, better, sign_test(*better))


def compare_parts(first: Sequence[Row], second: Sequence[Row], parts: Sequence[str]) -> list[tuple[str, Comparison]]:
    """Compare two evaluations part by part (a problem's name begins with its part); those that one lacks are left
    out.
    """
    found = []
    for part in parts:
        a, b = ([row for row in rows if row.problem.startswith(f"{part}/")] for rows in (first, second))
        if {row.problem for row in a} & {row.problem for row in b}:
            found.append((part, compare(a, b)))
    return found


def interval(values: NDArray[np.float64]) -> tuple[float, float]:
    """Return the 95 % interval of a mean, by a bootstrap whose seed is fixed; values float64 [n]."""
    draws = np.random.default_rng(0).integers(0, len(values), (RESAMPLES, len(values)))
    low, high = np.quantile(values[draws].mean(axis=1), [0.025, 0.975])
    return float(low), float(high)


def sign_test(first: int, second: int) -> float:
    """Return the two-sided p-value of a split as uneven as this one, if both sides are equally likely."""
    trials, least = first + second, min(first, second)
    return min(1.0, 2 * float(sum(comb(trials, k) for k in range(least + 1))) / 2.0**trials)


def open_pair(first: Path, second: Path) -> tuple[list[tuple[dict[str, Any], list[Row]]], list[str]]:
    """Read two folders of evaluations, and say in words what differs between them other than the model.

    Raises:
        UserError: a folder holds no evaluation.
    """
    both = []
    for folder in (first, second):
        if not (folder / ABOUT).is_file() or not (folder / ROWS).is_file():
            raise UserError(
                f"{display_safe(str(folder))} holds no evaluation; make one with nanochat-tui eval humaneval"
            )
        both.append(read_evaluation(folder))
    (a, _), (b, _) = both
    keys = sorted((a.keys() | b.keys()) - {"model", "server"})
    return both, [key for key in keys if a.get(key) != b.get(key)]
