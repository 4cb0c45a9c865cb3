"""FIRE: hidden matrices made isometries again where a new phase of training begins.

Frobenius-Isometry REinitialization (Han et al. 2026, arXiv 2602.08040) replaces a matrix W by the isometry that is
nearest to it, its polar factor, at the scale of a Frobenius isometry:

    SFE(W, W') = ||W - W'||²       what is lost of the old weights (stability)
    DfI(W)     = ||WᵀW - I||²      how far W is from an isometry (plasticity), on its smaller side

The polar factor minimises SFE with DfI = 0. It is found by cubic Newton-Schulz steps on W / ||W||, or by an SVD.
Embedding, norms and mHC records stay as they are; the optimiser's moments belong to the old weights and are dropped.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from nanochat_tui.train.quantise import ternary_scales

Matrices = Literal["all", "query-key"]


def isometry(matrix: Tensor, iterations: int) -> Tensor:
    """Return the polar factor U Vᵀ of a matrix [rows, columns], in its dtype.

    `iterations` cubic Newton-Schulz steps X ← 1.5 X - 0.5 X XᵀX from W / ||W||; 0 is exact, by an SVD. A step raises
    small singular values by half only: on square matrices ten leave the smallest of them short of one.
    """
    if iterations == 0:
        u, _, v = torch.linalg.svd(matrix, full_matrices=False)
        exact: Tensor = u @ v
        return exact
    wide = matrix.shape[0] < matrix.shape[1]
    x = matrix.mT if wide else matrix
    x = x / x.norm().clamp(min=torch.finfo(x.dtype).tiny)
    for _ in range(iterations):
        x = 1.5 * x - 0.5 * x @ (x.mT @ x)
    result: Tensor = x.mT if wide else x
    return result


def isometry_scale(matrix: Tensor) -> float:
    """Return √(outputs / inputs), the singular values of a reinitialised matrix [outputs, inputs]."""
    return float((matrix.shape[0] / matrix.shape[1]) ** 0.5)


def deviation_from_isometry(matrix: Tensor) -> float:
    """Return DfI of a matrix over `isometry_scale`: squared Frobenius norm of XᵀX - I on the smaller side."""
    x = matrix.detach().double() / isometry_scale(matrix)
    gram = x @ x.mT if x.shape[0] < x.shape[1] else x.mT @ x
    return float((gram - torch.eye(len(gram), dtype=gram.dtype, device=gram.device)).square().sum())


@dataclass(frozen=True, slots=True)
class FireReport:
    """What FIRE did to a model's matrices, as sums over them."""

    matrices: int
    sfe: float
    """Squared Frobenius distance of the new weights from the old."""
    sfe_relative: float
    """The same over the squared norm of the old ones."""
    dfi_before: float
    dfi_after: float
    flipped: float
    """Share of the ternary codes that changed."""

    def row(self) -> dict[str, float | int]:
        """Keys of metrics.jsonl."""
        return {
            "fire_matrices": self.matrices,
            "fire_sfe": self.sfe,
            "fire_sfe_relative": self.sfe_relative,
            "fire_dfi_before": self.dfi_before,
            "fire_dfi_after": self.dfi_after,
            "fire_flipped": self.flipped,
        }

    def line(self) -> str:
        """What the log says."""
        return (
            f"FIRE: {self.matrices} matrices reinitialised, optimiser reset; SFE {self.sfe:.4g} "
            f"({self.sfe_relative:.1%} of the squared norm), "
            f"DfI {self.dfi_before:.4g} before and {self.dfi_after:.4g} after, {self.flipped:.1%} of the codes changed"
        )


@torch.no_grad()
def reinitialise(
    named: Iterable[tuple[str, nn.Parameter]],
    *,
    iterations: int,
    matrices: Matrices = "all",
    group_size: int,
    least_squares: bool = False,
) -> FireReport:
    """Replace the hidden matrices among the parameters by scaled isometries, in place, and report.

    Hidden are matrices of blocks (`blk.…`); `query-key` takes the query and key projections only. The ternary codes of
    `flipped` are those of groups of `group_size`.
    """
    sfe = square = before = after = 0.0
    count = flipped = weights = 0
    for name, p in named:
        if p.ndim != 2 or not name.startswith("blk."):
            continue
        if matrices == "query-key" and not name.endswith(("attn_q.weight", "attn_k.weight")):
            continue
        old = p.detach().clone()
        codes = _codes(old, group_size, least_squares)
        before += deviation_from_isometry(old)
        new = isometry(old.double() if iterations == 0 else old, iterations) * isometry_scale(old)
        p.copy_(new)
        after += deviation_from_isometry(p)
        sfe += float((p - old).double().square().sum())
        square += float(old.double().square().sum())
        flipped += int((codes != _codes(p, group_size, least_squares)).sum())
        weights += p.numel()
        count += 1
    return FireReport(count, sfe, sfe / max(square, 1e-300), before, after, flipped / max(1, weights))


def _codes(weight: Tensor, group_size: int, least_squares: bool) -> Tensor:
    """Ternary codes of a matrix, by the definition of `model.ternary`."""
    scales = ternary_scales(weight, group_size, least_squares=least_squares).float().unsqueeze(-1)
    groups = weight.detach().view(weight.shape[0], -1, group_size)
    return (groups / scales).round_().clamp_(-1, 1)
