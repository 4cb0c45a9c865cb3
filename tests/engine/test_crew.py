"""How many threads run a job, decided by made times: of a machine that is free, shared, and free again."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from nanochat_tui.engine.run.crew import FEW_ROWS, GAIN_FEWER, GAIN_MORE, LONGEST_PAUSE, WINDOW, Crew, fewer, more

Machine = Callable[[int], tuple[float, float]]
"""Says of a number of threads what a pass takes, in seconds, and of them those in which thread 0 does not run."""


def free(threads: int) -> tuple[float, float]:
    return 0.001 / threads, 0.0


def shared(threads: int) -> tuple[float, float]:
    return (0.001, 0.0) if threads == 1 else (0.003, 0.002)


def busy_but_worth_it(threads: int) -> tuple[float, float]:
    return 0.001 / threads**0.7, 0.0003


def run(crew: Crew, machine: Machine, seconds: float, rows: int = 1) -> float:
    """Run jobs of up to 8 ms for a time; return passes per second."""
    clock, passes = 0.0, 0
    while clock < seconds:
        size = crew.size(rows)
        each, waited = machine(size)
        some = max(1, int(0.008 / each)) if rows <= FEW_ROWS else 1
        clock += some * each
        crew.learn(rows, size, some, some * each, some * waited)
        passes += some
    return passes / clock


@pytest.mark.parametrize("threads", [1, 2, 3, 8, 64])
def test_a_free_machine_is_used_whole_and_nothing_is_tried(threads: int) -> None:
    crew = Crew(threads)
    run(crew, free, 5)
    assert crew.now == threads and crew.changes == 0 and set(crew.passes) == {threads}


def test_a_shared_machine_is_used_by_fewer_and_found_free_again() -> None:
    crew = Crew(2)
    run(crew, free, 1)
    assert run(crew, shared, 5) > 0.93 * 1000
    assert crew.now == 1 and crew.passes[1] > crew.passes[2] * 0.5
    run(crew, free, LONGEST_PAUSE + 2 * WINDOW + 0.1)
    assert crew.now == 2
    assert run(crew, free, 1) == pytest.approx(2000, rel=0.01)


def test_threads_that_wait_but_help_stay() -> None:
    crew = Crew(2)
    assert run(crew, busy_but_worth_it, 10) > 0.97 * 1000 * 2**0.7
    assert crew.now == 2 and crew.changes == 0


def test_a_trial_that_had_luck_is_ended_at_once() -> None:
    """Two threads are fast for 40 ms, until the other program has its turn again."""
    together = 0.0

    def lucky(threads: int) -> tuple[float, float]:
        nonlocal together
        together = 0.0 if threads == 1 else together + 0.01
        return (0.001, 0.0) if threads == 1 else (0.0005, 0.0) if together < 0.045 else (0.003, 0.002)

    crew = Crew(2)
    run(crew, shared, 1)
    assert run(crew, lucky, 20) > 0.93 * 1000
    run(crew, free, LONGEST_PAUSE + 2 * WINDOW + 0.1)
    assert crew.now == 2


def test_a_cold_start_is_not_judged() -> None:
    """The first tenth of a second is slow, whatever the number of threads."""
    work = 0.0

    def cold(threads: int) -> tuple[float, float]:
        nonlocal work
        work += 0.008
        return (0.002, 0.001) if work < 0.09 else free(threads)

    crew = Crew(2)
    run(crew, cold, 2)
    assert crew.changes == 0 and set(crew.passes) == {2}


def test_trials_become_rare() -> None:
    crew = Crew(2)
    run(crew, shared, 20)
    before = crew.passes[2]
    run(crew, shared, 20)
    assert (crew.passes[2] - before) * shared(2)[0] < 0.05 * 20


def test_many_threads_go_step_by_step() -> None:
    crew = Crew(16)

    def two_are_taken(threads: int) -> tuple[float, float]:
        return (0.016 / threads, 0.0) if threads <= 13 else (0.004, 0.002)

    run(crew, two_are_taken, 10)
    assert 9 <= crew.now <= 13
    run(crew, free, 5 * LONGEST_PAUSE)
    assert crew.now == 16


def test_kinds_of_jobs_are_judged_apart() -> None:
    crew = Crew(2)
    for _ in range(40):
        run(crew, shared, 0.2, rows=1)
        run(crew, free, 0.2, rows=128)
    assert crew.size(128) == 2
    assert crew.passes[1] > 0
    run(crew, shared, 2, rows=1)
    assert crew.now == 1


def test_a_number_that_was_asked_for_is_kept() -> None:
    crew = Crew(2, adapts=False)
    run(crew, shared, 5)
    assert crew.passes.keys() == {2} and crew.now == 2


def test_steps_reach_both_ends() -> None:
    for most in range(1, 70):
        seen = most
        for _ in range(80):
            seen = fewer(seen)
        assert seen == 1
        for _ in range(80):
            seen = more(seen, most)
        assert seen == most
    assert GAIN_FEWER > GAIN_MORE > 1
