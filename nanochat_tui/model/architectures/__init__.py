"""One file per GGUF architecture, each from metadata and tensor names to the description that the engine works from.

To add one: a module with NAMES and `describe(keys)`, entered below; it says only what differs from `dense`.
"""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType

from nanochat_tui.errors import UserError, display_safe
from nanochat_tui.formats.gguf import GGUFFile, metadata_string
from nanochat_tui.model.architectures import bitnet, llama, maple, nanochat, qwen3, qwen35
from nanochat_tui.model.architectures.description import Architecture
from nanochat_tui.model.architectures.keys import Keys
from nanochat_tui.model.architectures.rotation import read_rotation

_MODULES: tuple[ModuleType, ...] = (nanochat, llama, qwen3, bitnet, qwen35, maple)
BY_NAME: dict[str, ModuleType] = {name: module for module in _MODULES for name in module.NAMES}
"""Modules by the value of `general.architecture`."""

EXPLAINED: dict[str, str] = {
    "gemma3": "it is a BitNet embedding model or another Gemma, whose extra norms are not implemented",
    "hunyuan-dense": "Tencent's Hy-MT models rotate before they normalise, which is not implemented",
    "qwen35moe": "of Qwen3.5 only the dense models are implemented",
    "minicpm": "BitCPM's scales are not implemented",
    "clip": "it is the vision part of a model; give the language part",
    "mmproj": "it is the vision part of a model; give the language part",
}
"""What can be said about names that are known and not run."""


class UnknownArchitectureError(UserError):
    """A sound file of an architecture that this version does not have."""


def describe(file: GGUFFile) -> Architecture:
    """Return what the engine has to know of a file. Raises UserError with the reason, in one sentence."""
    name = metadata_string(file.metadata, "general.architecture", "")
    if not name:
        raise UnknownArchitectureError("the file names no architecture, so it is not known how to run it")
    module = BY_NAME.get(name)
    if module is None:
        reason = EXPLAINED.get(name, "it runs " + ", ".join(BY_NAME))
        raise UnknownArchitectureError(
            f"models of the architecture {display_safe(name)} cannot be run by this version: {reason}"
        )
    keys = Keys.of(file)
    found: Architecture = module.describe(keys)
    rotation = read_rotation(file.metadata, keys.shapes, found.tied)
    return found if rotation is None else replace(found, rotation=rotation)
