"""From a checkpoint to the files that people run: GGUF, `.mhc` sidecar and tokenizer.

The ternary matrices are written exactly: `model.ternary` defines trits and float16 scales for trainer and
exporter alike, and the tensor type repeats or holds those scales as they are. Only the embedding (and an untied
head) is rounded, to the Q8_0 that the trainer's forward pass used too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np

from nanochat_tui.errors import display_safe
from nanochat_tui.export.checkpoint import Weights, load_checkpoint
from nanochat_tui.export.errors import CheckpointError
from nanochat_tui.export.verify import ExportReport, verify_export
from nanochat_tui.formats.atomic import atomic_write
from nanochat_tui.formats.gguf import GGUFValue, TensorData, string, tensor_from_array, u32, write_gguf
from nanochat_tui.formats.mhc import write_mhc
from nanochat_tui.formats.tensor_types import TENSOR_TYPES, encode_ternary_matrix
from nanochat_tui.model.architectures import nanochat
from nanochat_tui.model.architectures.description import Part
from nanochat_tui.model.config import ModelConfig
from nanochat_tui.model.mhc import record_names
from nanochat_tui.model.ternary import ternarise
from nanochat_tui.model.tokenizer import END_OF_TEXT, load_tokenizer, to_gguf_metadata

TableType = Literal["Q8_0", "F16"]
TernaryType = Literal["Q2_0", "PQ2_0", "TQ1_0", "TQ2_0"]

FILE_TYPES: dict[str, int] = {"TQ1_0": 36, "TQ2_0": 37, "Q2_0": 41, "PQ2_0": 141}
"""llama.cpp's `general.file_type` by the type of most tensors; a hint for other programs."""


def export_model(
    checkpoint: Path | str,
    gguf_path: Path | str,
    mhc_path: Path | str | None,
    tokenizer: Path | str,
    embedding: TableType = "Q8_0",
    ternary: TernaryType = "Q2_0",
    *,
    name: str | None = None,
    extra: dict[str, GGUFValue] | None = None,
) -> ExportReport:
    """Write a checkpoint as GGUF, `.mhc` and tokenizer, then read them back and compare.

    Parameters: the checkpoint's folder; where to write (a plain residual has no `.mhc`, and `mhc_path` is then left
    alone); a `tokenizer.json`, which goes into the GGUF and is copied beside it; the type of the embedding and of the
    ternary matrices (TQ types only where the groups of each 256 weights share a scale); the model's name for people
    (default: the file's); further metadata. Every file appears whole or not at all.
    Returns what the comparison found. Raises UserError if something cannot be read, written or held exactly, and
    ExportError if the files read back are not the model.
    """
    gguf, vocabulary = Path(gguf_path), Path(tokenizer)
    sidecar = None if mhc_path is None else Path(mhc_path)
    config, weights = load_checkpoint(checkpoint)
    metadata = _metadata(config, vocabulary, name or gguf.stem, ternary) | (extra or {})
    tensors = [_tensor(part, weights, config, embedding, ternary) for part in nanochat.parts(config).values()]
    write_gguf(gguf, metadata, tensors)
    del tensors
    if config.n_streams == 1:
        sidecar = None
    if sidecar is not None:
        write_mhc(sidecar, config.n_streams, mhc_records(config, weights))
    copy = gguf.with_name(vocabulary.name)
    if not copy.exists() or not copy.samefile(vocabulary):
        with atomic_write(copy) as handle:
            handle.write(vocabulary.read_bytes())
    return verify_export(config, weights, gguf, sidecar, copy)


def mhc_records(config: ModelConfig, weights: Weights) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    """Return the mHC records of a model in the order of the file, float32 [records, 9 or 40]."""
    return np.stack([weights[name] for name in record_names(config.mhc_records)])


def _metadata(config: ModelConfig, vocabulary: Path, name: str, ternary: str) -> dict[str, GGUFValue]:
    tokenizer = tokenizer_metadata(config, vocabulary)
    shape = nanochat.to_metadata(config)
    architecture = {"general.architecture": shape.pop("general.architecture")}
    general = {
        "general.name": string(name),
        "general.file_type": u32(FILE_TYPES[ternary]),
        "general.quantization_version": u32(2),
    }
    return architecture | general | shape | tokenizer


def tokenizer_metadata(config: ModelConfig, vocabulary: Path) -> dict[str, GGUFValue]:
    """Return the keys of the tokenizer a model was trained with. Raises CheckpointError if it is another's."""
    tokenizer = load_tokenizer(vocabulary)
    size = tokenizer.get_vocab_size(with_added_tokens=True)
    if size != config.vocab_size:
        raise CheckpointError(
            f"the model has {config.vocab_size} tokens but {display_safe(str(vocabulary))} has {size}; "
            "give the tokenizer the model was trained with"
        )
    end = tokenizer.token_to_id(END_OF_TEXT)
    if end is None:
        raise CheckpointError(f"{display_safe(str(vocabulary))} has no token {END_OF_TEXT}, which separates documents")
    return to_gguf_metadata(tokenizer, bos=end, eos=end, add_bos=True)


def _tensor(part: Part, weights: Weights, config: ModelConfig, table: str, ternary: str) -> TensorData:
    values = weights[part.name]
    if part.role == "ternary":
        kind = TENSOR_TYPES[ternary]
        trits, scales = ternarise(values, config.group_size)
        return TensorData(part.name, part.shape, kind, encode_ternary_matrix(kind, trits, scales))
    return tensor_from_array(part.name, values, TENSOR_TYPES[table if part.role == "table" else "F32"])
