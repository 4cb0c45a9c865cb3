"""Two files side by side: trits flipped per layer, and every key and tensor that changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.content import Content
from textual.widgets import Static

from nanochat_tui.inspection.comparison import Comparison, compare
from nanochat_tui.inspection.summary import open_whole
from nanochat_tui.inspection.text import change_line
from nanochat_tui.text import display_safe
from nanochat_tui.tui import numbers
from nanochat_tui.tui.background import Job
from nanochat_tui.tui.inspect.layer_grid import Cell, LayerGrid
from nanochat_tui.tui.inspect.open_dialog import OpenDialog
from nanochat_tui.tui.inspect.opened import Opened
from nanochat_tui.tui.inspect.pane import Pane, Scroller
from nanochat_tui.tui.inspect.weights import OpenTrits
from nanochat_tui.tui.keys import key_names

MOST_LINES = 1000
_MEASURES = ("flipped", "sign", "to zero", "scales")


def cells_of(found: Comparison, measure: str) -> dict[str, Cell]:
    """Return what the grid shows: a share of each tensor's trits (or the change of its scales), heat by the largest."""
    values = {}
    for tensor in found.tensors:
        flips = tensor.flips
        if flips is not None and flips.weights:
            values[tensor.name] = {
                "flipped": flips.share,
                "sign": flips.sign_flips / flips.weights,
                "to zero": flips.to_zero / flips.weights,
                "scales": flips.scale_change,
            }[measure]
    top = max(values.values(), default=0.0)
    return {name: Cell(numbers.percent(value), heat=value / top if top else 0.0) for name, value in values.items()}


def changes_content(found: Comparison) -> Content:
    """Return everything that changed, a line each: keys first, then tensors."""
    quiet = "$text 60%"
    if found.same:
        return Content.styled("Keys and tensors are all equal.", "$text-success")
    lines = [Content.styled("keys", "bold")]
    lines += [Content.assemble(("+ ", "$text-success"), _key(k), _value(v)) for k, v in found.metadata_added.items()]
    lines += [Content.assemble(("− ", "$text-error"), _key(k), _value(v)) for k, v in found.metadata_removed.items()]
    for key, (old, new) in found.metadata_changed.items():
        lines.append(Content.assemble(("~ ", "$text-warning"), _key(key), _value(old), (" → ", quiet), _value(new)))
    if len(lines) == 1:
        lines.append(Content.styled("all equal", quiet))
    lines += [Content(""), Content.styled("tensors", "bold")]
    equal = found.count("equal")
    lines.append(Content.styled(f"{equal:,} of {len(found.tensors):,} are equal", quiet))
    styles = {"added": "$text-success", "removed": "$text-error", "changed": "", "reshaped": "$text-warning"}
    for tensor in found.tensors:
        if tensor.status != "equal":
            lines.append(Content.styled(change_line(tensor), styles.get(tensor.status, "$text-warning")))
    if len(lines) > MOST_LINES:
        lines = [*lines[:MOST_LINES], Content.styled(f"… and {len(lines) - MOST_LINES:,} more", quiet)]
    return Content("\n").join(lines)


def _key(key: str) -> str:
    return f"{display_safe(key, 80)} = "


def _value(value: Any) -> str:
    if isinstance(value, dict):
        where = f", differs from entry {value['first_difference']:,}" if "first_difference" in value else ""
        return f"{value['type']} of {value['length']:,}{where}"
    return display_safe(str(value), 80)


class ComparePane(Pane):
    """The grid of flips above, the changes below."""

    TITLE = "Compare"
    HELP = """\
### Compare
**{compared.compare_with|c}** chooses a second file, such as a later checkpoint of the same model. The grid shows the
share of trits that flipped in every matrix, or with **{compared.measure|m}** the changes of sign, those to zero, and
how far the scales moved. Below is every key and tensor that changed. **Tab** goes there. **{compared.exchange|w}**
exchanges the two files.
"""
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("c", "choose", "Compare with", id="compared.compare_with"),
        Binding("m", "measure", "Measure", id="compared.measure"),
        Binding("w", "swap", "Exchange", show=False, id="compared.exchange"),
    ]

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.other: Path | None = None
        self.swapped = False
        self.found: Comparison | None = None
        self.measure = 0

    def compose(self) -> ComposeResult:
        """Heading, grid, changes."""
        yield Static(id="compare-head", markup=False)
        yield LayerGrid(id="compare-grid")
        with Scroller(id="compare-changes", can_focus=True):
            yield Static(id="compare-text", markup=False)

    @property
    def grid(self) -> LayerGrid:
        """The table of flips."""
        return self.query_one(LayerGrid)

    def focus_first(self) -> None:
        """The grid takes the keys, if there is one."""
        (self.grid if self.grid.display else self.query_one("#compare-changes")).focus()

    def fill(self, opened: Opened | None) -> None:
        """See `Pane`."""
        self.found = None
        self._draw()
        if self.other is not None:
            self.compare_with(self.other)

    def action_choose(self) -> None:
        """Ask for the second file."""
        if self.opened is None:
            return

        def chosen(path: Path | None) -> None:
            if path is not None:
                self.swapped = False
                self.compare_with(path)

        self.app.push_screen(OpenDialog("Compare with", self.opened.path), chosen)

    def compare_with(self, path: Path) -> None:
        """Compare the open file with another, as soon as there is one."""
        opened = self.opened
        if opened is None:
            self.other = path
            return
        if opened.file is None:
            self.complain("Files of the original nanochat-rs-ternary can be compared after converting them.")
            return
        self.other, self.found = path, None
        file, swapped = opened.file, self.swapped

        def work(job: Job[Any]) -> Comparison:
            with open_whole(path) as second:
                job.total = sum(info.nbytes for one in (file, second) for info in one.tensors.values())
                first, last = (second, file) if swapped else (file, second)
                return compare(first, last, lambda _name: job.check(), job.tick)

        self.start_job("compare", work, self._compared, self._failed)
        self._draw()

    def _compared(self, found: Comparison) -> None:
        self.found = found
        self.grid.set_tensors([tensor.name for tensor in found.tensors if tensor.flips is not None])
        self._draw()
        if self.app.focused is None or self.app.focused is self.query_one("#compare-changes"):
            self.focus_first()

    def _failed(self, text: str) -> None:
        self.other = None
        self._draw()
        self.query_one("#compare-head", Static).update(Content.styled(display_safe(text, 1000), "$text-error"))

    def progressed(self, job: Job[Any]) -> None:
        """See `Pane`."""
        self._draw()

    def stopped_by_hand(self) -> None:
        """See `Pane`."""
        self.other = None
        self._draw()

    def action_measure(self) -> None:
        """Show another kind of change in the grid."""
        self.measure = (self.measure + 1) % len(_MEASURES)
        self._draw()

    def action_swap(self) -> None:
        """Exchange before and after."""
        if self.other is not None:
            self.swapped = not self.swapped
            self.compare_with(self.other)

    def _draw(self) -> None:
        found, head, text = self.found, self.query_one("#compare-head", Static), self.query_one("#compare-text", Static)
        self.grid.display = found is not None and bool(found.trits)
        quiet = "$text 60%"
        if found is None:
            job = self.job("compare")
            if job is not None and self.other is not None:
                key = key_names(self)("{inspect.back|Esc}")
                head.update(f"comparing with {display_safe(str(self.other))}: {job.share:.0%} ({key} ends)")
            else:
                head.update(
                    Content.styled(
                        key_names(self)("{compared.compare_with|c} chooses a second file to compare this one with."),
                        quiet,
                    )
                )
            text.update("")
            return
        names = [display_safe(path.name if path else "?") for path in (found.before, found.after)]
        line = Content.assemble((names[0], "bold"), (" → ", quiet), (names[1], "bold"))
        if found.trits:
            share = numbers.percent(found.flipped / found.trits)
            line += Content.styled(f"\n{found.flipped:,} of {found.trits:,} trits flipped ({share})", quiet)
            line += Content.assemble("  ", (f" {_MEASURES[self.measure]} ", "bold $text on $primary-muted"))
            self.grid.set_cells(cells_of(found, _MEASURES[self.measure]))
        head.update(line)
        text.update(changes_content(found))

    @on(LayerGrid.Moved)
    def _moved(self, event: LayerGrid.Moved) -> None:
        event.stop()

    @on(LayerGrid.Opened)
    def _open(self, event: LayerGrid.Opened) -> None:
        event.stop()
        if self.opened is not None and event.name in self.opened.trits:
            self.post_message(OpenTrits(event.name))
