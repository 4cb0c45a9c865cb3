"""A model in memory, ready to run jobs: the tables and buffers the compiled program works on."""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nanochat_tui.engine.compile.cache import Progress, load_entry, load_screen
from nanochat_tui.engine.compile.targets import KernelInfo
from nanochat_tui.engine.layout import slots as s
from nanochat_tui.engine.layout.memory import aligned, round_up
from nanochat_tui.engine.run.crew import Crew, ThreadCounts
from nanochat_tui.engine.run.drafter import UNLIMITED, Drafter
from nanochat_tui.engine.run.draw import Draw, Drawn, decisive
from nanochat_tui.engine.run.kv_cache import KVCache, reserve
from nanochat_tui.engine.run.paging import KINDS, CacheType, layout_of
from nanochat_tui.engine.run.pool import Pool
from nanochat_tui.engine.run.tables import CHUNK, Tables
from nanochat_tui.engine.weights.load import Weights
from nanochat_tui.engine.weights.screening import Screening
from nanochat_tui.model.architectures.description import Architecture

NO_DRAFTS = np.zeros(0, np.int64)


@dataclass(frozen=True, slots=True)
class Piece:
    """Consecutive tokens of one sequence in a job: ids int64 [n], to be run at `position` of the cache.

    draw: sample up to `steps` tokens after them in up to `passes` passes, running each but the last. drafter:
    proposes draft tokens, up to `draft` per pass.
    """

    cache: KVCache
    ids: NDArray[np.int64]
    position: int
    draw: Draw | None = None
    steps: int = 1
    passes: int = UNLIMITED
    drafter: Drafter | None = None
    draft: int = 0


_alive: weakref.WeakSet[Executor] = weakref.WeakSet()


def _after_fork() -> None:
    for executor in _alive:
        executor.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class Executor:
    """Owns buffers and threads; runs one job at a time (a lock makes others wait).

    A job is some tokens of any sequences, run in one pass over the weights; up to HEAD_ROWS of the sequences may go on
    together, token by token, before it returns. crew: how many of the threads run a job. as_float: activations are not
    rounded. kv: the kind of all caches. progress: called with one line before the program is compiled.
    """

    def __init__(
        self,
        shape: Architecture,
        weights: Weights,
        kernel: KernelInfo,
        crew: Crew,
        *,
        as_float: bool,
        kv: CacheType,
        progress: Progress | None = None,
    ) -> None:
        self.shape, self.kernel, self.kv, self.crew = shape, kernel, kv, crew
        self._lock = threading.Lock()
        self.tile = kernel.tile
        """Tokens of the largest tile that the kernels work on."""
        self.bytes_per_token = weights.bytes_per_token
        """Bytes of weights that a pass of one token reads."""
        threads = crew.most
        self._tables = t = Tables(
            shape, weights, threads=threads, tile=kernel.tile, queries=kernel.queries, as_float=as_float
        )
        self.vocab_padded = t.vocab_padded
        screened = bool(t.model[s.SCREEN_COLUMNS])
        self.screening = None
        if screened:
            vocabulary, bias = int(t.model[s.VOCAB]), kernel.q8_bias
            self.screening = Screening(weights.head, vocabulary, bias, lambda: load_screen(kernel))
        """Reads less of the output table where that is enough, if it can be done for this model."""
        self._job = t.keep(np.zeros(s.JOB_SLOTS, np.int64))
        self._rows = t.keep(aligned((CHUNK, s.ROW_SLOTS), np.int64, 0))
        self._sequences = t.keep(aligned((s.HEAD_ROWS, s.SEQUENCE_SLOTS), np.int64, 0))
        self._job[s.ROWS], self._job[s.SEQUENCES] = self._rows.ctypes.data, self._sequences.ctypes.data
        addresses = tuple(table.ctypes.data for table in (t.model, self._job, t.layers, t.threads))
        entry = load_entry(kernel, weights.group, progress, weights.kinds, t.known(KINDS[kv]))
        self._pool = Pool(entry, threads, t.control, addresses, t.buffers)  # type: ignore[arg-type]
        _alive.add(self)

    def _set_pieces(self, pieces: Sequence[Piece]) -> None:
        """Write pieces into the job's tables; the rows that are sampled from get the places 0, 1, …"""
        total = sum(len(piece.ids) for piece in pieces)
        if not all(len(piece.ids) for piece in pieces) or not 0 < total <= CHUNK:
            raise ValueError(f"a job takes 1 to {CHUNK} tokens, not {total}")
        if sum(piece.draw is not None for piece in pieces) > s.HEAD_ROWS:
            raise ValueError(f"a job samples at most {s.HEAD_ROWS} sequences")
        job, row, drawn = self._job, 0, 0
        for piece in pieces:
            ids, cache, first = piece.ids, piece.cache, piece.position
            # decoding comes here every few milliseconds with a single token, and reductions take their time
            least, largest = (ids[0], ids[0]) if len(ids) == 1 else (ids.min(), ids.max())
            if least < 0 or largest >= self.shape.vocab_size:
                raise ValueError("a token id is outside the vocabulary")
            end = first + len(ids) + piece.steps - 1
            if first < 0 or piece.steps < 1 or end > cache.positions:
                raise ValueError("the tokens do not fit into the cache")
            if cache.pool.kind != self.kv:
                raise ValueError("the program was made for another kind of cache")
            self._tables.reserve_positions(end, cache.positions)
            state = cache.state_for(first)
            reserve(cache, first, end)
            rows = self._rows[row : row + len(ids)]
            rows[:, s.TOKEN], rows[:, s.PAGES] = ids, cache.table.ctypes.data
            rows[:, s.POSITION] = np.arange(first, first + len(ids))
            rows[:, s.LOGITS_PLACE], rows[:, s.ROW_STATE] = -1, state
            row += len(ids)
            if piece.draw is not None:
                if piece.steps > piece.draw.capacity:
                    raise ValueError("more tokens are asked for than a draw has room for")
                rows[-1, s.LOGITS_PLACE] = drawn
                self._set_sequence(self._sequences[drawn], piece, piece.draw, drawn, end)
                drawn += 1
        job[s.JOB_LOGPROBS] = int(self._sequences[:drawn, s.LOGPROBS].any())
        if self.screening is not None and drawn == 1:
            self._screen(self.screening)
        layout_of(pieces[0].cache.pool, job)
        job[s.JOB_STATES] = 0
        job[s.COUNT], job[s.WANTED], job[s.SEQUENCE_COUNT] = total, drawn, drawn
        job[s.LOGITS_OUT] = self._tables.model[s.LOGITS]
        job[s.ONLY_SEQUENCES] = int(drawn == total)

    def _screen(self, screening: Screening) -> None:
        """Let the next job's only reply be screened, if that is worth it."""
        made = screening.ready()
        if made is not None:
            self._tables.attach_screen(made)
        self._sequences[0, s.BEST] = screening.best(int(self._sequences[0, s.BEST]))
        self._tables.threads[:, s.SCREEN_READ : s.SCREEN_PASSES + 1] = 0

    def _set_sequence(self, sequence: NDArray[np.int64], piece: Piece, draw: Draw, place: int, end: int) -> None:
        draw.fill(sequence)
        sequence[s.SEQUENCE_PAGES] = piece.cache.table.ctypes.data
        sequence[s.SEQUENCE_POSITION] = piece.position + len(piece.ids) - 1
        sequence[s.SEQUENCE_PLACE], sequence[s.SEQUENCE_ROWS] = place, 1
        sequence[s.SEQUENCE_STATE] = piece.cache.state_address
        sequence[s.STEPS], sequence[s.ACTIVE], sequence[s.LIMIT] = piece.steps, 1, end
        sequence[s.LAST_TOKEN], sequence[s.MOST_PASSES] = piece.ids[-1], piece.passes
        if piece.drafter is not None:
            # a recurrent state cannot take back a draft token
            most = 0 if piece.cache.state_address else piece.draft
            piece.drafter.fill(sequence, most, self.shape.vocab_size)
        draw.apply_rules(sequence, NO_DRAFTS if piece.drafter is None else piece.drafter.proposed)

    def execute(self, pieces: Sequence[Piece]) -> list[Drawn]:
        """Run pieces of any sequences together; return what was sampled of those with a draw, in their order.

        A sequence ends early after one of its draw's end ids; keys and values of all its tokens but the last sampled
        one are in its cache then. At most CHUNK tokens and HEAD_ROWS draws; raises ValueError beyond that.
        """
        with self._lock:
            self._set_pieces(pieces)
            self._run()
            drawn: list[Drawn] = []
            for piece in pieces:
                end = piece.position + len(piece.ids)
                if piece.draw is not None:
                    row = self._sequences[len(drawn)]
                    drawn.append(piece.draw.take(row))
                    if self.screening is not None and self._job[s.SEQUENCE_COUNT] == 1:
                        threads = self._tables.threads
                        screened, read = int(threads[0, s.SCREEN_PASSES]), int(threads[:, s.SCREEN_READ].sum())
                        self.screening.learn(decisive(piece.draw.request), piece.draw.passes, screened, read)
                    end += len(drawn[-1].ids) - 1
                    if piece.drafter is not None:
                        piece.drafter.take(row)
                piece.cache.came_to(end)
            return drawn

    def _run(self) -> None:
        """Run the job in the tables with as many threads as are worth it now, and learn from it."""
        job, rows = self._job, int(self._job[s.COUNT])
        size = self.crew.size(rows)
        job[s.JOB_CREW] = size
        began, ran = time.perf_counter(), time.thread_time()
        self._pool.run(size)
        seconds, ran = time.perf_counter() - began, time.thread_time() - ran
        drawn = int(job[s.SEQUENCE_COUNT])
        passes = int(self._sequences[:drawn, s.PASSES].max()) if drawn else 1
        self.crew.learn(rows, size, passes, seconds, seconds - ran)

    def thread_counts(self) -> ThreadCounts:
        """Return what the threads did since the model was loaded."""
        counts = self._tables.threads[:, [s.STOLEN, s.DROPPED, s.NAPS]].sum(axis=0)
        stolen, dropped, naps = (int(count) for count in counts)
        return ThreadCounts(self.crew.now, dict(self.crew.passes), self.crew.changes, stolen, dropped, naps)

    def run(self, cache: KVCache, ids: NDArray[np.int64], position: int) -> None:
        """Write keys and values of tokens int64 [n <= CHUNK] at `position` into the cache."""
        self.execute([Piece(cache, ids, position)])

    def logits(self, cache: KVCache, ids: NDArray[np.int64], position: int) -> NDArray[np.float32]:
        """Run tokens and return all their logits, float32 [n, vocab]."""
        return self.read([Piece(cache, ids, position)])

    def read(self, pieces: Sequence[Piece], *, states: bool = False) -> NDArray[np.float32]:
        """Run pieces without a draw together; return a row for each of their n tokens, one piece after the other.

        Logits float32 [n, vocab], or with `states` what the output table would be multiplied by, float32 [n, dim]:
        the merged streams behind the final norm, before any rounding and rotation.
        """
        count = sum(len(piece.ids) for piece in pieces)
        if states:
            out = np.empty((count, self.shape.dim), np.float32)
        else:
            rows = round_up(count, int(self._tables.model[s.TILE])) if count > 1 else 1
            out = aligned((rows, self.vocab_padded), np.float32)
        with self._lock:
            self._set_pieces(pieces)
            self._rows[:count, s.LOGITS_PLACE] = np.arange(count)
            self._job[s.WANTED] = count
            if states:
                self._job[s.JOB_STATES] = 1
            else:
                self._job[s.LOGITS_OUT] = out.ctypes.data
            self._run()
            for piece in pieces:
                piece.cache.came_to(piece.position + len(piece.ids))
            if states:  # the factor of logits is kept in the norm's weights
                out[...] = self._tables.states[:count]
                out /= np.float32(self.shape.logit_scale)
        return out[:count, : self.shape.dim if states else self.shape.vocab_size]

    def generate(self, cache: KVCache, ids: NDArray[np.int64], position: int, draw: Draw, steps: int) -> Drawn:
        """Run tokens, then sample up to `steps` tokens, running each but the last."""
        return self.execute([Piece(cache, ids, position, draw, steps)])[0]

    def after_fork(self) -> None:
        """Begin again in a child process, whatever another thread was doing in the parent."""
        self._lock = threading.Lock()
        self._pool.after_fork()
        if self.screening is not None:
            self.screening.after_fork()

    def close(self) -> None:
        """End the worker threads, after the job that is running; later jobs are refused with UserError."""
        with self._lock:
            self._pool.close()
