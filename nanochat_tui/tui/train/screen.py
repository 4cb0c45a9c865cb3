"""The train mode: brings the thread that reads runs, the views and the launcher together."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.widgets import TabbedContent, TabPane

from nanochat_tui.errors import UserError
from nanochat_tui.paths import RUNS_VARIABLE
from nanochat_tui.runs.discovery import open_run
from nanochat_tui.text import counted, display_safe
from nanochat_tui.tui.keys import key_names
from nanochat_tui.tui.messages import ChatWith, ModeNews
from nanochat_tui.tui.train import messages
from nanochat_tui.tui.train.checkpoints_view import CheckpointsView
from nanochat_tui.tui.train.compare_view import CompareView
from nanochat_tui.tui.train.dashboard import Dashboard
from nanochat_tui.tui.train.jobs import Exports, run_tokenizer, shared_threads, start_export, talk_problem
from nanochat_tui.tui.train.launch_form import LaunchForm
from nanochat_tui.tui.train.palette import commands
from nanochat_tui.tui.train.run_list import RunList
from nanochat_tui.tui.train.steering import Steering
from nanochat_tui.tui.train.watcher import Watcher
from nanochat_tui.tui.widgets.dialogs import Ask, Field
from nanochat_tui.tui.widgets.key_line import KeyLine
from nanochat_tui.tui.widgets.tabs import PaneTabs

STEERING = frozenset({"checkpoint", "stop", "kill", "resume", "newest"})
"""Actions that change the open run, or use what it saved."""


def default_root() -> Path:
    """The folder in which runs are looked for when none is named."""
    named = os.environ.get(RUNS_VARIABLE)
    if named:
        return Path(named).expanduser()
    runs = Path.cwd() / "runs"
    return runs if runs.is_dir() else Path.cwd()


class TrainScreen(Steering):
    """Find runs, watch one, steer it. `root` is a folder of runs, a run directory, or a trainer's log."""

    CSS_PATH = "train.tcss"
    AUTO_FOCUS = "RunList DataTable"
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (110, "-wide")]  # noqa: RUF012 - typed by Textual
    VERTICAL_BREAKPOINTS = [(0, "-low"), (40, "-high")]  # noqa: RUF012

    HELP = """\
## Train
**Runs** lists what was found, **Dashboard** shows the open run, **Checkpoints** talks to what it saved, **Compare**
overlays the marked runs, **New run** starts one. **{train.back|Alt+←}/{train.next|Alt+→}** or Ctrl+Page up/down go from
tab to tab. A run is a process of its own: it continues when this application ends. The keys that steer it work where it
is on show, in its Dashboard and Checkpoints; the palette ({app.palette|Ctrl+P}) steers it from everywhere.
"""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("alt+right,ctrl+pagedown", "turn(1)", "Tab", key_display="Alt+→", priority=True, id="train.next"),
        Binding("alt+left,ctrl+pageup", "turn(-1)", "Previous tab", show=False, priority=True, id="train.back"),
        Binding("c", "checkpoint", "Checkpoint", id="train.checkpoint"),
        Binding("s", "stop", "Stop", id="train.stop"),
        Binding("K", "kill", "Kill", id="train.kill"),
        Binding("R", "resume", "Resume", id="train.resume"),
        Binding("t", "newest('talk')", "Talk", id="train.talk"),
        Binding("e", "newest('export')", "Export", id="train.export"),
        Binding("a", "attach", "Open", id="train.attach"),
        Binding("n", "tab('new')", "New", id="train.new"),
        Binding("r", "refresh", "Refresh", show=False, id="train.refresh"),
        # of the form, and here, so that they work wherever in its tab the focus is
        Binding("ctrl+l", "form('launch')", "Launch", id="form.launch"),
        Binding("ctrl+s", "form('save')", "Save", id="form.save"),
        Binding("escape", "form('leave')", "Leave", show=False, id="form.leave"),
    ]

    def __init__(self, root: Path | None = None) -> None:
        super().__init__()
        self.given = root
        self.root = root if root is not None and root.is_dir() else default_root()
        self.watcher = Watcher(self.root, self.post_message)
        self.exports = Exports()
        self._first_search = True
        self._before_form = "runs"
        self._working: set[str] = set()

    def compose(self) -> ComposeResult:
        """Tabs over the keys."""
        with PaneTabs(initial="runs", id="tabs"):
            with TabPane("Runs", id="runs"):
                yield RunList(self.root)
            with TabPane("Dashboard", id="dashboard"):
                yield Dashboard()
            with TabPane("Checkpoints", id="checkpoints"):
                yield CheckpointsView(self.exports)
            with TabPane("Compare", id="compare"):
                yield CompareView()
            yield TabPane("New run", id="new")
        yield KeyLine()

    def on_mount(self) -> None:
        """Begin to look."""
        self.app.mode_change_signal.subscribe(self, lambda mode: self._shown_or_not())
        self.query_one(CheckpointsView).threads = lambda: shared_threads(self.runs.runs)
        self.watcher.start()
        if self.given is not None and self.given.is_file():
            self.open_path(self.given)

    def on_unmount(self) -> None:
        """End the thread; runs go on."""
        self.watcher.close()
        self.exports.close()

    def _shown_or_not(self) -> None:
        """Read all there is while the mode is on show, be it behind a question; else only whether runs have ended."""
        away = self not in self.app.screen_stack
        self.watcher.pause(away)
        if not away:
            self.app.post_message(ModeNews("train", ""))

    def on_screen_suspend(self) -> None:
        """Another mode or a question is on show."""
        self._shown_or_not()

    def on_screen_resume(self) -> None:
        """Look again."""
        self._shown_or_not()

    # parts

    @property
    def runs(self) -> RunList:
        """The table of runs."""
        return self.query_one(RunList)

    @property
    def dashboard(self) -> Dashboard:
        """The view of the open run."""
        return self.query_one(Dashboard)

    @property
    def tabs(self) -> TabbedContent:
        """The tabs."""
        return self.query_one("#tabs", TabbedContent)

    # what the thread found

    @on(messages.RunsFound)
    def _found(self, event: messages.RunsFound) -> None:
        self.runs.show(event.runs)
        if self._first_search:
            self._first_search = False
            only = event.runs[0] if len(event.runs) == 1 else None
            if self.opened is None and only is not None and only.path == self.root:
                self.open_path(only.path)  # the folder that was given is itself a run

    @on(messages.RunSeen)
    def _seen(self, event: messages.RunSeen) -> None:
        if event.snapshot.path != self.opened:
            return
        before = self.seen
        self.seen = event.snapshot
        self.dashboard.show(event.snapshot, event.panels, self.follow_request(event.snapshot))
        self.query_one(CheckpointsView).show(event.snapshot)
        changed = before is not None and before.state.life != event.snapshot.state.life
        if before is None or changed or len(before.checkpoints) != len(event.snapshot.checkpoints):
            self.refresh_bindings()
        if changed:
            self.watcher.search()

    @on(messages.RunEnded)
    def _ended(self, event: messages.RunEnded) -> None:
        """A run of hours has ended: said wherever one is, and on the mode's key until the mode is visited."""
        run, state = event.run, event.run.state
        how = f"{run.name} {state.life} at step {state.step:,}"
        bad = state.life in ("crashed", "failed", "stalled")
        if bad:
            advice = (
                "its process lives and does nothing"
                if state.life == "stalled"
                else key_names(self)("resume it ({app.train|F4}, {train.resume|R})")
            )
            text = f"{how}: {state.error}" if state.error else f"{how}; {advice}."
            self.notify(display_safe(text, 600), severity="error", markup=False, timeout=15)
        elif self not in self.app.screen_stack:
            self.notify(display_safe(f"{how}.", 600), markup=False, timeout=15)
        else:
            return  # it stands on the screen
        self.app.bell()
        if self not in self.app.screen_stack:
            self.app.post_message(ModeNews("train", "✗" if bad else "✓"))

    @on(messages.RunsCompared)
    def _compared(self, event: messages.RunsCompared) -> None:
        self.query_one(CompareView).show(event.runs)

    @on(RunList.MarksChanged)
    def _marked(self, event: RunList.MarksChanged) -> None:
        self.watcher.compare(event.marked)
        if not event.marked:
            self.query_one(CompareView).show([])

    # tabs

    @on(TabbedContent.TabActivated)
    async def _tab_shown(self, event: TabbedContent.TabActivated) -> None:
        """Put the focus where a tab is used; the form, with its many fields, is made at the first visit."""
        name = event.pane.id
        if name != "new":
            self._before_form = name or "runs"
        if name == "new":
            if not self.query(LaunchForm):
                await event.pane.mount(LaunchForm(self.root))
            self.query_one(LaunchForm).focus_first()
        elif name == "runs":
            self.runs.table.focus()
        elif name == "dashboard":
            self.dashboard.action_panel(self.dashboard.current)
        elif name == "checkpoints":
            self.query_one(CheckpointsView).table.focus()
        elif name == "compare":
            self.query_one("#compare-chart").focus()
        self.refresh_bindings()

    @on(messages.WatchFailed)
    def _watch_failed(self, event: messages.WatchFailed) -> None:
        self.complain(f"{event.text} (r tries again)")

    # opening

    def open_path(self, path: Path) -> None:
        """Open a run directory or a log file and show it; what is neither is said."""
        try:
            run = open_run(path)
        except (UserError, OSError) as error:
            self.complain(error)
            return
        self.runs.add(run)
        self.watcher.add(run)
        self._show_run(run.path, run.name)

    def _show_run(self, path: Path, name: str) -> None:
        self.opened = path
        self.seen = None
        self.watcher.open(path, name)
        self.tabs.active = "dashboard"

    @on(RunList.Opened)
    def _opened(self, event: RunList.Opened) -> None:
        self._show_run(event.path, event.name)

    @on(Dashboard.MhcWanted)
    def _mhc_wanted(self, event: Dashboard.MhcWanted) -> None:
        self.watcher.show_mhc(event.value)

    # actions

    def can(self, action: str) -> bool:
        """Whether the open run can do something now, wherever one looks."""
        seen = self.seen
        if action in ("checkpoint", "stop", "kill"):
            return seen is not None and seen.state.alive
        if action == "newest":
            return seen is not None and bool(seen.checkpoints)
        if action == "resume":
            return seen is not None and not seen.state.alive and bool(seen.checkpoints)
        return True

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Let keys steer the open run only where it is on show: in the list another one may be under the cursor, and
        in the form a letter that misses its field must not end a training.
        """
        if action == "form":
            return self.is_mounted and self.tabs.active == "new"
        if action in STEERING:
            tab = self.tabs.active if self.is_mounted else "runs"
            if tab not in ("dashboard", "checkpoints"):
                return None if tab == "runs" else False
            return True if self.can(action) else None
        return True

    def action_tab(self, name: str) -> None:
        """Go to a tab."""
        self.tabs.active = name

    def action_turn(self, by: int) -> None:
        """Go to the next or previous tab."""
        names = [pane.id or "" for pane in self.query(TabPane)]
        self.tabs.active = names[(names.index(self.tabs.active) + by) % len(names)]

    def action_form(self, what: str) -> None:
        """Launch or save what the form holds, or leave it as it is."""
        for form in self.query(LaunchForm):
            if what == "launch":
                form.action_launch()
            elif what == "save":
                form.action_save()
            else:
                self.tabs.active = self._before_form

    def action_refresh(self) -> None:
        """Search again and look again."""
        self.watcher.search()

    def action_attach(self) -> None:
        """Open a run that is somewhere else."""

        def check(values: list[str]) -> None:
            open_run(Path(values[0]))

        def go(values: list[str] | None) -> None:
            if values:
                self.open_path(Path(values[0]).expanduser())

        title = "Open a run directory, or a log of the original trainer"
        fields = [Field(str(self.root) + os.sep, "path")]
        self.app.push_screen(Ask(title, fields, check=check, button="Open"), go)

    # the form and the checkpoints

    @on(messages.CheckpointChosen)
    def _checkpoint_chosen(self, event: messages.CheckpointChosen) -> None:
        config = self.seen.config if self.seen is not None else {}
        tokenizer, problem = run_tokenizer(config), talk_problem(config)
        if problem is not None:
            self.complain(problem)
            return
        if event.what == "export":
            self._ask_export(event.path, tokenizer)
            return
        job = f"talk {event.path}"
        if job not in self._working:
            self._working.add(job)
            self.say(f"Exporting {event.path.name} to talk to it …")
            start_export(self.exports, event.path, None, tokenizer, job, self.post_message)

    def action_newest(self, what: str) -> None:
        """Talk to the open run's newest checkpoint, or export it."""
        if self.seen is not None and self.seen.checkpoints:
            newest = max(self.seen.checkpoints, key=lambda c: (c.step, c.modified))
            self.post_message(messages.CheckpointChosen(newest.path, what))

    def _ask_export(self, checkpoint: Path, tokenizer: Path | None) -> None:
        def check(values: list[str]) -> None:
            target = Path(values[0]).expanduser()
            if target.suffix != ".gguf":
                raise UserError("the file's name must end in .gguf")
            if target.exists():
                raise UserError("that file exists already; name another")

        def go(values: list[str] | None) -> None:
            if values:
                target = Path(values[0]).expanduser()
                self.say(f"Exporting {checkpoint.name} and comparing it with the checkpoint …")
                start_export(self.exports, checkpoint, target, tokenizer, f"export {target}", self.post_message)

        proposal = checkpoint.parent / f"{checkpoint.parent.name}-{checkpoint.name}.gguf"
        fields = [Field(str(proposal), "GGUF file")]
        self.app.push_screen(Ask(f"Export {checkpoint.name}", fields, check=check, button="Export"), go)

    @on(messages.JobEnded)
    def _job_ended(self, event: messages.JobEnded) -> None:
        self._working.discard(event.job)
        if event.error is not None or event.gguf is None:
            self.complain(event.error or "the export failed")
        elif event.job.startswith("talk"):
            # the file holds its mHC records itself, so there is no sidecar to name
            threads = shared_threads(self.runs.runs)
            note = (
                f"A run computes on this machine, so this chat takes {counted(threads, 'thread')} only; "
                "opened again when no run is alive, it takes as many as usual."
                if threads is not None
                else ""
            )
            self.app.post_message(ChatWith(event.gguf, None, threads, note))
        else:
            self.notify("\n".join(map(display_safe, event.report)), title="Exported", markup=False, timeout=12)

    def palette_commands(self) -> Iterable[tuple[str, str, Callable[[], object]]]:
        """Every action that makes sense now, for the palette."""
        return commands(self)
