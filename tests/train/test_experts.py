"""A mixture of experts: its products, its balance loss, and a tiny one from training to the engine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from trained import losses, on_data, settings, train, write_data

from nanochat_tui.cli.train_export import export
from nanochat_tui.engine.generate.model import load
from nanochat_tui.errors import UserError
from nanochat_tui.export.checkpoint import load_checkpoint
from nanochat_tui.export.gguf_export import without_nextn
from nanochat_tui.export.reference import reference_logits
from nanochat_tui.formats.gguf import read_gguf
from nanochat_tui.inspection.summary import summarise
from nanochat_tui.model.config import PRESETS, ModelConfig
from nanochat_tui.runs.config import parse_config
from nanochat_tui.train import experts
from nanochat_tui.train.experts import balance_loss, by_expert, choose, grouped, mixture, with_loss
from nanochat_tui.train.model import NanochatModel
from nanochat_tui.train.optim import Optimizer, orthogonalise

MIXTURE: dict[str, Any] = {"n_experts": 4, "n_active_experts": 2}


@pytest.mark.parametrize("in_one_call", [True, False])
def test_every_token_passes_through_its_experts(monkeypatch: pytest.MonkeyPatch, in_one_call: bool) -> None:
    """Against each token by itself, forward and backward; an expert without a token is among them."""
    if in_one_call and not experts.GROUPED:
        pytest.skip("this PyTorch has no grouped_mm")
    monkeypatch.setattr(experts, "GROUPED", in_one_call)
    torch.manual_seed(0)
    x, gate_up, down = torch.randn(9, 16), torch.randn(5, 64, 16), torch.randn(5, 16, 32)
    logits = torch.randn(9, 5)
    logits[:, 3] = -9.0
    inputs = [value.requires_grad_() for value in (x, gate_up, down, logits)]

    def plainly() -> torch.Tensor:
        rows = []
        for token in range(9):
            best = logits[token].topk(2)
            parts = []
            for expert, share in zip(best.indices, best.values.softmax(-1), strict=True):
                gate, up = (gate_up[expert] @ x[token]).chunk(2)
                parts.append(share * (down[expert] @ (F.silu(gate) * up)))
            rows.append(parts[0] + parts[1])
        return torch.stack(rows)

    chosen, weights = choose(logits, 2)
    found, expected = mixture(x, chosen, weights, gate_up, down, lambda t: t), plainly()
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    wanted = torch.autograd.grad((expected * expected.detach().cos()).sum(), inputs)
    had = torch.autograd.grad((found * expected.detach().cos()).sum(), inputs)
    for a, b in zip(had, wanted, strict=True):
        torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-3)


def test_both_products_are_one() -> None:
    x, matrices, counts = torch.randn(10, 32), torch.randn(3, 16, 32), torch.tensor([4, 0, 6])
    torch.testing.assert_close(grouped(x, matrices, counts), by_expert(x, matrices, counts))


def test_of_equal_experts_the_first_is_chosen() -> None:
    chosen, weights = choose(torch.tensor([[1.0, 2.0, 2.0, 2.0]]), 2)
    assert chosen.tolist() == [[1, 2]] and weights.tolist() == [[0.5, 0.5]]


def test_the_balance_loss_is_one_when_even_and_pulls_towards_it() -> None:
    even = torch.eye(4).repeat(2, 1) * 1e-3
    chosen = even.argmax(-1, keepdim=True)
    assert float(balance_loss(even, chosen)[0]) == pytest.approx(1.0)
    uneven = torch.tensor([[2.0, 0.0, 0.0, 0.0]] * 8, requires_grad=True)
    loss, counts = balance_loss(uneven, torch.zeros(8, 1, dtype=torch.int64))
    assert counts.tolist() == [8, 0, 0, 0] and float(loss.detach()) > 1.0
    x = torch.ones(3, requires_grad=True)
    with_loss(x, loss, 0.5).sum().backward()
    assert x.grad is not None and x.grad.tolist() == [1.0] * 3
    assert uneven.grad is not None and (uneven.grad[:, 0] > 0).all() and (uneven.grad[:, 1:] < 0).all()
    alone = uneven.detach().requires_grad_()
    balance_loss(alone, torch.zeros(8, 1, dtype=torch.int64))[0].backward()
    torch.testing.assert_close(uneven.grad, 0.5 * alone.grad)


def test_the_parameters_are_those_of_the_plan() -> None:
    with torch.device("meta"):
        model = NanochatModel(PRESETS["25b-moe"])
    assert model.parameters_total == PRESETS["25b-moe"].parameters


def test_muon_takes_each_expert_for_a_matrix() -> None:
    config = parse_config(settings(steps=1, normuon=True, **MIXTURE))
    model = NanochatModel(config.model_shape())
    weight = model.blocks[0].ffn_up_exps.weight
    before, gradient = weight.detach().clone(), torch.randn_like(weight)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    weight.grad = gradient.clone()
    config = config.model_copy(update={"normuon": False})
    Optimizer(model, config).muon.step(0.1)
    for expert in range(4):
        update = gradient[expert] * (1 + config.muon_momentum)
        direction = orthogonalise(update.unsqueeze(0), config.ns_steps, torch.float32)[0]
        wanted = before[expert] - 0.1 * max(1.0, weight.shape[1] / weight.shape[2]) ** 0.5 * direction
        torch.testing.assert_close(weight[expert].detach(), wanted, atol=1e-5, rtol=1e-4)


def test_experts_learn_together_and_a_resume_repeats(tmp_path: Path) -> None:
    options = {**MIXTURE, "steps": 40, "checkpoint_interval": 20, "normuon": True, "grad_accum": 2}
    rows = train(tmp_path / "run", **options)
    assert rows[-1]["loss"] < 0.7 * rows[0]["loss"]
    assert all(1.0 <= row["expert_load"] <= row["expert_load_max"] <= 2.0 for row in rows)
    again = train(tmp_path / "again", resume=tmp_path / "run" / "step_20", **options)
    assert [losses(rows)[n] for n in range(21, 41)] == [losses(again)[n] for n in range(21, 41)]


def test_without_the_balance_loss_its_gradient_is_not_there() -> None:
    gradients = []
    for weight in (0.0, 0.5):
        torch.manual_seed(0)
        model = NanochatModel(parse_config(settings(steps=1, **MIXTURE)).model_shape())
        model.balance_weight = weight
        tokens = torch.arange(64).view(2, 32)
        F.cross_entropy(model.logits(tokens).view(-1, 256), tokens.view(-1)).backward()
        grad = model.blocks[0].ffn_gate_inp.weight.grad
        assert grad is not None
        gradients.append(grad)
    assert not torch.allclose(*gradients)


@pytest.mark.parametrize("setting", [{"collider_ratio": 0.4}, {"fire": True}])
def test_methods_that_know_no_experts_are_refused(setting: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="does not go together with a mixture of experts"):
        parse_config(settings(steps=1, **MIXTURE, **setting))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("moe")
    train(folder / "run", **on_data(write_data(folder / "data"), steps=12, mtp_depth=1, sample_tokens=4, **MIXTURE))
    return folder / "run" / "final"


def test_a_mixture_is_exported_verified_run_and_inspected(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export(checkpoint, tmp_path / "m.gguf", nextn=True, as_json=True)
    found = json.loads(capsys.readouterr().out)
    shape: ModelConfig = PRESETS["tiny"].with_(vocab_size=300, nextn=1, **MIXTURE)
    assert found["parameters"] == shape.parameters
    assert found["logits"]["max_difference"] < 1e-3  # engine against plain NumPy
    with read_gguf(tmp_path / "m.gguf") as file:
        assert file.metadata["nanochat.expert_count"].value == 4
        assert file.metadata["nanochat.expert_used_count"].value == 2
        assert file.tensor("blk.1.ffn_gate_exps.weight").shape == (4, 256, 128)
        assert file.tensor("blk.2.ffn_down_exps.weight").shape == (4, 128, 256)
        assert file.tensor("blk.0.ffn_gate_inp.weight").shape == (4, 128)
        summary = summarise(file)
    assert summary.reason is None
    # the PyTorch model itself, on the tables that the file holds
    with read_gguf(tmp_path / "m.gguf") as file:
        model = NanochatModel(shape, quantise=False, activations="float")
        model.load_state_dict({n: torch.from_numpy(np.array(file.array(n))) for n in model.state_dict()})
    ids = [1, 5, 299, 17, 17, 3, 250, 8] * 4
    engine = load(tmp_path / "m.gguf", activations="float", kv="f32", threads=1)
    with torch.no_grad():
        np.testing.assert_allclose(engine.logits(ids), model.logits(torch.tensor([ids]))[0].numpy(), atol=1e-3)
    plain = reference_logits(*without_nextn(*load_checkpoint(checkpoint)), ids, int8=False)
    np.testing.assert_allclose(plain, engine.logits(ids), atol=1e-3)
    assert len(list(load(tmp_path / "m.gguf", threads=1).generate("fn", max_tokens=4, temperature=0.0))) > 0


def test_the_architecture_llama_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a mixture of 4 experts, which is not written as architecture llama"):
        export(checkpoint, tmp_path / "l.gguf", arch="llama")
