"""Known traps of published ternary files: what loads elsewhere and prints garbage, or is refused for a hidden reason.

Every trap says what the file is and what follows from it, whether or not this program runs the file. The evidence is in
the file's keys and tensor table; nothing is decoded here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from nanochat_tui.errors import UserError
from nanochat_tui.formats.gguf import GGUFFile, metadata_int
from nanochat_tui.formats.tensor_types import claimed_type
from nanochat_tui.inspection.rotation import Rotation
from nanochat_tui.model.architectures.bitnet import is_2b4t
from nanochat_tui.model.architectures.keys import Keys
from nanochat_tui.model.chat.families import PLACEHOLDER, chat_format, completes_only
from nanochat_tui.model.tokenizer.patterns import repaired_names, word_rules
from nanochat_tui.text import display_safe

_BITNET = ("bitnet", "bitnet-25", "bitnet-b1.58")


@dataclass(frozen=True, slots=True)
class Trap:
    """One trap: a short name for scripts, and a sentence or two for people (safe to show)."""

    kind: str
    text: str

    def to_json(self) -> dict[str, Any]:
        """Return the trap as JSON values."""
        return {"kind": self.kind, "text": self.text}


def find_traps(file: GGUFFile, turned: Rotation | None) -> tuple[Trap, ...]:
    """Return the traps of an open file; `turned` is its rotation, as `rotation` found it."""
    return tuple(
        trap for finder in (_types, _files, _tokenizer, _architecture, _vocabulary) for trap in finder(file)
    ) + tuple(_rotation(file, turned))


def _value(file: GGUFFile, key: str) -> Any:
    found = file.metadata.get(key)
    return None if found is None else found.value


def _whole(file: GGUFFile, key: str, default: int = 0) -> int:
    try:
        return metadata_int(file.metadata, key, default)
    except UserError:
        return default


def _types(file: GGUFFile) -> Iterator[Trap]:
    kinds = Counter((info.type.name, info.type.id) for info in file.tensors.values())
    names = {name for name, _ in kinds}
    if "Q2_0_g128" in names:
        yield Trap(
            "q2_0_group_128",
            f"{kinds['Q2_0_g128', 42]} tensors are Q2_0 in groups of 128 under the id 42, which llama.cpp gives to "
            "groups of 64: it refuses the file with an offset error; here the two are told apart by their bytes "
            "(nanochat-tui convert writes a file that llama.cpp loads)",
        )
    for (name, number), count in kinds.items():
        if name == "STQ1_0" and number != 43:
            yield Trap(
                "stq1_0_id",
                f"{count} tensors are STQ1_0 (Sherry, 1.3125 bits) under the id {number}"
                + (", which llama.cpp reads as Q2_0" if number == 42 else "")
                + "; here they are told by their bytes",
            )
    if "Q1_0_g32" in names:
        yield Trap("q1_0_group_32", "its Q1_0 tensors have groups of 32 under the id 40, which is NVFP4 elsewhere")
    if names & {"Q1_0", "Q1_0_g32"}:
        yield Trap("binary", "its Q1_0 weights are binary, not ternary: only −1 and +1, never 0")
    if any(info.type.order_varies for info in file.tensors.values()):
        yield Trap(
            "i2_s_layout",
            "I2_S is read in the layout of x86 builds, that of all published files; one that was quantised on ARM has "
            "another under the same id, which nothing in a file tells: if it prints garbage, give --i2s-layout arm",
        )
    for (name, number), _ in kinds.items():
        kind = next(info.type for info in file.tensors.values() if (info.type.name, info.type.id) == (name, number))
        if not kind.is_decodable:
            yield Trap("undecodable", f"its tensors of {kind.refusal}")


def _files(file: GGUFFile) -> Iterator[Trap]:
    shards = _whole(file, "split.count", 1)
    if shards > 1:
        number = _whole(file, "split.no") + 1
        yield Trap("split", f"this is file {number} of {shards} of one model, and holds only its own share of tensors")
    claimed = claimed_type(_whole(file, "general.file_type", -1))
    weights: Counter[str] = Counter()
    for info in file.tensors.values():
        weights[info.type.name] += info.elements
    if claimed and weights and claimed not in weights:
        most = weights.most_common(1)[0][0]
        yield Trap("file_type", f"general.file_type says {claimed}, but no tensor is; most weights are {most}")


def _tokenizer(file: GGUFFile) -> Iterator[Trap]:
    kind, pre = _value(file, "tokenizer.ggml.model"), _value(file, "tokenizer.ggml.pre")
    tokens = _value(file, "tokenizer.ggml.tokens")
    if kind is None:
        yield Trap("no_tokenizer", "the file has no tokenizer inside; give one with --tokenizer FILE")
        return
    if kind == "gpt2":
        yield from _word_rules(pre if isinstance(pre, str) else "", tokens)
    if pre in ("falcon3", "falcon_e"):
        yield Trap(
            "falcon_pre",
            f"programs disagree on how {pre} splits digits and punctuation; the model's tokenizer.json would decide",
        )
    if str(_value(file, "general.architecture")) != "nanochat":
        yield from _template(file)


def _template(file: GGUFFile) -> Iterator[Trap]:
    given = _value(file, "tokenizer.chat_template")
    kind = "no_template" if not given else "placeholder_template" if PLACEHOLDER in str(given) else "broken_template"
    try:
        found = chat_format(file.metadata)
    except UserError:  # a damaged vocabulary, which is reported elsewhere
        return
    if found is None:
        reason = completes_only(file.metadata)
        yield Trap(
            kind, reason or "the file has no chat template and its family is not known, so text is completed as it is"
        )
    elif found.note is not None:
        yield Trap(kind, found.note)


def _word_rules(pre: str, tokens: object) -> Iterator[Trap]:
    kind = "wrong_pre" if pre and pre != "default" else "missing_pre"
    try:
        names, doubled = repaired_names(tokens if isinstance(tokens, list) else [])
        _, note = word_rules(pre, names)
    except UserError as error:
        yield Trap("unknown_pre", str(error))
        return
    if doubled is not None:
        yield Trap("doubled_bos", doubled)
    if note is not None:
        yield Trap(kind, note)
    elif kind == "missing_pre":
        yield Trap(kind, "the file does not say how its tokenizer splits text (tokenizer.ggml.pre)")


def _is_2b4t(file: GGUFFile) -> bool:
    try:
        keys = Keys.of(file)
        return is_2b4t(keys, keys.count("feed_forward_length"))
    except UserError:
        return False


def _architecture(file: GGUFFile) -> Iterator[Trap]:
    name = _value(file, "general.architecture")
    if not isinstance(name, str):
        return
    if name in _BITNET:
        claimed = _value(file, f"{name}.hidden_activation")
        if name == "bitnet" and _is_2b4t(file):
            yield Trap(
                "bitnet_activation",
                "this is BitNet b1.58 2B4T, which needs ReLU² in its feed-forward, but its architecture is called "
                "bitnet, which stands for SiLU; run so it prints garbage, and here ReLU² is used",
            )
        elif name != "bitnet" and isinstance(claimed, str) and "relu" not in claimed.lower():
            yield Trap(
                "bitnet_activation",
                f"{name}.hidden_activation says {display_safe(claimed, 40)}, but these models need ReLU²; that is used",
            )
    if any(part.endswith(("_norm_in", "_norm_in.weight")) for part in file.tensors):
        yield Trap(
            "norm_in",
            "it has a norm before every projection (*_norm_in), as BitNet's embedding models do; loaded as plain "
            f"{display_safe(name, 40)} it gives garbage",
        )
    nextn = sum(".nextn." in part for part in file.tensors)
    if nextn:
        yield Trap("mtp", f"{nextn} tensors belong to a drafting head (nextn), which plain generation does not use")


def _vocabulary(file: GGUFFile) -> Iterator[Trap]:
    tokens, table = _value(file, "tokenizer.ggml.tokens"), file.tensors.get("token_embd.weight")
    if isinstance(tokens, list) and table is not None and len(table.shape) == 2 and table.shape[0] != len(tokens):
        rows = table.shape[0]
        what = "their logits must never be chosen" if rows > len(tokens) else "the two do not belong together"
        yield Trap("vocabulary", f"the embedding has {rows:,} rows and the tokenizer {len(tokens):,} tokens; {what}")


def _rotation(file: GGUFFile, turned: Rotation | None) -> Iterator[Trap]:
    if any(key.startswith("onebit.hadamard") for key in file.metadata):
        yield Trap("other_rotation", "it is rotated in another vendor's way (onebit.hadamard), which is not known here")
    if turned is None:
        return
    text = f"its weights are Hadamard-rotated ({turned.sentence()})"
    loads = {info.type.name for info in file.tensors.values()} & {"Q2_0", "F16", "BF16"}
    if loads and not any(info.type.name in ("PQ2_0", "PTQ1_0") for info in file.tensors.values()):
        text += "; programs that do not know the keys load it all the same, and print garbage"
    yield Trap("rotated", text)
