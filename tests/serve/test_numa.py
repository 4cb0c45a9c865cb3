"""Memory nodes on a made topology; replicas really bound, on as many processors as this machine has."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from servers import PROMPT, serving
from support import TINY, write_model

from nanochat_tui.errors import UserError
from nanochat_tui.serve.loading import ModelFiles, loader
from nanochat_tui.serve.numa import Node, find_nodes, run_on
from nanochat_tui.system import parse_cpulist

linux_only = pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system binds no threads")


def _topology(root: Path, nodes: dict[int, str], siblings: dict[int, str] | None = None) -> Path:
    for number, cpus in nodes.items():
        folder = root / "node" / f"node{number}"
        folder.mkdir(parents=True)
        (folder / "cpulist").write_text(cpus + "\n")
    for cpu, together in (siblings or {}).items():
        folder = root / "cpu" / f"cpu{cpu}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(together + "\n")
    return root


@given(st.sets(st.integers(0, 300)))
def test_lists_of_processors_are_read_as_the_kernel_writes_them(cpus: set[int]) -> None:
    runs: list[list[int]] = []
    for cpu in sorted(cpus):
        if runs and runs[-1][1] == cpu - 1:
            runs[-1][1] = cpu
        else:
            runs.append([cpu, cpu])
    text = ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
    assert parse_cpulist(text + "\n") == cpus


@pytest.mark.parametrize("text", ["a", "3-1", "-1", "0-99999999", "1-", "0x3"])
def test_nonsense_is_refused(text: str) -> None:
    with pytest.raises(UserError):
        parse_cpulist(text)


def test_nodes_their_cores_and_what_this_process_may_use(tmp_path: Path) -> None:
    threads = {cpu: f"{cpu % 8},{cpu % 8 + 8}" for cpu in range(16)}
    root = _topology(tmp_path, {0: "0-3,8-11", 1: "4-7,12-15", 10: "", 2: "99"}, threads)
    everything = find_nodes(root, frozenset(range(16)))
    assert everything == [
        Node(0, frozenset({0, 1, 2, 3, 8, 9, 10, 11}), 4),
        Node(1, frozenset({4, 5, 6, 7, 12, 13, 14, 15}), 4),
    ]
    assert [(n.id, n.cores) for n in find_nodes(root, frozenset({1, 4, 5, 12}))] == [(0, 1), (1, 2)]
    assert find_nodes(tmp_path / "nothing", None) == []


@linux_only
def test_bound_threads_bind_those_they_start() -> None:
    cpu = min(os.sched_getaffinity(0))
    seen: list[set[int]] = []

    def work() -> str:
        inner = threading.Thread(target=lambda: seen.append(os.sched_getaffinity(0)))
        inner.start()
        inner.join()
        return "done"

    before = os.sched_getaffinity(0)
    assert run_on(frozenset({cpu}), work) == "done" and seen == [{cpu}]
    assert os.sched_getaffinity(0) == before
    with pytest.raises(ZeroDivisionError):
        run_on(frozenset({cpu}), lambda: 1 // 0)


@linux_only
def test_a_replica_per_node_answers_the_same_and_shares_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # a machine of two nodes is pretended: both are the first processor that this process may use
    cpu = min(os.sched_getaffinity(0))
    root = _topology(tmp_path / "system", {0: str(cpu), 1: str(cpu)})
    monkeypatch.setattr("nanochat_tui.serve.loading.usable_cpus", lambda: frozenset({cpu}))
    path = write_model(tmp_path / "m.gguf", TINY)
    with serving(loader(ModelFiles(path), numa=True, root=root)) as running:
        assert any("2 replicas" in line for line in running.lines)
        assert sum("memory node" in line for line in running.lines) == 2
        answer = running.post("/v1/completions", prompt=PROMPT, max_tokens=9, temperature=0, n=4).json()
        assert len({choice["text"] for choice in answer["choices"]}) == 1
        batchers = running.service._batchers
        assert batchers[0].model is not batchers[1].model
        assert all(batcher.snapshot().generated_tokens for batcher in batchers), "one replica did nothing"
        total = running.service.snapshot()
        assert total is not None and total.generated_tokens == sum(b.snapshot().generated_tokens for b in batchers)


def test_on_one_node_it_says_so_and_goes_on(tmp_path: Path) -> None:
    root = _topology(tmp_path / "system", {0: "0-1023"})
    path = write_model(tmp_path / "m.gguf", TINY)
    with serving(loader(ModelFiles(path, threads=1), numa=True, root=root)) as running:
        assert any("one memory node" in line for line in running.lines)
        assert running.post("/v1/completions", prompt=PROMPT, max_tokens=2).status_code == 200
