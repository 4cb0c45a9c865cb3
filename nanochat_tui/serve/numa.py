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

from nanochat_tui.errors import UserError

SYSTEM = Path("/sys/devices/system")
MAX_CPU = 1 << 16
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Node:
    """A memory node: its processors that this process may use, and how many cores they are."""

    id: int
    cpus: frozenset[int]
    cores: int


def parse_cpulist(text: str) -> frozenset[int]:
    """Return the numbers of the kernel's list format, such as "0-3,8,10-11"; an empty text is an empty set.

    Raises UserError for anything else.
    """
    found: set[int] = set()
    for part in text.strip().split(","):
        if not part:
            continue
        first, dash, last = part.partition("-")
        try:
            low, high = int(first), int(last if dash else first)
        except ValueError:
            raise UserError("the system's list of processors cannot be read; leave out --numa") from None
        if not 0 <= low <= high < MAX_CPU:
            raise UserError("the system's list of processors makes no sense; leave out --numa")
        found.update(range(low, high + 1))
    return frozenset(found)


def usable_cpus() -> frozenset[int] | None:
    """Return the processors this process may use; None where the system does not tell."""
    return frozenset(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None


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
            nodes.append(Node(int(folder.name[4:]), mine, len({_core(root, cpu) for cpu in mine})))
    return nodes


def _core(root: Path, cpu: int) -> str:
    """Return what the threads of one core have in common: the list of them."""
    try:
        return (root / "cpu" / f"cpu{cpu}" / "topology" / "thread_siblings_list").read_text().strip()
    except OSError:
        return str(cpu)


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
