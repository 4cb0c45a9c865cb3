"""Threads that come late, or never, change no bit and hold up nobody."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from support import TINY

from nanochat_tui.engine.generate.model import Model
from nanochat_tui.engine.generate.scheduler import Batcher
from nanochat_tui.engine.generate.session import Session
from nanochat_tui.engine.layout import slots as s

MakeModel = Callable[..., Model]
LONG = TINY.with_(context_length=600)
PROMPT = [int(i) for i in np.random.default_rng(0).integers(0, 300, 200)]


@contextmanager
def competing(count: int) -> Iterator[None]:
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def everything(model: Model) -> tuple[Any, ...]:
    """Return what prefill, decoding, guessing, sampling and a batch say."""
    logits = model.logits(PROMPT)
    session = Session(model, speculation="on")
    greedy = list(session.generate(PROMPT, max_tokens=60, temperature=0, top_logprobs=2))
    drawn = list(session.generate(PROMPT[:50], max_tokens=60, seed=3, temperature=1.2))
    batcher = Batcher(model, max_sequences=8)
    streams = [batcher.submit(PROMPT[n : 40 + 20 * n], max_tokens=30, seed=n) for n in range(8)]
    together = [list(stream) for stream in streams]
    batcher.close()
    return logits.tobytes(), greedy, drawn, together


def test_threads_that_never_come_are_done_without(make_model: MakeModel) -> None:
    """Work of a thread that the system does not run at all is taken by the others."""
    wanted = everything(make_model(LONG, threads=1))
    for threads in (2, 5):
        model = make_model(LONG, threads=threads)
        model.executor._pool._started = True  # as if they had been, and never got a processor
        assert everything(model) == wanted
        assert model.executor.thread_counts().stolen > 0


def test_one_thread_of_many_comes(make_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = everything(make_model(LONG, threads=1))
    model, start = make_model(LONG, threads=4), threading.Thread.start

    def only_the_last(thread: threading.Thread) -> None:
        if not thread.name.startswith("nanochat-engine-") or thread.name.endswith("-3"):
            start(thread)

    monkeypatch.setattr(threading.Thread, "start", only_the_last)
    assert everything(model) == wanted


@pytest.mark.parametrize("threads", [2, 3])
def test_bits_do_not_depend_on_who_is_kept_from_running(threads: int, make_model: MakeModel) -> None:
    wanted = everything(make_model(LONG, threads=1))
    model = make_model(LONG, threads=threads)
    with competing(3):
        for _ in range(3):
            assert everything(model) == wanted


@pytest.mark.slow
def test_bits_under_load_for_long(make_model: MakeModel) -> None:
    """Threads are kept from running in the middle of everything, thousands of times."""
    wanted = everything(make_model(LONG, threads=1))
    models = [make_model(LONG, threads=threads) for threads in (2, 3, 8)]
    with competing(4):
        for _ in range(25):
            for model in models:
                assert everything(model) == wanted
    counts = [model.executor.thread_counts() for model in models]
    assert all(each.stolen and each.dropped and each.naps for each in counts), counts


def test_the_number_of_threads_may_change_between_jobs(make_model: MakeModel) -> None:
    """Shares that were left out for a while begin where the others are."""
    wanted = list(make_model(LONG, threads=1).generate(PROMPT, max_tokens=200, temperature=0))
    model = make_model(LONG, threads=4, speculation="off")
    sizes = [1, 4, 2, 3, 1, 2, 4, 4, 1]
    crew, jobs = model.executor.crew, 0

    def size(rows: int) -> int:
        nonlocal jobs
        jobs += 1
        return sizes[jobs % len(sizes)]

    crew.size = size  # type: ignore[method-assign]
    assert list(model.generate(PROMPT, max_tokens=200, temperature=0)) == wanted
    counts = model.executor.thread_counts()
    assert set(counts.passes) == {1, 2, 3, 4} and sum(counts.passes.values()) >= 200


def test_every_piece_is_taken_once(make_model: MakeModel) -> None:
    """Taken and finished pieces are as many in every share that took part in the last pass."""
    model = make_model(LONG, threads=3)
    everything(model)
    shares = model.executor._tables.control[s.SHARES :].reshape(-1, s.SHARE_SLOTS)
    assert len(shares) == 3 and (shares[:, 0] == shares[:, s.SHARE_DONE]).all() and (shares[:, 0] == shares[0, 0]).all()


def test_fewer_threads_run_only_where_nobody_asked_for_a_number(make_model: MakeModel) -> None:
    assert not make_model(LONG, threads=2).executor.crew._adapts
    model = make_model(LONG)
    assert model.executor.crew._adapts == (model.threads > 1)
