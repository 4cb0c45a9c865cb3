"""How quick the application stays: lag of its event loop, keystrokes, start, idling, memory.

    python benchmarks/application.py [MODEL] [--seconds 10] [--minutes 60 | --replies 3000] [--only lag,key] [--json]

- paint: from starting the process on a terminal to the first frame, warm; under 1 s
- idle: share of one processor that process takes while nothing happens; under 1 %
- lag: how late a timer of 5 ms fires while the model writes flat out (p50, p99); p99 under 50 ms
- key: from a key to the painted screen, in a session of 500 messages (p50, p99); p99 under 50 ms
- memory: chats for `--minutes`, a new session now and then, and compares the medians of what is resident in the second
  and the last quarter, as growth per hour; flat means under 16 MiB. Under ten minutes it is measured but not judged,
  because allocators still fill their pools. With `--replies` it chats for as many, and the growth over the last third
  of them is measured: flat means under 1 MiB for a thousand. Under 3,000 it is not judged. The text of a session
  stays in memory while it is on show, so that sessions of a fixed length are compared.

Ends with 1 when something that was measured is above its limit. Numbers mean nothing on a busy machine.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import select
import statistics
import sys
import tempfile
import time
from pathlib import Path

import psutil
from textual.events import Key
from textual.pilot import Pilot

from nanochat_tui.chat.local import LocalBackend
from nanochat_tui.chat.store import Store
from nanochat_tui.chat.store.records import SessionSettings, StoredSession, StoredTurn, new_session
from nanochat_tui.cli.entry import OBJECTS_PER_COLLECTION
from nanochat_tui.model.shipped import shipped_model
from nanochat_tui.request import SamplingParams
from nanochat_tui.tui.app import NanochatApp

PROMPT = "fn main() {"
LIMITS = {
    "first_paint_s": 1.0,
    "idle_percent": 1.0,
    "lag_p99_ms": 50.0,
    "key_p99_ms": 50.0,
    "memory_mib_per_hour": 16.0,
    "memory_mib_per_1000": 1.0,
}
JUDGED_MINUTES = 10.0
"""Time of chatting from which the growth of memory is judged."""
JUDGED_REPLIES = 3000
"""Replies from which the growth over the last third of them is judged."""
SESSION_REPLIES = 50
"""Replies after which a new session is begun."""


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


async def until(pilot: Pilot[None], app: NanochatApp, state: str) -> None:
    while app.chat.status.state != state:
        await asyncio.sleep(0.01)
    await pilot.pause()


async def lag(pilot: Pilot[None], app: NanochatApp, seconds: float) -> dict[str, float]:
    late: list[float] = []
    app.chat.session.settings = SessionSettings("", SamplingParams(seed=1), None)
    end = time.monotonic() + seconds
    tokens = 0
    while time.monotonic() < end:
        if app.chat.status.state == "ready":
            await app.chat.flow.new()
            app.chat.session.settings = SessionSettings("", SamplingParams(seed=tokens), None)
            await app.chat.replies.send(PROMPT)
        began = time.perf_counter()
        await asyncio.sleep(0.005)
        late.append((time.perf_counter() - began - 0.005) * 1000)
        tokens += 1
    app.chat.replies.stop()
    await until(pilot, app, "ready")
    return {"lag_p50_ms": percentile(late, 0.5), "lag_p99_ms": percentile(late, 0.99), "lag_max_ms": max(late)}


async def keys(pilot: Pilot[None], app: NanochatApp, presses: int = 200) -> dict[str, float]:
    turns = tuple(StoredTurn(f"question {i} " + "word " * 20, (f"answer **{i}** " + "text " * 60,)) for i in range(250))
    info = new_session("bench", is_chat=True, settings=SessionSettings())
    await app.chat.flow.show(StoredSession(info, turns))
    app.chat.prompt.focus()
    await pilot.pause(0.5)
    painted = asyncio.Event()
    original = app._display

    def display(*arguments: object) -> None:
        original(*arguments)  # type: ignore[arg-type]
        painted.set()

    app._display = display  # type: ignore[method-assign, assignment]
    took: list[float] = []
    for count in range(presses):
        letter = "abcdefgh"[count % 8]
        before = len(app.chat.prompt.text)
        began = time.perf_counter()
        app.post_message(Key(letter, letter))
        while len(app.chat.prompt.text) == before:
            await asyncio.sleep(0)
        painted.clear()
        await asyncio.wait_for(painted.wait(), 5)
        took.append((time.perf_counter() - began) * 1000)
        if count % 40 == 39:
            app.chat.prompt.text = ""
        await asyncio.sleep(0.01)
    del app._display
    return {"key_p50_ms": percentile(took, 0.5), "key_p99_ms": percentile(took, 0.99)}


def growth_per_hour(samples: list[tuple[float, float]]) -> float:
    """What a size grows by per hour: the difference between the medians of the second and the last quarter of the time,
    over the time between their middles. `samples` are pairs of seconds and size. Raises ValueError for too few.
    """
    first, last = samples[0][0], samples[-1][0]
    quarter = (last - first) / 4
    early = [size for at, size in samples if first + quarter <= at < first + 2 * quarter]
    late = [size for at, size in samples if at >= first + 3 * quarter]
    if not early or not late or quarter <= 0:
        raise ValueError("too few replies to tell growth; chat longer with --minutes")
    return (statistics.median(late) - statistics.median(early)) / (2 * quarter) * 3600


def growth_per_1000(sizes: list[float]) -> float:
    """What a size grows by per thousand replies over the last third of them: the difference between the medians of the
    first and the last session there, over the replies between their middles. Raises ValueError for too few.
    """
    third = sizes[len(sizes) * 2 // 3 :]
    if len(third) < 2 * SESSION_REPLIES:
        raise ValueError(f"too few replies to tell growth; give --replies {6 * SESSION_REPLIES} or more")
    grown = statistics.median(third[-SESSION_REPLIES:]) - statistics.median(third[:SESSION_REPLIES])
    return grown / (len(third) - SESSION_REPLIES) * 1000


async def memory(pilot: Pilot[None], app: NanochatApp, minutes: float, replies: int) -> dict[str, float]:
    process = psutil.Process()
    samples: list[tuple[float, float]] = []
    end = time.monotonic() + 60 * minutes
    while len(samples) < replies if replies else time.monotonic() < end or len(samples) < 8:
        if len(samples) % SESSION_REPLIES == 0:
            await app.chat.flow.new()
            app.chat.session.settings = SessionSettings("", SamplingParams(seed=1), 24)
        await app.chat.replies.send(PROMPT)
        await until(pilot, app, "ready")
        samples.append((time.monotonic(), process.memory_info().rss / 2**20))
    seen = {"memory_mib": samples[-1][1], "replies": len(samples)}
    if replies:
        return {"memory_mib_per_1000": growth_per_1000([size for _, size in samples])} | seen
    return {"memory_mib_per_hour": growth_per_hour(samples)} | seen


class Terminal:
    """The application as a process on a terminal of its own."""

    def __init__(self, model: Path, folder: Path) -> None:
        import fcntl
        import pty
        import struct
        import subprocess
        import termios

        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
        own = {f"NANOCHAT_{kind}_DIR": str(folder / kind.lower()) for kind in ("DATA", "STATE", "CONFIG")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "nanochat_tui", str(model)],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=os.environ | own | {"TERM": "xterm-256color"},
        )
        os.close(slave)

    def read(self, seconds: float) -> bytes:
        """Return what it draws within a time; a terminal that is not read would hold it up."""
        end, seen = time.monotonic() + seconds, b""
        while (left := end - time.monotonic()) > 0:
            if select.select([self.master], [], [], left)[0]:
                seen += os.read(self.master, 65536)
        return seen

    def used(self) -> float:
        """Seconds of processor time so far, of all its threads."""
        times = psutil.Process(self.process.pid).cpu_times()
        return times.user + times.system

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.master)


def first_paint(model: Path, folder: Path) -> float:
    began = time.perf_counter()
    screen = Terminal(model, folder)
    try:
        seen = b""
        while b"Loading" not in seen and model.stem.encode() not in seen:
            seen += os.read(screen.master, 65536)
        return time.perf_counter() - began
    finally:
        screen.close()


def idle(model: Path, folder: Path, seconds: float) -> dict[str, float]:
    screen = Terminal(model, folder)
    try:
        screen.read(3.0)
        calm, end = 0, time.monotonic() + 120
        while calm < 2:  # until it has loaded and drawn all it has to; the cursor goes on blinking
            before = screen.used()
            screen.read(1.0)
            calm = calm + 1 if screen.used() - before < 0.1 else 0
            if time.monotonic() > end or screen.process.poll() is not None:
                raise SystemExit("error: the application does not come to rest; is it running at all?")
        began, used = time.monotonic(), screen.used()
        screen.read(seconds)
        return {"idle_percent": 100 * (screen.used() - used) / (time.monotonic() - began)}
    finally:
        screen.close()


PARTS = ("paint", "idle", "lag", "key", "memory")


def too_much(rows: dict[str, float], minutes: float) -> list[str]:
    """Say which figures are above their limits."""
    judged = {name: limit for name, limit in LIMITS.items() if name in rows}
    if minutes < JUDGED_MINUTES:
        judged.pop("memory_mib_per_hour", None)
    if rows.get("replies", 0) < JUDGED_REPLIES:
        judged.pop("memory_mib_per_1000", None)
    return [f"{name} is {rows[name]:.2f}, over {limit:g}" for name, limit in judged.items() if not rows[name] < limit]


async def measure(model: Path, seconds: float, minutes: float, parts: list[str], replies: int = 0) -> dict[str, float]:
    rows: dict[str, float] = {}
    gc.set_threshold(OBJECTS_PER_COLLECTION)  # as the command does

    def found(new: dict[str, float]) -> None:
        rows.update(new)
        for name, value in new.items():
            print(f"{name:<22}{value:>10.2f}", file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory() as folder:
        if "paint" in parts:
            first_paint(model, Path(folder))
            found({"first_paint_s": min(first_paint(model, Path(folder)) for _ in range(2))})
        if "idle" in parts:
            found(idle(model, Path(folder), seconds))
        if not {"lag", "key", "memory"} & set(parts):
            return rows
        app = NanochatApp(LocalBackend(model), store=Store(Path(folder) / "bench.db"))
        async with app.run_test(size=(120, 40)) as pilot:
            await until(pilot, app, "ready")
            if "lag" in parts:
                found(await lag(pilot, app, seconds))
            if "key" in parts:
                found(await keys(pilot, app))
            if "memory" in parts:
                found(await memory(pilot, app, minutes, replies))
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", type=Path)
    parser.add_argument("--seconds", type=float, default=10.0, help="how long lag and idling are measured")
    parser.add_argument("--minutes", type=float, default=1.0, help="how long memory is watched")
    parser.add_argument("--replies", type=int, default=0, help="chat for so many replies instead of minutes")
    parser.add_argument("--only", default=",".join(PARTS), help="which parts, with commas between them")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    model = arguments.model or shipped_model()
    if model is None or not model.is_file():
        print("error: give the path of a GGUF file.", file=sys.stderr)
        return 2
    parts = arguments.only.split(",")
    if unknown := set(parts) - set(PARTS):
        print(f"error: there is no part {', '.join(sorted(unknown))}; choose from {', '.join(PARTS)}.", file=sys.stderr)
        return 2
    rows = asyncio.run(measure(model, arguments.seconds, arguments.minutes, parts, arguments.replies))
    if arguments.json:
        print(json.dumps(rows))
    wrong = too_much(rows, arguments.minutes)
    for line in wrong:
        print(line, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
