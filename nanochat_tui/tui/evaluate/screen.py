"""The evaluate mode: finds kept evaluations again and again, and brings list, samples, comparison and form together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.content import Content
from textual.screen import Screen
from textual.widgets import Static, TabbedContent, TabPane

from nanochat_tui.errors import UserError
from nanochat_tui.evaluate import kept as shelf
from nanochat_tui.evaluate.comparing import compare, compare_parts, open_pair
from nanochat_tui.evaluate.kept import Kept, Shelf, read_problems
from nanochat_tui.text import display_safe
from nanochat_tui.tui.background import Job
from nanochat_tui.tui.evaluate.form import StartForm
from nanochat_tui.tui.evaluate.kept_list import KeptList
from nanochat_tui.tui.evaluate.samples import SamplesView
from nanochat_tui.tui.evaluate.words import comparison_content, different_verdicts, rate_text
from nanochat_tui.tui.keys import key_names
from nanochat_tui.tui.messages import ModeNews
from nanochat_tui.tui.widgets.key_line import KeyLine
from nanochat_tui.tui.widgets.tabs import PaneTabs

LOOK_SECONDS, AWAY_SECONDS = 1.0, 5.0
"""Time between two looks at the folder while the mode is on show, and while it is not and something runs."""
Seen = tuple[list[Kept], Path | None, Mapping[str, Mapping[str, Any]] | None]
"""What is kept, and the problems of the evaluation that is read, where they were asked for."""


class EvaluateScreen(Screen[None]):
    """Start evaluations, watch them, read samples, compare models. `root` is the folder of evaluations; model and
    server are what the form begins with.
    """

    CSS_PATH = "evaluate.tcss"
    AUTO_FOCUS = "KeptList DataTable"
    VERTICAL_BREAKPOINTS = [(0, "-low"), (40, "-high")]  # noqa: RUF012 - typed by Textual

    HELP = """\
## Evaluate
**Evaluations** lists what is kept, **Samples** reads one completion after the other, **Compare** pairs the two that are
marked, **New** starts one. **{evaluate.back|Alt+←}/{evaluate.next|Alt+→}** or Ctrl+Page up/down go from tab to tab. An
evaluation is a process of its own: it continues when this application ends.
"""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("alt+right,ctrl+pagedown", "turn(1)", "Tab", key_display="Alt+→", priority=True, id="evaluate.next"),
        Binding("alt+left,ctrl+pageup", "turn(-1)", "Previous tab", show=False, priority=True, id="evaluate.back"),
        Binding("s", "stop", "Stop", id="evaluate.stop"),
        Binding("R", "resume", "Resume", id="evaluate.resume"),
        Binding("n", "tab('new')", "New", id="evaluate.new"),
        Binding("r", "refresh", "Refresh", show=False, id="evaluate.refresh"),
        Binding("ctrl+l", "launch", "Start", id="evaluate.launch"),
        Binding("escape", "leave", "Leave", show=False, id="evaluate.leave"),
    ]

    def __init__(self, root: Path, model: str = "", server: str = "") -> None:
        super().__init__()
        self.root = root
        self._shelf = Shelf(root)
        self._model, self._server = model, server
        self._looking: Job[Seen] | None = None
        self._comparing: Job[Content] | None = None
        self._opened: Path | None = None
        self._wanted: Path | None = None
        """An evaluation that was started and is to be under the cursor once it is seen."""
        self._states: dict[Path, str] = {}
        self._looks = 0

    def compose(self) -> ComposeResult:
        """Tabs over the keys."""
        with PaneTabs(initial="kept", id="tabs"):
            with TabPane("Evaluations", id="kept"):
                yield KeptList(self.root)
            with TabPane("Samples", id="samples"):
                yield SamplesView()
            with TabPane("Compare", id="compare"), VerticalScroll(id="compare-text"):
                yield Static("", markup=False)
            with TabPane("New", id="new"):
                yield StartForm(self.root, self._model, self._server)
        yield KeyLine()

    def on_mount(self) -> None:
        """Begin to look."""
        self._show_comparison(self._how_to_compare())
        self.set_interval(LOOK_SECONDS, self._tick)
        self.look()

    def on_unmount(self) -> None:
        """Hear no more of what is looked for; evaluations continue."""
        for job in (self._looking, self._comparing):
            if job is not None:
                job.stop()

    def on_screen_resume(self) -> None:
        """Look again, and take the sign from the mode's key."""
        self.app.post_message(ModeNews("evaluate", ""))
        self.look()

    # parts

    @property
    def list(self) -> KeptList:
        """The table of evaluations."""
        return self.query_one(KeptList)

    @property
    def samples(self) -> SamplesView:
        """The samples of the opened evaluation."""
        return self.query_one(SamplesView)

    @property
    def form(self) -> StartForm:
        """The form of a new evaluation."""
        return self.query_one(StartForm)

    @property
    def tabs(self) -> TabbedContent:
        """The tabs."""
        return self.query_one("#tabs", TabbedContent)

    @property
    def is_away(self) -> bool:
        """Whether another mode is on show."""
        return self not in self.app.screen_stack

    # looking

    def _tick(self) -> None:
        self._looks += 1
        running = any(state in ("running", "starting") for state in self._states.values())
        if not self.is_away or (running and self._looks % round(AWAY_SECONDS / LOOK_SECONDS) == 0):
            self.look()

    def look(self) -> None:
        """Look at the folder in a thread, unless that is being done."""
        if self._looking is not None and self._looking.is_working:
            return
        opened = self._opened
        fresh = opened is not None and not self.samples.knows_problems

        def work(_: Job[Seen]) -> Seen:
            problems = read_problems(opened) if opened is not None and fresh else None
            return self._shelf.look(), opened, problems

        self._looking = Job(self, work, self._seen, self._failed, name="evaluations").start()

    def _failed(self, text: str) -> None:
        self.notify(text, severity="error", markup=False)

    def _seen(self, seen: Seen) -> None:
        found, opened, problems = seen
        self.list.show(found)
        if self._wanted is not None and any(one.path == self._wanted for one in found):
            self.list.choose(self._wanted)
            self._wanted = None
        one = next((one for one in found if one.path == opened), None)
        if one is not None and opened == self._opened:
            if self.samples.path != opened:
                self.samples.open(one, problems or {})
            elif len(one.rows) != self.samples.count or problems is not None:
                self.samples.update(one, problems)
        before, self._states = self._states, {one.path: one.state for one in found}
        for one in found:
            if before.get(one.path) in ("running", "starting") and one.state in ("finished", "failed"):
                self._say_end(one)
        self.refresh_bindings()

    def _say_end(self, one: Kept) -> None:
        """An evaluation of minutes or hours has ended: said wherever one is."""
        bad = one.state == "failed"
        how = f"{one.name} failed: {one.failure}" if bad else f"{one.name} is finished: passed {rate_text(one)}"
        self.app.notify(display_safe(how, 500), severity="error" if bad else "information", markup=False, timeout=12)
        if self.is_away:
            self.app.post_message(ModeNews("evaluate", "✗" if bad else "✓"))

    # tabs

    @on(TabbedContent.TabActivated)
    def _tab_shown(self, event: TabbedContent.TabActivated) -> None:
        name = event.pane.id
        if name == "kept":
            self.list.table.focus()
        elif name == "samples":
            if self._opened is None and (one := self.list.selected) is not None:
                self._open(one)
            self.samples.table.focus()
        elif name == "compare":
            self.query_one("#compare-text").focus()
        else:
            self.form.focus_first()
        self.refresh_bindings()

    def action_tab(self, name: str) -> None:
        """Go to a tab."""
        self.tabs.active = name

    def action_turn(self, by: int) -> None:
        """Go to the next or previous tab."""
        names = [pane.id or "" for pane in self.query(TabPane)]
        self.tabs.active = names[(names.index(self.tabs.active) + by) % len(names)]

    def action_leave(self) -> None:
        """Go back to the list."""
        self.tabs.active = "kept"

    # reading and comparing

    @on(KeptList.Opened)
    def _read(self, event: KeptList.Opened) -> None:
        one = next((one for one in self.list.kept if one.path == event.path), None)
        if one is not None:
            self._open(one)
            self.tabs.active = "samples"

    def _open(self, one: Kept) -> None:
        self._opened = one.path
        self.samples.open(one, {})
        self._looking = None  # the one under way does not know yet which problems are wanted
        self.look()

    @on(KeptList.MarksChanged)
    def _marked(self, event: KeptList.MarksChanged) -> None:
        if len(event.marked) < 2:
            self._show_comparison(self._how_to_compare())
            return
        first, second = event.marked
        kept = {one.path: one for one in self.list.kept}
        a, b = kept[first], kept[second]

        def work(_: Job[Content]) -> Content:
            both, different = open_pair(first, second)
            rows_a, rows_b = both[0][1], both[1][1]
            names = [f"{one.model or one.name} ({one.name})" for one in (a, b)]
            parts = compare_parts(rows_a, rows_b, a.parts)
            pairs = different_verdicts(rows_a, rows_b)
            return comparison_content(names, compare(rows_a, rows_b), parts, different, pairs)

        if self._comparing is not None:
            self._comparing.stop()
        self._show_comparison(Content("comparing …"))
        self._comparing = Job(self, work, self._show_comparison, self._not_compared, name="compare").start()

    def _not_compared(self, text: str) -> None:
        self._show_comparison(Content.styled(display_safe(text, 400), "$text-error"))

    def _show_comparison(self, content: Content) -> None:
        self.query_one("#compare-text Static", Static).update(content)

    def _how_to_compare(self) -> Content:
        text = key_names(self)("mark two evaluations of the same problems with {evaluate.mark|Space} in the list")
        return Content.styled(text, "$text 60%")

    # starting, stopping, continuing

    @on(StartForm.Wanted)
    def _start(self, event: StartForm.Wanted) -> None:
        self._launched(event.start.folder, lambda: shelf.start(event.start.arguments, event.start.folder))

    def _launched(self, folder: Path, launch: Callable[[], object]) -> None:
        try:
            launch()
        except (UserError, OSError) as error:
            self.notify(display_safe(str(error), 400), severity="error", markup=False, timeout=8)
            return
        self._wanted = folder
        self._states[folder] = "starting"
        self.tabs.active = "kept"
        self.notify(display_safe(f"{folder.name} is started."), markup=False, timeout=3)
        self.look()

    def _chosen(self) -> Kept | None:
        """The evaluation that the keys act on: the one that is read, else the one under the cursor."""
        if self.is_mounted and self.tabs.active == "samples":
            return next((one for one in self.list.kept if one.path == self._opened), None)
        return self.list.selected if self.is_mounted else None

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Offer what makes sense for the chosen evaluation and on this tab."""
        if not self.is_mounted:
            return True
        active = self.tabs.active
        if action == "launch":
            return active == "new"
        if action in ("stop", "resume"):
            if active not in ("kept", "samples"):
                return False
            one = self._chosen()
            alive = one is not None and one.state in ("running", "starting")
            can = alive if action == "stop" else one is not None and not alive and one.state != "finished"
            return True if can else None
        return True

    def action_launch(self) -> None:
        """Start what the form says."""
        self.form.launch()

    def action_stop(self) -> None:
        """Interrupt the chosen evaluation; what is judged is kept."""
        one = self._chosen()
        if one is not None and shelf.stop(one.path):
            self.notify(
                display_safe(one.name) + key_names(self)(" ends; {evaluate.resume|R} continues it."), markup=False
            )
        self.look()

    def action_resume(self) -> None:
        """Continue the chosen evaluation."""
        one = self._chosen()
        if one is not None:
            self._launched(one.path, lambda: shelf.resume(one))

    def action_refresh(self) -> None:
        """Look again."""
        self.look()

    def palette_commands(self) -> Iterable[tuple[str, str, Callable[[], object]]]:
        """What makes sense now, for the palette."""
        for action, title, text in (
            ("stop", "Stop the evaluation", "What is judged is kept"),
            ("resume", "Continue the evaluation", "From where it was stopped"),
        ):
            if self.check_action(action, ()):
                yield title, text, getattr(self, f"action_{action}")
        yield "New evaluation", "Choose model, problems and temperature", lambda: self.action_tab("new")
        yield "Read samples", "Completions with their verdicts", lambda: self.action_tab("samples")
        yield "Compare evaluations", "The two that are marked", lambda: self.action_tab("compare")
