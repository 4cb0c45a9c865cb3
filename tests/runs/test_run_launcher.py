"""Starting, steering and killing real processes."""

import json
import os
import shlex
import signal
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest
from run_support import grow, stand_in, until, write_checkpoint_mark, write_status
from typer.testing import CliRunner

from nanochat_tui.errors import UserError
from nanochat_tui.processes import process_runs
from nanochat_tui.runs import launcher, signals
from nanochat_tui.runs.config import TrainConfig, parse_config
from nanochat_tui.runs.directory import RunDirectory
from nanochat_tui.runs.state import CONSOLE_FILE, read_state
from nanochat_tui.runs.submission import MODULE

SMALL = {"config": "tiny", "dataset": "synthetic", "steps": 5, "compile": False, "sample_prompt": "fn 'a b'\n"}


def test_the_command_gives_back_the_configuration() -> None:
    config = parse_config({**SMALL, "data_path": "/data/it's here", "n_streams": 4, "muon_lr": 0.0125})
    words = launcher.train_command(launcher.config_arguments(config), Path("/runs/x y"))
    assert words[:4] == [sys.executable, "-m", "nanochat_tui.cli.train_entry", "train"]
    assert shlex.split(shlex.join(words)) == words
    # read back by the real command line, which must arrive at the same configuration
    from typer.main import get_command

    from nanochat_tui.cli.train_app import app

    command = get_command(app).commands["train"]  # type: ignore[attr-defined]
    given = command.make_context("train", words[4:]).params
    values = {k: v for k, v in given.items() if v is not None and k in TrainConfig.model_fields}
    values["n_streams"] = int(values["n_streams"])
    assert parse_config(values) == config
    assert Path(given["checkpoint_dir"]) == Path("/runs/x y")
    assert CliRunner().invoke(app, ["train", "--help"]).exit_code == 0


@pytest.mark.parametrize(
    ("prefix", "expected"),
    [
        ("nice -n 10", ["nice", "-n", "10", sys.executable, "-m", MODULE, "train"]),
        ("torchrun --nproc-per-node 2", ["torchrun", "--nproc-per-node", "2", "-m", MODULE, "train"]),
        ("env A='b c'", ["env", "A=b c", sys.executable, "-m", MODULE, "train"]),
    ],
)
def test_prefixes_here(prefix: str, expected: list[str]) -> None:
    words = launcher.train_command([], Path("/r"), launcher.split_prefix(prefix))
    assert words[: len(expected)] == expected


@pytest.mark.parametrize(
    ("prefix", "kept"),
    [
        ("ssh host", 2),
        ("ssh -p 2222 -A me@host", 5),
        ("ssh -oBatchMode=yes host torchrun --nproc-per-node 1", 3),
        ("nice ssh host", 3),
    ],
)
def test_behind_ssh_the_remote_shell_gets_one_quoted_line(tmp_path: Path, prefix: str, kept: int) -> None:
    """The line is run by a real shell with a program of the trainer's name, which says what words it got."""
    config = parse_config(SMALL)
    folder = tmp_path / "it's a run"
    words = launcher.train_command(launcher.config_arguments(config), folder, shlex.split(prefix))
    assert words[:kept] == shlex.split(prefix)[:kept]
    assert len(words) == kept + 1
    program = tmp_path / "bin" / ("torchrun" if "torchrun" in prefix else "nanochat-train")
    program.parent.mkdir()
    program.write_text('#!/bin/sh\nfor word in "$@"; do printf "%s\\0" "$word"; done\n')
    program.chmod(0o755)
    environment = {**os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}"}
    subprocess.run(["sh", "-c", words[-1]], check=True, env=environment, cwd=tmp_path)
    got = (folder / "console.txt").read_text().split("\0")[:-1]
    expected = ["train", "--checkpoint-dir", str(folder), *launcher.config_arguments(config)]
    assert got[-len(expected) :] == expected
    if "torchrun" in prefix:
        assert got[: -len(expected)] == ["--nproc-per-node", "1", "-m", MODULE]


def test_a_remote_home_directory_is_left_to_its_shell() -> None:
    line = launcher.train_command([], Path("~/runs/a b"), ["ssh", "h"])[-1]
    assert line.startswith("mkdir -p ~/'runs/a b' && nohup nanochat-train train --checkpoint-dir ~/'runs/a b' >> ")
    assert launcher.is_remote(["/usr/bin/ssh", "h"])
    assert not launcher.is_remote(["sshpass-like"])


def test_prefixes_that_make_no_sense() -> None:
    with pytest.raises(UserError, match="quotation"):
        launcher.split_prefix("nice 'oh")
    with pytest.raises(UserError, match="names no host"):
        launcher.train_command([], Path("/r"), ["ssh", "-p", "22"])
    with pytest.raises(UserError, match="cannot start no-such-program-here"):
        launcher.launch(parse_config(SMALL), ["no-such-program-here"], Path("no-such-run"))
    assert not Path("no-such-run").exists()  # nothing was started, so nothing stays


def test_a_directory_takes_one_trainer(tmp_path: Path) -> None:
    run = tmp_path / "run"
    launched = stand_in(run)
    with pytest.raises(UserError, match=f"process {launched.pid}"):
        stand_in(run)  # still starting
    until(lambda: read_state(run).life == "running")
    with pytest.raises(UserError, match="at work"):
        stand_in(run, continues=True)
    request = signals.request_stop(run)
    until(lambda: read_state(run).life == "stopped")
    assert read_state(run).control_done == request
    assert "a word on the console" in (run / CONSOLE_FILE).read_text()
    write_checkpoint_mark(run, 1)
    with pytest.raises(UserError, match="resume it"):
        stand_in(run)
    (run / "control").unlink()
    again = stand_in(run, continues=True)
    until(lambda: read_state(run).life == "running")
    signals.kill(run)
    assert again.pid != launched.pid


def test_figures_of_a_dead_run_are_not_mixed_with_a_new_one(tmp_path: Path) -> None:
    write_status(tmp_path, state="running", process_started=1.0)
    grow(tmp_path, step=1, loss=3.0)
    with pytest.raises(UserError, match="earlier run"):
        launcher.check_free(tmp_path)
    launcher.check_free(tmp_path, continues=True)


def test_two_launchers_at_once_start_one_trainer(tmp_path: Path) -> None:
    results: list[object] = []

    def attempt() -> None:
        try:
            results.append(stand_in(tmp_path / "run"))
        except UserError as error:
            results.append(error)

    threads = [threading.Thread(target=attempt) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    started = [r for r in results if isinstance(r, launcher.Launched)]
    assert len(started) == 1
    assert len(results) == 8
    until(lambda: read_state(tmp_path / "run").life == "running")
    assert signals.kill(tmp_path / "run") == started[0].pid
    until(lambda: read_state(tmp_path / "run").life == "killed")


def test_the_trainer_survives_whoever_started_it(tmp_path: Path) -> None:
    """Started from a process that is then killed with its whole group, as a terminal that closes does."""
    run = tmp_path / "run"
    program = f"""
import sys, time
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from pathlib import Path
from run_support import stand_in
print(stand_in(Path({str(run)!r})).pid, flush=True)
time.sleep(60)
"""
    app = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert app.stdout is not None
    pid = int(app.stdout.readline())
    until(lambda: read_state(run).life == "running")
    os.killpg(app.pid, signal.SIGHUP)
    os.killpg(app.pid, signal.SIGKILL)
    app.wait()
    beat = json.loads((run / "status.json").read_text())["heartbeat"]
    until(lambda: json.loads((run / "status.json").read_text())["heartbeat"] > beat)
    assert os.getpgid(pid) != os.getpgid(0)
    assert signals.kill(run) == pid
    until(lambda: not psutil.pid_exists(pid) or read_state(run).life == "killed")


def test_signals_refuse_what_is_not_certain(tmp_path: Path) -> None:
    victim = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    born = psutil.Process(victim.pid).create_time()
    try:
        write_status(tmp_path, pid=victim.pid, process_started=born - 100)  # the number was used again
        with pytest.raises(UserError, match="gone already"):
            signals.kill(tmp_path)
        write_status(tmp_path, pid=victim.pid, process_started=born, host="elsewhere")
        with pytest.raises(UserError, match="runs on elsewhere"):
            signals.kill(tmp_path)
        assert victim.poll() is None
        write_status(tmp_path, pid=victim.pid, process_started=born)
        assert signals.kill(tmp_path) == victim.pid
        victim.wait(120)
        assert not process_runs(victim.pid, born)
    finally:
        victim.kill()
    for command in (signals.request_checkpoint, signals.request_stop):
        with pytest.raises(UserError, match="no trainer is at work"):
            command(tmp_path)
    assert RunDirectory(tmp_path).last_control() is None


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is always full is Linux's")
def test_a_full_disk_is_said(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / CONSOLE_FILE).symlink_to("/dev/full")
    with pytest.raises(UserError, match=r"console\.txt: the disk is full"):
        stand_in(run)
    assert read_state(run).life == "unknown"
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot make"):
        stand_in(tmp_path / "file" / "run")


def test_the_prefix_of_a_launch_is_known_later(tmp_path: Path) -> None:
    run, prefix = tmp_path / "run", ["env", "X=1 2"]
    launcher.start([*prefix, "true"], run, prefix=prefix)
    assert launcher.launch_prefix(run) == "env 'X=1 2'"
    (run / "launch.json").write_text("{")
    assert launcher.launch_prefix(run) == launcher.launch_prefix(tmp_path) == ""


def test_where_a_command_runs_is_said() -> None:
    assert launcher.place_text([]) == "on this machine"
    assert launcher.place_text(["nice", "-n", "10"]) == "on this machine, behind nice -n 10"
    assert "behind ssh far" in launcher.place_text(["ssh", "-p", "22", "far", "nice"])


def test_why_it_ended_before_its_first_step_is_in_its_state(tmp_path: Path) -> None:
    program = "import sys; print('one'); sys.exit('error: training needs PyTorch')"

    def said(what: str) -> list[str]:
        # the code is known unless the process ended before it was noted who it is
        return [f"{what} ended{how} before its first step: training needs PyTorch" for how in (" with code 1", "")]

    launched = launcher.start([sys.executable, "-c", program], tmp_path / "run")
    assert launched.ended.wait(120)
    state = read_state(tmp_path / "run")
    assert state.life == "failed"
    assert state.error in said("it")
    # and of a resume too, where the former end stands in the status
    write_status(tmp_path / "run", state="stopped", step=40, heartbeat=1.0)
    state = read_state(tmp_path / "run")
    assert (state.life, state.step) == ("failed", 40)
    assert state.error in said("the resume")
    launched = launcher.start(["true"], tmp_path / "silent")
    assert launched.ended.wait(120)
    assert read_state(tmp_path / "silent").error == "it ended before its first step; console.txt says no more"
