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


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ("linear", [1, 0.75, 0.5, 0.25, 0]),
        ("cosine", [1, (1 + 0.5**0.5) / 2, 0.5, (1 - 0.5**0.5) / 2, 0]),
        ("sqrt", [1, 0.5, 1 - 0.5**0.5, 1 - 0.75**0.5, 0]),
    ],
)
def test_shapes_of_the_decay(shape: str, expected: list[float]) -> None:
    schedule = Schedule(warmup=0, total=100, decay_fraction=0.2, shape=shape)
    assert [schedule.multiplier(step) for step in (80, 85, 90, 95, 100)] == pytest.approx(expected, abs=1e-12)
    assert schedule.multiplier(79) == 1
    assert Schedule(**schedule.to_json()) == schedule


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


@pytest.mark.parametrize("decay", [0.0, 0.1, 0.25, 0.5, 0.9, 1.0])
@pytest.mark.parametrize(("total", "warmup"), [(200, 100), (100, 100), (120, 100), (30, 100), (1, 5), (3, 0)])
def test_decay_never_raises_the_rate(total: int, warmup: int, decay: float) -> None:
    schedule = Schedule(warmup=warmup, total=total, decay_fraction=decay)
    values = []
    begun = None
    for step in range(total):
        if schedule.enter(step) and begun is None:
            begun = step
        values.append(schedule.multiplier(step))
    largest_rise = 1 / warmup if warmup else 1.0
    assert all(b - a <= largest_rise + 1e-12 for a, b in itertools.pairwise([0.0, *values]))
    if begun is not None:
        falling = values[max(0, begun - 1) :]
        assert all(b <= a + 1e-12 for a, b in itertools.pairwise(falling))
    assert max(values) <= 1.0
    assert values[0] > 0


def test_shorter_horizon_in_the_decay_is_obeyed() -> None:
    schedule = Schedule(warmup=10, total=100, decay_fraction=0.5)
    schedule.enter(50)
    before = schedule.multiplier(60)
    schedule.extend(70, 60)
    values = [schedule.multiplier(step) for step in range(60, 71)]
    assert values[0] == pytest.approx(before)
    assert values[-1] == 0.0
    assert all(a > b for a, b in itertools.pairwise(values))


def test_a_little_more_after_the_end_re_warms_from_nothing() -> None:
    schedule = Schedule(warmup=10, total=100, decay_fraction=0.25)
    for step in range(100):
        schedule.enter(step)
    schedule.extend(110, 100)
    values = []
    for step in range(100, 111):
        schedule.enter(step)
        values.append(schedule.multiplier(step))
    assert values[0] == pytest.approx(0.1)
    assert all(b - a <= 0.1 + 1e-12 for a, b in itertools.pairwise(values))
    assert values[-1] == 0.0


def test_tokens_seen_count_towards_the_length() -> None:
    config = TrainConfig(dataset="synthetic", batch_size=8, tokens=4096 * 10)
    assert total_steps(config, 0, step=10, seconds=0, per_step=None, seen=4096 * 5) == 15
