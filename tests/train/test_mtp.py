"""Multi-token prediction: targets, losses against the formulas written out, gradients, runs, export."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor
from trained import losses, on_data, train, write_data

from nanochat_tui.cli.train_export import export
from nanochat_tui.engine.generate.model import load
from nanochat_tui.errors import UserError
from nanochat_tui.export import export_model
from nanochat_tui.formats.gguf import read_gguf
from nanochat_tui.inspection.summary import summarise
from nanochat_tui.inspection.text import remarks
from nanochat_tui.model.config import PRESETS, ModelConfig
from nanochat_tui.train.loss import VocabularySampler
from nanochat_tui.train.model import NanochatModel
from nanochat_tui.train.mtp import TokensAhead, effective_ahead, states_ahead
from nanochat_tui.train.step import exact_backward, sampled_backward

SMALL = ModelConfig(
    dim=128,
    n_layers=2,
    n_heads=4,
    n_kv_heads=2,
    hidden_dim=256,
    vocab_size=300,
    context_length=64,
    n_streams=2,
    nextn=3,
)


def _model(**changes: object) -> NanochatModel:
    torch.manual_seed(0)
    return NanochatModel(SMALL.with_(**changes))


def _batch(length: int = 16, seed: int = 1) -> tuple[Tensor, Tensor]:
    tokens = torch.randint(0, 300, (2, length + 1), generator=torch.Generator().manual_seed(seed))
    return tokens[:, :-1], tokens[:, 1:]


def _norm(x: Tensor, weight: Tensor) -> Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * weight


def _block(x: Tensor, w: dict[str, Tensor], config: ModelConfig) -> Tensor:
    """A plain pre-norm block, head by head and without any function of the trainer."""
    length, width = x.shape[1], config.head_dim
    angle = torch.arange(length)[:, None] * 10_000.0 ** (-torch.arange(width // 2) / (width // 2))

    def turned(v: Tensor) -> Tensor:
        a, b = v[..., : width // 2], v[..., width // 2 :]
        return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], -1)

    h = _norm(x, w["attn_norm"])
    q, k, v = (h @ w[name].T for name in ("attn_q", "attn_k", "attn_v"))
    heads = []
    for i in range(config.n_heads):
        j = i * config.n_kv_heads // config.n_heads
        key, value = k[..., j * width : (j + 1) * width], v[..., j * width : (j + 1) * width]
        scores = turned(q[..., i * width : (i + 1) * width]) @ turned(key).transpose(1, 2) / width**0.5
        heads.append(scores.masked_fill(torch.ones(length, length).triu(1).bool(), -torch.inf).softmax(-1) @ value)
    x = x + torch.cat(heads, -1) @ w["attn_output"].T
    h = _norm(x, w["ffn_norm"])
    gate = h @ w["ffn_gate"].T
    return x + (gate * gate.sigmoid() * (h @ w["ffn_up"].T)) @ w["ffn_down"].T


def test_losses_of_all_depths_equal_the_formulas_written_out() -> None:
    torch.manual_seed(0)
    model = NanochatModel(SMALL, quantise=False, activations="float", init_std=0.1)
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim == 1:
                p.add_(0.2 * torch.randn(p.shape))
    inputs, targets = _batch()
    tokens, length = torch.cat([inputs, targets[:, -1:]], 1), inputs.shape[1]
    table = model.head_weight.detach()
    state = hidden = model.hidden(inputs).detach()
    expected, total = {}, 0.0
    for depth in (1, 2, 3):
        w = {
            name.removesuffix(".weight").split(".", 2)[2]: p.detach()
            for name, p in model.named_parameters()
            if name.startswith(f"blk.{1 + depth}.")
        }
        known = torch.stack([table[tokens[:, i + depth]] for i in range(length - depth)], 1)
        pair = torch.cat([_norm(known, w["nextn.enorm"]), _norm(state[:, : length - depth], w["nextn.hnorm"])], -1)
        state = _block(pair @ w["nextn.eh_proj"].T, w, SMALL)
        logits = _norm(state, w["nextn.shared_head_norm"]) @ table.T
        entropy = [
            -logits[b, i].log_softmax(-1)[tokens[b, i + 1 + depth]] for b in range(2) for i in range(length - depth)
        ]
        expected[f"mtp_loss_{depth + 1}"] = float(sum(entropy)) / len(entropy)
        total += 0.3 / 3 * float(sum(entropy)) / (2 * length)
    ahead = TokensAhead(model, 0.3)
    found = ahead.loss(hidden, model.embed(inputs), targets, lambda x, wanted: F.cross_entropy(x @ table.T, wanted))
    assert float(found.detach()) == pytest.approx(total, rel=1e-5)
    assert ahead.row() == pytest.approx(expected, rel=1e-5)
    assert ahead.row() == {}


def test_depth_k_is_trained_on_token_i_plus_1_plus_k() -> None:
    model, tokens = _model(), torch.arange(21).repeat(2, 1)
    seen: list[list[int]] = []

    def head(x: Tensor, wanted: Tensor) -> Tensor:
        assert len(x) == len(wanted)
        seen.append(wanted.tolist())
        return x.sum() * 0

    inputs = tokens[:, :-1]
    TokensAhead(model, 1.0).loss(model.hidden(inputs), model.embed(inputs), tokens[:, 1:], head)
    assert seen == [2 * list(range(1 + depth, 21)) for depth in (1, 2, 3)]


def test_no_depth_sees_the_token_it_predicts() -> None:
    model = _model(n_streams=1)
    inputs, _ = _batch()
    changed = inputs.clone()
    changed[:, 9] = (changed[:, 9] + 1) % 300
    found = []
    with torch.no_grad():
        for tokens in (inputs, changed):
            found.append(states_ahead(model, model.hidden(tokens), model.embed(tokens), effective_ahead(model)))
    for depth, (a, b) in enumerate(zip(*found, strict=True), 1):
        # depth k at position i knows the tokens up to i + k
        assert torch.equal(a[:, : 9 - depth], b[:, : 9 - depth])
        assert not torch.equal(a[:, 9 - depth], b[:, 9 - depth])


@pytest.mark.parametrize("tied", [True, False])
def test_the_gradient_reaches_trunk_table_and_blocks(tied: bool) -> None:
    model, (inputs, targets) = _model(tied=tied), _batch()
    plain = exact_backward(model, model.trunk, inputs, targets.reshape(-1), 1.0)
    without = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    assert not any(n.startswith(("blk.2.", "blk.3.", "blk.4.")) for n in without)
    model.zero_grad(set_to_none=True)
    ahead = TokensAhead(model, 0.5)
    loss = exact_backward(model, model.trunk, inputs, targets.reshape(-1), 1.0, ahead=ahead)
    assert torch.equal(loss, plain), "what is logged is the loss of the next token"
    for name, p in model.named_parameters():
        assert p.grad is not None, name
        assert p.grad.abs().max() > 0, name
        if name in without:
            assert not torch.equal(p.grad, without[name]), name


def test_a_weight_of_zero_leaves_the_trunks_gradients() -> None:
    model, (inputs, targets) = _model(), _batch()
    exact_backward(model, model.trunk, inputs, targets.reshape(-1), 1.0)
    without = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    exact_backward(model, model.trunk, inputs, targets.reshape(-1), 1.0, ahead=TokensAhead(model, 0.0))
    for name, gradient in without.items():
        torch.testing.assert_close(dict(model.named_parameters())[name].grad, gradient)


def test_an_estimate_over_all_columns_is_the_exact_loss() -> None:
    model, (inputs, targets) = _model(), _batch()
    exact = TokensAhead(model, 0.5)
    exact_backward(model, model.trunk, inputs, targets.reshape(-1), 1.0, ahead=exact)
    table = model.head_weight.grad
    model.zero_grad(set_to_none=True)
    sample = VocabularySampler(torch.ones(300), 300, 1, 0).sample(inputs, targets.reshape(-1), 0)
    estimated = TokensAhead(model, 0.5)
    _, rows = sampled_backward(model, model.trunk, inputs, sample, 1.0, ahead=estimated)
    assert rows is not None
    assert table is not None
    torch.testing.assert_close(rows, table[sample.ids], atol=1e-6, rtol=1e-4)
    assert estimated.row() == pytest.approx(exact.row(), rel=1e-5)


def test_the_rest_of_the_model_begins_as_without_it() -> None:
    plain, ahead = _model(nextn=0).state_dict(), _model().state_dict()
    assert all(torch.equal(ahead[name], value) for name, value in plain.items())
    assert len(ahead) == len(plain) + 3 * 13


def test_d20_with_three_tokens_ahead() -> None:
    with torch.device("meta"):
        model = NanochatModel(PRESETS["d20"].with_(nextn=3))
    block = 4 * 256**2 + 3 * 256 * 768 + 2 * 256**2 + 5 * 256
    assert model.parameters_total == model.config.parameters == 17_981_036 + 3 * block


@pytest.mark.parametrize("changes", [{}, {"head_frequent": 100, "head_sampled": 50, "log_interval": 3}])
def test_a_run_logs_the_losses_and_resumes_bit_for_bit(tmp_path: Path, changes: dict[str, Any]) -> None:
    settings: dict[str, Any] = {"steps": 12, "mtp_depth": 2, **changes}
    rows = train(tmp_path / "whole", **settings)
    keys = ("mtp_loss_2", "mtp_loss_3")
    for row in rows:
        assert all(4 < row[key] < 6.5 for key in keys) or row["step"] > 5
    resumed = train(tmp_path / "part", resume=tmp_path / "whole" / "step_5", **settings)
    after = {row["step"]: row for row in rows if row["step"] > 5}
    for row in resumed:
        if row["step"] in after:
            assert [row[key] for key in keys] == [after[row["step"]][key] for key in keys]
    assert {k: v for k, v in losses(resumed).items() if k in after} == {k: losses(rows)[k] for k in after}
    for file in ("model.safetensors", "optimizer.safetensors"):
        assert (tmp_path / "whole" / "final" / file).read_bytes() == (tmp_path / "part" / "final" / file).read_bytes()


def test_off_is_off_bit_for_bit(tmp_path: Path) -> None:
    train(tmp_path / "a", steps=6)
    train(tmp_path / "b", steps=6, mtp_depth=0, mtp_weight=0.7)
    a, b = (load_file(tmp_path / name / "final" / "model.safetensors") for name in "ab")
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_periodic_text_is_learnt_ahead(tmp_path: Path) -> None:
    model = _model(nextn=1)
    tokens = (torch.arange(33) % 7 + 20).repeat(2, 1)
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    ahead = TokensAhead(model, 1.0)
    for _ in range(25):
        exact_backward(model, model.trunk, inputs, targets.reshape(-1), 1.0, ahead=ahead)
        optimizer.step()
        model.zero_grad(set_to_none=True)
    with torch.no_grad():
        (states,) = states_ahead(model, model.hidden(inputs), model.embed(inputs), effective_ahead(model))
        drafted = (states @ model.head_weight.T).argmax(-1)
    assert torch.equal(drafted[:, 8:], tokens[:, 2:][:, 8:])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mtp")
    train(folder / "run", **on_data(write_data(folder / "data"), steps=3, mtp_depth=2))
    return folder / "run" / "final"


def test_the_export_drops_the_blocks_unless_asked(checkpoint: Path, tmp_path: Path) -> None:
    vocabulary = checkpoint.parent / "tokenizer.json"
    plain = export_model(checkpoint, tmp_path / "plain.gguf", None, vocabulary)
    whole = export_model(checkpoint, tmp_path / "whole.gguf", None, vocabulary, nextn=True)
    shape = PRESETS["tiny"].with_(vocab_size=300)
    assert plain.parameters == shape.parameters
    assert whole.parameters == shape.with_(nextn=2).parameters
    with read_gguf(plain.gguf_path) as file:
        assert not [name for name in file.tensors if "nextn" in name or name.startswith("blk.2")]
        assert "nanochat.nextn_predict_layers" not in file.metadata
        assert file.metadata["nanochat.block_count"].value == 2
    with read_gguf(whole.gguf_path) as file:
        assert file.metadata["nanochat.nextn_predict_layers"].value == 2
        assert file.metadata["nanochat.block_count"].value == 4
        names = [name for name in file.tensors if name.startswith("blk.3.nextn.")]
        assert sorted(names) == [f"blk.3.nextn.{n}.weight" for n in ("eh_proj", "enorm", "hnorm", "shared_head_norm")]
        assert file.tensor("blk.2.nextn.eh_proj.weight").shape == (128, 256)
        found = summarise(file)
        assert found.reason is None
        assert sum("nextn" in text for text in remarks(found)) == 1


def test_the_engine_runs_a_file_that_has_them(checkpoint: Path, tmp_path: Path) -> None:
    vocabulary = checkpoint.parent / "tokenizer.json"
    logits, said = [], list[str]()
    for nextn in (False, True):
        path = tmp_path / f"{nextn}.gguf"
        export_model(checkpoint, path, None, vocabulary, nextn=nextn)
        logits.append(load(path, threads=1, progress=said.append).logits([1, 2, 3, 4]))
    np.testing.assert_array_equal(*logits)
    assert sum("2 blocks that predict further tokens" in line for line in said) == 1


def test_the_command_writes_and_compares_them(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export(checkpoint, tmp_path / "m.gguf", nextn=True, as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert found["parameters"] == PRESETS["tiny"].with_(vocab_size=300, nextn=2).parameters
    assert found["logits"]["max_difference"] < 1e-3
    with pytest.raises(UserError, match="--nextn has no place"):
        export(checkpoint, tmp_path / "l.gguf", arch="llama", nextn=True)


def test_a_resume_without_the_blocks_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    data = checkpoint.parent.parent / "data"
    with pytest.raises(UserError, match="nextn differ"):
        train(tmp_path, resume=checkpoint, **on_data(data, steps=9))
