"""The panel next to the chat: the session's settings in one tab, what the model does in another."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.widgets import TabbedContent, TabPane

from nanochat_tui.chat.store.records import SessionSettings
from nanochat_tui.tui.chat.live_panel import LivePanel
from nanochat_tui.tui.chat.settings_panel import SettingsPanel


class LiveScroll(VerticalScroll):
    """Lets the keyboard reach what is below the edge."""

    HELP = LivePanel.HELP
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("j", "scroll_down", "Down", show=False, id="live.down"),
        Binding("k", "scroll_up", "Up", show=False, id="live.up"),
    ]


class SidePanel(Vertical):
    """Two tabs; hidden until asked for."""

    def __init__(self, settings: SessionSettings, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._settings = settings

    def compose(self) -> ComposeResult:
        """Lay out both tabs."""
        with TabbedContent(initial="tab-settings"):
            with TabPane("Settings", id="tab-settings"), VerticalScroll(can_focus=False):
                yield SettingsPanel(self._settings, id="settings")
            with TabPane("Live", id="tab-live"), LiveScroll():
                yield LivePanel(id="live")

    @property
    def settings(self) -> SettingsPanel:
        """The session's settings."""
        return self.query_one(SettingsPanel)

    @property
    def live(self) -> LivePanel:
        """What the model does."""
        return self.query_one(LivePanel)

    def shows(self, tab: str) -> bool:
        """Whether the panel is open at this tab ("settings" or "live")."""
        return bool(self.display) and self.query_one(TabbedContent).active == f"tab-{tab}"

    def open(self, tab: str) -> None:
        """Open the panel at a tab."""
        self.display = True
        self.query_one(TabbedContent).active = f"tab-{tab}"

    def on_tabbed_content_tab_activated(self) -> None:
        """Let the live part work only while it is seen."""
        self.live.is_open = self.shows("live")
