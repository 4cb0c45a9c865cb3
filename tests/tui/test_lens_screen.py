"""The token lens on the real engine: true probabilities, and branches that say what the engine says."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest
from support import TINY, write_model
from test_app import say, state, until

from nanochat_tui.chat.local import LocalBackend
from nanochat_tui.chat.store import Store
from nanochat_tui.engine.generate.model import load
from nanochat_tui.request import SamplingParams
from nanochat_tui.tui.app import NanochatApp
from nanochat_tui.tui.chat.lens_view import Alternatives
from nanochat_tui.tui.chat.side_panel import LiveScroll
from nanochat_tui.tui.numbers import percent


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("lens") / "random.gguf", TINY.with_(context_length=256))


async def test_ribbon_alternatives_and_branch(model: Path, tmp_path: Path) -> None:
    app = NanochatApp(LocalBackend(model, threads=1), store=Store(tmp_path / "s.db"))
    async with app.run_test(size=(100, 34)) as pilot:
        chat = app.chat
        await until(pilot, lambda: state(app) == "ready", 120)
        chat.session.sampling = SamplingParams(temperature=0.0)
        chat.session.max_tokens = 12
        await say(pilot, app, "fn main() {")
        old = chat.session.info
        before = chat.session.conversation.turns[0].reply
        await pilot.press("f5")
        await until(
            pilot, lambda: bool(chat.lens.ribbon and chat.lens.ribbon.tokens and chat.lens.ribbon.tokens[0].top)
        )
        ribbon = chat.lens.ribbon
        assert ribbon is not None
        assert app.focused is ribbon
        engine = load(model, threads=1)
        ids = engine.encode("fn main() {")
        logits = engine.logits([*ids, *(t.id or 0 for t in ribbon.tokens)])[len(ids) - 1]
        expected = logits[ribbon.tokens[0].id] - np.log(np.exp(logits.astype(np.float64)).sum())
        assert ribbon.tokens[0].logprob == pytest.approx(float(expected), abs=1e-3)

        await pilot.press("right", "right", *["down"] * 20)
        assert ribbon.choice == len(ribbon.choices) - 1
        await pilot.pause()
        rows = [strip.text for strip in app.screen._compositor.render_strips()]
        assert any(row.lstrip().startswith("›") for row in rows), "the last choice can be seen, too"
        await pilot.press(*["up"] * 20, "down")
        assert (ribbon.cursor, ribbon.choice) == (2, 1)
        shown = str(chat.query_one(Alternatives).render())
        assert "token 3 of" in shown
        assert f"  {percent(math.exp(ribbon.token.logprob or 0))}  id" in shown
        chosen = ribbon.choices[1]
        while not chosen.text.strip():
            await pilot.press("down")
            chosen = ribbon.choices[ribbon.choice]
        taken = [t.id or 0 for t in ribbon.tokens[:2]]
        await pilot.press("enter")
        await until(
            pilot, lambda: chat.session.info is not None and chat.session.info is not old and state(app) == "ready"
        )
        assert chat.session.info is not None
        assert old is not None
        assert chat.session.info.parent == old.id
        expected_rest = "".join(
            t.text for t in engine.generate([*ids, *taken, chosen.id or 0], temperature=0.0, max_tokens=12)
        )
        turn = chat.session.conversation.turns[0]
        assert turn.parts[1] == expected_rest
        assert chat.model.backend._loaded[1].stats.reused_tokens >= len(ids) + 2  # type: ignore[attr-defined]
        assert chat.session.store.load(old.id).result(120).turns[0].reply == before, "the old session stays"
        assert chat.session.store.load(chat.session.info.id).result(120).turns[0].reply == turn.reply


async def test_a_session_of_another_day_is_scored_when_the_lens_opens(model: Path, tmp_path: Path) -> None:
    first = NanochatApp(LocalBackend(model, threads=1), store=Store(tmp_path / "s.db"))
    async with first.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: state(first) == "ready", 120)
        first.chat.session.sampling = SamplingParams(temperature=0.0)
        first.chat.session.max_tokens = 8
        await say(pilot, first, "let x = 1;")
    app = NanochatApp(LocalBackend(model, threads=1), store=Store(tmp_path / "s.db"))
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: state(app) == "ready" and bool(app.chat.session.conversation.turns), 120)
        await pilot.press("f5")
        await until(pilot, lambda: app.chat.lens.ribbon is not None and bool(app.chat.lens.ribbon.tokens))
        ribbon = app.chat.lens.ribbon
        assert ribbon is not None
        assert "".join(t.text for t in ribbon.tokens) == app.chat.session.conversation.turns[0].reply
        assert all(t.top for t in ribbon.tokens)
        assert ribbon.region.height >= 1
        await pilot.press("escape")
        assert app.chat.lens.ribbon is None


async def test_the_live_panel_shows_speed_streams_and_matrices(model: Path) -> None:
    from textual.widgets import Static

    app = NanochatApp(LocalBackend(model, threads=1, speculation="on"))
    async with app.run_test(size=(120, 50)) as pilot:
        await until(pilot, lambda: state(app) == "ready", 120)
        app.chat.session.sampling = SamplingParams(temperature=0.0)  # it repeats itself, and is guessed
        await pilot.press("ctrl+l")
        assert "drafts" not in str(app.chat.query_one("#live-speed", Static).render())
        await say(pilot, app, "fn main() {")
        streams = app.chat.query_one("#live-streams", Static)
        await until(pilot, lambda: "decided" in str(streams.render()), 30)
        assert "2f" in str(streams.render())
        assert "mixing H" in str(app.chat.query_one("#live-matrices", Static).render())
        figures = str(app.chat.query_one("#live-speed", Static).render())
        assert app.chat.model.backend.kernel in figures
        assert re.search(r"drafts +[1-9][0-9]* of [1-9][0-9]* accepted\n", figures), figures
        await pilot.resize_terminal(80, 24)
        await pilot.pause()
        rows = [strip.text for strip in app.screen._compositor.render_strips()]
        (row,) = [row for row in rows if "│ 1a " in row]
        assert "%" in row, "a row of the panel is one row of the screen, beside a scroll bar, too"
        while not isinstance(app.focused, LiveScroll):
            await pilot.press("shift+tab")
        await pilot.press(*"jjj")
        await until(pilot, lambda: app.focused is not None and app.focused.scroll_y > 0)
        await pilot.press("ctrl+l")
        assert not app.chat.view.side.display
