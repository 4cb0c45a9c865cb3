from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from nanochat_tui.model.ternary import MIN_SCALE, dequantise, ternarise

WEIGHTS = arrays(np.float32, (3, 256), elements=st.floats(-4, 4, width=32))


def test_definition_by_hand() -> None:
    weight = np.array([[1.0, -0.25, 0.5, 0.25, 0.0, 0.0, 0.0, 0.0]], dtype=np.float32)
    trits, scales = ternarise(weight, 4)
    # the first group's mean |w| is 0.5; 0.25 / 0.5 rounds half to even, to 0; an empty group gets the floor
    assert scales.tolist() == [[0.5, MIN_SCALE]]
    assert trits.tolist() == [[1, 0, 1, 0, 0, 0, 0, 0]]


@given(WEIGHTS)
def test_trits_and_scales_hold_their_promises(weight: np.ndarray) -> None:
    trits, scales = ternarise(weight, 128)
    assert trits.dtype == np.int8 and scales.dtype == np.float16
    assert set(np.unique(trits)) <= {-1, 0, 1}
    assert (scales >= np.float16(MIN_SCALE)).all()
    mean = np.abs(weight.reshape(3, 2, 128).astype(np.float64)).mean(-1)
    assert np.allclose(scales, np.maximum(mean, MIN_SCALE), rtol=2**-10)
    ratio = np.abs(weight).reshape(3, 2, 128) / scales.astype(np.float32)[..., None]
    assert np.array_equal(trits.reshape(3, 2, 128) != 0, ratio > 0.5)
    assert (trits * weight >= 0).all()


@given(WEIGHTS)
def test_every_group_is_on_its_own(weight: np.ndarray) -> None:
    trits, scales = ternarise(weight, 128)
    part_trits, part_scales = ternarise(np.ascontiguousarray(weight[1:2, 128:]), 128)
    assert np.array_equal(part_trits, trits[1:2, 128:])
    assert np.array_equal(part_scales, scales[1:2, 1:])


@given(arrays(np.int8, (2, 128), elements=st.integers(-1, 1)), st.floats(0.001, 10))
def test_dequantised_weights_keep_their_trits(trits: np.ndarray, scale: float) -> None:
    """Trits survive a second pass because the new scale, scale x density, is never larger."""
    scales = np.full((2, 1), scale, dtype=np.float16)
    again, _ = ternarise(dequantise(trits, scales), 128)
    assert np.array_equal(again, trits)


def test_bad_weights_are_refused() -> None:
    with pytest.raises(ValueError, match="multiple"):
        ternarise(np.zeros((1, 100), dtype=np.float32), 128)
    weight = np.zeros((1, 128), dtype=np.float32)
    weight[0, 3] = np.nan
    with pytest.raises(ValueError, match="finite"):
        ternarise(weight, 128)
