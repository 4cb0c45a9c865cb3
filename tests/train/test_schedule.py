import itertools

import pytest

from nanochat_tui.runs.config import TrainConfig
from nanochat_tui.train.schedule import Schedule, total_steps


def test_warm_up_stable_decay() -> None:
    schedule = Schedule(warmup=10, total=100, decay_fraction=0.2)
    values = [schedule.multiplier(s) for s in range(101)]
    assert values[0] == pytest.approx(0.1)
    assert values[9] == values[50] == values[79] == 1.0
    assert values[80] == 1.0
    assert values[90] == pytest.approx(0.5)
    assert values[100] == 0.0
    assert all(a <= b for a, b in itertools.pairwise(values[:10]))
    assert all(a >= b for a, b in itertools.pairwise(values[80:]))


def test_decay_start_is_fixed_once_entered() -> None:
    schedule = Schedule(warmup=0, total=100, decay_fraction=0.5)
    assert not schedule.enter(49)
    assert schedule.enter(50)
    assert schedule.planned_decay_start() == 50


def test_longer_horizon_before_decay_just_stays_stable() -> None:
    schedule = Schedule(warmup=10, total=100, decay_fraction=0.2)
    schedule.extend(200, 60)
    assert schedule.multiplier(100) == 1.0
    assert schedule.planned_decay_start() == 160


def test_longer_horizon_after_decay_re_warms() -> None:
    schedule = Schedule(warmup=10, total=100, decay_fraction=0.2)
    schedule.enter(90)
    before = schedule.multiplier(95)
    schedule.extend(300, 95)
    assert before < schedule.multiplier(95) < schedule.multiplier(100) <= 1.0
    assert schedule.multiplier(110) == 1.0
    assert schedule.multiplier(300) == 0.0


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({"steps": 40}, 40),
        ({"tokens": 4096 * 7}, 7),
        ({"epochs": 2.0}, 20),
        ({"steps": 40, "tokens": 4096 * 7}, 7),
        ({"minutes": 1.0, "steps": 1000}, 35),
    ],
)
def test_first_limit_reached_ends_the_run(limits: dict[str, float], expected: int) -> None:
    config = TrainConfig(dataset="synthetic", batch_size=8, **limits)
    assert total_steps(config, train_tokens=40_960, step=5, seconds=0.0, per_step=2.0) == expected
