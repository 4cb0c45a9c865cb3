"""Token filtering: which tokens are kept, and gradients against autograd on a model that cuts the others off."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from trained import losses, on_data, train, write_data

from nanochat_tui.errors import UserError
from nanochat_tui.model.config import ModelConfig
from nanochat_tui.train import collider
from nanochat_tui.train.collider import RowTrunk, TokenFilter, filtered_cross_entropy, kept_tokens
from nanochat_tui.train.loss import VocabularySampler
from nanochat_tui.train.model import Block, BlockWeights, NanochatModel, rms_norm, rope
from nanochat_tui.train.mtp import TokensAhead
from nanochat_tui.train.step import exact_backward, sampled_backward

SMALL = ModelConfig(
    dim=128, n_layers=2, n_heads=4, n_kv_heads=2, hidden_dim=256, vocab_size=300, context_length=64, n_streams=2
)
Gradients = dict[str, Tensor]


class CutModel(NanochatModel):
    """The same model, where keys and values of tokens that are not in `kept` count as constants."""

    kept: Tensor

    def _attention(self, block: Block, w: BlockWeights, x: Tensor) -> Tensor:
        c, (batch, tokens, _) = self.config, x.shape
        x = self.round_input(rms_norm(x, block.attn_norm.weight, c.norm_eps)).to(self.compute_dtype)
        q, k, v = torch.split(F.linear(x, w.qkv), [c.dim, c.kv_dim, c.kv_dim], dim=-1)
        k, v = (torch.where(self.kept[..., None], part, part.detach()) for part in (k, v))
        q, k, v = (part.view(batch, tokens, -1, c.head_dim).transpose(1, 2) for part in (q, k, v))
        cos, sin = self.cos[:tokens].to(q.dtype), self.sin[:tokens].to(q.dtype)
        scores = rope(q, cos, sin) @ rope(k, cos, sin).repeat_interleave(c.n_heads // c.n_kv_heads, 1).mT
        hidden = torch.ones(tokens, tokens, dtype=torch.bool).triu(1)
        share = (scores / c.head_dim**0.5).masked_fill(hidden, -torch.inf).softmax(-1)
        y = (share @ v.repeat_interleave(c.n_heads // c.n_kv_heads, 1)).transpose(1, 2).reshape(batch, tokens, c.dim)
        return F.linear(self.round_input(y), w.output)


def _model(kind: type[NanochatModel] = NanochatModel, *, exact: bool = True, **changes: object) -> NanochatModel:
    """With `exact` in float64 and without rounding, so that tolerances can be those of arithmetic."""
    torch.manual_seed(0)
    model = kind(SMALL.with_(**changes), quantise=not exact, activations="float" if exact else "int8", init_std=0.08)
    if exact:
        model.double()
        model.compute_dtype = torch.float64
    return model


def _batch(length: int = 24) -> tuple[Tensor, Tensor]:
    tokens = torch.randint(0, 300, (3, length + 1), generator=torch.Generator().manual_seed(1))
    return tokens[:, :-1], tokens[:, 1:].reshape(-1)


def _gradients(model: NanochatModel) -> Gradients:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


def _require_equal(found: Gradients, expected: Gradients, atol: float) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert value.abs().max() > 0, name
        torch.testing.assert_close(found[name], value, atol=atol * float(value.abs().max()), rtol=0, msg=name)


def _token_losses(model: NanochatModel, inputs: Tensor, targets: Tensor) -> Tensor:
    with torch.no_grad():
        return F.cross_entropy(model.logits(inputs).flatten(0, 1), targets, reduction="none")


@pytest.mark.parametrize(("ratio", "count"), [(0.0, 7), (0.4, 5), (0.5, 4), (0.9, 1)])
def test_the_tokens_of_the_largest_score_are_kept(ratio: float, count: int) -> None:
    score = torch.tensor([0.5, 3.0, -1.0, 2.0, 2.0, 0.1, 2.0])
    kept = kept_tokens(score, ratio)
    assert int(kept.sum()) == count == math.ceil((1 - ratio) * 7)
    assert count == 7 or score[kept].min() >= score[~kept].max()


def test_of_equal_scores_the_earlier_tokens_are_kept() -> None:
    assert kept_tokens(torch.tensor([1.0, 2.0, 1.0, 1.0]), 0.5).tolist() == [True, True, False, False]
    assert kept_tokens(torch.zeros(6), 0.5).tolist() == [True] * 3 + [False] * 3


@pytest.mark.parametrize("n_streams", [1, 2, 4])
def test_the_forward_pass_is_the_trunks(n_streams: int) -> None:
    model, (inputs, _) = _model(exact=False, n_streams=n_streams), _batch()
    found = RowTrunk(model, model.effective(), model.mixing()).forward(model.embed(inputs))
    assert torch.equal(found, model.hidden(inputs))


@pytest.mark.parametrize(("n_streams", "version"), [(1, 2), (2, 2), (4, 1), (4, 2)])
@pytest.mark.parametrize("tied", [True, False])
def test_the_gradient_is_autograds_with_filtered_tokens_cut_off(n_streams: int, version: int, tied: bool) -> None:
    changes: dict[str, object] = {"n_streams": n_streams, "mhc_version": version, "tied": tied}
    model, (inputs, targets) = _model(**changes), _batch()
    own = _token_losses(model, inputs, targets)
    loss = exact_backward(model, model.trunk, inputs, targets, 0.5, token_filter=TokenFilter(0.4))
    assert float(loss) == pytest.approx(float(own.mean()), rel=1e-6)
    found = _gradients(model)
    cut = _model(CutModel, **changes)
    assert isinstance(cut, CutModel)
    cut.kept = kept_tokens(own, 0.4).view(inputs.shape)
    rows: list[Tensor] = []
    streams: list[Tensor] = []
    hidden = cut.trunk(cut.embed(inputs), cut.effective(), cut.mixing(), keep_streams=streams)
    for state in (hidden, *streams[:-1]):
        state.register_hook(rows.append)
    kept = cut.kept.reshape(-1)
    logits = F.linear(hidden, cut.head_weight).flatten(0, 1)
    (0.5 * F.cross_entropy(logits[kept], targets[kept])).backward()
    _require_equal(found, _gradients(cut), 1e-5)  # the losses that choose are float32
    assert rows
    for gradient in rows:  # nothing reaches a filtered token in any layer
        assert not gradient.reshape(-1, *inputs.shape, 128)[:, ~cut.kept].any()


def test_with_all_tokens_kept_it_is_the_ordinary_gradient() -> None:
    for exact, atol in ((True, 1e-6), (False, 2e-3)):  # the loss is a float32
        model, (inputs, targets) = _model(exact=exact), _batch()
        found = exact_backward(model, model.trunk, inputs, targets, 1.0, token_filter=TokenFilter(1e-6))
        filtered = _gradients(model)
        plain = exact_backward(model, model.trunk, inputs, targets, 1.0)
        assert float(found) == pytest.approx(float(plain), rel=1e-5)
        _require_equal(filtered, _gradients(model), atol)


def test_without_attention_it_is_the_gradient_of_the_filtered_loss() -> None:
    model, (inputs, targets) = _model(), _batch()
    with torch.no_grad():
        for block in model.blocks:
            block.attn_output.weight.zero_()
    kept = kept_tokens(_token_losses(model, inputs, targets), 0.4)
    exact_backward(model, model.trunk, inputs, targets, 1.0, token_filter=TokenFilter(0.4))
    found = _gradients(model)
    F.cross_entropy(model.logits(inputs).flatten(0, 1)[kept], targets[kept]).backward()
    expected = _gradients(model)
    trained = {name: value for name, value in expected.items() if value.any()}
    assert all(not found[name].any() for name in expected.keys() - trained.keys())
    assert {"blk.0.attn_output.weight", "blk.0.ffn_up.weight", "blk.0.ffn_mhc"} < trained.keys()
    _require_equal({name: found[name] for name in trained}, trained, 1e-6)


@pytest.mark.parametrize("stores", [True, False])
@pytest.mark.parametrize("z_loss", [0.0, 0.01])
def test_loss_and_gradients_of_the_head(stores: bool, z_loss: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collider, "KEPT_LOGITS", (1 << 30) * stores)
    generator = torch.Generator().manual_seed(0)
    x, table = (torch.randn(n, 16, generator=generator, dtype=torch.float64).requires_grad_() for n in (50, 30))
    bias = torch.randn(30, generator=generator, dtype=torch.float64)
    targets = torch.randint(0, 30, (50,), generator=generator)
    found, kept, d_x, d_table = filtered_cross_entropy(
        x.detach(), table.detach(), targets, lambda s: kept_tokens(s, 0.3), bias=bias, chunk=16, z_loss=z_loss
    )
    logits = F.linear(x, table, bias)
    own = F.cross_entropy(logits, targets, reduction="none")
    torch.testing.assert_close(found.double(), own, atol=1e-5, rtol=0)
    assert torch.equal(kept, kept_tokens(own.detach(), 0.3))
    (own[kept].mean() + z_loss * logits.logsumexp(-1)[kept].square().mean()).backward()
    assert x.grad is not None
    assert table.grad is not None
    torch.testing.assert_close(d_x, x.grad[kept], atol=1e-7, rtol=0)
    torch.testing.assert_close(d_table, table.grad, atol=1e-7, rtol=0)


def test_the_reference_models_loss_is_subtracted() -> None:
    model, (inputs, targets) = _model(), _batch()
    torch.manual_seed(5)
    reference = NanochatModel(SMALL, quantise=False, activations="float", init_std=0.3)
    excess = _token_losses(model, inputs, targets) - _token_losses(reference, inputs, targets)
    chosen = TokenFilter(0.4, reference)
    exact_backward(model, model.trunk, inputs, targets, 1.0, token_filter=chosen)
    kept = kept_tokens(excess, 0.4)
    assert not torch.equal(kept, kept_tokens(_token_losses(model, inputs, targets), 0.4))
    assert chosen.row()["collider_excess"] == pytest.approx(float(excess[kept].mean()), rel=1e-4)
    assert all(p.grad is None for p in reference.parameters())


@pytest.mark.parametrize("ahead", [False, True])
def test_an_estimate_over_all_columns_is_the_exact_gradient(ahead: bool) -> None:
    model, (inputs, targets) = _model(exact=False, nextn=2), _batch()
    further = TokensAhead(model, 0.5) if ahead else None
    exact_backward(model, model.trunk, inputs, targets, 1.0, ahead=further, token_filter=TokenFilter(0.5))
    expected = _gradients(model)
    sample = VocabularySampler(torch.ones(300), 300, 1, 0).sample(inputs, targets, 0)
    _, rows = sampled_backward(model, model.trunk, inputs, sample, 1.0, ahead=further, token_filter=TokenFilter(0.5))
    assert rows is not None
    found = _gradients(model) | {"token_embd.weight": rows[torch.argsort(sample.ids)]}
    _require_equal(found, expected, 1e-3)


def test_further_tokens_count_where_the_token_is_kept() -> None:
    model, (inputs, targets) = _model(nextn=2), _batch()
    kept = kept_tokens(_token_losses(model, inputs, targets), 0.4).view(inputs.shape)
    further = TokensAhead(model, 0.5)
    exact_backward(model, model.trunk, inputs, targets, 1.0, ahead=further, token_filter=TokenFilter(0.4))
    found = _gradients(model)
    cut = _model(CutModel, nextn=2)
    assert isinstance(cut, CutModel)
    cut.kept = kept
    hidden = cut.trunk(cut.embed(inputs), cut.effective(), cut.mixing())
    hidden = torch.where(kept[..., None], hidden, hidden.detach())
    total = F.cross_entropy(F.linear(hidden, cut.head_weight)[kept], targets.view(inputs.shape)[kept])
    plain = _model(nextn=2)  # the blocks behind the trunk are not cut
    plain.load_state_dict(cut.state_dict())
    for name, p in plain.named_parameters():
        if name.startswith(("blk.2.", "blk.3.")):
            cut.get_submodule(name.rsplit(".", 1)[0]).weight = p  # type: ignore[assignment]
    cut._attention = plain._attention  # type: ignore[method-assign]
    again = TokensAhead(cut, 0.5)
    table = cut.head_weight
    total = total + again.loss(
        hidden,
        cut.embed(inputs),
        targets.view(inputs.shape),
        lambda x, wanted: F.cross_entropy(F.linear(x, table), wanted),
        kept,
    )
    total.backward()
    _require_equal(found, _gradients(cut), 1e-5)
    assert further.row() == pytest.approx(again.row(), rel=1e-5)


def test_the_backward_pass_shrinks_with_the_ratio_and_the_forward_pass_does_not() -> None:
    work: dict[float, float] = {}
    for ratio in (1e-6, 0.25, 0.5, 0.75):
        model, (inputs, targets) = _model(exact=False), _batch(60)
        with FlopCounterMode(display=False) as counter:
            exact_backward(model, model.trunk, inputs, targets, 1.0, token_filter=TokenFilter(ratio))
        work[ratio] = counter.get_total_flops()
    model, (inputs, _) = _model(exact=False), _batch(60)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.logits(inputs)
    forward = counter.get_total_flops()
    backward = {ratio: flops - forward for ratio, flops in work.items()}
    whole = backward[1e-6]
    assert 1.8 * forward < whole < 2.4 * forward
    for ratio in (0.25, 0.5, 0.75):
        assert backward[ratio] / whole == pytest.approx(1 - ratio, abs=0.12)


@pytest.mark.parametrize("changes", [{}, {"head_frequent": 100, "head_sampled": 50, "log_interval": 3, "mtp_depth": 1}])
def test_a_run_logs_what_was_kept_and_resumes_bit_for_bit(tmp_path: Path, changes: dict[str, Any]) -> None:
    settings: dict[str, Any] = {"steps": 12, "collider_ratio": 0.4, **changes}
    rows = train(tmp_path / "whole", **settings)
    assert all(row["collider_loss"] > row["loss"] for row in rows)
    assert rows[-1]["loss"] < rows[0]["loss"] - 0.5
    resumed = train(tmp_path / "part", resume=tmp_path / "whole" / "step_5", **settings)
    late = {row["step"]: row for row in rows if row["step"] > 5}
    assert {s: v for s, v in losses(resumed).items() if s in late} == {s: losses(rows)[s] for s in late}
    assert all(row["collider_loss"] == late[row["step"]]["collider_loss"] for row in resumed if row["step"] in late)
    for name in ("model.safetensors", "optimizer.safetensors"):
        assert (tmp_path / "whole/final" / name).read_bytes() == (tmp_path / "part/final" / name).read_bytes()


def test_ratio_zero_is_off_bit_for_bit(tmp_path: Path) -> None:
    train(tmp_path / "a", steps=6)
    train(tmp_path / "b", steps=6, collider_ratio=0.0)
    a, b = (load_file(tmp_path / name / "final" / "model.safetensors") for name in "ab")
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_run_with_a_reference_and_one_of_another_vocabulary(tmp_path: Path) -> None:
    first = tmp_path / "first"
    train(first, steps=8)
    rows = train(tmp_path / "second", steps=4, collider_ratio=0.4, collider_reference=first / "final")
    assert all(row["collider_excess"] < row["collider_loss"] for row in rows)
    with pytest.raises(UserError, match=r"reference model .* has 256 token ids"):
        train(
            tmp_path / "third",
            collider_ratio=0.4,
            collider_reference=first / "final",
            **on_data(write_data(tmp_path / "data"), steps=4),
        )
