"""What goes wrong around a training: signals, full disks, two trainers, failing evaluations, divergence."""

import json
import os
import resource
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from trained import losses, on_data, run, settings, train, words, write_data
from typer.testing import CliRunner

from nanochat_tui.cli.train_app import app
from nanochat_tui.errors import UserError
from nanochat_tui.runs.config import parse_config
from nanochat_tui.runs.directory import RunDirectory
from nanochat_tui.runs.lock import lock_refusal
from nanochat_tui.runs.state import read_state
from nanochat_tui.train import checkpoint, telling, trainer
from nanochat_tui.train.trainer import Trainer


def leftovers(folder: Path) -> list[str]:
    return [p.name for p in folder.iterdir() if p.name.endswith((".partial", ".old", ".tmp"))]


def test_final_is_saved_before_the_last_evaluation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []
    evaluate = trainer.evaluate_both

    def look(*args: Any, **options: Any) -> Any:
        seen.append((tmp_path / "final" / "state.json").exists())
        return evaluate(*args, **options)

    monkeypatch.setattr(trainer, "evaluate_both", look)
    train(tmp_path, steps=4, eval_interval=2)
    assert seen == [False, True]


def test_a_failed_evaluation_or_sample_does_not_end_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise IndexError("index 50256 is out of bounds")

    monkeypatch.setattr(trainer, "evaluate_both", fail)
    monkeypatch.setattr(telling, "write_sample", fail)
    data = write_data(tmp_path / "data")
    rows = train(tmp_path / "run", **on_data(data, steps=6, eval_interval=2))
    assert [row["step"] for row in rows] == list(range(1, 7))
    log = (tmp_path / "run" / "log.txt").read_text()
    assert log.count("note: the evaluation at step") == 3
    assert log.count("note: the sample at step") == 3
    assert read_state(tmp_path / "run").life == "finished"


@pytest.mark.parametrize("at", ["middle", "end"])
@pytest.mark.parametrize("how", ["signal", "control"])
def test_a_stop_interrupts_an_evaluation_and_the_resume_makes_up_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str, how: str
) -> None:
    options = {"steps": 8, "eval_interval": 4, "log_interval": 3, "checkpoint_interval": 0}
    whole = losses(train(tmp_path / "whole", **options))
    step = 4 if at == "middle" else 8
    evaluate = trainer.evaluate_both
    path = tmp_path / "part"

    def interrupted(*args: Any, tick: Any, **rest: Any) -> Any:
        if made.step == step:
            if how == "signal":
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(30)  # is not slept: the handler ends it
            (path / "control").write_text("stop\n")
            tick()
            raise AssertionError("the evaluation was not interrupted")
        return evaluate(*args, tick=tick, **rest)

    monkeypatch.setattr(trainer, "evaluate_both", interrupted)
    made = Trainer(parse_config(settings(**options)), path)
    made.run()
    monkeypatch.undo()
    state = read_state(path)
    assert (state.life, state.step) == ("stopped", step)
    newest = RunDirectory(path).checkpoints()[-1]
    assert newest.name == ("final" if at == "end" and how == "signal" else newest.name)
    assert "val_loss" not in RunDirectory(path).metrics()[-1]
    resumed = losses(train(path, resume=newest, **options))
    assert resumed == whole
    a = (tmp_path / "whole" / "final" / "model.safetensors").read_bytes()
    assert a == (path / "final" / "model.safetensors").read_bytes()
    assert read_state(path).life == "finished"


def test_a_file_size_limit_is_said_and_harms_no_checkpoint(tmp_path: Path) -> None:
    train(tmp_path, steps=5)
    before = {f.name: f.read_bytes() for f in (tmp_path / "final").iterdir()}

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))

    command = [*words(tmp_path, steps=9), "--resume", str(tmp_path / "final")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240, preexec_fn=limit)
    assert done.returncode == 1
    assert "could not be written: files may not grow that large here" in done.stderr
    assert "Traceback" not in done.stderr
    assert "should not happen" not in done.stderr
    assert leftovers(tmp_path) == []
    assert {f.name: f.read_bytes() for f in (tmp_path / "final").iterdir()} == before
    state = read_state(tmp_path)
    assert state.life == "failed"
    assert "files may not grow" in state.error


def test_a_disk_without_room_is_said_before_a_byte_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda _: SimpleNamespace(free=10_000_000 // 8))
    with pytest.raises(UserError, match=r"the checkpoint final needs \d+ MB and only 1 MB are free") as caught:
        train(tmp_path, steps=3)
    assert caught.value.exit_code == 1
    assert leftovers(tmp_path) == []
    assert not (tmp_path / "final").exists()


def test_rows_wait_while_the_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    append = RunDirectory.append
    tries: list[int] = []

    def refuse(self: RunDirectory, name: str, row: Any) -> None:
        if row.get("step") == 2 and len(tries) < 3:
            tries.append(1)
            raise OSError(28, "No space left on device")
        append(self, name, row)

    monkeypatch.setattr(RunDirectory, "append", refuse)
    rows = train(tmp_path, steps=6)
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]


def test_one_trainer_per_directory(tmp_path: Path) -> None:
    process = subprocess.Popen(words(tmp_path, steps=1_000_000, checkpoint_interval=0), stdout=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 120
        while not (tmp_path / "metrics.jsonl").exists() and time.monotonic() < end:
            time.sleep(0.05)
        second = run(words(tmp_path, steps=5))
        assert second.returncode == 2
        assert f"already (process {process.pid})" in second.stderr
        assert lock_refusal(tmp_path) is not None
        assert read_state(tmp_path).life == "running"
    finally:
        process.kill()
        process.wait()
    assert lock_refusal(tmp_path) is None
    train(tmp_path / "other", steps=1)
    assert lock_refusal(tmp_path / "other") is None


@pytest.mark.parametrize(
    ("variables", "words_"),
    [
        ({"WORLD_SIZE": "2", "RANK": "0"}, "process 0 cannot reach the others of the training"),
        ({"WORLD_SIZE": "2"}, "start several processes with torchrun, or unset WORLD_SIZE"),
    ],
)
def test_one_of_several_processes_alone_is_refused(tmp_path: Path, variables: dict[str, str], words_: str) -> None:
    done = run(words(tmp_path / "run", steps=5), **variables)
    assert done.returncode == 2
    assert words_ in done.stderr
    assert not (tmp_path / "run").exists()


def test_bare_words_in_control(tmp_path: Path) -> None:
    made = Trainer(parse_config(settings(steps=1_000_000, checkpoint_interval=0, log_interval=1)), tmp_path)

    def give() -> None:
        while not (tmp_path / "metrics.jsonl").exists():
            time.sleep(0.01)
        for word in ("halt\n", "checkpoint\n", "stop\n"):
            (tmp_path / "control").write_text(word)
            end = time.monotonic() + 120
            done = (tmp_path / "control").stat().st_mtime_ns
            while read_state(tmp_path).control_done != done and time.monotonic() < end:
                time.sleep(0.01)

    thread = threading.Thread(target=give)
    thread.start()
    made.run()
    thread.join()
    assert read_state(tmp_path).life == "stopped"
    assert "halt, which is neither checkpoint nor stop" in (tmp_path / "log.txt").read_text()
    assert len(RunDirectory(tmp_path).checkpoints()) == 2


def test_a_checkpoint_asked_for_is_not_rotated_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Trainer(parse_config(settings(steps=12, checkpoint_interval=2, keep_last=1)), tmp_path)
    obey = made._obey_control

    def ask() -> None:
        if made.step == 3:
            made.run_directory.send("checkpoint")
        obey()

    monkeypatch.setattr(made, "_obey_control", ask)
    made.run()
    assert [c.name for c in RunDirectory(tmp_path).checkpoints()] == ["step_3", "step_10", "final"]
    assert read_state(tmp_path).control_result == "step_3"


def test_progress_is_as_fresh_as_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    append, late = RunDirectory.append, []

    def compare(self: RunDirectory, name: str, row: Any) -> None:
        if row["step"] > 1:
            late.append(row["step"] - read_state(tmp_path).step)
        append(self, name, row)

    monkeypatch.setattr(RunDirectory, "append", compare)
    train(tmp_path, steps=5)
    assert late[:3] == [1, 1, 1]  # the last one is evaluated first, which says its step


@pytest.mark.parametrize("rate", [1e3, 1e30])
def test_a_rate_that_diverges_fails(tmp_path: Path, rate: float) -> None:
    with pytest.raises(UserError, match="the training diverged") as caught:
        train(tmp_path, steps=80, muon_lr=rate, embed_lr=rate, scalar_lr=rate, warmup_steps=0, log_interval=10)
    assert caught.value.exit_code == 1
    state = read_state(tmp_path)
    assert state.life == "failed"
    assert "diverged" in state.error
    assert not (tmp_path / "final").exists()


@pytest.mark.parametrize("rate", ["inf", "nan", "-inf"])
def test_a_rate_that_is_no_number_is_refused(tmp_path: Path, rate: str) -> None:
    done = run([*words(tmp_path, steps=5), "--muon-lr", rate])
    assert done.returncode == 2
    assert "muon_lr" in done.stderr


@pytest.mark.parametrize("way", ["older", "foreign"])
def test_going_back_is_refused_or_sets_aside(tmp_path: Path, way: str) -> None:
    train(tmp_path / "run", steps=12)
    source = tmp_path / "run"
    if way == "foreign":
        source = tmp_path / "other"
        shutil.copytree(tmp_path / "run", source)
    final = (tmp_path / "run" / "final" / "model.safetensors").read_bytes()
    with pytest.raises(UserError, match="or pass --force to set them aside"):
        train(tmp_path / "run", resume=source / "step_5", steps=12, seed=3)
    assert (tmp_path / "run" / "final" / "model.safetensors").read_bytes() == final
    rows = train(tmp_path / "run", resume=source / "step_5", steps=12, seed=3, log_interval=4, force=True)
    aside = list((tmp_path / "run" / "superseded").glob("*/final/model.safetensors"))
    assert [file.read_bytes() for file in aside] == [final]
    assert (tmp_path / "run" / "final" / "model.safetensors").read_bytes() != final
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 8, 12]


def test_what_a_resume_changes_is_noted_and_tokens_are_kept(tmp_path: Path) -> None:
    train(tmp_path, steps=10)
    rows = train(tmp_path, resume=tmp_path / "final", steps=14, batch_size=8, muon_lr=0.01)
    log = (tmp_path / "log.txt").read_text()
    for note in ("batch_size was 4 and is 8", "muon_lr was 0.02 and is 0.01", "steps was 10 and is 14"):
        assert f"note: {note}" in log
    assert rows[9]["tokens"] == 10 * 4 * 32
    assert rows[-1]["tokens"] == 10 * 4 * 32 + 4 * 8 * 32
    state = json.loads((tmp_path / "final" / "state.json").read_text())
    assert state["tokens"] == rows[-1]["tokens"]
    assert state["sequences"] == 10 * 4 + 4 * 8


def test_an_end_before_the_checkpoint_is_refused(tmp_path: Path) -> None:
    train(tmp_path, steps=10)
    with pytest.raises(UserError, match="is at step 10 already, and the length asked for ends at 7"):
        train(tmp_path, resume=tmp_path / "final", steps=7)


def test_data_paths_are_found_from_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_data(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    train(tmp_path / "run", **on_data(Path("data"), steps=5))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setenv("MALLOC_TOP_PAD_", "0")  # the command would start itself again to set it
    done = CliRunner().invoke(app, ["train", "--resume", "../run", "--steps", "8"])
    assert done.exit_code == 0, done.output
    assert RunDirectory(tmp_path / "run").metrics()[-1]["step"] == 8


def test_a_crash_while_a_checkpoint_is_replaced_loses_none(tmp_path: Path) -> None:
    train(tmp_path, steps=5)
    (tmp_path / "final").rename(tmp_path / ".final.old")
    (tmp_path / ".step_9.partial").mkdir()
    checkpoint.clean_up(tmp_path)
    assert leftovers(tmp_path) == []
    assert [c.name for c in RunDirectory(tmp_path).checkpoints()] == ["step_5", "final"] or (
        tmp_path / "final" / "state.json"
    ).exists()


def test_minutes_count_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A first step that takes long, as with compiling, and an evaluation that would take for ever."""
    optimise, evaluate = Trainer._optimise, trainer.evaluate_both
    batches: list[int] = []

    def slow(self: Trainer, multiplier: float) -> tuple[float, float]:
        if self.step == 0:
            time.sleep(2.5)
        return optimise(self, multiplier)

    def counted(*args: Any, tick: Any, **rest: Any) -> Any:
        def slow_tick() -> None:
            batches.append(1)
            time.sleep(0.2)
            tick()

        return evaluate(*args, tick=slow_tick, **rest)

    monkeypatch.setattr(Trainer, "_optimise", slow)
    monkeypatch.setattr(trainer, "evaluate_both", counted)
    data = write_data(tmp_path / "data")
    rows = train(tmp_path / "run", **on_data(data, minutes=2.4 / 60, batch_size=1))
    assert len(rows) == 1  # the first step has used up the time
    assert len(batches) <= 2
    assert rows[-1]["val_tokens"] == 32
    assert read_state(tmp_path / "run").life == "finished"
