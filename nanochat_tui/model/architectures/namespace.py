"""Metadata keys that a description did not read: harmless, neutral by value, refused, or named in a note.

A key of the architecture's namespace can change what the model computes. One that is ignored in silence gives another
model, so every key is either used by `describe`, listed here, or reported. Meanings: ggml's docs/gguf.md and the keys
that llama.cpp's converter writes.
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np

from nanochat_tui.errors import UserError
from nanochat_tui.model.architectures.description import Architecture
from nanochat_tui.model.architectures.keys import Keys
from nanochat_tui.text import display_safe

HARMLESS: Final = frozenset(
    {
        "vocab_size",  # the embedding's rows decide
        "tensor_data_layout",
        "pooling_type",
        "decoder_start_token_id",
        "attention.layer_norm_epsilon",
        "attention.group_norm_epsilon",
        "leading_dense_block_count",
        "expert_feed_forward_length",
        "expert_shared_feed_forward_length",
        "expert_gating_func",
        "expert_weights_norm",
        "expert_group_count",
        "expert_group_used_count",
        "rope.scaling.finetuned",
        "rope.dimension_sections",  # text has one position for all sections
        # of sliding layers, and a window of them is applied or refused
        "rope.freq_base_swa",
        "rope.dimension_count_swa",
        "attention.key_length_swa",
        "attention.value_length_swa",
    }
)
"""Keys that change nothing for a model without experts, windows or pictures, below the architecture's prefix."""

NEUTRAL: Final[dict[str, tuple[object, ...]]] = {
    "logit_scale": (0.0, 1.0),
    "embedding_scale": (0.0, 1.0),
    "residual_scale": (0.0, 1.0),
    "attention.output_scale": (0.0, 1.0),
    "attention.temperature_length": (0,),
    "attention.temperature_scale": (0.0,),
    "attention.clamp_kqv": (0.0,),
    "attention.max_alibi_bias": (0.0,),
    "attention.causal": (True,),
    "attention.sliding_window_pattern": (0, False),
    "attention.shared_kv_layers": (0,),
    "attention.q_lora_rank": (0,),
    "attention.kv_lora_rank": (0,),
    "attention.relative_buckets_count": (0,),
    "attention.indexer.head_count": (0,),
    "attn_logit_softcapping": (0.0,),
    "final_logit_softcapping": (0.0,),
    "router_logit_softcapping": (0.0,),
    "hidden_activation": ("silu", "swish"),
    "use_parallel_residual": (False,),
    "expert_count": (0,),
    "expert_used_count": (0,),
    "expert_shared_count": (0,),
    "expert_weights_scale": (0.0, 1.0),
    "moe_every_n_layers": (0,),
    "moe_latent_size": (0,),
    "interleave_moe_layer_step": (0,),
    "nextn_predict_layers": (0,),
    "n_deepstack_layers": (0,),
    "swin_norm": (False,),
    "rescale_every_n_layers": (0,),
    "token_shift_count": (0,),
    "full_attention_interval": (0, 1),
    "activation_sparsity_scale": (0.0,),
    "embedding_length_per_layer_input": (0,),
    "altup.num_inputs": (0, 1),
    "swiglu_clamp_exp": (0.0,),
    "swiglu_clamp_shexp": (0.0,),
    "rope.scaling.alpha": (0.0, 1.0),
    "rope.scaling.yarn_attn_factor": (1.0,),
    "rope.scaling.yarn_log_multiplier": (0.0,),
    "ssm.dt_b_c_rms": (False,),
}
"""Keys that change the result, with the values that do not; an array is neutral if every entry is."""

NAMED = 5
"""Unknown keys that a note lists by name."""


def check_namespace(keys: Keys, found: Architecture) -> str | None:
    """Return a note on keys that are not known, or None. Raises UserError for a key that changes the result."""
    start = f"{keys.prefix}."
    unknown = []
    for name, value in keys.metadata.items():
        if name in keys.used or not name.startswith(start):
            continue
        key = name.removeprefix(start)
        if key == "attention.scale":
            neutral = _usual_scale(value.value, found)
        elif key == "embedding_length_out":
            neutral = _is_neutral(value.value, (0, found.dim))
        elif key == "attention.sliding_window" and isinstance(value.value, int):
            neutral = value.value == 0 or value.value >= found.context_length
        elif key in NEUTRAL:
            neutral = _is_neutral(value.value, NEUTRAL[key])
        else:
            if key not in HARMLESS:
                unknown.append(display_safe(name, 80))
            continue
        if not neutral:
            raise UserError(
                f"the file sets {name} to {_shown(value.value)}, which changes what the model computes and which this "
                f"version does not apply to {keys.prefix}; use a program that does, or a model without it"
            )
    if not unknown:
        return None
    more = f" and {len(unknown) - NAMED} more" if len(unknown) > NAMED else ""
    return f"note: keys of the file that are not known here and not used: {', '.join(unknown[:NAMED])}{more}"


def _is_neutral(value: Any, neutral: tuple[object, ...]) -> bool:
    if isinstance(value, list | np.ndarray):
        return all(_is_neutral(entry, neutral) for entry in value)
    plain = value.item() if isinstance(value, np.generic) else value
    return (plain.lower() if isinstance(plain, str) else plain) in neutral


def _usual_scale(value: Any, found: Architecture) -> bool:
    """Whether a factor of the attention scores is what every layer has without the key; llama.cpp reads 0 as unset."""
    if not isinstance(value, int | float | np.number):
        return False
    return value == 0 or all(math.isclose(value, mixer.head_dim**-0.5, rel_tol=1e-5) for mixer in found.attentions)


def _shown(value: Any) -> str:
    if isinstance(value, list | np.ndarray):
        return "a list"
    return f"{value:g}" if isinstance(value, float | np.floating) else display_safe(str(value), 40)
