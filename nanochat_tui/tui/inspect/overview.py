"""The overview: what a file is, how its bytes are spent, whether it runs, and what to beware of."""

from __future__ import annotations

from textual.app import ComposeResult
from textual.content import Content
from textual.widgets import Static

from nanochat_tui.inspection.summary import Summary
from nanochat_tui.inspection.text import remarks, shape_line
from nanochat_tui.text import counted, display_safe
from nanochat_tui.tui import numbers
from nanochat_tui.tui.inspect.opened import Opened
from nanochat_tui.tui.inspect.pane import Pane, Scroller
from nanochat_tui.tui.widgets.bars import meter

_LABEL = 13


def overview_content(summary: Summary, width: int = 80) -> Content:
    """Lay out a summary for `width` cells."""
    parts: list[Content] = []

    def row(label: str, *texts: Content | str) -> None:
        head = Content.styled(f"{label:<{_LABEL}}", "$text 60%")
        body = Content("").join([t if isinstance(t, Content) else Content(t) for t in texts])
        lines = body.wrap(max(20, width - _LABEL)) if body.cell_length > width - _LABEL else [body]
        for index, line in enumerate(lines):
            parts.append((head if not index else Content(" " * _LABEL)) + line)

    def gap() -> None:
        parts.append(Content(""))

    quiet = "$text 60%"
    if summary.runs:
        row("runs", Content.styled("yes", "bold $text-success"), Content.styled(", on this engine", quiet))
    else:
        row("runs", Content.styled("no: ", "bold $text-error"), display_safe(summary.reason or "", 500))
    row("file", display_safe(str(summary.path or "")))
    row("name", display_safe(summary.name or "none"))
    row("architecture", display_safe(summary.architecture or "none"))
    exact = Content.styled(f"  {summary.parameters:,}", quiet)
    row("parameters", Content.styled(numbers.amount(summary.parameters), "bold"), exact)
    gap()
    data = max(1, summary.data_bytes)
    row(
        "size",
        Content.styled(numbers.size(summary.bytes), "bold"),
        Content.styled(f"  {summary.bytes:,} bytes, of which tensors {summary.data_bytes:,}", quiet),
    )
    row(
        "as F16",
        numbers.size(summary.f16_bytes),
        Content.styled(f"  {summary.f16_bytes / data:.1f} times as much", quiet),
    )
    row("bits", Content.styled(f"{summary.bits_per_weight:.2f}", "bold"), " per weight over all tensors")
    roomy = width >= 90
    bar = min(24, width - 78) if roomy else 10  # what stands next to it takes 77 cells
    for index, (name, use) in enumerate(summary.types.items()):
        share = use.bytes / data
        bits = 8 * use.bytes / max(1, use.parameters)
        tensors = counted(use.tensors, "tensor")
        row(
            "" if index else "types",
            Content.styled(f"{display_safe(name, 16):<10}", "bold"),
            Content.styled(meter(share, bar), "$primary on $surface-lighten-1"),
            f" {numbers.percent(share):>6}  {numbers.size(use.bytes):>8}",
            Content.styled(
                f"  {tensors}, {numbers.amount(use.parameters)} at {bits:.2f} bits"
                if roomy
                else f"  {use.tensors:>3} × {bits:.2f} bits",
                quiet,
            ),
        )
    gap()
    if summary.shape is not None:
        row("shape", shape_line(summary.shape))
    if summary.context_length is not None:
        row("context", f"{summary.context_length:,} tokens")
    tokenizer = summary.tokenizer
    if tokenizer is not None:
        pre = f" ({display_safe(tokenizer.pre, 40)})" if tokenizer.pre else ""
        row(
            "tokenizer",
            f"{display_safe(tokenizer.kind, 40)}{pre}, {tokenizer.tokens:,} tokens, {tokenizer.template_line()}",
        )
    else:
        row("tokenizer", "none inside")
    if summary.rotation is not None:
        row("rotation", summary.rotation.sentence())
    if summary.mhc is not None:
        if summary.mhc.error is None:
            said = f"verified: {summary.mhc.records} records over {summary.mhc.streams} streams"
            row("mHC", Content.styled(said, "$text-success"))
        else:
            row("mHC", Content.styled("NOT VERIFIED: ", "bold $text-error"), display_safe(summary.mhc.error, 500))
    for index, text in enumerate(remarks(summary)):
        if not index:
            gap()
        row("" if index else "beware", Content.styled("• ", "$text-warning"), text)
    return Content("\n").join(parts)


class OverviewPane(Pane):
    """See `overview_content`."""

    TITLE = "Overview"
    HELP = """\
### Overview
What the file is, how many bits each weight takes and which types they are spent on, whether this program runs it, and
under **beware** the known traps of such files: what other programs refuse or read as garbage.
"""

    def compose(self) -> ComposeResult:
        """One text that scrolls."""
        with Scroller(can_focus=True):
            yield Static(id="overview-text", markup=False)

    def fill(self, opened: Opened | None) -> None:
        """See `Pane`."""
        self._draw()

    def on_resize(self) -> None:
        """Lay the text out for the new width."""
        self._draw()

    def _draw(self) -> None:
        if self.opened is not None:
            text = overview_content(self.opened.summary, max(40, self.size.width - 4))
            self.query_one("#overview-text", Static).update(text)
