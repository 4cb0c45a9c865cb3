"""nanochat-tui: a terminal workbench for ternary (1.58-bit) language models."""

__version__ = "0.1.0"
