"""The application's own themes. Textual's can be chosen as well; with `NO_COLOR` set, Textual draws without colours."""

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

LIGHT = Theme(
    name="nanochat-light",
    primary="#a8501c",
    secondary="#2f5f9e",
    accent="#117a65",
    success="#3f7a22",
    warning="#8a6100",
    error="#b3262e",
    foreground="#20242b",
    background="#faf8f5",
    surface="#f1eee9",
    panel="#e6e1d9",
    dark=False,
    variables={"footer-key-foreground": "#a8501c", "input-selection-background": "#2f5f9e 25%"},
)

HIGH_CONTRAST = Theme(
    name="high-contrast",
    primary="#ffb000",
    secondary="#6fd3ff",
    accent="#00ffc8",
    success="#5dff5d",
    warning="#ffff00",
    error="#ff6b6b",
    foreground="#ffffff",
    background="#000000",
    surface="#0a0a0a",
    panel="#161616",
    dark=True,
    variables={
        "text-muted": "#ffffff",
        "border": "#ffffff",
        "footer-key-foreground": "#ffff00",
        "input-selection-background": "#0060ff",
    },
)

THEMES = (NANOCHAT, LIGHT, HIGH_CONTRAST)
