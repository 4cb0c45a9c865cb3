"""Which GGUF files the engine runs, kept in one place: engine, inspection and server give the same answer."""

from __future__ import annotations

import math
from collections.abc import Set
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from nanochat_tui.errors import UserError
from nanochat_tui.formats.adapters import is_adapter
from nanochat_tui.formats.gguf import GGUFFile, metadata_int, metadata_string
from nanochat_tui.formats.tensor_types import TENSOR_TYPES, TensorType
from nanochat_tui.model import architectures
from nanochat_tui.model.architectures.description import Architecture, Attention, Part, Role
from nanochat_tui.model.tokenizer import TextCodec, codec_from_gguf
from nanochat_tui.text import display_safe

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SUPPORTED_ARCHITECTURES = tuple(architectures.BY_NAME)
"""Values of `general.architecture` that can be run."""

MAX_CONTEXT = 1 << 20
"""Longest context that is believed; a damaged number would reserve memory for it."""

_FLOATS = frozenset({"F32", "F16", "BF16"})
_OTHERS = frozenset({"Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K"})
_TERNARY = frozenset(kind.name for kind in TENSOR_TYPES.values() if kind.has_trits) - {"Q1_0_g32"}
TYPES_BY_ROLE: dict[Role, frozenset[str]] = {
    "table": _FLOATS | _OTHERS | _TERNARY,
    "norm": _FLOATS,
    "mhc": frozenset({"F32"}),
    "vector": _FLOATS,
    "ternary": _FLOATS | _OTHERS | _TERNARY,
}
"""Tensor types that the engine can compute with, by what the tensor is for."""
NANOCHAT_TYPES = TYPES_BY_ROLE | {
    "ternary": frozenset({"Q2_0", "Q2_0_g128", "PQ2_0", "TQ1_0", "TQ2_0"}),
    "table": _FLOATS | _OTHERS,
    "norm": frozenset({"F32"}),
}
"""The same for the project's own files, which no other program writes."""

IGNORED = ("mm.", "v.", "a.")
"""Beginnings of names of tensors that a text model does without."""
WIDTH_STEP = 32
"""The kernels work on whole vectors: widths are multiples of this."""
MAX_HEAD_DIM = 1024
LEAST_ROTATION = 16
"""The Walsh-Hadamard kernel works on whole vectors."""


class UnsupportedModelError(UserError):
    """A sound file that this version cannot run; the text says why."""


def architecture(file: GGUFFile) -> str:
    """Return `general.architecture`, or '' if the file names none."""
    return metadata_string(file.metadata, "general.architecture", "")


def require_described(file: GGUFFile) -> Architecture:
    """Return the model that a file holds, after checking that the engine can run it.

    Raises UnsupportedModelError (architecture, tensor type, width) or UserError (a key or tensor is missing or has the
    wrong shape), in one sentence.
    """
    _require_whole(file)
    if is_adapter(file.metadata):
        raise UnsupportedModelError("the file is an adapter and no model; open its model, and give this with --lora")
    try:
        found = architectures.describe(file)
    except architectures.UnknownArchitectureError as error:
        raise UnsupportedModelError(str(error)) from None
    if found.context_length > MAX_CONTEXT:
        raise UnsupportedModelError(
            f"the file claims a context of {found.context_length} tokens, and this version runs at most "
            f"{MAX_CONTEXT}; export it again with a smaller one"
        )
    _require_widths(found)
    expected = {part.name: part for part in found.parts()}
    types = NANOCHAT_TYPES if found.own_format else TYPES_BY_ROLE
    for part in expected.values():
        _require_part(file, part, types)
    _require_nothing_else(file, found, expected.keys())
    return found


def require_vocabulary(tokens: int, vocabulary: int) -> None:
    """Raise UserError if a tokenizer has more tokens than the model has rows."""
    if tokens > vocabulary:
        raise UserError(
            f"the tokenizer has {tokens} tokens and the model only {vocabulary}; they do not belong together"
        )


def require_runnable(file: GGUFFile, tokenizer: Tokenizer | None = None) -> tuple[Architecture, TextCodec]:
    """Return a file's model and tokenizer, after every check that needs no weights; engine and inspection call this.

    tokenizer: one to use instead of the file's own. Raises UserError with the reason, in one sentence.
    """
    found = require_described(file)
    codec = codec_from_gguf(file.metadata, tokenizer)
    require_vocabulary(codec.tokenizer.get_vocab_size(with_added_tokens=True), found.vocab_size)
    return found, codec


def require_sound(file: GGUFFile, found: Architecture) -> None:
    """Raise UserError if a number that the model computes with is NaN or infinite.

    Reads every page of the file that holds a scale. The engine makes the same checks while it packs the weights; this
    is for those that only ask. mHC records are left out: `mhc_verify` has more to say about them.
    """
    for part in found.parts():
        if part.role != "mhc" and not file.is_finite(part.name):
            raise not_finite(part.name)
    if found.rope.has_factors:
        rope_factors(file)


def not_finite(name: str) -> UserError:
    """Return the refusal of a tensor that holds NaN or infinity."""
    return UserError(
        f"the tensor {display_safe(name)} holds a number that is not finite; the file is damaged, fetch it or export "
        "it again"
    )


def rope_factors(file: GGUFFile) -> NDArray[np.float64]:
    """Return what rotation frequencies are divided by, float64 [dims / 2]. Raises UserError unless all are above 0."""
    factors = file.array("rope_freqs.weight").astype(np.float64)
    if not np.isfinite(factors).all():
        raise not_finite("rope_freqs.weight")
    if (factors <= 0).any():
        raise UserError(
            "the rotation factors (rope_freqs.weight) are not all above 0; the file is damaged, fetch it again"
        )
    return factors


def refusal(file: GGUFFile) -> str | None:
    """Return why the engine cannot run a file, in one sentence, or None if it can."""
    try:
        require_described(file)
    except UserError as error:
        return str(error)
    return None


def _require_whole(file: GGUFFile) -> None:
    shards = metadata_int(file.metadata, "split.count", 1)
    if shards > 1:  # `shards.open_model` joins what lies together
        raise UnsupportedModelError(
            f"the model is split over {shards} files and this is one of them; put all of them into one folder, "
            "named as they were published"
        )


def _require_widths(found: Architecture) -> None:
    widths = {"embedding_length": found.dim}
    for layer in found.layers:
        widths["feed_forward_length"] = layer.ffn.hidden
        mixer = layer.mixer
        if isinstance(mixer, Attention):
            widths["all query heads"], widths["all key heads"] = mixer.q_dim, mixer.kv_dim
            if mixer.head_dim % 2 or mixer.head_dim > MAX_HEAD_DIM:
                raise UnsupportedModelError(
                    f"heads of {mixer.head_dim} components cannot be run; the width is even and at most {MAX_HEAD_DIM}"
                )
            if mixer.rotates and found.rope.dims > mixer.head_dim:
                raise UserError(
                    f"the file rotates {found.rope.dims} components of heads of {mixer.head_dim}; it is damaged"
                )
            if mixer.qk_norm:
                widths["one head"] = mixer.head_dim
        else:
            widths["one head"] = mixer.width
    for what, width in widths.items():
        step = 16 if what == "all key heads" else WIDTH_STEP
        if width % step and not found.own_format:
            raise UnsupportedModelError(
                f"the width of {what} is {width}, and this version runs multiples of {step} only"
            )
    if found.rotation is not None and found.rotation.block < LEAST_ROTATION:
        raise UnsupportedModelError(
            f"the weights are rotated in blocks of {found.rotation.block}; this version runs {LEAST_ROTATION} and more"
        )


def _require_part(file: GGUFFile, part: Part, types: dict[Role, frozenset[str]]) -> None:
    info = file.tensor(part.name)
    if info.shape != part.shape and not (part.role == "vector" and info.elements == math.prod(part.shape)):
        raise UserError(
            f"the tensor {part.name} has the shape {list(info.shape)} and should have {list(part.shape)}; "
            "the file is damaged"
        )
    if info.type.name not in types[part.role]:
        raise UnsupportedModelError(f"the tensor {part.name} is {_type_refusal(info.type, types[part.role])}")


def _type_refusal(kind: TensorType, types: frozenset[str]) -> str:
    if not kind.is_decodable:
        return f"of {kind.refusal}"
    known = ", ".join(sorted(types))
    return f"of type {kind.name}, and this version runs it only as {known}"


def _require_nothing_else(file: GGUFFile, found: Architecture, names: Set[str]) -> None:
    """Refuse a tensor that the description does not know: leaving it out would compute another model."""
    for name in file.tensors:
        if name in names or name in found.ignored or name.startswith(IGNORED) or ".nextn." in name:
            continue
        block = name.split(".")[1] if name.startswith("blk.") and name.count(".") > 1 else ""
        if block.isdigit() and int(block) >= found.n_layers and found.recurrences:
            continue  # blocks behind the last predict further tokens
        if "_norm_in" in name:
            raise UnsupportedModelError(
                f"the file normalises the input of every matrix ({display_safe(name)}), as BitNet's embedding models "
                "do, which this version cannot run; use Microsoft's bitnet.cpp for it"
            )
        raise UnsupportedModelError(
            f"the file holds the tensor {display_safe(name)}, which is not known for {found.name} and without which "
            "another model would be computed; take a file of the plain model, or use llama.cpp for this one"
        )
