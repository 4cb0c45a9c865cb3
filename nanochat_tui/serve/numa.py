"""Memory nodes of the machine, and threads that stay on one.

On a machine with several nodes a thread reads its own node's memory much faster than another's. One copy of the
model per node, loaded by a thread that is bound to it, keeps every read local: Linux places a page where it is first
written, and new threads inherit the binding of the one that starts them.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from nanochat_tui.system import DEVICES, core_of, parse_cpulist

SYSTEM = DEVICES / "system"
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Node:
    """A memory node: its processors that this process may use, and how many cores they are."""

    id: int
    cpus: frozenset[int]
    cores: int


def find_nodes(root: Path = SYSTEM, usable: frozenset[int] | None = None) -> list[Node]:
    """Return the nodes that have processors to use, by number; none where the system has no such notion.

    root: the folder that holds `node/` and `cpu/`, Linux's /sys/devices/system. usable: processors to consider, None
    for all. Threads of one core count once.
    """
    nodes: list[Node] = []
    for folder in sorted((root / "node").glob("node[0-9]*"), key=lambda path: int(path.name[4:])):
        try:
            cpus = parse_cpulist((folder / "cpulist").read_text())
        except OSError:
            continue
        mine = cpus if usable is None else cpus & usable
        if mine:
            nodes.append(Node(int(folder.name[4:]), mine, len({core_of(root, cpu) for cpu in mine})))
    return nodes


def run_on(cpus: frozenset[int], work: Callable[[], T]) -> T:
    """Call `work` in a new thread bound to `cpus`; threads it starts are bound as well. Raises what it raises."""
    done: list[T] = []
    failed: list[BaseException] = []

    def bound() -> None:
        try:
            os.sched_setaffinity(0, cpus)
            done.append(work())
        except BaseException as error:  # handed to the caller's thread
            failed.append(error)

    thread = threading.Thread(target=bound, name="nanochat-node")
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return done[0]
