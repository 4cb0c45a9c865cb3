"""The chat mode: brings conversation, threads and widgets together."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container
from textual.content import Content
from textual.events import Key
from textual.widgets import Static

from nanochat_tui.tui import messages
from nanochat_tui.tui.chat import commands
from nanochat_tui.tui.chat.command_actions import CommandPart
from nanochat_tui.tui.chat.lens_view import Alternatives
from nanochat_tui.tui.chat.prompt import Prompt
from nanochat_tui.tui.chat.session_list import SessionList
from nanochat_tui.tui.chat.side_panel import SidePanel
from nanochat_tui.tui.chat.transcript import Transcript
from nanochat_tui.tui.widgets.key_line import KeyLine
from nanochat_tui.tui.widgets.status import StatusLine


class ChatScreen(CommandPart):
    """Type, see the reply being written, stop it, try again."""

    CSS_PATH = ["chat.tcss", "side.tcss"]  # noqa: RUF012
    AUTO_FOCUS = "#prompt"
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (100, "-wide")]  # noqa: RUF012 - typed by Textual
    VERTICAL_BREAKPOINTS = [(0, "-low"), (24, "-high")]  # noqa: RUF012

    HELP = """\
## Chat
A **base model** continues text: what you type is the beginning, and everything in the transcript is one document that
grows. **Enter** on an empty input lets it go on. So that small models do not fall into loops, completions begin with
a repeat penalty of 1.1 (Ctrl+S changes it for the session, F9 for new ones). A model with a chat template answers
messages instead.

**Esc** stops a reply, **Ctrl+R** writes it anew, **Ctrl+Y** copies it, **Ctrl+N** starts over, **Ctrl+O** lists and
searches all sessions, **Ctrl+S** opens the settings of this one, **Ctrl+G** chooses a model, **F5** shows how likely
each token was, **Ctrl+L** what the model does. **/** begins a command; **Ctrl+P** finds every command. The line at the
bottom shows the speed and how much of the context is used; when the context is full, the oldest text no longer reaches
the model, and a note says so.
"""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "stop", "Stop", priority=True, id="chat.stop"),
        Binding("escape", "back", "Back", priority=True, show=False, id="chat.back"),
        Binding("ctrl+r", "regenerate", "Again", priority=True, id="chat.again"),
        Binding("ctrl+n", "new", "New", priority=True, id="chat.new"),
        Binding("ctrl+o", "toggle_sessions", "Sessions", priority=True, id="chat.sessions"),
        Binding("ctrl+s", "toggle_settings", "Settings", priority=True, id="chat.settings"),
        Binding("f5", "toggle_lens", "Lens", priority=True, id="chat.lens"),
        Binding("ctrl+l", "toggle_live", "Live", priority=True, show=False, id="chat.live"),
        Binding("ctrl+y", "copy_reply", "Copy", priority=True, show=False, id="chat.copy"),
        Binding("ctrl+g", "model", "Model", priority=True, show=False, id="chat.model"),
    ]

    def compose(self) -> ComposeResult:
        """Lay out sessions, transcript and settings above the input, the status and the keys."""
        with Container(id="body"):
            yield SessionList(self.preferences.chat.order, id="sessions")
            yield Transcript(id="transcript")
            yield SidePanel(self.settings, id="side")
        yield Alternatives(id="alternatives", markup=False)
        yield Static(id="suggestions", markup=False)
        yield Prompt(id="prompt")
        yield StatusLine(id="status")
        yield KeyLine()

    async def on_mount(self) -> None:
        """Paint, and only then begin to load."""
        self.prompt.border_title = "Write"
        self.transcript.unfolded = self.preferences.appearance.unfold_thinking
        await self.begin_loading()
        self.call_after_refresh(self._remember)

    async def _remember(self) -> None:
        self.listen_to_store()
        await self.resume_last()
        await self.recall_prompts()

    def close(self) -> None:
        """Stop the threads, waiting for those that can be waited for; what was said is on the disk then."""
        self.loader.stop()
        self.stop_writing(1.0)
        if self.is_attached and self.query("#prompt"):
            self.leave_session()
        self.store.close()

    @property
    def is_working(self) -> bool:
        """Whether a thread still computes."""
        return self.loader.is_working or (self.generation is not None and not self.generation.join(0))

    def on_key(self, event: Key) -> None:
        """Let typing go to the input even while the transcript has the focus, but for the keys that mean something."""
        if event.key in self.active_bindings:
            return
        if self.focused is self.transcript and event.is_printable and event.character and not self.prompt.disabled:
            event.stop()
            self.prompt.focus()
            self.prompt.insert(event.character)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Offer only what makes sense now; None shows a key dimmed."""
        if action == "stop":
            return self.generation is not None
        if action == "back":
            return self.generation is None
        if action in ("new", "toggle_kind", "parity"):
            return True if self.ready else None
        if action in ("regenerate", "continue_reply"):
            return True if self.conversation.last is not None and self.ready else None
        needs_turn = ("copy_reply", "copy_turn", "copy_code", "copy_all", "edit_turn", "delete_turn", "fork_turn")
        if action in (*needs_turn, "toggle_lens"):
            return True if self.conversation.last is not None else None
        if action == "toggle_thoughts":
            return self.chosen_turn is not None and bool(self.chosen_turn.thinking)
        if action == "undo_delete":
            return self.undoable
        if action in ("rename", "export", "delete_session"):
            return True if self.info is not None else None
        return True

    def _concerns(self, command: commands.Command) -> bool:
        """Whether a command is about this kind of model and session, and possible now."""
        is_file = getattr(self.backend, "path", None) is not None
        about = {
            "complete": self.ready and self.backend.is_chat,
            "system": self.conversation.is_chat,
            "models": not is_file,
            "parity": is_file,
            "inspect": is_file,
        }
        return about.get(command.name, True) and bool(self.check_action(command.action, ()))

    def palette_commands(self) -> Iterable[tuple[str, str, Callable[[], object]]]:
        """Every command that makes sense now, for the palette."""
        for command in commands.COMMANDS:
            if command.name in ("help", "quit", "preferences", "log") or not self._concerns(command):
                continue
            key = f" ({command.key})" if command.key else f" (/{command.name})"
            yield command.title, command.help + key, partial(self.run_command, command, "")

    def show_suggestions(self, text: str) -> None:
        """Show which commands the input may become, above it."""
        found = commands.suggestions(text) if text.startswith("/") and "\n" not in text else []
        shown = self.query_one("#suggestions", Static)
        shown.display = bool(found)
        if not found:
            return
        rows = [
            Content.assemble(
                (f"/{command.name}", "bold $text-primary"),
                (f" {command.argument}".ljust(24 - len(command.name)), "$text 60%"),
                command.help,
            )
            for command in found[:6]
        ]
        if len(found) > len(rows):
            rows.append(Content.styled(f"… {len(found) - len(rows)} more; Tab completes", "$text 60%"))
        shown.update(Content("\n").join(rows))

    def action_stop(self) -> None:
        """End the reply at the next token."""
        if self.generation is not None:
            self.generation.stop()
            self.set_status(replace(self.status, state="stopping"))

    async def action_back(self) -> None:
        """Leave what is open: the edit, panels, help; at last, a model that still loads."""
        if self.editing is not None:
            self.end_editing()
            self.prompt.fill("")
        elif self._send_when_ready:  # what Enter asked for before the model was there
            self._send_when_ready = False
            self.set_status(replace(self.status, state="loading"))
        elif await self.close_panels():
            pass
        elif self.status.state == "loading" and self.focused is self.prompt and not self.prompt.text:
            await self.give_up_loading()
        self.transcript.choose(None)
        self.prompt.focus()

    async def close_panels(self) -> bool:
        """Hide sessions, side panel, lens and help; returns whether any of them was open."""
        was_open = bool(self.query("HelpPanel")) or await self.close_lens()
        self.app.action_hide_help_panel()
        for selector in ("#sessions", "#side"):
            widget = self.query_one(selector)
            was_open = was_open or widget.display
            widget.display = False
        self.side.live.is_open = False
        return was_open

    @on(messages.SettingsChanged)
    def _settings_changed(self, event: messages.SettingsChanged) -> None:
        self.settings = replace(
            self.settings, system=event.system, sampling=event.sampling, max_tokens=event.max_tokens
        )
        if self.info is not None:
            self.keep_info()
