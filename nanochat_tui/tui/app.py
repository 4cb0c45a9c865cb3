"""The application: modes, theme, help, palette."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
import select
import signal
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, ClassVar

from textual import on
from textual.app import SystemCommand
from textual.binding import Binding, BindingType
from textual.driver import Driver
from textual.screen import Screen
from textual.widget import Widget

from nanochat_tui.chat.backend import WARNING, Backend
from nanochat_tui.chat.store import Store
from nanochat_tui.errors import UserError
from nanochat_tui.tui import messages
from nanochat_tui.tui.chat.screen import ChatScreen
from nanochat_tui.tui.chat.tool_slot import ToolSlot
from nanochat_tui.tui.key_order import KeysInOrder
from nanochat_tui.tui.keys import KeyNames
from nanochat_tui.tui.lent import is_lent, sweep_aside
from nanochat_tui.tui.log import begin_log, logger, write_crash_report
from nanochat_tui.tui.paste import with_paste_parser
from nanochat_tui.tui.preferences import Preferences, remember_model, save_preferences, unused_appearance
from nanochat_tui.tui.textual_fixes import release_removed_widgets
from nanochat_tui.tui.theme import NANOCHAT, THEMES

SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))
"""What ends a process in order: a shutdown, a closed terminal. Windows has no second one."""
Command = tuple[str, str, Callable[[], object]]
"""A line of the palette: title, help, what to call."""


class NanochatApp(KeysInOrder):
    """The workbench. It paints before the backend is loaded, and tells its threads to end when it does.

    Modes are made when first visited, so that a chat does not pay for the inspector's or the launcher's imports. A
    screen may offer `palette_commands() -> Iterable[Command]`; the inspector may offer `open_file(path)`, without which
    it is made again for another file.
    """

    TITLE = "nanochat-tui"
    CSS = """
    ToastRack { dock: top; align: right top; margin: 0; }
    HelpPanel { overflow-y: auto; #widget-help { max-height: 1000; } KeyPanel#keys-help { height: auto; } }
    """  # notes stand above, where they hide neither the input nor the numbers under it; help scrolls as a whole
    DEFAULT_MODE = "chat"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("f1", "toggle_help", "Help", priority=True, id="app.help"),
        Binding("alt+down", "scroll_help(1)", "More help", key_display="Alt+↓", priority=True, id="app.help_down"),
        Binding("alt+up", "scroll_help(-1)", "Help up", show=False, priority=True, id="app.help_up"),
        Binding("f2", "show_mode('chat')", "Chat", priority=True, id="app.chat"),
        Binding("f3", "show_mode('inspect')", "Inspect", priority=True, id="app.inspect"),
        Binding("f4", "show_mode('train')", "Train", priority=True, id="app.train"),
        Binding("f6", "show_mode('evaluate')", "Evaluate", priority=True, id="app.evaluate"),
        Binding("f8", "show_log", "Log", show=False, id="app.log"),
        Binding("f9", "preferences", "Preferences", show=False, id="app.preferences"),
        Binding("ctrl+p", "command_palette", "Menu", priority=True, id="app.palette"),
        Binding("ctrl+q", "quit", "Quit", priority=True, id="app.quit"),
    ]

    def __init__(
        self,
        backend: Backend,
        *,
        store: Store | None = None,
        preferences: Preferences | None = None,
        preferences_path: Path | None = None,
        reports: Path | None = None,
        runs: Path | None = None,
        tools: ToolSlot | None = None,
    ) -> None:
        super().__init__()
        release_removed_widgets()
        self.preferences = preferences or Preferences()
        self.chat = ChatScreen(backend, store, self.preferences, tools)
        self._runs_root = runs
        self._inspected: Path | None = None
        self.add_mode("chat", self._chat_screen)
        self.add_mode("inspect", self._inspect_screen)
        self.add_mode("train", self._train_screen)
        self.add_mode("evaluate", self._evaluate_screen)
        self._preferences_path = preferences_path
        self._reports = reports
        self.crash_report: Path | None = None
        """Where the report of a crash lies, once there was one."""
        self.key_badges: dict[str, str] = {}
        """Signs next to keys, by their action: that something happened in a mode that is not on show."""
        self.greeting: str | None = None
        """Something to say at the start."""
        for theme in THEMES:
            self.register_theme(theme)
        begin_log(reports)
        self.apply_preferences(self.preferences)

    def get_driver_class(self) -> type[Driver]:
        """Return the terminal's driver, one that takes a paste as one piece."""
        return with_paste_parser(super().get_driver_class())

    def _chat_screen(self) -> Screen[None]:
        return self.chat

    def _inspect_screen(self) -> Screen[None]:
        from nanochat_tui.tui.inspect.screen import InspectScreen

        if self._inspected is None:
            self._inspected = self.chat.model.backend.path
        return InspectScreen(self._inspected)

    def _train_screen(self) -> Screen[None]:
        from nanochat_tui.tui.train.screen import TrainScreen

        return TrainScreen(self._runs_root)

    def _evaluate_screen(self) -> Screen[None]:
        from nanochat_tui.paths import evaluations_directory
        from nanochat_tui.tui.evaluate.screen import EvaluateScreen

        backend = self.chat.model.backend
        remote = backend.path is None and self.chat.model.ready
        return EvaluateScreen(evaluations_directory(), str(backend.path or ""), backend.kernel if remote else "")

    def session_messages(self) -> list[dict[str, str]]:
        """What was said in the chat, as a chat template takes it; empty with a base model, which has no messages."""
        return self.chat.session.messages()

    @property
    def is_working(self) -> bool:
        """Whether a thread still computes; after `run` this means one that could not be stopped."""
        return self.chat.is_working

    def on_mount(self) -> None:
        """Say what there is to say, and watch for the terminal going away."""
        if self.greeting:
            self.notify(self.greeting, severity="warning", timeout=15, markup=False)
        self.call_after_refresh(self._say_what_is_not_used)
        if not self.is_headless:
            self.set_interval(10.0, self._leave_with_the_terminal)
            sweep_aside()
            if not self.is_web:  # whose driver hears them itself
                self._hear_signals()

    def _hear_signals(self) -> None:
        """Leave in order when told to from outside; the second time, at once."""
        loop = asyncio.get_running_loop()

        def told(number: int) -> None:
            for one in SIGNALS:
                loop.remove_signal_handler(one)
            logger.warning("told to end by signal %d", number)
            self._leave_with_the_terminal(number)
            self.exit(return_code=128 + number)

        with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):  # not on every system or thread
            for number in SIGNALS:
                loop.add_signal_handler(number, told, number)

    def _leave_with_the_terminal(self, number: int = 1) -> None:
        """End when the terminal was closed, perhaps without a signal, instead of reading its end for ever."""
        if not hasattr(select, "poll") or self.is_web:
            return
        poll = select.poll()
        poll.register(sys.__stdin__ or 0, select.POLLIN)
        if any(event & (select.POLLHUP | select.POLLERR | select.POLLNVAL) for _, event in poll.poll(0)):
            logger.warning("the terminal is gone")
            self._end_background()  # what was said is kept; there is nothing left to restore or to draw on
            os._exit(128 + number)  # without a signal as SIGHUP would have ended it

    def exit(self, *arguments: Any, **named: Any) -> None:
        """Leave; what was typed a moment ago is kept, which the widgets can tell only now."""
        self.chat.leave_session()
        super().exit(*arguments, **named)

    def _end_background(self) -> None:
        self.chat.close()
        for screen in (screen for stack in self._screen_stacks.values() for screen in stack):
            exports = getattr(screen, "exports", None)
            if exports is not None:
                exports.close()

    def on_unmount(self) -> None:
        """Stop what runs in the background."""
        self._end_background()

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

    @on(messages.BackendProgress)
    def _warn_of_loading(self, event: messages.BackendProgress) -> None:
        if event.step.startswith(WARNING):
            self.notify(event.step.removeprefix(WARNING), severity="warning", timeout=15, markup=False)

    @on(messages.ChatWith)
    async def _chat_with(self, event: messages.ChatWith) -> None:
        await self.action_show_mode("chat")
        if self.chat.session.conversation.turns:
            await self.chat.flow.new()
        await self.chat.models.use_file(event.path, event.mhc, threads=event.threads)
        if event.note:
            self.notify(event.note, timeout=10, markup=False)

    @on(messages.ModeNews)
    def _mode_news(self, event: messages.ModeNews) -> None:
        action = f"show_mode('{event.mode}')"
        badge = "" if event.mode == self.current_mode else event.badge
        if badge != self.key_badges.pop(action, ""):
            if badge:
                self.key_badges[action] = badge
            self.screen.refresh_bindings()
        elif badge:
            self.key_badges[action] = badge

    @on(messages.ModelUsed)
    def _model_used(self, event: messages.ModelUsed) -> None:
        logger.info("loaded %s", event.path)
        if is_lent(event.path):  # a checkpoint's copy, gone with the application
            return
        changed = remember_model(self.preferences, event.path)
        if changed.recent != self.preferences.recent:
            self._keep(changed)

    # Preferences

    def apply_preferences(self, preferences: Preferences) -> None:
        """Let other preferences hold from now on."""
        self.preferences = self.chat.session.preferences = preferences
        wanted = preferences.appearance.theme
        self.theme = wanted if wanted in self.available_themes else NANOCHAT.name
        self.set_keymap(preferences.keys)
        self.key_names = KeyNames(preferences.keys)

    def _say_what_is_not_used(self) -> None:
        """Name a theme and keys of the preferences that mean nothing here."""
        wrong = unused_appearance(self.preferences, self.available_themes)
        if self.preferences.keys:
            from nanochat_tui.tui.key_owners import key_owners
            from nanochat_tui.tui.keys import remappable, unused_keys

            wrong += unused_keys(self.preferences.keys, remappable([type(self), *key_owners()]))
        if wrong:
            change = self.key_names("{app.preferences|F9} changes them.")
            text = f"Preferences that are not used: {'; '.join(wrong)}. {change}"
            logger.warning("%s", text)
            self.notify(text, severity="warning", timeout=15, markup=False)

    def _keep(self, preferences: Preferences) -> None:
        self.preferences = self.chat.session.preferences = preferences
        if self._preferences_path is not None:
            try:
                save_preferences(preferences, self._preferences_path)
            except UserError as exc:
                logger.warning("%s", exc)

    def watch_theme(self, theme: str) -> None:
        """Keep a theme that was chosen in the palette."""
        appearance = self.preferences.appearance
        if self.is_running and theme != appearance.theme:
            self._keep(
                self.preferences.model_copy(update={"appearance": appearance.model_copy(update={"theme": theme})})
            )

    def action_preferences(self) -> None:
        """Open the preferences."""
        from nanochat_tui.tui.key_owners import key_owners
        from nanochat_tui.tui.keys import remappable
        from nanochat_tui.tui.preferences_screen import PreferencesScreen

        keys = remappable([type(self), *key_owners()])
        self.push_screen(PreferencesScreen(self.preferences, self._preferences_path, keys))

    def action_show_log(self) -> None:
        """Show what was noted."""
        from nanochat_tui.tui.log_screen import LogScreen

        self.push_screen(LogScreen())

    # Crashes

    def _handle_exception(self, error: Exception) -> None:
        """Write a report and leave quietly; what a person sees is one sentence, said after the terminal is restored."""
        logger.error("crash", exc_info=error)
        if self._reports is None or self.is_headless:
            super()._handle_exception(error)
            return
        self.crash_report = write_crash_report(error, self._reports)
        if self.crash_report is None:
            super()._handle_exception(error)
            return
        self._return_code = 1
        self._close_messages_no_wait()

    # Help and palette

    def action_help(self) -> None:
        """Show or hide the help; the name the slash command uses."""
        self.action_toggle_help()

    def action_toggle_help(self) -> None:
        """Show or hide the help for what has the focus."""
        if self._help_panel() is not None:
            self.action_hide_help_panel()
        else:
            self.action_show_help_panel()
        self.call_after_refresh(self.refresh_bindings)

    def action_show_help_panel(self) -> None:
        """Show the help, with the keys as they are."""
        from nanochat_tui.tui.help_panel import HelpPanel

        if self._help_panel() is None:
            self.screen.mount(HelpPanel())

    def _help_panel(self) -> Widget | None:
        # told by its name: the class brings Textual's Markdown along, which a start need not wait for
        return next((child for child in self.screen.children if type(child).__name__ == "HelpPanel"), None)

    def action_scroll_help(self, by: int) -> None:
        """Scroll the help by half of its height; the focus stays, because the help is about what has it."""
        panel = self._help_panel()
        if panel is not None:
            panel.scroll_relative(y=by * max(1, panel.size.height // 2), animate=False)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Take the keys that scroll the help only while it is on show."""
        if action == "scroll_help":
            return bool(self._screen_stacks.get(self._current_mode)) and self._help_panel() is not None
        return super().check_action(action, parameters)

    def get_system_commands(self, screen: Screen[object]) -> Iterable[SystemCommand]:
        """Offer every action of the screen in the palette, with the modes and Textual's own commands."""
        yield from super().get_system_commands(screen)
        keys = self.key_names
        modes = {
            "chat": "{app.chat|F2}",
            "inspect": "{app.inspect|F3}",
            "train": "{app.train|F4}",
            "evaluate": "{app.evaluate|F6}",
        }
        for mode, key in modes.items():
            if self.current_mode != mode:
                yield SystemCommand(f"Go to {mode.capitalize()}", keys(f"The {mode} mode ({key})"), self._goer(mode))
        text = keys("Theme, keys, defaults of new sessions ({app.preferences|F9})")
        yield SystemCommand("Preferences", text, self.action_preferences)
        yield SystemCommand("Log", keys("What the application noted ({app.log|F8})"), self.action_show_log)
        text = keys("Explain what has the focus, and all keys ({app.help|F1})")
        yield SystemCommand("Help", text, self.action_toggle_help)
        offers: Callable[[], Iterable[Command]] | None = getattr(screen, "palette_commands", None)
        for title, text, callback in offers() if offers is not None else ():
            yield SystemCommand(title, text, callback)

    def _goer(self, mode: str) -> Callable[[], object]:
        return lambda: self.run_action(f"show_mode('{mode}')")
