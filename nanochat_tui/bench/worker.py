"""One engine with one model in a process of its own, doing timed runs on command.

    python -m nanochat_tui.bench.worker ENGINE MODEL THREADS POSITIONS
        [KERNEL] [SPECULATION] [KV] [ACTIVATIONS]

Two engines that are to be compared must not share a process: their threads, memory and instruction-set state would
disturb each other. Commands are JSON lines on stdin, answers JSON lines on stdout; `Worker` is the other end, and
stops the process between runs, so that threads that wait by spinning cost the other engine nothing.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from nanochat_tui.bench.peer import PEER, PeerRunner
from nanochat_tui.errors import UserError
from nanochat_tui.text import display_safe

if TYPE_CHECKING:
    from nanochat_tui.engine.generate.model import Activations
    from nanochat_tui.engine.generate.speculation import Mode
    from nanochat_tui.engine.run.paging import CacheType

OURS = "nanochat-tui"
SHORT_SECONDS, SEEDS = 0.5, 2**32
"""A run that is over sooner is done again, and counts then: between the turns of others a process is stopped, and wakes
with cold caches and clocks."""
WARM_REPLIES, WARM_TOKENS = 4, 256
"""After which the engine has made, and judged, all that it makes in the background of its replies."""


class Runner(Protocol):
    """An engine with a model in it."""

    kernel: str
    kv_bytes: int
    """Bytes of keys and values that one position of the context adds to that."""

    def prompt(self, ids: list[int]) -> float:
        """Return the seconds from ids that are new to the engine to the first token after them."""

    def decode(self, ids: list[int], tokens: int) -> tuple[int, float]:
        """Return how many further tokens were chosen greedily behind `ids`, and the seconds that took."""

    vocabulary: int

    @property
    def bytes_per_token(self) -> int:
        """Bytes of weights that one decoded token reads, which may change while the engine learns."""

    @property
    def drafts(self) -> tuple[int, int]:
        """Draft tokens of the last run, and those of them that were accepted."""


class EngineRunner:
    """Our engine, through the session that chat uses."""

    def __init__(
        self,
        path: Path,
        threads: int,
        kernel: str | None,
        speculation: Mode = "off",
        kv: CacheType = "f16",
        activations: Activations = "int8",
    ) -> None:
        from nanochat_tui.engine.generate.model import load
        from nanochat_tui.engine.generate.session import Session
        from nanochat_tui.engine.run.paging import PAGE, PagePool
        from nanochat_tui.model.tokenizer import TextCodec

        said: list[str] = []
        self._model = load(
            path,
            threads=threads,
            kernel=kernel,
            kv=kv,
            speculation=speculation,
            activations=activations,
            progress=said.append,
        )
        self.compiled = any("compiling" in line for line in said)
        # a run is as long as it is asked to be: no token ends it
        tokenizer = self._model.codec.tokenizer
        self._model.codec = TextCodec(tokenizer, bos=None, eos=None, add_bos=False, ends=frozenset())
        self._session = Session(self._model)
        self.kernel = self._model.kernel
        self.kv_bytes = PagePool(self._model.config, 0, kv).page_bytes // PAGE
        self.vocabulary = tokenizer.get_vocab_size()

    @property
    def bytes_per_token(self) -> int:
        """See `Runner`."""
        return self._model.bytes_per_token

    @property
    def drafts(self) -> tuple[int, int]:
        """See `Runner`."""
        return self._session.stats.drafted_tokens, self._session.stats.accepted_tokens

    def prompt(self, ids: list[int]) -> float:
        """See `Runner`."""
        began = time.perf_counter()
        for _ in self._session.generate(ids, max_tokens=1, temperature=0.0, logprobs=False):
            break
        return time.perf_counter() - began

    def warm_up(self) -> None:
        """Reply some times, and wait for what the engine makes in the background of its first tokens."""
        for _ in range(WARM_REPLIES if self._model.executor.screening is not None else 0):
            self.decode(random_ids(0, 2, self.vocabulary), WARM_TOKENS)
            self._model.settle()

    def decode(self, ids: list[int], tokens: int) -> tuple[int, float]:
        """See `Runner`."""
        first = last = 0.0
        count = -1
        for _ in self._session.generate(ids, max_tokens=tokens + 1, temperature=0.0, logprobs=False):
            last = time.perf_counter()
            first = first or last
            count += 1
        return max(count, 0), last - first


def memory() -> dict[str, int]:
    """Return what this process has in memory now and had at most, in bytes."""
    import psutil

    from nanochat_tui.system import peak_rss

    now = int(psutil.Process().memory_info().rss)
    # the kernel notes the peak with a delay, and may tell less than what is there now
    return {"rss_bytes": now, "peak_rss_bytes": max(now, peak_rss())}


def random_ids(seed: int, count: int, vocabulary: int) -> list[int]:
    """Return token ids; the same for every engine that is asked with this seed."""
    found: list[int] = np.random.default_rng(seed).integers(0, vocabulary, count).tolist()
    return found


def serve(
    engine: str,
    path: Path,
    threads: int,
    positions: int,
    kernel: str | None,
    speculation: Mode = "off",
    kv: CacheType = "f16",
    activations: Activations = "int8",
) -> None:
    """Load with room for so many positions, say so, then answer commands until stdin ends."""
    _die_with_parent()
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever a library prints must not be taken for an answer

    def answer(found: dict[str, Any]) -> None:
        print(json.dumps(found), file=answers, flush=True)

    try:
        began = time.perf_counter()
        runner: Runner
        if engine == PEER:
            runner = PeerRunner(path, threads, positions)
        else:
            runner = EngineRunner(path, threads, kernel, speculation, kv, activations)
        runner.decode(random_ids(0, 2, runner.vocabulary), 2)
        loaded = time.perf_counter() - began
        if isinstance(runner, EngineRunner):
            runner.warm_up()
    except UserError as error:
        answer({"error": str(error)})
        return
    answer(
        {
            "load_seconds": loaded,
            "kernel": runner.kernel,
            "bytes_per_token": runner.bytes_per_token,
            "kv_bytes": runner.kv_bytes,
            "vocabulary": runner.vocabulary,
            "compiled": getattr(runner, "compiled", False),
            **memory(),
        }
    )
    for line in sys.stdin:
        command = json.loads(line)
        try:
            tokens, seconds = _do(runner, command, command["seed"])
            if seconds < SHORT_SECONDS:
                tokens, seconds = _do(runner, command, ~command["seed"] % SEEDS)
            found: dict[str, Any] = {"tokens": tokens, "seconds": seconds}
            drafted, accepted = runner.drafts
            learned = {"drafted": drafted, "accepted": accepted, "bytes_per_token": runner.bytes_per_token}
            answer(found | learned | memory())
        except UserError as error:
            answer({"error": str(error)})


def _do(runner: Runner, command: dict[str, Any], seed: int) -> tuple[int, float]:
    """Do what a command says with random ids; return how many tokens were read or made, and the seconds that took."""
    ids = random_ids(seed, command["ids"], min(command["vocabulary"], runner.vocabulary))
    if command["run"] == "prompt":
        return len(ids), runner.prompt(ids)
    return runner.decode(ids, command["tokens"])


def _die_with_parent() -> None:
    """Ask Linux to end this process with its parent: a process that is stopped cannot see its stdin close."""
    if sys.platform == "linux":
        set_death_signal = 1
        ctypes.CDLL(None, use_errno=True).prctl(set_death_signal, signal.SIGKILL)


class Worker:
    """The near end of a worker process. Use it as a context manager."""

    def __init__(
        self,
        engine: str,
        path: Path,
        threads: int,
        kernel: str | None = None,
        *,
        positions: int = 4096,
        speculation: Mode = "off",
        kv: CacheType = "f16",
        activations: Activations = "int8",
    ) -> None:
        """Start the process and wait until the model is loaded. Raises UserError with the worker's reason.

        positions: the longest context that will be asked for; only the peer reserves memory for it at once.
        speculation: whether ours uses draft tokens. kv: numbers in our key-value cache.
        activations: how ours rounds them.
        """
        self.engine, self.path, self.threads = engine, path, threads
        command = [sys.executable, "-P", "-m", __name__, engine, str(path), str(threads), str(positions)]
        command += [kernel or "", speculation, kv, activations]
        root = str(Path(__file__).parents[2])
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])]),
        }
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )
        self._stopped = False
        try:
            self.ready: dict[str, Any] = self._receive()
        except BaseException:
            self.close()
            raise
        self._stop()

    def run(self, kind: str, ids: int, *, tokens: int = 0, seed: int = 0, vocabulary: int) -> dict[str, Any]:
        """Do one timed run and return its answer: tokens, seconds, drafted, accepted, rss_bytes, peak_rss_bytes.

        Raises UserError.
        """
        command = {"run": kind, "ids": ids, "tokens": tokens, "seed": seed, "vocabulary": vocabulary}
        self._continue()
        stdin = self._process.stdin
        assert stdin is not None  # noqa: S101 (opened with a pipe)
        with contextlib.suppress(BrokenPipeError):  # what went wrong, `_receive` says
            stdin.write(json.dumps(command) + "\n")
            stdin.flush()
        found = self._receive()
        self._stop()
        self.ready["bytes_per_token"] = found.pop("bytes_per_token")
        return found

    def _receive(self) -> dict[str, Any]:
        process = self._process
        assert process.stdout is not None and process.stderr is not None  # noqa: S101 (opened with pipes)
        line = process.stdout.readline()
        if not line:
            process.wait()
            last = process.stderr.read().strip().rpartition("\n")[2]
            raise UserError(
                f"{self.engine} ended without an answer on {display_safe(self.path.name)} ({display_safe(last)})"
            )
        found: dict[str, Any] = json.loads(line)
        if "error" in found:
            raise UserError(f"{self.engine}: {found['error']}")
        return found

    def _stop(self) -> None:
        if hasattr(signal, "SIGSTOP"):
            os.kill(self._process.pid, signal.SIGSTOP)
            self._stopped = True

    def _continue(self) -> None:
        if self._stopped:
            os.kill(self._process.pid, signal.SIGCONT)
            self._stopped = False

    def close(self) -> None:
        """End the process."""
        with contextlib.suppress(ProcessLookupError):
            self._continue()
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


if __name__ == "__main__":
    serve(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), sys.argv[5] or None, *sys.argv[6:])  # type: ignore[arg-type]
