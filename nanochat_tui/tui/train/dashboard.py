"""The dashboard of one run: overview, charts, samples, log."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container, VerticalScroll
from textual.content import Content
from textual.message import Message
from textual.widget import Widget
from textual.widgets import Static

from nanochat_tui.runs.watch import Snapshot
from nanochat_tui.text import printable
from nanochat_tui.tui.train.overview import RunOverview
from nanochat_tui.tui.train.panels import PANELS, Panel
from nanochat_tui.tui.widgets.chart import Chart

LOG_AXES = ("loss", "grad_norm")
EMPTY = {
    "mhc": "mHC is recorded at each evaluation",
    "accuracy": "accuracy is recorded at each evaluation",
}
MHC_TITLES = {
    "alpha": "mHC α",
    "p": "mHC p (read)",
    "q": "mHC q (write)",
    "entropy": "mHC entropy",
    "gain": "mHC gain",
    "cosine": "mHC stream cosine",
    "grad_mix": "mHC mixing gradient",
}
"""What of the mHC records is drawn, by its key; from entropy on of runs with mhc_analysis only."""
SHOWN_LOG_LINES = 200
SHOWN_SAMPLES = 12
ORDER = (*PANELS, "samples", "log")
"""Panels in the order of their keys 1 to 9."""


class TextPanel(VerticalScroll, can_focus=True):
    """A scrolling text that stays at its end while the reader is there."""

    def __init__(self, title: str, *, id: str) -> None:
        super().__init__(id=id, classes="panel text")
        self.border_title = title
        self._text = Static("", markup=False)
        self._shown: object = None

    def compose(self) -> ComposeResult:
        """One Static holds all of it."""
        yield self._text

    def on_mount(self) -> None:
        """Stay at the end from the first layout on, until the reader scrolls up."""
        self.anchor()

    def show(self, key: object, content: Content) -> None:
        """Show other text, unless `key` says it is the same."""
        if key != self._shown:
            self._shown = key
            self._text.update(content)


class Dashboard(Widget):
    """Shows snapshots of one run."""

    BINDINGS: ClassVar[list[BindingType]] = [
        *(
            Binding(
                str(i + 1), f"panel('{name}')", PANELS.get(name, name).capitalize(), show=False, id=f"dashboard.{name}"
            )
            for i, name in enumerate(ORDER)
        ),
        Binding("left_square_bracket", "turn(-1)", "Previous chart", show=False, id="dashboard.previous"),
        Binding("right_square_bracket", "turn(1)", "Next chart", show=False, id="dashboard.next"),
        Binding("z", "zoom_panel", "Fill", id="dashboard.fill"),
        Binding("m", "mhc", "mHC α/p/q", show=False, id="dashboard.mhc_kind"),
    ]

    HELP = """\
## Dashboard
**{dashboard.loss|1}** to **{dashboard.log|9}** (or **{dashboard.previous|[}** and **{dashboard.next|]}**) go to a
panel: loss, recent loss, lr, grad norm, tok/s, mHC, accuracy, samples, log; in a small terminal one is shown at a time.
**{dashboard.fill|z}** fills the screen with it. **{dashboard.mhc_kind|m}** changes what of mHC is drawn: α, or the
share of the first stream in the read weights p and the write weights q (of a run with mhc_analysis also entropy, gain,
cosine of the streams and gradient of the mixing); 0a is the attention of block 0, 0f its
feed-forward part, and **{chart.next_curve|v}** takes one record after the other. Pale is what was logged, bright its
moving mean, points are validation. A run by rewards shows reward, length, KL and entropy where others show the recent
loss, tok/s and accuracy.

**{train.checkpoint|c}** asks for a checkpoint now, **{train.stop|s}** lets the run end safely, **{train.kill|K}** kills
it, **{train.resume|R}** resumes it, **{train.talk|t}** talks to its newest checkpoint while it trains,
**{train.export|e}** exports it.
"""

    class MhcWanted(Message):
        """Another value of the mHC records should be drawn."""

        def __init__(self, value: str) -> None:
            super().__init__()
            self.value = value

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.snapshot: Snapshot | None = None
        self.current = "loss"
        self._mhc = "alpha"

    def compose(self) -> ComposeResult:
        """Overview above, charts in a grid, text below."""
        yield RunOverview(id="overview")
        with Container(id="charts"):
            for name, title in PANELS.items():
                chart = Chart(title, log=name in LOG_AXES, id=f"panel-{name}")
                chart.add_class("panel")
                chart.set_class(name == self.current, "-current")
                chart.empty_text = EMPTY.get(name, "no figures yet")
                yield chart
        with Container(id="texts"):
            yield TextPanel("samples", id="panel-samples")
            yield TextPanel("log", id="panel-log")

    def show(self, snapshot: Snapshot, panels: Mapping[str, Panel] | None, pending: str = "") -> None:
        """Show another look at the run; charts are drawn again only when their curves come along. `pending` says what
        the run was asked for and has not done yet.
        """
        if self.snapshot is not None and self.snapshot.path != snapshot.path:
            for chart in self.query(Chart):
                chart.zoom = chart.cursor = chart.chosen = None
            for panel in self.query(TextPanel):
                panel.anchor()
        self.snapshot = snapshot
        overview = self.query_one(RunOverview)
        overview.snapshot, overview.pending = snapshot, pending
        for name, drawn in (panels or {}).items():
            chart = self.query_one(f"#panel-{name}", Chart)
            if name != "mhc":  # whose title says which value it shows
                chart.chart_title = drawn.title or PANELS[name]
            chart.log_axis = name in LOG_AXES and drawn.log
            chart.show(drawn.curves, window=drawn.window)
        self._show_samples(snapshot)
        self._show_log(snapshot)

    def _show_samples(self, snapshot: Snapshot) -> None:
        parts: list[Content] = []
        for sample in snapshot.samples[-SHOWN_SAMPLES:]:
            prompt, text = (printable(str(sample.get(key, ""))[:4000]) for key in ("prompt", "text"))
            parts.append(
                Content.assemble(
                    (f"step {sample['step']}\n", "bold $text-primary"), (prompt, "$text 60%"), (text + "\n", "$text")
                )
            )
        content = Content("\n").join(parts) if parts else Content.styled("no samples yet", "$text 60%")
        last = snapshot.samples[-1]["step"] if snapshot.samples else None
        self.query_one("#panel-samples", TextPanel).show((snapshot.path, len(parts), last), content)

    def _show_log(self, snapshot: Snapshot) -> None:
        lines = snapshot.log[-SHOWN_LOG_LINES:]
        title = "log"
        if snapshot.console and (not lines or snapshot.state.life in ("failed", "crashed")):
            lines, title = snapshot.console[-SHOWN_LOG_LINES:], "console"
        panel = self.query_one("#panel-log", TextPanel)
        panel.border_title = title
        text = "\n".join(printable(line[:1000]) for line in lines)
        panel.show((snapshot.path, text), Content(text or "the log is empty"))

    # keys

    def action_panel(self, name: str) -> None:
        """Go to a panel; in a small terminal it replaces the one on show."""
        self.current = name
        for panel in self.query(".panel"):
            panel.set_class(panel.id == f"panel-{name}", "-current")
        self.set_class(name in ("samples", "log"), "-texts")
        self.query_one(f"#panel-{name}").focus()

    def action_turn(self, by: int) -> None:
        """Go to the next or previous panel."""
        self.action_panel(ORDER[(ORDER.index(self.current) + by) % len(ORDER)])

    def action_zoom_panel(self) -> None:
        """Fill the screen with the panel that has the focus, or give it back."""
        if self.screen.maximized is not None:
            self.screen.minimize()
        else:
            self.screen.maximize(self.query_one(f"#panel-{self.current}"), container=False)

    def on_descendant_focus(self) -> None:
        """Remember the panel that was gone to by Tab or mouse."""
        focused = self.screen.focused
        if focused is not None and focused.id and focused.id.removeprefix("panel-") in ORDER:
            self.current = focused.id.removeprefix("panel-")

    def action_mhc(self) -> None:
        """Draw alpha, then p, then q, then what a run with mhc_analysis records."""
        settings = self.snapshot.config.get("config") if self.snapshot is not None else None
        analysed = isinstance(settings, dict) and settings.get("mhc_analysis") is True
        values = list(MHC_TITLES) if analysed else ["alpha", "p", "q"]
        here = values.index(self._mhc) if self._mhc in values else -1
        self._mhc = values[(here + 1) % len(values)]
        chart = self.query_one("#panel-mhc", Chart)
        chart.chart_title = MHC_TITLES[self._mhc]
        self.post_message(self.MhcWanted(self._mhc))
