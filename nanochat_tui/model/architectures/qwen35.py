"""`qwen35`: three layers of a gated delta net, then one of gated attention (Qwen3.5, Bonsai 27B, Bonsai 2)."""

from __future__ import annotations

from dataclasses import replace

from nanochat_tui.errors import UserError
from nanochat_tui.model.architectures.description import Architecture, Attention, DeltaNet, Layer
from nanochat_tui.model.architectures.keys import MAX_LAYERS, Keys

NAMES = ("qwen35",)


def describe(keys: Keys) -> Architecture:
    """Return the model that a file describes; blocks that predict further tokens are left out. Raises UserError."""
    attention = replace(keys.attention(qk_norm=True, hybrid=True), gated=True)
    ahead = keys.count("nextn_predict_layers", 0, minimum=0, maximum=MAX_LAYERS)
    layers = keys.layers - ahead
    if layers < 1:
        raise UserError("the file has only blocks that predict further tokens; it is no model to run on its own")
    delta = _delta_net(keys)
    recurrent = _recurrent(keys, layers)
    if all(recurrent):
        raise UserError("a model without a single attention layer cannot be run by this version; use llama.cpp for it")
    ffn = keys.feed_forward()
    mixers: list[Attention | DeltaNet] = [delta if flag else attention for flag in recurrent]
    return Architecture(
        name=keys.prefix,
        dim=keys.dim,
        vocab_size=keys.vocabulary,
        context_length=keys.context,
        layers=tuple(Layer(mixer, ffn, "post_attention_norm") for mixer in mixers),
        rope=keys.rope(64, theta=1e7),
        norm_eps=keys.epsilon,
        tied=keys.tied,
        present=frozenset(name for name in keys.optional if not name.endswith("ssm_dt.bias")),
    )


def _recurrent(keys: Keys, layers: int) -> list[int]:
    """Return 1 for every recurrent layer. Three keys can tell; what is said twice has to agree. Raises UserError."""
    zeros = keys.without_attention(layers)
    by_interval = keys.has("full_attention_interval")
    said = keys.per_layer("attention.recurrent_layers", layers)
    if said is None:
        if zeros is not None and not by_interval:
            return zeros
        interval = keys.count("full_attention_interval", 4, maximum=MAX_LAYERS)
        said = [int((i + 1) % interval != 0) for i in range(layers)]
    if zeros is not None and [int(flag != 0) for flag in said] != zeros:
        raise UserError(
            "the layers without key heads (attention.head_count_kv) are not those that the file calls recurrent; it is "
            "damaged, fetch it again"
        )
    return said


def _delta_net(keys: Keys) -> DeltaNet:
    width = keys.count("ssm.state_size")
    key_heads, value_heads = keys.count("ssm.group_count"), keys.count("ssm.time_step_rank")
    if keys.count("ssm.inner_size") != value_heads * width or value_heads % key_heads:
        raise UserError(
            f"{value_heads} value heads of {width} and {key_heads} key heads do not fit the file's ssm.inner_size; "
            "it is damaged"
        )
    return DeltaNet(key_heads, value_heads, width, taps=keys.count("ssm.conv_kernel", 4, minimum=2, maximum=16))
