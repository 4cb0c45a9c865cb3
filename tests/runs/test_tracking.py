"""Numbers of a run in TensorBoard, read by its own reader, and what wandb and trackio would be sent, by a recorder."""

from __future__ import annotations

import json
import sys
import threading
import types
from pathlib import Path
from typing import Any

import pytest
from run_support import grow, recorded_run, until, write_status
from typer.testing import CliRunner

from nanochat_tui.cli.train_app import app
from nanochat_tui.errors import UserError
from nanochat_tui.processes import process_runs
from nanochat_tui.runs.directory import RESUMED, RunDirectory
from nanochat_tui.runs.tracking import MOST_VALUES, follow, open_tracker, row_values


class Recorder:
    """Keeps what a tracker was told."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, dict[str, float]]] = []
        self.backs: list[int] = []
        self.closed = False

    def log(self, step: int, values: dict[str, float], when: float) -> None:
        self.rows.append((step, values))

    def back(self, step: int, when: float) -> None:
        self.backs.append(step)

    def close(self) -> None:
        self.closed = True


def test_the_numbers_of_a_row() -> None:
    row = {"step": 3, "loss": 1.5, "tokens": 10, "grad_norm": None, "bad": float("nan"), "ok": True, "word": "x"}
    row["mhc"] = [{"alpha": 0.9, "p": [0.1, 0.2]}, {"alpha": 0.8}]
    assert row_values(row) == {
        "loss": 1.5,
        "tokens": 10.0,
        "mhc/0/alpha": 0.9,
        "mhc/0/p/0": 0.1,
        "mhc/0/p/1": 0.2,
        "mhc/1/alpha": 0.8,
    }
    assert len(row_values({"many": [0.0] * 10_000})) == MOST_VALUES


def test_an_ended_run_is_sent_whole(tmp_path: Path) -> None:
    run, recorder = recorded_run(tmp_path / "run"), Recorder()
    expected = RunDirectory(run).metrics()
    assert follow(run, recorder) == len(expected) > 20
    assert recorder.closed
    assert [step for step, _ in recorder.rows] == [row["step"] for row in expected]
    assert recorder.rows[3][1]["loss"] == expected[3]["loss"]


def test_a_live_run_is_followed_until_it_ends(tmp_path: Path) -> None:
    import os

    import psutil

    run = tmp_path / "run"
    run.mkdir()
    born = psutil.Process().create_time()
    assert process_runs(os.getpid(), born)
    write_status(run, state="running", pid=os.getpid(), process_started=born)
    grow(run, step=1, loss=3.0)
    recorder = Recorder()
    thread = threading.Thread(target=follow, args=(run, recorder), kwargs={"pause": 0.01})
    thread.start()
    until(lambda: len(recorder.rows) == 1)
    grow(run, step=2, loss=2.0)
    until(lambda: len(recorder.rows) == 2)
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({RESUMED: 1}) + "\n" + '{"step": 2, "lo')
    until(lambda: recorder.backs == [1])
    assert not recorder.closed
    with (run / "metrics.jsonl").open("a") as file:
        file.write('ss": 1.0}\n')
    write_status(run, state="finished")
    thread.join(120)
    assert recorder.closed
    assert [(step, values["loss"]) for step, values in recorder.rows] == [(1, 3.0), (2, 2.0), (2, 1.0)]


def test_a_stop_ends_a_follower_of_a_live_run(tmp_path: Path) -> None:
    import os

    import psutil

    run = tmp_path / "run"
    run.mkdir()
    write_status(run, state="running", pid=os.getpid(), process_started=psutil.Process().create_time())
    recorder, stop = Recorder(), threading.Event()
    stop.set()
    assert follow(run, recorder, stop=stop) == 0
    assert recorder.closed
    assert follow(run, Recorder(), once=True) == 0


def test_tensorboard_reads_what_was_written(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = recorded_run(tmp_path / "run")
    expected = RunDirectory(run).metrics()
    done = CliRunner().invoke(app, ["track", str(run), "--to", "tensorboard", "--output", str(tmp_path / "tb")])
    assert done.exit_code == 0, done.output
    found = EventAccumulator(str(tmp_path / "tb"), size_guidance={"scalars": 0})
    found.Reload()
    scalars = found.Scalars("loss")
    assert [event.step for event in scalars] == [row["step"] for row in expected if "loss" in row]
    assert [event.value for event in scalars] == pytest.approx([r["loss"] for r in expected if "loss" in r], rel=1e-6)
    validation = [row for row in expected if "val_loss" in row]
    assert [event.value for event in found.Scalars("val_loss")] == pytest.approx([r["val_loss"] for r in validation])
    assert "mhc/0/alpha" in found.Tags()["scalars"]


def test_tensorboard_drops_what_a_run_gave_up(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = tmp_path / "run"
    run.mkdir()
    for step in (1, 2, 3, 4):
        grow(run, step=step, loss=float(step))
    grow(run, **{RESUMED: 2})
    grow(run, step=3, loss=30.0)
    follow(run, open_tracker("tensorboard", run))
    found = EventAccumulator(str(run / "tensorboard"))
    found.Reload()
    assert [(event.step, event.value) for event in found.Scalars("loss")] == [(1, 1.0), (2, 2.0), (3, 30.0)]


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_what_a_hosted_tracker_is_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """By a recorder in the library's place: which functions are called with what."""
    calls: list[tuple[str, Any]] = []
    library = types.ModuleType(name)
    for function in ("init", "define_metric", "log", "finish"):

        def record(*words: Any, _name: str = function, **options: Any) -> None:
            calls.append((_name, words or options))

        setattr(library, function, record)
    monkeypatch.setitem(sys.modules, name, library)
    run = recorded_run(tmp_path / "run")
    expected = RunDirectory(run).metrics()
    assert follow(run, open_tracker(name, run, project="mine")) == len(expected)
    first = calls[0][1]
    assert calls[0][0] == "init"
    assert (first["project"], first["name"], first["config"]["config"]) == ("mine", "run", "d20")
    assert ("id" in first, calls[1][0] == "define_metric") == ((True, True) if name == "wandb" else (False, False))
    logged = [words[0] for function, words in calls if function == "log"]
    assert [row["step"] for row in logged] == [row["step"] for row in expected]
    assert logged[0]["loss"] == expected[0]["loss"]
    assert calls[-1][0] == "finish"


def test_what_cannot_be_tracked_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="is no run directory"):
        open_tracker("tensorboard", tmp_path)
    monkeypatch.setitem(sys.modules, "wandb", None)
    run = recorded_run(tmp_path / "run")
    with pytest.raises(
        UserError, match=r"wandb is not installed; install it with: pip install 'nanochat-tui\[wandb\]'"
    ):
        open_tracker("wandb", run)
