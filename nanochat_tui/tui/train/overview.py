"""What a run is and does, in three lines above the charts, and its alarms."""

from __future__ import annotations

from textual.content import Content
from textual.reactive import reactive
from textual.widget import Widget

from nanochat_tui.runs.state import RunState
from nanochat_tui.runs.watch import Snapshot
from nanochat_tui.text import display_safe
from nanochat_tui.tui import numbers

COLOURS = {
    "running": "success",
    "starting": "primary",
    "stalled": "warning",
    "crashed": "error",
    "killed": "warning",
    "failed": "error",
    "finished": "secondary",
    "stopped": "secondary",
    "unknown": "foreground",
}


MOST_ALARMS = 3


SILENT_SECONDS = 15.0
"""Age of the last sign of life from which it is shown and no end is foretold; the trainer beats every ten seconds."""


def silence(snapshot: Snapshot) -> float | None:
    """Seconds without a heartbeat or a new row where they are worth a word; None while all is well."""
    state = snapshot.state
    age = state.heartbeat_age
    if not state.alive or state.phase == "compiling" or age is None or age <= SILENT_SECONDS:
        return None
    return age


def badge(state: RunState) -> Content:
    """The state in a coloured box of fixed width."""
    word = state.phase if state.life == "running" and state.phase else state.life
    colour = COLOURS[state.life]
    return Content.styled(f" {display_safe(word, 10):<10} ", f"bold ${colour} on ${colour} 20%")


def bar(share: float, cells: int) -> str:
    """A progress bar in eighths of cells."""
    eighths = round(min(1.0, max(0.0, share)) * cells * 8)
    full, rest = divmod(eighths, 8)
    return ("█" * full + (" ▏▎▍▌▋▊▉"[rest] if rest else "")).ljust(cells)


def progress_line(snapshot: Snapshot, width: int) -> Content:
    """Step of total, a bar, what remains and what was done."""
    state = snapshot.state
    known = 0 < state.total < 10**9
    share = state.step / state.total if known else 0.0
    steps = f"{state.step:,}/{state.total:,} {share:4.0%}" if known else f"step {state.step:,}"
    tokens = snapshot.series.last("tokens")
    right = f"  ETA {numbers.duration(snapshot.eta)}" if state.alive and silence(snapshot) is None else ""
    right += f"  {numbers.duration(state.seconds)} trained"
    if tokens:
        right += f"  {numbers.amount(tokens)} tokens"
    cells = max(0, min(60, width - len(steps) - len(right) - 3))
    line = f" {steps} "
    return Content.assemble(
        (line, "bold $text"), (bar(share, cells) if known else "", "$primary on $surface-lighten-2"), (right, "$text")
    ).truncate(width)


def figures_line(snapshot: Snapshot, width: int) -> Content:
    """Speed, losses, machine: what is not known is left out, what matters less is cut off at the right."""
    series = snapshot.series
    parts: list[tuple[str, str]] = []

    def add(label: str, value: str) -> None:
        parts.append((label, value))

    if snapshot.speed:
        add("tok/s", f"{snapshot.speed:,.0f}")
    for label, key in (("loss", "loss"), ("val", "val_loss"), ("bits/byte", "val_bits_per_byte")):
        number = series.last(key)
        if number is not None:
            add(label, numbers.short(number))
    if snapshot.mfu is not None:
        add("MFU", f"{snapshot.mfu:.1%}")
    for gpu in snapshot.gpus:
        watts = f" {gpu.watts:.0f}W" if gpu.watts is not None else ""
        heat = f" {gpu.celsius}°C" if gpu.celsius is not None else ""
        add("GPU", f"{gpu.utilisation}% {gpu.memory_used / 1e9:.1f}/{gpu.memory_total / 1e9:.0f} GB{watts}{heat}")
    if snapshot.memory:
        add("memory", numbers.size(snapshot.memory))
    environment = snapshot.config.get("environment")
    if isinstance(environment, dict):
        add("on", display_safe(str(environment.get("device_name", "")), 40))
    content = Content("")
    for label, value in parts:
        piece = Content.assemble((f" {label} ", "$text 60%"), (f"{value} ", "bold $text"))
        if content.cell_length + piece.cell_length > width:
            break
        content += piece
    return content


def title_line(snapshot: Snapshot, width: int) -> Content:
    """State, name, model, process."""
    state = snapshot.state
    settings = snapshot.config.get("config")
    facts = []
    if isinstance(settings, dict):
        facts.append(display_safe(str(settings.get("config", "")), 20))
    parameters = snapshot.config.get("parameters")
    if isinstance(parameters, int):
        facts.append(f"{numbers.amount(parameters)} parameters")
    if snapshot.is_log:
        facts.append("log of the original trainer")
    if state.alive and state.pid:
        facts.append(f"process {state.pid}" + ("" if state.local else f" on {display_safe(state.host, 40)}"))
    content = badge(state) + Content.styled(f" {display_safe(snapshot.name, 60)}", "bold $text")
    silent = silence(snapshot)
    if silent is not None:
        content += Content.styled(f" · no heartbeat for {numbers.duration(silent)}", "bold $text-warning")
    return (content + Content.styled("".join(f" · {fact}" for fact in facts), "$text 60%")).truncate(width)


class RunOverview(Widget):
    """Three lines and up to three alarms."""

    DEFAULT_CSS = """
    RunOverview { height: auto; background: $surface-lighten-1; }
    """

    snapshot: reactive[Snapshot | None] = reactive(None)
    pending: reactive[str] = reactive("")
    """What the run was asked for and has not done yet."""
    _rows = 1

    def watch_snapshot(self) -> None:
        """Lay the screen out again only when a line comes or goes, not at every look."""
        seen = self.snapshot
        rows = 1 if seen is None else 3 + min(MOST_ALARMS, len(seen.alarms)) + bool(self.pending)
        if rows != self._rows:
            self._rows = rows
            self.refresh(layout=True)

    def watch_pending(self) -> None:
        """The same for what is pending."""
        self.watch_snapshot()

    def render(self) -> Content:
        """Draw the lines."""
        seen, width = self.snapshot, max(20, self.size.width)
        if seen is None:
            return Content.styled(" No run is open: choose one under Runs, or start one under New run.", "$text 60%")
        lines = [title_line(seen, width), progress_line(seen, width), figures_line(seen, width)]
        if self.pending:
            lines.append(Content.styled(f" … {self.pending}", "bold $text-accent").truncate(width))
        for alarm in seen.alarms[:MOST_ALARMS]:
            colour = "error" if alarm.level == "error" else "warning"
            lines.append(Content.styled(f" ▲ {alarm.text}", f"bold $text-{colour}").truncate(width))
        return Content("\n").join(lines)
