"""Which GGUF files the engine runs, kept in one place: engine, inspection and server give the same answer."""

from __future__ import annotations

from nanochat_tui.errors import UserError, display_safe
from nanochat_tui.formats.gguf import GGUFFile, metadata_int, metadata_string
from nanochat_tui.model.architectures import nanochat
from nanochat_tui.model.config import ModelConfig

SUPPORTED_ARCHITECTURES = (nanochat.NAME,)
"""Values of `general.architecture` that can be run."""

TYPES_BY_ROLE: dict[nanochat.Role, frozenset[str]] = {
    "table": frozenset({"Q8_0", "F16"}),
    "norm": frozenset({"F32"}),
    "mhc": frozenset({"F32"}),
    "ternary": frozenset({"Q2_0", "Q2_0_g128", "PQ2_0", "TQ1_0", "TQ2_0"}),
}
"""Tensor types that the engine can compute with."""


class UnsupportedModelError(UserError):
    """A sound file that this version cannot run; the text says why."""


def architecture(file: GGUFFile) -> str:
    """Return `general.architecture`, or '' if the file names none."""
    return metadata_string(file.metadata, "general.architecture", "")


def require_supported(file: GGUFFile) -> ModelConfig:
    """Return the model's shape, after checking that the engine can run the file.

    Raises UnsupportedModelError (architecture, split file, tensor type) or UserError (a key or tensor is missing or has
    the wrong shape), in one sentence.
    """
    name = architecture(file)
    if not name:
        raise UnsupportedModelError("the file names no architecture, so it is not known how to run it")
    if name not in SUPPORTED_ARCHITECTURES:
        known = ", ".join(SUPPORTED_ARCHITECTURES)
        raise UnsupportedModelError(
            f"models of the architecture {display_safe(name)} cannot be run by this version, only {known}"
        )
    shards = metadata_int(file.metadata, "split.count", 1)
    if shards > 1:
        raise UnsupportedModelError(
            f"the model is split over {shards} files; join them first with llama-gguf-split --merge"
        )
    config = nanochat.from_metadata(file.metadata, file.tensors.keys())
    for part in nanochat.parts(config).values():
        info = file.tensor(part.name)
        if info.shape != part.shape:
            raise UserError(
                f"the tensor {part.name} has the shape {list(info.shape)} and should have {list(part.shape)}; "
                "the file is damaged"
            )
        if info.type.name not in TYPES_BY_ROLE[part.role]:
            known = ", ".join(sorted(TYPES_BY_ROLE[part.role]))
            raise UnsupportedModelError(
                f"the tensor {part.name} is of type {info.type.name}, and this version runs it only as {known}"
            )
    return config


def refusal(file: GGUFFile) -> str | None:
    """Return why the engine cannot run a file, in one sentence, or None if it can."""
    try:
        require_supported(file)
    except UserError as error:
        return str(error)
    return None
