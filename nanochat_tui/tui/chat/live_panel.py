"""What the model does, next to the chat."""

from __future__ import annotations

import time
from collections.abc import Sequence

from textual.app import ComposeResult
from textual.containers import Vertical
from textual.content import Content
from textual.reactive import reactive
from textual.widgets import Static

from nanochat_tui.chat.backend import Backend, Stats
from nanochat_tui.chat.local import LocalBackend
from nanochat_tui.chat.trace import Tracer
from nanochat_tui.text import printable
from nanochat_tui.tui import numbers
from nanochat_tui.tui.background import Job
from nanochat_tui.tui.chat.inside import Inside, matrix_rows, stream_rows
from nanochat_tui.tui.widgets.bars import sparkline
from nanochat_tui.tui.widgets.status import speed

WIDTH = 36
TRACE_SECONDS = 1.5
"""Least time between two looks inside: they take the processor from the reply."""


class LivePanel(Vertical):
    """Speed, memory, kernel, and the inside of the model at its last token. Works only while it is open."""

    HELP = """\
### Live
What the model does during decode: tokens per second over the last minute, the memory of this process and the kernel.
With **draft tokens**: how many were accepted, each of which saves a pass.

For nanochat models also the **hyper-connections**: mixing matrix, read and write weights of every record, alpha of all;
how long the **streams** of the last token are after every sub-layer (1a: attention of block 1, 1f: its feed-forward),
how alike they are, and what would be said if the model ended there. **◆** marks where the final token is first the
likeliest. This is computed on the side, by a second forward pass, at most every second and a half; for large models
and other architectures there is none, and the panel says so.

**Tab** goes here from the transcript; **{live.down|j} {live.up|k}** or **↑ ↓** scroll.
"""

    is_open: reactive[bool] = reactive(False, layout=False)

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._backend: Backend | None = None
        self._tracer: Tracer | None = None
        self._stats: Stats | None = None
        self._speeds: Sequence[float] = ()
        self._job: Job[Inside] | None = None
        self._traced = 0.0
        self._refused = False

    def compose(self) -> ComposeResult:
        """Lay out the lines."""
        yield Static(id="live-speed", markup=False)
        yield Static(id="live-streams", markup=False)
        yield Static(id="live-matrices", markup=False)

    def show_backend(self, backend: Backend) -> None:
        """Tell which model it is about."""
        self._backend = backend
        if self._job is not None:
            self._job.stop()  # what it sees is another model's
        self._tracer, self._refused = None, False
        self._stats, self._speeds = None, ()
        unseen = "" if isinstance(backend, LocalBackend) else "\nStreams and depth are seen of models loaded here."
        self.query_one("#live-streams", Static).update(unseen)
        self.query_one("#live-matrices", Static).update("")
        self.redraw()

    def show_speeds(self, stats: Stats, speeds: Sequence[float]) -> None:
        """Take new numbers."""
        self._stats, self._speeds = stats, speeds
        self.redraw()
        self.look_inside()

    def watch_is_open(self) -> None:
        """Draw what happened meanwhile."""
        self.redraw()
        self.look_inside()

    def redraw(self) -> None:
        """Write the lines again."""
        if not self.is_open or not self.is_attached or self._backend is None:
            return
        stats, backend = self._stats, self._backend
        drafts = []
        if stats is not None and stats.drafted:
            drafts.append(("drafts", f"{stats.accepted} of {stats.drafted} accepted"))
        rows = [
            ("decode", f"{speed(stats.decode_tps if stats else None).strip()} tok/s"),
            ("prefill", f"{speed(stats.prompt_tps if stats else None).strip()} tok/s"),
            *drafts,
            ("context", f"{stats.context_used if stats else 0} of {backend.context_size or '?'}"),
            ("kernel", backend.kernel),
            ("threads", str(backend.threads or "–")),
            ("memory", memory()),
        ]
        content = Content.styled(sparkline(self._speeds, WIDTH), "$text-accent")
        for name, value in rows:
            content += Content.assemble(("\n" + name.ljust(9), "$text 60%"), printable(value))
        self.query_one("#live-speed", Static).update(content)

    # The inside

    def look_inside(self, *, at_once: bool = False) -> None:
        """Compute the inside at the last token in a thread, unless it was done a moment ago."""
        backend = self._backend
        busy = self._job is not None and self._job.is_working
        early = not at_once and time.monotonic() - self._traced < TRACE_SECONDS
        if not self.is_open or busy or early or self._refused or not isinstance(backend, LocalBackend):
            return
        ids = list(backend.trail)
        if not ids:
            return
        self._traced = time.monotonic()
        self._job = Job(
            self, lambda _: self._look(backend, ids), self._show_inside, self._show_refusal, name="inside"
        ).start()

    def _look(self, backend: LocalBackend, ids: list[int]) -> Inside:
        tracer = self._tracer or Tracer(backend.path, backend.mhc)
        self._tracer = tracer
        trace = tracer.trace(ids)
        texts = tuple(backend.model.decode([token]) for token in trace.tops)
        return Inside(tracer.matrices, trace, texts)

    def _show_refusal(self, error: str) -> None:
        self._refused = self._tracer is None
        self.query_one("#live-streams", Static).update(Content(f"\n{printable(error)}"))

    def _show_inside(self, inside: Inside) -> None:
        head = Content.styled("\nlast token (computed on the side)", "bold $text-primary")
        self.query_one("#live-streams", Static).update(Content("\n").join([head, *stream_rows(inside)]))
        rows = matrix_rows(inside)
        title = Content.styled("\nhyper-connections", "bold $text-primary")
        matrices = self.query_one("#live-matrices", Static)
        matrices.update(Content("\n").join([title, *rows]) if rows else Content(""))


def memory() -> str:
    """Return the resident memory of this process."""
    import psutil

    return numbers.size(psutil.Process().memory_info().rss)
