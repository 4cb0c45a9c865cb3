"""The NumPy forward pass against the trainer's model, which shares no code with it but the definitions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from checkpoints import random_weights, small_config

from nanochat_tui.export import compare_logits
from nanochat_tui.export.reference import exported_weights, reference_logits

IDS = [319, 5, 17, 200, 5, 64, 3, 3, 99, 310]


@pytest.mark.parametrize("n_streams", [1, 2, 4])
@pytest.mark.parametrize("activations", ["float", "int8"])
def test_agrees_with_the_trainer(n_streams: int, activations: Any) -> None:
    torch = pytest.importorskip("torch")
    from nanochat_tui.train.model import NanochatModel

    config = small_config(n_streams=n_streams)
    weights = random_weights(config)
    model = NanochatModel(config, activations=activations)
    model.load_state_dict({name: torch.from_numpy(values) for name, values in weights.items()})
    with torch.no_grad():
        expected = model.logits(torch.tensor([IDS]))[0].numpy()
    found = reference_logits(config, weights, IDS, int8=activations == "int8")
    agreement = compare_logits(expected, found)
    # a value on a rounding border may fall either way, and moves all that follows
    assert agreement.relative_rms < (1e-5 if activations == "float" else 0.01)
    assert expected.std() > 0.1


def test_future_tokens_do_not_reach_back() -> None:
    config = small_config(tied=False)
    weights = random_weights(config)
    whole = reference_logits(config, weights, IDS)
    assert np.allclose(whole[:4], reference_logits(config, weights, IDS[:4]), atol=1e-4)
    changed = reference_logits(config, weights, [*IDS[:-1], 0])
    assert np.array_equal(whole[:-1], changed[:-1])
    assert not np.allclose(whole[-1], changed[-1])


def test_exported_weights_are_already_rounded() -> None:
    config = small_config()
    weights = exported_weights(config, random_weights(config))
    again = exported_weights(config, {"token_embd.weight": weights["token_embd.weight"]})
    assert np.allclose(again["token_embd.weight"], weights["token_embd.weight"], rtol=1e-2, atol=1e-4)
    assert len(np.unique(weights["blk.0.attn_q.weight"][0, :128])) == 3
