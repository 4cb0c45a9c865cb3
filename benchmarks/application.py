"""How quick the application stays: lag of its event loop, keystrokes, start, idling, memory.

    python benchmarks/application.py [MODEL] [--seconds 10] [--json]

- lag: how late a timer of 5 ms fires while the model writes flat out (p50, p99)
- key: from a key to the painted screen, in a session of 500 messages (p50, p99)
- paint: from starting the process to the first frame, warm
- idle: share of one processor while nothing happens
- memory: growth over replies after a warm-up, in KiB per reply
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import psutil
from textual.events import Key
from textual.pilot import Pilot

from nanochat_tui.chat.backend import SamplingSettings
from nanochat_tui.chat.local import LocalBackend
from nanochat_tui.chat.records import SessionSettings, StoredSession, StoredTurn, new_session
from nanochat_tui.chat.store import Store
from nanochat_tui.cli.entry import OBJECTS_PER_COLLECTION
from nanochat_tui.model.shipped import shipped_model
from nanochat_tui.tui.app import NanochatApp

PROMPT = "fn main() {"


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


async def until(pilot: Pilot[None], app: NanochatApp, state: str) -> None:
    while app.chat.status.state != state:
        await asyncio.sleep(0.01)
    await pilot.pause()


async def lag(pilot: Pilot[None], app: NanochatApp, seconds: float) -> dict[str, float]:
    late: list[float] = []
    app.chat.settings = SessionSettings("", SamplingSettings(seed=1), None)
    end = time.monotonic() + seconds
    tokens = 0
    while time.monotonic() < end:
        if app.chat.status.state == "ready":
            await app.chat.new_session()
            app.chat.settings = SessionSettings("", SamplingSettings(seed=tokens), None)
            await app.chat.send(PROMPT)
        began = time.perf_counter()
        await asyncio.sleep(0.005)
        late.append((time.perf_counter() - began - 0.005) * 1000)
        tokens += 1
    app.chat.action_stop()
    await until(pilot, app, "ready")
    return {"lag_p50_ms": percentile(late, 0.5), "lag_p99_ms": percentile(late, 0.99), "lag_max_ms": max(late)}


async def keys(pilot: Pilot[None], app: NanochatApp, presses: int = 200) -> dict[str, float]:
    turns = tuple(StoredTurn(f"question {i} " + "word " * 20, (f"answer **{i}** " + "text " * 60,)) for i in range(250))
    info = new_session("bench", is_chat=True, settings=SessionSettings())
    await app.chat.show_stored(StoredSession(info, turns))
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


async def idle(pilot: Pilot[None], seconds: float = 4.0) -> dict[str, float]:
    await pilot.pause(1.0)
    began, used = time.monotonic(), time.process_time()
    await asyncio.sleep(seconds)
    return {"idle_percent": 100 * (time.process_time() - used) / (time.monotonic() - began)}


async def memory(pilot: Pilot[None], app: NanochatApp, replies: int) -> dict[str, float]:
    process = psutil.Process()
    await app.chat.new_session()
    app.chat.settings = SessionSettings("", SamplingSettings(seed=1), 24)
    sizes: list[float] = []
    for _ in range(replies):
        await app.chat.send(PROMPT)
        await until(pilot, app, "ready")
        sizes.append(process.memory_info().rss / 1024)
    half = len(sizes) // 2
    return {"memory_kib_per_reply": (statistics.mean(sizes[-10:]) - statistics.mean(sizes[half : half + 10])) / half}


def first_paint(model: Path, folder: Path) -> float:
    import pty
    import subprocess

    master, slave = pty.openpty()
    environment = os.environ | {"NANOCHAT_DATA_DIR": str(folder), "NANOCHAT_STATE_DIR": str(folder), "TERM": "xterm"}
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "nanochat_tui", str(model)], stdin=slave, stdout=slave, stderr=slave, env=environment
    )
    os.close(slave)
    seen = b""
    while b"Loading" not in seen and model.stem.encode() not in seen:
        seen += os.read(master, 65536)
    took = time.perf_counter() - began
    process.kill()
    process.wait()
    os.close(master)
    return took


PARTS = ("paint", "idle", "lag", "key", "memory")


async def measure(model: Path, seconds: float, replies: int, parts: list[str]) -> dict[str, float]:
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
        app = NanochatApp(LocalBackend(model), store=Store(Path(folder) / "bench.db"))
        async with app.run_test(size=(120, 40)) as pilot:
            await until(pilot, app, "ready")
            if "idle" in parts:
                found(await idle(pilot))
            if "lag" in parts:
                found(await lag(pilot, app, seconds))
            if "key" in parts:
                found(await keys(pilot, app))
            if "memory" in parts:
                found(await memory(pilot, app, replies))
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", type=Path)
    parser.add_argument("--seconds", type=float, default=10.0, help="how long the lag is measured")
    parser.add_argument("--replies", type=int, default=60, help="replies over which memory is watched")
    parser.add_argument("--only", default=",".join(PARTS), help="which parts, with commas between them")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    model = arguments.model or shipped_model()
    if model is None or not model.is_file():
        print("error: give the path of a GGUF file.", file=sys.stderr)
        return 2
    rows = asyncio.run(measure(model, arguments.seconds, arguments.replies, arguments.only.split(",")))
    if arguments.json:
        print(json.dumps(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
