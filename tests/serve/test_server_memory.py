"""What a server keeps while it runs has a bound."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from support import tiny_tokenizer

from nanochat_tui.model.tokenizer import TextCodec
from nanochat_tui.model.tokenizer import codec as tokenizer_codec
from nanochat_tui.serve import metrics
from nanochat_tui.serve.metrics import RATE_STEP, RATE_WINDOW, Metrics


def test_the_rate_is_right_and_takes_little_room(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(metrics, "time", SimpleNamespace(monotonic=lambda: now))  # other tests' servers keep theirs
    counted = Metrics("tiny")
    for _ in range(20_000):
        now += 0.001
        counted.generated(3)
    assert counted.rate() == pytest.approx(3000, rel=0.02)
    assert len(counted._recent) <= RATE_WINDOW / RATE_STEP + 2
    now += RATE_WINDOW + 1
    assert counted.rate() == 0


def test_bytes_of_tokens_are_remembered_up_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer_codec, "MOST_REMEMBERED", 10)
    codec = TextCodec(tiny_tokenizer(), bos=299, eos=299, add_bos=True)
    fresh = [TextCodec(tiny_tokenizer(), bos=299, eos=299, add_bos=True).token_bytes(i) for i in range(290)]
    for _ in range(2):
        assert [codec.token_bytes(i) for i in range(290)] == fresh
    assert len(codec._bytes) <= 10
