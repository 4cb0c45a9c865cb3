"""The form of a new run: what it shows, what its keys do, what it refuses, what it never loses."""

import os
import sys
import tomllib
from pathlib import Path

import pytest
from run_support import Recorder, recorded_run
from textual import events
from textual.widgets import Button, Input, Static
from train_app import TrainApp, inside, launch_form, overview, until

from nanochat_tui.runs.jobs import read_job
from nanochat_tui.tui.train.form_fields import Fields
from nanochat_tui.tui.train.launch_form import LaunchForm
from nanochat_tui.tui.train.palette import commands
from nanochat_tui.tui.widgets.choice import Choice

SMALL, MIDDLE = (80, 24), (120, 36)


def shown(form: LaunchForm, part: str) -> str:
    widget = form.query_one(f"#form-{part}", Static)
    return str(widget.render()) if widget.display else ""


def program(folder: Path, name: str, text: str) -> Path:
    """A program of that name which stands first in the PATH."""
    folder.mkdir(exist_ok=True)
    file = folder / name
    file.write_text(f"#!{sys.executable}\n{text}\n")
    file.chmod(0o755)
    return file


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "bin"


@pytest.mark.parametrize("size", [SMALL, MIDDLE])
async def test_every_value_can_be_read(tmp_path: Path, size: tuple[int, int]) -> None:
    long = "/data/" + "x" * 30 + "/tokens"
    app = TrainApp(tmp_path)
    async with app.run_test(size=size) as pilot:
        form = await launch_form(pilot, app)
        for preset in ("d20-cpu", "d20-gpu"):
            await pilot.press("right")
            assert form.query_one("#form-preset", Choice).value == preset
            title = str(form.query_one("#form-preset", Choice).render())
            assert len(title) <= form.query_one("#form-preset").content_size.width
            # nothing is known of the data yet, and the cost is in sight all the same
            await until(pilot, lambda: form.estimate is not None)
            facts = form.query_one("#form-facts")
            assert "17,981,036 parameters" in str(facts.render()) and facts.is_on_screen
            assert "data path *" in [str(label.render()) for label in form.query("Label")]
        form.set_field("data_path", long)
        for widget in form.query_one(Fields).query("Input, Choice"):
            room = widget.content_size.width
            if isinstance(widget, Input):
                text = widget.value or widget.placeholder
                assert len(text) < room or (widget.id or "").startswith("form-"), (widget.id, text, room)
            elif isinstance(widget, Choice):
                texts = [str(widget.render()), *(f"‹ {option} ›" for option in widget.options)]
                assert max(map(len, texts)) <= room, (widget.id, texts)
        assert form.query_one("#field-n_layers", Input).placeholder == "6 (d20)"
        inside(app)


async def test_the_arrows_stay_in_the_form_and_its_keys_work_everywhere(tmp_path: Path) -> None:
    app = TrainApp(tmp_path)
    async with app.run_test(size=SMALL) as pilot:
        form = await launch_form(pilot, app)
        await until(pilot, lambda: form.ready)
        await pilot.press("up", "up")
        assert app.focused is form.query_one("#form-preset")
        last = list(form.query_one(Fields).query("Input, Choice"))[-1]
        for _ in range(60):
            await pilot.press("pagedown")
            if app.focused is last:
                break
        await pilot.press("down")
        assert app.focused is form.query_one("#form-report")
        await pilot.press("up")
        assert app.focused is last
        count = len(list(form.query("Input, Choice")))
        app.train.query_one("Tabs").focus()  # outside of all fields
        saved = form.directory.with_name(f"{form.directory.name}.toml")
        await pilot.press("ctrl+s")
        assert tomllib.loads(saved.read_text())["config"] == "tiny"
        form.query_one("#form-prefix", Input).value = "no-such-program-anywhere"
        await until(pilot, lambda: form.ready)
        for widget in list(form.query("Input, Choice"))[:: count // 4]:
            widget.focus()
            said = len(app.said)
            await pilot.press("ctrl+l")
            await until(pilot, lambda: any("cannot start no-such-program" in text for text in app.said[said:]))  # noqa: B023
        assert any("Starting on this machine, behind no-such-program-anywhere" in text for text in app.said)
        await pilot.press("escape")
        await until(pilot, lambda: app.train.tabs.active == "runs")
        await pilot.press("n")
        await until(pilot, lambda: app.train.tabs.active == "new")
        assert form.query_one("#form-prefix", Input).value == "no-such-program-anywhere"


async def test_what_was_typed_comes_back_with_its_preset(tmp_path: Path) -> None:
    app = TrainApp(tmp_path)
    async with app.run_test(size=SMALL) as pilot:
        form = await launch_form(pilot, app)
        form.set_field("batch_size", "16")
        await pilot.press("right")
        form.set_field("data_path", "/my/data")
        form.set_field("minutes", "7")
        await pilot.press("right")  # another preset: the data stays
        assert form.texts()["data_path"] == "/my/data" and form.texts()["minutes"] == ""
        await pilot.press("left")
        assert form.texts()["minutes"] == "7"
        await pilot.press("left")
        assert form.texts()["batch_size"] == "16"
        form.query_one("#form-directory", Input).value = str(tmp_path / "mine")
        await pilot.press("right")
        assert form.directory == tmp_path / "mine"


async def test_a_burst_of_keys_after_a_refusal_is_what_is_launched(tmp_path: Path, path: Path) -> None:
    """Ctrl+A Ctrl+K and a prefix, all at once, emptied the field after the text had come: a run began here."""
    program(path, "ssh", "import sys; sys.exit('Could not resolve hostname far')")
    app = TrainApp(tmp_path)
    async with app.run_test(size=(160, 45)) as pilot:
        form = await launch_form(pilot, app)
        prefix = form.query_one("#form-prefix", Input)
        prefix.focus()
        prefix.value = "no-such-program"
        await until(pilot, lambda: form.ready)
        await pilot.press("ctrl+l")
        await until(pilot, lambda: any("cannot start" in text for text in app.said))
        for key in ("ctrl+a", "ctrl+k", *"ssh far"):
            app.post_message(events.Key("space" if key == " " else key, key if len(key) == 1 else None))
        await until(pilot, lambda: form.ready and form.prefix)
        assert prefix.value == "ssh far"
        assert str(form.query_one("#form-launch", Button).label).endswith("behind ssh far")
        await pilot.press("ctrl+l")
        await until(pilot, lambda: any("ssh ended with code 1" in text for text in app.said))
        assert any("Starting on the other machine, behind ssh far" in text for text in app.said)


async def test_a_client_that_fails_is_told_with_its_words(tmp_path: Path, path: Path) -> None:
    program(path, "ssh", "import sys; print('Could not resolve hostname nohost'); sys.exit(255)")
    app = TrainApp(tmp_path)
    async with app.run_test(size=MIDDLE) as pilot:
        form = await launch_form(pilot, app)
        form.query_one("#form-prefix", Input).value = "ssh nohost"
        await pilot.pause()
        await until(pilot, lambda: form.ready)
        assert "not known, it runs on another machine" in shown(form, "facts")
        assert "not looked at" in shown(form, "checks")
        directory = form.directory
        await pilot.press("ctrl+l")
        await until(pilot, lambda: any("255" in text for text in app.said))
        assert "ssh ended with code 255: Could not resolve hostname nohost" in app.said[-1]
        assert not any("Started" in text for text in app.said)
        assert form.directory == directory and form.query_one("#form-prefix", Input).value == "ssh nohost"
        # one that fails later: it was said to have started, and then that it ended
        program(path, "ssh", "import sys, time; time.sleep(2.5); print('Connection reset'); sys.exit(255)")
        await pilot.press("ctrl+l")
        await until(pilot, lambda: any("Started" in text for text in app.said))
        assert form.directory != directory  # the next run gets another place, though nothing of this one lies here
        await until(pilot, lambda: "Connection reset" in app.said[-1])


async def test_who_types_on_after_a_launch_stays_in_the_form(tmp_path: Path, path: Path) -> None:
    """A refused launch leaves no directory behind, and the outcome of a launch takes no keys from the fields."""
    app = TrainApp(tmp_path)
    async with app.run_test(size=MIDDLE) as pilot:
        form = await launch_form(pilot, app)
        prefix = form.query_one("#form-prefix", Input)
        prefix.focus()
        prefix.value = "no-such-program"
        await pilot.pause()
        await until(pilot, lambda: form.ready)
        directory = form.directory
        await pilot.press("ctrl+l")
        await until(pilot, lambda: any("cannot start" in text for text in app.said))
        assert not directory.exists()
        directory.mkdir()  # so that it could be opened
        program(path, "ssh", "import time; time.sleep(0.5); raise SystemExit('no host')")
        prefix.value = "ssh far"
        await pilot.pause()
        await until(pilot, lambda: form.ready)
        await pilot.press("ctrl+l", "end", *"away")
        await until(pilot, lambda: any("ssh ended with code 1: no host" in text for text in app.said))
        assert app.train.tabs.active == "new" and prefix.value == "ssh faraway" and prefix.has_focus
        prefix.value = "bash -c 'sleep 3'"
        await pilot.pause()
        await until(pilot, lambda: form.ready)
        await pilot.press("ctrl+l", "end", "space", "x")
        await until(pilot, lambda: form.directory != directory)
        assert app.train.tabs.active == "new" and prefix.value == "bash -c 'sleep 3' x"


async def test_what_must_fail_is_not_launched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = __import__("importlib.util").util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *rest: None if name == "torch" else find(name, *rest))
    app = TrainApp(tmp_path)
    async with app.run_test(size=SMALL) as pilot:
        form = await launch_form(pilot, app)
        await until(pilot, lambda: form.checks)
        assert form.query_one("#form-launch", Button).disabled
        assert "PyTorch: not installed; install it with: pip install 'nanochat-tui[train]'" in shown(form, "problems")
        assert form.query_one("#form-problems").is_on_screen
        await pilot.press("ctrl+l")
        assert "pip install" in app.said[-1]
        assert not form.directory.exists()
        # the other machine may have it
        form.query_one("#form-prefix", Input).value = "ssh far"
        await pilot.pause()
        await until(pilot, lambda: form.ready)
        form.query_one("#form-prefix", Input).value = ""
        monkeypatch.undo()
        form.query_one("#form-directory", Input).value = str(recorded_run(tmp_path / "taken"))
        await pilot.pause()
        await until(pilot, lambda: form.checks)
        assert "holds a run with checkpoints" in shown(form, "problems")
        assert form.query_one("#form-launch", Button).disabled


async def test_why_a_launch_failed_stands_on_its_dashboard(tmp_path: Path) -> None:
    app = TrainApp(tmp_path)
    async with app.run_test(size=MIDDLE) as pilot:
        form = await launch_form(pilot, app)
        form.query_one("#form-prefix", Input).value = "bash -c 'echo error: training needs PyTorch; exit 1'"
        await until(pilot, lambda: form.ready)
        directory = form.directory
        await pilot.press("ctrl+l")
        await until(pilot, lambda: "before its first step: training needs PyTorch" in overview(app))
        assert (directory / "launch.json").is_file()
        assert str(app.train.query_one("#panel-log").border_title) == "console"


async def test_a_job_is_submitted_asked_about_and_cancelled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder(tmp_path, monkeypatch)
    recorder.answer(sbatch=("418\n", "", 0), squeue=("PENDING|Resources\n", "", 0))
    root = tmp_path / "runs"
    root.mkdir()
    app = TrainApp(root)
    async with app.run_test(size=(120, 36)) as pilot:
        await pilot.press("n")
        await until(pilot, lambda: len(app.train.query(LaunchForm)))
        form = app.train.query_one(LaunchForm)
        form.set_field("dataset", "synthetic")
        form.query_one("#form-prefix", Input).value = "slurm --gpus 2 --time 1:00:00"
        await until(pilot, lambda: form.ready)
        assert form.command[3:6] == ["submit", "--to", "slurm"] and "--gpus" in form.command
        assert str(form.query_one("#form-launch", Button).label) == "Launch as a job of Slurm"
        directory = form.directory
        form.action_launch()
        await until(pilot, lambda: any("submitted slurm job 418" in text for text in app.said))
        assert read_job(directory).id == "418" and form.directory != directory
        script = (directory / "job.sh").read_text()
        assert "--time=1:00:00" in script and "--dataset synthetic" in script
        offers = {title: go for title, _, go in commands(app.train)}
        offers[f"Job {directory.name}: status"]()
        await until(pilot, lambda: any("slurm job 418: PENDING (Resources)" in text for text in app.said))
        offers[f"Job {directory.name}: cancel"]()
        await until(pilot, lambda: ["scancel", "418"] in [call[:2] for call in recorder.calls])
        # refused by the cluster: said, and the form stays as it is
        recorder.answer(sbatch=("", "sbatch: error: invalid partition specified: x", 1))
        directory = form.directory
        await until(pilot, lambda: form.ready)
        form.action_launch()
        await until(pilot, lambda: any("sbatch refused: sbatch: error: invalid partition" in text for text in app.said))
        assert form.directory == directory
