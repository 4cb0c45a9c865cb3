"""The decoder: torchtitan's blocks with mHC's residual streams between them, configured by a `ModelConfig`."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import spmd_types as spmd
from torch import Tensor, nn
from torchtitan.models.common.attention import GQAttention, QKVLinear, ScaledDotProductAttention
from torchtitan.models.common.config_utils import make_token_dispatcher_config
from torchtitan.models.common.decoder_sharding import dense_param_placement
from torchtitan.models.common.feed_forward import FeedForward
from torchtitan.models.common.moe import MoE, RoutedExperts
from torchtitan.models.common.nn_modules import RMSNorm
from torchtitan.models.common.param_init import skip_param_init
from torchtitan.models.qwen3 import parallelize_qwen3
from torchtitan.models.qwen3.model import Qwen3Model, Qwen3TransformerBlock
from torchtitan.protocols.model_spec import ModelSpec
from torchtitan.protocols.sharding import ShardingConfig

from nanochat_tui.errors import UserError
from nanochat_tui.model.config import PRESETS, ModelConfig
from nanochat_tui.train.streams import weighted, write_streams
from nanochat_tui.train.titan.layers import (
    Activations,
    BalancedRouter,
    Dtype,
    ExactRoPE,
    HyperConnection,
    Q8Embedding,
    Q8Head,
    TernaryExperts,
    TernaryLinear,
    set_record,
)

NAME = "nanochat"
INIT_STD = 0.02
BALANCE_WEIGHT = 0.01
"""As `--balance-weight` of `nanochat-train`."""
_UNSUPPORTED = {
    "tensor_parallel_degree": "a token's int8 scale and a row's groups need all inputs",
    "context_parallel_degree": "its attention is not made for it",
    "pipeline_parallel_degree": "the residual streams do not pass between its stages",
}

SubLayer = Callable[[Tensor], Tensor]


class NanochatBlock(Qwen3TransformerBlock):
    """A block of torchtitan (attention, SwiGLU or experts) around which residual streams pass."""

    @dataclass(kw_only=True, slots=True)
    class Config(Qwen3TransformerBlock.Config):
        """As torchtitan's, with the records of both sub-layers; None for a plain residual."""

        attn_mhc: HyperConnection.Config | None = None
        ffn_mhc: HyperConnection.Config | None = None

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.attn_mhc = None if config.attn_mhc is None else config.attn_mhc.build()
        self.ffn_mhc = None if config.ffn_mhc is None else config.ffn_mhc.build()

    def forward(self, streams: list[Tensor], attention_masks: Any, positions: Tensor | None = None) -> list[Tensor]:
        """Return the streams behind both sub-layers, each float32 [batch, tokens, dim]."""

        def attend(x: Tensor) -> Tensor:
            return self.attention(self.attention_norm(x), attention_masks, positions).to(x.dtype)

        def feed(x: Tensor) -> Tensor:
            layer = self.moe if self.moe_enabled else self.feed_forward
            return layer(self.ffn_norm(x)).to(x.dtype)

        return _around(self.ffn_mhc, _around(self.attn_mhc, streams, attend), feed)


def _around(connection: HyperConnection | None, streams: list[Tensor], run: SubLayer) -> list[Tensor]:
    if connection is None:
        return [streams[0] + run(streams[0])]
    read, matrix, write = connection()
    return write_streams(streams, run(weighted(read, streams)), matrix, write, mix_first=connection.mix_first)


class NanochatDecoder(Qwen3Model):
    """The whole model; its parameters are those of `NanochatModel` under torchtitan's names."""

    @dataclass(kw_only=True, slots=True)
    class Config(Qwen3Model.Config):
        """As torchtitan's; made by `decoder_config`."""

        n_streams: int = 1
        balance_weight: float = BALANCE_WEIGHT

        def update_from_config(self, *, config: Any, **kwargs: Any) -> None:
            """Take over the run's settings. Raises UserError for a parallelism that the model has no part in."""
            for name, reason in _UNSUPPORTED.items():
                if getattr(config.parallelism, name) > 1:
                    raise UserError(f"{name} must be 1 for nanochat models: {reason}; use FSDP and experts in parallel")
            Qwen3Model.Config.update_from_config(self, config=config, **kwargs)
            training = config.training
            whole = training.global_batch_size
            if whole < 0:
                whole = training.local_batch_size * int(os.environ.get("WORLD_SIZE", "1"))
            for layer in self.layers:
                for connection in (layer.attn_mhc, layer.ffn_mhc):
                    if connection is not None:
                        placement = dense_param_placement(tp=spmd.R)
                        connection.sharding_config = ShardingConfig(state_shardings={"record": placement})
                if layer.moe is not None:
                    layer.moe.router.balance_weight = self.balance_weight * training.local_batch_size / whole

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.n_streams = config.n_streams

    def forward(self, tokens: Tensor, positions: Tensor | None = None, attention_masks: Any = None) -> Tensor:
        """Return logits [batch, tokens, vocab] of int64 tokens, or the normed state where the loss applies the head."""
        streams = [self.tok_embeddings(tokens)] * self.n_streams
        for layer in self.layers.values():
            streams = layer(streams, attention_masks, positions)
        hidden: Tensor = self.norm(sum(streams[1:], streams[0]) / len(streams))
        if self._skip_lm_head:
            return hidden
        logits: Tensor = self.lm_head(hidden)
        return logits


def decoder_config(
    shape: ModelConfig, *, dtype: Dtype = "bfloat16", activations: Activations = "int8"
) -> NanochatDecoder.Config:
    """Return torchtitan's configuration of a shape. Raises UserError for one with blocks for further tokens."""
    if shape.nextn:
        raise UserError("multi-token prediction is not part of the torchtitan model; use nextn 0")
    normal = {"weight": partial(nn.init.normal_, std=INIT_STD)}
    rounding: dict[str, Any] = {
        "group_size": shape.group_size,
        "least_squares": shape.least_squares,
        "activations": activations,
        "dtype": dtype,
    }
    table = {"weight": skip_param_init} if shape.tied else normal  # a tied one is initialised as the head

    def linear(inputs: int, outputs: int) -> TernaryLinear.Config:
        return TernaryLinear.Config(in_features=inputs, out_features=outputs, param_init=normal, **rounding)

    def norm() -> RMSNorm.Config:
        return RMSNorm.Config(normalized_shape=shape.dim, eps=shape.norm_eps, param_init={"weight": nn.init.ones_})

    def record(index: int) -> HyperConnection.Config | None:
        if shape.n_streams == 1:
            return None
        start = {"record": partial(set_record, n_streams=shape.n_streams, index=index)}
        return HyperConnection.Config(n_streams=shape.n_streams, version=shape.mhc_version, param_init=start)

    def block(index: int) -> NanochatBlock.Config:
        attention = GQAttention.Config(
            n_heads=shape.n_heads,
            n_kv_heads=shape.n_kv_heads,
            head_dim=shape.head_dim,
            dim=shape.dim,
            qkv_linear=QKVLinear.Config(
                head_dim=shape.head_dim, wq=linear(shape.dim, shape.dim), wkv=linear(shape.dim, shape.kv_dim)
            ),
            wo=linear(shape.dim, shape.dim),
            # rows run on over the ends of documents, as in `nanochat-train`
            inner_attention=ScaledDotProductAttention.Config(),
            rope=ExactRoPE.Config(dim=shape.head_dim, max_seq_len=shape.context_length, theta=shape.rope_theta),
        )
        dense = FeedForward.Config(
            w1=linear(shape.dim, shape.hidden_dim),
            w2=linear(shape.hidden_dim, shape.dim),
            w3=linear(shape.dim, shape.hidden_dim),
        )
        return NanochatBlock.Config(
            attention_norm=norm(),
            ffn_norm=norm(),
            attention=attention,
            feed_forward=None if shape.n_experts else dense,
            moe=_mixture(shape, rounding) if shape.n_experts else None,
            attn_mhc=record(2 * index),
            ffn_mhc=record(2 * index + 1),
        )

    return NanochatDecoder.Config(
        dim=shape.dim,
        vocab_size=shape.vocab_size,
        tok_embeddings=Q8Embedding.Config(num_embeddings=shape.vocab_size, embedding_dim=shape.dim, param_init=table),
        norm=norm(),
        lm_head=Q8Head.Config(
            in_features=shape.dim,
            out_features=shape.vocab_size,
            param_init=normal,
            activations=activations,
            dtype=dtype,
        ),
        layers=[block(index) for index in range(shape.n_layers)],
        enable_weight_tying=shape.tied,
        n_streams=shape.n_streams,
    )


def _mixture(shape: ModelConfig, rounding: dict[str, Any]) -> MoE.Config:
    normal = partial(nn.init.normal_, std=INIT_STD)
    gate = TernaryLinear.Config(
        in_features=shape.dim,
        out_features=shape.n_experts,
        param_init={"weight": normal},
        **{**rounding, "dtype": "float32"},  # torchtitan takes the softmax in the type it gets
    )
    return MoE.Config(
        num_experts=shape.n_experts,
        load_balance_coeff=None,
        router=BalancedRouter.Config(
            num_experts=shape.n_experts,
            gate=gate,
            top_k=shape.n_active_experts,
            score_func="softmax",
            route_norm=True,  # a softmax over all, divided by the chosen ones' sum, is a softmax over these
        ),
        routed_experts=RoutedExperts.Config(
            inner_experts=TernaryExperts.Config(
                dim=shape.dim,
                hidden_dim=shape.hidden_dim,
                num_experts=shape.n_experts,
                param_init=dict.fromkeys(("w1_EFD", "w2_EDF", "w3_EFD"), normal),
                **rounding,
            ),
            token_dispatcher=make_token_dispatcher_config(
                num_experts=shape.n_experts, top_k=shape.n_active_experts, comm_backend="standard"
            ),
        ),
    )


def model_registry(flavor: str, *, vocab_size: int | None = None, **options: Any) -> ModelSpec:
    """Return torchtitan's description of a named shape (`PRESETS`). Raises UserError for an unknown one.

    `vocab_size` takes the place of the shape's; `options` go to `decoder_config`.
    """
    if flavor not in PRESETS:
        raise UserError(f"there is no shape {flavor}; known are {', '.join(PRESETS)}")
    shape = PRESETS[flavor]
    return spec_of(flavor, shape if vocab_size is None else shape.with_(vocab_size=vocab_size), **options)


def spec_of(flavor: str, shape: ModelConfig, **options: Any) -> ModelSpec:
    """The same for any shape."""
    return ModelSpec(
        name=NAME,
        flavor=flavor,
        model=decoder_config(shape, **options),
        parallelize_fn=parallelize_qwen3,
        pipelining_fn=None,
        post_optimizer_build_fn=None,
        state_dict_adapter=None,
    )
