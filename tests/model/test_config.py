from __future__ import annotations

import pytest

from nanochat_tui.model.config import PRESETS, ModelConfig


def test_d20_has_exactly_the_reference_number_of_parameters() -> None:
    assert PRESETS["d20"].parameters == 17_981_036
    assert PRESETS["d20"].ternary_parameters == 5_111_808
    assert PRESETS["d20"].mhc_records == 12


def test_plain_residual_has_no_mhc_parameters() -> None:
    assert PRESETS["d20"].with_(n_streams=1).parameters == 17_981_036 - 108
    assert PRESETS["d20"].with_(n_streams=4).parameters == 17_981_036 - 108 + 12 * 40


def test_untied_head_counts_twice() -> None:
    d20 = PRESETS["d20"]
    assert d20.with_(tied=False).parameters == d20.parameters + 50_257 * 256


def test_grouped_queries_shrink_keys_and_values() -> None:
    config = PRESETS["d20"].with_(n_kv_heads=2)
    assert (config.head_dim, config.kv_dim) == (64, 128)
    assert config.parameters == 17_981_036 - 6 * 2 * 128 * 256


@pytest.mark.parametrize(
    "change",
    [
        {"n_streams": 3},
        {"dim": 200},
        {"hidden_dim": 700},
        {"n_heads": 3},
        {"n_kv_heads": 3},
        {"n_layers": 0},
        {"vocab_size": 0},
        {"mhc_version": 3},
        {"n_heads": 256, "n_kv_heads": 256},
    ],
)
def test_impossible_shapes_are_refused(change: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        PRESETS["d20"].with_(**change)


def test_presets_are_usable() -> None:
    assert all(isinstance(config, ModelConfig) for config in PRESETS.values())
