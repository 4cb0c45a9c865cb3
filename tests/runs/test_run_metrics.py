"""Following files that grow, in whatever pieces they grow."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from run_support import RECORDED

from nanochat_tui.runs.directory import RunDirectory
from nanochat_tui.runs.metrics import JsonlTail, LineTail, LogTail, MetricsTail, Series

ROWS = st.lists(
    st.fixed_dictionaries(
        {"step": st.integers(0, 50), "loss": st.floats(0, 20)}, optional={"val_loss": st.floats(0, 20)}
    ),
    max_size=30,
)


@given(st.binary(max_size=400), st.lists(st.integers(0, 400), max_size=8))
def test_lines_do_not_depend_on_how_a_file_grew(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, cuts: list[int]
) -> None:
    path = tmp_path_factory.mktemp("tail") / "file"
    tail = LineTail(path)
    lines: list[bytes] = []
    last = 0
    for cut in [*sorted(min(c, len(data)) for c in cuts), len(data)]:
        with path.open("ab") as file:
            file.write(data[last:cut])
        last = cut
        lines += tail.poll()
    assert lines == data.split(b"\n")[:-1]
    assert tail.partial == data.split(b"\n")[-1]


@given(ROWS, st.data())
def test_partial_last_lines_are_read_once_when_whole(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, float]], data: st.DataObject
) -> None:
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    cut = data.draw(st.integers(0, len(text)))
    path = tmp_path_factory.mktemp("run") / "metrics.jsonl"
    path.write_bytes(text[:cut])
    tail = MetricsTail(path)
    tail.poll()
    with path.open("ab") as file:
        file.write(text[cut:])
    tail.poll()
    whole = MetricsTail(path)
    whole.poll()
    assert tail.series.steps == whole.series.steps
    assert list(tail.series.columns.get("loss", [])) == list(whole.series.columns.get("loss", []))


@given(ROWS)
def test_series_agrees_with_the_directory_reader(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, float]]
) -> None:
    """The two readers are independent: one keeps rows in a dictionary, the other columns that are cut."""
    path = tmp_path_factory.mktemp("run")
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    expected = RunDirectory(path).metrics()
    tail = MetricsTail(path / "metrics.jsonl")
    tail.poll()
    assert list(tail.series.steps) == [row["step"] for row in expected]
    x, y = tail.series.curve("val_loss")
    assert [(a, b) for a, b in zip(x, y, strict=True)] == [
        (r["step"], r["val_loss"]) for r in expected if "val_loss" in r
    ]


@given(st.lists(st.binary(max_size=40).filter(lambda b: b"\n" not in b), max_size=10))
def test_damaged_lines_are_passed_over(tmp_path_factory: pytest.TempPathFactory, junk: list[bytes]) -> None:
    path = tmp_path_factory.mktemp("run") / "rows.jsonl"
    good = [b'{"step": %d, "loss": 1.5}' % i for i in range(len(junk))]
    path.write_bytes(b"".join(a + b"\n" + b + b"\n" for a, b in zip(junk, good, strict=True)))
    rows = JsonlTail(path).poll()
    assert [row for row in rows if row.get("loss") == 1.5] == [json.loads(line) for line in good]


def test_a_long_file_is_read_in_pieces(tmp_path: Path) -> None:
    path = tmp_path / "long"
    path.write_bytes(b"".join(b"line %d\n" % i for i in range(1000)))
    tail = LineTail(path)
    lines = []
    while piece := tail.poll(limit=100):
        lines += piece
    assert lines == [b"line %d" % i for i in range(1000)]


def test_a_replaced_or_shortened_file_is_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 3.0}\n{"step": 2, "loss": 2.0}\n')
    tail = MetricsTail(path)
    assert tail.poll()
    path.write_text('{"step": 1, "loss": 9.0}\n')
    assert tail.poll()
    assert list(tail.series.columns["loss"]) == [9.0]
    other = tmp_path / "other"
    other.write_text('{"step": 1, "loss": 8.0}\n{"step": 2, "loss": 7.0}\n{"step": 3, "loss": 6.0}\n')
    other.replace(path)
    assert tail.poll()
    assert list(tail.series.columns["loss"]) == [8.0, 7.0, 6.0]
    path.unlink()
    assert not tail.poll()


def test_a_resume_cuts_what_came_after_mhc_included() -> None:
    series = Series()
    for step in (10, 20, 30):
        series.add({"step": step, "loss": float(step), "mhc": [{"alpha": step / 100, "p": [0.1, 0.9]}]})
    series.add({"step": 20, "loss": 99.0})
    assert list(series.steps) == [10, 20]
    assert series.curve("loss")[1].tolist() == [10.0, 99.0]
    assert series.mhc_curve("alpha", 0)[1].tolist() == [0.1]
    assert series.mhc_curve("p", 0, 1)[1].tolist() == [0.9]
    assert not series.add({"loss": 1.0})
    assert not series.add({"step": True})
    assert not series.add({"step": -1})


def test_numbers_that_broke_are_kept_as_infinite() -> None:
    series = Series()
    series.add(json.loads('{"step": 1, "loss": NaN, "lr": 1e999, "big": 1' + "0" * 400 + "}"))
    assert series.curve("loss")[1].tolist() == [math.inf]
    assert series.last("lr") == math.inf
    assert series.last("big") == math.inf
    assert series.last("absent") is None


def test_the_recorded_run_is_read_whole() -> None:
    tail = MetricsTail(RECORDED / "metrics.jsonl")
    assert tail.poll()
    rows = [json.loads(line) for line in (RECORDED / "metrics.jsonl").read_text().splitlines()]
    steps, losses = tail.series.curve("loss")
    assert steps.tolist() == [r["step"] for r in rows]
    np.testing.assert_array_equal(losses, [r["loss"] for r in rows])
    assert len(tail.series.mhc) == sum("mhc" in r for r in rows) >= 5
    x, _ = tail.series.curve("val_loss", "tokens")
    assert x.tolist() == [r["tokens"] for r in rows if "val_loss" in r]


def test_log_tail_keeps_the_end_and_the_last_state_of_a_progress_bar(tmp_path: Path) -> None:
    path = tmp_path / "log.txt"
    path.write_bytes(b"".join(b"%06d %s\n" % (i, b"x" * 300) for i in range(2000)))
    tail = LogTail(path, keep=20)
    assert tail.poll()
    assert [line[:6] for line in tail.lines][-2:] == ["001998", "001999"]
    assert len(tail.lines) <= 20
    with path.open("ab") as file:
        file.write(b"10%\r50%\r100%\r\nhalf a li")
    assert tail.poll()
    assert tail.lines[-1] == "100%"
    assert not tail.poll()
