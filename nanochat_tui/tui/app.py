"""The application: modes, theme, help, palette."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import ClassVar

from textual.app import App, SystemCommand
from textual.binding import Binding, BindingType
from textual.screen import Screen

from nanochat_tui.chat.backend import Backend
from nanochat_tui.tui.chat.screen import ChatScreen
from nanochat_tui.tui.theme import NANOCHAT


class NanochatApp(App[None]):
    """The workbench. It paints before the backend is loaded, and tells its threads to end when it does."""

    TITLE = "nanochat-tui"
    DEFAULT_MODE = "chat"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("f1", "toggle_help", "Help", priority=True, id="app.help"),
        Binding("ctrl+p", "command_palette", "Menu", priority=True, id="app.palette"),
        Binding("ctrl+q", "quit", "Quit", priority=True, id="app.quit"),
    ]

    def __init__(self, backend: Backend) -> None:
        super().__init__()
        self.chat = ChatScreen(backend)
        self.add_mode("chat", self._chat_screen)
        self.register_theme(NANOCHAT)
        self.theme = NANOCHAT.name

    def _chat_screen(self) -> Screen[None]:
        return self.chat

    @property
    def is_working(self) -> bool:
        """Whether a thread still computes; after `run` this means one that could not be stopped."""
        return self.chat.is_working

    def on_unmount(self) -> None:
        """Stop what runs in the background."""
        self.chat.close()

    def action_toggle_help(self) -> None:
        """Show or hide the help for what has the focus."""
        if self.screen.query("HelpPanel"):
            self.action_hide_help_panel()
        else:
            self.action_show_help_panel()

    def get_system_commands(self, screen: Screen[object]) -> Iterable[SystemCommand]:
        """Offer every action of the chat in the palette, beside Textual's own commands."""
        yield from super().get_system_commands(screen)
        if not isinstance(screen, ChatScreen):
            return
        offers: tuple[tuple[str, str, str, Callable[[], object]], ...] = (
            ("stop", "Stop the reply", "End it at the next token (Esc)", screen.action_stop),
            ("regenerate", "Write again", "Replace the last reply by a new one (Ctrl+R)", screen.action_regenerate),
            ("new", "New conversation", "Start over with an empty transcript (Ctrl+N)", screen.action_new),
            ("copy_reply", "Copy the last reply", "To the clipboard (Ctrl+Y)", screen.action_copy_reply),
            ("copy_reply", "Copy everything", "The whole document or conversation", screen.action_copy_all),
            ("sampling", "Sampling settings", "Temperature, top-k and others (F2)", screen.action_toggle_sampling),
            ("help", "Help", "Explain what has the focus, and all keys (F1)", self.action_toggle_help),
        )
        for action, title, text, callback in offers:
            if screen.check_action(action, ()):
                yield SystemCommand(title, text, callback)
