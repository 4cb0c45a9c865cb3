"""What metadata says of a model, and every way in which a file is refused in one sentence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from references.common import Model
from references.dense import dense
from support_architectures import WRITERS, Draft, add_rotation, draft, finish

from nanochat_tui.errors import UserError
from nanochat_tui.formats.gguf import GGUFValue, array, boolean, f32, read_gguf, string, u32
from nanochat_tui.model import support
from nanochat_tui.model.architectures import describe
from nanochat_tui.model.architectures.description import Architecture, Attention, DeltaNet, Rope
from nanochat_tui.model.architectures.rotation import PREFIX


def described(tmp_path: Path, d: Draft) -> Architecture:
    with read_gguf(finish(d, tmp_path / "m.gguf")) as file:
        return describe(file)


@pytest.mark.parametrize("name", list(WRITERS))
def test_parts_are_the_tensors_of_the_file(name: str, tmp_path: Path) -> None:
    with read_gguf(finish(draft(name), tmp_path / "m.gguf")) as file:
        found = describe(file)
        assert {part.name: part.shape for part in found.parts()} == {n: i.shape for n, i in file.tensors.items()}
        assert found.parameters == sum(info.elements for info in file.tensors.values())
        assert support.require_described(file) == found


def test_what_differs(tmp_path: Path) -> None:
    llama = described(tmp_path, draft("llama"))
    assert llama.rope.interleaved and not llama.layers[0].ffn.sub_norm and llama.layers[0].ffn.activation == "silu"
    qwen = described(tmp_path, draft("qwen3"))
    assert qwen.attentions[0].qk_norm and not qwen.rope.interleaved and qwen.head_dim * qwen.n_heads != qwen.dim
    bitnet = described(tmp_path, draft("bitnet"))
    assert bitnet.layers[0].ffn.sub_norm and bitnet.attentions[0].sub_norm and bitnet.layers[0].ffn.activation == "silu"
    assert described(tmp_path, draft("bitnet-25")).layers[0].ffn.activation == "relu2"
    hybrid = described(tmp_path, draft("qwen35"))
    assert [type(layer.mixer) for layer in hybrid.layers] == [DeltaNet, DeltaNet, DeltaNet, Attention]
    assert hybrid.attentions[0].gated and hybrid.rope.dims == 32 and hybrid.n_cached_layers == 1
    maple = described(tmp_path, draft("maple"))
    assert [a.window for a in maple.attentions] == [16, 16, 16, 0]
    assert [a.rotates for a in maple.attentions] == [True, True, True, False]
    assert maple.layers[0].ffn.experts == 8 and maple.layers[0].ffn.used == 3 and not maple.tied


def test_a_mislabelled_2b4t_gets_its_own_activation_and_a_note(tmp_path: Path) -> None:
    d = draft("bitnet-b1.58")
    d.keys["hidden_activation"] = string("silu")
    found = described(tmp_path, d)
    assert found.layers[0].ffn.activation == "relu2" and "ReLU²" in found.notes[0]
    assert not described(tmp_path, draft("bitnet-b1.58")).notes


def test_2b4t_under_the_older_models_name_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """By its widths, its vocabulary or its name; a file that is none of it is believed."""
    from nanochat_tui.model.architectures import bitnet

    named = draft("bitnet")
    named.plain_keys["general.basename"] = string("BitNet-b1.58-2B-4T")
    found = [described(tmp_path, named)]
    for constant, value in (("_WIDTHS_2B4T", (256, 512)), ("_VOCABULARY_2B4T", 300)):
        with monkeypatch.context() as patch:
            patch.setattr(bitnet, constant, value)
            found.append(described(tmp_path, draft("bitnet")))
    assert all(each.layers[0].ffn.activation == "relu2" and "ReLU²" in each.notes[0] for each in found)
    plain = described(tmp_path, draft("bitnet"))
    assert plain.layers[0].ffn.activation == "silu" and not plain.notes


def test_yarn_of_the_8b_model() -> None:
    """Worked numbers of the reference: factor 4 over 16384 positions multiplies cosines by 1.1386."""
    rope = Rope(128, 1e6, scaling="yarn", factor=4.0, original_context=16_384)
    assert rope.magnitude == pytest.approx(1.1386, abs=5e-5)
    plain, got = Rope(128, 1e6).frequencies(), rope.frequencies()
    assert got[0] == plain[0] and got[-1] == pytest.approx(plain[-1] / 4)
    assert (np.diff(got / plain) <= 1e-15).all()


def test_frequencies_agree_with_the_reference(tmp_path: Path) -> None:
    d = draft("qwen3")
    d.keys |= {
        "rope.scaling.type": string("yarn"),
        "rope.scaling.factor": f32(4.0),
        "rope.scaling.original_context_length": u32(32),
        "rope.scaling.attn_factor": f32(0.9),
    }
    with read_gguf(finish(d, tmp_path / "m.gguf")) as file:
        rope = describe(file).rope
        cosine, sine = Model(file).angles(50, 128, 1e6)
    angles = np.arange(50)[:, None] * rope.frequencies()
    np.testing.assert_allclose(np.cos(angles) * rope.magnitude, cosine[:, 0], atol=1e-6)
    np.testing.assert_allclose(np.sin(angles) * rope.magnitude, sine[:, 0], atol=1e-6)


@pytest.mark.parametrize(
    ("keys", "scaling", "factor"),
    [
        ({}, "none", 1.0),
        ({"rope.scaling.type": string("linear"), "rope.scaling.factor": f32(2.0)}, "linear", 2.0),
        ({"rope.scaling.factor": f32(2.0)}, "linear", 2.0),
        ({"rope.scale_linear": f32(4.0)}, "linear", 4.0),
        ({"rope.scaling.type": string("none"), "rope.scaling.factor": f32(2.0)}, "none", 2.0),
        ({"rope.scaling.type": string("linear"), "rope.scaling.factor": f32(1.0)}, "none", 1.0),
    ],
)
def test_a_factor_without_a_type_is_a_linear_one(
    keys: dict[str, Any], scaling: str, factor: float, tmp_path: Path
) -> None:
    """As llama.cpp reads it; BitNet's converters write the type with a factor of 1."""
    d = draft("llama")
    d.keys |= keys
    found = described(tmp_path, d).rope
    assert found.scaling == scaling
    slower = factor if scaling == "linear" else 1.0
    np.testing.assert_allclose(found.frequencies() * slower, Rope(128, 5e5).frequencies())


def _drop(key: str) -> Callable[[Draft], Any]:
    return lambda d: d.keys.pop(key)


def _set(key: str, value: Any) -> Callable[[Draft], Any]:
    return lambda d: d.keys.update({key: value})


def _heads(*counts: int) -> GGUFValue:
    return array(np.array(counts, np.int32))


def _extra(name: str) -> Callable[[Draft], Any]:
    return lambda d: d.floats(name, np.ones(4))


REFUSED: list[tuple[str, Callable[[Draft], Any], str]] = [
    ("llama", _drop("block_count"), "block_count"),
    ("llama", _set("attention.head_count_kv", u32(3)), "cannot share 3 key heads"),
    ("llama", _set("attention.value_length", u32(64)), r"different widths .* use llama\.cpp"),
    ("llama", _set("rope.scaling.yarn_ext_factor", f32(0.5)), r"extrapolation factor .* use llama\.cpp"),
    ("llama", _set("attention.head_count_kv", _heads(2, 4)), "different numbers of heads"),
    ("llama", _set("attention.head_count_kv", _heads(0, 0)), "different numbers of heads or none"),
    ("llama", _set("attention.head_count_kv", _heads(2, -2)), "different numbers of heads"),
    ("llama", _set("attention.head_count_kv", _heads(-2, -2)), "no number of heads"),
    ("llama", _set("attention.head_count_kv", _heads(2)), "1 entries for 2 layers"),
    ("llama", _set("attention.head_count_kv", _heads(0, 2)), "have it in every layer"),
    ("qwen35", _set("attention.head_count_kv", _heads(0, 0, 2, 2)), "are not those that the file calls recurrent"),
    ("qwen35", _set("attention.head_count_kv", _heads(0, 0, 2)), "3 entries for 4 layers"),
    ("llama", _set("rope.scaling.type", string("longrope\x1b")), r"longrope\\x1b.* use llama\.cpp"),
    ("llama", _set("context_length", u32(1 << 21)), "claims a context of 2097152"),
    ("llama", _set("rope.dimension_count", u32(256)), "rotates 256 components of heads of 128"),
    ("llama", _set("embedding_length", u32(320)), "token_embd"),
    ("llama", _extra("blk.0.attn_q_norm_in.weight"), "embedding models"),
    (
        "llama",
        _extra("blk.0.attn_q_norm.weight"),
        r"attn_q_norm.weight, which is not known for llama .* use llama\.cpp",
    ),
    ("llama", lambda d: d.tensors.pop(0), "no embedding"),
    ("bitnet", _set("hidden_activation", string("gelu")), "activation gelu"),
    ("qwen35", _set("ssm.inner_size", u32(128)), "ssm.inner_size"),
    ("qwen35", _set("nextn_predict_layers", u32(4)), "predict further tokens"),
    ("qwen35", _set("full_attention_interval", u32(9)), "without a single attention layer"),
    ("maple", _drop("attention.sliding_window_pattern"), "which layers have a sliding window"),
    ("maple", _set("expert_used_count", u32(9)), "expert_used_count"),
    ("maple", _set("swiglu_clamp_exp", array(np.array([1.0, np.inf], np.float32))), "swiglu_clamp_exp"),
]


@pytest.mark.parametrize(("name", "change", "message"), REFUSED, ids=[f"{n}-{m}" for n, _, m in REFUSED])
def test_refusals(name: str, change: Callable[[Draft], Any], message: str, tmp_path: Path) -> None:
    d = draft(name)
    change(d)
    with read_gguf(finish(d, tmp_path / "m.gguf")) as file:
        with pytest.raises(UserError, match=message):
            support.require_described(file)
        reason = support.refusal(file)
    assert reason is not None and "\n" not in reason and "\x1b" not in reason


@pytest.mark.parametrize(
    ("change", "recurrent"),
    [
        ({}, [1, 1, 1, 0]),
        ({"attention.head_count_kv": _heads(0, 0, 0, 2)}, [1, 1, 1, 0]),
        ({"attention.head_count_kv": _heads(2, 2, 2, 2)}, [1, 1, 1, 0]),
        ({"attention.head_count_kv": _heads(0, 2, 0, 2), "full_attention_interval": u32(2)}, [1, 0, 1, 0]),
        ({"attention.head_count_kv": _heads(2, 0, 0, 2), "full_attention_interval": None}, [0, 1, 1, 0]),
        ({"attention.recurrent_layers": array(np.array([False, True, True, False]))}, [0, 1, 1, 0]),
        (
            {
                "attention.recurrent_layers": array(np.array([True, False, True, True])),
                "attention.head_count_kv": _heads(0, 2, 0, 0),
            },
            [1, 0, 1, 1],
        ),
    ],
)
def test_which_layers_are_recurrent(change: dict[str, GGUFValue | None], recurrent: list[int], tmp_path: Path) -> None:
    d = draft("qwen35")
    for key, value in change.items():
        d.keys.pop(key, None)
        if value is not None:
            d.keys[key] = value
    found = described(tmp_path, d)
    assert [int(isinstance(layer.mixer, DeltaNet)) for layer in found.layers] == recurrent
    assert (found.n_heads, found.n_kv_heads) == (4, 2)


def test_heads_listed_per_layer_are_those_of_all(tmp_path: Path) -> None:
    d = draft("llama")
    d.keys |= {"attention.head_count": _heads(4, 4), "attention.head_count_kv": _heads(2, 2)}
    found = described(tmp_path, d)
    assert (found.n_heads, found.n_kv_heads) == (4, 2)


def test_blocks_that_predict_further_tokens_are_left_out(tmp_path: Path) -> None:
    d = draft("qwen35")
    d.keys["block_count"] = u32(5)
    d.keys["nextn_predict_layers"] = u32(1)
    d.floats("blk.4.nextn.eh_proj.weight", np.ones((4, 4)))
    d.floats("blk.4.attn_norm.weight", np.ones(256))
    with read_gguf(finish(d, tmp_path / "m.gguf")) as file:
        assert support.require_described(file).n_layers == 4


# ---- rotation


def test_rotation_is_read(tmp_path: Path) -> None:
    d = draft("qwen3")
    add_rotation(d, 64)
    found = described(tmp_path, d).rotation
    assert found is not None and found.block == 64
    assert set(found.signs) == {256, 512} and "token_embd.weight" in found.forward & found.inverse
    d = draft("qwen3", tied=False)
    add_rotation(d, 128, identity=True)
    found = described(tmp_path, d).rotation
    assert found is not None and not found.signs and "output.weight" in found.forward


def test_the_reference_rotates_as_the_worked_example() -> None:
    """B = 4, s = [1, -1, 1, 1]: [1, 2, 3, 4] -> [3, 1, -4, 2] and back for an embedding [2, 0, 0, 1]."""
    model = Model.__new__(Model)
    model.block = 4
    signs = np.array([1.0, -1, 1, 1])
    np.testing.assert_allclose(model.transform(np.array([1.0, 2, 3, 4]) * signs), [3, 1, -4, 2])
    np.testing.assert_allclose(signs * model.transform(np.array([2.0, 0, 0, 1])), [1.5, -0.5, 0.5, 1.5])


def test_a_rotated_file_means_another_model(tmp_path: Path) -> None:
    d = draft("llama")
    with read_gguf(finish(d, tmp_path / "a.gguf")) as file:
        plain = dense(file, [1, 2, 3])
    add_rotation(d)
    with read_gguf(finish(d, tmp_path / "b.gguf")) as file:
        assert np.abs(dense(file, [1, 2, 3]) - plain).max() > 0.5


def _rotation(key: str, value: Any = None) -> Callable[[dict[str, Any]], Any]:
    if value is None:
        return lambda keys: keys.pop(PREFIX + key)
    return lambda keys: keys.update({PREFIX + key: value})


def _without(name: str) -> Callable[[dict[str, Any]], Any]:
    """Leave a matrix out of those that are rotated."""

    def change(keys: dict[str, Any]) -> None:
        key = PREFIX + "weight_names"
        keys[key] = array([one for one in keys[key].value if one != f"{name}.weight"])

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_rotation("version", u32(3)), "version 3"),
        (_rotation("block_size"), "lacks prism.hadamard.block_size"),
        (_rotation("weight_names"), "lacks prism.hadamard.weight_names"),
        (_rotation("sign_values"), "lacks prism.hadamard.sign_values"),
        (_rotation("sign_values", array(np.ones(5, np.int8))), "5 signs for widths that take 768"),
        (_rotation("sign_values", array(np.full(768, 2, np.int8))), "neither 1 nor -1"),
        (_rotation("sign_widths", array(np.array([768], np.int32))), "no signs for rows of 256"),
        (_rotation("sign_mode", string("random")), "of the kind random"),
        (_rotation("transform", string("fourier")), "rotated by fourier"),
        (_rotation("block_size", u32(48)), "no power of two"),
        (_rotation("block_size", u32(512)), "do not divide the rows"),
        (_rotation("tied_output", boolean(False)), "does not say tied_output"),
        (_rotation("tied_output"), "does not say tied_output"),
        (_rotation("version", u32(1)), "of version 1 and says tied_output"),
        (_rotation("inverse_weight_names"), "does not undo that of the embedding"),
        (_without("blk.0.attn_k"), r"names blk.0.attn_q.weight but not blk.0.attn_k.weight"),
        (_without("blk.1.attn_q"), r"names blk.1.attn_k.weight but not blk.1.attn_q.weight"),
        (_without("blk.1.attn_v"), r"not blk.1.attn_v.weight, which reads the same input"),
        (_without("blk.0.ffn_up"), r"not blk.0.ffn_up.weight, which reads the same input"),
        (_rotation("weight_names", array(["blk.9.attn_q.weight"])), "does not hold"),
        (_rotation("weight_names", array(["token_embd.weight", "output_norm.weight"])), "output_norm"),
        (_rotation("inverse_weight_names", array(["blk.0.attn_q.weight"])), "undone behind"),
        (lambda keys: keys.update({"onebit.hadamard_q4_0": boolean(True)}), "another vendor"),
    ],
)
def test_rotations_that_are_not_understood_are_refused(
    change: Callable[[dict[str, Any]], Any], message: str, tmp_path: Path
) -> None:
    d = draft("qwen3")
    add_rotation(d)
    change(d.plain_keys)
    with read_gguf(finish(d, tmp_path / "m.gguf")) as file, pytest.raises(UserError, match=message):
        describe(file)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_without("blk.0.attn_gate"), r"names blk.0.attn_qkv.weight but not blk.0.attn_gate.weight"),
        (_without("blk.3.attn_k"), r"names blk.3.attn_q.weight but not blk.3.attn_k.weight"),
        (_rotation("weight_names", array(["token_embd.weight"])), "for a head, but there is an output.weight"),
        (_rotation("tied_output", boolean(True)), "there is an output.weight"),
    ],
)
def test_untied_and_hybrid_rotations_that_contradict_the_file_are_refused(
    change: Callable[[dict[str, Any]], Any], message: str, tmp_path: Path
) -> None:
    d = draft("qwen35", tied=False)
    add_rotation(d, version=2)
    change(d.plain_keys)
    with read_gguf(finish(d, tmp_path / "m.gguf")) as file, pytest.raises(UserError, match=message):
        describe(file)


def test_tables_and_whole_stacks_may_stay_as_they_are(tmp_path: Path) -> None:
    """Without inverse_weight_names the embedding is plain; an untied head and a whole stack may be plain too."""
    d = draft("qwen3", tied=False)
    add_rotation(d)
    for part in ("output", "blk.0.attn_q", "blk.0.attn_k", "blk.0.attn_v"):
        _without(part)(d.plain_keys)
    del d.plain_keys[PREFIX + "inverse_weight_names"]
    found = described(tmp_path, d).rotation
    assert found is not None and not found.inverse
    assert "output.weight" not in found.forward and "blk.0.attn_q.weight" not in found.forward
    assert "blk.1.attn_q.weight" in found.forward
