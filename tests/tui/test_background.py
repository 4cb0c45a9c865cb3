"""Work next to the screen: who hears of it, when, and when no more."""

from __future__ import annotations

import threading

import pytest
from textual.app import App

from nanochat_tui.errors import UserError
from nanochat_tui.tui.background import Job, Stopped, explain


class Host(App[None]):
    def __init__(self) -> None:
        super().__init__()
        self.heard: list[object] = []
        self.threads: set[int] = set()

    def hear(self, what: object) -> None:
        self.threads.add(threading.get_ident())
        self.heard.append(what)

    async def hear_later(self, what: object) -> None:
        self.hear(what)


async def test_parts_then_the_result_reach_the_owner_in_its_own_thread() -> None:
    app = Host()
    go = threading.Event()

    def work(job: Job[str]) -> str:
        go.wait(120)
        app.threads.discard(threading.get_ident())
        for part in ("a", "b"):
            job.show(part)
        job.tick(3)
        return "all"

    async with app.run_test() as pilot:
        job = Job(app, work, app.hear_later, shown=app.hear, total=6).start()
        assert job.is_working
        go.set()
        while job.is_working or len(app.heard) < 3:
            await pilot.pause(0.01)
        assert app.heard == ["a", "b", "all"]
        assert app.threads == {threading.get_ident()}
        assert job.share == 0.5


async def test_a_failure_is_told_in_words() -> None:
    app = Host()

    def work(_: Job[None]) -> None:
        raise UserError("the file is damaged; get it again")

    async with app.run_test() as pilot:
        Job(app, work, app.hear, app.hear).start()
        while not app.heard:
            await pilot.pause(0.01)
        assert app.heard == ["the file is damaged; get it again"]


@pytest.mark.parametrize("when", ["at a report", "before the end", "before it is told"])
async def test_nothing_is_heard_of_a_job_that_was_stopped_but_its_result_is_given_back(when: str) -> None:
    app = Host()
    go, ended = threading.Event(), threading.Event()
    dropped: list[str] = []

    def work(job: Job[str]) -> str:
        go.wait(120)
        try:
            if when == "at a report":
                job.tick(1)
        finally:
            ended.set()
        return "result"

    async with app.run_test() as pilot:
        job = Job(app, work, app.hear, app.hear, shown=app.hear, unwanted=dropped.append).start()
        if when == "before it is told":
            go.set()
            job._thread.join(120)  # type: ignore[union-attr]
            job.stop()
        else:
            job.stop()
            go.set()
        assert ended.wait(120)
        while job.is_working:
            await pilot.pause(0.01)
        await pilot.pause(0.05)
        assert app.heard == []
        assert dropped == ([] if when == "at a report" else ["result"])
        with pytest.raises(Stopped):
            job.check()


def test_failures_in_words() -> None:
    assert explain(OSError(28, "No space left on device", "a\x1b[31m.db")) == (
        "Cannot use a\\x1b[31m.db: No space left on device."
    )
    assert "memory" in explain(MemoryError())
    assert explain(KeyError("x")).endswith("please report it.")
    assert "\x1b" not in explain(ValueError("\x1b[31m"))
