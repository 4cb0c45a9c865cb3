"""Reading `prism.hadamard.*`: which weights of a file are rotated, and how (Bonsai 2).

A file of any tensor type can carry it, and loading one as if it did not prints garbage; so half of it, or a version
that is not known, is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import numpy as np
from numpy.typing import NDArray

from nanochat_tui.errors import UserError
from nanochat_tui.formats.gguf import GGUFValue, metadata_bool, metadata_int, metadata_integers, metadata_string
from nanochat_tui.model.architectures.description import Rotation
from nanochat_tui.text import display_safe

PREFIX = "prism.hadamard."
FOREIGN = "onebit.hadamard"
REQUIRED = ("version", "block_size", "transform", "axis", "sign_mode", "weight_names")
TRANSFORM, AXIS = "normalized-sylvester-walsh-hadamard", "input-last-dimension"
ROTATABLE = frozenset(
    {"attn_q", "attn_k", "attn_v", "attn_output", "attn_qkv", "attn_gate", "ssm_out", "ffn_gate", "ffn_up", "ffn_down"}
)
"""Matrices of a block whose input may be rotated."""
TOGETHER = (("attn_q", "attn_k", "attn_v"), ("attn_qkv", "attn_gate"), ("ffn_gate", "ffn_up"))
"""Matrices that read one input. It is rotated once for all of them, so that either all are listed or none."""


def read_rotation(
    metadata: Mapping[str, GGUFValue], shapes: Mapping[str, tuple[int, ...]], tied: bool
) -> Rotation | None:
    """Return the rotation that a file describes, or None. Raises UserError if it is partial or not known."""
    if any(key.startswith(FOREIGN) for key in metadata):
        raise UserError("the weights are rotated by another vendor's onebit.hadamard, which this version does not know")
    if not any(key.startswith(PREFIX) for key in metadata):
        return None
    missing = [key for key in REQUIRED if PREFIX + key not in metadata]
    if missing:
        raise UserError(
            f"the file's weights are rotated, but it lacks {PREFIX}{missing[0]}, without which they mean "
            "nothing; fetch the model again"
        )
    version = metadata_int(metadata, PREFIX + "version")
    if version not in (1, 2):
        raise UserError(f"the file's weights are rotated by version {version}, and only 1 and 2 are known; update")
    tied_output = metadata_bool(metadata, PREFIX + "tied_output", False)
    if tied_output and version < 2:
        raise UserError("the file's rotation is of version 1 and says tied_output, which came with 2; fetch it again")
    if tied_output and not tied:
        raise UserError("the file's rotation shares embedding and head, but there is an output.weight; fetch it again")
    for key, known in (("transform", TRANSFORM), ("axis", AXIS)):
        said = metadata_string(metadata, PREFIX + key)
        if said != known:
            raise UserError(f"the file's weights are rotated by {display_safe(said)}, and only {known} is known")
    block = metadata_int(metadata, PREFIX + "block_size", minimum=2, maximum=1 << 20)
    if block & (block - 1):
        raise UserError(f"the file's rotation has blocks of {block}, which is no power of two; fetch it again")
    forward = _names(metadata, "weight_names")
    inverse = _names(metadata, "inverse_weight_names")
    _check_names(forward, inverse, shapes, block)
    _check_stacks(forward, shapes)
    _check_embedding(forward, inverse, tied=tied, tied_output=tied_output)
    if tied_output:
        forward |= {"token_embd.weight"}
    widths = {shapes[name][-1] for name in forward | inverse}
    return Rotation(
        block,
        _signs(metadata, widths),
        frozenset(forward),
        frozenset(inverse),
        metadata_bool(metadata, PREFIX + "gdn_v_grouped", False),
    )


def _names(metadata: Mapping[str, GGUFValue], key: str) -> set[str]:
    found = metadata.get(PREFIX + key)
    value: object = [] if found is None else found.value
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise UserError(f"the file's {PREFIX}{key} is no list of names; fetch it again")
    return set(cast("Sequence[str]", value))


def _check_names(forward: set[str], inverse: set[str], shapes: Mapping[str, tuple[int, ...]], block: int) -> None:
    if inverse - {"token_embd.weight"}:
        other = display_safe(min(inverse - {"token_embd.weight"}))
        raise UserError(f"the file's rotation is undone behind {other}, which this version cannot do")
    for name in sorted(forward | inverse):
        shape = shapes.get(name)
        if shape is None:
            raise UserError(f"the file's rotation names {display_safe(name)}, which it does not hold; fetch it again")
        if shape[-1] % block:
            raise UserError(f"blocks of {block} do not divide the rows of {display_safe(name)}; fetch it again")
    for name in sorted(forward - {"output.weight", "token_embd.weight"}):
        kind = name.removesuffix(".weight").rpartition(".")[2]
        if kind not in ROTATABLE:
            raise UserError(f"the input of {display_safe(name)} is rotated, which this version cannot do")


def _check_stacks(forward: set[str], shapes: Mapping[str, tuple[int, ...]]) -> None:
    for name in sorted(forward):
        block, _, kind = name.removesuffix(".weight").rpartition(".")
        for other in next((stack for stack in TOGETHER if kind in stack), ()):
            missed = f"{block}.{other}.weight"
            if missed in shapes and missed not in forward:
                raise UserError(
                    f"the file's rotation names {display_safe(name)} but not {display_safe(missed)}, which reads the "
                    "same input; fetch it again"
                )


def _check_embedding(forward: set[str], inverse: set[str], *, tied: bool, tied_output: bool) -> None:
    """Refuse a table that is rotated for one of its two uses only: it holds the same numbers for both."""
    table = "token_embd.weight"
    if tied and not tied_output and table in forward | inverse:
        raise UserError(
            "the file's rotated embedding is the head too, as there is no output.weight, but its rotation does not say "
            "tied_output; fetch it again"
        )
    if tied_output and table not in inverse:
        raise UserError("the file's rotation says tied_output, but does not undo that of the embedding; fetch it again")
    if not tied and table in forward:
        raise UserError(
            "the file's rotation names the embedding for a head, but there is an output.weight; fetch it again"
        )


def _signs(metadata: Mapping[str, GGUFValue], widths: set[int]) -> dict[int, NDArray[np.float32]]:
    mode = metadata_string(metadata, PREFIX + "sign_mode")
    if mode == "identity":
        return {}
    if mode != "explicit":
        raise UserError(f"the file's rotation has signs of the kind {display_safe(mode)}, which is not known")
    for key in ("sign_widths", "sign_values"):
        if PREFIX + key not in metadata:
            raise UserError(f"the file's rotation lacks {PREFIX}{key}; fetch the model again")
    listed = [int(w) for w in metadata_integers(metadata, PREFIX + "sign_widths")]
    values = metadata_integers(metadata, PREFIX + "sign_values")
    if min(listed, default=1) < 1 or sum(listed) != len(values) or len(set(listed)) != len(listed):
        raise UserError(
            f"the file's rotation has {len(values)} signs for widths that take {sum(listed)}; fetch it again"
        )
    if (np.abs(values) != 1).any():
        raise UserError("a sign of the file's rotation is neither 1 nor -1; fetch it again")
    if widths - set(listed):
        raise UserError(f"the file's rotation has no signs for rows of {min(widths - set(listed))}; fetch it again")
    ends = np.cumsum(listed)
    parts = np.split(values.astype(np.float32), ends[:-1])
    return {width: part for width, part in zip(listed, parts, strict=True) if width in widths}
