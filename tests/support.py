"""Small nanochat GGUF files with random weights, valid in every respect, for the tests of any room.

`write_model(path, config)` writes one; its tokenizer is byte-level BPE with the 256 bytes, `<|endoftext|>` and
a few merges, padded with unused tokens to the vocabulary's size.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from nanochat_tui.formats.gguf import TensorData, string, tensor_from_array, write_gguf
from nanochat_tui.formats.tensor_types import TENSOR_TYPES, encode_ternary_matrix
from nanochat_tui.model.architectures import nanochat
from nanochat_tui.model.config import ModelConfig
from nanochat_tui.model.tokenizer import END_OF_TEXT, byte_level_bpe, to_gguf_metadata
from nanochat_tui.model.tokenizer.codec import byte_alphabet
from nanochat_tui.model.tokenizer.infill import add_marks, choose_marks

TINY = ModelConfig(
    dim=128,
    n_layers=2,
    n_heads=4,
    n_kv_heads=2,
    hidden_dim=256,
    vocab_size=300,
    context_length=96,
    group_size=64,
)
"""A shape that is odd where it can be: grouped queries, a vocabulary that fills no block."""

MERGES = [("f", "n"), ("Ġ", "m"), ("Ġm", "a"), ("Ġma", "i"), ("Ġmai", "n"), ("l", "e"), ("le", "t")]


def tiny_tokenizer(vocab_size: int = 300) -> Tokenizer:
    """Return a byte-level BPE tokenizer of exactly `vocab_size` >= 264 tokens; the last is <|endoftext|>."""
    names = [*byte_alphabet(), *(a + b for a, b in MERGES)]
    names += [f"unused{i}" for i in range(vocab_size - len(names) - 1)]
    names.append(END_OF_TEXT)
    return byte_level_bpe({name: i for i, name in enumerate(names)}, MERGES)


def random_records(config: ModelConfig, seed: int = 0) -> NDArray[np.float32]:
    """Return mHC records [2 n_layers, 9 or 40] with every number at work."""
    rng = np.random.default_rng(seed)
    width = 9 if config.n_streams == 2 else 40
    return rng.normal(0.0, 1.0, (config.mhc_records, width)).astype(np.float32)


def random_tensors(
    config: ModelConfig,
    *,
    ternary: str = "Q2_0",
    embedding: Literal["Q8_0", "F16"] = "Q8_0",
    seed: int = 0,
) -> list[TensorData]:
    """Return all tensors of a model with random weights whose logits have a spread of about 1."""
    rng = np.random.default_rng(seed)
    tensors = []
    records = iter(random_records(config, seed)) if config.n_streams > 1 else iter(())
    for part in nanochat.parts(config).values():
        if part.role == "ternary":
            rows, columns = part.shape
            trits = rng.integers(-1, 2, (rows, columns)).astype(np.int8)
            spread = rng.uniform(0.7, 1.3, (rows, columns // config.group_size)) * 1.2 / np.sqrt(columns)
            kind = TENSOR_TYPES[ternary]
            block = max(1, kind.block_elements // config.group_size)
            scales = np.repeat(spread[:, ::block], block, axis=1).astype(np.float16)
            data = encode_ternary_matrix(kind, trits, scales)
            tensors.append(TensorData(part.name, part.shape, kind, data))
        elif part.role == "table":
            values = rng.normal(0.0, 1.5 / np.sqrt(config.dim), part.shape).astype(np.float32)
            tensors.append(tensor_from_array(part.name, values, TENSOR_TYPES[embedding]))
        elif part.role == "norm":
            values = rng.uniform(0.8, 1.2, part.shape).astype(np.float32)
            tensors.append(tensor_from_array(part.name, values, TENSOR_TYPES["F32"]))
        else:
            tensors.append(tensor_from_array(part.name, next(records), TENSOR_TYPES["F32"]))
    return tensors


def write_model(
    path: Path,
    config: ModelConfig = TINY,
    *,
    ternary: str = "Q2_0",
    embedding: Literal["Q8_0", "F16"] = "Q8_0",
    add_bos: bool = True,
    chat_template: str | None = None,
    tokenizer: Tokenizer | None = None,
    infill: bool = False,
    seed: int = 0,
) -> Path:
    """Write a model of random weights and return its path; with `infill` it has marks for filling in the middle."""
    made = tokenizer or tiny_tokenizer(config.vocab_size)
    marks = choose_marks(made) if infill else None
    if marks is not None:
        made = Tokenizer.from_str(add_marks(made.to_str(), marks))
    end = made.token_to_id(END_OF_TEXT)
    metadata = nanochat.to_metadata(config) | to_gguf_metadata(
        made, bos=end, eos=end, add_bos=add_bos, infill=marks, chat_template=chat_template
    )
    metadata["general.name"] = string("random")
    write_gguf(path, metadata, random_tensors(config, ternary=ternary, embedding=embedding, seed=seed))
    return path
