"""One file per GGUF architecture, each from metadata and tensor names to the description that the engine works from.

To add one: a module with NAMES and `describe(keys)`, entered below; it says only what differs from `dense`.
"""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType

from nanochat_tui.errors import UserError
from nanochat_tui.formats.gguf import GGUFFile, metadata_string
from nanochat_tui.model.architectures import bitnet, llama, maple, minicpm, nanochat, qwen3, qwen35
from nanochat_tui.model.architectures.description import Architecture
from nanochat_tui.model.architectures.keys import Keys
from nanochat_tui.model.architectures.namespace import check_namespace
from nanochat_tui.model.architectures.rotation import read_rotation
from nanochat_tui.text import display_safe

_MODULES: tuple[ModuleType, ...] = (nanochat, llama, minicpm, qwen3, bitnet, qwen35, maple)
BY_NAME: dict[str, ModuleType] = {name: module for module in _MODULES for name in module.NAMES}
"""Modules by the value of `general.architecture`."""

EXPLAINED: dict[str, str] = {
    "gemma3": (
        "it is a BitNet embedding model or another Gemma, whose extra norms are not implemented; use Microsoft's "
        "bitnet.cpp for the one and llama.cpp for the other"
    ),
    "hunyuan-dense": (
        "Tencent's Hy-MT models rotate before they normalise, which is not implemented; use llama.cpp, or Tencent's "
        "branch of it for a file of STQ1_0"
    ),
    "qwen35moe": "of Qwen3.5 only the dense models are implemented; take one of those (qwen35), or use llama.cpp",
    "clip": "it is the vision part of a model; give the language part",
    "mmproj": "it is the vision part of a model; give the language part",
}
"""Why models of names that are known are not run, and what to do instead."""


class UnknownArchitectureError(UserError):
    """A sound file of an architecture that this version does not have."""


def describe(file: GGUFFile) -> Architecture:
    """Return what the engine has to know of a file. Raises UserError with the reason, in one sentence."""
    name = metadata_string(file.metadata, "general.architecture", "")
    if not name:
        raise UnknownArchitectureError(
            "the file names no architecture, so it is not known how to run it; fetch or convert it again"
        )
    module = BY_NAME.get(name)
    if module is None:
        reason = EXPLAINED.get(name, f"it runs {', '.join(BY_NAME)}; take a model of one of these, or use llama.cpp")
        raise UnknownArchitectureError(
            f"models of the architecture {display_safe(name)} cannot be run by this version: {reason}"
        )
    keys = Keys.of(file)
    found: Architecture = module.describe(keys)
    if note := check_namespace(keys, found):
        found = replace(found, notes=(*found.notes, note))
    rotation = read_rotation(file.metadata, keys.shapes, found.tied)
    return found if rotation is None else replace(found, rotation=rotation)
