"""Continuing: longer horizons, steps that are no numbers, divergence, the best checkpoint, data that vanishes."""

import json
import math
import os
import resource
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from trained import losses, on_data, settings, train, words, write_data

from nanochat_tui.errors import UserError
from nanochat_tui.runs.alarms import find_alarms
from nanochat_tui.runs.config import parse_config
from nanochat_tui.runs.directory import RunDirectory
from nanochat_tui.runs.metrics import MetricsTail
from nanochat_tui.runs.state import read_state
from nanochat_tui.train import trainer
from nanochat_tui.train.checkpoint import load_checkpoint
from nanochat_tui.train.divergence import DivergedError
from nanochat_tui.train.recovery import BestCheckpoint, DataGuard, DataLostError, Recovery
from nanochat_tui.train.trainer import Trainer


def checkpoints(run: Path) -> list[str]:
    return [c.name for c in RunDirectory(run).checkpoints()]


class Breaks:
    """Stands before `backward` and makes the loss of given batches something else; counts every call."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, value: float, calls: set[int]) -> None:
        self.value, self.calls, self.number = value, calls, 0
        self.inner = trainer.backward
        monkeypatch.setattr(trainer, "backward", self)

    def __call__(self, model: Any, *rest: Any, **options: Any) -> torch.Tensor:
        self.number += 1
        loss: torch.Tensor = self.inner(model, *rest, **options)
        return loss * 0 + self.value if self.number in self.calls else loss


# a longer horizon


def test_ten_more_epochs_on_a_finished_run(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", 700)
    options = on_data(data, batch_size=2, sample_tokens=0, decay_fraction=0.25, epochs=1.0)
    first = train(tmp_path / "run", **options)
    end = first[-1]["step"]
    weights = load_checkpoint(tmp_path / "run" / "final")[0]
    before = (tmp_path / "run" / "final" / "model.safetensors").read_bytes()
    rows = train(tmp_path / "run", resume=tmp_path / "run" / "final", **options | {"epochs": 11.0})
    assert rows[:end] == first  # nothing of the first part is lost
    assert rows[-1]["tokens"] >= 11 * 700 > rows[-2]["tokens"]
    rates = [row["lr"] for row in rows]
    peak = 0.02
    # down to nearly nothing, up again over the warm-up of 3 steps, stable, and a second decay at the end
    assert rates[end - 1] <= 0.5 * peak
    assert rates[end] < rates[end + 1] < rates[end + 2] == pytest.approx(peak)
    begins = next(i for i in range(end + 2, len(rates)) if rates[i] < peak)
    assert begins == pytest.approx(0.75 * len(rates), abs=2)
    assert all(rate == pytest.approx(peak) for rate in rates[end + 2 : begins])
    assert all(b < a for a, b in zip(rates[begins:], rates[begins + 1 :], strict=False))
    # the first step after the break begins where the first part ended: no jump of the loss
    assert rows[end]["loss"] < first[0]["loss"]
    assert (tmp_path / "run" / "final" / "model.safetensors").read_bytes() != before
    assert set(load_checkpoint(tmp_path / "run" / "final")[0]) == set(weights)
    assert read_state(tmp_path / "run").life == "finished"


def test_more_steps_repeat_bit_for_bit_when_resumed_once_more(tmp_path: Path) -> None:
    for name in ("a", "b"):
        train(tmp_path / name, steps=6)
    whole = losses(train(tmp_path / "a", resume=tmp_path / "a" / "final", steps=20))
    train(tmp_path / "b", resume=tmp_path / "b" / "final", steps=20)
    for late in ("step_15", "final"):
        for file in (tmp_path / "b" / late).iterdir():
            file.unlink()
        (tmp_path / "b" / late).rmdir()
    assert losses(train(tmp_path / "b", resume=tmp_path / "b" / "step_10", steps=20)) == whole


# steps that are no numbers


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_step_that_is_no_number_is_skipped_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    Breaks(monkeypatch, value, {4, 8})
    rows = train(tmp_path, steps=12)
    assert [row["step"] for row in rows] == list(range(1, 13))
    assert [row.get("skipped") for row in rows] == [None] * 3 + [1] * 4 + [2] * 5
    assert ["loss" in row for row in rows] == [number not in (4, 8) for number in range(1, 13)]
    assert all(math.isfinite(row["loss"]) for row in rows if "loss" in row)
    state = json.loads((tmp_path / "final" / "state.json").read_text())
    assert state["recovery"] == {"good": True, "skipped": 2, "rollbacks": 0}
    tail = MetricsTail(tmp_path / "metrics.jsonl")
    tail.poll()
    (alarm,) = [a for a in find_alarms(read_state(tmp_path), tail.series) if "skipped" in a.text]
    assert (alarm.level, alarm.step) == ("warning", 4)
    assert alarm.text.startswith("2 steps skipped")


def test_a_skipped_step_moves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Breaks(monkeypatch, math.nan, {3})
    made = Trainer(parse_config(settings(steps=5, checkpoint_interval=1, head_frequent=100)), tmp_path / "run")
    made.run()
    before, after = (load_checkpoint(tmp_path / "run" / f"step_{n}") for n in (2, 3))
    assert before[0].keys() == after[0].keys()
    muon = [key for key in before[1] if key.startswith("muon.")]
    assert muon and all(torch.equal(before[1][key], after[1][key]) for key in muon)
    blocks = [key for key in before[0] if key.startswith("blk.")]
    assert blocks and all(torch.equal(before[0][key], after[0][key]) for key in blocks)
    assert all(torch.equal(before[1][k], after[1][k]) for k in before[1] if k.startswith("adamw.step."))


def test_too_many_in_a_row_end_the_run_and_leave_the_good_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Breaks(monkeypatch, math.nan, set(range(8, 100)))
    with pytest.raises(DivergedError, match="not a number at step 11 for 4 steps") as caught:
        train(tmp_path, steps=30, skip_steps=3, rollbacks=0)
    assert caught.value.exit_code == 1
    state = read_state(tmp_path)
    assert (state.life, state.step) == ("failed", 11)
    assert "diverged" in state.error
    # step_10 was written in the middle of it, and says so; its weights are those of step 7
    assert json.loads((tmp_path / "step_10" / "state.json").read_text())["recovery"]["good"] is False
    assert Recovery(1).target(RunDirectory(tmp_path)) == tmp_path / "step_5"
    load_checkpoint(tmp_path / "step_5")


def test_the_last_step_must_be_a_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Breaks(monkeypatch, math.nan, {6})
    with pytest.raises(DivergedError, match="at step 6"):
        train(tmp_path, steps=6, rollbacks=0)
    assert checkpoints(tmp_path) == ["step_5"]


# going back


@pytest.mark.parametrize("value", [math.nan, 50.0])
def test_a_divergence_goes_back_to_the_last_good_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    """Steps 13 to 32 are broken: up to 20 losses of 50 are a spike, 4 that are no numbers are too many."""
    broken = Breaks(monkeypatch, value, set(range(13, 33)) if value > 0 else set(range(13, 17)))
    made = Trainer(parse_config(settings(steps=40, skip_steps=3, keep_last=2, warmup_steps=0)), tmp_path)
    reads: list[int] = []
    batch_at = made.loader.batch_at

    def watch(index: int, length: int | None = None) -> Any:
        reads.append(made.loader.origin + index * 4)
        return batch_at(index, length)

    monkeypatch.setattr(made.loader, "batch_at", watch)
    made.run()
    rows = RunDirectory(tmp_path).metrics()
    assert read_state(tmp_path).life == "finished"
    assert [row["step"] for row in rows] == list(range(1, 41))
    assert all(row["loss"] < 6 for row in rows)
    # steps 1 to 10 at the full rate, from 11 on half of it
    assert rows[9]["lr"] == pytest.approx(0.02) and rows[10]["lr"] == pytest.approx(0.01)
    log = (tmp_path / "log.txt").read_text()
    assert "went back to step_10, with 0.5 of the rate" in log
    # no batch is read twice: those of the steps given up are passed over
    assert len(set(reads)) == len(reads) == broken.number
    state = json.loads((tmp_path / "final" / "state.json").read_text())
    assert state["recovery"]["rollbacks"] == 1
    assert state["sequences"] == 4 * broken.number
    # what was written while it diverged is aside, and what is there is of the new part
    if value > 0:
        assert [p.name for p in (tmp_path / "superseded").glob("*/step_*")]
    assert checkpoints(tmp_path)[-1] == "final"


def test_a_run_that_went_back_resumes_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Breaks(monkeypatch, math.nan, {13})
    whole = losses(train(tmp_path / "run", steps=30, skip_steps=0))
    for late in ("step_25", "final"):
        for file in (tmp_path / "run" / late).iterdir():
            file.unlink()
        (tmp_path / "run" / late).rmdir()
    resumed = train(tmp_path / "run", resume=tmp_path / "run" / "step_20", steps=30, skip_steps=0)
    assert losses(resumed) == whole


def test_rollbacks_are_used_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Breaks(monkeypatch, math.nan, set(range(7, 1000)))
    with pytest.raises(DivergedError):
        train(tmp_path, steps=30, skip_steps=1, rollbacks=3)
    log = (tmp_path / "log.txt").read_text()
    assert [f"with {share} of the rate" in log for share in ("0.5", "0.25", "0.125", "0.0625")] == [True] * 3 + [False]
    assert read_state(tmp_path).life == "failed"
    load_checkpoint(tmp_path / "step_5")


def test_a_damaged_or_bad_checkpoint_is_no_target(tmp_path: Path) -> None:
    train(tmp_path, steps=15)
    run = RunDirectory(tmp_path)
    assert Recovery(0).target(run) is None
    assert Recovery(1).target(run) == tmp_path / "final"
    (tmp_path / "final" / "model.safetensors").write_bytes(b"short")
    assert Recovery(1).target(run) == tmp_path / "step_10"


# which checkpoints stay


def test_the_best_checkpoint_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluate = trainer.evaluate_both
    values = {4: 5.0, 8: 3.0, 12: 4.0, 16: 4.5, 20: 3.5, 24: 2.0, 28: 2.5, 30: 9.0}

    def scripted(*args: Any, **options: Any) -> Any:
        found = evaluate(*args, **options)
        return type(found)(
            found.tokens,
            values[made.step],
            *(getattr(found, f) for f in ("accuracy", "accuracy_no_indent", "bits_per_byte")),
        )

    monkeypatch.setattr(trainer, "evaluate_both", scripted)
    options = {"eval_interval": 4, "checkpoint_interval": 5, "keep_last": 1, "keep_best": True}
    made = Trainer(parse_config(settings(steps=22, **options)), tmp_path)
    monkeypatch.setitem(values, 22, 3.4)
    made.run()
    # step 8 is no multiple of 5: it was saved because it was the best
    assert checkpoints(tmp_path) == ["step_8", "step_20", "final"]
    best = BestCheckpoint()
    best.load(RunDirectory(tmp_path))
    assert (best.step, best.loss) == (8, 3.0)
    made = Trainer(parse_config(settings(steps=30, **options)), tmp_path, resume=tmp_path / "final")
    made.run()
    assert checkpoints(tmp_path) == ["step_24", "step_25", "final"]


def test_the_best_checkpoint_stays_where_it_was_the_end_of_a_shorter_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = iter([5.0, 2.0, 4.0, 3.0, 3.5])  # steps 4, 6, then 8, 12 and 14
    evaluate = trainer.evaluate_both

    def scripted(*args: Any, **options: Any) -> Any:
        return replace(evaluate(*args, **options), loss=next(looked))

    monkeypatch.setattr(trainer, "evaluate_both", scripted)
    options = {"eval_interval": 4, "checkpoint_interval": 5, "keep_last": 1, "keep_best": True}
    train(tmp_path, steps=6, **options)
    best = load_checkpoint(tmp_path / "final")[0]
    train(tmp_path, resume=tmp_path / "final", steps=14, **options)
    assert checkpoints(tmp_path) == ["step_6", "step_10", "final"]
    kept, _, state = load_checkpoint(tmp_path / "step_6")
    assert state["step"] == 6 and all(torch.equal(kept[name], best[name]) for name in best)
    assert load_checkpoint(tmp_path / "final")[2]["step"] == 14


# what ends a run


@pytest.mark.parametrize("how", ["gone", "cut"])
def test_a_data_file_that_vanishes_is_named_and_the_work_is_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    data = write_data(tmp_path / "data", 40_000)
    made = Trainer(parse_config(settings(**on_data(data, steps=100))), tmp_path / "run")
    obey, kept = made._obey_control, (data / "train.bin").read_bytes()

    def harm() -> None:
        obey()
        if made.step == 7:
            if how == "gone":
                (data / "train.bin").unlink()
            else:
                os.truncate(data / "train.bin", 1000)

    monkeypatch.setattr(made, "_obey_control", harm)
    with pytest.raises(DataLostError, match="is gone" if how == "gone" else "was cut from 80,000 to 1,000 bytes"):
        made.run()
    state = read_state(tmp_path / "run")
    assert state.life == "failed"
    assert 7 <= state.step <= 11  # up to four batches had been made before
    assert str(data / "train.bin") in state.error and "put it back, then resume" in state.error
    assert checkpoints(tmp_path / "run")[-1] == f"step_{state.step}"
    (data / "train.bin").write_bytes(kept)
    rows = train(tmp_path / "run", resume=tmp_path / "run" / f"step_{state.step}", **on_data(data, steps=13))
    assert rows[-1]["step"] == 13


def test_a_guard_without_files_and_one_that_grew(tmp_path: Path) -> None:
    DataGuard([]).check()
    (tmp_path / "x").write_bytes(bytes(10))
    guard = DataGuard([tmp_path / "x"])
    (tmp_path / "x").write_bytes(bytes(11))
    guard.check()


def test_too_little_memory_is_said_and_the_checkpoint_is_whole(tmp_path: Path) -> None:
    train(tmp_path, steps=5)

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))

    command = [*words(tmp_path, steps=9, batch_size=100_000), "--resume", str(tmp_path / "final")]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
        preexec_fn=limit,
        env={**os.environ, "MALLOC_TOP_PAD_": "0"},
    )
    assert done.returncode == 1, done.stderr
    assert done.stderr.strip().splitlines()[-1].endswith("there is not enough memory; lower --batch-size or --seq-len")
    assert "Traceback" not in done.stderr
    state = read_state(tmp_path)
    assert state.life == "failed"
    assert "not enough memory" in state.error
    load_checkpoint(tmp_path / "final")
    with pytest.raises(UserError):
        load_checkpoint(tmp_path / "absent")
