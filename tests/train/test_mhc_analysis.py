"""The analysis of residual streams against NumPy, its alarms, and N = 4 from training to the engine."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from trained import losses, on_data, train, write_data

from nanochat_tui.engine.generate.model import load
from nanochat_tui.export import compare_logits, export_model, load_checkpoint, reference_logits
from nanochat_tui.formats.mhc import read_mhc
from nanochat_tui.model.config import PRESETS, ModelConfig
from nanochat_tui.model.mhc import stream_matrices
from nanochat_tui.model.mhc_verify import verify
from nanochat_tui.runs.alarms import find_alarms
from nanochat_tui.runs.metrics import Series
from nanochat_tui.runs.mhc_health import mhc_problems
from nanochat_tui.runs.state import RunState
from nanochat_tui.train.mhc_analysis import StreamAnalysis, mixing_entropy, records_row
from nanochat_tui.train.model import NanochatModel
from nanochat_tui.train.step import exact_backward

SMALL = ModelConfig(
    dim=128, n_layers=2, n_heads=4, n_kv_heads=2, hidden_dim=256, vocab_size=300, context_length=64, n_streams=2
)


def _observed(model: NanochatModel) -> tuple[dict[str, Any], torch.Tensor]:
    tokens = torch.randint(0, 300, (2, 17), generator=torch.Generator().manual_seed(1))
    exact_backward(model, model.trunk, tokens[:, :-1], tokens[:, 1:].reshape(-1), 1.0)
    analysis = StreamAnalysis(model)
    analysis.observe(tokens[:, :-1])
    return analysis.row(), tokens[:, :-1]


@pytest.mark.parametrize("n", [2, 4])
def test_every_figure_of_a_record(n: int) -> None:
    torch.manual_seed(0)
    model = NanochatModel(SMALL.with_(n_streams=n))
    with torch.no_grad():
        for block in model.blocks:
            for record in (block.attn_mhc, block.ffn_mhc):
                record.add_(0.5 * torch.randn(record.shape))
    row, inputs = _observed(model)
    values = model.records().detach().numpy()
    read, matrix, write = stream_matrices(values, n)
    gains = verify(values, n).gains
    kept: list[torch.Tensor] = []
    with torch.no_grad():
        model.trunk(model.embed(inputs[:1]), model.effective(), model.mixing(), keep_streams=kept)
    for i, record in enumerate(row["mhc"]):
        assert record["alpha"] == pytest.approx(matrix[i, 0, 0], abs=1e-5)
        assert record["p"] == pytest.approx(read[i].tolist(), abs=1e-4)
        assert record["q"] == pytest.approx(write[i].tolist(), abs=1e-4)
        h = matrix[i].astype(np.float64)
        assert record["entropy"] == pytest.approx(-(h * np.log(h)).sum(1).mean(), abs=1e-5)
        assert record["gain"] == pytest.approx(gains[i], abs=1e-5)
        x = kept[i].double().numpy()
        unit = x / np.linalg.norm(x, axis=-1, keepdims=True)
        cosines = [(unit[a] * unit[b]).sum(-1).mean() for a in range(n) for b in range(a)]
        assert record["cosine"] == pytest.approx(np.mean(cosines), abs=1e-6)
        assert record["rms"] == pytest.approx(np.sqrt((x**2).mean()), rel=1e-5)
        parameter = (model.blocks[i // 2].attn_mhc, model.blocks[i // 2].ffn_mhc)[i % 2]
        assert parameter.grad is not None
        gradient = parameter.grad.double().numpy()
        assert record["grad"] == pytest.approx(np.linalg.norm(gradient), rel=1e-5)
        assert record["grad_mix"] == pytest.approx(np.linalg.norm(gradient[: len(gradient) - 4 * n]), rel=1e-5)
    assert not mhc_problems(row["mhc"])
    assert row["mhc_log2_gain"] == pytest.approx(verify(values, n).log2_total_gain, abs=1e-3)


def test_entropy_is_zero_without_mixing_and_largest_for_the_mean() -> None:
    matrices = torch.stack([torch.eye(4), torch.full((4, 4), 0.25), torch.eye(4).flip(0)])
    assert mixing_entropy(matrices).tolist() == pytest.approx([0.0, math.log(4), 0.0])


def test_the_originals_initialisation_is_called_dead() -> None:
    """Equal weights for both streams keep them equal for ever, and nothing trains the mixing."""
    torch.manual_seed(0)
    model = NanochatModel(SMALL)
    with torch.no_grad():
        for block in model.blocks:
            for record in (block.attn_mhc, block.ffn_mhc):
                record.copy_(torch.tensor([0.0, 0, 0, 0.5, 0.5, 0, 0, 0.5, 0.5]))
    row, _ = _observed(model)
    assert [record["cosine"] for record in row["mhc"]] == [1.0] * 4
    problems = mhc_problems(row["mhc"])
    assert len(problems) == 2
    assert "the streams are equal after block 0 attention and 3 more" in problems[0]
    assert "block 0 attention and 2 more has no gradient" in problems[1]


def test_a_value_that_is_no_number_is_an_alarm() -> None:
    model = NanochatModel(SMALL)
    with torch.no_grad():
        model.blocks[1].attn_mhc[0] = torch.nan
    records = records_row(model)
    assert records[2]["alpha"] is None
    assert mhc_problems(records) == ["mHC: a value of block 1 attention is not a number"]
    series = Series()
    series.add(json.loads(json.dumps({"step": 4, "loss": 2.0, "mhc": records}, allow_nan=False)))
    (alarm,) = find_alarms(RunState("running"), series)
    assert (alarm.level, alarm.step) == ("error", 4)
    row, _ = _observed(model)  # and the analysis itself does not fail on it
    assert "not a number" in mhc_problems(row["mhc"])[0]


def test_dead_mixing_is_a_warning_until_it_lives() -> None:
    dead = {"alpha": 0.5, "p": [0.6, 0.6], "q": [1.2, 1.2], "cosine": 1.0, "grad_mix": 0.0}
    alive = {"alpha": 0.5, "p": [0.7, 0.3], "q": [1.4, 0.5], "cosine": 0.7, "grad_mix": 0.01}
    series = Series()
    series.add({"step": 1, "mhc": [dead, dead]})
    assert [alarm.level for alarm in find_alarms(RunState("running"), series)] == ["warning", "warning"]
    series.add({"step": 2, "mhc": [alive, {**alive, "grad_mix": 0.0}]})  # the last one's mixing never has a gradient
    assert not find_alarms(RunState("running"), series)


def test_a_run_logs_it_and_trains_as_without(tmp_path: Path) -> None:
    rows = train(tmp_path / "with", steps=8, mhc_analysis=True)
    keys = {"alpha", "p", "q", "entropy", "gain", "cosine", "rms", "grad", "grad_mix"}
    assert all(keys == set(record) for row in rows for record in row["mhc"])
    assert len({row["mhc"][0]["alpha"] for row in rows}) > 4, "alpha moves"
    plain = train(tmp_path / "without", steps=8)
    assert [row["loss"] for row in rows] == [row["loss"] for row in plain]
    for name in ("model.safetensors", "optimizer.safetensors"):
        assert (tmp_path / "with/final" / name).read_bytes() == (tmp_path / "without/final" / name).read_bytes()
    resumed = train(tmp_path / "part", resume=tmp_path / "with" / "step_5", steps=8, mhc_analysis=True)
    assert {s: v for s, v in losses(resumed).items() if s > 5} == {s: v for s, v in losses(rows).items() if s > 5}


def test_a_plain_residual_has_nothing_to_analyse(tmp_path: Path) -> None:
    rows = train(tmp_path, steps=2, n_streams=1, mhc_analysis=True)
    assert not [row for row in rows if row.get("mhc")]


def test_d20_with_four_streams() -> None:
    config = PRESETS["d20"].with_(n_streams=4)
    assert config.parameters == 17_981_036 + 12 * (40 - 9)
    assert 16 + config.mhc_records * 160 == 1936


def test_four_streams_learn(tmp_path: Path) -> None:
    rows = train(tmp_path, steps=20, n_streams=4)
    assert rows[-1]["loss"] < rows[0]["loss"] - 1


def test_four_streams_are_trained_exported_and_run(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data")
    rows = train(tmp_path / "run", **on_data(data, steps=12, n_streams=4, mhc_analysis=True))
    assert not mhc_problems(rows[-1]["mhc"])
    assert all(record["cosine"] < 0.999 for record in rows[-1]["mhc"])
    gguf, sidecar = tmp_path / "m.gguf", tmp_path / "m.mhc"
    report = export_model(tmp_path / "run" / "final", gguf, sidecar, data / "tokenizer.json")
    assert report.mhc is not None
    assert report.mhc.ok
    assert report.mhc.alive
    assert sidecar.stat().st_size == 16 + 4 * 160
    assert read_mhc(sidecar).records.shape == (4, 40)
    engine = load(gguf, mhc=sidecar, threads=1, activations="float", kv="f32")
    config, weights = load_checkpoint(tmp_path / "run" / "final")
    ids = list(range(5, 25))
    agreement = compare_logits(reference_logits(config, weights, ids, int8=False), engine.logits(ids))
    assert agreement.max_difference < 1e-3
    assert sum(1 for _ in engine.generate("abc", max_tokens=4, temperature=0.0)) >= 1
