"""What the model does, beside the chat."""

from __future__ import annotations

from collections.abc import Sequence

from textual.app import ComposeResult
from textual.containers import Vertical
from textual.content import Content
from textual.reactive import reactive
from textual.widgets import Static

from nanochat_tui.chat.backend import Backend, Stats
from nanochat_tui.chat.printable import printable
from nanochat_tui.tui.widgets.status import sparkline, speed

WIDTH = 28


class LivePanel(Vertical):
    """Speed, memory and kernel. Draws only while it is open."""

    HELP = """\
### Live
What the model does while it writes: tokens per second over the last minute, the memory of this process and the kernel
that computes.
"""

    is_open: reactive[bool] = reactive(False, layout=False)

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._backend: Backend | None = None
        self._stats: Stats | None = None
        self._speeds: Sequence[float] = ()

    def compose(self) -> ComposeResult:
        """Lay out the lines."""
        yield Static(id="live-speed", markup=False)

    def show_backend(self, backend: Backend) -> None:
        """Tell which model it is about."""
        self._backend = backend
        self._stats, self._speeds = None, ()
        self.redraw()

    def show_speeds(self, stats: Stats, speeds: Sequence[float]) -> None:
        """Take new numbers."""
        self._stats, self._speeds = stats, speeds
        self.redraw()

    def watch_is_open(self) -> None:
        """Draw what happened meanwhile."""
        self.redraw()

    def redraw(self) -> None:
        """Write the lines anew."""
        if not self.is_open or not self.is_attached or self._backend is None:
            return
        stats, backend = self._stats, self._backend
        rows = [
            ("writing", f"{speed(stats.decode_tps if stats else None).strip()} tok/s"),
            ("reading", f"{speed(stats.prompt_tps if stats else None).strip()} tok/s"),
            ("context", f"{stats.context_used if stats else 0} of {backend.context_size or '?'}"),
            ("kernel", backend.kernel),
            ("threads", str(backend.threads or "–")),
            ("memory", memory()),
        ]
        content = Content.styled(sparkline(self._speeds, WIDTH), "$text-accent")
        for name, value in rows:
            content += Content.assemble(("\n" + name.ljust(9), "$text 60%"), printable(value))
        self.query_one("#live-speed", Static).update(content)


def memory() -> str:
    """Return the resident memory of this process."""
    import psutil

    return f"{psutil.Process().memory_info().rss / 2**20:.0f} MiB"
