"""Where a training can start: the weights of a checkpoint or of a GGUF file, and how its text is encoded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nanochat_tui.errors import UserError
from nanochat_tui.export.checkpoint import Weights, load_checkpoint, read_config
from nanochat_tui.export.gguf_export import tokenizer_metadata, without_nextn
from nanochat_tui.export.tokenizer_choice import tokenizer_for
from nanochat_tui.formats.gguf import GGUFFile, GGUFValue, read_gguf
from nanochat_tui.formats.tensor_types import ternary_matrix
from nanochat_tui.model.architectures import nanochat
from nanochat_tui.model.chat.families import chat_format
from nanochat_tui.model.config import ModelConfig
from nanochat_tui.model.support import require_described
from nanochat_tui.model.ternary import latent
from nanochat_tui.model.tokenizer import TextCodec, codec_from_gguf, from_gguf_metadata
from nanochat_tui.text import display_safe


@dataclass(frozen=True, slots=True)
class TextStart:
    """How a model's text is encoded: what its tokens are, and what it is talked to with."""

    codec: TextCodec
    template: str | None
    """Its own chat template; None for a model that continues text."""
    tokenizer: bytes
    """The tokenizer.json of its vocabulary."""


def starting_weights(path: Path) -> tuple[ModelConfig, Weights]:
    """Return shape and weights of a checkpoint folder or a GGUF file of the architecture nanochat.

    Weights by name, float32, as `load_checkpoint` gives them. Those of a file are made such that an export without a
    training step has the same trits and scales (see `model.ternary.latent`); tables are as the file rounds them.
    Raises UserError when the file is of another kind or damaged.
    """
    if path.is_dir():
        return without_nextn(*load_checkpoint(path))
    with _open(path) as file:
        config = nanochat.from_metadata(file.metadata, file.tensors).with_(nextn=0)
        weights: Weights = {}
        for part in nanochat.parts(config).values():
            weights[part.name] = _ternary(file, part.name, config) if part.role == "ternary" else file.array(part.name)
            file.release(part.name)
        for name, values in weights.items():
            if not np.isfinite(values.sum(dtype=np.float64)):
                raise UserError(f"the tensor {name} in {_shown(path)} holds NaN or infinity; fetch the file again")
    return config, weights


def starting_shape(path: Path) -> ModelConfig:
    """Return the shape of a checkpoint or GGUF file. Raises UserError as `starting_weights` does."""
    if path.is_dir():
        return read_config(path).with_(nextn=0)
    with _open(path) as file:
        return nanochat.from_metadata(file.metadata, file.tensors).with_(nextn=0)


def starting_metadata(path: Path) -> dict[str, GGUFValue]:
    """Return the keys of a GGUF file of this model: its own, or those of a checkpoint's export. Raises UserError."""
    if path.is_dir():
        config = read_config(path).with_(nextn=0)
        vocabulary, _ = tokenizer_for(path)
        return nanochat.to_metadata(config) | tokenizer_metadata(config, vocabulary, path)
    with _open(path) as file:
        config = nanochat.from_metadata(file.metadata, file.tensors).with_(nextn=0)
        kept = {key: value for key, value in file.metadata.items() if key != f"{nanochat.NAME}.nextn_predict_layers"}
        return kept | nanochat.to_metadata(config)


def starting_text(path: Path) -> TextStart:
    """Return how a checkpoint's or a file's text is encoded. Raises UserError."""
    if path.is_dir():
        config = read_config(path)
        vocabulary, _ = tokenizer_for(path)
        metadata = nanochat.to_metadata(config) | tokenizer_metadata(config, vocabulary, path)
        return _text(metadata, vocabulary.read_bytes())
    with _open(path) as file:
        return _text(file.metadata, from_gguf_metadata(file.metadata).to_str().encode())


def _text(metadata: dict[str, GGUFValue], tokenizer: bytes) -> TextStart:
    found = chat_format(metadata)
    return TextStart(codec_from_gguf(metadata), None if found is None else found.template, tokenizer)


def _open(path: Path) -> GGUFFile:
    if not path.is_file():
        raise UserError(f"there is no checkpoint or GGUF file {_shown(path)}; check the path")
    file = read_gguf(path)
    try:
        if not nanochat.is_nanochat(file.metadata):
            raise UserError(
                f"{_shown(path)} is not of the architecture nanochat, the only one that is trained here; start from "
                "a model that nanochat-train made"
            )
        require_described(file)
    except BaseException:
        file.close()
        raise
    return file


def _ternary(file: GGUFFile, name: str, config: ModelConfig) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    info = file.tensor(name)
    trits, stored = ternary_matrix(info.type, file.blocks(name), info.shape)
    block, group = info.type.block_elements, config.group_size
    if (trits > 1).any():
        raise UserError(f"the tensor {name} in {_shown(file.path)} holds a code that is no trit; fetch the file again")
    if block <= group:
        groups = stored.reshape(stored.shape[0], -1, group // block)
        scales = np.ascontiguousarray(groups[..., 0])
        if (groups != groups[..., :1]).any():
            raise UserError(
                f"scales of {name} in {_shown(file.path)} differ within a group of {group} weights, which this trainer "
                "cannot hold; start from a file that nanochat-train made"
            )
    else:
        scales = np.repeat(stored, block // group, axis=-1)
    return latent(trits, scales, least_squares=config.least_squares)


def _shown(path: Path | None) -> str:
    return display_safe(str(path))
