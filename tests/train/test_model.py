"""The PyTorch model: its size, its start, its residual streams."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from nanochat_tui.model.config import PRESETS, ModelConfig
from nanochat_tui.train.model import NanochatModel
from nanochat_tui.train.streams import initial_record, mix_coefficients

SMALL = ModelConfig(
    dim=128, n_layers=2, n_heads=4, n_kv_heads=2, hidden_dim=256, vocab_size=300, context_length=64, n_streams=2
)


def _model(**changes: object) -> NanochatModel:
    torch.manual_seed(0)
    return NanochatModel(SMALL.with_(**changes))


def _tokens(model: NanochatModel, batch: int = 2, length: int = 16) -> torch.Tensor:
    return torch.randint(0, model.config.vocab_size, (batch, length), generator=torch.Generator().manual_seed(1))


def test_d20_has_exactly_17_981_036_parameters() -> None:
    with torch.device("meta"):
        model = NanochatModel(PRESETS["d20"])
    assert model.parameters_total == PRESETS["d20"].parameters == 17_981_036


@pytest.mark.parametrize("n_streams", [1, 2, 4])
@pytest.mark.parametrize("tied", [True, False])
def test_parameter_count_follows_the_configuration(n_streams: int, tied: bool) -> None:
    assert (
        _model(n_streams=n_streams, tied=tied).parameters_total
        == SMALL.with_(n_streams=n_streams, tied=tied).parameters
    )


def test_d20_starts_at_the_loss_of_a_uniform_guess() -> None:
    torch.manual_seed(0)
    model = NanochatModel(PRESETS["d20"])
    tokens = torch.randint(0, 50_257, (1, 64))
    with torch.no_grad():
        loss = F.cross_entropy(model.logits(tokens[:, :-1])[0], tokens[0, 1:])
    assert abs(loss.item() - math.log(50_257)) < 0.1


@pytest.mark.parametrize("n_streams", [2, 4])
def test_streams_differ_and_mixing_has_a_gradient(n_streams: int) -> None:
    model = _model(n_streams=n_streams)
    tokens = _tokens(model)
    kept: list[torch.Tensor] = []
    hidden = model.trunk(model.embed(tokens), model.effective(), model.mixing(), keep_streams=kept)
    for streams in kept:
        cosine = F.cosine_similarity(streams[0].flatten(), streams[1].flatten(), dim=0)
        assert cosine < 0.99
    F.cross_entropy((hidden @ model.head_weight.t())[0, :-1], tokens[0, 1:]).backward()
    records = [r for block in model.blk for r in (block.attn_mhc, block.ffn_mhc)]
    # the last mixing is inert whatever its value: the mean over streams follows, and columns sum to one
    for record in records[:-1]:
        residual = record.grad[: record.numel() - 4 * n_streams]
        assert residual.abs().max() > 1e-6


def test_alpha_moves_in_training() -> None:
    model = _model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    start = model.mixing()[1].detach().clone()
    tokens = _tokens(model, batch=4, length=32)
    for _ in range(30):
        F.cross_entropy(model.logits(tokens)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
    moved = (model.mixing()[1] - start).abs().amax(dim=(1, 2))
    assert (moved[:-1] > 1e-4).all()  # the last record's mixing is inert, see above


@pytest.mark.parametrize("n_streams", [1, 2, 4])
def test_model_is_causal(n_streams: int) -> None:
    model = _model(n_streams=n_streams)
    tokens = _tokens(model, batch=1)
    changed = tokens.clone()
    changed[0, 10] = (changed[0, 10] + 1) % 300
    with torch.no_grad():
        a, b = model.logits(tokens), model.logits(changed)
    assert torch.equal(a[:, :10], b[:, :10])
    assert not torch.equal(a[:, 10:], b[:, 10:])


@pytest.mark.parametrize(("n_streams", "version"), [(2, 1), (2, 2), (4, 1), (4, 2)])
def test_coefficients_equal_the_numpy_definition(n_streams: int, version: int) -> None:
    from nanochat_tui.model.mhc import stream_matrices

    records = torch.stack([initial_record(n_streams, i) for i in range(4)])
    records = records + torch.randn(records.shape, generator=torch.Generator().manual_seed(2))
    got = mix_coefficients(records, n_streams, version)
    for a, b in zip(got, stream_matrices(records.numpy(), n_streams, version), strict=True):
        np.testing.assert_allclose(a.numpy(), b, atol=2e-6)


def test_equal_streams_and_unit_mean_write_are_the_plain_residual() -> None:
    """With the initial record the first sub-layer reads x itself and writes with mean 1 (methods, section 1.6)."""
    read, matrix, write = mix_coefficients(initial_record(2, 0)[None], 2, 2)
    torch.testing.assert_close(read.sum(), torch.tensor(1.0))
    torch.testing.assert_close(write.mean(), torch.tensor(1.0))
    torch.testing.assert_close(matrix.sum(dim=1), torch.ones(1, 2))
