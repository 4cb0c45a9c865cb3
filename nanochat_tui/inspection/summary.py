"""What a GGUF file is, said without running it, and whether it can be run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from nanochat_tui.errors import UserError
from nanochat_tui.formats.gguf import GGUFFile, GGUFValue, TensorInfo, metadata_int, read_gguf
from nanochat_tui.inspection.mhc_report import MhcInspection, inspect_mhc
from nanochat_tui.inspection.original import is_original, read_original
from nanochat_tui.inspection.rotation import Rotation, rotation
from nanochat_tui.inspection.traps import Trap, find_traps
from nanochat_tui.model.architectures import describe
from nanochat_tui.model.architectures.description import Architecture
from nanochat_tui.model.chat.families import chat_format
from nanochat_tui.model.shards import open_model
from nanochat_tui.model.support import require_runnable, require_sound
from nanochat_tui.model.tokenizer import load_tokenizer
from nanochat_tui.system import memory_size

LONGEST_TEXT = 2000
"""Characters of a metadata text that are reported; chat templates can be longer."""
ARRAY_SAMPLE = 5
"""Entries of a metadata array that are reported."""


@dataclass(frozen=True, slots=True)
class TypeUse:
    """How much of a file is of one tensor type."""

    tensors: int
    parameters: int
    bytes: int


@dataclass(frozen=True, slots=True)
class TokenizerSummary:
    """The tokenizer inside a file, as its metadata describes it."""

    kind: str
    pre: str | None
    tokens: int
    merges: int
    bos: int | None
    eos: int | None
    add_bos: bool | None
    chat_template: bool
    chat_family: str | None = None
    """The family whose template a chat takes in place of the file's own; None if it takes that, or none at all."""
    continues_only: bool = False
    """Whether there is no template to use, so that text is completed as it is."""

    def template_line(self) -> str:
        """Return which template a chat uses, for people."""
        wrong = "a chat template of no use" if self.chat_template else "no chat template"
        if self.chat_family is not None:
            return f"{wrong} (that of its family, {self.chat_family}, is used)"
        return f"{wrong} (it continues text)" if self.continues_only else "with a chat template"

    def to_json(self) -> dict[str, Any]:
        """Return the description as JSON values."""
        return {
            "kind": self.kind,
            "pre": self.pre,
            "tokens": self.tokens,
            "merges": self.merges,
            "bos": self.bos,
            "eos": self.eos,
            "add_bos": self.add_bos,
            "chat_template": self.chat_template,
            "chat_family": self.chat_family,
        }


@dataclass(frozen=True, slots=True)
class Summary:
    """What a file is. Texts from the file are as they are there; escape them before showing them on a terminal."""

    path: Path | None
    bytes: int
    version: int
    name: str | None
    architecture: str | None
    parameters: int
    bits_per_weight: float
    """Bits of tensor data per parameter."""
    types: dict[str, TypeUse]
    tensors: tuple[TensorInfo, ...]
    metadata: dict[str, Any]
    """The file's keys; long texts are cut, and arrays given by type, length and first entries."""
    tokenizer: TokenizerSummary | None
    context_length: int | None
    mhc: MhcInspection | None
    reason: str | None
    """Why the file cannot be run, in one sentence; None if it can."""
    shape: Architecture | None = None
    """What the model is made of, whether or not it can be run; None if its architecture is not known."""
    rotation: Rotation | None = None
    traps: tuple[Trap, ...] = ()
    """What is known to go wrong with such a file, here or elsewhere."""
    is_gguf: bool = True
    """False for a file of the original nanochat-rs-ternary, whose tensors cannot be read before it is converted."""

    @property
    def data_bytes(self) -> int:
        """Bytes of all tensors, without metadata and padding."""
        return sum(use.bytes for use in self.types.values())

    @property
    def f16_bytes(self) -> int:
        """Bytes that the same parameters would take as F16."""
        return 2 * self.parameters

    @property
    def runs(self) -> bool:
        """Whether this version can run the file."""
        return self.reason is None

    @property
    def problem(self) -> str | None:
        """Why a command that looks at the file ends with exit code 2: it cannot be run, or its sidecar is wrong."""
        return self.reason if self.reason is not None or self.mhc is None else self.mhc.error

    def to_json(self) -> dict[str, Any]:
        """Return the object that `inspect --json` prints."""
        return {
            "path": None if self.path is None else str(self.path),
            "bytes": self.bytes,
            "gguf_version": self.version,
            "name": self.name,
            "architecture": self.architecture,
            "parameters": self.parameters,
            "bits_per_weight": self.bits_per_weight,
            "types": {
                name: {
                    "tensors": use.tensors,
                    "bytes": use.bytes,
                    "parameters": use.parameters,
                    "share": use.bytes / max(1, self.data_bytes),
                }
                for name, use in self.types.items()
            },
            "f16_bytes": self.f16_bytes,
            "context_length": self.context_length,
            "tokenizer": None if self.tokenizer is None else self.tokenizer.to_json(),
            "shape": None if self.shape is None else shape_json(self.shape),
            "notes": [] if self.shape is None else list(self.shape.notes),
            "rotation": None if self.rotation is None else self.rotation.to_json(),
            "traps": [trap.to_json() for trap in self.traps],
            "mhc": None if self.mhc is None else self.mhc.to_json(),
            "runs": self.runs,
            "reason": self.reason,
            "metadata": self.metadata,
        }


def shape_json(shape: Architecture) -> dict[str, Any]:
    """Return what a model is made of as JSON values."""
    heads = shape.attentions
    ffn = shape.layers[0].ffn if shape.layers else None
    return {
        "layers": shape.n_layers,
        "recurrent_layers": len(shape.recurrences),
        "width": shape.dim,
        "heads": heads[0].heads if heads else 0,
        "kv_heads": heads[0].kv_heads if heads else 0,
        "head_dim": heads[0].head_dim if heads else 0,
        "feed_forward": ffn.hidden if ffn is not None else 0,
        "activation": ffn.activation if ffn is not None else None,
        "experts": ffn.experts if ffn is not None else 0,
        "experts_used": ffn.used if ffn is not None else 0,
        "vocabulary": shape.vocab_size,
        "tied": shape.tied,
    }


def inspect_file(path: Path | str, mhc: Path | None = None, tokenizer: Path | None = None) -> Summary:
    """Say what a GGUF file is. Optional: a `.mhc` sidecar and a `tokenizer.json` that would be used with it.

    Raises FormatError if the file cannot be read or is not sound GGUF. Everything else that is wrong, or not
    supported, is part of what is found.
    """
    if is_original(Path(path)):
        return _summarise_original(Path(path))
    try:
        file = open_model(path)
    except UserError as error:
        with read_gguf(path) as alone:
            return replace(summarise(alone, mhc, tokenizer), reason=str(error))
    with file:
        return summarise(file, mhc, tokenizer)


def open_whole(path: Path) -> GGUFFile:
    """Open a file, and with it the others of a model that is split; this one alone if they cannot be joined.

    Raises FormatError if it cannot be read or is not sound GGUF.
    """
    try:
        return open_model(path)
    except UserError:
        return read_gguf(path)


def summarise(file: GGUFFile, mhc: Path | None = None, tokenizer: Path | None = None) -> Summary:
    """Say what an open GGUF file is; see `inspect_file`."""
    infos = tuple(file.tensors.values())
    found = inspect_mhc(file, mhc)
    reason = _runs(file, tokenizer)
    shape = _shape(file)
    if reason is None and found is not None:
        reason = found.error
    turned = rotation(file)
    architecture = _text(file.metadata, "general.architecture")
    return Summary(
        path=file.path,
        bytes=file.size,
        version=file.version,
        name=_text(file.metadata, "general.name"),
        architecture=architecture,
        **_sizes(infos),
        metadata={key: plain_value(value) for key, value in file.metadata.items()},
        tokenizer=_tokenizer(file.metadata),
        context_length=_number(file.metadata, f"{architecture}.context_length"),
        shape=shape,
        mhc=found,
        reason=reason,
        rotation=turned,
        traps=find_traps(file, turned),
    )


def _summarise_original(path: Path) -> Summary:
    """Say what a file of the original nanochat-rs-ternary is; its mHC records are in a file next to it."""
    found = read_original(path)
    traps = [Trap("gugf", "it begins with GUGF, as the original nanochat-rs-ternary writes it: not valid GGUF")]
    if found.scales_are_counts:
        traps.append(
            Trap(
                "lost_scales",
                "every scale is the share of weights in its group that are not zero, as the original's export wrote by "
                "mistake until 16 February 2026; the trained scales are lost, and the model will not write sense",
            )
        )
    return Summary(
        path=path,
        bytes=found.bytes,
        version=found.version,
        name=_text(found.metadata, "general.name"),
        architecture=_text(found.metadata, "general.architecture"),
        **_sizes(found.tensors),
        metadata={key: plain_value(value) for key, value in found.metadata.items()},
        tokenizer=_tokenizer(found.metadata),
        context_length=_number(found.metadata, "nanochat.max_seq_len"),
        mhc=None,
        reason="files of the original nanochat-rs-ternary (GUGF) are not run as they are; convert it with "
        "nanochat-tui convert",
        traps=tuple(traps),
        is_gguf=False,
    )


class _Sizes(TypedDict):
    parameters: int
    bits_per_weight: float
    types: dict[str, TypeUse]
    tensors: tuple[TensorInfo, ...]


def _sizes(infos: tuple[TensorInfo, ...]) -> _Sizes:
    uses: dict[str, list[TensorInfo]] = {}
    for info in infos:
        uses.setdefault(info.type.name, []).append(info)
    parameters = sum(info.elements for info in infos)
    return {
        "parameters": parameters,
        "bits_per_weight": 8 * sum(info.nbytes for info in infos) / parameters if parameters else 0.0,
        "types": {
            name: TypeUse(len(group), sum(i.elements for i in group), sum(i.nbytes for i in group))
            for name, group in sorted(uses.items(), key=lambda item: -sum(i.nbytes for i in item[1]))
        },
        "tensors": infos,
    }


def _runs(file: GGUFFile, tokenizer: Path | None) -> str | None:
    """Return why a file cannot be run, or None if it can."""
    try:
        found, _ = require_runnable(file, None if tokenizer is None else load_tokenizer(tokenizer))
        if file.size <= memory_size()[0]:  # a larger one is refused for its size, before it is read
            require_sound(file, found)
    except UserError as error:
        return str(error)
    return None


def _shape(file: GGUFFile) -> Architecture | None:
    """Return what the model is made of, also of one that cannot be run; None where that is not known."""
    try:
        return describe(file)
    except UserError:
        return None


def _value(metadata: Mapping[str, GGUFValue], key: str) -> Any:
    found = metadata.get(key)
    return None if found is None else found.value


def _text(metadata: Mapping[str, GGUFValue], key: str) -> str | None:
    value = _value(metadata, key)
    return value if isinstance(value, str) else None


def _number(metadata: Mapping[str, GGUFValue], key: str) -> int | None:
    try:
        found = metadata_int(metadata, key, -1, maximum=2**63)
    except UserError:
        return None
    return found if found >= 0 else None


def _length(metadata: Mapping[str, GGUFValue], key: str) -> int:
    value = _value(metadata, key)
    return len(value) if isinstance(value, list | np.ndarray) else 0


def _tokenizer(metadata: Mapping[str, GGUFValue]) -> TokenizerSummary | None:
    kind = _text(metadata, "tokenizer.ggml.model")
    if kind is None:
        return None
    add_bos = _value(metadata, "tokenizer.ggml.add_bos_token")
    try:
        talk = chat_format(metadata)
        family, continues = talk.family if talk is not None else None, talk is None
    except UserError:  # a damaged vocabulary, which other lines report
        family, continues = None, False
    return TokenizerSummary(
        kind=kind,
        pre=_text(metadata, "tokenizer.ggml.pre"),
        tokens=_length(metadata, "tokenizer.ggml.tokens"),
        merges=_length(metadata, "tokenizer.ggml.merges"),
        bos=_number(metadata, "tokenizer.ggml.bos_token_id"),
        eos=_number(metadata, "tokenizer.ggml.eos_token_id"),
        add_bos=add_bos if isinstance(add_bos, bool) else None,
        chat_template=bool(_text(metadata, "tokenizer.chat_template")),
        chat_family=family,
        continues_only=continues,
    )


def plain_value(value: GGUFValue) -> Any:
    """Return a metadata value as JSON can hold it; long texts are cut, arrays given by their first entries."""
    content = value.value
    if isinstance(content, list | np.ndarray):
        first = [_scalar(item) for item in content[:ARRAY_SAMPLE]]
        return {"type": value.type_name, "length": len(content), "first": first}
    return _scalar(content)


def _scalar(value: Any) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, str) and len(value) > LONGEST_TEXT:
        return value[:LONGEST_TEXT] + "…"
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # JSON has no NaN
    return value
