"""The nanochat decoder in PyTorch, for training.

Parameters carry the names that the exported GGUF uses, so a state dict is a checkpoint.
Residual streams follow mHC-lite (static): see `nanochat_tui.model.mhc` for the mathematics in NumPy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nanochat_tui.formats.mhc import write_mhc
from nanochat_tui.model.config import ModelConfig
from nanochat_tui.train.experts import balance_loss, choose, mixture, with_loss
from nanochat_tui.train.quantise import int8_activation, int8_head_input, q8_0_table, ternary_weight
from nanochat_tui.train.streams import initial_record, mix_coefficients, records_of, weighted, write_streams


class BlockWeights(NamedTuple):
    """Effective (fake-quantised) weights of one block; matrices that share an input are stacked."""

    qkv: Tensor
    output: Tensor
    gate_up: Tensor
    """[2 hidden, dim]; of a mixture [experts, 2 hidden, dim], as `down`."""
    down: Tensor
    router: Tensor | None = None
    """[experts, dim], of a mixture."""


Joined = tuple[BlockWeights, Tensor]
"""Effective weights of a block for further tokens, and of the matrix that joins embedding and state."""


class _Matrix(nn.Module):
    lora_scale = 0.0

    def __init__(self, rows: int, columns: int, std: float) -> None:
        super().__init__()
        self.std = std
        self.weight = nn.Parameter(torch.randn(rows, columns) * std)

    def add_lora(self, rank: int, alpha: float) -> None:
        """Train (alpha / rank) · b a next to the matrix: a [rank, columns] as PEFT begins it, b [rows, rank] zeros."""
        rows, columns = self.weight.shape
        self.lora_a = nn.Parameter(torch.empty(rank, columns).uniform_(-1, 1) / math.sqrt(columns))
        self.lora_b = nn.Parameter(torch.zeros(rows, rank))
        self.lora_scale = alpha / rank

    def forward(self, quantise: bool) -> Tensor:
        """Return it as a table of the file, rounded to Q8_0, or as it is; a new tensor in any case."""
        return (q8_0_table(self.weight) if quantise else self.weight).clone()


class _Matrices(nn.Module):
    """One matrix for each expert, [experts, rows, columns]."""

    def __init__(self, experts: int, rows: int, columns: int, std: float) -> None:
        super().__init__()
        self.std = std
        self.weight = nn.Parameter(torch.randn(experts, rows, columns) * std)


class _Norm(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))


class Block(nn.Module):
    """One decoder block: attention and SwiGLU, or several and a router; each with its norm and its mHC record."""

    load: Tensor
    """Assignments of each expert since it was looked at, float32 [experts]; of a mixture only."""

    def __init__(self, config: ModelConfig, index: int, std: float) -> None:
        super().__init__()
        self.group_size, self.least_squares = config.group_size, config.least_squares
        self.experts, self.index = config.n_experts, index
        dim, kv, hidden = config.dim, config.kv_dim, config.hidden_dim
        self.attn_norm = _Norm(dim)
        self.attn_q = _Matrix(dim, dim, std)
        self.attn_k = _Matrix(kv, dim, std)
        self.attn_v = _Matrix(kv, dim, std)
        self.attn_output = _Matrix(dim, dim, std)
        self.ffn_norm = _Norm(dim)
        if experts := config.n_experts:
            self.ffn_gate_inp = _Matrix(experts, dim, std)
            self.ffn_gate_exps = _Matrices(experts, hidden, dim, std)
            self.ffn_up_exps = _Matrices(experts, hidden, dim, std)
            self.ffn_down_exps = _Matrices(experts, dim, hidden, std)
            self.register_buffer("load", torch.zeros(experts), persistent=False)
        else:
            self.ffn_gate = _Matrix(hidden, dim, std)
            self.ffn_up = _Matrix(hidden, dim, std)
            self.ffn_down = _Matrix(dim, hidden, std)
        if config.n_streams > 1:
            self.attn_mhc = nn.Parameter(initial_record(config.n_streams, 2 * index))
            self.ffn_mhc = nn.Parameter(initial_record(config.n_streams, 2 * index + 1))

    def forward(self, step: Callable[..., Any], *args: Any) -> Any:
        """Return step(self, *args), with the module's hooks around it: `train.sharding` gathers the weights so."""
        return step(self, *args)

    def effective(self, dtype: torch.dtype, quantise: bool) -> BlockWeights:
        """Return the weights the forward pass uses, as `dtype`."""

        def value(*matrices: _Matrix | _Matrices) -> Tensor:
            stacked = torch.cat([m.weight for m in matrices], dim=-2) if len(matrices) > 1 else matrices[0].weight
            if quantise:
                stacked = ternary_weight(stacked, self.group_size, least_squares=self.least_squares)
            if isinstance(matrices[0], _Matrix) and matrices[0].lora_scale:
                adapted = cast("tuple[_Matrix, ...]", matrices)
                stacked = stacked + torch.cat([m.lora_scale * (m.lora_b @ m.lora_a) for m in adapted])
            return stacked.to(dtype)

        attention = value(self.attn_q, self.attn_k, self.attn_v), value(self.attn_output)
        if self.experts:
            experts = value(self.ffn_gate_exps, self.ffn_up_exps), value(self.ffn_down_exps)
            return BlockWeights(*attention, *experts, value(self.ffn_gate_inp))
        return BlockWeights(
            *attention,
            value(self.ffn_gate, self.ffn_up),
            value(self.ffn_down),
        )


class _Joining(nn.Module):
    """What turns a trunk's block into one that predicts a further token; names as llama.cpp's `nextn` tensors."""

    def __init__(self, dim: int, std: float) -> None:
        super().__init__()
        self.eh_proj = _Matrix(dim, 2 * dim, std)
        self.enorm = _Norm(dim)
        self.hnorm = _Norm(dim)
        self.shared_head_norm = _Norm(dim)


class NextBlock(Block):
    """A block behind the trunk that predicts a further token (see `train.mtp`); its residual is plain."""

    def __init__(self, config: ModelConfig, index: int, std: float) -> None:
        super().__init__(config.with_(n_streams=1), index, std)
        self.nextn = _Joining(config.dim, std)

    def joining(self, dtype: torch.dtype, quantise: bool) -> Tensor:
        """Return the matrix that joins embedding and state, as the forward pass uses it."""
        weight: Tensor = self.nextn.eh_proj.weight
        if quantise:
            weight = ternary_weight(weight, self.group_size, least_squares=self.least_squares)
        return weight.to(dtype)


def rope_angles(head_dim: int, theta: float, length: int) -> Tensor:
    """Angles of every position, float64 [length, head width / 2]."""
    half = head_dim // 2
    frequency = theta ** (-torch.arange(half, dtype=torch.float64) / half)
    return torch.outer(torch.arange(length, dtype=torch.float64), frequency)


def rope_tables(config: ModelConfig) -> tuple[Tensor, Tensor]:
    """Cosines and sines of every position, float32 [context, head width / 2]."""
    angle = rope_angles(config.head_dim, config.rope_theta, config.context_length)
    return angle.cos().float(), angle.sin().float()


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMSNorm in float32 over the last axis."""
    return x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + eps) * weight


def rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding, half-split pairing; x [batch, heads, tokens, head_dim]."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


SubLayer = Callable[[Tensor], Tensor]


class NanochatModel(nn.Module):
    """Decoder with ternary linears; `hidden` gives the final normed state, `logits` the full distribution.

    `quantise=False` takes the weights as they are, for a model read back from an exported file or for an
    ablation; `activations="float"` leaves the inputs of linears and head unrounded.
    """

    cos: Tensor
    sin: Tensor

    def __init__(
        self,
        config: ModelConfig,
        *,
        init_std: float = 0.02,
        quantise: bool = True,
        activations: Literal["int8", "float"] = "int8",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.config = config
        self.quantise = quantise
        self.round_activations = activations == "int8"
        self.compute_dtype = dtype
        self.balance_weight = 0.0
        """Of the loss that spreads tokens over a mixture's experts, in the gradient of a micro-batch."""
        self.checkpointing = False
        """Whether a block's activations are computed again in the backward pass, instead of kept."""
        self.token_embd = _Matrix(config.vocab_size, config.dim, 0.02)
        self.blk = nn.ModuleList(Block(config, i, init_std) for i in range(config.n_layers))
        self.output_norm = _Norm(config.dim)
        if not config.tied:
            self.output = _Matrix(config.vocab_size, config.dim, 0.02)
        # last, so that the rest begins as it does without them
        self.blk.extend(NextBlock(config, config.n_layers + i, init_std) for i in range(config.nextn))
        cos, sin = rope_tables(config)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def initial(self) -> Iterator[tuple[nn.Parameter, Tensor]]:
        """Yield every parameter with its initial value, drawn in the order that the constructor draws in."""
        config = self.config
        for part in (self.token_embd, *self.blocks, *([] if config.tied else [self.output]), *self.next_blocks):
            for module in part.modules():
                if isinstance(module, (_Matrix, _Matrices)):
                    yield module.weight, torch.randn(module.weight.shape) * module.std
                elif isinstance(module, _Norm):
                    yield module.weight, torch.ones(module.weight.shape)
            if isinstance(part, Block) and hasattr(part, "attn_mhc"):
                for sub, record in enumerate((part.attn_mhc, part.ffn_mhc)):
                    yield record, initial_record(config.n_streams, 2 * part.index + sub)
        yield self.output_norm.weight, torch.ones(config.dim)

    def forward(self, call: Callable[..., Any], *args: Any) -> Any:
        """Return call(*args), with the module's hooks around it: `train.sharding` needs them."""
        return call(*args)

    def add_lora(self, rank: int, alpha: float) -> None:
        """Freeze all weights and train low-rank matrices next to those of the blocks (LoRA, Hu et al. 2021)."""
        self.requires_grad_(False)
        for block in self.blocks:
            for matrix in block.modules():
                if isinstance(matrix, _Matrix):
                    matrix.add_lora(rank, alpha)

    def use_ternary(self, ternary: bool) -> None:
        """Compute with ternary weights and rounded activations, as the exported file does, or with none rounded."""
        self.quantise = self.round_activations = ternary

    @property
    def blocks(self) -> list[Block]:
        """The decoder blocks, first to last."""
        return cast("list[Block]", list(self.blk))[: self.config.n_layers]

    @property
    def next_blocks(self) -> list[NextBlock]:
        """The blocks for further tokens, behind the trunk; none without multi-token prediction."""
        return cast("list[NextBlock]", list(self.blk)[self.config.n_layers :])

    @property
    def head_weight(self) -> nn.Parameter:
        """The table the logits are taken with, [vocab, dim]: the embedding when tied."""
        return self.token_embd.weight if self.config.tied else self.output.weight

    def head_table(self) -> Tensor:
        """The table the logits are taken with as the file will hold it, float32 [vocab, dim]."""
        return q8_0_table(self.head_weight) if self.quantise else self.head_weight

    def effective(self) -> list[BlockWeights]:
        """Fake-quantised weights of all blocks: computed once per step, outside the compiled trunk."""
        return [block.effective(self.compute_dtype, self.quantise) for block in self.blocks]

    def embed(self, tokens: Tensor) -> Tensor:
        """Embedding rows as the file will hold them (Q8_0), float32 [batch, tokens, dim]."""
        rows = F.embedding(tokens, self.token_embd.weight)
        return q8_0_table(rows) if self.quantise else rows

    def records(self) -> Tensor:
        """The mHC records in file order, float32 [records, 9 or 40]."""
        return torch.stack([record for block in self.blocks for record in (block.attn_mhc, block.ffn_mhc)])

    def write_records(self, folder: Path) -> None:
        """Write the mHC records as model.mhc into a folder; nothing for a plain residual."""
        if self.config.n_streams > 1:
            write_mhc(folder / "model.mhc", self.config.n_streams, self.records().detach().cpu().numpy())

    def mixing(self) -> tuple[Tensor, Tensor, Tensor] | None:
        """All records' (read, matrix, write) coefficients, or None for a plain residual."""
        if self.config.n_streams == 1:
            return None
        return mix_coefficients(self.records(), self.config.n_streams, self.config.mhc_version)

    def trunk(
        self,
        x: Tensor,
        weights: list[BlockWeights],
        mixing: tuple[Tensor, Tensor, Tensor] | None,
        *,
        keep_streams: list[Tensor] | None = None,
    ) -> Tensor:
        """Run all blocks on embedded tokens [batch, tokens, dim]; returns the normed state, float32.

        `keep_streams`, when given, receives the stacked streams [n, batch, tokens, dim] after every sub-layer.
        """
        streams = [x] * self.config.n_streams
        for index, (block, w) in enumerate(zip(self.blocks, weights, strict=True)):
            run = partial(self.block_step, block, w, keep_streams=keep_streams)
            mix = records_of(mixing, index)
            if self.checkpointing and torch.is_grad_enabled():
                streams = checkpoint(run, streams, mix, use_reentrant=False)
            else:
                streams = run(streams, mix)
        return self.end_of_trunk(streams)

    def end_of_trunk(self, streams: list[Tensor]) -> Tensor:
        """The normed mean of the streams, float32 [batch, tokens, dim]."""
        mean = sum(streams[1:], streams[0]) / len(streams)
        return rms_norm(mean, self.output_norm.weight, self.config.norm_eps)

    def block_step(
        self,
        block: Block,
        w: BlockWeights,
        streams: list[Tensor],
        mix: tuple[Tensor, Tensor, Tensor] | None,
        *,
        keep_streams: list[Tensor] | None = None,
    ) -> list[Tensor]:
        """The streams behind both sub-layers of a block; `mix` has the coefficients of its two records."""
        for sub, layer in enumerate((self._attention, self._feed_forward)):
            run = partial(layer, block, w)
            if mix is None:
                streams = [streams[0] + run(streams[0])]
            else:
                read, matrix, write = mix
                streams = self._hyper_connect(streams, run, (read[sub], matrix[sub], write[sub]))
            if keep_streams is not None:
                keep_streams.append(torch.stack(streams))
        return streams

    def _hyper_connect(self, streams: list[Tensor], run: SubLayer, mix: tuple[Tensor, Tensor, Tensor]) -> list[Tensor]:
        read, matrix, write = mix
        return self.write_streams(streams, run(weighted(read, streams)), matrix, write)

    def write_streams(self, streams: list[Tensor], y: Tensor, matrix: Tensor, write: Tensor) -> list[Tensor]:
        """The streams after a sub-layer with output `y`: coefficients matrix [n, n] and write [n] of its record."""
        mix_first = self.config.n_streams == 4 and self.config.mhc_version == 1
        return write_streams(streams, y, matrix, write, mix_first=mix_first)

    def round_input(self, x: Tensor) -> Tensor:
        """What a linear reads of `x`: rounded to int8 with one scale per token, or as it is."""
        return int8_activation(x) if self.round_activations else x

    def _attention(self, block: Block, w: BlockWeights, x: Tensor) -> Tensor:
        c = self.config
        batch, tokens, _ = x.shape
        residual = x.dtype
        x = self.round_input(rms_norm(x, block.attn_norm.weight, c.norm_eps)).to(self.compute_dtype)
        q, k, v = torch.split(F.linear(x, w.qkv), [c.dim, c.kv_dim, c.kv_dim], dim=-1)
        cos, sin = self.cos[:tokens].to(q.dtype), self.sin[:tokens].to(q.dtype)
        q = rope(q.view(batch, tokens, c.n_heads, -1).transpose(1, 2), cos, sin)
        k = rope(k.view(batch, tokens, c.n_kv_heads, -1).transpose(1, 2), cos, sin)
        v = v.view(batch, tokens, c.n_kv_heads, -1).transpose(1, 2)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=c.n_heads != c.n_kv_heads)
        y = y.transpose(1, 2).reshape(batch, tokens, c.dim)
        return F.linear(self.round_input(y), w.output).to(residual)

    def _feed_forward(self, block: Block, w: BlockWeights, x: Tensor) -> Tensor:
        residual = x.dtype
        x = self.round_input(rms_norm(x, block.ffn_norm.weight, self.config.norm_eps)).to(self.compute_dtype)
        if w.router is not None:
            return self._experts(block, w, w.router, x, residual)
        gate, up = F.linear(x, w.gate_up).chunk(2, dim=-1)
        return F.linear(self.round_input(F.silu(gate) * up), w.down).to(residual)

    def _experts(self, block: Block, w: BlockWeights, router: Tensor, x: Tensor, residual: torch.dtype) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        logits = F.linear(rows, router).float()
        chosen, weights = choose(logits, self.config.n_active_experts)
        y = mixture(rows, chosen, weights, w.gate_up, w.down, self.round_input)
        if torch.is_grad_enabled() and self.balance_weight:
            loss, counts = balance_loss(logits, chosen)
            block.load.add_(counts)
            y = with_loss(y, loss, self.balance_weight)
        return y.view(x.shape).to(residual)

    def linear(self, x: Tensor, weight: Tensor) -> Tensor:
        """A linear with a rounded input: x [..., inputs], weight [outputs, inputs] as `compute_dtype`."""
        return F.linear(self.round_input(x).to(self.compute_dtype), weight).to(x.dtype)

    def plain_block(self, block: Block, w: BlockWeights, x: Tensor) -> Tensor:
        """One block with a plain residual on x [batch, tokens, dim]."""
        x = x + self._attention(block, w, x)
        return x + self._feed_forward(block, w, x)

    def effective_next(self, block: NextBlock) -> Joined:
        """Fake-quantised weights of a block for further tokens."""
        kind, ternary = self.compute_dtype, self.quantise
        return block.effective(kind, ternary), block.joining(kind, ternary)

    def next_state(self, block: NextBlock, weights: Joined, state: Tensor, embedded: Tensor) -> Tensor:
        """Return the state [sequences, T - 1, width] of one more token ahead, of the one before [sequences, T, width].

        `embedded` are the tokens that are joined to it, [sequences, T - 1, width]; see `train.mtp`.
        """
        (w, joining), eps = weights, self.config.norm_eps
        known = rms_norm(embedded, block.nextn.enorm.weight, eps)
        before = rms_norm(state[:, :-1], block.nextn.hnorm.weight, eps)
        return self.plain_block(block, w, self.linear(torch.cat([known, before], dim=-1), joining))

    def hidden(self, tokens: Tensor) -> Tensor:
        """Final normed state of int64 tokens [batch, tokens], float32 [batch, tokens, dim]."""
        return self.trunk(self.embed(tokens), self.effective(), self.mixing())

    def head_input(self, hidden: Tensor) -> Tensor:
        """The state as the head reads it: rounded to int8 with one scale per 32 values."""
        return int8_head_input(hidden) if self.round_activations else hidden

    def logits(self, tokens: Tensor) -> Tensor:
        """Float32 logits [batch, tokens, vocab] with the tables and roundings of the exported file."""
        return F.linear(self.head_input(self.hidden(tokens)), self.head_table())

    @property
    def parameters_total(self) -> int:
        """Number of trained parameters."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad)
