"""Who gets how much of a pass and who may run, decided without an engine: on simulated time."""

from __future__ import annotations

import random

import pytest

from nanochat_tui.engine.generate.fairness import (
    GAP,
    LEAST_CHUNK,
    LEAST_PREFILL,
    LONG_SHARE,
    PASS_SECONDS,
    Budget,
    Prompt,
    next_to_run,
    order,
    share,
    to_displace,
)


def test_the_shortest_prompt_goes_first_and_a_long_one_gets_little_next_to_it() -> None:
    prompts = [Prompt(4000, 1.0), Prompt(30, 0.0)]
    assert order(prompts) == [1, 0]
    assert share(prompts, 128) == [LONG_SHARE, 30]
    assert share([Prompt(4000, 1.0)], 128) == [128]
    assert share([Prompt(4000, 1.0), Prompt(3000, 0.0)], 128) == [LONG_SHARE, 128 - LONG_SHARE]


def test_waiting_makes_a_prompt_shorter() -> None:
    assert order([Prompt(400, 0.0), Prompt(500, 1.0)]) == [1, 0]
    assert order([Prompt(7, 0.0), Prompt(7, 0.0)]) == [0, 1], "of equals the earlier one"


@pytest.mark.parametrize("seed", range(50))
def test_a_pass_is_filled_and_never_overfilled(seed: int) -> None:
    rng = random.Random(seed)
    prompts = [Prompt(rng.randint(1, 300), rng.random() * 9) for _ in range(rng.randint(1, 16))]
    budget = rng.randint(1, 128)
    taken = share(prompts, budget)
    assert all(0 <= some <= prompt.remaining for some, prompt in zip(taken, prompts, strict=True))
    assert 0 < sum(taken) <= budget
    oldest = max(range(len(prompts)), key=lambda i: (prompts[i].waited, -i))
    assert taken[oldest] > 0
    ends = any(some == prompt.remaining for some, prompt in zip(taken, prompts, strict=True))
    assert ends or sum(taken) == budget


def test_a_stream_of_short_prompts_starves_nobody() -> None:
    """Short prompts fill every pass for as long as anybody looks, and the long one still comes to its end."""
    long, clock, passes = 4000, 0.0, 0
    shorts: list[tuple[int, float]] = []
    while long and passes < 2000:
        passes += 1
        clock += 0.05
        shorts += [(60, clock), (60, clock), (60, clock)]
        prompts = [Prompt(long, clock), *(Prompt(left, clock - came) for left, came in shorts)]
        taken = share(prompts, 128)
        long -= taken[0]
        shorts = [(left - some, came) for (left, came), some in zip(shorts, taken[1:], strict=True) if left > some]
    assert long == 0 and passes <= 4000 // LONG_SHARE


def test_shorts_next_to_a_long_prompt_wait_for_a_part_of_it_only() -> None:
    """In tokens that are computed before a short prompt's first token: at most four times its own, on average."""
    rng, waits = random.Random(1), []
    for _ in range(200):
        running = rng.randint(0, 128)  # what is left of the pass that was under way
        computed = sum(share([Prompt(4000, 1.0), Prompt(64, 0.0)], 128))
        waits.append(running + computed)
    assert sum(waits) / len(waits) < 4 * 64


def test_the_budget_keeps_the_gap_of_running_replies() -> None:
    budget = Budget(16)
    assert budget.tokens(128, 0) == 128 and budget.tokens(120, 2) == 32 - 2
    for _ in range(30):  # a model of 20 ms per pass and 0.5 ms per row
        budget.learn(0.020, 1, 0)
        tokens = budget.tokens(127, 1)
        budget.learn(0.020 + 0.0005 * budget.rows(tokens), 1, tokens)
    assert budget.rows(tokens + 1) in (32, 48)
    assert 0.020 + 0.0005 * budget.rows(tokens) <= GAP * 0.020 * 1.05
    assert budget.tokens(128, 0) == 128, "nobody waits for the next token"


def test_the_budget_of_fast_and_of_slow_models() -> None:
    fast, slow = Budget(16), Budget(16)
    for _ in range(30):
        for budget, plain, row in ((fast, 0.0003, 0.00003), (slow, 0.5, 0.1)):
            budget.learn(plain, 1, 0)
            for writing in (0, 1):
                tokens = budget.tokens(128 - writing, writing)
                budget.learn(plain + row * budget.rows(tokens), writing, tokens)
    assert fast.tokens(127, 1) == 127, "20 ms are no gap"
    assert LEAST_CHUNK <= slow.tokens(127, 1) == 8 - 1 and slow.tokens(128, 0) == LEAST_PREFILL


@pytest.mark.parametrize("tile", [4, 8, 16])
def test_a_pass_with_running_replies_fills_its_tiles(tile: int) -> None:
    """Tokens that a half empty tile has room for cost nothing."""
    for plain, row in ((0.0245, 0.00285), (0.15, 0.018), (0.0004, 0.0001), (0.01, 0.02)):
        for writing in range(1, 33):
            budget = Budget(tile)
            for _ in range(40):
                budget.learn(plain, writing, 0)
                tokens = budget.tokens(256 - writing, writing)
                assert tokens >= LEAST_CHUNK
                assert budget.rows(writing + tokens) == writing + tokens
                took = plain + row * budget.rows(writing + tokens)
                budget.learn(took, writing, tokens)
            least = plain + row * budget.rows(writing + LEAST_CHUNK)
            assert took <= max(GAP * plain, plain + PASS_SECONDS, least) * 1.0001
            more = budget.rows(writing + tokens) * 2
            assert plain + row * more > GAP * plain or more > 256


def test_a_pass_that_once_took_long_is_tried_again() -> None:
    """Another program had the processors for a moment."""
    budget = Budget(16)
    budget.learn(0.02, 1, 0)
    for _ in range(5):
        budget.learn(0.03, 1, 31)
    budget.learn(5.0, 1, 31)
    seen = set()
    for _ in range(400):
        tokens = budget.tokens(127, 1)
        seen.add(tokens)
        budget.learn(0.02 + 0.0003 * (tokens + 1), 1, tokens)
    assert 31 in seen


def test_places_go_to_the_request_with_the_fewest() -> None:
    assert next_to_run(["many", "many", "one"], ["many"]) == 2
    assert next_to_run(["many", "many"], ["many"]) == 0
    assert next_to_run(["b", "a"], ["a", "b"]) == 0, "of equals the earlier one"


def test_a_request_with_many_replies_gives_places_back() -> None:
    running = ["many"] * 8
    assert to_displace(["many", "one"], running) == 7
    assert to_displace(["many"], running) is None, "nobody else waits"
    assert to_displace(["one"], ["a", "b", "c"]) is None, "each has one"
    assert to_displace([], running) is None


@pytest.mark.parametrize("seed", range(20))
def test_displacing_ends_and_shares_places_evenly(seed: int) -> None:
    rng = random.Random(seed)
    waiting = [rng.choice("abcd") for _ in range(30)]
    running = ["a"] * 8
    for _ in range(100):
        victim = to_displace(waiting, running)
        if victim is None:
            break
        waiting.insert(0, running.pop(victim))
        running.append(waiting.pop(next_to_run(waiting, running)))
    else:
        raise AssertionError("places change hands for ever")
    counts = [running.count(owner) for owner in "abcd" if owner in waiting or owner in running]
    assert len(running) == 8 and max(counts) - min(counts) <= 1


@pytest.mark.parametrize("tile", [4, 16])
@pytest.mark.parametrize("before", [8, 3])
def test_passes_as_fast_as_plain_ones_do_not_let_a_prompt_take_all(tile: int, before: int) -> None:
    """Short prompts that find room in a tile, or a reply alone after many, cost no more than passes without prompts."""
    budget = Budget(tile)

    def cost(rows: int) -> float:
        return 0.020 + 0.004 * rows

    for _ in range(40):
        budget.learn(cost(budget.rows(before)), before, 0)
        budget.learn(cost(budget.rows(before + 1)), before, 1)
    writing, slow = 1 if before == 8 else before, []
    for _ in range(200):
        tokens = budget.tokens(511 - writing, writing)
        took = cost(budget.rows(writing + tokens))
        budget.learn(took, writing, tokens)
        slow.append(took > 2.2 * max(budget.plain, cost(budget.rows(writing + LEAST_CHUNK))))
    assert sum(slow) <= 4
    assert max(budget.tokens(511 - writing, writing) for _ in range(3)) < 64
