"""Row updates of a table against PyTorch's AdamW on all of it; the sampled step's gradients against autograd's."""

import pytest
import torch

from nanochat_tui.model.config import ModelConfig
from nanochat_tui.runs.config import TrainConfig
from nanochat_tui.train.loss import VocabularySampler
from nanochat_tui.train.model import NanochatModel
from nanochat_tui.train.optim import Optimizer
from nanochat_tui.train.step import exact_backward, sampled_backward
from nanochat_tui.train.table_adamw import RowAdamW, RowGradient

BETAS, EPS, LR = (0.9, 0.999), 1e-8, 0.01
SHAPE = ModelConfig(dim=128, n_layers=1, n_heads=2, n_kv_heads=2, hidden_dim=256, vocab_size=96, context_length=32)


def _pair(rows: int = 40) -> tuple[torch.nn.Parameter, RowAdamW, torch.nn.Parameter, torch.optim.AdamW]:
    torch.manual_seed(0)
    table = torch.nn.Parameter(torch.randn(rows, 8))
    dense = torch.nn.Parameter(table.detach().clone())
    make = lambda p: torch.optim.AdamW([p], lr=LR, betas=BETAS, eps=EPS, weight_decay=0.0)  # noqa: E731
    return table, RowAdamW(table, make(table), BETAS, EPS), dense, make(dense)


def test_rows_updated_every_step_equal_dense_adamw() -> None:
    table, rows, dense, reference = _pair()
    ids = torch.randperm(40)
    for _ in range(20):
        gradient = torch.randn(40, 8)
        rows.update(ids, gradient[ids], LR)
        dense.grad = gradient
        reference.step()
    torch.testing.assert_close(table, dense)


def test_rows_read_now_and_then_follow_dense_adamw() -> None:
    table, rows, dense, reference = _pair()
    start = table.detach().clone()
    for step in range(400):
        ids = torch.randperm(40)[: 4 + step % 3]
        rows.bring_up(ids, LR)
        gradient = torch.randn(len(ids), 8) + 0.5
        rows.update(ids, gradient, LR)
        dense.grad = torch.zeros_like(dense)
        dense.grad[ids] = gradient
        reference.step()
    moved = (dense - start).norm()
    assert (table - dense).norm() > 0.001 * moved, "some rows are behind"
    rows.settle(LR)
    # the bias corrections of the first steps are those of the step that makes up for them
    assert (table - dense).norm() < 0.03 * moved
    for key in ("exp_avg", "exp_avg_sq"):
        ours, theirs = rows.optimizer.state[table][key], reference.state[dense][key]
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-7)
    before = table.detach().clone()
    rows.settle(LR)
    assert torch.equal(before, table.detach())


def test_gradients_of_micro_batches_are_added() -> None:
    total = RowGradient()
    total.add(torch.tensor([3, 1]), torch.tensor([[1.0], [2.0]]))
    total.add(torch.tensor([5, 3]), torch.tensor([[4.0], [8.0]]))
    ids, gradient = total.total()
    assert dict(zip(ids.tolist(), gradient[:, 0].tolist(), strict=True)) == {1: 2.0, 3: 9.0, 5: 4.0}
    total.gradients[0].mul_(0.5)
    assert total.total()[1].sum() == 7.5


@pytest.mark.parametrize("tied", [True, False])
def test_a_sample_of_everything_gives_the_exact_gradients(tied: bool) -> None:
    torch.manual_seed(0)
    model = NanochatModel(SHAPE.with_(tied=tied))
    inputs, targets = torch.randint(0, 96, (2, 16)), torch.randint(0, 96, (32,))
    loss = exact_backward(model, model.trunk, inputs, targets, 0.5)
    exact = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    sample = VocabularySampler(torch.rand(96), 20, 96, 0).sample(inputs, targets, 1)
    estimated, rows = sampled_backward(model, model.trunk, inputs, sample, 0.5)
    torch.testing.assert_close(estimated, loss)
    if tied:
        assert rows is not None
        assert model.token_embd.weight.grad is None
        full = torch.zeros(96, 128)
        full[sample.ids] = rows
        torch.testing.assert_close(full, exact.pop("token_embd.weight"))
    else:
        assert rows is None
    for name, gradient in exact.items():
        torch.testing.assert_close(dict(model.named_parameters())[name].grad, gradient)


def test_clipping_sees_the_gradient_of_the_rows() -> None:
    model = NanochatModel(SHAPE)
    optimizer = Optimizer(model, TrainConfig(dataset="synthetic"))
    optimizer.row_gradient.add(torch.tensor([1, 2]), torch.full((2, 128), 3.0))
    assert optimizer.clip(1.0) == pytest.approx(3 * 256**0.5)
    assert optimizer.clip(0.0) == pytest.approx(1.0, rel=1e-4)
