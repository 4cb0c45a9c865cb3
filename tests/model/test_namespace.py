"""A key that changes what a model computes is applied, refused or reported, never ignored."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support_architectures import CONTEXT, WIDTH, draft, finish

from nanochat_tui.errors import UserError
from nanochat_tui.formats.gguf import GGUFValue, array, boolean, f32, read_gguf, string, u32
from nanochat_tui.model import architectures
from nanochat_tui.model.architectures.description import Architecture
from nanochat_tui.model.architectures.namespace import HARMLESS, NEUTRAL

DENSE = ("llama", "qwen3", "bitnet-b1.58")


def described(name: str, path: Path, **keys: GGUFValue) -> Architecture:
    made = draft(name)
    made.keys |= {key.replace("__", "."): value for key, value in keys.items()}
    with read_gguf(finish(made, path / "m.gguf")) as file:
        return architectures.describe(file)


CHANGES: dict[str, tuple[GGUFValue, GGUFValue]] = {
    "logit_scale": (f32(0.25), f32(1.0)),
    "embedding_scale": (f32(12.0), f32(1.0)),
    "residual_scale": (f32(0.2), f32(0.0)),
    "attention__scale": (f32(0.1), f32(WIDTH**-0.5)),
    "attention__causal": (boolean(False), boolean(True)),
    "attention__clamp_kqv": (f32(8.0), f32(0.0)),
    "attention__max_alibi_bias": (f32(8.0), f32(0.0)),
    "attn_logit_softcapping": (f32(50.0), f32(0.0)),
    "final_logit_softcapping": (f32(30.0), f32(0.0)),
    "use_parallel_residual": (boolean(True), boolean(False)),
    "expert_count": (u32(8), u32(0)),
    "swiglu_clamp_exp": (array(np.full(2, 7.0, np.float32)), array(np.zeros(2, np.float32))),
    "rope__scaling__alpha": (f32(1000.0), f32(1.0)),
    "rope__scaling__yarn_attn_factor": (f32(2.0), f32(1.0)),
}


@pytest.mark.parametrize("name", DENSE)
@pytest.mark.parametrize("key", CHANGES)
def test_a_key_that_changes_the_result_is_refused_unless_neutral(name: str, key: str, tmp_path: Path) -> None:
    changed, neutral = CHANGES[key]
    with pytest.raises(UserError, match="changes what the model computes") as caught:
        described(name, tmp_path, **{key: changed})
    assert f"{name}.{key.replace('__', '.')}" in str(caught.value)
    assert described(name, tmp_path, **{key: neutral}) == described(name, tmp_path)


@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_another_activation_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="hidden_activation to gelu"):
        described(name, tmp_path, hidden_activation=string("gelu"))
    assert described(name, tmp_path, hidden_activation=string("SiLU")).notes == ()


@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_a_window_is_applied_to_every_layer(name: str, tmp_path: Path) -> None:
    found = described(name, tmp_path, attention__sliding_window=u32(16))
    assert [mixer.window for mixer in found.attentions] == [16] * found.n_layers
    wide = described(name, tmp_path, attention__sliding_window=u32(CONTEXT))
    assert {mixer.window for mixer in wide.attentions} == {0}
    with pytest.raises(UserError, match="sliding_window_pattern"):
        described(
            name, tmp_path, attention__sliding_window=u32(16), attention__sliding_window_pattern=array(np.array([1, 0]))
        )


def test_a_window_of_another_architecture_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="sliding_window to 16"):
        described("bitnet-b1.58", tmp_path, attention__sliding_window=u32(16))
    assert described("bitnet-b1.58", tmp_path, attention__sliding_window=u32(CONTEXT)).notes == ()


@pytest.mark.parametrize("name", [*DENSE, "qwen35", "maple"])
def test_unknown_keys_are_named_in_a_note(name: str, tmp_path: Path) -> None:
    assert not any("not known here" in note for note in described(name, tmp_path).notes)
    note = described(name, tmp_path, **{f"new_{i}": u32(i) for i in range(7)}, vocab_size=u32(5)).notes[-1]
    assert f"{name}.new_0" in note and "and 2 more" in note and "vocab_size" not in note


def test_a_list_holds_a_key_once() -> None:
    assert not HARMLESS & NEUTRAL.keys()
