"""The application on the engine: a real file from the first paint to the last token."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from support import TINY, write_model
from test_app import say, shown, state, until

from nanochat_tui.chat.local import LocalBackend
from nanochat_tui.engine.generate.model import load
from nanochat_tui.request import SamplingParams
from nanochat_tui.tui.app import NanochatApp
from nanochat_tui.tui.chat.conversation import TOKENS_KEPT


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("tui") / "random.gguf", TINY.with_(context_length=256))


async def test_a_completion_is_what_the_engine_says(model: Path) -> None:
    app = NanochatApp(LocalBackend(model, threads=1))
    async with app.run_test(size=(100, 30)) as pilot:
        await until(pilot, lambda: state(app) == "ready", 120)
        assert app.chat.status.kernel == load(model).kernel
        assert app.chat.status.context_size == 256
        app.chat.session.sampling = SamplingParams(seed=4)
        app.chat.session.max_tokens = 30
        await say(pilot, app, "fn main() {")
        expected = "".join(t.text for t in load(model, threads=1).generate("fn main() {", seed=4, max_tokens=30))
        assert app.chat.session.conversation.document == "fn main() {" + expected
        stats = app.chat.status.stats
        assert stats is not None
        assert stats.decode_tps is not None
        assert stats.generated == 30 or app.chat.session.conversation.turns[0].reason == "stop"
        for seed in range(12):  # far beyond the context: the oldest text goes, the reply goes on
            app.chat.session.sampling = SamplingParams(seed=seed)
            await say(pilot, app, "let x = 1; " * 3)
        assert "no longer reach the model" in shown(app)


async def test_the_event_loop_keeps_running_while_the_model_writes(tmp_path: Path) -> None:
    path = write_model(tmp_path / "long.gguf", TINY.with_(context_length=20_000))
    app = NanochatApp(LocalBackend(path, threads=1))
    async with app.run_test(size=(100, 30)) as pilot:
        await until(pilot, lambda: state(app) == "ready", 120)
        app.chat.session.max_tokens = None
        app.chat.session.sampling = SamplingParams(temperature=0.0)
        app.chat.prompt.text = "fn main() {"
        await pilot.press("enter")
        await until(pilot, lambda: state(app) == "writing", 60)
        turns = 0
        while turns <= 20 and app.chat.replies.generation is not None:
            await asyncio.sleep(0)
            turns += 1
        assert turns > 20, "the loop must keep turning while tokens arrive"
        await pilot.press("escape")
        await until(pilot, lambda: state(app) == "ready", 60)


async def test_a_damaged_file_is_explained(tmp_path: Path, model: Path) -> None:
    path = tmp_path / "damaged.gguf"
    path.write_bytes(model.read_bytes()[:5000])
    app = NanochatApp(LocalBackend(path))
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: state(app) == "failed", 60)
        assert "damaged.gguf" in shown(app)


async def test_completions_begin_with_a_repeat_penalty_that_can_be_changed(model: Path) -> None:
    app = NanochatApp(LocalBackend(model, threads=1))
    async with app.run_test(size=(100, 30)) as pilot:
        await until(pilot, lambda: state(app) == "ready", 120)
        assert app.chat.session.sampling.repeat_penalty == 1.1
        app.chat.session.sampling = SamplingParams(repeat_penalty=1.5)
        app.chat.view.show_kind()
        assert app.chat.session.sampling.repeat_penalty == 1.5
        app.chat.session.preferences.sampling.completion_penalty = 1.0
        await app.chat.flow.new()
        assert app.chat.session.sampling.repeat_penalty == 1.0


async def test_only_the_newest_turns_hold_their_tokens_and_older_ones_still_open_in_the_lens(model: Path) -> None:
    app = NanochatApp(LocalBackend(model, threads=1))
    async with app.run_test(size=(100, 30)) as pilot:
        await until(pilot, lambda: state(app) == "ready", 120)
        app.chat.session.max_tokens = 3
        for _ in range(TOKENS_KEPT + 2):
            await say(pilot, app, "let x = 1;")
        turns = app.chat.session.conversation.turns
        assert [bool(turn.tokens) for turn in turns] == [False] * 2 + [True] * TOKENS_KEPT
        await app.chat.lens.open(turns[0])
        await until(pilot, lambda: app.chat.lens.ribbon is not None and bool(app.chat.lens.ribbon.tokens))
        assert "".join(token.text for token in app.chat.lens.ribbon.tokens) == turns[0].reply  # type: ignore[union-attr]
