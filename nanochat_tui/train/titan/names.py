"""Names of the parameters in torchtitan's model and in ours, which are those of the GGUF."""

from __future__ import annotations

from nanochat_tui.model.config import ModelConfig

_BLOCK = {
    "attention_norm.weight": "attn_norm.weight",
    "attention.qkv_linear.wq.weight": "attn_q.weight",
    "attention.qkv_linear.wk.weight": "attn_k.weight",
    "attention.qkv_linear.wv.weight": "attn_v.weight",
    "attention.wo.weight": "attn_output.weight",
    "ffn_norm.weight": "ffn_norm.weight",
}
_DENSE = {
    "feed_forward.w1.weight": "ffn_gate.weight",
    "feed_forward.w3.weight": "ffn_up.weight",
    "feed_forward.w2.weight": "ffn_down.weight",
}
_EXPERTS = {
    "moe.router.gate.weight": "ffn_gate_inp.weight",
    "moe.routed_experts.inner_experts.w1_EFD": "ffn_gate_exps.weight",
    "moe.routed_experts.inner_experts.w3_EFD": "ffn_up_exps.weight",
    "moe.routed_experts.inner_experts.w2_EDF": "ffn_down_exps.weight",
}
_STREAMS = {"attn_mhc.record": "attn_mhc", "ffn_mhc.record": "ffn_mhc"}


def our_names(shape: ModelConfig) -> dict[str, str]:
    """Return our name of each parameter by its name in torchtitan; a tied head is the embedding."""
    block = _BLOCK | (_EXPERTS if shape.n_experts else _DENSE) | (_STREAMS if shape.n_streams > 1 else {})
    names = {"tok_embeddings.weight": "token_embd.weight", "norm.weight": "output_norm.weight"}
    if not shape.tied:
        names["lm_head.weight"] = "output.weight"
    return names | {
        f"layers.{index}.{theirs}": f"blk.{index}.{ours}"
        for index in range(shape.n_layers)
        for theirs, ours in block.items()
    }
