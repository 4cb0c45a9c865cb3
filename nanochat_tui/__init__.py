"""nanochat-tui: a terminal workbench for ternary (1.58-bit) language models.

    import nanochat_tui as nc
    with nc.load("model.gguf") as model:
        for token in model.generate("fn main() {", max_tokens=64):
            print(token.text, end="", flush=True)

Importing this package imports nothing heavy; the engine comes with the first use of `load` or `Model`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from nanochat_tui.version import __version__

if TYPE_CHECKING:
    from nanochat_tui.arguments import ArgumentError
    from nanochat_tui.engine.generate.conversation import Chat, Generation
    from nanochat_tui.engine.generate.model import Model, load
    from nanochat_tui.errors import UserError
    from nanochat_tui.formats.errors import FormatError
    from nanochat_tui.model.support import UnsupportedModelError
    from nanochat_tui.request import GenerationRequest, Grammar, SamplingParams, Stats, Token

_HOMES = {
    "ArgumentError": "arguments",
    "Chat": "engine.generate.conversation",
    "FormatError": "formats.errors",
    "Generation": "engine.generate.conversation",
    "GenerationRequest": "request",
    "Grammar": "request",
    "Model": "engine.generate.model",
    "SamplingParams": "request",
    "Stats": "request",
    "Token": "request",
    "UnsupportedModelError": "model.support",
    "UserError": "errors",
    "load": "engine.generate.model",
}
"""Module of every public name, imported when the name is asked for (PEP 562)."""

__all__ = [
    "ArgumentError",
    "Chat",
    "FormatError",
    "Generation",
    "GenerationRequest",
    "Grammar",
    "Model",
    "SamplingParams",
    "Stats",
    "Token",
    "UnsupportedModelError",
    "UserError",
    "__version__",
    "load",
]


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is not None:
        return getattr(import_module(f"nanochat_tui.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
