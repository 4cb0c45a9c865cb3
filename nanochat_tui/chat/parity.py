"""Two answers to one prompt, compared token by token. Pure.

Greedy decoding of the same model should give the same tokens; where rounding differs, the first difference is usually
at a place where two tokens were nearly as likely. The alternatives tell which.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from nanochat_tui.chat.backend import Request, Token
from nanochat_tui.request import SamplingParams

ALTERNATIVES = 8
LENGTH = 128


@dataclass(frozen=True, slots=True)
class Parity:
    """What was found. Places count from 0."""

    first_difference: int | None
    """Place of the first differing token (or character, see `by_tokens`); None if one is the other's beginning."""
    common: int
    """Tokens (or characters) before it."""
    by_tokens: bool
    """Whether both sides told their tokens; else texts were compared."""
    divergence: float | None
    """Mean over the common places of KL(left ‖ right) in nats, over the alternatives both returned, renormalised."""
    places: int
    """Common places that had alternatives on both sides."""
    text_at: int
    """Characters before the first difference."""

    @property
    def same(self) -> bool:
        """Whether no difference was found."""
        return self.first_difference is None


def parity_request(request: Request) -> Request:
    """Return a request as both sides are asked it: greedy, with alternatives."""
    length = min(LENGTH, request.max_tokens or LENGTH)
    return replace(request, sampling=SamplingParams(temperature=0.0), top_logprobs=ALTERNATIVES, max_tokens=length)


def compare(left: Sequence[Token], right: Sequence[Token]) -> Parity:
    """Compare two replies, each token by token where both tell tokens with probabilities, else by characters."""
    by_tokens = all(token.logprob is not None for token in (*left, *right) if token.text)
    texts = ["".join(token.text for token in side) for side in (left, right)]
    at = next((i for i, (a, b) in enumerate(zip(*texts, strict=False)) if a != b), None)
    if not by_tokens:
        common = at if at is not None else min(map(len, texts))
        return Parity(at, common, False, None, 0, common)
    sides = [[token for token in side if token.text] for side in (left, right)]
    different = next((i for i, (a, b) in enumerate(zip(*sides, strict=False)) if a.text != b.text), None)
    common = different if different is not None else min(map(len, sides))
    values = [kl for a, b in zip(*sides, strict=False) if (kl := divergence(a, b)) is not None][: common + 1]
    text_at = sum(len(token.text) for token in sides[0][:common])
    return Parity(different, common, True, sum(values) / len(values) if values else None, len(values), text_at)


def divergence(left: Token, right: Token) -> float | None:
    """Return KL(left ‖ right) in nats over the texts both give probabilities for; None if there are fewer than two."""
    ours, theirs = _by_text(left), _by_text(right)
    shared = ours.keys() & theirs.keys()
    if len(shared) < 2:
        return None
    p_sum, q_sum = (sum(math.exp(side[text]) for text in shared) for side in (ours, theirs))
    if p_sum <= 0 or q_sum <= 0:
        return None
    total = 0.0
    for text in shared:
        p, q = math.exp(ours[text]) / p_sum, max(1e-12, math.exp(theirs[text]) / q_sum)
        total += p * math.log(p / q) if p > 0 else 0.0
    return max(0.0, total)


def _by_text(token: Token) -> dict[str, float]:
    found: dict[str, float] = {}
    for _, text, logprob in token.top:
        if text and logprob > found.get(text, -math.inf):
            found[text] = logprob
    return found


def in_words(parity: Parity) -> str:
    """Say what was found in one or two sentences."""
    unit = "token" if parity.by_tokens else "character"
    if parity.same:
        said = f"No difference in {parity.common} {unit}s."
    else:
        said = f"The first difference is at {unit} {parity.common + 1}; {parity.common} before it are the same."
    if not parity.by_tokens:
        said += " One side tells no probabilities, so texts were compared."
    elif parity.divergence is not None:
        said += (
            f" Mean divergence {parity.divergence:.2g} nats over the alternatives both returned, at {parity.places} "
            "places (not over the whole vocabulary)."
        )
    return said
