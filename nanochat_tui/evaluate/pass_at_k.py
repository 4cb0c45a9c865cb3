"""pass@k without bias, with the spread over problems (Chen et al. 2021, arXiv 2107.03374, section 2.1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 2_000
CONFIDENCE = 0.95


@dataclass(frozen=True)
class PassRate:
    """An estimate of pass@k and its 95 % interval over problems."""

    k: int
    value: float
    low: float
    high: float
    problems: int


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """Return the chance that of k samples drawn from `samples`, `correct` of them right, one at least is right.

    Raises:
        ValueError: there are fewer samples than k, or more right ones than samples.
    """
    if not 0 <= correct <= samples or not 1 <= k <= samples:
        raise ValueError(f"pass@{k} of {correct} right ones of {samples} samples is not defined")
    if samples - correct < k:
        return 1.0
    return float(1.0 - np.prod(1.0 - k / np.arange(samples - correct + 1, samples + 1)))


def pass_rate(counts: Sequence[tuple[int, int]], k: int) -> PassRate:
    """Average pass@k over problems given as (samples, correct), each with at least k samples.

    The interval is a bootstrap over problems, which a fixed seed makes repeatable. Where no problem was solved it
    would be empty: its upper end is then the rate at which none of so many problems would be solved in 5 % of all
    trials (the one-sided bound of Clopper and Pearson), and likewise where all were.
    """
    values = np.array([pass_at_k(samples, correct, k) for samples, correct in counts])
    if not len(values):
        return PassRate(k, 0.0, 0.0, 1.0, 0)
    n = len(values)
    edge = float((1 - CONFIDENCE) ** (1 / n))
    if values.max() == 0.0:
        return PassRate(k, 0.0, 0.0, 1.0 - edge, n)
    if values.min() == 1.0:
        return PassRate(k, 1.0, edge, 1.0, n)
    draws = np.random.default_rng(0).integers(0, n, (RESAMPLES, n))
    low, high = np.quantile(values[draws].mean(axis=1), [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return PassRate(k, float(values.mean()), float(low), float(high), n)
