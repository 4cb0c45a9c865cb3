"""From a checkpoint to the files that people run: GGUF, `.mhc` sidecar and tokenizer.

The ternary matrices are written exactly: `model.ternary` defines trits and float16 scales for trainer and
exporter alike, and the tensor type repeats or holds those scales as they are. Only the embedding (and an untied
head) is rounded, to the Q8_0 that the trainer's forward pass used too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
from tokenizers import Tokenizer

from nanochat_tui.export.checkpoint import Weights, load_checkpoint
from nanochat_tui.export.errors import CheckpointError
from nanochat_tui.export.staging import staged
from nanochat_tui.export.tokenizer_choice import checkpoint_identity, checkpoint_marks, checkpoint_template
from nanochat_tui.export.verify import ExportReport, verify_export
from nanochat_tui.files import atomic_write
from nanochat_tui.formats.checksums import file_sha256
from nanochat_tui.formats.gguf import GGUFValue, TensorData, string, tensor_from_array, u32, write_gguf
from nanochat_tui.formats.mhc import write_mhc
from nanochat_tui.formats.tensor_types import FILE_TYPES, TENSOR_TYPES, encode_ternary_matrix
from nanochat_tui.model.architectures import nanochat
from nanochat_tui.model.architectures.description import Part
from nanochat_tui.model.config import ModelConfig
from nanochat_tui.model.mhc import record_names
from nanochat_tui.model.ternary import ternarise
from nanochat_tui.model.tokenizer import END_OF_TEXT, load_tokenizer, to_gguf_metadata
from nanochat_tui.model.tokenizer.identity import TokenizerIdentity, difference, end_of_text
from nanochat_tui.model.tokenizer.infill import add_marks
from nanochat_tui.text import display_safe

TableType = Literal["Q8_0", "F16"]
TernaryType = Literal["Q2_0", "PQ2_0", "TQ1_0", "TQ2_0"]


def export_model(
    checkpoint: Path | str,
    gguf_path: Path | str,
    mhc_path: Path | str | None,
    tokenizer: Path | str,
    embedding: TableType = "Q8_0",
    ternary: TernaryType = "Q2_0",
    *,
    nextn: bool = False,
    name: str | None = None,
    extra: dict[str, GGUFValue] | None = None,
    check: Callable[[Path, ExportReport], ExportReport] | None = None,
) -> ExportReport:
    """Write a checkpoint as GGUF, `.mhc` and tokenizer, then read them back and compare.

    Parameters: the checkpoint's folder; where to write (a plain residual has no `.mhc`, and `mhc_path` is then left
    alone); a `tokenizer.json`, which goes into the GGUF and is copied next to it; the type of the embedding and of the
    ternary matrices (TQ types only where the groups of each 256 weights share a scale); whether blocks that predict
    further tokens are written, where the checkpoint has them; the model's name for people
    (default: the file's); further metadata; `check`, which is given the GGUF before it takes its place and may refuse
    it by raising. The files appear together once they are verified, or not at all.
    Returns what the comparison found. Raises UserError if something cannot be read, written or held exactly, and
    ExportError if the files read back are not the model.
    """
    gguf, vocabulary = Path(gguf_path), Path(tokenizer)
    sidecar = None if mhc_path is None else Path(mhc_path)
    config, weights = load_checkpoint(checkpoint)
    if not nextn:
        config, weights = without_nextn(config, weights)
    metadata = _metadata(config, vocabulary, name or gguf.stem, ternary, Path(checkpoint)) | (extra or {})
    if config.n_streams == 1:
        sidecar = None
    content = marked_tokenizer(vocabulary, Path(checkpoint))
    copy = _copy_name(gguf, vocabulary.name, content)
    copies = not copy.exists()
    targets = [gguf, *([sidecar] if sidecar is not None else []), *([copy] if copies else [])]
    with staged(targets) as places:
        placed = dict(zip(targets, places, strict=True))
        tensors = [_tensor(part, weights, config, embedding, ternary) for part in nanochat.parts(config).values()]
        write_gguf(placed[gguf], metadata, tensors)
        del tensors
        if sidecar is not None:
            write_mhc(placed[sidecar], config.n_streams, mhc_records(config, weights))
        if copies:
            with atomic_write(placed[copy]) as handle:
                handle.write(content)
        report = verify_export(config, weights, placed[gguf], sidecar and placed[sidecar], placed.get(copy, copy))
        if check is not None:
            report = check(placed[gguf], report)
    return replace(report, gguf_path=gguf, mhc_path=sidecar, tokenizer_path=copy)


def write_weights(
    path: Path,
    metadata: dict[str, GGUFValue],
    config: ModelConfig,
    weights: Weights,
    types: tuple[TableType, TernaryType] = ("Q8_0", "Q2_0"),
) -> None:
    """Write weights as a GGUF with these keys; nothing is read back. `types`: of the embedding, of ternary matrices.

    Raises OSError when the file cannot be written, UserError for weights that a type cannot hold.
    """
    write_gguf(path, metadata, [_tensor(part, weights, config, *types) for part in nanochat.parts(config).values()])


def without_nextn(config: ModelConfig, weights: Weights) -> tuple[ModelConfig, Weights]:
    """Return the model without its blocks that predict further tokens, which generation does not need."""
    plain = config.with_(nextn=0)
    return plain, {name: weights[name] for name in nanochat.parts(plain)}


def marked_tokenizer(vocabulary: Path, checkpoint: Path) -> bytes:
    """The tokenizer.json of a checkpoint's data, with the marks the model was trained with. Raises UserError."""
    load_tokenizer(vocabulary)  # for its errors
    content = vocabulary.read_bytes()
    marks = checkpoint_marks(checkpoint)
    return content if marks is None else add_marks(content.decode(), marks).encode()


def _copy_name(gguf: Path, own: str, content: bytes) -> Path:
    """Where the tokenizer goes next to a GGUF: under its own name, unless another one has that already."""
    for name in (own, f"{gguf.stem}-tokenizer.json"):
        copy = gguf.with_name(name)
        if not copy.exists() or copy.read_bytes() == content:
            return copy
    raise CheckpointError(
        f"{display_safe(str(copy))} is the tokenizer of another model; name another folder for the export"
    )


def mhc_records(config: ModelConfig, weights: Weights) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    """Return the mHC records of a model in the order of the file, float32 [records, 9 or 40]."""
    return np.stack([weights[name] for name in record_names(config.mhc_records)])


def _metadata(config: ModelConfig, vocabulary: Path, name: str, ternary: str, checkpoint: Path) -> dict[str, GGUFValue]:
    tokenizer = tokenizer_metadata(config, vocabulary, checkpoint)
    shape = nanochat.to_metadata(config)
    architecture = {"general.architecture": shape.pop("general.architecture")}
    general = {
        "general.name": string(name),
        "general.file_type": u32(FILE_TYPES[ternary]),
        "general.quantization_version": u32(2),
    }
    return architecture | general | shape | tokenizer


def tokenizer_metadata(config: ModelConfig, vocabulary: Path, checkpoint: Path) -> dict[str, GGUFValue]:
    """Return the keys of the tokenizer, and of the chat template, a model was trained with.

    Raises CheckpointError if the tokenizer is another's.
    """
    tokenizer = load_tokenizer(vocabulary)
    size = tokenizer.get_vocab_size(with_added_tokens=True)
    shown = display_safe(str(vocabulary))
    if size != config.vocab_size:
        raise CheckpointError(
            f"the model has {config.vocab_size} tokens but {shown} has {size}; "
            "give the tokenizer the model was trained with"
        )
    identity = checkpoint_identity(checkpoint)
    if identity is not None and identity.sha256 is not None:
        problem = difference(identity, TokenizerIdentity(size, file_sha256(vocabulary)), vocabulary)
        if problem is not None:
            raise CheckpointError(problem)
    end = identity.end_of_text if identity is not None else None
    if end is None:
        end = end_of_text(tokenizer)
    if end is None:
        raise CheckpointError(f"{shown} has no end-of-text token such as {END_OF_TEXT}, which separates documents")
    marks = checkpoint_marks(checkpoint)
    if marks is not None:
        tokenizer = Tokenizer.from_str(marked_tokenizer(vocabulary, checkpoint).decode())
    template = checkpoint_template(checkpoint)
    return to_gguf_metadata(tokenizer, bos=end, eos=end, add_bos=True, infill=marks, chat_template=template)


def _tensor(part: Part, weights: Weights, config: ModelConfig, table: str, ternary: str) -> TensorData:
    values = weights[part.name]
    if part.role == "ternary":
        kind = TENSOR_TYPES[ternary]
        trits, scales = ternarise(values, config.group_size, least_squares=config.least_squares)
        return TensorData(part.name, part.shape, kind, encode_ternary_matrix(kind, trits, scales))
    return tensor_from_array(part.name, values, TENSOR_TYPES[table if part.role == "table" else "F32"])
