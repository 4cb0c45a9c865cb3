"""The forecast agrees with what loading then takes, and a model that does not fit is refused with a way out."""

from __future__ import annotations

from pathlib import Path

import pytest
from support_architectures import CONTEXT, WRITERS, write_architecture

from nanochat_tui.engine.paging import PagePool
from nanochat_tui.engine.plan_memory import RESERVE, forecast, require_memory
from nanochat_tui.engine.weights import load_weights
from nanochat_tui.errors import UserError
from nanochat_tui.formats.gguf import read_gguf
from nanochat_tui.model.architectures import describe


@pytest.mark.parametrize("name", list(WRITERS))
@pytest.mark.parametrize(("kind", "table"), [("PQ2_0", "Q8_0"), ("Q2_0", "F16"), ("I2_S", "Q6_K")])
def test_weights_are_foretold(name: str, kind: str, table: str, tmp_path: Path) -> None:
    with read_gguf(write_architecture(tmp_path / "m.gguf", name, kind=kind, table=table)) as file:
        shape = describe(file)
        found = forecast(file, shape, 100)
        weights = load_weights(file, shape, as_float=False, bias=0, mhc=None)
        exact = forecast(file, shape, 100, as_float=True)
        floats = load_weights(file, shape, as_float=True, bias=0, mhc=None)
    assert weights.nbytes == pytest.approx(found.weights, rel=0.05)
    assert floats.nbytes == pytest.approx(exact.weights, rel=0.05)
    pages = PagePool(shape, 0).page_bytes * 3  # 100 tokens are two pages, and one more is kept
    assert found.cache == pages + 4 * 3 * shape.state_floats  # the state and two to come back to
    assert (shape.state_floats > 0) == (name == "qwen35")


def test_a_model_that_does_not_fit_is_refused_with_what_would(tmp_path: Path) -> None:
    with read_gguf(write_architecture(tmp_path / "m.gguf", "qwen3")) as file:
        shape = describe(file)
        whole = forecast(file, shape)
        assert whole.context == CONTEXT
        enough = forecast(file, shape, available=whole.total + RESERVE)
        assert enough.fits and enough.largest_context == CONTEXT
        require_memory(enough, asked=True)
        page = PagePool(shape, 0).page_bytes
        tight = forecast(file, shape, available=whole.total + RESERVE - page)
        assert not tight.fits and tight.largest_context == CONTEXT - 64
        with pytest.raises(UserError, match=f"largest context that fits is {CONTEXT - 64} tokens"):
            require_memory(tight, asked=True)
        none = forecast(file, shape, available=whole.weights)
        for asked in (True, False):
            with pytest.raises(UserError, match="choose a smaller model"):
                require_memory(none, asked=asked)
    assert "GB weights" in str(whole)
