"""How near a model, as it is run, is to the same file with float activations: the figures of `bench --quality`.

Both read one text and are compared after every token, as llama.cpp's `--kl-divergence` does with a float16 file. The
float path multiplies the file's own weights by activations that are not rounded, with a float32 cache, so what is
measured is what rounding activations (and the cache) costs, and not what quantising the weights did.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nanochat_tui.errors import UserError
from nanochat_tui.text import display_safe

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from nanochat_tui.engine.generate.model import Activations, Model
    from nanochat_tui.engine.run.paging import CacheType

Floats = NDArray[np.float32]
WINDOW = 512
"""Tokens that are read together at most: what a short context allows, long enough for errors to carry on."""
LEAST = 16
"""Tokens that a comparison is worth making for."""
TEXT = Path(__file__).with_name("quality_text.txt")


@dataclass(frozen=True, slots=True)
class Quality:
    """How far logits are from the float path's. Losses and divergence are nats per token.

    tokens: positions that were compared. losses: mean negative log-likelihood of the text's next token. divergence:
    mean Kullback-Leibler divergence of our distribution from the float path's; worst: its 99th percentile. same_top:
    share of positions with the same likeliest token. relative_rms: root mean square of the logits' difference over
    their standard deviation.
    """

    tokens: int
    loss: float
    float_loss: float
    divergence: float
    worst: float
    same_top: float
    relative_rms: float

    def as_text(self) -> str:
        """Return the figures as lines for people."""
        return "\n".join(
            f"{name:<26} {value}"
            for name, value in (
                ("tokens compared", f"{self.tokens:,}"),
                ("loss, float activations", f"{self.float_loss:.4f} nats per token"),
                ("loss, as it is run", f"{self.loss:.4f} ({self.loss - self.float_loss:+.4f})"),
                ("KL divergence", f"{self.divergence:.5f} nats, 99th percentile {self.worst:.5f}"),
                ("same likeliest token", f"{self.same_top:.2%}"),
                ("logits' rms difference", f"{self.relative_rms:.2%} of their deviation"),
            )
        )

    def as_json(self) -> dict[str, Any]:
        """Return the figures as JSON values."""
        return asdict(self)


def windows(ids: Sequence[int], most: int) -> list[list[int]]:
    """Cut ids into windows of at most `most` tokens, without a last one that is too short to tell anything."""
    found = [list(ids[start : start + most]) for start in range(0, len(ids), most)]
    return [window for window in found if len(window) >= min(LEAST, most)] or found[:1]


def log_probabilities(logits: Floats) -> NDArray[np.float64]:
    """Return log-softmax of rows; rows that stand for no token (-inf) stay so."""
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=-1, keepdims=True)
    wide -= np.log(np.exp(wide).sum(axis=-1, keepdims=True))
    return wide


def compare(texts: Sequence[Sequence[int]], ours: Sequence[Floats], exact: Sequence[Floats]) -> Quality:
    """Compare logits [tokens, vocab] of both paths after every token of some texts."""
    losses: list[list[float]] = [[], []]
    divergences: list[float] = []
    same = squares = total = mean = spread = 0.0
    for ids, found, wanted in zip(texts, ours, exact, strict=True):
        for start in range(0, len(ids), 64):  # few rows at a time: in float64 one of a large vocabulary is a megabyte
            part = slice(start, start + 64)
            q, p = log_probabilities(found[part]), log_probabilities(wanted[part])
            named = np.isfinite(p[0])
            log_p, log_q = p[:, named], q[:, named]
            divergences += (np.exp(log_p) * (log_p - log_q)).sum(axis=-1).tolist()
            same += int((q.argmax(-1) == p.argmax(-1)).sum())
            target = np.asarray(ids[start + 1 : start + 65], np.int64)
            rows = np.arange(len(target))
            for found_losses, values in zip(losses, (q, p), strict=True):
                found_losses.extend((-values[rows, target]).tolist())
            a, b = found[part][:, named].astype(np.float64), wanted[part][:, named].astype(np.float64)
            squares += float(np.square(a - b).sum())
            total, mean, spread = total + b.size, mean + float(b.sum()), spread + float(np.square(b).sum())
    deviation = np.sqrt(max(spread / total - (mean / total) ** 2, np.finfo(np.float64).tiny))
    return Quality(
        tokens=len(divergences),
        loss=float(np.mean(losses[0])),
        float_loss=float(np.mean(losses[1])),
        divergence=float(np.mean(divergences)),
        worst=float(np.quantile(divergences, 0.99)),
        same_top=same / len(divergences),
        relative_rms=float(np.sqrt(squares / total) / deviation),
    )


def read_text(path: Path | None) -> str:
    """Return the text to compare on: a file's, or the built-in one. Raises UserError."""
    try:
        return (path or TEXT).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UserError(f"{display_safe(str(path))} is not a text in UTF-8; give another file.") from None
    except OSError as error:
        raise UserError(f"{display_safe(str(path))} cannot be read: {error.strerror or 'unknown reason'}.") from None


def measure_quality(
    path: Path,
    text: str,
    most: int,
    *,
    kernel: str | None = None,
    threads: int | None = None,
    kv: CacheType = "f16",
    activations: Activations = "int8",
    say: Callable[[str], None] | None = None,
) -> Quality:
    """Read a text with a model as it is run and with float activations, one after the other, and compare.

    most: tokens of the text that are read. Raises UserError if the model does not load or the text is too short.
    """
    from nanochat_tui.engine.generate.model import load

    def logits_of(kind: Activations, cache: CacheType) -> tuple[list[list[int]], list[Floats]]:
        model: Model = load(path, kernel=kernel, threads=threads, kv=cache, activations=kind, progress=say)
        try:
            ids = model.encode(text)[:most]
            if len(ids) < LEAST:
                raise UserError(f"the text has {len(ids)} tokens, too few to compare; give one of {LEAST} or more.")
            parts = windows(ids, min(WINDOW, model.config.context_length))
            return parts, [model.logits(part) for part in parts]
        finally:
            model.close()

    texts, ours = logits_of(activations, kv)
    _, exact = logits_of("float", "f32")
    return compare(texts, ours, exact)
