"""The tensors: a tree with fuzzy search, and what one of them is, down to its first values."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.timer import Timer
from textual.widgets import Input, Static, Tree
from textual.widgets.tree import TreeNode

from nanochat_tui.errors import UserError
from nanochat_tui.inspection import TensorInfo
from nanochat_tui.inspection.search import fuzzy, tree
from nanochat_tui.inspection.tensor_stats import TensorStatistics, first_values, tensor_statistics
from nanochat_tui.inspection.ternary_stats import TernaryStatistics
from nanochat_tui.inspection.ternary_stats import tensor_statistics as trit_statistics
from nanochat_tui.text import display_safe
from nanochat_tui.tui import numbers
from nanochat_tui.tui.background import Job
from nanochat_tui.tui.inspect.opened import Opened
from nanochat_tui.tui.inspect.pane import Pane, Scroller
from nanochat_tui.tui.inspect.weights import OpenTrits
from nanochat_tui.tui.keys import key_names
from nanochat_tui.tui.widgets.bars import bars

AT_ONCE = 1 << 24
"""Elements of a tensor whose distribution is computed unasked; a larger one waits for `s`."""
DEBOUNCE = 0.15
"""Seconds the cursor must rest on a tensor before it is decoded."""
MOST_MATCHES = 500
MOST_TENSORS = 5000
"""Tensors that the tree holds; models have at most a thousand, and search sees all of a file that claims more."""


def describe(info: TensorInfo, share: float) -> list[Content]:
    """Return what the table of the file says of a tensor."""
    quiet = "$text 60%"

    def row(label: str, text: str, more: str = "") -> Content:
        return Content.assemble((f"{label:<9}", quiet), text, (f"  {more}" if more else "", quiet))

    kind = info.type
    bits = 8 * info.nbytes / max(1, info.elements)
    inputs = "rows × columns; rows are outputs" if len(info.shape) == 2 else ""
    lines = [
        Content.styled(display_safe(info.name), "bold"),
        row("type", display_safe(kind.name), f"id {kind.id}, {bits:.3g} bits per weight"),
        row("shape", " × ".join(f"{n:,}" for n in info.shape), inputs),
        row("elements", numbers.amount(info.elements), f"{info.elements:,}" if info.elements >= 1_000_000 else ""),
        row("bytes", numbers.size(info.nbytes), f"{share:.1%} of all tensors, at offset {info.offset:,}"),
    ]
    if kind.is_known and kind.block_elements > 1:
        lines.append(row("blocks", f"of {kind.block_elements}", f"{kind.block_bytes} bytes each"))
    if not kind.is_decodable:
        lines.append(Content.styled(f"It is of {kind.refusal}.", "$text-warning"))
    return lines


def values_lines(values: NDArray[np.float32], width: int) -> list[Content]:
    """Return numbers in columns that fill `width` cells."""
    columns = max(2, min(8, width // 11))
    lines = []
    for start in range(0, len(values), columns):
        row = "".join(f"{numbers.number(float(v)):>11}" for v in values[start : start + columns])
        lines.append(Content(row))
    return lines


def statistics_lines(found: TensorStatistics, width: int) -> list[Content]:
    """Return a distribution as numbers and a histogram."""
    quiet = "$text 60%"
    lines = [
        Content.assemble(
            ("mean ", quiet),
            numbers.number(found.mean),
            ("  std ", quiet),
            numbers.number(found.deviation),
            ("  zeros ", quiet),
            f"{found.zeros / max(1, found.elements):.1%}",
        ),
    ]
    if found.not_finite:
        lines.append(Content.styled(f"{found.not_finite:,} values are NaN or infinite", "bold $text-error"))
    if found.histogram:
        room = min(width, 64)
        drawn = bars(found.histogram, room, 4)
        lines += [Content.styled(line, "$primary") for line in drawn]
        low, high = numbers.number(found.smallest), numbers.number(found.largest)
        lines.append(Content.styled(low + high.rjust(max(1, len(drawn[0]) - len(low))), quiet))
    return lines


class TensorsPane(Pane):
    """Search and tree on one side, the tensor on the other."""

    TITLE = "Tensors"
    HELP = """\
### Tensors
**{inspect.search|/}** searches: a few letters of a name in order are enough (`b3fd` finds `blk.3.ffn_down`). **Enter**
or **Space** opens a block. The tensor under the cursor is described with its first values and, if it is not huge, its
distribution; **{tensors.statistics|s}** asks for that of a huge one. **{tensors.trits|x}** looks at a ternary tensor
through the microscope.
"""
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("s", "statistics", "Statistics", id="tensors.statistics"),
        Binding("x", "trits", "Trits", id="tensors.trits"),
        Binding("j", "cursor(1)", "Down", show=False, id="tensors.down"),
        Binding("k", "cursor(-1)", "Up", show=False, id="tensors.up"),
    ]

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.chosen: TensorInfo | None = None
        self._first: tuple[str, NDArray[np.float32] | str] | None = None
        self._timer: Timer | None = None

    def compose(self) -> ComposeResult:
        """Lay out the two sides."""
        with Horizontal():
            with Vertical(id="tensors-left"):
                yield Input(placeholder="/ search", id="tensors-search")
                yield Tree[TensorInfo]("tensors", id="tensors-tree")
            with Scroller(id="tensors-right", can_focus=True):
                yield Static(id="tensors-detail", markup=False)

    @property
    def names(self) -> Tree[TensorInfo]:
        """The tree, of tensors by block or of those that were found."""
        return self.query_one("#tensors-tree", Tree)

    def on_mount(self) -> None:
        """The root is the file, which needs no line."""
        self.names.show_root = False
        self.names.guide_depth = 2

    def focus_first(self) -> None:
        """The tree takes the keys."""
        self.names.focus()

    def fill(self, opened: Opened | None) -> None:
        """See `Pane`."""
        self.chosen = None
        self._list()
        self._draw()

    @on(Input.Changed, "#tensors-search")
    def _list(self) -> None:
        query = self.query_one("#tensors-search", Input).value
        root = self.names.root
        root.remove_children()
        if self.opened is None:
            return
        infos = {info.name: info for info in self.opened.summary.tensors}
        if query.strip():
            for match in fuzzy(query, infos)[:MOST_MATCHES]:
                root.add_leaf(self._label(infos[match.name], set(match.positions)), infos[match.name])
        else:
            self._add(root, self.opened)
        root.expand()
        self.names.cursor_line = 0
        self._take(self.names.cursor_node)

    def _add(self, root: TreeNode[TensorInfo], opened: Opened) -> None:
        top = tree(opened.summary.tensors[:MOST_TENSORS])
        for info in top.tensors:
            root.add_leaf(self._label(info), info)
        for folder in top.folders.values():
            label = Text.assemble(
                (display_safe(folder.name), "bold"), (f"  {folder.count}, {numbers.size(folder.bytes)}", "dim")
            )
            node = root.add(label)
            for info in folder.tensors:
                node.add_leaf(self._label(info, prefix=len(folder.name) + 1), info)

    @staticmethod
    def _label(info: TensorInfo, found: set[int] | None = None, prefix: int = 0) -> Text:
        """Return a line of the tree: the name, its found letters marked, without what its block says already."""
        text = Text()
        for index, letter in enumerate(info.name):
            if index >= prefix:
                text.append(display_safe(letter), "bold underline" if found and index in found else "")
        return text.append(f"  {info.type.name}", "dim")

    @on(Tree.NodeHighlighted)
    def _highlighted(self, event: Tree.NodeHighlighted[TensorInfo]) -> None:
        event.stop()
        self._take(event.node)

    def _take(self, node: TreeNode[TensorInfo] | None) -> None:
        info = None if node is None else node.data
        if info is self.chosen:
            return
        self.chosen = info
        self.stop_jobs()
        if self._timer is not None:
            self._timer.stop()
        self._draw()
        if info is not None:
            self._timer = self.set_timer(DEBOUNCE, self._look)

    def _look(self) -> None:
        """Decode the first values, and more if it is quick."""
        opened, info = self.opened, self.chosen
        if opened is None or info is None or opened.file is None:
            return
        try:
            self._first = (info.name, first_values(opened.file, info.name))
        except UserError as error:
            self._first = (info.name, str(error))
        self._draw()
        if info.elements <= AT_ONCE:
            self.action_statistics()

    def action_statistics(self) -> None:
        """Compute the distribution of the tensor under the cursor."""
        opened, info = self.opened, self.chosen
        if opened is None or info is None or opened.file is None or not info.type.is_decodable:
            return
        file, name, ternary = opened.file, info.name, info.type.has_trits

        def work(job: Job[Any]) -> tuple[TensorStatistics, TernaryStatistics | None]:
            trits = trit_statistics(file, name, job.tick) if ternary and name not in opened.ternary else None
            return tensor_statistics(file, name, job.tick), trits

        def done(found: tuple[TensorStatistics, TernaryStatistics | None]) -> None:
            opened.values[name] = found[0]
            if found[1] is not None:
                opened.ternary[name] = found[1]
            self._draw()

        if name in opened.values and (not ternary or name in opened.ternary):
            self._draw()
        elif self.job("values") is None:
            self.start_job("values", work, done, total=(3 if ternary else 2) * info.nbytes)
            self._draw()

    def progressed(self, job: Job[Any]) -> None:
        """See `Pane`."""
        self._draw()

    def stopped_by_hand(self) -> None:
        """See `Pane`."""
        self._draw()

    def action_trits(self) -> None:
        """Look at the tensor through the microscope."""
        if self.chosen is not None and self.chosen.type.has_trits and self.opened and self.opened.file:
            self.post_message(OpenTrits(self.chosen.name))

    def action_cursor(self, step: int) -> None:
        """Move in the tree."""
        (self.names.action_cursor_down if step > 0 else self.names.action_cursor_up)()

    @on(Input.Submitted, "#tensors-search")
    def _done(self) -> None:
        self.focus_first()

    def on_resize(self) -> None:
        """Lay the values out for the new width."""
        self._draw()

    def _draw(self) -> None:
        opened, info = self.opened, self.chosen
        if opened is None:
            return
        if info is None:
            count = len(opened.summary.tensors)
            self.query_one("#tensors-detail", Static).update(
                f"{count:,} tensors. Choose one; {key_names(self)('{inspect.search|/}')} searches."
            )
            return
        width = max(24, self.query_one("#tensors-right").size.width - 3)
        quiet = "$text 60%"
        lines = describe(info, info.nbytes / max(1, opened.summary.data_bytes))
        trits = opened.ternary.get(info.name)
        if trits is not None:
            minus, zero, plus, _ = trits.shares
            lines.append(
                Content.assemble(
                    ("trits    ", quiet),
                    ("−1 ", "$text-secondary"),
                    f"{minus:.1%} ",
                    ("0 ", quiet),
                    f"{zero:.1%} ",
                    ("+1 ", "$text-primary"),
                    f"{plus:.1%}",
                    ("  dead rows ", quiet),
                    f"{trits.dead_rows:,}",
                )
            )
        if opened.file is None:
            lines += [Content(""), Content.styled("Its values can be read after converting the file.", quiet)]
        values, job = opened.values.get(info.name), self.job("values")
        if values is not None:
            lines += [Content(""), *statistics_lines(values, width)]
        elif job is not None:
            lines += [
                Content(""),
                Content.styled(
                    f"reading {job.share:.0%} ({key_names(self)('{inspect.back|Esc}')} ends)", "$text-warning"
                ),
            ]
        elif opened.file is not None and info.type.is_decodable and info.elements > AT_ONCE:
            lines += [
                Content(""),
                Content.styled(key_names(self)("{tensors.statistics|s} computes its distribution"), quiet),
            ]
        if self._first is not None and self._first[0] == info.name:
            lines.append(Content(""))
            if isinstance(self._first[1], str):
                lines.append(Content.styled(self._first[1], "$text-warning"))
            else:
                lines.append(Content.styled(f"first {len(self._first[1])} values", quiet))
                lines += values_lines(self._first[1], width)
        self.query_one("#tensors-detail", Static).update(Content("\n").join(lines))
