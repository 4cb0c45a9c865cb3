"""Marked runs on one chart, their figures and the settings in which they differ."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.content import Content
from textual.widget import Widget
from textual.widgets import Static

from nanochat_tui.runs.compare import AXES, RunFigures, at_same_point, differing_settings, summary
from nanochat_tui.text import display_safe
from nanochat_tui.tui import numbers
from nanochat_tui.tui.train.panels import PALETTE, compared
from nanochat_tui.tui.widgets.chart import Chart

NAME_CELLS = 20


class CompareView(Widget):
    """Overlays the runs marked in the list."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("x", "axis", "Axis", id="compare.axis")]

    HELP = """\
## Compare
The runs marked with Space under *Runs*, one colour each: lines are training losses (moving means), points validation.
**{compare.axis|x}** draws them over steps, tokens or seconds. *at the same point* is the loss where the shortest of
them has got to.
"""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.runs: list[RunFigures] = []
        self.axis = AXES[0]

    def compose(self) -> ComposeResult:
        """The chart over the table."""
        chart = Chart("loss", log=True, id="compare-chart")
        chart.empty_text = "mark runs with Space in the list of runs"
        yield chart
        with VerticalScroll(id="compare-table"):
            yield Static("", markup=False)

    def show(self, runs: list[RunFigures]) -> None:
        """Show these runs."""
        self.runs = runs
        chart = self.query_one(Chart)
        chart.x_name = self.axis
        chart.chart_title = f"loss over {self.axis}s" if self.axis == "step" else f"loss over {self.axis}"
        chart.show(compared(runs, self.axis))
        self.query_one("#compare-table Static", Static).update(
            comparison_text(runs, self.axis, max(40, self.size.width - 4))
        )

    def on_resize(self) -> None:
        """Lay the table out for the new width."""
        if self.runs:
            self.show(self.runs)

    def action_axis(self) -> None:
        """Draw over the next axis."""
        self.axis = AXES[(AXES.index(self.axis) + 1) % len(AXES)]
        chart = self.query_one(Chart)
        chart.zoom = chart.cursor = None
        self.show(self.runs)


def comparison_text(runs: list[RunFigures], axis: str, width: int = 100) -> Content:
    """Figures and differing settings as a table of up to `width` cells, each run in its colour.

    What does not fit is left out from the right.
    """
    if not runs:
        return Content("")
    same = at_same_point(runs, axis)
    rows = summary(runs)
    columns: list[tuple[str, int, list[str]]] = [
        ("steps", 8, [f"{row['step']:,}" for row in rows]),
        ("loss", 8, [_number(row["loss"], 3) for row in rows]),
        ("same pt", 9, [_number(same.get(str(row["name"])), 3) for row in rows]),
        ("best val", 10, [_number(row["val_loss"], 4) for row in rows]),
        ("b/byte", 8, [_number(row["bits_per_byte"], 3) for row in rows]),
        ("tokens", 9, [numbers.amount(row["tokens"]) for row in rows]),
        ("tok/s", 8, [_number(row["tok_per_s"], 0) for row in rows]),
        ("time", 8, [numbers.duration(row["seconds"]) for row in rows]),
    ]
    room = width - NAME_CELLS
    fitting = [column for i, column in enumerate(columns) if sum(c[1] for c in columns[: i + 1]) <= room]
    head = f"{'run':<{NAME_CELLS}}" + "".join(f"{title:>{cells}}" for title, cells, _ in fitting)
    parts: list[tuple[str, str]] = [(head + "\n", "bold $text")]
    for index, row in enumerate(rows):
        name = display_safe(str(row["name"]), NAME_CELLS - 2)
        line = f"{name:<{NAME_CELLS}}" + "".join(f"{texts[index]:>{cells}}" for _, cells, texts in fitting)
        parts.append((line + "\n", f"${PALETTE[index % len(PALETTE)]}"))
    known = [(run, index) for index, run in enumerate(runs) if run.config]
    differing = differing_settings([run for run, _ in known])
    if differing:
        parts.append(("\nsettings that differ\n", "bold $text"))
        for key, values in differing.items():
            parts.append((f"{display_safe(key, NAME_CELLS - 2):<{NAME_CELLS}}", "$text"))
            for (_, index), value in zip(known, values, strict=True):
                shown = display_safe("–" if value is None else str(value), 40)
                parts.append((f"{shown}  ", f"${PALETTE[index % len(PALETTE)]}"))
            parts.append(("\n", "$text"))
    return Content.assemble(*parts)


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"
