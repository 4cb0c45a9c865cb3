"""What the residual streams of a model do while it trains, for the rows of metrics.jsonl.

Of every mHC record: its weights, how much it mixes (entropy), by how much it can grow the state (gain, with the write
weights: see `model.mhc_verify`), what the streams are after it (cosine between them, size), and the gradient it got.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nanochat_tui.model.config import MHC_RECORD_FLOATS
from nanochat_tui.model.mhc_verify import verify
from nanochat_tui.train.model import NanochatModel
from nanochat_tui.train.streams import mix_coefficients

Records = list[dict[str, Any]]


def records_row(model: NanochatModel) -> Records:
    """Return alpha, p and q of every mHC record, in the file's order; empty for a plain residual.

    A value that is not finite is None, for JSON has no other word for it.
    """
    config = model.config
    if config.n_streams == 1:
        return []
    with torch.no_grad():
        records = model.records().cpu()
        read, matrix, write = mix_coefficients(records, config.n_streams, config.mhc_version)
    return [
        {
            "alpha": _rounded(float(m[0, 0]), 6),
            "p": [_rounded(v, 5) for v in p.tolist()],
            "q": [_rounded(v, 5) for v in q.tolist()],
        }
        for p, m, q in zip(read, matrix, write, strict=True)
    ]


def _rounded(value: float, digits: int = 6) -> float | None:
    return round(value, digits) if math.isfinite(value) else None


def _scientific(value: float) -> float | None:
    return float(f"{value:.6g}") if math.isfinite(value) else None


def mixing_entropy(matrices: Tensor) -> Tensor:
    """Mean entropy of the rows of doubly stochastic matrices [records, n, n] in nats: 0 = none mixed, ln n = all."""
    entropy: Tensor = torch.special.entr(matrices.double()).sum(-1).mean(-1)
    return entropy


def stream_cosine(streams: Tensor) -> float:
    """Mean cosine over tokens and pairs of streams [n, batch, tokens, dim]."""
    pairs = [F.cosine_similarity(a.double(), b.double(), dim=-1) for a, b in itertools.combinations(streams, 2)]
    return float(torch.stack(pairs).mean())


class StreamAnalysis:
    """Analysis of one run's streams; does nothing for a plain residual."""

    def __init__(self, model: NanochatModel) -> None:
        self.model = model
        self._inputs: Tensor | None = None
        self._gradients: Tensor | None = None

    def observe(self, inputs: Tensor) -> None:
        """Note the gradients of a step before they are clipped, and the tokens [sequences, tokens] it read last."""
        if self.model.config.n_streams == 1:
            return
        parts = [p.grad for block in self.model.blocks for p in (block.attn_mhc, block.ffn_mhc)]
        if all(part is not None for part in parts):
            self._gradients = torch.stack([part for part in parts if part is not None]).clone()
            self._inputs = inputs[:1].clone()

    def row(self) -> dict[str, Any]:
        """Return `mhc` and totals for a row of metrics.jsonl, of the model as it is now; runs one sequence.

        Streams and gradients are missing where no step was observed since the last call.
        """
        config = self.model.config
        if config.n_streams == 1:
            return {}
        found = records_row(self.model)
        values = self.model.records().detach().cpu()
        matrices = mix_coefficients(values, config.n_streams, config.mhc_version)[1]
        for record, entropy in zip(found, mixing_entropy(matrices), strict=True):
            record["entropy"] = _rounded(float(entropy))
        report = verify(values.numpy(), config.n_streams, config.mhc_version)
        totals: dict[str, Any] = {}
        if report.matrices is not None:
            for record, gain in zip(found, report.gains, strict=True):
                record["gain"] = _rounded(float(gain))
            memory, gain = _rounded(report.stream_memory), _rounded(report.log2_total_gain, 4)
            totals = {"mhc_stream_memory": memory, "mhc_log2_gain": gain}
        self._add_streams(found)
        self._add_gradients(found)
        return {"mhc": found, **totals}

    def _add_streams(self, found: Records) -> None:
        inputs, self._inputs = self._inputs, None
        if inputs is None:
            return
        model, kept = self.model, list[Tensor]()
        with torch.no_grad():
            inputs = inputs.to(model.token_embd.weight.device)
            model.trunk(model.embed(inputs), model.effective(), model.mixing(), keep_streams=kept)
        for record, streams in zip(found, kept, strict=True):
            record["cosine"] = _rounded(stream_cosine(streams), 7)
            record["rms"] = _scientific(float(streams.double().square().mean().sqrt()))

    def _add_gradients(self, found: Records) -> None:
        gradients, self._gradients = self._gradients, None
        if gradients is None:
            return
        n = self.model.config.n_streams
        mixing = MHC_RECORD_FLOATS[n] - 4 * n
        for record, gradient in zip(found, gradients.cpu().double(), strict=True):
            record["grad"] = _scientific(float(gradient.norm()))
            record["grad_mix"] = _scientific(float(gradient[:mixing].norm()))
