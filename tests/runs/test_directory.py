import json
import os
import time
from pathlib import Path

import psutil
import pytest

from nanochat_tui.errors import UserError
from nanochat_tui.runs.config import parse_config
from nanochat_tui.runs.directory import RunDirectory
from nanochat_tui.runs.metrics import MetricsTail
from nanochat_tui.runs.state import read_state
from nanochat_tui.runs.watch import RunWatch


def test_partial_last_line_is_not_an_error(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    assert [r["step"] for r in RunDirectory(tmp_path).metrics()] == [1]


def test_append_after_a_partial_line_loses_nothing_whole(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"st')
    run.append("metrics.jsonl", {"step": 2})
    run.append("metrics.jsonl", {"step": 3})
    assert [r["step"] for r in run.metrics()] == [1, 2, 3]


def test_rows_that_a_resume_went_back_over_are_replaced(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    for step, loss in ((10, 3.0), (20, 2.0), (30, 1.5), (20, 2.1), (30, 1.6)):
        run.append("metrics.jsonl", {"step": step, "loss": loss})
    assert [(r["step"], r["loss"]) for r in run.metrics()] == [(10, 3.0), (20, 2.1), (30, 1.6)]


def test_checkpoints_in_numeric_order_and_only_complete_ones(tmp_path: Path) -> None:
    for name in ("step_500", "step_1000", "final", "step_20"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "state.json").write_text("{}")
    (tmp_path / ".step_2000.partial").mkdir()
    (tmp_path / "step_3000").mkdir()
    names = [c.name for c in RunDirectory(tmp_path).checkpoints()]
    assert names == ["step_20", "step_500", "step_1000", "final"]


def test_alive_needs_pid_and_start_time(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.write_status(state="running", step=1)
    assert read_state(tmp_path).alive
    status = json.loads((tmp_path / "status.json").read_text())
    status["process_started"] -= 1000
    (tmp_path / "status.json").write_text(json.dumps(status))
    assert not read_state(tmp_path).alive
    run.write_status(state="finished", step=1)
    assert not read_state(tmp_path).alive
    assert run.status()["pid"] == os.getpid()
    assert run.status()["process_started"] == pytest.approx(psutil.Process().create_time())


def test_another_hosts_run_is_judged_by_its_heartbeat(tmp_path: Path) -> None:
    status = {"state": "running", "host": "elsewhere", "pid": 1, "heartbeat": time.time()}
    (tmp_path / "status.json").write_text(json.dumps(status))
    assert read_state(tmp_path).alive
    (tmp_path / "status.json").write_text(json.dumps({**status, "heartbeat": time.time() - 1000}))
    assert not read_state(tmp_path).alive


def test_control_is_answered_once(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    assert run.pending_control(None) is None
    request = run.send("stop")
    pending = run.pending_control(None)
    assert pending is not None
    assert (pending.request, pending.command) == (request, "stop")
    assert run.pending_control(request) is None
    (tmp_path / "control").write_text('{"id": 5, "command": "rm -rf"}')
    pending = run.pending_control(None)
    assert pending is not None
    assert (pending.request, pending.command) == (5, None)


@pytest.mark.parametrize(
    ("text", "command"),
    [
        ("stop\n", "stop"),
        ("checkpoint", "checkpoint"),
        (" Stop \r\n", "stop"),
        ('"stop"', "stop"),
        ('{"command": "checkpoint"}', "checkpoint"),
        ("halt", None),
        ("[1, 2]", None),
        ("17", None),
        ('{"id": true, "command": "stop"}', "stop"),
        ("\ufffd\x00", None),
        ("[" * 4000, None),
    ],
)
def test_control_is_a_bare_word_or_an_object(tmp_path: Path, text: str, command: str | None) -> None:
    run = RunDirectory(tmp_path)
    (tmp_path / "control").write_text(text)
    pending = run.pending_control(None)
    assert pending is not None
    assert pending.command == command
    assert run.pending_control(pending.request) is None
    os.utime(tmp_path / "control", ns=(1, pending.request + 1000))  # the same word, written again
    again = run.pending_control(pending.request)
    assert again is not None
    assert again.command == command


def test_an_empty_control_file_says_nothing_yet(tmp_path: Path) -> None:
    (tmp_path / "control").write_text("")
    assert RunDirectory(tmp_path).pending_control(None) is None


def test_a_row_the_disk_takes_half_of_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunDirectory(tmp_path)
    run.append("metrics.jsonl", {"step": 1})
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, line: write(descriptor, line[:4]))
    with pytest.raises(OSError, match="No space"):
        run.append("metrics.jsonl", {"step": 2})
    monkeypatch.undo()
    run.append("metrics.jsonl", {"step": 2})
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1}\n{"step": 2}\n'


def test_steps_given_up_by_a_resume_are_gone_for_every_reader(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    for step in range(1, 9):
        run.append("metrics.jsonl", {"step": step, "loss": 9.0 - step})
        run.append("samples.jsonl", {"step": step, "prompt": "p", "text": "old"})
    for name in ("metrics.jsonl", "samples.jsonl"):
        run.append(name, {"resumed_from": 5})
    run.append("metrics.jsonl", {"step": 10, "loss": 1.0})
    run.append("samples.jsonl", {"step": 10, "prompt": "p", "text": "new"})
    tail = MetricsTail(tmp_path / "metrics.jsonl")
    while tail.poll():
        pass
    assert list(tail.series.steps) == [1, 2, 3, 4, 5, 10]
    assert [row["step"] for row in run.metrics()] == [1, 2, 3, 4, 5, 10]
    assert [row["step"] for row in run.samples()] == [1, 2, 3, 4, 5, 10]
    assert [row["step"] for row in RunWatch(tmp_path).look().samples] == [1, 2, 3, 4, 5, 10]


def test_damaged_files_are_named(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    with pytest.raises(UserError, match=r"status\.json"):
        run.status()
    (tmp_path / "status.json").write_text("[")
    with pytest.raises(UserError, match="not valid JSON"):
        run.status()


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"dataset": "synthetic", "bogus": 1}, "bogus"),
        ({"dataset": "synthetic", "batch_size": 0}, "batch_size"),
        ({"dataset": "tokens"}, "data_path"),
        ({"dataset": "synthetic", "seq_len": 512, "short_seq_len": 100}, "short_seq_len"),
    ],
)
def test_configuration_errors_name_the_field(values: dict[str, object], expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        parse_config(values)


def test_a_run_without_a_length_is_one_epoch() -> None:
    assert parse_config({"dataset": "synthetic"}).epochs == 1.0
