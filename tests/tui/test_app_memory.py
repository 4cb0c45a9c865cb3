"""What the application keeps in memory, and what it lets the collector have."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest
from scripted import ScriptedBackend
from test_app import say, state, until
from textual._styles_cache import StylesCache

from nanochat_tui.cli.entry import OBJECTS_PER_COLLECTION
from nanochat_tui.tui import collecting
from nanochat_tui.tui.app import NanochatApp
from nanochat_tui.tui.chat.turns import CompletionTurn


async def test_what_removed_widgets_had_drawn_is_released() -> None:
    app = NanochatApp(ScriptedBackend("let x = 1;"))
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: state(app) == "ready")

        def drawn() -> int:
            gc.collect()
            return sum(isinstance(found, StylesCache) for found in gc.get_objects())

        counts = []
        for _ in range(3):
            for _ in range(4):
                await say(pilot, app, "fn main() {")
            await app.chat.flow.new()
            await pilot.pause()
            counts.append(drawn())
        assert counts[2] <= counts[0] + 2, "four replies in each round, and none of their drawings stays"


@pytest.fixture
def collector() -> Iterator[None]:
    """The garbage collector as the command starts it, and afterwards as it was."""
    thresholds = gc.get_threshold()
    gc.collect()
    gc.set_threshold(OBJECTS_PER_COLLECTION)
    yield
    gc.set_threshold(*thresholds)
    gc.unfreeze()


async def test_removed_turns_are_freed_without_a_collection_by_hand(
    collector: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    young, *older = collecting.THRESHOLDS
    monkeypatch.setattr(collecting, "THRESHOLDS", (young // 20, *older))  # as 20 times as many turns
    app = NanochatApp(ScriptedBackend("let x = 1;"))
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: state(app) == "ready")
        removed: list[weakref.ref[CompletionTurn]] = []
        for _ in range(6):
            for _ in range(3):
                await say(pilot, app, "fn main() {")
            removed += [weakref.ref(turn) for turn in app.chat.query(CompletionTurn)]
            await app.chat.flow.new()
            await pilot.pause()
        left = sum(one() is not None for one in removed)
        assert left <= len(removed) // 2, "the collector that runs by itself frees them"


async def test_a_second_model_frees_the_first(collector: None) -> None:
    class Held:
        pass

    held = Held()
    held.itself = held  # type: ignore[attr-defined]
    gone = weakref.ref(held)
    collecting.keep_what_is_loaded()
    del held
    gc.collect()
    assert gone() is not None, "what was loaded is not looked at"
    collecting.keep_what_is_loaded()
    assert gone() is None, "what an earlier model left is"
