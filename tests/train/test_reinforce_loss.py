"""Advantages and policy loss: exact expectations on a policy whose completions can all be written down, and edges."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from nanochat_tui.errors import UserError
from nanochat_tui.runs.reinforce import ReinforceConfig, parse_reinforce
from nanochat_tui.train.reinforce.advantages import grpo_advantages, maxrl_advantages, same_rewards
from nanochat_tui.train.reinforce.loss import Policy, Scope, engine_correction, k3, policy_loss

END = 2
"""The third symbol ends a completion; the longest has two symbols."""
COMPLETIONS = [(END,), *((first, second) for first in (0, 1) for second in (0, 1, END))]
RIGHT = [0.0, 0.0, 1.0, 0.0, 1.0, 0.0, 0.0]
"""Success of each."""
GROUP = 3


def parameters() -> Tensor:
    """Logits of the first symbol, and of the second after each first one, float64 [3, 3]."""
    return torch.tensor([[0.3, -0.4, 0.1], [0.2, 0.5, -0.3], [-0.6, 0.1, 0.4]], dtype=torch.float64, requires_grad=True)


def token_log_probs(logits: Tensor) -> Tensor:
    """Log-probabilities of the symbols of all completions, [completions, 2], 0 behind the end."""
    table = logits.log_softmax(-1)
    rows = []
    for symbols in COMPLETIONS:
        values = [table[0, symbols[0]]]
        values.append(table[1 + symbols[0], symbols[1]] if len(symbols) == 2 else torch.zeros((), dtype=logits.dtype))
        rows.append(torch.stack(values))
    return torch.stack(rows)


MASK = torch.tensor([[1.0, float(len(symbols) == 2)] for symbols in COMPLETIONS], dtype=torch.float64)


def gradient(value: Tensor, logits: Tensor) -> Tensor:
    (found,) = torch.autograd.grad(value, logits)
    return found


def expected_estimate(advantages: Callable[[Tensor], Tensor], settings: ReinforceConfig) -> Tensor:
    """The expectation over all groups of the gradient that the loss gives, each group weighed by its probability."""
    logits = parameters()
    probability = token_log_probs(logits).sum(-1).exp().detach()
    assert float(probability.sum()) == pytest.approx(1.0)
    total = torch.zeros_like(logits)
    for chosen in itertools.product(range(len(COMPLETIONS)), repeat=GROUP):
        rewards = torch.tensor([[RIGHT[i] for i in chosen]], dtype=torch.float64)
        places = list(chosen)
        policy = Policy(MASK[places], advantages(rewards)[0])
        scope = Scope(float(MASK[places].sum()), GROUP)
        loss = policy_loss(token_log_probs(logits)[places], policy, settings, scope).loss
        total += float(probability[places].prod()) * gradient(loss, logits)
    return -total


def chance(logits: Tensor) -> Tensor:
    return (token_log_probs(logits).sum(-1).exp() * torch.tensor(RIGHT, dtype=torch.float64)).sum()


@pytest.mark.parametrize(("baseline", "order"), [(False, GROUP), (True, GROUP - 1)])
def test_maxrl_is_the_gradient_of_the_truncated_log_likelihood(baseline: bool, order: int) -> None:
    settings = ReinforceConfig(algorithm="maxrl", num_generations=GROUP)
    found = expected_estimate(lambda rewards: maxrl_advantages(rewards, baseline=baseline), settings)
    logits = parameters()
    p = chance(logits)
    objective = -sum((1 - p) ** k / k for k in range(1, order + 1))
    assert isinstance(objective, Tensor)
    torch.testing.assert_close(found, gradient(objective, logits), rtol=1e-12, atol=1e-12)
    assert float(found.abs().max()) > 0.01


def test_grpo_without_scaling_is_the_gradient_of_the_mean_reward() -> None:
    settings = ReinforceConfig(num_generations=GROUP, loss_type="sum", scale_rewards="none")
    found = expected_estimate(lambda rewards: grpo_advantages(rewards, "none"), settings)
    logits = parameters()
    # subtracting the group's own mean takes one part in `GROUP` of every reward away
    expected = gradient(chance(logits), logits) * (1 - 1 / GROUP)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    constant = settings.model_copy(update={"loss_type": "dr_grpo", "max_completion_length": 2})
    halved = expected_estimate(lambda rewards: grpo_advantages(rewards, "none"), constant)
    torch.testing.assert_close(halved, expected / 2, rtol=1e-12, atol=1e-12)


def test_grpo_with_scaling_is_the_gradient_weighed_by_the_odds_of_each_group() -> None:
    settings = ReinforceConfig(num_generations=GROUP, loss_type="sum")
    found = expected_estimate(grpo_advantages, settings)
    logits = parameters()
    p = chance(logits)
    weight, q = 0.0, float(p.detach())
    for k in range(1, GROUP):  # groups of k successes; none and all have no deviation and no gradient
        odds = math.comb(GROUP, k) * q**k * (1 - q) ** (GROUP - k)
        mean = k / GROUP
        deviation = math.sqrt((k * (1 - mean) ** 2 + (GROUP - k) * mean**2) / (GROUP - 1)) + 1e-4
        weight += odds / GROUP / deviation * (k * (1 - mean) / q + (GROUP - k) * mean / (1 - q))
    torch.testing.assert_close(found, weight * gradient(p, logits), rtol=1e-10, atol=1e-12)


def test_what_all_completions_share_teaches_nothing() -> None:
    equal = torch.full((2, 4), 0.7)
    assert grpo_advantages(equal).abs().max() < 1e-6
    assert maxrl_advantages(torch.ones(1, 4)).tolist() == [[0.0] * 4]
    assert maxrl_advantages(torch.zeros(1, 4), baseline=False).tolist() == [[0.0] * 4]
    assert same_rewards(torch.tensor([[1.0, 1.0], [1.0, 0.0]])).tolist() == [True, False]


def test_rewards_may_be_shifted_and_some_may_be_unknown() -> None:
    rewards = torch.tensor([[1.0, 1.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    found = grpo_advantages(rewards)
    torch.testing.assert_close(found, grpo_advantages(rewards + 5))
    assert found[0].tolist() == pytest.approx([1.0954, 1.0954, -0.7303, -0.7303, -0.7303], abs=3e-4)
    known = grpo_advantages(torch.tensor([[1.0, math.nan, 0.0]], dtype=torch.float64))
    assert known[0, 1] == 0
    torch.testing.assert_close(known[0, [0, 2]], grpo_advantages(torch.tensor([[1.0, 0.0]], dtype=torch.float64))[0])
    batch = grpo_advantages(torch.tensor([[1.0, 0.0], [4.0, 0.0]], dtype=torch.float64), "batch")
    deviation = float(torch.tensor([1.0, 0.0, 4.0, 0.0], dtype=torch.float64).std()) + 1e-4
    torch.testing.assert_close(batch * deviation, torch.tensor([[0.5, -0.5], [2.0, -2.0]], dtype=torch.float64))


def one_token(ratio: float, advantage: float, **settings: Any) -> tuple[float, float]:
    """Loss and its gradient in the log-probability for one token of a given ratio."""
    log_prob = torch.tensor([[math.log(ratio)]], dtype=torch.float64, requires_grad=True)
    policy = Policy(torch.ones(1, 1), torch.tensor([advantage]), torch.zeros(1, 1, dtype=torch.float64))
    loss = policy_loss(log_prob, policy, ReinforceConfig(**settings), Scope(1.0, 1)).loss
    (slope,) = torch.autograd.grad(loss, log_prob)
    return float(loss), float(slope)


def test_clipping_holds_back_what_has_moved_far_enough() -> None:
    assert one_token(1.3, 1.0) == (pytest.approx(-1.2), 0.0)
    assert one_token(1.3, -1.0) == (pytest.approx(1.3), pytest.approx(1.3))
    assert one_token(0.7, -1.0) == (pytest.approx(0.8), 0.0)
    assert one_token(0.7, 1.0)[1] == pytest.approx(-0.7)
    assert one_token(1.25, 1.0, epsilon_high=0.28)[1] == pytest.approx(-1.25)
    assert one_token(9.0, -1.0, delta=4.0) == (pytest.approx(4.0), 0.0)
    assert one_token(9.0, 1.0, loss_type="cispo", epsilon_high=5.0)[1] == pytest.approx(-5.0)


def test_the_divergence_is_never_negative_and_pulls_back_to_the_start() -> None:
    d = torch.tensor([0.0, 1.0, -1.0], dtype=torch.float64)
    assert k3(torch.zeros(3), d).tolist() == pytest.approx([0.0, 0.71828, 0.36788], abs=1e-5)
    log_prob = torch.tensor([[-0.5]], dtype=torch.float64, requires_grad=True)
    policy = Policy(torch.ones(1, 1), torch.zeros(1), reference=torch.tensor([[-1.5]], dtype=torch.float64))
    result = policy_loss(log_prob, policy, ReinforceConfig(beta=0.5), Scope(1.0, 1))
    assert result.kl == pytest.approx(0.36788, abs=1e-5)
    assert float(result.loss.detach()) == pytest.approx(0.5 * 0.36788, abs=1e-5)
    (slope,) = torch.autograd.grad(result.loss, log_prob)
    assert float(slope) > 0  # a smaller probability, as the start has it, is a smaller loss
    with pytest.raises(ValueError, match="beta needs"):
        policy_loss(log_prob, Policy(torch.ones(1, 1), torch.zeros(1)), ReinforceConfig(beta=0.5), Scope(1.0, 1))


@pytest.mark.parametrize("kind", ["dapo", "grpo", "dr_grpo", "cispo", "sum"])
def test_micro_batches_add_up_to_the_batch(kind: str) -> None:
    generator = torch.Generator().manual_seed(1)
    log_probs = -torch.rand(6, 5, generator=generator, dtype=torch.float64)
    old = log_probs + 0.3 * torch.randn(6, 5, generator=generator, dtype=torch.float64)
    lengths = torch.tensor([5, 1, 3, 2, 5, 4])
    mask = (torch.arange(5) < lengths.unsqueeze(1)).double()
    advantages = torch.randn(6, generator=generator, dtype=torch.float64)
    settings = ReinforceConfig(loss_type=kind, epsilon_high=0.3)  # type: ignore[arg-type]
    scope = Scope(float(mask.sum()), 6, 3)

    def loss(rows: slice) -> float:
        policy = Policy(mask[rows], advantages[rows], old[rows])
        return float(policy_loss(log_probs[rows], policy, settings, scope).loss)

    whole = loss(slice(0, 6))
    assert sum(loss(slice(at, at + 2)) for at in (0, 2, 4)) == pytest.approx(whole)


def test_the_engine_s_probabilities_are_corrected_for() -> None:
    mine = torch.tensor([[-1.0, -1.0], [-1.0, -3.0]])
    engine = torch.tensor([[-1.5, math.nan], [-4.0, -3.0]])
    mask = torch.ones(2, 2)
    e = math.e
    token = ReinforceConfig(importance_sampling_mode="token_truncate")
    assert engine_correction(mine, engine, mask, token).flatten().tolist() == pytest.approx([e**0.5, 1.0, 3.0, 1.0])
    dropped = ReinforceConfig(importance_sampling_mode="token_mask")
    assert engine_correction(mine, engine, mask, dropped)[1].tolist() == pytest.approx([0.0, 1.0])
    whole = ReinforceConfig()
    assert engine_correction(mine, engine, mask, whole).tolist() == [[pytest.approx(e**0.5)], [0.0]]


def test_settings_that_do_not_go_together_are_refused_in_a_sentence() -> None:
    assert parse_reinforce({}).summed == "dapo"
    assert parse_reinforce({"algorithm": "maxrl"}).summed == "sum"
    assert not parse_reinforce({"temperature": 0.7}).corrects
    for values, words in (
        ({"num_generations": 1}, "num_generations: Input should be greater than or equal to 2"),
        ({"loss_type": "cispo"}, "loss_type cispo needs epsilon_high"),
        ({"betta": 0.1}, "there is no setting betta"),
        ({"importance_sampling_clip_min": 4.0}, "importance_sampling_clip_min 4 is above"),
    ):
        with pytest.raises(UserError, match=words) as caught:
            parse_reinforce(values)
        assert "\n" not in str(caught.value)
