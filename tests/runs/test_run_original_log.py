"""The original trainer's log, as its source prints it."""

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from run_support import RECORDED

from nanochat_tui.runs.original_log import OriginalLog, looks_like_original_log, parse_line, read_rows
from nanochat_tui.runs.watch import RunWatch

# put together from the recorded formats: banner by tracing, step lines of three ages, events
LOG = """\
\x1b[2m2026-02-14T21:50:02.123456Z\x1b[0m \x1b[32m INFO\x1b[0m \x1b[2mnanochat_train\x1b[0m: Total params: 17981036
[    50/5000  ] loss=177.8123 lr=0.010000 gnorm=43.12 tok/s=10234 elapsed=20s
[   100/5000  ] loss=31.0421 H=5.12 lr=0.020000 gnorm=14.02 tok/s=10800 elapsed=40s
[   150/5000  ] loss=30.5000 ce=29.1000 H=4.00 lr=0.020000 gnorm=14.02 tok/s=10799 elapsed=59s
  -> checkpoint saved to checkpoints/d20-gpu/step_150 (68.6 MB)
Removing old checkpoint: step_50
--- Epoch 1/5 done (4882 batches, 61s) step=150 ---
[   200/5000  ] loss=NaN lr=0.020000 gnorm=inf tok/s=10799 elapsed=80s
"""


def test_rows() -> None:
    rows = read_rows(LOG.splitlines())
    assert rows[0] == {
        "step": 50,
        "total": 5000,
        "loss": 177.8123,
        "lr": 0.01,
        "grad_norm": 43.12,
        "tok_per_s": 10234.0,
        "seconds": 20.0,
    }
    assert rows[1]["entropy"] == 5.12
    assert rows[2]["cross_entropy"] == 29.1
    assert rows[3] == {"event": "checkpoint", "path": "checkpoints/d20-gpu/step_150"}
    assert rows[4] == {"event": "epoch", "epoch": "1", "epochs": "5"}
    assert rows[5]["loss"] == math.inf == rows[5]["grad_norm"]
    assert len(rows) == 6


@pytest.mark.parametrize("line", ["", "[1/2]", "[ 1/2 ] lr=1", "loss=1.0", "[x/2] loss=1", "[ 5/9 ] loss=", "[" * 99])
def test_other_lines_are_no_rows(line: str) -> None:
    assert parse_line(line) is None


@given(st.text(max_size=200))
def test_no_text_breaks_the_parser(text: str) -> None:
    row = parse_line(text)
    assert row is None or "event" in row or "loss" in row


@given(
    st.integers(0, 10**9),
    st.integers(1, 10**9),
    st.floats(0, 1e4),
    st.floats(0, 1),
    st.floats(0, 1e6),
    st.integers(0, 10**6),
)
def test_what_the_original_prints_is_read_back(
    step: int, total: int, loss: float, lr: float, speed: float, seconds: int
) -> None:
    line = f"[{step:>6}/{total:<6}] loss={loss:.4f} lr={lr:.6f} gnorm=1.00 tok/s={speed:.0f} elapsed={seconds}s"
    row = parse_line(line)
    assert row is not None
    assert (row["step"], row["total"], row["seconds"]) == (step, total, seconds)
    assert row["loss"] == pytest.approx(loss, abs=5e-5)
    assert row["tok_per_s"] == pytest.approx(speed, abs=0.51)


def test_a_log_is_followed_and_watched(tmp_path: Path) -> None:
    path = tmp_path / "train.log"
    path.write_text(LOG)
    assert looks_like_original_log(path)
    log = OriginalLog(path)
    assert log.poll()
    assert list(log.series.steps) == [50, 100, 150, 200]
    assert log.total == 5000
    assert log.checkpoints == [Path("checkpoints/d20-gpu/step_150")]
    with path.open("a") as file:
        file.write("[   250/5000  ] loss=29.0 lr=0.02 gno")
    assert not log.poll()
    with path.open("a") as file:
        file.write("rm=1.00 tok/s=10799 elapsed=90s\nTraining complete! steps=250 elapsed=90s\n")
    assert log.poll()
    assert log.series.last("loss") == 29.0
    assert log.ended == "finished"
    seen = RunWatch(path).look()
    assert (seen.is_log, seen.state.life, seen.state.step, seen.state.total) == (True, "finished", 250, 5000)
    assert "loss is not a number since step 200" in [a.text for a in seen.alarms]


def test_our_own_log_is_the_same_language() -> None:
    log = OriginalLog(RECORDED / "log.txt")
    assert log.poll()
    assert log.ended == "finished"
    assert log.series.steps[-1] == 3528
    assert log.series.last("val_bits_per_byte") == pytest.approx(0.9531)
