"""The same numbers in Hugging Face's transformers: logits and states of float32 twins agree within 1e-3.

Its files hold weights before llama.cpp's converters: rotated rows in halves, Qwen3.5's norms less one and value heads
grouped by key head. That is undone here, so the comparison covers our reading of the converters too.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support_architectures import (
    CONTEXT,
    DIM,
    GDN_KEY_HEADS,
    GDN_VALUE_HEADS,
    GDN_WIDTH,
    HEADS,
    HIDDEN,
    KV_HEADS,
    LAYERS,
    TAPS,
    VOCAB,
    WIDTH,
    draft,
    finish,
)

from nanochat_tui.engine.generate.model import load
from nanochat_tui.formats.gguf import GGUFFile, read_gguf

pytestmark = [pytest.mark.peer, pytest.mark.slow]
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
IDS = [int(i) for i in np.random.default_rng(3).integers(0, VOCAB, 40)]
COMMON = {
    "hidden_size": DIM,
    "intermediate_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "head_dim": WIDTH,
    "vocab_size": VOCAB,
    "max_position_embeddings": CONTEXT,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "attn_implementation": "eager",
}
NAMES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_sub_norm": "self_attn.attn_sub_norm",
    "ffn_sub_norm": "mlp.ffn_sub_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "attn_qkv": "linear_attn.in_proj_qkv",
    "attn_gate": "linear_attn.in_proj_z",
    "ssm_alpha": "linear_attn.in_proj_a",
    "ssm_beta": "linear_attn.in_proj_b",
    "ssm_conv1d": "linear_attn.conv1d",
    "ssm_norm": "linear_attn.norm",
    "ssm_out": "linear_attn.out_proj",
}


def rope(theta: float, **more: Any) -> dict[str, Any]:
    """Return positions in both of the forms that versions of the package read."""
    return {"rope_theta": theta, "rope_parameters": {"rope_type": "default", "rope_theta": theta, **more}}


def halves(rows: np.ndarray) -> np.ndarray:
    """Undo the converter's order of rotated rows."""
    heads = rows.reshape(-1, WIDTH, rows.shape[-1])
    return np.concatenate([heads[:, 0::2], heads[:, 1::2]], axis=1).reshape(rows.shape)


def grouped(values: np.ndarray, width: int, axis: int = 0) -> np.ndarray:
    """Undo the converter's order of value heads: from (repeat, key head) to (key head, repeat)."""
    moved = np.moveaxis(values, axis, 0)
    rest = moved.shape[1:]
    by_head = moved.reshape(GDN_VALUE_HEADS // GDN_KEY_HEADS, GDN_KEY_HEADS, width, *rest).swapaxes(0, 1)
    return np.moveaxis(by_head.reshape(moved.shape), 0, axis)


def plain(name: str, values: np.ndarray) -> np.ndarray:
    return values


def llama(name: str, values: np.ndarray) -> np.ndarray:
    return halves(values) if name in ("attn_q", "attn_k") else values


def qwen35(name: str, values: np.ndarray) -> np.ndarray:
    keys = 2 * GDN_KEY_HEADS * GDN_WIDTH
    if name in ("attn_qkv", "ssm_conv1d"):
        values = np.concatenate([values[:keys], grouped(values[keys:], GDN_WIDTH)])
    if name == "attn_gate":
        return grouped(values, GDN_WIDTH)
    if name in ("ssm_alpha", "ssm_beta", "ssm_a", "ssm_dt"):
        return grouped(values, 1)
    if name == "ssm_out":
        return grouped(values, GDN_WIDTH, axis=1)
    if name == "ssm_conv1d":
        return values[:, None]
    return values - 1 if name.endswith("norm") and name != "ssm_norm" else values


def fill(model: Any, file: GGUFFile, convert: Callable[[str, np.ndarray], np.ndarray]) -> None:
    """Give a transformers model the file's numbers; every one of its parameters must get some."""
    left = {name for name, _ in model.named_parameters() if name != "lm_head.weight"}

    def put(path: str, values: np.ndarray) -> None:
        owner, _, attribute = path.rpartition(".")
        tensor = torch.nn.Parameter(torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32)))
        setattr(model.get_submodule(owner), attribute, tensor)
        left.discard(path)

    put("model.embed_tokens.weight", file.array("token_embd.weight"))
    put("model.norm.weight", convert("output_norm", file.array("output_norm.weight")))
    model.lm_head.weight = model.model.embed_tokens.weight
    for name in file.tensors:
        if not name.startswith("blk."):
            continue
        _, layer, kind = name.split(".")[:3]
        values, block = file.array(name), f"model.layers.{layer}."
        if kind == "ssm_a":
            put(block + "linear_attn.A_log", np.log(-convert(kind, values)))
        elif kind == "ssm_dt":
            put(block + "linear_attn.dt_bias", convert(kind, values))
        else:
            put(f"{block}{NAMES[kind]}.weight", convert(kind, values))
    assert not left, f"not in the file: {sorted(left)}"


def peer_logits(model: Any) -> np.ndarray:
    with torch.no_grad():
        return model.float().eval()(torch.tensor([IDS])).logits[0].numpy()


def peer_states(model: Any) -> np.ndarray:
    with torch.no_grad():
        return model.float().eval().model(torch.tensor([IDS])).last_hidden_state[0].numpy()


def compare(
    path: Path, name: str, make: Callable[[], Any], convert: Callable[[str, np.ndarray], np.ndarray] = plain
) -> None:
    finish(draft(name, twin=True, table="F32"), path)
    peer = make()
    with read_gguf(path) as file:
        fill(peer, file, convert)
    wanted = peer_logits(peer)
    ours = load(path, threads=1, activations="float", kv="f32")
    assert wanted.std() > 0.5
    np.testing.assert_allclose(ours.logits(IDS), wanted, atol=1e-3)
    states = peer_states(peer)
    assert states.std() > 0.1
    np.testing.assert_allclose(ours.embed([IDS], pooling="none", normalize=False)[0], states, atol=1e-3)
    for pooling, pooled in (("mean", states.mean(axis=0)), ("last", states[-1]), ("cls", states[0])):
        vectors = ours.embed([IDS[:3], IDS], pooling=pooling)  # type: ignore[arg-type]
        np.testing.assert_allclose(vectors[1], pooled / np.linalg.norm(pooled), atol=1e-3)


def test_llama(tmp_path: Path) -> None:
    config = transformers.LlamaConfig(**COMMON, **rope(500_000.0))
    compare(tmp_path / "m.gguf", "llama", lambda: transformers.LlamaForCausalLM(config), llama)


def test_qwen3(tmp_path: Path) -> None:
    config = transformers.Qwen3Config(**COMMON, **rope(1e6))
    compare(tmp_path / "m.gguf", "qwen3", lambda: transformers.Qwen3ForCausalLM(config))


def test_bitnet(tmp_path: Path) -> None:
    config = transformers.BitNetConfig(**COMMON, **rope(500_000.0), hidden_act="relu2")
    compare(tmp_path / "m.gguf", "bitnet-b1.58", lambda: transformers.BitNetForCausalLM(config))


def test_qwen35(tmp_path: Path) -> None:
    if not hasattr(transformers, "Qwen3_5ForCausalLM"):
        pytest.skip("this version of transformers has no Qwen3.5")
    text = COMMON | {
        "num_hidden_layers": 4,
        "layer_types": ["linear_attention"] * 3 + ["full_attention"],
        "linear_conv_kernel_dim": TAPS,
        "linear_key_head_dim": GDN_WIDTH,
        "linear_value_head_dim": GDN_WIDTH,
        "linear_num_key_heads": GDN_KEY_HEADS,
        "linear_num_value_heads": GDN_VALUE_HEADS,
    }
    share = 32 / WIDTH
    positions = rope(1e7, partial_rotary_factor=share, mrope_section=[6, 5, 5], mrope_interleaved=True)
    config = transformers.Qwen3_5TextConfig(**text, **positions, partial_rotary_factor=share)
    compare(tmp_path / "m.gguf", "qwen35", lambda: transformers.Qwen3_5ForCausalLM(config), qwen35)
