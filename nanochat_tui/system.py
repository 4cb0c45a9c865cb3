"""Facts of this machine: the processors that this process may use, by affinity, kind and control group, and memory.

All of it is read from Linux's /sys and /proc; where they are missing the system's own count has to do.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from nanochat_tui.errors import UserError

DEVICES = Path("/sys/devices")
GROUPS = Path("/sys/fs/cgroup")
OWN_GROUPS = Path("/proc/self/cgroup")
MAX_CPU = 1 << 16


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


def usable_cpu_count() -> int:
    """Return how many processors (hardware threads) this process may use."""
    mine = usable_cpus()
    return len(mine) if mine is not None else os.cpu_count() or 1


def memory_size() -> tuple[int, int]:
    """Return the machine's memory and what of it is available now."""
    import psutil

    found = psutil.virtual_memory()
    return int(found.total), int(found.available)


def peak_rss() -> int:
    """Return the most memory this process ever held, in bytes."""
    with contextlib.suppress(OSError, ValueError, StopIteration):
        # Linux: what getrusage says counts the parent too, as it was when it started this process
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    if os.name == "posix":
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    import psutil

    return int(psutil.Process().memory_info().peak_wset)


def core_of(system: Path, cpu: int) -> str:
    """Return what the threads of one core have in common: the list of them. system: /sys/devices/system."""
    try:
        return (system / "cpu" / f"cpu{cpu}" / "topology" / "thread_siblings_list").read_text().strip()
    except OSError:
        return str(cpu)


def performance_cpus(usable: frozenset[int], devices: Path = DEVICES) -> frozenset[int]:
    """Return those of `usable` that are a hybrid processor's fast ones, or all if it is none or only slow ones are.

    Threads wait for each other after every matrix, so that a slow core would hold up the fast ones.
    """
    try:
        fast = parse_cpulist((devices / "cpu_core" / "cpus").read_text()) & usable
    except (OSError, ValueError, UserError):
        return usable
    return fast or usable


def stay_on_performance_cpus(devices: Path = DEVICES) -> None:
    """Bind the calling thread to a hybrid processor's fast ones among those it may use; elsewhere do nothing.

    For threads that only compute: the system may move them to any of these, so that other programs find room.
    """
    usable = usable_cpus()
    fast = None if usable is None else performance_cpus(usable, devices)
    if fast and fast != usable:
        with contextlib.suppress(OSError):  # a limit that came in between
            os.sched_setaffinity(0, fast)


def group_folders(controller: str, groups: Path = GROUPS, own: Path = OWN_GROUPS) -> Iterator[Path]:
    """Yield the folders of this process's control groups for a controller, each before the one it lies in.

    The limits of all of them apply. groups: where they are mounted, version 2 itself, version 1 in a folder for each
    controller. own: the list of this process's groups; within a container it may name folders that only the host has.
    """
    places = {groups: "", groups / controller: ""}
    try:
        lines = own.read_text().splitlines()
    except (OSError, ValueError):
        lines = []
    for line in lines:
        _, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        if not names:
            places[groups] = path
        elif controller in names.split(","):
            places[groups / controller] = path
    for top, path in places.items():
        parts = [part for part in path.split("/") if part not in ("", "..")]
        for depth in range(len(parts), -1, -1):
            folder = top.joinpath(*parts[:depth])
            if folder.is_dir():
                yield folder


def cpu_quota(groups: Path = GROUPS, own: Path = OWN_GROUPS) -> int | None:
    """Return how many processors' time the control groups allow, rounded up; None if they set no limit."""
    found = []
    for folder in group_folders("cpu", groups, own):
        for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
            try:
                quota, period = " ".join((folder / name).read_text() for name in names).split()
                if quota != "max" and int(quota) > 0:  # version 1 says -1 for no limit
                    found.append(-(-int(quota) // int(period)))
            except (OSError, ValueError, ZeroDivisionError):
                continue  # this group has none
    return min(found, default=None)


def default_threads(
    usable: frozenset[int] | None = None,
    devices: Path = DEVICES,
    groups: Path = GROUPS,
    own: Path = OWN_GROUPS,
) -> int:
    """Return how many threads a model is run with: one per core that this process may use, and no more than its quota.

    usable: processors to consider; None asks the system. The others are where to read, see the other functions.
    """
    mine = usable_cpus() if usable is None else usable
    if mine is None:
        import psutil

        count = int(psutil.cpu_count(logical=False) or os.cpu_count() or 1)
    else:
        count = len({core_of(devices / "system", cpu) for cpu in performance_cpus(mine, devices)})
    return max(1, min(count, cpu_quota(groups, own) or count))
