"""FIRE: isometries against an SVD in NumPy, and what it does to a run."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from trained import losses, on_data, train, write_data

from nanochat_tui.model.config import ModelConfig
from nanochat_tui.train.fire import deviation_from_isometry, isometry, isometry_scale, reinitialise
from nanochat_tui.train.model import NanochatModel

WIDE, TALL, SQUARE = (24, 80), (80, 24), (48, 48)
SMALL = ModelConfig(
    dim=128, n_layers=2, n_heads=4, n_kv_heads=2, hidden_dim=256, vocab_size=300, context_length=64, n_streams=2
)


def _gaussian(shape: tuple[int, int], seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def _polar(matrix: torch.Tensor) -> np.ndarray[Any, Any]:
    u, _, v = np.linalg.svd(matrix.numpy(), full_matrices=False)
    polar: np.ndarray[Any, Any] = u @ v
    return polar


@pytest.mark.parametrize("shape", [WIDE, TALL, SQUARE])
@pytest.mark.parametrize("iterations", [0, 50])
def test_the_isometry_is_the_polar_factor(shape: tuple[int, int], iterations: int) -> None:
    matrix = _gaussian(shape)
    found = isometry(matrix, iterations)
    np.testing.assert_allclose(found.numpy(), _polar(matrix), atol=1e-10)
    gram = found @ found.mT if shape[0] < shape[1] else found.mT @ found
    torch.testing.assert_close(gram, torch.eye(min(shape), dtype=torch.float64), atol=1e-10, rtol=0)
    torch.testing.assert_close(isometry(found, iterations), found, atol=1e-10, rtol=0)  # idempotent


@pytest.mark.parametrize("shape", [WIDE, TALL, SQUARE])
def test_few_iterations_equal_the_cubic_on_each_singular_value(shape: tuple[int, int]) -> None:
    matrix = _gaussian(shape)
    u, s, v = np.linalg.svd(matrix.numpy(), full_matrices=False)
    s = s / np.linalg.norm(s)
    for _ in range(10):
        s = 1.5 * s - 0.5 * s**3
    np.testing.assert_allclose(isometry(matrix, 10).numpy(), u * s @ v, atol=1e-12)


def test_no_random_orthogonal_matrix_is_nearer() -> None:
    matrix = _gaussian(SQUARE)
    nearest = float((matrix - isometry(matrix, 0)).square().sum())
    for seed in range(1, 101):
        other = torch.linalg.qr(_gaussian(SQUARE, seed)).Q
        assert nearest <= float((matrix - other).square().sum())


@pytest.mark.parametrize("shape", [WIDE, TALL, SQUARE])
def test_rotating_the_input_rotates_the_result(shape: tuple[int, int]) -> None:
    matrix, turn = _gaussian(shape), torch.linalg.qr(_gaussian((shape[0], shape[0]), 5)).Q
    torch.testing.assert_close(isometry(turn @ matrix, 10), turn @ isometry(matrix, 10), atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    ("shape", "iterations", "expected"),
    [((64, 256), 5, 15.2), ((256, 64), 5, 15.2), ((256, 256), 5, 178.0), ((256, 256), 10, 29.1), ((64, 64), 5, 26.0)],
)
def test_deviation_left_after_few_iterations(shape: tuple[int, int], iterations: int, expected: float) -> None:
    """The table of the method's notes, for Gaussian matrices."""
    found = [
        deviation_from_isometry(isometry(_gaussian(shape, seed), iterations) * isometry_scale(_gaussian(shape)))
        for seed in range(8)
    ]
    assert sum(found) / len(found) == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("matrices", ["all", "query-key"])
def test_hidden_matrices_become_scaled_isometries_and_nothing_else_changes(matrices: Any) -> None:
    torch.manual_seed(0)
    model = NanochatModel(SMALL)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    report = reinitialise(model.named_parameters(), iterations=0, matrices=matrices, group_size=128)
    changed = []
    for name, p in model.named_parameters():
        hidden = p.ndim == 2 and name.startswith("blk.")
        if hidden and (matrices == "all" or "attn_q" in name or "attn_k" in name):
            values = np.linalg.svd(p.detach().double().numpy(), compute_uv=False)
            np.testing.assert_allclose(values, (p.shape[0] / p.shape[1]) ** 0.5, rtol=1e-5)
            changed.append((before[name], p.detach()))
        else:
            assert torch.equal(p, before[name]), name
    assert report.matrices == len(changed) == (14 if matrices == "all" else 4)
    distance = sum(float((a.double() - b.double()).square().sum()) for a, b in changed)
    assert report.sfe == pytest.approx(distance, rel=1e-5)
    assert report.dfi_before == pytest.approx(sum(deviation_from_isometry(a) for a, _ in changed))
    assert report.dfi_after < 1e-6
    assert report.dfi_before > 1
    assert 0 < report.flipped < 0.5


def test_flipped_counts_ternary_codes() -> None:
    weight = torch.nn.Parameter(torch.tensor([[2.0, 0.1], [0.1, 2.0]]))
    # the polar factor of a symmetric positive matrix is the identity: no code changes
    assert reinitialise([("blk.0.x", weight)], iterations=0, group_size=2).flipped == 0
    torch.testing.assert_close(weight.detach(), torch.eye(2))
    turned = torch.nn.Parameter(torch.tensor([[2.0, 1.1], [-0.1, 2.0]]))
    report = reinitialise([("blk.0.x", turned)], iterations=0, group_size=2)
    assert report.flipped == 0.25  # 1.1 of mean 1.55 was a one, its new value is a zero


def test_a_run_applies_it_at_its_step_and_resumes_bit_for_bit(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"steps": 12, "fire": True, "fire_step": 6}
    rows = train(tmp_path / "whole", **settings)
    fired = [row for row in rows if "fire_sfe" in row]
    assert [row["step"] for row in fired] == [7]  # the row of the first step after it
    assert fired[0]["fire_dfi_after"] < fired[0]["fire_dfi_before"]
    assert "FIRE: 14 matrices" in (tmp_path / "whole" / "log.txt").read_text()
    plain = train(tmp_path / "plain", steps=12)
    assert losses(rows)[6] == losses(plain)[6]
    assert losses(rows)[8] != losses(plain)[8]
    resumed = train(tmp_path / "part", resume=tmp_path / "whole" / "step_5", **settings)
    assert losses(resumed) == {step: row for step, row in losses(rows).items() if step >= 5}
    assert [row["step"] for row in resumed if "fire_sfe" in row] == [7]


def test_the_optimiser_begins_anew(tmp_path: Path) -> None:
    train(tmp_path, steps=6, fire=True, fire_step=5, checkpoint_interval=1, head_frequent=100, head_sampled=50)
    moments = load_file(tmp_path / "final" / "optimizer.safetensors")
    assert {float(value) for name, value in moments.items() if name.startswith("adamw.step.")} == {1.0}


@pytest.mark.parametrize("what", ["data", "rate"])
def test_a_resume_that_begins_a_phase_applies_it_once(tmp_path: Path, what: str) -> None:
    first = on_data(write_data(tmp_path / "one"), steps=6, decay_fraction=0.5)
    train(tmp_path / "run", **first)
    other = on_data(write_data(tmp_path / "two", tokens=3000), steps=10, decay_fraction=0.5)
    second = {"data": other, "rate": {**first, "steps": 10}}[what]
    rows = train(tmp_path / "run", resume=tmp_path / "run" / "final", fire=True, checkpoint_interval=1, **second)
    assert [row["step"] for row in rows if "fire_sfe" in row] == [7]
    again = train(tmp_path / "again", resume=tmp_path / "run" / "step_8", fire=True, **second)
    assert not [row for row in again if "fire_sfe" in row]


def test_a_resume_of_the_same_phase_does_not_apply_it(tmp_path: Path) -> None:
    train(tmp_path, steps=10, fire=True)
    rows = train(tmp_path / "b", resume=tmp_path / "step_5", steps=10, fire=True)
    assert not [row for row in rows if "fire_sfe" in row]
