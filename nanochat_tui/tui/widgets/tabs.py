"""Tabs that go where they were sent last."""

from __future__ import annotations

from textual.widgets import TabbedContent, TabPane


class PaneTabs(TabbedContent):
    """Tabs whose active pane only keys, clicks and the program change.

    Textual also activates the pane in which a widget gets the focus, by a message: with quick keys it arrives after the
    next tab was chosen, and goes back to the one before.
    """

    def _on_tab_pane_focused(self, event: TabPane.Focused) -> None:
        event.stop()
        event.prevent_default()
