"""The fused cross-entropy against PyTorch's own, and the estimate against the exact value."""

import pytest
import torch
import torch.nn.functional as F

from nanochat_tui.train import loss as loss_module
from nanochat_tui.train.loss import VocabularySampler, fused_cross_entropy, head_loss, sampled_loss


def _problem(tokens: int = 37, vocab: int = 500, dim: int = 64) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    x = torch.randn(tokens, dim, requires_grad=True)
    table = (torch.randn(vocab, dim) * 0.3).requires_grad_()
    return x, table, torch.randint(0, vocab, (tokens,))


@pytest.mark.parametrize("chunk", [5, 16, 64])
def test_fused_equals_pytorch_in_value_and_gradients(chunk: int) -> None:
    x, table, targets = _problem()
    expected = F.cross_entropy(x @ table.t(), targets)
    wanted = torch.autograd.grad(expected, (x, table))
    loss = fused_cross_entropy(x, table, targets, chunk=chunk)
    got = torch.autograd.grad(2 * loss, (x, table))
    torch.testing.assert_close(loss, expected)
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, 2 * b)


def test_bias_is_added_to_the_logits() -> None:
    x, table, targets = _problem()
    bias = torch.randn(table.shape[0])
    torch.testing.assert_close(
        fused_cross_entropy(x, table, targets, bias=bias), F.cross_entropy(x @ table.t() + bias, targets)
    )


def test_sample_of_everything_is_exact() -> None:
    x, table, targets = _problem()
    sampler = VocabularySampler(torch.rand(500), frequent=100, sampled=400, seed=0)
    sample = sampler.sample(targets[:5], targets, step=3)
    assert sorted(sample.ids.tolist()) == list(range(500))
    loss = sampled_loss(x, table[sample.ids], sample, dtype=torch.float32)
    torch.testing.assert_close(loss, F.cross_entropy(x @ table.t(), targets))
    assert torch.equal(sample.ids[sample.inputs], targets[:5])
    exact = head_loss(x, table, targets, dtype=torch.float32)
    torch.testing.assert_close(exact, F.cross_entropy(x @ table.t(), targets))


def test_partition_function_estimate_is_unbiased(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss_module, "COLUMN_STEP", 4)
    x, table, targets = _problem(tokens=1)
    sampler = VocabularySampler(torch.rand(500), frequent=50, sampled=40, seed=0)
    logits = (x @ table.t()).detach()[0]
    estimates = []
    for step in range(400):
        s = sampler.sample(targets, targets, step)
        estimates.append((logits[s.ids] + s.bias).exp().sum())
    mean, spread = torch.stack(estimates).mean(), torch.stack(estimates).std() / 400**0.5
    assert abs(mean - logits.exp().sum()) < 4 * spread
    assert spread > 0


def test_columns_come_in_few_numbers_as_every_number_costs_memory() -> None:
    sampler = VocabularySampler(torch.rand(6000), frequent=700, sampled=300, seed=0)
    counts = set()
    for step in range(20):
        tokens = torch.randint(6000, (40 + 7 * step,))
        sample = sampler.sample(tokens, tokens, step)
        counts.add(sample.ids.numel())
        drawn = int((sample.bias > 0).sum())
        assert drawn >= 300
        left = 6000 - (sample.ids.numel() - drawn)
        torch.testing.assert_close(sample.bias.max(), torch.log(torch.tensor(left / drawn)))
    assert counts <= {1024, 1536}


def test_sample_depends_on_seed_and_step_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss_module, "COLUMN_STEP", 4)
    inputs, targets = torch.tensor([[4, 3, 9]]), torch.tensor([3, 9, 499])
    make = lambda seed: VocabularySampler(torch.arange(500.0), 50, 40, seed)  # noqa: E731
    a, b = make(0).sample(inputs, targets, 5), make(0).sample(inputs, targets, 5)
    assert torch.equal(a.ids, b.ids)
    assert not torch.equal(a.ids, make(0).sample(inputs, targets, 6).ids)
    assert not torch.equal(a.ids, make(1).sample(inputs, targets, 5).ids)
    assert torch.equal(a.ids[a.targets], targets)
    assert torch.equal(a.ids[a.inputs], inputs)
    assert a.ids.unique().numel() == a.ids.numel()
