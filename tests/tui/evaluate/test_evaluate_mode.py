"""The evaluate mode starts an evaluation of a tiny model, watches, stops and continues it; reads and compares."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support import write_model
from textual.pilot import Pilot
from textual.widgets import Button, Input

from nanochat_tui.errors import UserError
from nanochat_tui.evaluate.comparing import compare
from nanochat_tui.evaluate.folder import COMMAND
from nanochat_tui.evaluate.kept import LAUNCH, LOG, Kept, stop
from nanochat_tui.evaluate.sandbox.isolation import isolation
from nanochat_tui.evaluate.solving import Evaluation, Row
from nanochat_tui.tui.evaluate import words
from nanochat_tui.tui.evaluate.screen import EvaluateScreen
from nanochat_tui.tui.evaluate.starting import DEFAULTS, start_of
from nanochat_tui.tui.evaluate.words import comparison_content, different_verdicts, progress_content, sample_content
from nanochat_tui.tui.key_order import KeysInOrder
from nanochat_tui.tui.theme import NANOCHAT

SMALL, MIDDLE = (80, 24), (120, 36)


class EvaluateApp(KeysInOrder):
    """Shows the screen and keeps what it says."""

    def __init__(self, root: Path, model: str = "") -> None:
        super().__init__()
        self.evaluate = EvaluateScreen(root, model)
        self.said: list[str] = []

    def on_mount(self) -> None:
        self.register_theme(NANOCHAT)
        self.theme = NANOCHAT.name
        self.push_screen(self.evaluate)

    def notify(self, message: str, **options: object) -> None:  # type: ignore[override]
        self.said.append(message)
        super().notify(message, **options)  # type: ignore[arg-type]


async def until(pilot: Pilot[None], predicate: Callable[[], object], seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not predicate():
        assert time.monotonic() < end, "waited in vain"
        await asyncio.sleep(0.02)
    await pilot.pause()


def text_of(app: EvaluateApp) -> str:
    return "\n".join(strip.text.rstrip() for strip in app.screen._compositor.render_strips())


def kept(root: Path, name: str, *verdicts: str, detail: str = "") -> Path:
    """An evaluation of earlier, whose process is gone."""
    about = {"set": "three problems", "model": name, "problems": len(verdicts), "samples": 1}
    made = Evaluation(root / name, about)
    rows = [
        {
            "problem": f"p{n}",
            "prompt": f"/// Number {n}.\npub fn f{n}() -> u32 {{\n",
            "reference": f"    {n}\n}}",
            "test": "",
            "language": "rust",
        }
        for n in range(len(verdicts))
    ]
    made.folder.describe(rows, len(verdicts))
    with made.folder.hold(["eval", "humaneval"]):
        for n, verdict in enumerate(verdicts):
            made.append(Row(f"p{n}", 0, f"    {n} + 0\n}}", verdict, "" if verdict == "passed" else detail))
    note = json.loads((root / name / COMMAND).read_text())
    (root / name / COMMAND).write_text(json.dumps({**note, "pid": 1, "started": 0.0}))
    return root / name


def problems(path: Path) -> Path:
    rows = [
        {
            "name": f"twice_{n}",
            "language": "rs",
            "prompt": f"/// Twice the number.\nfn twice_{n}(n: isize) -> isize {{\n",
            "tests": f"}}\n\nfn main() {{\n    let candidate = twice_{n};\n    assert_eq!(candidate(2), 4);\n}}\n",
            "stop_tokens": ["\n}"],
        }
        for n in range(3)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("size", [SMALL, MIDDLE])
async def test_a_real_run_from_the_form_to_its_samples(tmp_path: Path, size: tuple[int, int]) -> None:
    try:
        isolation()
    except UserError as error:
        pytest.skip(str(error))
    root = tmp_path / "kept"
    app = EvaluateApp(root, str(write_model(tmp_path / "tiny.gguf")))
    async with app.run_test(size=size) as pilot:
        screen = app.evaluate
        await until(pilot, lambda: "no evaluations below" in text_of(app))
        await pilot.press("n")
        await until(pilot, lambda: screen.tabs.active == "new")
        assert app.focused is screen.form.query_one("#start-set")
        await pilot.press("left")  # from the first to the last: problems of a file
        assert screen.form.problem == "file: name JSON lines with problems"
        assert screen.form.query_one("#start-button", Button).disabled
        for name, text in (("file", str(problems(tmp_path / "three.jsonl"))), ("max_tokens", "8"), ("name", "mine")):
            screen.form.set_field(name, text)
        assert not screen.form.problem and "--problems" in text_of(app).replace("\n", "")
        assert screen.form.query_one("#start-button").region.bottom <= size[1]
        await pilot.press("ctrl+l")
        await until(pilot, lambda: screen.tabs.active == "kept" and screen.list.selected is not None)
        await until(pilot, lambda: screen.list.kept[0].state in ("finished", "failed"))
        one = screen.list.kept[0]
        assert (one.state, one.done, one.total) == ("finished", 3, 3), one.failure
        await until(pilot, lambda: any("mine is finished" in text for text in app.said))
        assert "3/3" in text_of(app) and "newest" in text_of(app)
        await pilot.press("enter")
        await until(pilot, lambda: screen.tabs.active == "samples" and screen.samples.sample is not None)
        await until(pilot, lambda: "Twice the number" in text_of(app))
        assert "1/3 all" in text_of(app) and "completion" in text_of(app)
        await pilot.press("right_square_bracket")
        await until(pilot, lambda: "2/3 all" in text_of(app))
        await pilot.press("f")
        await until(pilot, lambda: "failed" in text_of(app) and "/3 failed" in text_of(app))
        await pilot.press("f")
        await until(pilot, lambda: "0/0 passed" in text_of(app) and "no sample here yet" in text_of(app))
        for widget in app.screen.query("*"):
            if widget.is_on_screen and widget.region:
                assert widget.region.right <= size[0] and widget.region.bottom <= size[1], widget


async def test_it_is_stopped_and_continued(tmp_path: Path) -> None:
    try:
        isolation()
    except UserError as error:
        pytest.skip(str(error))
    root = tmp_path / "kept"
    app = EvaluateApp(root, str(write_model(tmp_path / "tiny.gguf")))
    async with app.run_test(size=SMALL) as pilot:
        screen = app.evaluate
        await pilot.press("n")
        for name, text in (
            ("set", "python"),
            ("limit", "100"),
            ("max_tokens", "4"),
            ("samples", "50"),
            ("name", "long"),
        ):
            screen.form.set_field(name, text)
        screen.form.query_one("#start-limit", Input).focus()
        await pilot.press("enter")
        try:
            await until(pilot, lambda: screen.list.kept and screen.list.kept[0].done >= 2)
            assert screen.list.kept[0].state == "running" and screen.check_action("resume", ()) is None
            await pilot.press("s")
            await until(pilot, lambda: screen.list.kept[0].state == "stopped")
            before = screen.list.kept[0].done
            await pilot.press("R")
            await until(pilot, lambda: screen.list.kept[0].done > before)
            assert "left" in text_of(app), "how long it will take is said"
        finally:
            stop(root / "long")
        await until(pilot, lambda: screen.list.kept[0].state == "stopped")


@pytest.mark.parametrize("size", [SMALL, MIDDLE])
async def test_two_are_compared_on_the_same_problems(tmp_path: Path, size: tuple[int, int]) -> None:
    kept(tmp_path, "weak", *["failed"] * 20, "passed")
    kept(tmp_path, "strong", *["passed"] * 20, "passed")
    app = EvaluateApp(tmp_path)
    async with app.run_test(size=size) as pilot:
        screen = app.evaluate
        await until(pilot, lambda: len(screen.list.kept) == 2)
        await pilot.press("space", "down", "space")
        assert len(screen.list.marked) == 2
        screen.action_tab("compare")
        await until(pilot, lambda: "21 problems that both were given" in text_of(app))
        text = text_of(app)
        assert "the difference is significant" in text and "different verdicts" in text
        await pilot.press("escape", "space")
        screen.action_tab("compare")
        await until(pilot, lambda: "mark two evaluations" in text_of(app))


async def test_what_a_model_wrote_reaches_the_screen_escaped(tmp_path: Path) -> None:
    folder = kept(tmp_path, "evil", "failed", detail="\x1b[31mred\x1b[0m [bold]no markup[/bold]")
    rows = (folder / "samples.jsonl").read_text()
    (folder / "samples.jsonl").write_text(rows.replace("0 + 0", "\\u001b]0;title\\u0007 [red]x[/red]"))
    app = EvaluateApp(tmp_path)
    async with app.run_test(size=MIDDLE) as pilot:
        await until(pilot, lambda: len(app.evaluate.list.kept) == 1)
        await pilot.press("enter")
        await until(pilot, lambda: "[bold]no markup[/bold]" in text_of(app))
        text = text_of(app)
        assert "\x1b" not in text and "\x07" not in text and "[red]x[/red]" in text


async def test_a_failure_says_why(tmp_path: Path) -> None:
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / LAUNCH).write_text('{"arguments": ["eval", "humaneval"], "pid": 1, "started": 0}')
    (tmp_path / "bad" / LOG).write_text("error: the server is gone; start it again\n")
    app = EvaluateApp(tmp_path)
    async with app.run_test(size=SMALL) as pilot:
        await until(pilot, lambda: "the server is gone; start it again" in text_of(app))
        assert app.evaluate.list.kept[0].state == "failed"


async def test_samples_come_while_one_reads(tmp_path: Path) -> None:
    folder = kept(tmp_path, "run", "failed", "passed")
    app = EvaluateApp(tmp_path)
    async with app.run_test(size=SMALL) as pilot:
        await until(pilot, lambda: len(app.evaluate.list.kept) == 1)
        await pilot.press("enter")
        await until(pilot, lambda: app.evaluate.samples.sample is not None)
        await pilot.press("down")
        read = app.evaluate.samples.sample
        assert read is not None and read.problem == "p1"
        with (folder / "samples.jsonl").open("a") as file:
            row = {"problem": "p9", "sample": 0, "completion": "", "verdict": "failed", "detail": ""}
            file.write(json.dumps(row) + "\n")
        await until(pilot, lambda: app.evaluate.samples.table.row_count == 3)
        assert app.evaluate.samples.sample == read


# Pure parts


def test_fields_become_the_command(tmp_path: Path) -> None:
    model = tmp_path / "m.gguf"
    model.touch()
    texts = {**DEFAULTS, "model": str(model)}
    found = start_of(texts, tmp_path / "kept")
    assert found.folder == tmp_path / "kept" / "rust-small-m"
    assert found.arguments[:5] == ["eval", "humaneval", str(model), "--set", "rust-small"]
    (tmp_path / "kept" / "rust-small-m").mkdir(parents=True)
    assert start_of(texts, tmp_path / "kept").folder.name == "rust-small-m-2", "a free name is taken"
    held = start_of({**texts, "set": "held-out", "temperature": "0,0.8", "limit": "5"}, tmp_path).arguments
    assert held[:3] == ["eval", "rust", str(model)] and "--temperatures" in held and "--items" in held
    remote = start_of({**texts, "model": "", "server": "http://127.0.0.1:1"}, tmp_path).arguments
    assert remote[:4] == ["eval", "humaneval", "--attach", "http://127.0.0.1:1"]


@pytest.mark.parametrize(
    ("field", "text", "said"),
    [
        ("model", "", "model: name a GGUF file"),
        ("model", "/none.gguf", "model: there is no file"),
        ("samples", "0", "samples: a whole number from 1"),
        ("temperature", "0,0.8", "temperature: a number from 0 on, not"),
        ("temperature", "hot", "temperature: a number"),
        ("max_tokens", "many", "max tokens: a whole number"),
        ("name", "../x", "name: a name of one folder"),
    ],
)
def test_fields_that_make_no_sense_are_named(tmp_path: Path, field: str, text: str, said: str) -> None:
    model = tmp_path / "m.gguf"
    model.touch()
    with pytest.raises(UserError, match=said):
        start_of({**DEFAULTS, "model": str(model), field: text}, tmp_path)


def test_programs_without_isolation_are_off_in_the_browser(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NANOCHAT_WEB_COMMANDS", "off")
    model = tmp_path / "m.gguf"
    model.touch()
    with pytest.raises(UserError, match="off in the browser"):
        start_of({**DEFAULTS, "model": str(model), "unsafe": "yes"}, tmp_path)


def test_lines_on_an_evaluation_fit() -> None:
    rows = tuple(Row(f"problem number {n}", 0, "", "failed", "") for n in range(4))
    one = Kept(Path("x"), "x", {"set": "s" * 90, "model": "m"}, rows, 8, "running", "", 0.0, (), 90.0)
    lines = progress_content(one, 70).plain.split("\n")
    assert len(lines) == 3 and all(len(line) <= 70 for line in lines)
    assert "4/8" in lines[1] and "at most 49.0%" in lines[1] and "left" in lines[1]
    assert progress_content(None, 70).plain == "\n\n"


def test_long_prompts_show_their_end() -> None:
    prompt = "\n".join(f"line {n}" for n in range(100))
    row = Row("p", 2, "text", "failed", "", 0.8, {"similarity": 0.25})
    text = sample_content(row, {"prompt": prompt, "reference": "ref"}).plain
    assert "… 92 lines before" in text and "line 99" in text and "line 91" not in text
    assert "line 0" in sample_content(row, {"prompt": prompt}, whole=True).plain
    assert "p #3 @0.8" in text and "similarity 0.25" in text and "the author's text" in text


def test_a_comparison_in_words() -> None:
    first = [Row(f"p{n}", 0, "", "failed", "") for n in range(3)]
    second = [Row(f"p{n}", 0, "", "passed" if n == 0 else "failed", "") for n in range(3)]
    found = compare(first, second)
    pairs = different_verdicts(first, second)
    assert [(a.problem, b.verdict) for a, b in pairs] == [("p0", "passed")]
    text = comparison_content(["a", "b"], found, [("lines", found)], ["seed"], pairs).plain
    assert (
        "3 problems" in text
        and "difference +33.3%" in text
        and "lines    n 3 " in text
        and "also different: seed" in text
    )
    assert "the difference may be chance" in text and "p0  failed  →  passed" in text


def test_cells_of_tables_have_colours_that_a_table_resolves() -> None:
    """A table draws `$text`, whose colour depends on what is below it, in black."""
    name = words.sample_name(Row("small/add", 1, "", "passed", ""))
    styles = {f"${colour}" for colour in words.COLOURS.values()} | {str(span.style) for span in name.spans}
    assert len(styles) > 3 and not any(style.split()[0] == "$text" for style in styles)
