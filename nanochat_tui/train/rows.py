"""What a logged step says: the row of metrics.jsonl and its line in the log."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from nanochat_tui.train.evaluation import Evaluation
from nanochat_tui.train.mhc_analysis import records_row
from nanochat_tui.train.model import NanochatModel


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is: steps done and planned, tokens seen, seconds of training."""

    step: int
    total: int
    tokens: int
    seconds: float


def metrics_row(
    progress: Progress, window: list[tuple[float, float]], rate: float, norm: float, tokens_per_step: int
) -> tuple[dict[str, Any], str]:
    """Row and log line of a step; `window` holds loss (nats per token) and seconds of each step it stands for.

    Steps that were skipped are not in it; when all were, the row has no loss.
    """
    loss = sum(value for value, _ in window) / len(window) if window else math.nan
    speed = len(window) * tokens_per_step / max(1e-9, sum(took for _, took in window))
    row: dict[str, Any] = {
        "step": progress.step,
        "tokens": progress.tokens,
        "seconds": round(progress.seconds, 3),
        "loss": loss,
        "perplexity": math.exp(min(loss, 80.0)),
        "lr": rate,
        "grad_norm": norm if math.isfinite(norm) else None,
        "tok_per_s": round(speed, 1),
    }
    if not window:
        del row["loss"], row["perplexity"], row["tok_per_s"]
    return row, (
        f"[{progress.step:>6}/{progress.total:<6}] loss={loss:.4f} lr={rate:.6f} gnorm={norm:.2f} "
        f"tok/s={speed:.0f} elapsed={progress.seconds:.0f}s"
    )


def evaluation_row(evaluation: Evaluation, model: NanochatModel) -> tuple[dict[str, Any], str]:
    """What an evaluation adds to row and line."""
    per_byte = evaluation.bits_per_byte
    words = f" val_loss={evaluation.loss:.4f} accuracy={evaluation.accuracy:.3f}"
    words += f" bits/byte={per_byte:.4f}" if per_byte else ""
    return {**evaluation.metrics(), "mhc": records_row(model)}, words
