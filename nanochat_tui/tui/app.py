"""The application: modes, theme, help, palette."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import ClassVar

from textual import on
from textual.app import App, SystemCommand
from textual.binding import Binding, BindingType
from textual.screen import Screen

from nanochat_tui.chat.backend import Backend
from nanochat_tui.chat.store import Store
from nanochat_tui.tui import messages
from nanochat_tui.tui.chat.screen import ChatScreen
from nanochat_tui.tui.preferences import Preferences
from nanochat_tui.tui.theme import NANOCHAT

Command = tuple[str, str, Callable[[], object]]
"""A line of the palette: title, help, what to call."""


class NanochatApp(App[None]):
    """The workbench. It paints before the backend is loaded, and tells its threads to end when it does.

    Modes are made when first visited, so that a chat does not pay for the inspector's or the launcher's imports. A
    screen may offer `palette_commands() -> Iterable[Command]`; the inspector may offer `open_file(path)`, without which
    it is made anew for another file.
    """

    TITLE = "nanochat-tui"
    DEFAULT_MODE = "chat"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("f1", "toggle_help", "Help", priority=True, id="app.help"),
        Binding("f2", "show_mode('chat')", "Chat", priority=True, id="app.chat"),
        Binding("f3", "show_mode('inspect')", "Inspect", priority=True, id="app.inspect"),
        Binding("f4", "show_mode('train')", "Train", priority=True, id="app.train"),
        Binding("ctrl+p", "command_palette", "Menu", priority=True, id="app.palette"),
        Binding("ctrl+q", "quit", "Quit", priority=True, id="app.quit"),
    ]

    def __init__(
        self,
        backend: Backend,
        *,
        store: Store | None = None,
        preferences: Preferences | None = None,
        runs: Path | None = None,
    ) -> None:
        super().__init__()
        self.preferences = preferences or Preferences()
        self.chat = ChatScreen(backend, store, self.preferences)
        self._runs_root = runs
        self._inspected: Path | None = None
        self.add_mode("chat", self._chat_screen)
        self.add_mode("inspect", self._inspect_screen)
        self.add_mode("train", self._train_screen)
        self.register_theme(NANOCHAT)
        self.theme = NANOCHAT.name

    def _chat_screen(self) -> Screen[None]:
        return self.chat

    def _inspect_screen(self) -> Screen[None]:
        from nanochat_tui.tui.inspect.screen import InspectScreen

        if self._inspected is None:
            self._inspected = getattr(self.chat.backend, "path", None)
        return InspectScreen(self._inspected)

    def _train_screen(self) -> Screen[None]:
        from nanochat_tui.tui.train.screen import TrainScreen

        return TrainScreen(self._runs_root)

    @property
    def is_working(self) -> bool:
        """Whether a thread still computes; after `run` this means one that could not be stopped."""
        return self.chat.is_working

    def on_unmount(self) -> None:
        """Stop what runs in the background."""
        self.chat.close()

    # Modes

    async def action_show_mode(self, mode: str) -> None:
        """Go to a mode, making its screen at the first visit."""
        if self.current_mode != mode:
            await self.switch_mode(mode)

    @on(messages.OpenFile)
    async def _open_file(self, event: messages.OpenFile) -> None:
        self._inspected = event.path
        if "inspect" in self._screen_stacks:
            screen = self._screen_stacks["inspect"][0]
            opener = getattr(screen, "open_file", None)
            if opener is None:
                if self.current_mode == "inspect":
                    await self.switch_mode("chat")
                await self.remove_mode("inspect")
                self.add_mode("inspect", self._inspect_screen)
            else:
                await self.action_show_mode("inspect")
                result = opener(event.path)
                if inspect.isawaitable(result):
                    await result
        await self.action_show_mode("inspect")

    @on(messages.ChatWith)
    async def _chat_with(self, event: messages.ChatWith) -> None:
        await self.action_show_mode("chat")
        if self.chat.conversation.turns:
            await self.chat.new_session()
        await self.chat.use_local(event.path, event.mhc)

    # Help and palette

    def action_toggle_help(self) -> None:
        """Show or hide the help for what has the focus."""
        if self.screen.query("HelpPanel"):
            self.action_hide_help_panel()
        else:
            self.action_show_help_panel()

    def get_system_commands(self, screen: Screen[object]) -> Iterable[SystemCommand]:
        """Offer every action of the screen in the palette, beside the modes and Textual's own commands."""
        yield from super().get_system_commands(screen)
        for key, mode, title in (("F2", "chat", "Chat"), ("F3", "inspect", "Inspect"), ("F4", "train", "Train")):
            if self.current_mode != mode:
                yield SystemCommand(f"Go to {title}", f"The {title.lower()} mode ({key})", self._goer(mode))
        yield SystemCommand("Help", "Explain what has the focus, and all keys (F1)", self.action_toggle_help)
        offers: Callable[[], Iterable[Command]] | None = getattr(screen, "palette_commands", None)
        for title, text, callback in offers() if offers is not None else ():
            yield SystemCommand(title, text, callback)

    def _goer(self, mode: str) -> Callable[[], object]:
        return lambda: self.run_action(f"show_mode('{mode}')")
