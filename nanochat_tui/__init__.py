"""nanochat-tui: a terminal workbench for ternary (1.58-bit) language models.

    import nanochat_tui as nc
    model = nc.load("model.gguf")
    for token in model.generate("fn main() {", max_tokens=64):
        print(token.text, end="", flush=True)

Importing this package imports nothing heavy; the engine comes with the first use of `load` or `Model`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nanochat_tui.version import __version__

if TYPE_CHECKING:
    from nanochat_tui.engine.model import Model, load


__all__ = ["Model", "__version__", "load"]


def __getattr__(name: str) -> object:
    """Import the engine when one of its names is asked for (PEP 562)."""
    if name in ("load", "Model"):
        from nanochat_tui.engine import model

        return getattr(model, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
