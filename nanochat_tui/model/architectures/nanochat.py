"""The GGUF architecture `nanochat`: how a `ModelConfig` is written in metadata keys and tensor names.

Written by export, read by engine and inspection; the names are llama.cpp's wherever it has one.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

import numpy as np

from nanochat_tui.errors import UserError
from nanochat_tui.formats.gguf.values import (
    GGUFValue,
    boolean,
    f32,
    metadata_bool,
    metadata_float,
    metadata_int,
    string,
    u32,
)
from nanochat_tui.model.architectures.description import (
    Architecture,
    Attention,
    FeedForward,
    HyperConnections,
    Layer,
    Part,
    Rope,
    layer_parts,
)
from nanochat_tui.model.architectures.keys import MAX_EXPERTS, MAX_LAYERS, MAX_WIDTH, Keys
from nanochat_tui.model.config import ModelConfig

NAME = "nanochat"
NAMES = (NAME,)
_NEXTN_NOTE = "the file holds {} blocks that predict further tokens (nextn); plain generation does not use them"


def describe(keys: Keys) -> Architecture:
    """Return the model that a file describes. Raises UserError."""
    config = from_metadata(keys.metadata, keys.shapes)
    keys.used.update(to_metadata(config))
    return of_config(config)


def of_config(config: ModelConfig) -> Architecture:
    """Return a shape in the words of all architectures."""
    attention = Attention(config.n_heads, config.n_kv_heads, config.head_dim)
    return Architecture(
        name=NAME,
        dim=config.dim,
        vocab_size=config.vocab_size,
        context_length=config.context_length,
        layers=(Layer(attention, _feed_forward(config)),) * config.n_layers,
        rope=Rope(config.head_dim, config.rope_theta),
        norm_eps=config.norm_eps,
        tied=config.tied,
        hyper=HyperConnections(config.n_streams, config.mhc_version),
        token_scales=True,
        rounds_head=True,
        own_format=True,
        notes=(_NEXTN_NOTE.format(config.nextn),) if config.nextn else (),
        ignored=frozenset(part.name for part in nextn_parts(config)),
    )


def _feed_forward(config: ModelConfig) -> FeedForward:
    return FeedForward(config.hidden_dim, experts=config.n_experts, used=config.n_active_experts)


def nextn_parts(config: ModelConfig) -> Iterator[Part]:
    """Yield the tensors of the blocks that predict further tokens, numbered on from the trunk's.

    A block's own, with a plain residual, and as llama.cpp names them: `nextn.eh_proj.weight` [dim, 2 dim], whose inputs
    are the embedding of the token before the one that is predicted and then the state of the block before (of the
    trunk: after `output_norm`), each through its norm, `nextn.enorm` and `nextn.hnorm`; `nextn.shared_head_norm` comes
    before the head, which is the model's.
    """
    layer = Layer(Attention(config.n_heads, config.n_kv_heads, config.head_dim), _feed_forward(config))
    for number in range(config.n_layers, config.n_layers + config.nextn):
        for part in layer_parts(layer, config.dim):
            yield Part(f"blk.{number}.{part.name}", part.shape, part.role)
        yield Part(f"blk.{number}.nextn.eh_proj.weight", (config.dim, 2 * config.dim), "ternary")
        for name in ("enorm", "hnorm", "shared_head_norm"):
            yield Part(f"blk.{number}.nextn.{name}.weight", (config.dim,), "norm")


def is_nanochat(metadata: Mapping[str, GGUFValue]) -> bool:
    """Whether a file says that it is of this architecture."""
    named = metadata.get("general.architecture")
    return named is not None and named.value == NAME


def to_metadata(config: ModelConfig) -> dict[str, GGUFValue]:
    """Return the keys that describe the model's shape; the inverse of `from_metadata`."""
    return {
        "general.architecture": string(NAME),
        f"{NAME}.block_count": u32(config.n_layers + config.nextn),
        f"{NAME}.context_length": u32(config.context_length),
        f"{NAME}.embedding_length": u32(config.dim),
        f"{NAME}.feed_forward_length": u32(config.hidden_dim),
        f"{NAME}.attention.head_count": u32(config.n_heads),
        f"{NAME}.attention.head_count_kv": u32(config.n_kv_heads),
        f"{NAME}.attention.layer_norm_rms_epsilon": f32(config.norm_eps),
        f"{NAME}.rope.freq_base": f32(config.rope_theta),
        f"{NAME}.vocab_size": u32(config.vocab_size),
        f"{NAME}.mhc.stream_count": u32(config.n_streams),
        f"{NAME}.mhc.version": u32(config.mhc_version),
        f"{NAME}.ternary.group_size": u32(config.group_size),
        f"{NAME}.text.indentation": u32(config.indentation),
        **({f"{NAME}.expert_count": u32(config.n_experts)} if config.n_experts else {}),
        **({f"{NAME}.expert_used_count": u32(config.n_active_experts)} if config.n_experts else {}),
        **({f"{NAME}.nextn_predict_layers": u32(config.nextn)} if config.nextn else {}),
        **({f"{NAME}.ternary.least_squares": boolean(True)} if config.least_squares else {}),
    }


def from_metadata(metadata: Mapping[str, GGUFValue], tensors: Collection[str]) -> ModelConfig:
    """Return the shape that a file describes; `tensors` are its tensor names (a head of its own means untied).

    Raises UserError if a key is missing, of the wrong type or describes an impossible model.
    """

    def count(key: str, maximum: int, minimum: int = 1) -> int:
        return metadata_int(metadata, f"{NAME}.{key}", minimum=minimum, maximum=maximum)

    heads = count("attention.head_count", MAX_WIDTH)
    nextn = metadata_int(metadata, f"{NAME}.nextn_predict_layers", 0, maximum=MAX_LAYERS)
    experts = metadata_int(metadata, f"{NAME}.expert_count", 0, maximum=MAX_EXPERTS)
    streams = metadata_int(metadata, f"{NAME}.mhc.stream_count", 1)
    try:
        return ModelConfig(
            dim=count("embedding_length", MAX_WIDTH),
            n_layers=count("block_count", MAX_LAYERS) - nextn,
            n_heads=heads,
            n_kv_heads=metadata_int(metadata, f"{NAME}.attention.head_count_kv", heads, minimum=1, maximum=heads),
            hidden_dim=count("feed_forward_length", MAX_WIDTH),
            vocab_size=count("vocab_size", MAX_WIDTH),
            context_length=count("context_length", 2**31 - 1),
            group_size=metadata_int(metadata, f"{NAME}.ternary.group_size", 128, minimum=1, maximum=MAX_WIDTH),
            n_streams=streams,
            tied="output.weight" not in tensors,
            rope_theta=_positive(metadata, "rope.freq_base", 10_000.0),
            norm_eps=_positive(metadata, "attention.layer_norm_rms_epsilon", 1e-6),
            mhc_version=2 if metadata_int(metadata, f"{NAME}.mhc.version", 2, minimum=1, maximum=2) == 2 else 1,
            indentation=metadata_int(metadata, f"{NAME}.text.indentation", 0, maximum=16),
            least_squares=metadata_bool(metadata, f"{NAME}.ternary.least_squares", False),
            n_experts=experts,
            n_active_experts=count("expert_used_count", experts) if experts else 0,
            nextn=nextn,
        )
    except ValueError as error:
        raise UserError(f"the file describes an impossible model ({error}); export it again") from error


def _positive(metadata: Mapping[str, GGUFValue], key: str, default: float) -> float:
    value = metadata_float(metadata, f"{NAME}.{key}", default)
    if value <= 0:
        raise UserError(f"the file's {NAME}.{key} is {value:g} and must be above 0; export it again")
    # float32 on disk: the shortest decimal that is this float32 is what was meant, 1e-06 and not 9.9999999e-07
    return float(str(np.float32(value)))


def parts(config: ModelConfig) -> dict[str, Part]:
    """Return every tensor of a model, by name, in the order of the file."""
    return {part.name: part for part in (*of_config(config).parts(), *nextn_parts(config))}
