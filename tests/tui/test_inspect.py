"""The inspect mode with fingers on the keys: every pane on a small real file, at the smallest and at a large size."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from inspect_app import SIZES, Host, opened, screen_text, tab, text, until
from support import TINY, write_model
from textual.widgets import DataTable, Input, Static

from nanochat_tui.formats.gguf import read_gguf
from nanochat_tui.inspection import ternary_statistics
from nanochat_tui.tui.inspect.compare import ComparePane
from nanochat_tui.tui.inspect.layer_grid import LayerGrid
from nanochat_tui.tui.inspect.mhc import MhcPane
from nanochat_tui.tui.inspect.microscope import MicroscopePane
from nanochat_tui.tui.inspect.open_dialog import OpenDialog
from nanochat_tui.tui.inspect.screen import PANES, InspectScreen
from nanochat_tui.tui.inspect.tensors import TensorsPane
from nanochat_tui.tui.inspect.weights import METRICS, WeightsPane

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("inspect") / "model.gguf", TINY, chat_template=CHATML)


@pytest.mark.parametrize("size", SIZES)
async def test_every_pane_can_be_reached_and_fits(model: Path, size: tuple[int, int]) -> None:
    app = Host(model)
    async with app.run_test(size=size) as pilot:
        await opened(pilot, app)
        for number, (name, kind) in enumerate(PANES, 1):
            if app.inspector.pane.query(Input):
                await pilot.press("escape")  # a field takes digits as text
            await pilot.press(str(number))
            await until(pilot, lambda name=name: app.inspector.pane.id == f"pane-{name}")
            pane = await tab(pilot, app, name)
            assert isinstance(pane, kind)
            assert pane.HELP.startswith("###")
            assert pane.size.width <= size[0] and pane.size.height == size[1] - 4
            assert kind.TITLE in screen_text(app)
            await pilot.resize_terminal(60, 18)
            await pilot.resize_terminal(*size)
        await pilot.press("escape", "right_square_bracket")
        await until(pilot, lambda: app.inspector.pane.id == "pane-overview")


@pytest.mark.parametrize("size", SIZES)
async def test_the_overview(model: Path, size: tuple[int, int]) -> None:
    app = Host(model)
    async with app.run_test(size=size) as pilot:
        await opened(pilot, app)
        shown = text(app, "#overview-text")
        assert f"{TINY.parameters:,}" in shown and "Q2_0" in shown and "verified: 4 records" in shown
        assert "as F16" in shown and "yes" in shown
        assert "model.gguf" in text(app, "#inspect-title")


@pytest.mark.parametrize("size", SIZES)
async def test_metadata_is_filtered_and_shown_whole(model: Path, size: tuple[int, int]) -> None:
    app = Host(model)
    async with app.run_test(size=size) as pilot:
        await opened(pilot, app)
        await tab(pilot, app, "metadata")
        table = app.inspector.query_one("#metadata-table", DataTable)
        whole = table.row_count
        await pilot.press("slash", *"chat_temp")
        await until(pilot, lambda: table.row_count == 1)
        await until(pilot, lambda: "<|im_start|>" in text(app, "#metadata-text"))
        app.inspector.query_one("#metadata-filter", Input).value = "no such key"
        await until(pilot, lambda: table.row_count == 0)
        assert "No key fits" in text(app, "#metadata-text")
        app.inspector.query_one("#metadata-filter", Input).value = "300"
        await until(pilot, lambda: 0 < table.row_count < whole)
        await pilot.press("enter")
        assert app.inspector.focused is table


@pytest.mark.parametrize("size", SIZES)
async def test_tensors_are_found_and_described(model: Path, size: tuple[int, int]) -> None:
    app = Host(model)
    async with app.run_test(size=size) as pilot:
        await opened(pilot, app)
        pane = await tab(pilot, app, "tensors")
        assert isinstance(pane, TensorsPane)
        assert [str(node.label).split()[0] for node in pane.names.root.children[2:]] == ["blk.0", "blk.1"]
        await pilot.press("slash", *"b1fd")
        await until(pilot, lambda: pane.chosen is not None and pane.chosen.name == "blk.1.ffn_down.weight")
        await until(pilot, lambda: "blk.1.ffn_down.weight" in app.inspector.opened.values)  # type: ignore[union-attr]
        await pilot.pause()
        shown = text(app, "#tensors-detail")
        with read_gguf(model) as file:
            values = file.array("blk.1.ffn_down.weight")
        assert "128 × 256" in shown and f"{values.std():.4g}"[:5] in shown and "first 64 values" in shown
        assert f"{float(values.flat[0]):.4g}" in shown
        await pilot.press("enter", "x")
        await until(pilot, lambda: app.inspector.pane.id == "pane-trits")
        assert app.inspector.query_one(MicroscopePane).choice.value == "blk.1.ffn_down.weight"


@pytest.mark.parametrize("size", SIZES)
async def test_weights_are_counted_in_the_background(model: Path, size: tuple[int, int]) -> None:
    app = Host(model)
    async with app.run_test(size=size) as pilot:
        await opened(pilot, app)
        pane = await tab(pilot, app, "weights")
        assert isinstance(pane, WeightsPane)
        with read_gguf(model) as file:
            expected = {part.name: part for part in ternary_statistics(file)}
        assert app.inspector.opened is not None and app.inspector.opened.ternary == expected
        assert pane.grid.name_at_cursor == "blk.0.attn_q.weight"
        await pilot.press("down", "right", "right")
        assert pane.grid.name_at_cursor == "blk.1.attn_v.weight"
        await pilot.pause()
        assert f"{expected['blk.1.attn_v.weight'].shares[1]:.2%}" in text(app, "#weights-numbers")
        for name, _, _ in METRICS[1:]:
            await pilot.press("m")
            assert name in text(app, "#weights-head")
        await pilot.click(LayerGrid, offset=(8, 1))
        assert pane.grid.name_at_cursor == "blk.0.attn_q.weight"
        await pilot.press("enter")
        await until(pilot, lambda: app.inspector.pane.id == "pane-trits")


async def test_counting_can_be_ended_and_taken_up_again(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    import nanochat_tui.tui.inspect.weights as module

    gate, real = threading.Event(), module.tensor_statistics
    counted: list[str] = []

    def slow(file: object, name: str, tick: Callable[[int], None]) -> object:
        if len(counted) == 3:
            while not gate.wait(0.01):
                tick(1)  # raises when the job is ended
        counted.append(name)
        return real(file, name, tick)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "tensor_statistics", slow)
    app = Host(model)
    async with app.run_test(size=(80, 24)) as pilot:
        await opened(pilot, app)
        app.inspector.go_to("weights")
        await until(pilot, lambda: app.inspector.opened and len(app.inspector.opened.ternary) == 3)
        assert "counting" in text(app, "#weights-head")
        await pilot.press("escape")
        await until(pilot, lambda: "3 of 14 counted" in text(app, "#weights-head"))
        gate.set()
        await pilot.press("r")
        await until(pilot, lambda: app.inspector.opened and len(app.inspector.opened.ternary) == 14)
    assert len(counted) == 14


@pytest.mark.parametrize("size", SIZES)
async def test_mhc_records_one_by_one(model: Path, size: tuple[int, int]) -> None:
    app = Host(model)
    async with app.run_test(size=size) as pilot:
        await opened(pilot, app)
        pane = await tab(pilot, app, "mhc")
        assert isinstance(pane, MhcPane) and pane.found is not None and pane.found.report is not None
        assert pane.table.row_count == 4 and "verified" in text(app, "#mhc-head")
        matrices = pane.found.report.matrices
        assert matrices is not None
        await pilot.press("down", "down")
        await until(pilot, lambda: "H of blk.1.attn" in text(app, "#mhc-text"))
        shown = text(app, "#mhc-text")
        assert f"{matrices.residual[2, 0, 0]:.4f}" in shown and f"{matrices.post[2, 1]:.4f}" in shown
        product = matrices.residual[2] @ matrices.residual[1] @ matrices.residual[0]
        assert f"{product[0, 1]:.4f}" in shown and f"{pane.found.report.composed[0, 0]:.4f}" in shown


@pytest.mark.parametrize("size", SIZES)
async def test_tokens_there_and_back(model: Path, size: tuple[int, int]) -> None:
    app = Host(model)
    async with app.run_test(size=size) as pilot:
        await opened(pilot, app)
        await tab(pilot, app, "tokens")
        field, search = (app.inspector.query_one(f"#tokens-{name}", Input) for name in ("text", "search"))
        await until(pilot, lambda: "<|endoftext|>" in text(app, "#tokens-result"))  # the example
        field.value = "fn let\\n"
        await until(pilot, lambda: "for 7 characters" in text(app, "#tokens-result"))
        assert "⏎" in text(app, "#tokens-result") and "6c 65 74" in text(app, "#tokens-result")
        search.value = "main"
        await until(pilot, lambda: "1 tokens hold it" in text(app, "#tokens-result"))
        search.value = "256 299 9999"
        await until(pilot, lambda: "fn<|endoftext|>" in text(app, "#tokens-result"))
        assert "outside of the vocabulary: 9999" in text(app, "#tokens-result")
        await pilot.press("escape", "1")
        await until(pilot, lambda: app.inspector.pane.id == "pane-overview")


@pytest.mark.parametrize("size", SIZES)
async def test_the_template_on_sample_and_session(model: Path, size: tuple[int, int]) -> None:
    app = Host(model)
    async with app.run_test(size=size) as pilot:
        await opened(pilot, app)
        await tab(pilot, app, "template")
        assert text(app, "#template-text").rstrip().endswith("<|im_start|>assistant")
        await pilot.press("r")
        assert text(app, "#template-text").rstrip().endswith("<|im_end|>")
        await pilot.press("c")
        assert "Nothing was said" in text(app, "#template-text")
        app.said = [{"role": "user", "content": "From the chat \x1b[31m."}]
        await tab(pilot, app, "overview")
        await tab(pilot, app, "template")
        assert "From the chat \\x1b[31m." in text(app, "#template-text")
        await pilot.press("t")
        assert "{% for m in messages %}" in text(app, "#template-text")
        await pilot.press("y")


@pytest.mark.parametrize("size", SIZES)
async def test_two_files_side_by_side(model: Path, tmp_path: Path, size: tuple[int, int]) -> None:
    other = write_model(tmp_path / "other.gguf", TINY, seed=3)
    app = Host(model)
    async with app.run_test(size=size) as pilot:
        await opened(pilot, app)
        pane = await tab(pilot, app, "compare")
        assert isinstance(pane, ComparePane)
        await pilot.press("c")
        await until(pilot, lambda: isinstance(app.screen, OpenDialog))
        app.screen.query_one(Input).value = str(other)
        await pilot.press("enter")
        await until(pilot, lambda: pane.found is not None)
        await pilot.pause()
        found = pane.found
        assert found is not None and found.flipped > 0 and found.after == other
        assert f"{found.flipped:,} of {found.trits:,}" in text(app, "#compare-head")
        assert "tokenizer.chat_template" in text(app, "#compare-text")
        assert "66." in screen_text(app) or "67." in screen_text(app)  # two random matrices differ in two thirds
        await pilot.press("m")
        assert "sign" in text(app, "#compare-head")
        await pilot.press("w")
        await until(pilot, lambda: pane.found is not None and pane.found.before == other)
        assert "tokenizer.chat_template" in pane.found.metadata_added  # type: ignore[union-attr]


async def test_comparing_with_no_model(model: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.gguf").write_bytes(b"no model")
    app = Host(model)
    async with app.run_test(size=(80, 24)) as pilot:
        await opened(pilot, app)
        pane = await tab(pilot, app, "compare")
        assert isinstance(pane, ComparePane)
        pane.compare_with(tmp_path / "bad.gguf")
        await until(pilot, lambda: "not a GGUF file" in text(app, "#compare-head"))
        assert app.is_running


async def test_files_are_opened_one_after_another(model: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.gguf").write_bytes(b"GGUF\x03\x00\x00\x00")
    other = write_model(tmp_path / "z.gguf", TINY.with_(n_streams=1))
    app = Host(None)
    async with app.run_test(size=(80, 24)) as pilot:
        await pilot.pause()
        assert "No file is open" in text(app, "#inspect-message")
        await pilot.press("ctrl+o")
        await until(pilot, lambda: isinstance(app.screen, OpenDialog))
        app.screen.query_one(Input).value = str(tmp_path / "absent.gguf")
        await pilot.press("enter")
        await pilot.pause()
        assert isinstance(app.screen, OpenDialog)
        app.screen.query_one(Input).value = str(tmp_path / "bad.gguf")
        await pilot.press("enter")
        await until(pilot, lambda: app.inspector.error is not None)
        assert "not a sound GGUF file" in text(app, "#inspect-message")
        app.inspector.open_file(model)
        await until(pilot, lambda: app.inspector.opened is not None)
        await tab(pilot, app, "mhc")
        app.inspector.open_file(other)
        await until(pilot, lambda: "one stream, no mHC" in text(app, "#mhc-head"))
        titles = [title for title, _, _ in app.inspector.palette_commands()]
        assert "Inspect: Trits" in titles and "Chat with this model" in titles
        next(call for title, _, call in app.inspector.palette_commands() if title == "Chat with this model")()
        await until(pilot, lambda: app.chats == [other])


async def test_the_list_of_files_nearby_opens_one(model: Path) -> None:
    app = Host(model)
    async with app.run_test(size=(80, 24)) as pilot:
        await opened(pilot, app)
        first = app.inspector.opened
        await pilot.press("ctrl+o")
        await until(pilot, lambda: isinstance(app.screen, OpenDialog))
        files = app.screen._files  # type: ignore[attr-defined]
        assert model.absolute() in files
        await pilot.press("down", *["down"] * files.index(model.absolute()), "enter")
        await until(pilot, lambda: app.inspector.opened not in (None, first))
        assert app.inspector.path == model.absolute()
        await pilot.press("ctrl+o")
        await until(pilot, lambda: isinstance(app.screen, OpenDialog))
        await pilot.press("escape")
        await until(pilot, lambda: app.screen is app.inspector)


async def test_a_hostile_file_cannot_draw_on_the_terminal(tmp_path: Path) -> None:
    from nanochat_tui.formats.gguf import array, string, tensor_from_array, write_gguf
    from nanochat_tui.formats.tensor_types import TENSOR_TYPES

    evil = "\x1b]0;pwned\x07[bold red]x[/]"
    f32 = TENSOR_TYPES["F32"]
    write_gguf(
        tmp_path / "evil.gguf",
        {
            "general.architecture": string(evil),
            "general.name": string(evil),
            evil: array([evil] * 3),
            "tokenizer.ggml.model": string(evil),
            "tokenizer.ggml.tokens": array([evil, "b"]),
            "tokenizer.chat_template": string(evil),
        },
        [tensor_from_array(f"{prefix}{evil}", np.ones(32), f32) for prefix in ("", "blk.0.", "blk.99999999999.")],
    )
    app = Host(tmp_path / "evil.gguf")
    async with app.run_test(size=(80, 24)) as pilot:
        await opened(pilot, app)
        for name, _ in PANES:
            await tab(pilot, app, name)
            shown = screen_text(app)
            assert "\x1b" not in shown and "\x07" not in shown
        pane = await tab(pilot, app, "tensors")
        assert isinstance(pane, TensorsPane)
        assert "[bold red]" in screen_text(app)


async def test_the_app_leaves_while_work_goes_on(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    def endless(_file: object, _name: str, tick: Callable[[int], None]) -> None:
        while True:
            time.sleep(0.005)
            tick(1)

    monkeypatch.setattr("nanochat_tui.tui.inspect.weights.tensor_statistics", endless)
    app = Host(model)
    async with app.run_test(size=(80, 24)) as pilot:
        await opened(pilot, app)
        app.inspector.go_to("weights")
        pane = app.inspector.query_one(WeightsPane)
        await until(pilot, lambda: pane.job("count") is not None)
        job = pane.job("count")
    assert job is not None and job.stopped
    for _ in range(200):
        if not job.is_working:
            break
        time.sleep(0.01)
    assert not job.is_working


async def test_in_the_application_the_chat_is_rendered_and_files_are_opened_by_message(model: Path) -> None:
    from scripted import ScriptedBackend

    from nanochat_tui.tui.app import NanochatApp
    from nanochat_tui.tui.messages import OpenFile

    app = NanochatApp(ScriptedBackend("A trit is a third", is_chat=True))
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: app.chat.status.state.strip() == "ready")
        app.chat.prompt.text = "What is a trit?"
        await pilot.press("enter")
        await until(pilot, lambda: app.chat.replies.runs == 1 and app.chat.status.state.strip() == "ready")
        app.post_message(OpenFile(model))
        await until(pilot, lambda: isinstance(app.screen, InspectScreen) and app.screen.opened is not None)
        screen = app.screen
        assert isinstance(screen, InspectScreen)
        screen.go_to("template")
        await pilot.pause()
        await pilot.press("c")
        shown = str(screen.query_one("#template-text", Static).visual)
        assert "What is a trit?<|im_end|>" in shown and "A trit is a third<|im_end|>" in shown
        await pilot.press("f2")
        await until(pilot, lambda: app.screen is app.chat)
        await pilot.press("f3")
        await until(pilot, lambda: app.screen is screen)


async def test_the_palette_has_the_keys_of_the_pane(model: Path) -> None:
    app = Host(model)
    async with app.run_test(size=(80, 24)) as pilot:
        await opened(pilot, app)
        pane = await tab(pilot, app, "trits")
        assert isinstance(pane, MicroscopePane)
        offers = {title: call for title, _, call in app.inspector.palette_commands()}
        await offers["Trits: Symbols"]()  # type: ignore[misc]
        assert pane.view.view.zoom == 0
        offers["Inspect: Weights"]()
        await until(pilot, lambda: app.inspector.pane.id == "pane-weights")
        weights = app.inspector.pane
        assert isinstance(weights, WeightsPane)
        offers = {title: call for title, _, call in app.inspector.palette_commands()}
        await offers["Weights: Measure"]()  # type: ignore[misc]
        assert weights.metric == 1


@pytest.mark.slow
async def test_a_file_of_absurdly_many_tensors_is_shown(tmp_path: Path) -> None:
    from nanochat_tui.formats.gguf import TensorData, write_gguf
    from nanochat_tui.formats.tensor_types import TENSOR_TYPES

    kind = TENSOR_TYPES["Q2_0"]
    block = np.full((1, 18), 0x55, np.uint8)
    many = [TensorData(f"blk.{i}.w{i % 7}.weight", (1, 64), kind, block) for i in range(20_000)]
    write_gguf(tmp_path / "many.gguf", {}, many)
    app = Host(tmp_path / "many.gguf")
    async with app.run_test(size=(80, 24)) as pilot:
        await opened(pilot, app)
        for name in ("tensors", "trits", "metadata"):
            app.inspector.go_to(name)
            await pilot.pause()
        app.inspector.go_to("weights")
        await pilot.pause()
        await pilot.press("G", "escape")
        assert app.is_running
