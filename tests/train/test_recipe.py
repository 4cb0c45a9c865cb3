"""Switches of the recipe, each against its formula, and off by default."""

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from trained import losses, train

from nanochat_tui.errors import UserError
from nanochat_tui.export import export_model, load_checkpoint
from nanochat_tui.formats.gguf import read_gguf
from nanochat_tui.formats.tensor_types import ternary_matrix
from nanochat_tui.model.architectures import nanochat
from nanochat_tui.model.shipped import shipped_tokenizer
from nanochat_tui.model.ternary import dequantise, ternarise
from nanochat_tui.runs.config import TrainConfig, parse_config
from nanochat_tui.train.loss import VocabularySampler, fused_cross_entropy, sampled_loss
from nanochat_tui.train.optim import Muon, orthogonalise
from nanochat_tui.train.quantise import ternary_scales, ternary_weight
from nanochat_tui.train.schedule import Schedule

LR = 0.02
SWITCHES: dict[str, Any] = {
    "momentum_warmup_steps": 7,
    "normuon": True,
    "adam_half_life": 5000.0,
    "cautious_decay": True,
    "weight_decay": 0.1,
    "z_loss": 1e-3,
    "grad_clip": 0.0,
    "full_precision": True,
    "quantise_with_decay": True,
    "least_squares": True,
}


def _steps(muon: Muon, weight: torch.nn.Parameter, count: int = 3) -> list[torch.Tensor]:
    torch.manual_seed(3)
    gradients = [torch.randn_like(weight) for _ in range(count)]
    for number, gradient in enumerate(gradients):
        weight.grad = gradient.clone()
        muon.step(LR, number)
    return gradients


def _weight(*shape: int) -> torch.nn.Parameter:
    torch.manual_seed(0)
    return torch.nn.Parameter(torch.randn(*shape))


def _directions(gradients: list[torch.Tensor], momenta: list[float]) -> list[torch.Tensor]:
    buffer = torch.zeros_like(gradients[0])
    found = []
    for gradient, momentum in zip(gradients, momenta, strict=True):
        buffer = momentum * buffer + gradient
        found.append(orthogonalise((gradient + momentum * buffer)[None], 5, torch.float32)[0])
    return found


def test_cautious_decay_leaves_weights_that_their_update_makes_larger() -> None:
    weight = _weight(32, 64)
    expected = weight.detach().clone()
    gradients = _steps(Muon([("w", weight)], 0.9, 5, 0.5, cautious=True), weight)
    decayed = 0
    for direction in _directions(gradients, [0.9] * 3):
        shrinks = (expected - LR * direction).abs() < expected.abs()
        agrees = direction * expected >= 0
        assert (shrinks == agrees).float().mean() > 0.9  # it is what the name says, but for steps beyond zero
        expected = expected - LR * direction - LR * 0.5 * torch.where(agrees, expected, torch.zeros(()))
        decayed += int(agrees.sum())
    torch.testing.assert_close(weight.detach(), expected)
    assert 0.3 < decayed / (3 * weight.numel()) < 0.7


@pytest.mark.parametrize("shape", [(32, 64), (96, 32)])
def test_normuon_divides_rows_by_their_running_size_and_keeps_the_norm(shape: tuple[int, int]) -> None:
    weight = _weight(*shape)
    expected = weight.detach().clone()
    muon = Muon([("w", weight)], 0.9, 5, 0.0, row_beta=0.8)
    gradients = _steps(muon, weight)
    rows = np.zeros(shape[0])
    scale = max(1.0, shape[0] / shape[1]) ** 0.5
    for direction in _directions(gradients, [0.9] * 3):
        update = direction.double().numpy()
        rows = 0.8 * rows + 0.2 * (update**2).mean(axis=1)
        even = update / np.sqrt(rows)[:, None]
        even *= np.linalg.norm(update) / np.linalg.norm(even)
        expected = expected - LR * scale * torch.from_numpy(even).float()
    torch.testing.assert_close(weight.detach(), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(muon.rows["w"][:, 0].double(), torch.from_numpy(rows), rtol=1e-4, atol=1e-7)


def test_momentum_rises_to_its_value() -> None:
    weight = _weight(16, 32)
    muon = Muon([("w", weight)], 0.95, 5, 0.0, warmup_steps=2)
    expected = weight.detach().clone()
    for direction in _directions(_steps(muon, weight), [0.85, 0.9, 0.95]):
        expected = expected - LR * direction
    torch.testing.assert_close(weight.detach(), expected)
    assert [round(muon.momentum_at(n), 3) for n in (0, 1, 2, 99)] == [0.85, 0.9, 0.95, 0.95]
    assert Muon([("w", weight)], 0.8, 5, 0.0, warmup_steps=9).momentum_at(0) == 0.8


def test_beta2_by_half_life_forgets_half_in_so_many_tokens() -> None:
    config = TrainConfig(dataset="synthetic", seq_len=512, batch_size=8, adam_half_life=7_084_000)
    assert config.beta2 == pytest.approx(0.9996, abs=1e-5)  # of 0.95 at 524,288 tokens
    assert config.beta2 ** (7_084_000 / config.tokens_per_step) == pytest.approx(0.5)
    assert TrainConfig(dataset="synthetic", adam_beta2=0.97).beta2 == 0.97


def test_least_squares_scales_are_the_best_of_all_for_trits() -> None:
    rng = np.random.default_rng(0)
    groups = np.concatenate([rng.normal(size=(40, 64)), rng.laplace(size=(40, 64)), rng.uniform(-1, 1, (40, 64))])
    weight = groups.astype(np.float32)
    trits, scales = ternarise(weight, 64, least_squares=True)
    error = ((dequantise(trits, scales) - weight) ** 2).sum(axis=1)
    # any scale with any threshold: the k largest, at the best scale for them
    ordered = -np.sort(-np.abs(weight.astype(np.float64)), axis=1)
    sums = np.cumsum(ordered, axis=1)
    least = (weight.astype(np.float64) ** 2).sum(axis=1) - (sums**2 / np.arange(1, 65)).max(axis=1)
    assert (error < least * 1.001 + 1e-6).all()
    plain = ((dequantise(*ternarise(weight, 64)) - weight) ** 2).sum(axis=1)
    assert (error <= plain * 1.0001).all() and error.sum() < 0.95 * plain.sum()
    normal = rng.normal(size=(2000, 128)).astype(np.float32)
    ratio = ((dequantise(*ternarise(normal, 128, least_squares=True)) - normal) ** 2).sum() / (normal**2).sum()
    assert ratio == pytest.approx(0.190, abs=0.003)  # Lloyd and Max's for a Gaussian and three values


def test_trainer_and_exporter_share_least_squares_scales_on_every_group() -> None:
    torch.manual_seed(1)
    for weight in (torch.randn(64, 256), torch.randn(64, 256) * 1e-5, torch.zeros(4, 128)):
        trits, scales = ternarise(weight.numpy(), 128, least_squares=True)
        assert np.array_equal(ternary_scales(weight, 128, least_squares=True).numpy(), scales)
        value = ternary_weight(weight, 128, least_squares=True)
        assert np.array_equal(value.numpy(), dequantise(trits, scales))


def test_z_loss_in_value_and_gradients() -> None:
    torch.manual_seed(1)
    x, table = torch.randn(37, 64, requires_grad=True), (torch.randn(500, 64) * 0.3).requires_grad_()
    targets, bias = torch.randint(0, 500, (37,)), torch.randn(500)
    logits = x @ table.t() + bias
    expected = F.cross_entropy(logits, targets) + 0.01 * logits.logsumexp(-1).square().mean()
    wanted = torch.autograd.grad(expected, (x, table))
    loss = fused_cross_entropy(x, table, targets, bias=bias, chunk=16, z_loss=0.01)
    torch.testing.assert_close(loss, expected)
    for a, b in zip(torch.autograd.grad(loss, (x, table)), wanted, strict=True):
        torch.testing.assert_close(a, b)
    sample = VocabularySampler(torch.rand(500), frequent=500, sampled=1, seed=0).sample(targets[:3], targets, 0)
    whole = x @ table.t()
    exact = F.cross_entropy(whole, targets) + 0.01 * whole.logsumexp(-1).square().mean()
    torch.testing.assert_close(sampled_loss(x, table[sample.ids], sample, dtype=torch.float32, z_loss=0.01), exact)


def test_all_are_off_by_default_and_two_exclude_each_other() -> None:
    defaults = TrainConfig(dataset="synthetic")
    for name in set(SWITCHES) - {"grad_clip"}:
        assert not getattr(defaults, name), name
    with pytest.raises(UserError, match="exclude each other"):
        parse_config({"dataset": "synthetic", "full_precision": True, "quantise_with_decay": True})


def test_precision_follows_the_schedule() -> None:
    def run(**changes: Any) -> list[bool]:
        config = TrainConfig(dataset="synthetic", **changes)
        schedule = Schedule(2, 10, 0.4)
        found = []
        for step in range(10):
            schedule.enter(step)
            found.append(schedule.is_ternary(config))
        return found

    assert run() == [True] * 10
    assert run(full_precision=True) == [False] * 10
    assert run(quantise_with_decay=True) == [False] * 6 + [True] * 4


@pytest.mark.parametrize("name", sorted(SWITCHES))
def test_every_switch_changes_a_run_that_resumes_bit_for_bit(tmp_path: Path, name: str) -> None:
    changes: dict[str, Any] = {"steps": 12, "checkpoint_interval": 4, "decay_fraction": 0.5, name: SWITCHES[name]}
    if name == "cautious_decay":
        changes["weight_decay"] = 0.1
    whole = train(tmp_path / "a", **changes)
    for start in ("step_4", "step_8"):
        again = train(tmp_path / start, tmp_path / "a" / start, **changes)
        rest = {step: row for step, row in losses(whole).items() if step > int(start[5:])}
        assert {k: v for k, v in losses(again).items() if k > int(start[5:])} == rest
    plain = {key: value for key, value in changes.items() if key != name}
    assert losses(train(tmp_path / "b", **plain)) != losses(whole)


def test_a_run_begins_with_normuon_in_the_middle(tmp_path: Path) -> None:
    train(tmp_path / "a", steps=3)
    rows = train(tmp_path / "b", tmp_path / "a" / "final", steps=6, normuon=True)
    assert rows[-1]["step"] == 6 and math.isfinite(rows[-1]["loss"])


def test_full_precision_is_measured_as_it_is_and_not_exported(tmp_path: Path) -> None:
    tokenizer = shipped_tokenizer()
    assert tokenizer is not None
    train(tmp_path / "run", steps=8, checkpoint_interval=4, decay_fraction=0.4, quantise_with_decay=True)
    with pytest.raises(UserError, match="trained in full precision so far"):
        export_model(tmp_path / "run" / "step_4", tmp_path / "m.gguf", None, tokenizer)
    assert json.loads((tmp_path / "run" / "step_4" / "state.json").read_text())["ternary"] is False
    load_checkpoint(tmp_path / "run" / "final")  # ternary by then


def test_least_squares_scales_are_exported_and_read_back(tmp_path: Path) -> None:
    tokenizer = shipped_tokenizer()
    assert tokenizer is not None
    train(tmp_path / "run", steps=2, least_squares=True, vocab_size=50_257, seq_len=16, batch_size=1)
    report = export_model(tmp_path / "run" / "final", tmp_path / "m.gguf", None, tokenizer)
    config, weights = load_checkpoint(tmp_path / "run" / "final")
    assert report.config == config and config.least_squares
    with read_gguf(tmp_path / "m.gguf") as file:
        assert asdict(nanochat.from_metadata(file.metadata, file.tensors)) == asdict(config)
        info = file.tensor("blk.0.attn_q.weight")
        trits, _ = ternary_matrix(info.type, file.blocks(info.name), info.shape)
        assert np.array_equal(trits, ternarise(weights[info.name], 128, least_squares=True)[0])
        assert not np.array_equal(trits, ternarise(weights[info.name], 128)[0])


def test_a_checkpoint_of_a_version_without_these_is_continued_and_exported(tmp_path: Path) -> None:
    tokenizer = shipped_tokenizer()
    assert tokenizer is not None
    shape = {"vocab_size": 50_257, "seq_len": 16, "batch_size": 1, "steps": 4, "checkpoint_interval": 2}
    whole = train(tmp_path / "a", **shape)
    place = tmp_path / "a" / "step_2" / "state.json"
    state = json.loads(place.read_text())
    for key in ("infill", "ternary", *(key for key in state if "sha256" in key)):
        del state[key]
    del state["model"]["least_squares"]
    for key in {*SWITCHES, "fim_rate", "fim_spm_rate"} - {"weight_decay", "grad_clip"}:
        del state["config"][key]
    place.write_text(json.dumps(state))
    again = train(tmp_path / "b", tmp_path / "a" / "step_2", **shape)
    assert {k: v for k, v in losses(again).items() if k > 2} == {k: v for k, v in losses(whole).items() if k > 2}
    assert export_model(tmp_path / "a" / "step_2", tmp_path / "m.gguf", None, tokenizer).parameters == 6_761_252
    noted = train(tmp_path / "c", tmp_path / "a" / "step_2", **shape, z_loss=0.1)
    assert noted and "z_loss was 0.0 and is 0.1" in (tmp_path / "c" / "log.txt").read_text()
