"""A plain-residual model as a GGUF of the architecture `llama`, which llama.cpp runs as it is published.

The two architectures compute the same where there are no residual streams to mix. Only RoPE is written down
differently: `nanochat` rotates component i of a head with i + width/2, `llama` rotates 2i with 2i + 1, so that the rows
of the query and key matrices are put into that order. What `llama` cannot say, indentation as tabs, stays our key.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nanochat_tui.export.checkpoint import Weights, load_checkpoint
from nanochat_tui.export.errors import CheckpointError, ExportError
from nanochat_tui.export.gguf_export import TableType, TernaryType, tokenizer_metadata, without_nextn
from nanochat_tui.export.staging import staged
from nanochat_tui.formats.gguf import GGUFValue, TensorData, f32, read_gguf, string, tensor_from_array, u32, write_gguf
from nanochat_tui.formats.tensor_types import FILE_TYPES, TENSOR_TYPES, encode_ternary_matrix, ternary_matrix
from nanochat_tui.model.architectures import nanochat
from nanochat_tui.model.architectures.description import Part
from nanochat_tui.model.config import ModelConfig
from nanochat_tui.model.ternary import ternarise
from nanochat_tui.text import display_safe

ROTATED = ("attn_q", "attn_k")


def interleaved(matrix: NDArray[Any], heads: int) -> NDArray[Any]:
    """Return rows [heads · width, …] in the order of pairs side by side: 0, width/2, 1, width/2 + 1, … of each head."""
    rows = matrix.shape[0]
    halves = matrix.reshape(heads, 2, rows // heads // 2, *matrix.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(matrix.shape)


def halved(matrix: NDArray[Any], heads: int) -> NDArray[Any]:
    """Inverse of `interleaved`."""
    rows = matrix.shape[0]
    pairs = matrix.reshape(heads, rows // heads // 2, 2, *matrix.shape[1:])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(matrix.shape)


def export_llama(
    checkpoint: Path | str,
    gguf_path: Path | str,
    tokenizer: Path | str,
    embedding: TableType = "Q8_0",
    ternary: TernaryType = "Q2_0",
    *,
    name: str | None = None,
    check: Callable[[Path], None] | None = None,
) -> dict[str, Any]:
    """Write a checkpoint trained without mHC as a stock `llama` file, read it back and compare every trit and scale.

    Parameters as for `export_model`; `check` may refuse the file by raising. Returns what was written, as JSON values.
    Raises CheckpointError if the model mixes residual streams or experts, UserError if something cannot be read,
    written or held exactly, and ExportError if the file read back is not the model.
    """
    gguf, vocabulary = Path(gguf_path), Path(tokenizer)
    config, weights = without_nextn(*load_checkpoint(checkpoint))
    if config.n_experts:
        raise CheckpointError(
            f"the model is a mixture of {config.n_experts} experts, which is not written as architecture llama; "
            "leave --arch llama out"
        )
    if config.n_streams != 1:
        raise CheckpointError(
            f"the model mixes {config.n_streams} residual streams (mHC), which the architecture llama does not have; "
            "train one with a plain residual, or export it as nanochat"
        )
    metadata = _metadata(config, name or gguf.stem, ternary) | tokenizer_metadata(config, vocabulary, Path(checkpoint))
    with staged([gguf]) as (place,):
        write_gguf(place, metadata, [_tensor(part, weights, config, embedding, ternary) for part in _parts(config)])
        compared = _verify(place, config, weights)
        if check is not None:
            check(place)
    return {
        "gguf": str(gguf),
        "gguf_bytes": gguf.stat().st_size,
        "architecture": "llama",
        "parameters": config.parameters,
        "ternary_type": ternary,
        "table_type": embedding,
        "ternary_weights": compared,
    }


def _parts(config: ModelConfig) -> list[Part]:
    return list(nanochat.parts(config).values())


def _metadata(config: ModelConfig, name: str, ternary: str) -> dict[str, GGUFValue]:
    return {
        "general.architecture": string("llama"),
        "general.name": string(name),
        "general.file_type": u32(FILE_TYPES[ternary]),
        "general.quantization_version": u32(2),
        "llama.block_count": u32(config.n_layers),
        "llama.context_length": u32(config.context_length),
        "llama.embedding_length": u32(config.dim),
        "llama.feed_forward_length": u32(config.hidden_dim),
        "llama.attention.head_count": u32(config.n_heads),
        "llama.attention.head_count_kv": u32(config.n_kv_heads),
        "llama.attention.layer_norm_rms_epsilon": f32(config.norm_eps),
        "llama.rope.freq_base": f32(config.rope_theta),
        "llama.rope.dimension_count": u32(config.head_dim),
        "llama.vocab_size": u32(config.vocab_size),
        "nanochat.text.indentation": u32(config.indentation),
    }


def _heads(part: str, config: ModelConfig) -> int:
    """Return the heads whose rows are reordered; 0 for a matrix that stays as it is."""
    stem = part.split(".")[-2]
    return 0 if stem not in ROTATED else config.n_heads if stem == "attn_q" else config.n_kv_heads


def _tensor(part: Part, weights: Weights, config: ModelConfig, table: str, ternary: str) -> TensorData:
    values = weights[part.name]
    if part.role != "ternary":
        return tensor_from_array(part.name, values, TENSOR_TYPES[table if part.role == "table" else "F32"])
    kind, heads = TENSOR_TYPES[ternary], _heads(part.name, config)
    trits, scales = ternarise(values, config.group_size, least_squares=config.least_squares)
    if heads:
        trits, scales = interleaved(trits, heads), interleaved(scales, heads)
    return TensorData(part.name, part.shape, kind, encode_ternary_matrix(kind, trits, scales))


def _verify(path: Path, config: ModelConfig, weights: Weights) -> int:
    """Return the number of ternary weights, all found to be the checkpoint's. Raises ExportError."""
    compared = 0
    with read_gguf(path) as file:
        for part in _parts(config):
            info = file.tensor(part.name)
            if part.role == "ternary":
                trits, scales = ternary_matrix(info.type, file.blocks(part.name), info.shape)
                if heads := _heads(part.name, config):
                    trits, scales = halved(trits, heads), halved(scales, heads)
                source = weights[part.name]
                expected, wanted = ternarise(source, config.group_size, least_squares=config.least_squares)
                wide = np.repeat(scales, info.type.block_elements, axis=-1)
                same = np.array_equal(trits, expected)
                same = same and np.array_equal(wide, np.repeat(wanted, config.group_size, axis=-1))
                compared += trits.size
            else:
                kind = info.type
                rows = np.ascontiguousarray(weights[part.name]).reshape(-1, kind.block_elements)
                same = np.array_equal(file.raw(part.name), kind.encode(rows).reshape(-1))
            if not same:
                raise ExportError(
                    f"the tensor {display_safe(part.name)} in {display_safe(path.name)} differs from the checkpoint; "
                    "the exported file must not be used"
                )
    return compared
