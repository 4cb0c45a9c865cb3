"""Sampling against distributions computed in NumPy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from support import TINY

from nanochat_tui.engine.generate.model import Model
from nanochat_tui.engine.generate.session import Session
from nanochat_tui.engine.run.draw import Draw
from nanochat_tui.engine.run.kv_cache import KVCache
from nanochat_tui.errors import UserError
from nanochat_tui.request import GenerationRequest, SamplingParams

PROMPT = [5, 17, 200, 41]
DRAWS = 4000


@pytest.fixture(scope="module")
def model(make_model: Callable[..., Model]) -> Model:
    return make_model(TINY, threads=1)


def last_logits(model: Model) -> np.ndarray:
    return model.logits(PROMPT)[-1].astype(np.float64)


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max())
    return e / e.sum()


def expected(logits: np.ndarray, c: SamplingParams, seen: list[int]) -> np.ndarray:
    """The distribution the settings describe, by sorting everything."""
    x = logits.copy()
    for token in set(seen) if c.repeat_penalty != 1 else ():
        x[token] = x[token] / c.repeat_penalty if x[token] > 0 else x[token] * c.repeat_penalty
    if c.temperature == 0:
        return np.eye(len(x))[x.argmax()]
    p = softmax(x / c.temperature)
    order = np.argsort(-p, kind="stable")
    keep = order[: c.top_k] if c.top_k else order
    if c.typical_p < 1:
        q = p[keep] / p[keep].sum()
        surprise = np.abs(-np.log(q) + (q * np.log(q)).sum())
        nearest = np.argsort(surprise, kind="stable")
        n = int(np.searchsorted(np.cumsum(q[nearest]), c.typical_p)) + 1
        keep = keep[np.sort(nearest[:n])]
    share = p[keep] / p[keep].sum()
    n = int(np.searchsorted(np.cumsum(share), c.top_p)) + 1 if c.top_p < 1 else len(keep)
    keep = keep[:n]
    keep = keep[p[keep] >= c.min_p * p[keep[0]]]
    out = np.zeros(len(x))
    out[keep] = p[keep] / p[keep].sum()
    return out


def draw_many(model: Model, sampling: SamplingParams, n: int) -> np.ndarray:
    cache, ids = KVCache(model.config, 8), np.array(PROMPT, np.int64)
    model.executor.run(cache, ids[:-1], 0)
    counts = np.zeros(model.config.vocab_size, np.int64)
    for seed in range(n):
        settings = SamplingParams(**{name: getattr(sampling, name) for name in SETTINGS}, seed=seed)
        draw = Draw(GenerationRequest(sampling=settings), model.config.vocab_size, [], 1)
        draw.see(PROMPT)
        counts[model.executor.generate(cache, ids[-1:], 3, draw, 1).ids[0]] += 1
    return counts


SETTINGS = ("temperature", "top_k", "top_p", "min_p", "repeat_penalty", "typical_p")
CASES = [
    {},
    {"temperature": 1.0, "top_k": 0, "top_p": 1.0},
    {"temperature": 0.5, "top_k": 0, "top_p": 1.0},
    {"temperature": 1.0, "top_k": 0, "top_p": 0.7},
    {"temperature": 1.0, "top_k": 5, "top_p": 1.0},
    {"temperature": 1.0, "top_k": 290, "top_p": 0.9},
    {"temperature": 1.3, "top_k": 30, "top_p": 0.5},
    {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.2},
    {"temperature": 1.0, "top_k": 20, "top_p": 0.9, "min_p": 0.1},
    {"temperature": 0.9, "top_k": 8, "repeat_penalty": 3.0},
    {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "repeat_penalty": 0.2},
    {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "typical_p": 0.5},
    {"temperature": 0.6, "top_k": 0, "top_p": 0.8, "typical_p": 0.9},
    {"temperature": 0.5, "top_k": 20, "top_p": 1.0, "typical_p": 0.3},
    {"temperature": 0.7, "top_k": 12, "top_p": 0.7, "min_p": 0.6, "typical_p": 0.95},
    {"temperature": 1.0, "top_k": 30, "top_p": 1.0, "typical_p": 5e-324},
    {"temperature": 0.0, "typical_p": 0.1},
    {"temperature": 0.0},
    {"temperature": 0.0, "repeat_penalty": 5.0},
]


@pytest.mark.parametrize("settings", CASES, ids=str)
def test_draws_follow_the_distribution(model: Model, settings: dict[str, Any]) -> None:
    sampling = SamplingParams(**settings)
    p = expected(last_logits(model), sampling, PROMPT)
    counts = draw_many(model, sampling, DRAWS)
    # nothing outside the cuts, but a token on a cut's border may be in by rounding
    assert counts[p == 0].sum() == 0
    large = p * DRAWS >= 5
    observed = np.append(counts[large], counts[~large].sum())
    wanted = np.append(p[large], p[~large].sum()) * DRAWS
    statistic = ((observed - wanted) ** 2 / np.maximum(wanted, 1e-9))[wanted > 0].sum()
    freedom = max(1, (wanted > 0).sum() - 1)
    # mean + 5 standard deviations of chi-square: about one in a million, and the seeds are fixed
    assert statistic < freedom + 5 * np.sqrt(2 * freedom) + 5


def test_penalty_reaches_the_tokens_of_the_prompt(model: Model) -> None:
    logits = last_logits(model)
    best = int(logits.argmax())
    prompt = [*PROMPT[:-1], best, PROMPT[-1]]
    after = model.logits(prompt)[-1].astype(np.float64)
    wanted = int(expected(after, SamplingParams(temperature=0, repeat_penalty=50.0), prompt).argmax())
    token = next(model.generate(prompt, max_tokens=1, temperature=0, repeat_penalty=50.0))
    assert token.id == wanted


def test_penalty_reaches_generated_tokens(model: Model) -> None:
    tokens = [t.id for t in model.generate(PROMPT, max_tokens=60, temperature=0, repeat_penalty=1e4)]
    free = [t.id for t in model.generate(PROMPT, max_tokens=60, temperature=0)]
    assert len(set(free)) < len(free)
    ids = list(PROMPT)
    for token in tokens[:10]:
        logits = model.logits(ids)[-1].astype(np.float64)
        assert token == expected(logits, SamplingParams(temperature=0, repeat_penalty=1e4), ids).argmax()
        ids.append(token)


@pytest.mark.parametrize(
    "settings",
    [
        {"presence_penalty": 1.7},
        {"frequency_penalty": 1.1},
        {"presence_penalty": 0.9, "frequency_penalty": 0.4, "repeat_penalty": 1.2},
        {"presence_penalty": -2.0, "frequency_penalty": -0.3},
    ],
    ids=str,
)
def test_presence_and_frequency_count_generated_tokens_only(model: Model, settings: dict[str, Any]) -> None:
    generated: list[int] = []
    for token in Session(model).generate(PROMPT, max_tokens=25, temperature=0, **settings):
        ids = PROMPT + generated
        logits = model.logits(ids)[-1].astype(np.float64)
        repeat = settings.get("repeat_penalty", 1.0)
        for seen in set(ids):
            logits[seen] = logits[seen] / repeat if logits[seen] > 0 else logits[seen] * repeat
        for seen in set(generated):
            logits[seen] -= settings.get("presence_penalty", 0.0)
            logits[seen] -= settings.get("frequency_penalty", 0.0) * generated.count(seen)
        assert token.id == logits.argmax()
        generated.append(token.id)
    assert len(generated) > 5


@pytest.mark.parametrize("settings", [{"temperature": 0.0}, {"temperature": 2.0, "repeat_penalty": 2.0}])
def test_logprobs_are_of_the_unmodified_distribution(model: Model, settings: dict[str, Any]) -> None:
    ids = list(PROMPT)
    for token in model.generate(PROMPT, max_tokens=12, seed=3, top_logprobs=7, **settings):
        logprobs = np.log(softmax(model.logits(ids)[-1].astype(np.float64)))
        assert token.logprob == pytest.approx(logprobs[token.id], abs=1e-5)
        best = np.argsort(-logprobs, kind="stable")[:7]
        assert [other for other, _, _ in token.top] == best.tolist()
        np.testing.assert_allclose([p for _, _, p in token.top], logprobs[best], atol=1e-5)
        assert all(text == model.decode([other]) for other, text, _ in token.top)
        ids.append(token.id)


def test_seeds(model: Model) -> None:
    def ids(**settings: Any) -> list[int]:
        return [t.id for t in model.generate(PROMPT, max_tokens=30, temperature=1.5, top_k=0, **settings)]

    assert ids(seed=7) == ids(seed=7)
    assert ids(seed=7) != ids(seed=8)
    assert ids() != ids()
    assert ids(seed=-1) == ids(seed=-1)


def test_all_alternatives(model: Model) -> None:
    token = next(model.generate(PROMPT, max_tokens=1, top_logprobs=1000))
    assert len(token.top) == 300
    assert np.exp([p for _, _, p in token.top]).sum() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(
    "bad",
    [
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"min_p": 2.0},
        {"repeat_penalty": 0.0},
        {"top_logprobs": -1},
    ],
)
def test_impossible_settings_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(bad))):
        GenerationRequest.of(**bad)
