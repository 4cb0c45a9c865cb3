"""Compressors that were primed, and Kneser-Ney against an independent one made of dictionaries."""

import math
import random
from collections import Counter, defaultdict

import numpy as np
import pytest

from nanochat_tui.evaluate.baselines import compressors, kneser_ney, ppmd_size, xz_size, zstd_size


def reference(train: list[int], document: list[int], vocab: int, order: int) -> float:
    """Interpolated Kneser-Ney, written from the formula with dictionaries."""

    def grams(n: int) -> Counter[tuple[int, ...]]:
        return Counter(tuple(train[i : i + n]) for i in range(len(train) - n + 1))

    tables: dict[int, Counter[tuple[int, ...]]] = {order: grams(order)}
    for n in range(1, order):
        before: dict[tuple[int, ...], set[int]] = defaultdict(set)
        for gram in grams(n + 1):
            before[gram[1:]].add(gram[0])
        tables[n] = Counter({gram: len(found) for gram, found in before.items()})
    discounts = {}
    for n, table in tables.items():
        n1, n2 = (sum(v == k for v in table.values()) for k in (1, 2))
        discounts[n] = n1 / (n1 + 2 * n2) if n1 else 0.5

    def probability(context: tuple[int, ...], token: int, n: int) -> float:
        if n == 0:
            return 1 / vocab
        lower = probability(context, token, n - 1)
        own = context[len(context) - (n - 1) :] if n > 1 else ()
        if len(own) < n - 1:
            return lower
        followers = {g: c for g, c in tables[n].items() if g[:-1] == own}
        total = sum(followers.values())
        if not total:
            return lower
        d = discounts[n]
        return max(tables[n][(*own, token)] - d, 0) / total + d * len(followers) / total * lower

    return -sum(math.log(probability(tuple(document[:i]), document[i], order)) for i in range(1, len(document)))


def test_kneser_ney_equals_the_formula() -> None:
    rng = random.Random(2)
    train = [rng.choice([0, 1, 1, 2, 3, 5]) for _ in range(400)]
    documents = [[rng.randrange(7) for _ in range(30)], [3, 1], [4]]
    for order in (1, 2, 4):
        found = kneser_ney(np.array(train), [np.array(d) for d in documents], 7, order)
        assert found == pytest.approx(sum(reference(train, d, 7, order) for d in documents), rel=1e-9)


def test_its_probabilities_sum_to_one() -> None:
    rng = random.Random(3)
    train = np.array([rng.randrange(5) for _ in range(300)])
    total = 0.0
    for token in range(6):
        whole = kneser_ney(train, [np.array([1, 4, 2, token])], 6, 3)
        total += math.exp(kneser_ney(train, [np.array([1, 4, 2])], 6, 3) - whole)
    assert total == pytest.approx(1)


def _text(seed: int) -> bytes:
    rng = random.Random(seed)
    words = ["".join(rng.choices("abcdefgh", k=7)) for _ in range(80)]
    return " ".join(rng.choices(words, k=3000)).encode()


@pytest.mark.parametrize("size", [xz_size, zstd_size, ppmd_size])
def test_what_was_read_before_helps(size: object) -> None:
    assert callable(size)
    text = _text(1)
    plain, primed, stranger = size(text, b""), size(text, text), size(text, _text(2))
    assert primed < 0.25 * plain
    assert abs(stranger - plain) < 0.25 * plain
    assert plain < len(text) / 2


def test_the_figures_are_bits_per_byte() -> None:
    text = _text(1)
    found = {(b.name, b.primed): b.bits_per_byte for b in compressors(text, b"")}
    assert found["xz -6", "nothing"] == pytest.approx(8 * xz_size(text, b"") / len(text))
    assert len(found) == 3
