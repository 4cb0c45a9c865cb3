"""The hyper-connections: every record's matrices with numbers and heat, and what they do composed over depth."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.color import Color
from textual.content import Content
from textual.widgets import DataTable, Static

from nanochat_tui.inspection.mhc_report import MhcInspection, alphas, composed_over_depth
from nanochat_tui.model.mhc import record_names, write_ceiling
from nanochat_tui.text import display_safe
from nanochat_tui.tui.inspect.colours import Colours, colours_of
from nanochat_tui.tui.inspect.opened import Opened
from nanochat_tui.tui.inspect.pane import Pane, Scroller
from nanochat_tui.tui.widgets.bars import meter


def matrix_lines(matrix: NDArray[np.floating], colours: Colours, ceiling: float = 1.0) -> list[Content]:
    """Return a matrix as numbers on a ground that is the warmer the larger they are."""
    lines = []
    for row in np.atleast_2d(matrix):
        cells = [_cell(float(value), colours, ceiling) for value in row]
        lines.append(Content("").join(cells))
    return lines


def _cell(value: float, colours: Colours, ceiling: float) -> Content:
    ground = colours.ramp(value / ceiling)
    text: Color = ground.get_contrast_text(1.0)
    return Content.styled(f" {value:6.4f} ", f"{text.hex6} on {ground.hex6}")


def side_by_side(*blocks: list[Content]) -> list[Content]:
    """Put blocks of lines next to each other."""
    height = max(map(len, blocks))
    widths = [max((line.cell_length for line in block), default=0) for block in blocks]
    lines = []
    for index in range(height):
        line = Content("")
        for block, width in zip(blocks, widths, strict=True):
            part = block[index] if index < len(block) else Content("")
            line += part + Content(" " * (width - part.cell_length + 3))
        lines.append(line)
    return lines


class MhcPane(Pane):
    """The records in a table, the one under the cursor below."""

    TITLE = "mHC"
    HELP = """\
### mHC
Every sub-layer reads one vector from the residual streams with weights **p**, and its output is written back with
weights **q** and mixed by the doubly stochastic matrix **H**. **alpha** is how much of each stream stays in its place;
**gain** is the most that one sub-layer can grow the state when it passes on what it reads (a plain residual has 2).
Below: the record's matrix, the product of all matrices up to it, and how much of a difference between streams is left.
"""

    def compose(self) -> ComposeResult:
        """What was verified, the records, one of them."""
        yield Static(id="mhc-head", markup=False)
        yield DataTable[Text](id="mhc-table", cursor_type="row")
        with Scroller(id="mhc-detail", can_focus=True):
            yield Static(id="mhc-text", markup=False)

    def on_mount(self) -> None:
        """Follow the theme."""
        self.app.theme_changed_signal.subscribe(self, lambda _: self._detail())

    @property
    def table(self) -> DataTable[Text]:
        """The list of records."""
        return self.query_one("#mhc-table", DataTable)

    @property
    def found(self) -> MhcInspection | None:
        """What is known of the records."""
        return None if self.opened is None else self.opened.summary.mhc

    def focus_first(self) -> None:
        """The table takes the keys."""
        self.table.focus()

    def fill(self, opened: Opened | None) -> None:
        """See `Pane`."""
        head = self.query_one("#mhc-head", Static)
        self.table.clear(columns=True)
        found = self.found
        matrices = None if found is None or found.report is None else found.report.matrices
        self.table.display = self.query_one("#mhc-detail").display = matrices is not None
        if found is None:
            head.update(
                "This model has a plain residual: one stream, no mHC."
                if opened is None or opened.summary.is_gguf
                else "mHC records of such a file are in the .mhc file next to it."
            )
            return
        if found.error is not None:
            head.update(Content.styled("NOT VERIFIED: ", "bold $text-error") + Content(display_safe(found.error, 1000)))
        if found.report is None or matrices is None:
            return
        report = found.report
        if found.error is None:
            head.update(self._verified(found))
        self.table.add_columns("record", "alpha", "read p", "write q", "gain", "difference left")
        _, memory = composed_over_depth(matrices.residual)
        for index, (name, kept) in enumerate(zip(record_names(found.records), alphas(matrices.residual), strict=False)):
            self.table.add_row(
                Text(name.removesuffix("_mhc"), "bold"),
                Text(f"{meter(float(kept), 6)} {kept:.4f}"),
                Text(" ".join(f"{v:.3f}" for v in matrices.pre[index])),
                Text(" ".join(f"{v:.3f}" for v in matrices.post[index])),
                Text(f"{float(report.gains[index]):.3f}"),
                Text(f"{meter(float(memory[index]), 6)} {memory[index]:.1%}"),
            )
        self._detail()

    def _verified(self, found: MhcInspection) -> Content:
        report = found.report
        if report is None:
            return Content("")
        quiet = "$text 60%"
        error = max(report.max_row_error, report.max_column_error)
        composed = max(report.composed_row_error, report.composed_column_error)
        lines = [
            Content.assemble(
                ("verified ", "bold $text-success"),
                f"{found.records} records over {found.streams} streams, version {found.version}",
                ("" if report.alive else "  the streams can never differ", "$text-error"),
            ),
            Content.assemble(
                ("rows and columns sum to 1 within ", quiet), f"{error:.1e}", (", composed ", quiet), f"{composed:.1e}"
            ),
            Content.assemble(
                ("real gain ", quiet),
                f"{report.gain_per_sublayer:.3f}",
                (" per sub-layer, largest ", quiet),
                f"{float(report.gains.max(initial=0.0)):.3f}",
                (" (plain residual 2)", quiet),
            ),
        ]
        return Content("\n").join(lines)

    @on(DataTable.RowHighlighted)
    def _highlighted(self, event: DataTable.RowHighlighted) -> None:
        event.stop()
        self._detail()

    def _detail(self) -> None:
        found = self.found
        if found is None or found.report is None or found.report.matrices is None or not found.records:
            return
        colours = colours_of(self.app)
        matrices = found.report.matrices
        index = max(0, min(self.table.cursor_row, len(matrices.residual) - 1))
        products, memory = composed_over_depth(matrices.residual)
        quiet = "$text 60%"
        name = record_names(found.records)[index].removesuffix("_mhc")
        ceiling = write_ceiling(found.streams, found.version)
        mixing = [Content.styled(f"H of {name}", quiet), *matrix_lines(matrices.residual[index], colours)]
        so_far = [
            Content.styled(f"product of the first {index + 1}" if index else "product so far", quiet),
            *matrix_lines(products[index], colours),
        ]
        whole = [Content.styled(f"product of all {found.records}", quiet), *matrix_lines(products[-1], colours)]
        vectors = [
            Content.assemble(("p ", quiet), *matrix_lines(matrices.pre[index], colours)),
            Content.assemble(("q ", quiet), *matrix_lines(matrices.post[index], colours, ceiling)),
        ]
        h = matrices.residual[index].astype(np.float64)
        rows, columns = np.abs(h.sum(axis=1) - 1).max(), np.abs(h.sum(axis=0) - 1).max()
        lines = [
            *side_by_side(mixing, so_far, whole),
            Content(""),
            *vectors,
            Content.assemble(
                ("row error ", quiet),
                f"{rows:.1e}",
                ("  column error ", quiet),
                f"{columns:.1e}",
                ("  difference left ", quiet),
                f"{memory[index]:.2%}",
            ),
        ]
        self.query_one("#mhc-text", Static).update(Content("\n").join(lines))
