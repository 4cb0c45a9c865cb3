import pytest
import torch

from nanochat_tui.model.config import ModelConfig
from nanochat_tui.runs.config import TrainConfig
from nanochat_tui.train.model import NanochatModel
from nanochat_tui.train.optim import Muon, Optimizer, orthogonalise

SHAPE = ModelConfig(dim=128, n_layers=1, n_heads=2, n_kv_heads=2, hidden_dim=256, vocab_size=64, context_length=32)


@pytest.mark.parametrize("shape", [(160, 64), (128, 48), (48, 128)])
def test_orthogonalise_brings_singular_values_near_one(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    result = orthogonalise(torch.randn(3, *shape), 5, torch.float32)
    values = torch.linalg.svdvals(result)
    assert values.min() > 0.4
    assert values.max() < 1.4


def test_orthogonalise_keeps_the_singular_vectors() -> None:
    torch.manual_seed(0)
    matrix = torch.randn(1, 32, 64)
    u, _, vh = torch.linalg.svd(matrix[0], full_matrices=False)
    rotated = u.t() @ orthogonalise(matrix, 5, torch.float32)[0] @ vh.t()
    off_diagonal = rotated - torch.diag(rotated.diagonal())
    assert off_diagonal.abs().max() < 1e-3


def test_one_step_equals_the_formula_computed_by_hand() -> None:
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(96, 32))
    start, gradients = weight.detach().clone(), [torch.randn(96, 32), torch.randn(96, 32)]
    muon = Muon([("w", weight)], momentum=0.9, ns_steps=5, weight_decay=0.1)
    buffer, expected = torch.zeros(96, 32), start.clone()
    for g in gradients:
        weight.grad = g.clone()
        muon.step(0.02)
        buffer = 0.9 * buffer + g
        update = orthogonalise((g + 0.9 * buffer)[None], 5, torch.float32)[0]
        expected = expected * (1 - 0.02 * 0.1) - 0.02 * 3**0.5 * update
    torch.testing.assert_close(weight.detach(), expected)


def test_muon_takes_hidden_matrices_and_adamw_the_rest() -> None:
    model = NanochatModel(SHAPE)
    optimizer = Optimizer(model, TrainConfig(dataset="synthetic"))
    assert set(optimizer.muon.parameters) == {n for n, p in model.named_parameters() if p.ndim == 2 and "blk" in n}
    assert set(optimizer.muon.parameters) | set(optimizer.adamw_names) == {n for n, _ in model.named_parameters()}


def test_clipping_reports_the_norm_and_scales() -> None:
    model = NanochatModel(SHAPE)
    optimizer = Optimizer(model, TrainConfig(dataset="synthetic"))
    for p in model.parameters():
        p.grad = torch.full_like(p, 0.5)
    count = model.parameters_total
    assert optimizer.clip(0.0) == pytest.approx(0.5 * count**0.5, rel=1e-4)
    assert optimizer.clip(1.0) == pytest.approx(0.5 * count**0.5, rel=1e-4)
    assert optimizer.clip(0.0) == pytest.approx(1.0, rel=1e-3)


def test_state_round_trip_gives_the_same_next_step() -> None:
    torch.manual_seed(0)
    a, b = NanochatModel(SHAPE), NanochatModel(SHAPE)
    config = TrainConfig(dataset="synthetic")
    first, second = Optimizer(a, config), Optimizer(b, config)

    def step(model: NanochatModel, optimizer: Optimizer, seed: int) -> None:
        for p in model.parameters():
            p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(seed))
        optimizer.step(0.7)

    step(a, first, 1)
    b.load_state_dict(a.state_dict())
    second.load_state({k: v.clone() for k, v in first.state().items()})
    step(a, first, 2)
    step(b, second, 2)
    for (name, p), q in zip(a.named_parameters(), b.parameters(), strict=True):
        assert torch.equal(p, q), name
