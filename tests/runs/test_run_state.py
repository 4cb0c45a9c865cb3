"""Alive, dead, or somewhere between."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from run_support import recorded_run, write_status

from nanochat_tui.errors import UserError
from nanochat_tui.processes import process_runs
from nanochat_tui.runs.alarms import find_alarms, spike_steps
from nanochat_tui.runs.compare import RunFigures, differing_settings, read_settings
from nanochat_tui.runs.discovery import find_runs, look_again, open_run
from nanochat_tui.runs.metrics import Series
from nanochat_tui.runs.state import Heartbeat, RunState, read_state


def _me() -> dict[str, object]:
    return {"pid": os.getpid(), "process_started": psutil.Process().create_time()}


@pytest.mark.parametrize(
    ("fields", "life"),
    [
        ({"state": "running"}, "running"),
        ({"state": "compiling", "age": 600}, "running"),
        ({"state": "running", "age": 600}, "stalled"),
        ({"state": "running", "process_started": 1.0}, "crashed"),
        ({"state": "running", "pid": "x"}, "crashed"),
        ({"state": "finished"}, "finished"),
        ({"state": "stopped"}, "stopped"),
        ({"state": "failed", "error": "why"}, "failed"),
        ({"state": "running", "host": "elsewhere", "pid": 1}, "running"),
        ({"state": "running", "host": "elsewhere", "pid": 1, "age": 600}, "crashed"),
        ({"state": "running", "host": "elsewhere", "heartbeat": None}, "crashed"),
    ],
)
def test_life(tmp_path: Path, fields: dict[str, object], life: str) -> None:
    given = dict(fields)
    if "age" in given:  # reckoned here: a long run of tests begins long after this file was read
        given["heartbeat"] = time.time() - float(str(given.pop("age")))
    write_status(tmp_path, **{**_me(), **given})
    assert read_state(tmp_path).life == life


def test_a_zombie_does_not_run() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    born = psutil.Process(process.pid).create_time()
    deadline = time.monotonic() + 120
    while psutil.Process(process.pid).status() != psutil.STATUS_ZOMBIE and time.monotonic() < deadline:
        time.sleep(0.01)
    assert psutil.Process(process.pid).status() == psutil.STATUS_ZOMBIE
    assert not process_runs(process.pid, born)
    process.wait()


def test_another_machines_wrong_clock_is_seen_through() -> None:
    beat = Heartbeat()
    hour_behind = time.time() - 3600
    assert beat.age(hour_behind, clock=0.0) > 3000  # the first look knows no better
    assert beat.age(hour_behind + 10, clock=10.0) == 0.0  # it moves: alive
    assert beat.age(hour_behind + 10, clock=75.0) == 65.0  # and stands still again


def test_junk_in_a_status_is_no_crash_of_ours(tmp_path: Path) -> None:
    for junk in (
        "[",
        "[]",
        "",
        '{"state": 5, "pid": {}, "step": "x", "heartbeat": "y", "control_done": []}',
        '{"state": "running", "step": Infinity, "total": NaN, "seconds": 1e999, "heartbeat": -Infinity}',
        '{"state": "running", "step": 1' + "0" * 400 + "}",
    ):
        (tmp_path / "status.json").write_text(junk)
        assert read_state(tmp_path).life in ("unknown", "crashed")
    assert read_state(tmp_path / "absent").life == "unknown"


def test_between_launch_and_first_status(tmp_path: Path) -> None:
    launch = {**_me(), "host": socket.gethostname(), "started": time.time()}
    (tmp_path / "launch.json").write_text(json.dumps(launch))
    assert read_state(tmp_path).life == "starting"
    (tmp_path / "launch.json").write_text(json.dumps({**launch, "process_started": 1.0}))
    state = read_state(tmp_path)
    assert (state.life, state.error) == ("failed", "it ended before its first step; console.txt says no more")
    # a resume: the old status is older than the process that was just started
    write_status(tmp_path, state="stopped", step=40, heartbeat=time.time() - 1)
    (tmp_path / "launch.json").write_text(json.dumps({**launch, "started": time.time()}))
    state = read_state(tmp_path)
    assert (state.life, state.step) == ("starting", 40)
    write_status(tmp_path, **_me())
    assert read_state(tmp_path).life == "running"


def test_runs_are_found_living_first_and_logs_too(tmp_path: Path) -> None:
    recorded_run(tmp_path / "old")
    recorded_run(tmp_path / "group" / "young", state="running", **_me())
    (tmp_path / "empty").mkdir()
    (tmp_path / ".hidden").mkdir()
    write_status(tmp_path / ".hidden")
    (tmp_path / "train.log").write_text("[     1/10    ] loss=3.0000 lr=0.1 gnorm=1.00 tok/s=9 elapsed=0s\n")
    (tmp_path / "notes.txt").write_text("nothing here\n")
    found = find_runs(tmp_path)
    assert [(run.name, run.state.life, run.is_log) for run in found] == [
        ("group/young", "running", False),
        *sorted(
            [("old", "finished", False), ("train.log", "unknown", True)],
            key=lambda item: -max(r.changed for r in found if r.name == item[0]),
        ),
    ]
    assert [run.path for run in find_runs(tmp_path / "old")] == [tmp_path / "old"]
    assert find_runs(tmp_path / "nowhere") == []


def test_opening_says_what_is_wrong(tmp_path: Path) -> None:
    assert open_run(recorded_run(tmp_path / "run")).state.life == "finished"
    with pytest.raises(UserError, match="there is no run"):
        open_run(tmp_path / "absent")
    with pytest.raises(UserError, match=r"neither status\.json"):
        open_run(tmp_path)
    (tmp_path / "x.txt").write_text("hello")
    with pytest.raises(UserError, match="not a training log"):
        open_run(tmp_path / "x.txt")


def _series(losses: list[float]) -> Series:
    series = Series()
    for i, loss in enumerate(losses):
        series.add({"step": (i + 1) * 10, "loss": loss})
    return series


def test_alarms() -> None:
    quiet = [4 - 0.01 * i + 0.02 * (i % 3) for i in range(60)]
    healthy = RunState("running", step=600)
    assert find_alarms(healthy, _series(quiet)) == []
    assert spike_steps(_series([*quiet, 5.5, 3.4])) == [610]
    texts = [a.text for a in find_alarms(healthy, _series([*quiet, float("inf")]))]
    assert texts == ["loss is not a number since step 610"]
    assert find_alarms(RunState("crashed", local=True), _series(quiet))[0].level == "error"
    stalled = RunState("stalled", pid=7, local=True, heartbeat_age=300.0)
    assert "process 7 lives, but its last heartbeat is 5 min old" in find_alarms(stalled, _series(quiet))[0].text
    assert "boom" in find_alarms(RunState("failed", error="boom\x1b[31m"), _series([]))[0].text
    series = _series(quiet)
    for step, loss in ((601, 3.0), (602, 3.1), (603, 3.2), (604, 3.3)):
        series.add({"step": step, "val_loss": loss})
    assert [a.text for a in find_alarms(healthy, series)] == ["validation loss rises since step 601 (best 3.0000)"]


def test_the_recorded_run_raises_no_alarm() -> None:
    from run_support import RECORDED

    from nanochat_tui.runs.metrics import MetricsTail

    tail = MetricsTail(RECORDED / "metrics.jsonl")
    tail.poll()
    assert [a.text for a in find_alarms(RunState("finished"), tail.series)] == []


def test_a_run_that_goes_on_is_looked_at_again(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    write_status(run, **_me(), step=10, total=90)
    found = find_runs(tmp_path)[0]
    assert found.state.step == 10
    stamp = (run / "status.json").stat().st_mtime
    with (run / "metrics.jsonl").open("w") as file:
        file.write('{"step": 12}\n{"step": 14}\n{"step": 1')  # the rows are ahead of the status
    os.utime(run / "metrics.jsonl", (stamp + 5, stamp + 5))
    assert look_again(found).state.step == 14
    os.utime(run / "metrics.jsonl", (stamp - 5, stamp - 5))  # or behind it, where a resume went back
    assert look_again(found).state.step == 10
    write_status(run, state="finished", step=90, total=90)
    ended = look_again(found)
    assert ended.state.life == "finished" and look_again(ended) is ended


def test_settings_left_open_are_those_that_were_taken(tmp_path: Path) -> None:
    """A vocabulary that was given and one that is the preset's own do not differ; threads that were chosen may."""
    runs = []
    for name, settings, threads in (("a", {"vocab_size": 50257, "device": "cpu"}, 2), ("b", {}, 1)):
        folder = tmp_path / name
        folder.mkdir()
        environment = {"device": "cpu", "dtype": "float32", "threads": threads, "compiled": False}
        config = {"config": "d20", "threads": None, "device": "auto", **settings}
        (folder / "config.json").write_text(json.dumps({"config": config, "environment": environment}))
        runs.append(RunFigures(name, Series(), read_settings(folder)))
    assert differing_settings(runs) == {"threads": [2, 1]}
