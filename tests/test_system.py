"""How many threads are taken, on made topologies and control groups."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from nanochat_tui.system import cpu_quota, default_threads, group_folders, stay_on_performance_cpus


def written(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


def siblings(lists: list[str]) -> dict[str, str]:
    return {f"devices/system/cpu/cpu{n}/topology/thread_siblings_list": text for n, text in enumerate(lists)}


def threads(root: Path, usable: set[int]) -> int:
    return default_threads(frozenset(usable), root / "devices", root / "groups", root / "own")


def test_cores_are_counted_within_the_affinity(tmp_path: Path) -> None:
    root = written(tmp_path, siblings([f"{n % 4},{n % 4 + 4}" for n in range(8)]))
    assert threads(root, set(range(8))) == 4
    assert threads(root, {0, 4}) == 1, "two threads of one core"
    assert threads(root, {0, 4, 5}) == 2
    assert threads(tmp_path / "nothing", {3, 5, 9}) == 3


def test_a_hybrid_processor_runs_on_its_fast_cores(tmp_path: Path) -> None:
    lists = ["0-1", "0-1", "2-3", "2-3", "4", "5", "6", "7"]
    root = written(tmp_path, siblings(lists) | {"devices/cpu_core/cpus": "0-3", "devices/cpu_atom/cpus": "4-7"})
    assert threads(root, set(range(8))) == 2
    assert threads(root, {1, 4, 5, 6}) == 1
    assert threads(root, {5, 6, 7}) == 3, "nothing else may be used"
    (root / "devices/cpu_core/cpus").write_text("nonsense")
    assert threads(root, set(range(8))) == 6


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({"groups/cpu.max": "max 100000"}, None),
        ({"groups/cpu.max": "200000 100000"}, 2),
        ({"groups/cpu.max": "250000 100000"}, 3),
        ({"groups/cpu.max": "5000 100000"}, 1),
        ({"groups/cpu.max": "nonsense"}, None),
        ({"groups/cpu.max": "100000 0"}, None),
        # nested groups of version 2: the strictest counts, wherever it is
        ({"own": "0::/a/b", "groups/a/b/cpu.max": "max 100000", "groups/a/cpu.max": "300000 100000"}, 3),
        ({"own": "0::/a/b", "groups/a/b/cpu.max": "100000 100000", "groups/a/cpu.max": "300000 100000"}, 1),
        # the list names the host's folders, and only the container's own are mounted
        ({"own": "0::/../../docker/1f", "groups/cpu.max": "400000 100000"}, 4),
        ({"groups/cpu/cpu.cfs_quota_us": "-1", "groups/cpu/cpu.cfs_period_us": "100000"}, None),
        (
            {
                "own": "5:memory:/x\n4:cpu,cpuacct:/d/e\n0::/",
                "groups/cpu/d/cpu.cfs_quota_us": "350000",
                "groups/cpu/d/cpu.cfs_period_us": "100000",
            },
            4,
        ),
    ],
)
def test_control_groups_limit_the_threads(tmp_path: Path, files: dict[str, str], quota: int | None) -> None:
    root = written(tmp_path, files)
    assert cpu_quota(root / "groups", root / "own") == quota
    assert threads(root, set(range(6))) == (quota or 6)


def test_groups_come_from_the_inside(tmp_path: Path) -> None:
    root = written(tmp_path, {"own": "0::/a/b", "groups/a/b/x": "", "groups/memory/y": ""})
    groups = root / "groups"
    assert list(group_folders("memory", groups, root / "own")) == [
        groups / "a" / "b",
        groups / "a",
        groups,
        groups / "memory",
    ]


def test_this_machine_has_threads() -> None:
    assert default_threads() >= 1


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system has no affinity")
def test_a_computing_thread_stays_on_fast_cores(tmp_path: Path) -> None:
    mine = os.sched_getaffinity(0)
    seen: list[set[int]] = []

    def compute() -> None:
        stay_on_performance_cpus(tmp_path)
        seen.append(os.sched_getaffinity(0))

    def run() -> set[int]:
        thread = threading.Thread(target=compute)
        thread.start()
        thread.join()
        return seen[-1]

    assert run() == mine, "a processor of one kind"
    (tmp_path / "cpu_core").mkdir()
    (tmp_path / "cpu_core" / "cpus").write_text(f"{min(mine)}\n")
    assert run() == {min(mine)}
    assert os.sched_getaffinity(0) == mine, "other threads are left alone"
