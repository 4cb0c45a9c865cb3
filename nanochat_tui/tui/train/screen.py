"""The train mode: brings the thread that reads runs, the views and the launcher together."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, ClassVar

from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.screen import Screen
from textual.widgets import TabbedContent, TabPane

from nanochat_tui.errors import UserError, display_safe
from nanochat_tui.runs import launcher, signals
from nanochat_tui.runs.discovery import open_run
from nanochat_tui.runs.watch import Snapshot
from nanochat_tui.tui.messages import ChatWith
from nanochat_tui.tui.train import messages
from nanochat_tui.tui.train.checkpoints_view import CheckpointsView
from nanochat_tui.tui.train.compare_view import CompareView
from nanochat_tui.tui.train.dashboard import Dashboard
from nanochat_tui.tui.train.dialogs import Ask, Confirm
from nanochat_tui.tui.train.jobs import Exports, in_thread, run_tokenizer, start_export, talk_problem
from nanochat_tui.tui.train.launch_form import LaunchForm
from nanochat_tui.tui.train.palette import commands
from nanochat_tui.tui.train.run_list import RunList
from nanochat_tui.tui.train.watcher import Watcher
from nanochat_tui.tui.widgets.key_line import KeyLine

STEERING = frozenset({"checkpoint", "stop", "kill", "resume", "newest"})
"""Actions that change the open run, or use what it saved."""
RUNS_VARIABLE = "NANOCHAT_RUNS"
"""Folder of runs when none is given; otherwise ./runs, or where the application was started."""


def default_root() -> Path:
    """The folder in which runs are looked for when nobody named one."""
    named = os.environ.get(RUNS_VARIABLE)
    if named:
        return Path(named).expanduser()
    runs = Path.cwd() / "runs"
    return runs if runs.is_dir() else Path.cwd()


class TrainScreen(Screen[None]):
    """Find runs, watch one, steer it. `root` is a folder of runs, a run directory, or a trainer's log."""

    CSS_PATH = "train.tcss"
    AUTO_FOCUS = "RunList DataTable"
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (110, "-wide")]  # noqa: RUF012 - typed by Textual
    VERTICAL_BREAKPOINTS = [(0, "-low"), (40, "-high")]  # noqa: RUF012

    HELP = """\
## Train
**Runs** lists what was found, **Dashboard** shows the open run, **Checkpoints** talks to what it saved, **Compare**
overlays the marked runs, **New run** starts one. **Alt+←/→** or Ctrl+Page up/down go from tab to tab. A run is a
process of its own: it goes on when this application ends. The keys that steer it work where it is on show, in its
Dashboard and Checkpoints; the palette (Ctrl+P) steers it from everywhere.
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
    ]

    def __init__(self, root: Path | None = None) -> None:
        super().__init__()
        self.given = root
        self.root = root if root is not None and root.is_dir() else default_root()
        self.seen: Snapshot | None = None
        self.opened: Path | None = None
        self.watcher = Watcher(self.root, self.post_message)
        self.exports = Exports()
        self._first_search = True
        self._working: set[str] = set()

    def compose(self) -> ComposeResult:
        """Tabs over the keys."""
        with TabbedContent(initial="runs", id="tabs"):
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
        self.watcher.start()
        if self.given is not None and self.given.is_file():
            self.open_path(self.given)

    def on_unmount(self) -> None:
        """End the thread; runs go on."""
        self.watcher.close()
        self.exports.close()

    def on_screen_suspend(self) -> None:
        """Another mode is on show: read nothing."""
        self.watcher.pause(True)

    def on_screen_resume(self) -> None:
        """Look again."""
        self.watcher.pause(False)

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
        self.dashboard.show(event.snapshot, event.panels)
        self.query_one(CheckpointsView).show(event.snapshot)
        changed = before is not None and before.state.life != event.snapshot.state.life
        if before is None or changed or len(before.checkpoints) != len(event.snapshot.checkpoints):
            self.refresh_bindings()
        if changed:
            self.watcher.search()

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

    def complain(self, error: Exception | str) -> None:
        """Say what went wrong."""
        self.notify(display_safe(str(error), 600), severity="error", markup=False, timeout=8)

    def say(self, text: str) -> None:
        """Say what was done."""
        self.notify(display_safe(text, 600), markup=False, timeout=4)

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
        self.app.push_screen(Ask(title, [("path", str(self.root) + os.sep)], check, button="Open"), go)

    def action_checkpoint(self) -> None:
        """Ask the run for a checkpoint."""
        if self.opened is not None:
            told = "Asked for a checkpoint; it comes at the next step."
            self._command(signals.request_checkpoint, told, self.opened)

    def action_stop(self) -> None:
        """Ask whether the run should write a checkpoint and end, then ask it to."""
        seen, path = self.seen, self.opened
        if seen is None or path is None:
            return

        def go(wanted: bool | None) -> None:
            if wanted:
                self._command(signals.request_stop, "Asked to stop; it writes a checkpoint first.", path)

        question = f"Stop {display_safe(seen.name)} at step {seen.state.step:,}? It writes a checkpoint and ends."
        self.app.push_screen(Confirm(question, "Stop it", "No, let it run"), go)

    def _command(self, send: Callable[[Path], int], done: str, path: Path) -> None:
        self._in_background(lambda: send(path), lambda _: self.say(done))
        self.watcher.expect_life(15.0)

    def _in_background(self, work: Callable[[], object], done: Callable[[Any], None]) -> None:
        """Do what may wait for a disk in a thread the application need not wait for; `done` gets its result here."""

        def run() -> None:
            try:
                outcome: object = work()
            except (UserError, OSError) as error:
                self.post_message(messages.Done(functools.partial(self.complain, error)))
            else:
                self.post_message(messages.Done(functools.partial(done, outcome)))

        in_thread("train-action", run)

    @on(messages.Done)
    def _done(self, event: messages.Done) -> None:
        event.callback()

    @work
    async def action_kill(self) -> None:
        """Kill the trainer, after asking twice."""
        seen, path = self.seen, self.opened
        if seen is None or path is None:
            return
        try:
            process = signals.find_process(path)
        except UserError as error:
            self.complain(error)
            return
        last = max((c.step for c in seen.checkpoints), default=0)
        lost = f"everything since step {last:,} is lost" if last else "there is no checkpoint: everything is lost"
        first = Confirm(
            f"Kill the trainer of {display_safe(seen.name)}? It is at step {seen.state.step:,}; {lost}. "
            "To stop safely, press s instead.",
            "Kill it",
        )
        if not await self.app.push_screen_wait(first):
            return
        second = Confirm(f"Really kill process {process.pid} now, without a checkpoint?", f"Kill {process.pid}")
        if not await self.app.push_screen_wait(second):
            return
        self._in_background(lambda: signals.kill(path), self._killed)

    def _killed(self, pid: int) -> None:
        self.say(f"Killed process {pid}.")
        self.watcher.search()

    def action_resume(self) -> None:
        """Continue the open run from its last checkpoint, or another one."""
        seen = self.seen
        if seen is None or not seen.checkpoints:
            return
        last = max(seen.checkpoints, key=lambda c: (c.step, c.modified)).path

        def check(values: list[str]) -> None:
            if not (Path(values[0]) / "state.json").is_file():
                raise UserError("that is not a checkpoint: it has no state.json")
            if values[1] and not (values[1].replace("_", "").isdigit() and int(values[1]) > 0):
                raise UserError("the steps must be a whole number, or empty to keep the length")
            launcher.split_prefix(values[2])

        def go(values: list[str] | None) -> None:
            if values is None:
                return
            steps = int(values[1]) if values[1] else None
            self._start(
                functools.partial(launcher.resume, Path(values[0]), launcher.split_prefix(values[2]), steps=steps)
            )

        fields = [("checkpoint", str(last)), ("steps in all (empty: as before)", ""), ("command prefix", "")]
        self.app.push_screen(Ask(f"Resume {seen.name}", fields, check, button="Resume"), go)

    def _start(self, begin: Callable[[], launcher.Launched]) -> None:
        self._in_background(begin, self._started)

    def _started(self, launched: launcher.Launched) -> None:
        self.say(f"Started process {launched.pid}; it goes on when this application ends.")
        for form in self.query(LaunchForm):
            form.launched()
        if launched.directory.is_dir():
            self.open_path(launched.directory)
        else:
            self.say(f"Its directory is on the other machine: mount it to watch. ssh's words: {launched.console}")
        self.watcher.expect_life()

    # the form and the checkpoints

    @on(messages.LaunchWanted)
    def _launch(self, event: messages.LaunchWanted) -> None:
        self._start(functools.partial(launcher.launch, event.config, event.prefix, event.directory))

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
        self.app.push_screen(
            Ask(f"Export {checkpoint.name}", [("GGUF file", str(proposal))], check, button="Export"), go
        )

    @on(messages.JobEnded)
    def _job_ended(self, event: messages.JobEnded) -> None:
        self._working.discard(event.job)
        if event.error is not None or event.gguf is None:
            self.complain(event.error or "the export failed")
        elif event.job.startswith("talk"):
            # the file holds its mHC records itself, so there is no sidecar to name
            self.app.post_message(ChatWith(event.gguf, None))
        else:
            self.notify("\n".join(map(display_safe, event.report)), title="Exported", markup=False, timeout=12)

    def palette_commands(self) -> Iterable[tuple[str, str, Callable[[], object]]]:
        """Every action that makes sense now, for the palette."""
        return commands(self)
