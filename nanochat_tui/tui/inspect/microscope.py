"""The trit microscope: a ternary tensor chosen, looked at, and named below."""

from __future__ import annotations

from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.content import Content
from textual.widgets import Select, Static

from nanochat_tui.text import display_safe
from nanochat_tui.tui.inspect.colours import colours_of
from nanochat_tui.tui.inspect.opened import Opened
from nanochat_tui.tui.inspect.pane import Pane
from nanochat_tui.tui.inspect.trit_view import TritView, View

MOST = 5000
"""Tensors that can be chosen, of a file that claims absurdly many."""


class MicroscopePane(Pane):
    """Chooses the tensor and computes large pictures in a thread."""

    TITLE = "Trits"
    HELP = TritView.HELP
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("n", "tensor(1)", "Next tensor", id="microscope.next_tensor"),
        Binding("p", "tensor(-1)", "Previous", show=False, id="microscope.previous"),
    ]

    def compose(self) -> ComposeResult:
        """The choice above, the window, what is seen below."""
        yield Select[str]([], prompt="no ternary tensors", compact=True, id="trit-tensor")
        yield TritView(id="trit-view")
        yield Static(id="trit-status", markup=False)

    @property
    def view(self) -> TritView:
        """The window."""
        return self.query_one(TritView)

    @property
    def choice(self) -> Select[str]:
        """The list of tensors."""
        return self.query_one("#trit-tensor", Select)

    def fill(self, opened: Opened | None) -> None:
        """See `Pane`."""
        names = [] if opened is None else opened.trits[:MOST]
        options = []
        for name in names:
            info = opened.file.tensor(name) if opened is not None and opened.file is not None else None
            about = f"  {info.type.name} {' × '.join(map(str, info.shape))}" if info is not None else ""
            options.append((Content.assemble((display_safe(name), "bold"), (about, "$text 60%")), name))
        self.choice.set_options(options)
        if names:
            # the first layer is more telling than the embedding, which comes first in most files
            first = next((name for name in names if name.startswith("blk.")), names[0])
            self.choice.value = first
        else:
            self.view.show(None)
            self.query_one("#trit-status", Static).update("This file has no ternary tensors.")

    def focus_first(self) -> None:
        """The window takes the keys."""
        self.view.focus()

    def look_at(self, name: str) -> None:
        """Show a tensor by its name."""
        if self.opened is not None and name in self.opened.trits[:MOST]:
            self.choice.value = name

    @on(Select.Changed, "#trit-tensor")
    def _chosen(self, event: Select.Changed) -> None:
        if self.opened is not None and isinstance(event.value, str):
            self.stop_jobs()
            self.view.show(self.opened.reader(event.value))
            self.view.focus()

    def action_tensor(self, step: int) -> None:
        """Go to the next or previous ternary tensor."""
        if self.opened is not None and self.opened.trits and isinstance(self.choice.value, str):
            names = self.opened.trits[:MOST]
            self.choice.value = names[(names.index(self.choice.value) + step) % len(names)]

    @on(TritView.Wanted)
    def _wanted(self, event: TritView.Wanted) -> None:
        event.stop()
        window, view = event.sender, event.view
        self.start_job("picture", lambda _job: window.compute(view), lambda found: self._developed(view, found))
        self._describe()

    def _developed(self, view: View, found: object) -> None:
        self.view.put(view, found)  # type: ignore[arg-type]
        self._describe()

    @on(TritView.Moved)
    def _moved(self, event: TritView.Moved) -> None:
        event.stop()
        self._describe()

    def _describe(self) -> None:
        window = self.view
        reader = window.reader
        if reader is None:
            return
        v = window.view
        height, width = (cells * window.weights for cells in window.cells)
        rows = f"rows {v.row:,}–{min(reader.rows, v.row + height) - 1:,} of {reader.rows:,}"
        columns = f"columns {v.column:,}–{min(reader.columns, v.column + width) - 1:,} of {reader.columns:,}"
        scale = "symbols" if v.zoom == 0 else "1:1" if v.zoom == 1 else f"1:{v.zoom} {window.kind}"
        if v.zoom > 1 and window.contrast > 1:
            scale += f" ×{window.contrast:.1f}"
        if self.job("picture") is not None:
            scale += " …"
        quiet = "$text 60%"
        c = colours_of(self.app)
        legend = Content.assemble(
            *(
                (name, f"{shade.get_contrast_text(1.0).hex6} on {shade.hex6}")
                for name, shade in ((" −1 ", c.minus), (" 0 ", c.zero), (" +1 ", c.plus))
            ),
            " ",
        )
        line = legend + Content.styled(f"{scale} · {rows} · {columns}", quiet)
        self.query_one("#trit-status", Static).update(Content("\n").join([line, self._pointed()]))

    def _pointed(self) -> Content:
        window = self.view
        if window.pointed is None:
            return Content.styled("x, or the mouse, reads a weight", "$text 60%")
        row, column = window.pointed
        found = window.value_at(row, column)
        if found is None:
            return Content("")
        trit, scale = found
        text = f"row {row:,}, column {column:,}: {trit:+d} × {scale:.5g} = {trit * scale:+.5g}"
        mean = window.mean_at(row, column)
        if window.view.zoom > 1 and mean is not None:
            what = "mean" if window.kind == "mean" else "not zero"
            text = f"{what} {mean:+.4f} in {window.weights}×{window.weights} from {text}"
        return Content(text)
