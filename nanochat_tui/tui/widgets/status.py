"""The status line: which model on what, how fast, how full, doing what. One row of fixed size, so that a change of
numbers never moves anything else.
"""

from __future__ import annotations

from dataclasses import dataclass

from textual.content import Content
from textual.reactive import reactive
from textual.widget import Widget

from nanochat_tui.chat.backend import Stats
from nanochat_tui.text import printable
from nanochat_tui.tui.widgets.bars import meter, sparkline

GAUGE_CELLS = 8
SPARK_CELLS = 10


@dataclass(frozen=True, slots=True)
class Status:
    """Everything the line may show."""

    model: str
    state: str = "starting"
    kernel: str = ""
    threads: int = 0
    stats: Stats | None = None
    context_size: int = 0
    speeds: tuple[float, ...] = ()
    """Tokens per second of the last moments, oldest first."""
    unsaved: bool = False
    experience: str = ""
    """Rules that the model reads before each message."""


def gauge(used: int, size: int, cells: int = GAUGE_CELLS) -> str:
    """Return a bar `cells` wide, filled by `used / size`; what is used at all is seen."""
    if used <= 0 or size <= 0:
        return " " * cells
    return meter(max(used / size, 1 / (8 * cells)), cells)


def speed(tps: float | None) -> str:
    """Return tokens per second, five cells wide below ten million: " 84.2", "  412", "12.3k", " 100k"."""
    if tps is None:
        text = "–"
    elif tps < 99.95:
        text = f"{tps:.1f}"
    elif tps < 9999.5:
        text = f"{tps:.0f}"
    elif tps < 99_950:
        text = f"{tps / 1000:.1f}k"
    else:
        text = f"{tps / 1000:.0f}k"
    return text.rjust(5)


def status_content(status: Status, width: int) -> Content:
    """Lay the line out for `width` cells: what matters less goes first when there is little room.

    The state stands left, the model next to it; speeds and context stand right.
    """
    stats = status.stats
    used = stats.context_used if stats else 0
    size = (stats.context_size if stats else 0) or status.context_size
    decode = speed(stats.decode_tps if stats else None)
    prompt = speed(stats.prompt_tps if stats else None)
    share = used / size if size else 0
    level = "$text-error" if share > 0.9 else "$text-warning" if share > 0.75 else "$text-success"
    digits = len(str(size))

    state = Content.styled(f" {printable(status.state):<8} ", "bold $primary on $primary-muted")
    if status.unsaved:
        state += Content.styled(" unsaved ", "bold $text-warning")
    name = Content.styled(f" {printable(status.model)}", "bold $text")
    rules = Content.styled(f"  rules {printable(status.experience)}" if status.experience else "", "$text-accent")
    kernel = Content.styled(f"  {status.kernel}" if status.kernel else "", "$text 60%")
    threads = Content.styled(f" · {status.threads} threads" if status.threads > 1 else "", "$text 60%")
    context = Content.assemble(("ctx ", "$text 60%"), (f"{used:>{digits}}/{size}" if size else "–", "$text"))
    bar = Content.assemble(" ", (gauge(used, size), f"{level} on $surface-lighten-2"))
    writing = Content.assemble((decode, "bold $text"), (" tok/s", "$text 60%"))
    reading = Content.assemble(("prompt ", "$text 60%"), (prompt, "$text"))

    spark = Content.styled(sparkline(status.speeds, SPARK_CELLS) + " ", "$text-accent")

    gap = Content("  ")
    wanted = {"spark", "threads", "bar", "reading", "kernel", "rules", "name"}
    for given_up in ("", "spark", "threads", "bar", "reading", "kernel", "rules", "name"):
        wanted.discard(given_up)
        left, right = state, writing + gap + context
        if "spark" in wanted and status.speeds:
            right = spark + right
        for part, content in (("name", name), ("rules", rules), ("kernel", kernel), ("threads", threads)):
            if part in wanted:
                left += content
        if "reading" in wanted:
            right = reading + gap + right
        if "bar" in wanted:
            right += bar
        space = width - left.cell_length - right.cell_length
        if space >= 1:
            return left + Content(" " * space) + right
    return (state + writing + gap + context).truncate(width)


class StatusLine(Widget):
    """Shows a `Status`; assign `status` to change it."""

    DEFAULT_CSS = """
    StatusLine { height: 1; background: $surface-lighten-1; }
    """

    status: reactive[Status] = reactive(Status(""), layout=False)

    def render(self) -> Content:
        """Draw the one row there is."""
        return status_content(self.status, self.size.width)
