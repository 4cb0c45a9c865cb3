"""What is known before a run starts, and why one ended: presets, checks, the lock, failures it cannot tell itself."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from run_support import stand_in, until, write_checkpoint, write_status
from support import TINY

from nanochat_tui.errors import UserError
from nanochat_tui.runs import launcher, preflight, signals
from nanochat_tui.runs.alarms import find_alarms
from nanochat_tui.runs.config import parse_config
from nanochat_tui.runs.config_file import find_settings
from nanochat_tui.runs.ending import record_failure
from nanochat_tui.runs.lock import RunLock, lock_refusal
from nanochat_tui.runs.metrics import Series
from nanochat_tui.runs.presets import PRESETS
from nanochat_tui.runs.state import RunState, read_state

SYNTHETIC = {"config": "tiny", "vocab_size": 256, "dataset": "synthetic"}
HOLDER = """
import sys, time
from pathlib import Path
from nanochat_tui.runs.lock import RunLock
lock = RunLock(Path(sys.argv[1]))
lock.acquire()
print("held", flush=True)
time.sleep(60)
"""


def found(checks: list[preflight.Check], name: str) -> preflight.Check:
    return next(check for check in checks if check.name == name)


def test_presets_are_told_apart_by_their_first_letters() -> None:
    assert len({preset.title[:8] for preset in PRESETS.values()}) == len(PRESETS)
    assert [name for name, preset in PRESETS.items() if not preset.needs_data] == ["try-out"]
    with pytest.raises(UserError, match="no configuration d21: neither a file nor one of try-out, d20-cpu, d20-gpu"):
        find_settings("d21")


def test_a_run_that_can_start(tmp_path: Path) -> None:
    checks = preflight.preflight(parse_config(SYNTHETIC), tmp_path / "new" / "run", environment={})
    assert preflight.ready(checks)
    assert {check.name for check in checks} == {"PyTorch", "data", "directory", "disk", "memory"}
    assert not (tmp_path / "new").exists()


def test_what_keeps_a_run_from_starting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    config = parse_config({"config": "tiny", "data_path": tmp_path / "absent"})
    checks = preflight.preflight(
        config,
        tmp_path / "file" / "run",
        prefix=["torchrun", "--nproc-per-node", "4"],
        environment={},
    )
    assert not preflight.ready(checks)
    assert "there is no data" in found(checks, "data").text
    assert "is a file; name another directory" in found(checks, "directory").text
    assert "nproc-per-node 4" in found(checks, "processes").text
    several = preflight.preflight(parse_config(SYNTHETIC), environment={"WORLD_SIZE": "8", "RANK": "0"})
    assert found(several, "processes").state == "note" and "8 processes" in found(several, "processes").text
    several = preflight.preflight(parse_config(SYNTHETIC), environment={"WORLD_SIZE": "8"})
    assert found(several, "processes").state == "error" and "start with torchrun" in found(several, "processes").text
    monkeypatch.setattr(preflight.importlib.util, "find_spec", lambda _: None)
    checks = preflight.preflight(parse_config(SYNTHETIC), environment={})
    assert found(checks, "PyTorch").state == "error"
    monkeypatch.undo()
    monkeypatch.setattr(preflight, "checkpoint_bytes", lambda _: 1 << 60)
    monkeypatch.setattr(preflight, "memory_bytes", lambda _: 1 << 60)
    checks = preflight.preflight(parse_config(SYNTHETIC), tmp_path / "run", environment={})
    assert "not one fits" in found(checks, "disk").text
    assert found(checks, "memory").state == "error"


def test_the_reference_of_collider_is_looked_at(tmp_path: Path) -> None:
    def reference(**changes: object) -> preflight.Check:
        wanted = {**SYNTHETIC, "collider_ratio": 0.4, "collider_reference": tmp_path / "step_3", **changes}
        return found(preflight.preflight(parse_config(wanted), environment={}), "reference")

    assert reference().state == "error"
    assert "is not a checkpoint" in reference().text
    folder = write_checkpoint(tmp_path / "step_3", 3, seed=0)
    other = reference()
    assert other.state == "error" and f"{TINY.vocab_size:,} token ids" in other.text
    assert reference(vocab_size=TINY.vocab_size, context_length=TINY.context_length, seq_len=8).state == "ok"
    assert reference(collider_ratio=0.0).state == "note"
    (folder / "state.json").write_text("{}")
    assert "not a checkpoint of this trainer" in reference().text


def test_the_lock_names_its_holder_and_goes_with_it(tmp_path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    try:
        assert holder.stdout.readline() == "held\n"
        for attempt in (RunLock(tmp_path).acquire, lambda: launcher.check_free(tmp_path, continues=True)):
            with pytest.raises(UserError, match=rf"already \(process {holder.pid}\)"):
                attempt()
        checks = preflight.preflight(parse_config(SYNTHETIC), tmp_path, continues=True, environment={})
        assert f"process {holder.pid}" in found(checks, "directory").text
    finally:
        holder.kill()
        holder.wait()
    assert lock_refusal(tmp_path) is None
    lock = RunLock(tmp_path)
    lock.acquire()
    with pytest.raises(UserError, match=f"process {os.getpid()}"):
        RunLock(tmp_path).acquire()
    lock.release()
    assert lock_refusal(tmp_path) is None


def test_a_trainer_of_another_machine_is_seen_by_its_heartbeat(tmp_path: Path) -> None:
    write_status(tmp_path, host="elsewhere", pid=7)
    with pytest.raises(UserError, match=r"process 7 on elsewhere"):
        RunLock(tmp_path).acquire()


def test_a_folder_that_cannot_be_written_is_said_plainly(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write the run directory .*: a part of the path is not a folder"):
        RunLock(tmp_path / "file" / "run").acquire()


def test_why_a_run_failed_before_its_first_step(tmp_path: Path) -> None:
    run = tmp_path / "run"
    config = parse_config({"config": "tiny", "data_path": tmp_path / "absent", "steps": 5})
    launched = launcher.launch(config, directory=run)
    until(launched.ended.is_set, 60)
    state = read_state(run)
    assert state.life == "failed"
    assert "there is no data at" in state.error
    assert "make it with: nanochat-train prepare-data" in find_alarms(state, Series())[0].text
    assert launched.failure() is not None
    assert "ended with code 2: there is no data at" in str(launched.failure())


def test_a_process_that_dies_without_a_word(tmp_path: Path) -> None:
    run = tmp_path / "run"
    launched = launcher.start(["sh", "-c", "echo starting; kill -9 $$"], run)
    until(launched.ended.is_set)
    state = read_state(run)
    assert state.life == "failed"
    assert "ended by signal 9 (killed, perhaps for want of memory) before its first step: starting" in state.error


def test_a_refused_command_changes_nothing_of_a_run(tmp_path: Path) -> None:
    write_status(tmp_path, state="finished", step=9)
    before = (tmp_path / "status.json").read_bytes()
    record_failure(tmp_path, "holds a run already")
    assert (tmp_path / "status.json").read_bytes() == before
    record_failure(tmp_path / "absent", "no data")
    assert not (tmp_path / "absent").exists()


def test_killed_is_not_crashed(tmp_path: Path) -> None:
    run = tmp_path / "run"
    stand_in(run)
    until(lambda: read_state(run).life == "running")
    signals.kill(run)
    state = read_state(run)
    assert (state.life, state.step) == ("killed", 1)
    assert "killed by a person" in find_alarms(state, Series())[0].text
    assert not state.alive


def test_a_remote_launch_that_fails_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    ssh = tmp_path / "ssh"
    said = "ssh: Could not resolve hostname nohost: Name or service not known"
    ssh.write_text(f"#!/bin/sh\necho '{said}' >&2\nexit 255\n")
    ssh.chmod(0o755)
    launched = launcher.launch(parse_config(SYNTHETIC), [str(ssh), "nohost"], Path("~/runs/x"))
    reported: list[str | None] = []
    launched.when_ended(lambda ended: reported.append(ended.failure()))
    until(lambda: reported)
    assert reported == [f"ssh ended with code 255: {said}"]
    assert launched.failure() == reported[0]


def test_a_resume_keeps_the_prefix(tmp_path: Path) -> None:
    run = tmp_path / "run"
    config = parse_config({"config": "tiny", "data_path": tmp_path / "absent"})
    launched = launcher.launch(config, ["env", "X=a b"], run)
    assert launcher.launch_prefix(run) == "env 'X=a b'"
    until(launched.ended.is_set, 60)
    assert launcher.launch_prefix(tmp_path) == ""


@pytest.mark.parametrize(
    ("text", "length"),
    [
        ("", {}),
        ("9000", {"steps": 9000}),
        ("9,000 steps", {"steps": 9000}),
        ("90 min", {"minutes": 90.0}),
        ("90m", {"minutes": 90.0}),
        ("1.5h", {"minutes": 90.0}),
        ("2 epochs", {"epochs": 2.0}),
        ("50M tokens", {"tokens": 50_000_000}),
        ("2k", {"steps": 2000}),
    ],
)
def test_lengths_as_people_type_them(text: str, length: dict[str, object]) -> None:
    assert launcher.parse_length(text) == length


@pytest.mark.parametrize("text", ["0", "-5", "ten", "1.5", "5 parsecs", "steps"])
def test_lengths_that_are_none(text: str) -> None:
    with pytest.raises(UserError, match="the length must be"):
        launcher.parse_length(text)


def test_a_loss_above_guessing_is_an_alarm() -> None:
    series = Series()
    for step in range(1, 6):
        series.add({"step": step, "loss": 9.0})
    alarms = find_alarms(RunState("running"), series, vocabulary=256)
    assert "diverged: the loss is 9.00, and guessing gives 5.55" in alarms[0].text
    assert not [a for a in find_alarms(RunState("running"), series, vocabulary=50_257) if "diverged" in a.text]


def test_launched_paths_do_not_depend_on_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = parse_config({"config": "tiny", "data_path": "absent", "steps": 1})
    launched = launcher.launch(config, directory=tmp_path / "run")
    assert str(tmp_path / "absent") in launched.command
    until(launched.ended.is_set, 60)
    assert json.loads((tmp_path / "run" / "launch.json").read_text())["exit_code"] == 2
