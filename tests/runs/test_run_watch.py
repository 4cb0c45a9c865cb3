"""A look at a run directory, whatever lies in it."""

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from run_support import grow, recorded_run, write_checkpoint_mark, write_status

from nanochat_tui.runs.watch import RunWatch
from nanochat_tui.tui.train.overview import figures_line, progress_line, title_line
from nanochat_tui.tui.train.panels import PANELS, make_panels

FILES = ("status.json", "config.json", "metrics.jsonl", "samples.jsonl", "log.txt", "console.txt", "launch.json")
KEYS = st.sampled_from(
    [
        "step",
        "loss",
        "mhc",
        "p",
        "q",
        "alpha",
        "state",
        "pid",
        "host",
        "heartbeat",
        "total",
        "text",
        "config",
        "seconds",
    ]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=5),
    max_leaves=8,
)
CONTENT = st.binary(max_size=60) | st.lists(JSON, max_size=3).map(
    lambda values: "".join(json.dumps(value) + "\n" for value in values).encode()
)


STATUS = st.dictionaries(KEYS, JSON | st.just("running"), max_size=8).map(lambda value: json.dumps(value).encode())


@settings(suppress_health_check=[HealthCheck.too_slow], max_examples=80)
@given(st.dictionaries(st.sampled_from(FILES), CONTENT | STATUS))
def test_nothing_in_a_directory_breaks_a_look(
    tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes]
) -> None:
    path = tmp_path_factory.mktemp("run")
    for name, content in files.items():
        (path / name).write_bytes(content)
    watch = RunWatch(path)
    seen = watch.look()
    for value in ("alpha", "p", "q"):
        make_panels(seen.series, value)
    for line in (title_line, progress_line, figures_line):
        assert line(seen, 80).cell_length <= 80
    assert watch.look().revision == seen.revision


def test_a_look_at_the_recorded_run(tmp_path: Path) -> None:
    run = recorded_run(tmp_path / "run")
    (run / "final").mkdir()
    (run / "final" / "state.json").write_text('{"step": 3528}')
    seen = RunWatch(run).look()
    assert [(c.path.name, c.step) for c in seen.checkpoints] == [
        ("step_3000", 3000),
        ("step_3500", 3500),
        ("final", 3528),
    ]
    # the file's own numbers: evaluations at 3000, 3500 and the end
    assert [c.val_loss for c in seen.checkpoints] == pytest.approx([2.041144, 1.882844, 1.905081], abs=1e-6)
    assert seen.speed == pytest.approx(3150, abs=60)
    assert (seen.eta, seen.mfu, seen.gpus, seen.alarms) == (None, None, [], [])
    assert len(seen.samples) == 8
    assert seen.log[-1].startswith("finished at step 3528")
    panels = make_panels(seen.series)
    assert len(panels["mhc"].curves) == 12
    assert panels["recent"].window is not None


def test_a_run_by_rewards_shows_what_they_are(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    write_status(run)
    figures = {"reward": 0.25, "success": 0.125, "reward_compiles": 0.125, "reward_parses": 0.5, "kl": 0.01}
    for step in (1, 2):
        grow(run, step=step, loss=-0.1, held_out_loss=1.75, completion_length=60.0, entropy=1.1, **figures)
    panels = make_panels(RunWatch(run).look().series)
    assert panels["loss"].title == "policy loss" and not panels["loss"].log
    assert [curve.label for curve in panels["loss"].curves] == ["logged", "train", "held out"]
    assert [curve.label for curve in panels["recent"].curves] == ["reward", "success", "compiles", "parses"]
    assert [curve.label for curve in panels["accuracy"].curves] == ["kl", "entropy"]
    assert list(panels["tok_per_s"].curves[0].y) == [60.0, 60.0]
    assert set(panels) == set(PANELS)


def test_time_left_follows_from_speed(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    write_status(run, host="elsewhere", step=100, total=300)
    grow(run, step=100, tokens=100 * 4096, loss=2.0, tok_per_s=2048.0)
    assert RunWatch(run).look().eta == pytest.approx(200 * 4096 / 2048)
    write_status(run, host="elsewhere", step=100, total=1_000_000_000)  # the trainer does not know yet
    assert RunWatch(run).look().eta is None


def test_samples_and_checkpoints_of_a_resumed_run(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    rows = [{"step": s, "prompt": "a", "text": t} for s, t in ((10, "x"), (20, "y"), (10, "z"))]
    (run / "samples.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    grow(run, step=8, loss=4.0)
    write_checkpoint_mark(run, 10)
    (run / "step_20").mkdir()  # without state.json: not whole
    seen = RunWatch(run).look()
    assert [(s["step"], s["text"]) for s in seen.samples] == [(10, "z")]
    assert [(c.step, c.loss, c.val_loss) for c in seen.checkpoints] == [(10, 4.0, None)]
    assert (seen.state.life, seen.state.step) == ("unknown", 8)
