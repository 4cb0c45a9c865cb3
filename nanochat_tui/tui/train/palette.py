"""What the palette offers in the train mode."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING

from textual.widgets import TabPane

from nanochat_tui.runs.submission import ACTIONS, submitted
from nanochat_tui.text import display_safe
from nanochat_tui.tui.keys import key_names
from nanochat_tui.tui.train.checkpoints_view import CheckpointsView
from nanochat_tui.tui.train.compare_view import CompareView
from nanochat_tui.tui.train.dashboard import ORDER
from nanochat_tui.tui.train.panels import PANELS
from nanochat_tui.tui.widgets.chart import Chart
from nanochat_tui.tui.widgets.palette import key_commands

if TYPE_CHECKING:
    from nanochat_tui.tui.train.screen import TrainScreen

Offers = Iterator[tuple[str, str, Callable[[], object]]]


def commands(screen: TrainScreen) -> Offers:
    """Yield title, help and callback of everything that makes sense now."""
    keys = key_names(screen)
    text = keys("A run directory anywhere, or a trainer's log ({train.attach|a})")
    yield "Open a run", text, screen.action_attach
    text = keys("Fill in the form and start a trainer ({train.new|n})")
    yield "New run", text, partial(screen.action_tab, "new")
    yield from _steering(screen)
    yield from _jobs(screen)
    text = keys("Look again for runs and at the open one ({train.refresh|r})")
    yield "Search for runs", text, screen.action_refresh
    text = keys("Go to this tab ({train.back|Alt+←}/{train.next|Alt+→})")
    for pane in screen.query(TabPane):
        if pane.id and pane.id != screen.tabs.active:
            title = f"Train: {'new run' if pane.id == 'new' else pane.id}"
            yield title, text, partial(screen.action_tab, pane.id)
    yield from _view(screen)


def _steering(screen: TrainScreen) -> Offers:
    """What can be done with the open run; from every tab, hence by its name."""
    if screen.seen is None:
        return
    name = display_safe(screen.seen.name, 40)
    keys = key_names(screen)
    talk, export = _newest(screen, "talk"), _newest(screen, "export")
    offers: tuple[tuple[str, str, str, str, Callable[[], object]], ...] = (
        (
            "checkpoint",
            "Checkpoint now",
            f"Ask {name} for a checkpoint",
            "{train.checkpoint|c}",
            screen.action_checkpoint,
        ),
        ("stop", "Stop the run safely", f"{name} writes a checkpoint and ends", "{train.stop|s}", screen.action_stop),
        ("kill", "Kill the run", f"{name}, at once; asked twice", "{train.kill|K}", screen.action_kill),
        (
            "resume",
            "Resume the run",
            f"{name}, from a checkpoint, perhaps for longer",
            "{train.resume|R}",
            screen.action_resume,
        ),
        ("newest", "Talk to the newest checkpoint", f"Of {name}, while it trains", "{train.talk|t}", talk),
        ("newest", "Export the newest checkpoint", f"Of {name}, to a GGUF, verified", "{train.export|e}", export),
    )
    for action, title, text, key, callback in offers:
        if screen.can(action):
            yield title, f"{text} ({keys(key)})", callback
    if screen.seen.checkpoints and screen.tabs.active != "checkpoints":
        text = f"Those of {name}, from one prompt, to leaf through ({keys('{checkpoints.scrub|g}')})"
        yield "Let every checkpoint write", text, _scrub(screen)


def _jobs(screen: TrainScreen) -> Offers:
    """What can be done with jobs that were submitted to a cluster, whether they have begun or wait."""
    for directory in submitted(screen.root):
        name = display_safe(directory.name, 40)
        for action, verb in ACTIONS.items():
            yield f"Job {name}: {action}", f"{verb} the job of {name}", partial(screen.action_job, directory, action)


def _scrub(screen: TrainScreen) -> Callable[[], object]:
    def go() -> None:
        screen.action_tab("checkpoints")
        screen.query_one(CheckpointsView).action_scrub()

    return go


def _newest(screen: TrainScreen, what: str) -> Callable[[], object]:
    return partial(screen.action_newest, what)


def _view(screen: TrainScreen) -> Offers:
    """The keys of the tab that is looked at; the panels of the dashboard from every tab."""
    dashboard, tab, keys = screen.dashboard, screen.tabs.active, key_names(screen)
    if screen.seen is not None:
        for number, name in enumerate(ORDER, 1):

            def go(name: str = name) -> None:
                screen.action_tab("dashboard")
                dashboard.action_panel(name)

            yield (
                f"Dashboard: {PANELS.get(name, name)}",
                f"Go to this panel ({keys.of(f'dashboard.{name}', str(number))})",
                go,
            )
    if tab == "runs":
        yield from key_commands(screen.runs, "Runs")
    elif tab == "dashboard":
        yield from key_commands(dashboard, "Dashboard", without={f"panel('{name}')" for name in ORDER})
        if dashboard.current in PANELS:
            yield from key_commands(dashboard.query_one(f"#panel-{dashboard.current}", Chart), "Chart")
    elif tab == "checkpoints":
        yield from key_commands(screen.query_one(CheckpointsView), "Checkpoints")
    elif tab == "compare":
        compare = screen.query_one(CompareView)
        yield from key_commands(compare, "Compare")
        yield from key_commands(compare.query_one(Chart), "Chart")
    elif tab == "new":
        text = keys("As the form's command line says ({form.launch|Ctrl+L})")
        yield "New run: Launch", text, partial(screen.action_form, "launch")
        text = keys("As TOML, for --config ({form.save|Ctrl+S})")
        yield "New run: Save", text, partial(screen.action_form, "save")
