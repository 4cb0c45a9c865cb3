"""What must not crash, hang or compute with the wrong memory: closing, forking, interrupts, lying files."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import TINY, random_tensors, tiny_tokenizer, write_model

from nanochat_tui.engine.compile import amx_check as amx
from nanochat_tui.engine.compile import cache as compile_cache
from nanochat_tui.engine.generate.model import Model, load
from nanochat_tui.engine.generate.session import Session
from nanochat_tui.engine.layout import kinds
from nanochat_tui.engine.layout import slots as s
from nanochat_tui.engine.run.draw import Draw
from nanochat_tui.engine.run.kv_cache import KVCache
from nanochat_tui.errors import UserError
from nanochat_tui.formats.gguf import write_gguf
from nanochat_tui.model.architectures import nanochat
from nanochat_tui.model.architectures.nanochat import of_config
from nanochat_tui.model.support import MAX_CONTEXT
from nanochat_tui.model.tokenizer import to_gguf_metadata
from nanochat_tui.request import GenerationRequest, SamplingParams

MakeModel = Callable[..., Model]
ROOT = Path(__file__).parents[2]


def ids_of(model: Model, **options: Any) -> list[int]:
    return [t.id for t in model.generate([1, 2, 3], max_tokens=12, **{"temperature": 0, **options})]


# ---- threads


@pytest.mark.parametrize("threads", [1, 2])
def test_a_closed_model_refuses_instead_of_waiting_for_its_threads(threads: int, make_model: MakeModel) -> None:
    model = make_model(TINY, threads=threads)
    reply = model.generate([1, 2, 3], max_tokens=80, seed=0)
    next(reply)
    model.close()
    model.close()
    caught: list[BaseException] = []

    def use() -> None:
        for call in (lambda: list(reply), lambda: model.logits([1])):
            try:
                call()
            except UserError as error:
                caught.append(error)

    thread = threading.Thread(target=use, daemon=True)
    thread.start()
    thread.join(120)
    assert not thread.is_alive()
    assert [str(error) for error in caught] == ["the model was closed; load it again"] * 2


def test_closing_waits_for_the_job_of_another_thread(make_model: MakeModel) -> None:
    for _ in range(20):
        model = make_model(TINY, threads=3)
        ended = threading.Event()

        def generate(model: Model = model, ended: threading.Event = ended) -> None:
            try:
                while True:
                    ids_of(model)
            except UserError:
                ended.set()

        threading.Thread(target=generate, daemon=True).start()
        time.sleep(0.02)
        model.close()
        assert ended.wait(120)


def test_an_interrupt_between_announcing_a_job_and_running_it(make_model: MakeModel) -> None:
    model = make_model(TINY, threads=3)
    wanted = ids_of(model)
    wake = model.executor._pool._shared.wake
    notify = wake.notify_all

    def interrupted() -> None:
        notify()
        raise KeyboardInterrupt

    wake.notify_all = interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        ids_of(model)
    del wake.notify_all
    time.sleep(0.3)
    before = time.process_time()
    time.sleep(0.5)
    assert time.process_time() - before < 0.25, "threads wait in a job that no thread runs"
    assert ids_of(model) == wanted


def test_threads_that_cannot_be_started(make_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    model, start = make_model(TINY, threads=4), threading.Thread.start
    started: list[threading.Thread] = []

    def limited(thread: threading.Thread) -> None:
        if len(started) == 2:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", limited)
        with pytest.raises(UserError, match="does not allow 4 threads"):
            ids_of(model)
    for thread in started:
        thread.join(120)
        assert not thread.is_alive()


FORK = """
import os, sys, threading, time
from nanochat_tui.engine.generate.model import load
model = load(sys.argv[1], threads=3)
wanted = [t.id for t in model.generate([1, 2, 3], max_tokens=12, temperature=0)]
model.executor._lock.acquire()  # as by another thread in the middle of a job
model.executor._pool._shared.wake.acquire()
child = os.fork()
if child == 0:
    same = [t.id for t in model.generate([1, 2, 3], max_tokens=12, temperature=0)] == wanted
    model.close()
    os._exit(0 if same else 1)
deadline = time.monotonic() + 120
while time.monotonic() < deadline:
    done, status = os.waitpid(child, os.WNOHANG)
    if done:
        sys.exit(os.waitstatus_to_exitcode(status))
    time.sleep(0.02)
os.kill(child, 9)
sys.exit("the child hangs")
"""

EXIT = """
import sys, threading, time
from nanochat_tui.engine.generate.model import load
model = load(sys.argv[1], threads=3)
def generate():
    while True:
        list(model.generate([1, 2, 3], max_tokens=80, seed=0))
threading.Thread(target=generate, daemon=True).start()
time.sleep(0.1)
"""


def run(code: str, *arguments: object, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=env, cwd=cwd, check=False, timeout=300)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_computes_too(tmp_path: Path) -> None:
    done = run(FORK, write_model(tmp_path / "m.gguf"))
    assert (done.returncode, done.stderr) == (0, "")


def test_the_process_may_end_during_a_reply(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.gguf")
    for _ in range(3):
        done = run(EXIT, path)
        assert (done.returncode, done.stderr) == (0, "")


def test_two_models_at_once(make_model: MakeModel) -> None:
    a, b = make_model(TINY, threads=2), make_model(TINY.with_(n_streams=4, vocab_size=331), threads=3)
    wanted = ids_of(a), ids_of(b)
    found: dict[int, list[list[int]]] = {0: [], 1: []}

    def work(number: int) -> None:
        found[number] = [ids_of((a, b)[number]) for _ in range(5)]

    workers = [threading.Thread(target=work, args=(n,), daemon=True) for n in (0, 1)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert found == {0: [wanted[0]] * 5, 1: [wanted[1]] * 5}
    a.close()
    assert ids_of(b) == wanted[1]


def test_a_reply_left_unfinished_ends_when_the_next_begins(make_model: MakeModel) -> None:
    """It would write its keys into the other's cache."""
    session = Session(make_model(TINY, threads=1))
    old = session.generate([4, 5, 6], max_tokens=50, seed=1)
    next(old)
    new = session.generate([7, 8, 9], max_tokens=20, temperature=0)
    tokens = [next(new).id]
    assert list(old) == []
    tokens += [t.id for t in new]
    assert tokens == [t.id for t in Session(session.model).generate([7, 8, 9], max_tokens=20, temperature=0)]
    assert session.finish_reason == "length"


def test_buffers_that_grow_replace_the_old_ones(make_model: MakeModel) -> None:
    executor = make_model(TINY.with_(context_length=4096), threads=2).executor
    token = np.array([1], np.int64)
    tables = executor._tables
    executor.run(KVCache(executor.shape, 16), token, 0)
    number, size = len(tables.buffers), sum(a.nbytes for a in tables.buffers.values())
    for positions in range(32, 4097, 32):
        executor.run(KVCache(executor.shape, positions), token, positions - 1)
    assert len(tables.buffers) == number
    grown = sum(a.nbytes for a in tables.buffers.values()) - size
    rows = 4096 * 4
    assert grown < rows * (TINY.head_dim + 1)


# ---- compiled code of other sources


def copy_of_package(folder: Path) -> Path:
    package = folder / "nanochat_tui"
    shutil.copytree(ROOT / "nanochat_tui" / "engine", package / "engine")
    for part in ("formats", "model"):
        shutil.copytree(ROOT / "nanochat_tui" / part, package / part)
    for base_module in (ROOT / "nanochat_tui").glob("*.py"):
        shutil.copy(base_module, package)
    return package


def move_slots(package: Path) -> None:
    slots = package / "engine" / "layout" / "slots.py"
    old, new = "ROWS, COUNT, WANTED", "WANTED, COUNT, ROWS"
    text = slots.read_text()
    assert old in text
    slots.write_text(text.replace(old, new))


EDITED = """
import sys
from pathlib import Path
import nanochat_tui.engine.generate.model as engine
from nanochat_tui.errors import UserError
slots = Path(engine.__file__).parents[1] / "layout" / "slots.py"
slots.write_text(slots.read_text().replace("ROWS, COUNT, WANTED", "WANTED, COUNT, ROWS"))
try:
    model = engine.load(sys.argv[1], threads=1)
    print(list(model.generate([1, 2, 3], max_tokens=5, temperature=0)))
except UserError as error:
    print(error)
"""


def test_sources_that_change_while_the_program_runs(tmp_path: Path) -> None:
    """Code compiled from the new ones would read tables laid out by the old ones."""
    copy_of_package(tmp_path / "old")
    cache = tmp_path / "cache"
    environment = {"PYTHONPATH": str(tmp_path / "old"), compile_cache.ENVIRONMENT: str(cache)}
    done = run(EDITED, write_model(tmp_path / "m.gguf"), cwd=tmp_path, **environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert "files have changed since it was started" in done.stdout
    assert not list(cache.iterdir())


PLAIN = """
import sys
from nanochat_tui.engine.generate.model import load
print([t.id for t in load(sys.argv[1], threads=1).generate([1, 2, 3], max_tokens=5, temperature=0)])
"""


@pytest.mark.slow
def test_another_version_in_the_working_directory(tmp_path: Path, make_model: MakeModel) -> None:
    """The compiling child process must compile the sources of the one that asks."""
    move_slots(copy_of_package(tmp_path / "other"))
    # an installed program has its own directory first in its path, not the working directory
    code = f"import sys; sys.path[0] = {str(ROOT)!r}\n{PLAIN}"
    path, cache = write_model(tmp_path / "m.gguf"), str(tmp_path / "cache")
    done = run(code, path, cwd=tmp_path / "other", **{compile_cache.ENVIRONMENT: cache})
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip() == str(ids_of(make_model(TINY, threads=1))[:5])


@pytest.mark.slow
def test_numbas_switch_for_debugging_does_not_matter(tmp_path: Path, make_model: MakeModel) -> None:
    environment = {compile_cache.ENVIRONMENT: str(tmp_path / "cache"), "NUMBA_DISABLE_JIT": "1"}
    done = run(PLAIN, write_model(tmp_path / "m.gguf"), **environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip() == str(ids_of(make_model(TINY, threads=1))[:5])


def test_what_the_compiling_child_says_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    target = compile_cache.Wanted("portable", 64, "", "", kinds.ALL, frozenset({("STREAMS", 1)}))
    says = [b""]

    def child(command: list[str], **_: object) -> subprocess.CompletedProcess[bytes]:
        assert command[-1] == compile_cache.SOURCES
        assert command[-2] == "STREAMS=1"
        return subprocess.CompletedProcess(command, 0, says[0], b"")

    monkeypatch.setattr(subprocess, "run", child)
    monkeypatch.setattr(compile_cache, "_build", lambda _, part: b"compiled here")
    code = compile_cache._sealed(b"compiled there")
    for said, wanted in (
        (code, b"compiled there"),
        (b"a warning on stdout\n" + code, b"compiled here"),
        (code[:-1], b"compiled here"),
        (b"", b"compiled here"),
    ):
        says[0] = said
        assert compile_cache._compile(target) == [wanted, wanted]


def test_a_child_with_other_sources_refuses() -> None:
    module = "nanochat_tui.engine.compile.cache"
    command = [sys.executable, "-m", module, "kernels", "portable", "64", "0", "", "0" * 64]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, env=env, check=False, timeout=120)
    assert done.returncode == 1
    assert done.stdout == b""


# ---- files


@pytest.mark.parametrize("context", [MAX_CONTEXT + 1, 2**31 - 1])
def test_a_context_beyond_belief_is_refused(context: int, tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.gguf", TINY.with_(context_length=context))
    with pytest.raises(UserError, match=f"claims a context of {context} tokens"):
        load(path, threads=1)


def test_a_context_larger_than_memory_is_refused() -> None:
    config = TINY.with_(dim=1 << 32, n_heads=64, n_kv_heads=64, context_length=1 << 20)
    with pytest.raises(UserError, match="not enough memory"):
        KVCache(of_config(config), config.context_length).reserve(0, 1)


def test_a_long_context_costs_what_is_used_of_it(make_model: MakeModel) -> None:
    model = make_model(TINY.with_(context_length=MAX_CONTEXT), threads=1)
    assert ids_of(model) == ids_of(make_model(TINY, threads=1))
    assert model.executor._tables._rope_rows < 5000


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(tmp_path: Path) -> None:
    config, path = TINY.with_(vocab_size=299), tmp_path / "m.gguf"
    metadata = nanochat.to_metadata(config) | to_gguf_metadata(tiny_tokenizer(300), bos=299, eos=299)
    write_gguf(path, metadata, random_tensors(config))
    with pytest.raises(UserError, match="tokenizer has 300 tokens and the model only 299"):
        load(path, threads=1)


# ---- numbers


def test_ids_that_fit_no_integer(make_model: MakeModel) -> None:
    model = make_model(TINY, threads=1)
    for ids in ([2**70], [-(2**70)], [300], [-1]):
        with pytest.raises(UserError, match="outside the vocabulary of 300"):
            model.logits(ids)
        with pytest.raises(UserError, match="outside the vocabulary of 300"):
            model.generate(ids)


@pytest.mark.parametrize("cuts", [{}, {"top_k": 0, "top_p": 1.0}, {"top_k": 0}, {"top_k": 0, "min_p": 0.1}])
@pytest.mark.parametrize("temperature", [1e-6, 1e-30, 1e-38, 1e-40, 1e-46, 5e-324])
def test_the_smallest_temperatures_are_greedy(temperature: float, cuts: dict[str, Any], make_model: MakeModel) -> None:
    model = make_model(TINY, threads=1)
    assert ids_of(model, temperature=temperature, seed=1, **cuts) == ids_of(model)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 1e300},
        {"temperature": 1.7e308, "top_k": 0, "top_p": 1.0},
        {"top_k": 2**63},
        {"top_k": 2**200},
        {"seed": -(2**70)},
        {"seed": 2**64 + 1},
        {"top_p": 5e-324},
        {"min_p": 5e-324, "top_k": 0},
        {"typical_p": 5e-324},
        {"typical_p": 5e-324, "top_k": 0, "top_p": 1.0},
        {"typical_p": 0.5, "temperature": 1e300, "top_k": 0},
        {"typical_p": 0.5, "temperature": 1e-6, "top_k": 0},
        {"repeat_penalty": 1e6},
        {"repeat_penalty": 1e-6, "top_k": 0, "top_p": 1.0},
    ],
)
def test_extreme_settings_give_tokens(settings: dict[str, Any], make_model: MakeModel) -> None:
    model = make_model(TINY, threads=1)
    options = {"temperature": 1.0, "seed": 1, **settings}
    tokens = ids_of(model, **options)
    assert tokens == ids_of(model, **options)
    assert all(0 <= token < 300 for token in tokens)


@pytest.mark.parametrize("penalty", [0, -1.0, 1e-300, 1e300, float("nan"), float("inf")])
def test_penalties_that_leave_no_numbers_are_refused(penalty: float) -> None:
    with pytest.raises(UserError, match=r"repeat_penalty must be"):
        SamplingParams(repeat_penalty=penalty)


def test_a_draw_hands_the_kernel_no_more_than_the_vocabulary() -> None:
    job = np.zeros(s.SEQUENCE_SLOTS, np.int64)
    Draw(GenerationRequest.of(top_k=10**30), 300, [], 1).fill(job)
    assert 300 in job


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.parametrize("module", [compile_cache, amx], ids=["compiled", "tried"])
def test_a_child_forked_while_code_is_compiled_or_tried_can_load_a_model(module: Any) -> None:
    with module._lock:  # as the thread holds it that compiles beside the replies
        child = os.fork()
        if child == 0:
            os._exit(0 if module._lock.acquire(timeout=1) else 1)
        assert os.waitpid(child, 0)[1] == 0
