"""The application's own theme: dark, quiet, with the colour of rust. Textual's other themes can be chosen as well."""

from __future__ import annotations

from textual.theme import Theme

NANOCHAT = Theme(
    name="nanochat",
    primary="#d9824f",
    secondary="#7aa2d6",
    accent="#5bbfa8",
    success="#93c07a",
    warning="#e0b566",
    error="#e0696f",
    foreground="#d8dce4",
    background="#101318",
    surface="#171b22",
    panel="#1e242d",
    dark=True,
    variables={"footer-key-foreground": "#d9824f", "input-selection-background": "#7aa2d6 35%"},
)
