"""The chat mode: puts its parts together and hands each message to the part it is for."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import ClassVar, TypeVar

from textual import on
from textual.actions import SkipAction
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container
from textual.events import Key, Paste
from textual.screen import Screen
from textual.widgets import Input, Static, TextArea

from nanochat_tui.chat.backend import Backend
from nanochat_tui.chat.store import Store
from nanochat_tui.errors import UserError
from nanochat_tui.text import counted
from nanochat_tui.tui import messages
from nanochat_tui.tui.chat import commands
from nanochat_tui.tui.chat.act import Act, plain
from nanochat_tui.tui.chat.actions import ChatParts
from nanochat_tui.tui.chat.command_runner import OF_THE_APPLICATION, CommandRunner
from nanochat_tui.tui.chat.completing import completed, is_command_line
from nanochat_tui.tui.chat.experience_actions import ExperienceActions
from nanochat_tui.tui.chat.lens_pane import LensPane
from nanochat_tui.tui.chat.lens_view import TokenRibbon
from nanochat_tui.tui.chat.model_actions import ModelActions
from nanochat_tui.tui.chat.model_slot import ModelSlot
from nanochat_tui.tui.chat.prompt import Prompt
from nanochat_tui.tui.chat.replies import ReplyRunner
from nanochat_tui.tui.chat.session import ChatSession
from nanochat_tui.tui.chat.session_actions import SessionActions
from nanochat_tui.tui.chat.session_flow import SessionFlow
from nanochat_tui.tui.chat.session_list import SessionList
from nanochat_tui.tui.chat.settings_actions import SettingsActions
from nanochat_tui.tui.chat.tool_actions import ToolActions
from nanochat_tui.tui.chat.tool_slot import ToolSlot
from nanochat_tui.tui.chat.transcript import Transcript
from nanochat_tui.tui.chat.turn_actions import TurnActions
from nanochat_tui.tui.chat.view import Answered, ChatView
from nanochat_tui.tui.clipboard import copy_natively
from nanochat_tui.tui.keys import KeyNames, key_names
from nanochat_tui.tui.preferences import Preferences
from nanochat_tui.tui.widgets.key_line import KeyLine
from nanochat_tui.tui.widgets.status import Status, StatusLine

DRAFT_SECONDS = 0.7
T = TypeVar("T")


class ChatScreen(Screen[None]):
    """Type, see the reply being written, stop it, try again."""

    CSS_PATH = ["chat.tcss", "side.tcss"]  # noqa: RUF012
    AUTO_FOCUS = "#prompt"
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (100, "-wide")]  # noqa: RUF012 - typed by Textual
    VERTICAL_BREAKPOINTS = [(0, "-low"), (24, "-high")]  # noqa: RUF012

    HELP = """\
## Chat
A **base model** continues text: what you type is the beginning, and everything in the transcript is one document that
grows. **{prompt.send|Enter}** on an empty input continues it. So that small models do not fall into loops, completions
begin with a repeat penalty of 1.1 ({chat.settings|Ctrl+S} changes it for the session, {app.preferences|F9} for new
ones). A model with a chat template answers messages instead.

**{chat.stop|Esc}** stops a reply, **{chat.again|Ctrl+R}** writes it again, **{chat.copy|Ctrl+Y}** copies it,
**{chat.new|Ctrl+N}** starts over, **{chat.sessions|Ctrl+O}** lists and searches all sessions,
**{chat.settings|Ctrl+S}** opens the settings of this one, **{chat.model|Ctrl+G}** chooses a model, **{chat.lens|F5}**
shows how likely each token was, **{chat.live|Ctrl+L}** what the model does. **/** begins a command;
**{app.palette|Ctrl+P}** finds every command. The line at the bottom shows the speed and how much of the context is
used; when the context is full, the oldest text no longer reaches the model, and a note says so.

A chat model may call tools of MCP servers, which your own `mcp.json` names; each call is asked about. **/tools** lists
them.
"""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "command('stop')", "Stop", priority=True, id="chat.stop"),
        Binding("escape", "command('back')", "Back", priority=True, show=False, id="chat.back"),
        Binding("ctrl+r", "command('retry')", "Again", priority=True, id="chat.again"),
        Binding("ctrl+n", "command('new')", "New", priority=True, id="chat.new"),
        Binding("ctrl+o", "command('sessions')", "Sessions", priority=True, id="chat.sessions"),
        Binding("ctrl+s", "command('settings')", "Settings", priority=True, id="chat.settings"),
        Binding("f5", "command('lens')", "Lens", priority=True, id="chat.lens"),
        Binding("ctrl+l", "command('live')", "Live", priority=True, show=False, id="chat.live"),
        Binding("ctrl+y", "command('copy')", "Copy", priority=True, show=False, id="chat.copy"),
        Binding("ctrl+g", "command('model')", "Model", priority=True, show=False, id="chat.model"),
        Binding("alt+left", "command('earlier')", "Earlier version", show=False, id="chat.earlier_version"),
        Binding("alt+right", "command('later')", "Later version", show=False, id="chat.later_version"),
    ]

    def __init__(
        self,
        backend: Backend,
        store: Store | None = None,
        preferences: Preferences | None = None,
        tools: ToolSlot | None = None,
    ) -> None:
        super().__init__()
        self.tools = tools or ToolSlot()
        self.session = session = ChatSession(store or Store(None), preferences or Preferences(), backend.name)
        self.model = model = ModelSlot(backend, self.post_message)
        self.view = view = ChatView(session, model, self)
        self.lens: LensPane
        self.sessions = SessionList(session.store, session.preferences.chat.order, id="sessions")
        self.replies = replies = ReplyRunner(
            session, model, view, self, lambda: self.lens.wants_alternatives, self.tools
        )
        self.lens = LensPane(session, model, view.transcript, replies.writes)
        self.flow = flow = SessionFlow(session, model, replies, view, self.sessions, self)
        parts = ChatParts(session, model, replies, flow, view, self)
        self.turns, self.models = TurnActions(parts, self.lens.close), ModelActions(parts)
        self.changes, settings = SessionActions(parts), SettingsActions(parts)
        rules = ExperienceActions(parts)
        offering = (flow, self.turns, self.models, self.changes, settings, rules, ToolActions(parts, self.tools), self)
        self.commands = CommandRunner({name: act for part in offering for name, act in part.acts().items()}, view, self)
        self.status = Status(backend.name)
        self._offered: tuple[bool, ...] = ()
        self._ways: list[str] = []
        """How the line may continue that Tab could not complete."""
        self._completed_line = ""

    def acts(self) -> dict[str, Act]:
        """The screen's own commands, and those it hands to the application, by their names."""
        for_app = {name: Act(partial(self._ask_application, name)) for name in OF_THE_APPLICATION}
        return for_app | {
            "stop": Act(plain(self.replies.stop), lambda: self.replies.is_writing),
            "back": Act(plain(self._back), lambda: not self.replies.is_writing),
            "lens": Act(plain(self._toggle_lens), lambda: True if self.session.conversation.last is not None else None),
            "write": Act(plain(self.prompt.focus)),
        }

    def compose(self) -> ComposeResult:
        """Lay out sessions, transcript and settings above the input, the status and the keys."""
        with Container(id="body"):
            yield self.sessions
            yield self.transcript
            yield self.view.side
        yield self.lens
        yield Static(id="suggestions", markup=False)
        yield self.prompt
        yield StatusLine(id="status")
        yield KeyLine()

    async def on_mount(self) -> None:
        """Paint, and only then begin to load."""
        self.prompt.border_title = "Write"
        self.transcript.unfolded = self.session.preferences.appearance.unfold_thinking
        await self.models.begin()
        self.call_after_refresh(self._remember)

    async def _remember(self) -> None:
        self.session.store.listen(lambda text: self.post_message(messages.StoreProblem(text)))
        await self.flow.resume_last()
        await self.flow.recall_prompts()

    @property
    def transcript(self) -> Transcript:
        """The scrolling part."""
        return self.view.transcript

    @property
    def prompt(self) -> Prompt:
        """The input."""
        return self.view.prompt

    def leave_session(self) -> None:
        """Save what is typed; what was said is saved already."""
        if self.prompt.is_attached:
            self.flow.leave()

    def close(self) -> None:
        """Stop the threads, waiting for those that can be waited for; what was said is on the disk then."""
        self.model.loader.stop()
        self.replies.abandon(1.0)
        self.leave_session()
        self.session.store.close()
        self.tools.close()

    @property
    def is_working(self) -> bool:
        """Whether a thread still computes."""
        return self.model.loader.is_working or self.replies.is_working

    # What the parts ask of the screen (`Desk`)

    @property
    def keys(self) -> KeyNames:
        """What keys are called."""
        return key_names(self)

    def set_status(self, status: Status) -> None:
        """Change the status line, and with the state the keys that make sense."""
        store, session = self.session.store, self.session
        rules = session.experience_name
        self.status = replace(status, unsaved=not store.saves and store.path is not None, experience=rules)
        self.query_one("#status", StatusLine).status = self.status
        # the footer is made again for it, which takes as long as a hundred tokens: only when other keys make sense
        offered = (
            self.replies.is_writing,
            self.model.ready,
            bool(session.conversation.turns),
            session.info is None,
        )
        if offered != self._offered:
            self._offered = offered
            self.refresh_bindings()

    def ask(self, dialog: Screen[T], answered: Answered[T]) -> None:
        """Show a dialog and hand its result on."""
        self.app.push_screen(dialog, answered)

    def bell(self) -> None:
        """A key makes no sense now."""
        self.app.bell()

    def later(self, step: Callable[[], object]) -> None:
        """Do something after the next paint."""
        self.call_after_refresh(step)

    def copy(self, text: str, what: str) -> None:
        """Put `text` on the clipboard: the desktop's own and, by escape sequence, the terminal's."""
        self.app.copy_to_clipboard(text)
        copy_natively(text)
        self.notify(f"Copied the {what}: {counted(len(text), 'character')}.", timeout=2, markup=False)

    # Keys and commands

    async def action_command(self, name: str) -> None:
        """Do what a key stands for."""
        await self.commands.do(name)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Offer only what makes sense now; None shows a key dimmed."""
        return self.commands.possible(str(parameters[0])) if action == "command" else True

    def palette_commands(self) -> Iterable[tuple[str, str, Callable[[], object]]]:
        """Every command that makes sense now."""
        return self.commands.palette()

    async def _ask_application(self, name: str, _: str) -> None:
        await self.run_action(f"app.{'show_log' if name == 'log' else name}")

    def action_copy_text(self) -> None:
        """Copy what is selected with the mouse."""
        text = self.get_selected_text()
        if text is None:
            raise SkipAction
        self.copy(text, "selection")

    async def _toggle_lens(self) -> None:
        turn = self.view.chosen_turn
        if await self.lens.close():
            self.prompt.focus()
        elif turn is not None:
            await self.lens.open(turn)

    async def _back(self) -> None:
        """Leave what is open: the edit, panels, help; at last, a model that still loads."""
        if self.session.draft.editing is not None:
            self.prompt.past.add(self.prompt.full_text)
            self.prompt.fill("")
            self.view.end_editing()
        elif self.replies.send_when_ready:  # what Enter asked for before the model was there
            self.replies.send_when_ready = False
            self.set_status(replace(self.status, state="loading"))
        elif await self._close_panels():
            pass
        elif self.status.state == "loading" and self.focused is self.prompt and not self.prompt.text:
            await self.models.give_up()
        self.transcript.choose(None)
        self.prompt.focus()

    async def _close_panels(self) -> bool:
        """Hide sessions, side panel, lens and help; returns whether any of them was open."""
        was_open = bool(self.query("HelpPanel")) or await self.lens.close()
        self.app.action_hide_help_panel()
        for panel in (self.sessions, self.view.side):
            was_open = was_open or panel.display
            panel.display = False
        self.view.side.live.is_open = False
        return was_open

    def on_key(self, event: Key) -> None:
        """Let typing go to the input even while the transcript has the focus, but for the keys that mean something."""
        if event.key in self.active_bindings:
            return
        if self.focused is self.transcript and event.is_printable and event.character and not self.prompt.disabled:
            event.stop()
            self.prompt.focus()
            self.prompt.insert(event.character)

    def on_paste(self, event: Paste) -> None:
        """Let a paste go where typing goes."""
        if not isinstance(self.focused, (Input, TextArea)) and not self.prompt.disabled:
            event.stop()
            self.prompt.focus()
            self.prompt.post_message(Paste(event.text))

    # The input

    @on(messages.PromptSubmitted)
    async def _submitted(self, event: messages.PromptSubmitted) -> None:
        try:
            command = commands.parse(event.text)
        except UserError as exc:
            self.view.say_error(str(exc))
            return
        editing = self.session.draft.editing
        if command is not None:
            self.prompt.sent()
            await self.commands.run(*command)
        elif editing is None or not self.model.ready or self.replies.is_writing:
            await self.replies.send(event.text)
        elif event.text.strip():
            await self.turns.resend(editing, event.text)

    @on(TextArea.Changed, "#prompt")
    def _typed(self) -> None:
        if self.prompt.text != self._completed_line:
            self._ways = []
        self._suggest(self.prompt.text)
        self.set_timer(DRAFT_SECONDS, self._keep_draft)

    def _keep_draft(self) -> None:
        self.session.keep_draft(self.view.draft)

    @on(Prompt.Complete)
    def _complete(self, event: Prompt.Complete) -> None:
        if not is_command_line(event.text):
            self.focus_next() if event.step > 0 else self.focus_previous()
            return
        line, ways = completed(event.text) if event.step > 0 else (event.text, [])
        if line != event.text:
            self.prompt.fill(line)
        elif not ways:
            self.bell()
        self._ways, self._completed_line = ways, line
        self._suggest(line)

    def _suggest(self, text: str) -> None:
        """Show above the input which commands it may become."""
        found = self.commands.suggested(text, self._ways, self.size.width)
        shown = self.query_one("#suggestions", Static)
        shown.display = found is not None
        if found is not None:
            shown.update(found)

    # Messages to the parts

    @on(messages.BackendMessage)
    async def _model_says(self, event: messages.BackendMessage) -> None:
        await self.models.take(event)

    @on(messages.ReplyMessage)
    async def _reply_says(self, event: messages.ReplyMessage) -> None:
        if not await self.replies.take(event) or isinstance(event, messages.ReplyStarted | messages.ReplyStats):
            return
        self.lens.reply_grew()
        if isinstance(event, messages.ReplyEnded):
            self.view.side.live.look_inside(at_once=True)
            await self.flow.list_changed()

    @on(messages.StoreProblem)
    def _store_problem(self, event: messages.StoreProblem) -> None:
        self.notify(event.text, severity="warning", timeout=12, markup=False)
        self.set_status(self.status)

    @on(messages.SessionChosen)
    async def _session_chosen(self, event: messages.SessionChosen) -> None:
        await self.flow.chosen(event.session, event.position)
        if self.has_class("-narrow"):
            self.sessions.display = False
        self.prompt.focus()

    @on(messages.SessionAction)
    async def _session_action(self, event: messages.SessionAction) -> None:
        await self.changes.change(event.action, event.session)

    @on(messages.SettingsChanged)
    def _settings_changed(self, event: messages.SettingsChanged) -> None:
        self.session.change_settings(system=event.system, sampling=event.sampling, max_tokens=event.max_tokens)

    @on(TokenRibbon.Moved)
    def _lens_moved(self, event: TokenRibbon.Moved) -> None:
        self.lens.follow(event.ribbon)

    @on(Transcript.Cleared)
    async def _transcript_cleared(self) -> None:
        await self.lens.close_without_ribbon()

    @on(messages.BranchChosen)
    async def _branch(self, event: messages.BranchChosen) -> None:
        turn = await self.turns.branch(event.turn, event.at, event.token)
        if turn is not None:
            await self.lens.open(turn)
