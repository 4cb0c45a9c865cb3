"""What the form, the estimate and the data check read from configuration and files."""

import hashlib
import json
import socket
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field
from run_support import recorded_run

from nanochat_tui.errors import UserError
from nanochat_tui.runs import schema
from nanochat_tui.runs.compare import RunFigures, at_same_point, differing_settings, read_settings, smooth, summary
from nanochat_tui.runs.config import FIELD_GROUPS, TrainConfig, parse_config
from nanochat_tui.runs.dataset_check import check_dataset
from nanochat_tui.runs.estimate import estimate, flops_per_token, measured_speeds, planned_steps, utilisation
from nanochat_tui.runs.hardware import GpuMonitor, peak_flops
from nanochat_tui.runs.metrics import MetricsTail, Series
from nanochat_tui.runs.presets import PRESETS

SYNTHETIC = {"config": "tiny", "dataset": "synthetic"}


def test_every_field_of_the_schema_is_in_the_form() -> None:
    fields = schema.form_fields()
    assert [field.name for field in fields] == list(TrainConfig.model_fields)
    assert set(FIELD_GROUPS) <= set(TrainConfig.model_fields)
    assert {field.group for field in fields} == set(FIELD_GROUPS.values())
    kinds = {field.name: field.kind for field in fields}
    assert (kinds["config"], kinds["compile"], kinds["data_path"]) == ("choice", "switch", "path")
    assert (kinds["steps"], kinds["muon_lr"], kinds["sample_prompt"]) == ("whole", "number", "text")
    by_name = {field.name: field for field in fields}
    assert by_name["n_streams"].choices == ("1", "2", "4")
    assert by_name["muon_momentum"].bounds == "≥ 0, < 1"


def test_a_field_added_later_appears_by_itself() -> None:
    class Wider(TrainConfig):
        mtp_heads: int = Field(0, ge=0, description="Heads that predict further tokens.")
        method: str = Field("plain", json_schema_extra={"enum": ["plain", "collider"]})

    last = schema.form_fields(Wider)[-2:]
    assert [(f.name, f.kind, f.default, f.bounds) for f in last] == [
        ("mtp_heads", "whole", "0", "≥ 0"),
        ("method", "choice", "plain", ""),
    ]
    assert last[1].choices == ("plain", "collider")


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_valid_and_survive_the_form(name: str) -> None:
    values = dict(PRESETS[name].values)
    if values.get("dataset") != "synthetic":
        values["data_path"] = Path("data")
    checked = schema.check(schema.texts_of(values))
    assert checked.problems == {}
    assert checked.config == parse_config(values)


@pytest.mark.parametrize(
    ("field", "text", "problem"),
    [
        ("batch_size", "0", "greater than or equal to 1"),
        ("batch_size", "", "must not be empty"),
        ("batch_size", "eight", "needs a whole number"),
        ("muon_lr", "-1", "greater than 0"),
        ("seq_len", "100000", "longer than the model's context"),
        ("short_seq_len", "7", "does not divide"),
        ("device", "gpu", "match"),
        ("data_path", "", "data_path is needed"),
    ],
)
def test_problems_stand_beside_their_field(field: str, text: str, problem: str) -> None:
    values = schema.texts_of({"config": "tiny", "data_path": Path("data")})
    assert schema.check(values).problems == {}
    checked = schema.check({**values, field: text})
    assert checked.config is None
    assert list(checked.problems) == [field]
    assert problem in checked.problems[field]


@given(st.text(max_size=30))
def test_one_line_holds_any_text(text: str) -> None:
    prompt = next(field for field in schema.form_fields() if field.name == "sample_prompt")
    shown = schema.to_text(text)
    assert "\n" not in shown
    assert schema.from_text(prompt, shown) == text


def test_settings_come_from_files_and_runs(tmp_path: Path) -> None:
    run = recorded_run(tmp_path / "run")
    texts = schema.load_preset(run)
    assert (texts["config"], texts["short_seq_len"], texts["muon_lr"]) == ("d20", "256", "0.02")
    file = tmp_path / "train.json"
    file.write_text(json.dumps({"batch_size": 3}))
    assert schema.load_preset(file)["batch_size"] == "3"
    file.write_text(json.dumps({"batch_sise": 3}))
    with pytest.raises(UserError, match="batch_sise"):
        schema.load_preset(file)


# what it will cost


def test_arithmetic_and_parameters_of_d20() -> None:
    config = parse_config({"config": "d20", "data_path": "x", "batch_size": 8, "head_frequent": 0})
    outcome = estimate(config, train_tokens=1_000_000)
    assert outcome.parameters == 17_981_036
    # by hand: 6 x (ternary + head + attention's own products over 512 tokens in 6 layers)
    assert flops_per_token(config) == 6 * (5_111_808 + 50_257 * 256 + 6 * 256 * 512)
    assert outcome.total_steps == -(-1_000_000 // 4096)
    assert outcome.tokens_per_second is None or outcome.tokens_per_second > 0


def test_memory_agrees_with_a_measured_run() -> None:
    """d20 with 8 x 512 tokens on a CPU, softmax estimated: 2.46 GB resident (the system's figure)."""
    config = parse_config({"config": "d20", "data_path": "x", "batch_size": 8, "head_frequent": 6144, "device": "cpu"})
    assert estimate(config).memory_bytes == pytest.approx(2.46e9, rel=0.15)
    # most of a tiny model's memory is the logits of its vocabulary, and their gradient (measured: 1.32 GB)
    tiny = parse_config({"config": "tiny", "dataset": "synthetic", "steps": 3, "batch_size": 8})
    assert estimate(tiny).memory_bytes == pytest.approx(1.32e9, rel=0.1)
    assert estimate(config).checkpoint_bytes == pytest.approx(71_930_160 + 123_412_840, rel=0.01)  # file sizes


def test_time_follows_from_a_measured_run(tmp_path: Path) -> None:
    run = recorded_run(tmp_path / "run")
    (measured,) = measured_speeds([run, tmp_path / "absent"])
    assert (measured.run, measured.host) == ("run", socket.gethostname())
    settings = {"config": "d20", "data_path": "x", "batch_size": 8, "head_frequent": 6144, "device": "cpu"}
    config = parse_config(settings | {"steps": 1000})
    same = estimate(config, measured=[measured])
    assert same.tokens_per_second == pytest.approx(measured.tokens_per_second)
    assert same.seconds == pytest.approx(1000 * 4096 / measured.tokens_per_second)
    exact = estimate(config.model_copy(update={"head_frequent": 0}), measured=[measured])
    assert same.seconds is not None and exact.seconds is not None
    assert exact.seconds > 1.5 * same.seconds
    assert estimate(config, measured=[]).tokens_per_second is None or GpuMonitor().available
    minutes = parse_config(settings | {"minutes": 10})
    assert planned_steps(minutes, None, 4096.0) == 600
    assert planned_steps(minutes, None, None) is None


def test_utilisation_only_where_the_peak_is_known() -> None:
    config = parse_config({"config": "d20", "data_path": "x"})
    gpu = {"device_name": "NVIDIA H100 80GB HBM3", "dtype": "bfloat16"}
    assert utilisation(config, gpu, 1e6) == pytest.approx(1e6 * flops_per_token(config) / 989e12)
    assert utilisation(config, {"device_name": "a processor", "dtype": "float32"}, 1e6) is None
    assert peak_flops("NVIDIA GeForce RTX 4090", "bfloat16") == 165.2e12
    assert peak_flops("NVIDIA L4", "bfloat16") == 121e12
    assert peak_flops("NVIDIA L40S", "bfloat16") == 362e12
    assert peak_flops("NVIDIA H100 80GB HBM3", "float32") is None


# its data


def dataset(folder: Path, tokenizer: bytes = b"{}", **changes: object) -> Path:
    folder.mkdir()
    np.arange(500, dtype="<u2").tofile(folder / "train.bin")
    np.arange(50, dtype="<u2").tofile(folder / "val.bin")
    info = {
        "dtype": "u16",
        "vocab_size": 600,
        "tokenizer_sha256": hashlib.sha256(tokenizer).hexdigest(),
        "transform": {"indentation": 4},
        "splits": {"train": {"tokens": 500}, "val": {"tokens": 50, "bytes": 99}},
    }
    (folder / "dataset.json").write_text(json.dumps({**info, **changes}))
    return folder


def check(folder: Path, **changes: object) -> list[str]:
    tokenizer = folder.parent / "tokenizer.json"
    tokenizer.write_bytes(b"{}")
    config = parse_config({"config": "tiny", "seq_len": 64, "data_path": folder, **changes})
    return check_dataset(config, tokenizer).problems


def test_data_that_fits(tmp_path: Path) -> None:
    folder = dataset(tmp_path / "data")
    assert check(folder) == []
    report = check_dataset(parse_config({"config": "tiny", "data_path": folder, "seq_len": 64}))
    assert (report.train_tokens, report.val_tokens) == (500, 50)
    assert check_dataset(parse_config(SYNTHETIC)).ok


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"dtype": "u8"}, "must be u16 or u32"),
        ({"dtype": "u32"}, "1,000 bytes where dataset.json promises 2,000"),
        ({"splits": {}}, "does not say how many tokens"),
        ({"splits": {"train": {"tokens": 500}, "val": {"tokens": 60}}}, "val.bin has 100 bytes where"),
    ],
)
def test_data_that_does_not(tmp_path: Path, changes: dict[str, object], problem: str) -> None:
    problems = check(dataset(tmp_path / "data", **changes))
    assert any(problem in found for found in problems), problems


def test_a_vocabulary_or_tokenizer_that_is_not_the_data_s(tmp_path: Path) -> None:
    folder = dataset(tmp_path / "data")
    assert "600 token ids but vocab_size says 500" in check(folder, vocab_size=500)[0]
    assert "600 token ids but vocab_size says 700" in check(folder, vocab_size=700)[0]
    other = tmp_path / "other.json"
    other.write_text("{ }")
    assert "other.json is not the tokenizer the data was made with" in check(folder, tokenizer=other)[0]
    report = check_dataset(parse_config({"config": "tiny", "data_path": folder, "seq_len": 64}))
    assert report.ok
    assert "the vocabulary follows the data: 600 ids" in report.notes
    assert any("no samples are written" in note for note in report.notes)


def test_bare_files_and_absent_ones(tmp_path: Path) -> None:
    bare = tmp_path / "x.bin"
    bare.write_bytes(bytes(2 * 301))
    assert "no whole number of u32 tokens" in check(bare)[0]
    assert check(bare, token_dtype="u16") == []
    assert "no validation file" in check(bare, token_dtype="u16", val_path=tmp_path / "v.bin")[0]
    assert "there is no data" in check(tmp_path / "absent")[0]
    bare.write_bytes(bytes(2 * 60))
    assert "60 tokens are fewer than one sequence of 64" in check(bare, token_dtype="u16")[0]
    folder = dataset(tmp_path / "data")
    (folder / "dataset.json").write_text("[")
    assert "not valid JSON" in check(folder)[0]


# comparison


def figures(name: str, losses: list[float], **config: object) -> RunFigures:
    series = Series()
    for i, loss in enumerate(losses):
        series.add({"step": i + 1, "loss": loss, "tokens": 100 * (i + 1), "tok_per_s": 10.0, "val_loss": loss + 1})
    return RunFigures(name, series, dict(config))


def test_comparison_is_made_where_both_have_been() -> None:
    short, long = figures("short", [4.0] * 10, lr=1), figures("long", [5.0] * 10 + [1.0] * 100, lr=2, seed=0)
    same = at_same_point([short, long])
    assert same == pytest.approx({"short": 4.0, "long": 5.0})
    late = Series()
    late.add({"step": 50, "loss": 1.0})
    assert at_same_point([short, RunFigures("late", late, {})]) == pytest.approx({"short": 4.0})
    assert at_same_point([]) == {}
    assert differing_settings([short, long]) == {"lr": [1, 2], "seed": [None, 0]}
    row = summary([long])[0]
    assert (row["step"], row["val_loss"], row["val_step"], row["tok_per_s"]) == (110, 2.0, 11, 10.0)


def test_smoothing_is_unbiased_from_the_start() -> None:
    np.testing.assert_allclose(smooth(np.full(5, 7.0)), 7.0)
    values = smooth(np.array([1.0, np.inf, 3.0]), 0.9)
    np.testing.assert_array_equal(smooth(np.array([5.0, 4.0, 3.0])), [5.0, 4.0, 3.0])  # so few are not smoothed
    assert values[1] == values[0] == 1.0
    assert values[2] == pytest.approx((0.81 * 1 + 3) / 1.81)  # the value passed over lets the first one age
    noise = np.random.default_rng(0).normal(size=1000)
    expected, average, mass = [], 0.0, 0.0
    for value in noise:
        average, mass = 0.9 * average + 0.1 * value, 0.9 * mass + 0.1
        expected.append(average / mass)
    np.testing.assert_allclose(smooth(noise, 0.9), expected, rtol=1e-9)
    assert len(smooth(np.empty(0))) == 0


def test_the_recorded_run_in_figures(tmp_path: Path) -> None:
    run = recorded_run(tmp_path / "run")
    tail = MetricsTail(run / "metrics.jsonl")
    tail.poll()
    row = summary([RunFigures("run", tail.series, read_settings(run))])[0]
    assert row["val_loss"] == pytest.approx(1.882844)
    assert row["val_step"] == 3500
    assert read_settings(tmp_path / "absent") == {}
