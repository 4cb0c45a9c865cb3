"""Weights by layer: trit balance, zeros, entropy, scales and dead rows of every ternary matrix."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any, ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal
from textual.content import Content
from textual.message import Message
from textual.widgets import Static

from nanochat_tui.inspection.ternary_stats import QUANTILES, TernaryStatistics, tensor_statistics
from nanochat_tui.text import display_safe
from nanochat_tui.tui import numbers
from nanochat_tui.tui.background import Job
from nanochat_tui.tui.inspect.layer_grid import Cell, LayerGrid
from nanochat_tui.tui.inspect.opened import Opened
from nanochat_tui.tui.inspect.pane import Pane
from nanochat_tui.tui.keys import key_names
from nanochat_tui.tui.widgets.bars import bars

DRAW_SECONDS = 0.2

Metric = Callable[[TernaryStatistics], float | None]


def _spread(found: TernaryStatistics) -> float | None:
    q = found.scale_quantiles
    return q[QUANTILES.index(0.95)] / q[QUANTILES.index(0.05)] if q and q[QUANTILES.index(0.05)] > 0 else None


METRICS: tuple[tuple[str, str, Metric], ...] = (
    ("balance", "−1, 0 and +1 as parts of a bar", lambda s: s.balance),
    ("zeros", "share of weights that are 0", lambda s: s.shares[1]),
    ("entropy", "bits per weight that the trits need at least; 1.585 at most", lambda s: s.entropy),
    ("scale", "median of the group scales", lambda s: s.median_scale),
    ("spread", "95th percentile of the scales over the 5th", _spread),
    ("dead rows", "outputs whose weights are all 0", lambda s: s.dead_rows),
)
"""What the cells can show: name, explanation, value."""


class OpenTrits(Message):
    """Posted by a pane: look at this tensor through the microscope."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name


def cells_of(found: dict[str, TernaryStatistics], metric: int) -> dict[str, Cell]:
    """Return what the grid shows of statistics, heat being relative to the smallest and largest value there."""
    name, _, value_of = METRICS[metric]
    values = {key: value for key, s in found.items() if (value := value_of(s)) is not None and math.isfinite(value)}
    low, high = min(values.values(), default=0.0), max(values.values(), default=0.0)
    cells = {}
    for key, s in found.items():
        value = values.get(key)
        if name == "balance":
            minus, zero, plus, two = s.shares
            text = f"{100 * minus:.0f}|{100 * zero:.0f}|{100 * (plus + two):.0f}"
            cells[key] = Cell(text, parts=(minus, zero, plus + two))
        elif value is None:
            cells[key] = Cell("–")
        elif name == "dead rows":
            cells[key] = Cell(f"{s.dead_rows}" if s.dead_rows else "0", bad=s.dead_rows > 0)
        else:
            text = numbers.percent(value) if name == "zeros" else f"{value:.3g}"
            cells[key] = Cell(text, heat=(value - low) / (high - low) if high > low else 0.5)
    return cells


def detail_content(s: TernaryStatistics, width: int) -> tuple[Content, Content, Content]:
    """Return what is said of one tensor: numbers, then its scales and its zeros as histograms."""
    quiet = "$text 60%"
    minus, zero, plus, two = s.shares
    lines = [
        Content.styled(display_safe(s.name), "bold"),
        Content.assemble(
            ("−1 ", "$text-secondary"),
            f"{minus:.2%}  ",
            ("0 ", quiet),
            f"{zero:.2%}  ",
            ("+1 ", "$text-primary"),
            f"{plus:.2%}",
        ),
        Content.assemble(
            ("weights ", quiet),
            numbers.amount(s.weights),
            ("  rows ", quiet),
            f"{s.rows:,}",
            ("  entropy ", quiet),
            f"{s.entropy:.3f}",
        ),
    ]
    if two:
        lines[1] += Content.assemble(("  +2 ", "$text-warning"), f"{two:.2%}")
    dead = f"{s.dead_rows:,}" + (
        f" (rows {', '.join(map(str, s.listed_dead_rows))}{'…' if s.dead_rows > len(s.listed_dead_rows) else ''})"
        if s.dead_rows
        else ""
    )
    style = "$text-error" if s.dead_rows else ""
    lines.append(Content.assemble(("dead rows ", quiet), (dead, style), ("  groups ", quiet), f"{s.dead_groups:,}"))
    lines.append(Content.assemble(("balance ", quiet), f"{s.balance:+.3f}"))
    if s.bad_scales:
        lines.append(Content.styled(f"{s.bad_scales:,} scales are negative or not finite", "bold $text-error"))
    q = dict(zip(QUANTILES, s.scale_quantiles, strict=False))
    low, high = (numbers.number(s.scale_edges[0]), numbers.number(s.scale_edges[-1])) if s.scale_edges else ("", "")
    middle = f"median {numbers.number(q[0.5])}" if q else "no scales"
    scales = [
        Content.styled("group scales, log" if width >= 32 else "scales (log)", quiet),
        *(Content.styled(line, "$primary") for line in bars(s.scale_histogram, width, 3)),
        Content.styled(_ends(low, high, min(width, len(s.scale_histogram) or width)), quiet),
        Content.styled(middle, quiet),
    ]
    zeros = [
        Content.styled("share of zeros in a group" if width >= 32 else "zeros in groups", quiet),
        *(Content.styled(line, "$secondary") for line in bars(s.zero_histogram, width, 3)),
        Content.styled(_ends("0", "1", min(width, len(s.zero_histogram) or width)), quiet),
    ]
    join = Content("\n").join
    return join(lines), join(scales), join(zeros)


def _ends(left: str, right: str, width: int) -> str:
    return left + right.rjust(max(1, width - len(left)))


class WeightsPane(Pane):
    """The grid above, the tensor under the cursor below; statistics come in as they are computed."""

    TITLE = "Weights"
    HELP = """\
### Weights
Every ternary matrix, layers downwards. **{weights.measure|m}** changes what the cells show: the balance of −1, 0 and
+1, zeros, entropy, the scales' median and spread, dead rows. The tensor under the cursor is described below, with the
distribution of its group scales and of the zeros in its groups. **{layers.trits|Enter}** looks at it through the
microscope, **{inspect.back|Esc}** ends the counting.
"""
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("m", "metric(1)", "Measure", id="weights.measure"),
        Binding("M", "metric(-1)", "Measure back", show=False, id="weights.measure_back"),
        Binding("r", "resume", "Count on", show=False, id="weights.count_on"),
    ]

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.metric = 0
        self._drawn = 0.0

    def compose(self) -> ComposeResult:
        """Heading, grid, detail."""
        yield Static(id="weights-head", markup=False)
        yield LayerGrid(id="weights-grid")
        with Horizontal(id="weights-detail"):
            yield Static(id="weights-numbers", markup=False)
            yield Static(id="weights-scales", markup=False)
            yield Static(id="weights-zeros", markup=False)

    @property
    def grid(self) -> LayerGrid:
        """The table."""
        return self.query_one(LayerGrid)

    def fill(self, opened: Opened | None) -> None:
        """See `Pane`."""
        self.grid.set_tensors([] if opened is None else opened.trits)
        self._draw()
        self.action_resume()

    def focus_first(self) -> None:
        """The grid takes the keys."""
        self.grid.focus()

    def action_resume(self) -> None:
        """Count what was not counted yet."""
        opened = self.opened
        if opened is None or opened.file is None or self.job("count") is not None:
            return
        file = opened.file
        missing = [name for name in opened.trits if name not in opened.ternary]
        if not missing:
            return

        def count(job: Job[Any]) -> None:
            for name in missing:
                job.step = name
                job.show(tensor_statistics(file, name, job.tick))

        self.start_job(
            "count",
            count,
            done=lambda _: self._draw(),
            shown=self._counted,
            total=sum(file.tensor(name).nbytes for name in missing),
        )
        self._head()

    def _counted(self, found: TernaryStatistics) -> None:
        if self.opened is not None:
            self.opened.ternary[found.name] = found
            if found.name == self.grid.name_at_cursor:
                self._detail()

    def progressed(self, job: Job[Any]) -> None:
        """See `Pane`; drawn a few times per second, however many tensors there are."""
        now = time.monotonic()
        if self.opened is not None and now - self._drawn >= DRAW_SECONDS:
            self._drawn = now
            self.grid.set_cells(cells_of(self.opened.ternary, self.metric))
            self._head()

    def stopped_by_hand(self) -> None:
        """See `Pane`."""
        self._draw()

    def action_metric(self, step: int) -> None:
        """Show something else in the cells."""
        self.metric = (self.metric + step) % len(METRICS)
        self._draw()

    def _draw(self) -> None:
        if self.opened is not None:
            self.grid.set_cells(cells_of(self.opened.ternary, self.metric))
        self._head()
        self._detail()

    def _head(self) -> None:
        opened = self.opened
        if opened is None:
            return
        name, text, _ = METRICS[self.metric]
        if not opened.trits:
            self.query_one("#weights-head", Static).update("This file has no ternary tensors.")
            return
        head = Content.assemble((f" {name} ", "bold $text on $primary-muted"), (f" {text}", "$text 60%"))
        job, done = self.job("count"), len(opened.ternary)
        if job is not None:
            head += Content.styled(
                f"  counting {job.share:.0%} ({key_names(self)('{inspect.back|Esc}')} ends)", "$text-warning"
            )
        elif done < len(opened.trits):
            head += Content.styled(
                f"  {done} of {len(opened.trits)} counted ({key_names(self)('{weights.count_on|r}')} continues)",
                "$text-warning",
            )
        self.query_one("#weights-head", Static).update(head)

    def _detail(self) -> None:
        name = self.grid.name_at_cursor
        found = None if self.opened is None or name is None else self.opened.ternary.get(name)
        texts: tuple[Content | str, ...] = (display_safe(name or ""), "", "")
        if found is not None:
            texts = detail_content(found, 32 if self.size.width >= 110 else 16)
        for which, text in zip(("numbers", "scales", "zeros"), texts, strict=True):
            self.query_one(f"#weights-{which}", Static).update(text)

    def on_resize(self) -> None:
        """Draw histograms for the new width."""
        self._detail()

    @on(LayerGrid.Moved)
    def _moved(self, event: LayerGrid.Moved) -> None:
        event.stop()
        self._detail()

    @on(LayerGrid.Opened)
    def _open(self, event: LayerGrid.Opened) -> None:
        event.stop()
        self.post_message(OpenTrits(event.name))
