"""Run a program in a sandbox and watch over it: wall clock, summed memory, number of processes, output."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import tempfile
import time
from typing import IO, Any, cast

import psutil

from nanochat_tui.evaluate.sandbox.isolation import Command, Isolation, environment, isolated
from nanochat_tui.evaluate.sandbox.limits import Ended, Limits, Outcome

LOOK_SECONDS = 0.01
"""Time between two looks at memory and processes."""


def run(kind: Isolation, command: Command, limits: Limits, given: bytes = b"") -> Outcome:
    """Run a command with `given` (at most 4 KiB) on its standard input, and return what became of it.

    Whatever it started ends with it: the namespace's first process takes all others along, and without isolation the
    process group is killed. When this process dies the program dies, too.

    Raises:
        UserError: a program that makes the sandbox is missing.
    """
    with contextlib.ExitStack() as stack:
        place: dict[str, Any] = {}
        if kind is Isolation.NONE:
            work = stack.enter_context(tempfile.TemporaryDirectory(prefix="nanochat-", ignore_cleanup_errors=True))
            place = {"cwd": work, "env": environment(work, str(command.given))}
        process = subprocess.Popen(
            isolated(kind, command, limits),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            **place,
        )
        return _watched(process, limits, given)


def _watched(process: subprocess.Popen[bytes], limits: Limits, given: bytes) -> Outcome:
    """Feed a program, watch it to its end or to that of its allowance, and kill what is left of it."""
    began = time.monotonic()
    streams = _Streams(process, limits.kept)
    ended: Ended | None = None
    try:
        with contextlib.suppress(BrokenPipeError):
            stdin = cast(IO[bytes], process.stdin)
            stdin.write(given)
            stdin.close()
        while ended is None and process.poll() is None:
            streams.read(LOOK_SECONDS)
            ended = _excess(process, limits, time.monotonic() - began, streams.total)
        seconds = time.monotonic() - began
    finally:
        _kill(process)
    while streams.read(0.0):
        pass
    streams.close()
    if ended is None and streams.total > limits.output:
        ended = "output"
    return Outcome(ended or "exit", process.returncode, bytes(streams.kept[0]), bytes(streams.kept[1]), seconds)


def _excess(process: subprocess.Popen[bytes], limits: Limits, seconds: float, output: int) -> Ended | None:
    """Return which bound a running program exceeds."""
    if seconds > limits.seconds:
        return "timeout"
    if output > limits.output:
        return "output"
    try:
        group = psutil.Process(process.pid).children(recursive=True)
    except psutil.Error:
        return None
    if len(group) > limits.processes + 2:  # the sandbox's own are among them
        return "processes"
    resident = 0
    for member in group:
        with contextlib.suppress(psutil.Error):
            resident += member.memory_info().rss
    return "memory" if resident > limits.memory else None


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End a program and all that it started, and wait until its parent process is gone."""
    children: list[psutil.Process] = []
    with contextlib.suppress(psutil.Error):
        children = psutil.Process(process.pid).children(recursive=True)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    for child in children:
        with contextlib.suppress(psutil.Error):
            child.kill()
    process.wait()


class _Streams:
    """The output of a program, read as it comes."""

    def __init__(self, process: subprocess.Popen[bytes], most: int) -> None:
        self._most = most
        self.kept = (bytearray(), bytearray())
        self.total = 0
        self._selector = selectors.DefaultSelector()
        self._files = [cast(IO[bytes], stream) for stream in (process.stdout, process.stderr)]
        for place, file in enumerate(self._files):
            os.set_blocking(file.fileno(), False)
            self._selector.register(file, selectors.EVENT_READ, place)

    def read(self, seconds: float) -> bool:
        """Take what there is, after waiting for something at most `seconds`; return whether anything came."""
        if not self._selector.get_map():
            time.sleep(seconds)
            return False
        came = False
        for key, _ in self._selector.select(seconds):
            data = os.read(key.fd, 1 << 16)
            if not data:
                self._selector.unregister(key.fileobj)
            came = came or bool(data)
            self.total += len(data)
            kept = self.kept[key.data]
            kept += data[: self._most - len(kept)]
        return came

    def close(self) -> None:
        """Close the pipes."""
        self._selector.close()
        for file in self._files:
            file.close()
