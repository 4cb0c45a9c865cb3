"""A screen of the output table: a coarse copy that tells which rows cannot hold the largest logits.

For every row w the screen keeps coordinates along a few directions, 4 bits per column of the rest, and the length of
what is then missing. For a token x the logit w·x is at most its coarse value plus that length times the length of x
outside the directions (Cauchy and Schwarz), so most rows are ruled out after reading half of their bytes; the program
multiplies the others exactly (`kernels.screen`). The directions are the table's strongest one, which most rows share,
and its weakest ones: there rows differ least, and trained models have large activations that cost the bound most.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nanochat_tui.engine.layout import kinds as k
from nanochat_tui.engine.layout import slots as s
from nanochat_tui.engine.layout.memory import aligned, lasting
from nanochat_tui.engine.weights.matrices import Matrix
from nanochat_tui.errors import UserError

Floats = NDArray[np.float32]
MOST_COLUMNS, LEAST_ROWS = 1024, 8192
"""Wider rows are too far from their coarse copy for a bound that rules out much; short tables are read in no time."""
COLUMN_STEP = 64
"""Columns that the kernel takes at a time."""
MOST_BEST = 64
"""The most logits that a reply's settings may depend on, so that a screen is worth a try."""
BEGIN_AFTER = 512
"""Passes that could have been screened before a screen is made: more than one reply of the small models that profit.
It takes a fifth of a second, and the first time on a machine two or three for compiling."""
TRIAL, REST = 32, 1024
"""Screened passes after which their use is judged, and passes without before it is judged again."""
MOST_READ = 0.1
"""Share of the rows that may have to be multiplied singly: with more a screen takes longer than the whole table."""
SAMPLE_ROWS = 4096
"""Rows that tell the directions."""
CLIP = 0.85
"""Share of a row's largest value that its 4-bit scale reaches: leaves least to be missed by rows of 64 and more."""
NO_TOKEN = -np.finfo(np.float16).max
"""Length of what is missing of a row that stands for no token, which makes its bound the lowest."""
CHUNK_BLOCKS = 16
"""Row blocks that are worked on together: few enough for a core's cache."""
ROUNDING = 2.0**-23
"""Twice the relative error of a float32 operation."""
STEPS = 3
"""Products of columns with their scales, of blocks of 32 and of rows: how often a term is rounded, at most."""


@dataclass(frozen=True, slots=True)
class Screen:
    """table: uint8 [row blocks, bytes]; of each block the codes of 16 rows (32-bit words of 8 columns, four of them in
    the low half bytes), then float16: coordinates, scales, and lengths of what is missing, rounded up.

    rows: uint8 [rows of tokens, bytes]: int8 codes with the kernels' bias, then float32 scales. What may be among the
    largest is multiplied from here, as single rows of the table itself lie apart.

    basis: float32, `SCREEN_DIRECTIONS` orthonormal directions, then for each how far coordinates may be off, then the
    slack for rounding per length of a token.
    """

    table: NDArray[np.uint8]
    basis: Floats
    rows: NDArray[np.uint8]
    code: int = 0
    """Address of the function that uses it."""


def is_screened(kind: int, rows: int, columns: int) -> bool:
    """Return whether an output table of this shape and kind (see `layout.kinds`) may be screened."""
    return kind == k.Q8 and columns % COLUMN_STEP == 0 and columns <= MOST_COLUMNS and rows >= LEAST_ROWS


def screen_bytes(rows: int, columns: int) -> int:
    """Return the bytes of a screen; rows are whole blocks."""
    return rows // s.ROW_BLOCK * _record(columns) + rows * _row_bytes(columns)


def _row_bytes(columns: int) -> int:
    return columns + 4 * columns // s.Q8_BLOCK


def _record(columns: int) -> int:
    return s.ROW_BLOCK * (columns // 2 + 2 * s.SCREEN_DIRECTIONS + 4)


def table_rows(head: Matrix, first: int, last: int) -> tuple[NDArray[np.uint8], Floats]:
    """Return rows of blocks first..last of a Q8 table: stored codes [rows, columns], scales [rows, columns / 32]."""
    codes = head.weights[first:last].view(np.uint8).reshape(last - first, -1, s.ROW_BLOCK, 4)
    scales = head.scales[first:last].reshape(last - first, -1, s.ROW_BLOCK)
    count = (last - first) * s.ROW_BLOCK
    return codes.transpose(0, 2, 1, 3).reshape(count, -1), _f32(scales.transpose(0, 2, 1).reshape(count, -1))


def row_values(codes: NDArray[np.uint8], scales: Floats, bias: int) -> Floats:
    """Return what rows stand for, float32 [rows, columns]. bias: `Isa.q8_bias`, which the codes hold."""
    signed = _f32(codes) - np.float32(bias) if bias else _f32(codes.view(np.int8))
    signed.reshape(*scales.shape, s.Q8_BLOCK)[...] *= scales[..., None]
    return signed


def _f32(values: NDArray[Any]) -> Floats:
    return values.astype(np.float32)


def directions_of(rows: Floats) -> Floats:
    """Return the strongest and the weakest directions of some rows, float32 [SCREEN_DIRECTIONS, columns]."""
    _, vectors = np.linalg.eigh(rows.T @ rows)
    chosen = [-1, *range(s.SCREEN_DIRECTIONS - 1)]
    found: Floats = np.ascontiguousarray(vectors[:, chosen].T, np.float32)
    return found


def make_screen(head: Matrix, rows: int, bias: int) -> Screen | None:
    """Return the screen of a Q8 table whose first `rows` rows are tokens; None if its numbers are too large for one."""
    blocks, columns = len(head.weights), head.packed.columns
    spread = np.unique(np.linspace(0, rows // s.ROW_BLOCK - 1, SAMPLE_ROWS // s.ROW_BLOCK).astype(np.int64))
    basis = directions_of(np.concatenate([row_values(*table_rows(head, b, b + 1), bias) for b in spread]))
    table = lasting((blocks, _record(columns)), np.uint8)
    whole = lasting((blocks * s.ROW_BLOCK, _row_bytes(columns)), np.uint8)
    strays, longest = np.zeros(s.SCREEN_DIRECTIONS, np.float32), np.float32(0)
    for first in range(0, blocks, CHUNK_BLOCKS):
        last = min(blocks, first + CHUNK_BLOCKS)
        stored, scales = table_rows(head, first, last)
        place = whole[first * s.ROW_BLOCK : last * s.ROW_BLOCK]
        place[:, :columns], place[:, columns:] = stored, scales.view(np.uint8)
        values = row_values(stored, scales, bias)
        codes, scale, coordinates, missing = _coarse(values, basis)
        # an infinite length would rule out nothing, and times a token of zeros it is no number
        length = _rounded_up(np.linalg.norm(missing, axis=1))
        if not all(np.isfinite(part).all() for part in (coordinates, scale, length)):
            return None
        strays = np.maximum(strays, np.abs(missing @ basis.T).max(0))
        longest = max(longest, np.linalg.norm(values, axis=1).max())
        length[max(0, rows - first * s.ROW_BLOCK) :] = NO_TOKEN
        parts = [_interleaved(part) for part in (codes, coordinates, scale[:, None], length[:, None])]
        table[first:last] = np.concatenate(parts, axis=1)
    slack = np.float32(STEPS * (columns + COLUMN_STEP) * ROUNDING) * longest
    kept = aligned(basis.size + len(strays) + 1, np.float32)
    kept[:] = np.concatenate([basis.reshape(-1), strays * np.float32(1.001), [slack]])
    return Screen(table, kept, whole)


def _rounded_up(values: Floats) -> NDArray[np.float16]:
    """Return the least float16 numbers that are not smaller."""
    with np.errstate(over="ignore"):
        half = values.astype(np.float16)
        return np.where(half < values, np.nextafter(half, np.float16(np.inf)), half)


def _coarse(
    values: Floats, basis: Floats
) -> tuple[NDArray[np.uint8], NDArray[np.float16], NDArray[np.float16], Floats]:
    """Return codes (two per byte), scales and coordinates of rows, and what these leave out of them."""
    rest = values - np.outer(values @ basis[0], basis[0])
    largest = np.maximum(rest.max(1), -rest.min(1))
    with np.errstate(over="ignore"):
        half = (largest * np.float32(CLIP / 7.5)).astype(np.float16)
    scale = _f32(half)
    codes = np.floor(rest / np.where(scale > 0, scale, np.float32(1))[:, None], out=rest)
    np.clip(codes, -8, 7, out=codes)
    codes += np.float32(8)
    missing = values - (codes - np.float32(7.5)) * scale[:, None]
    with np.errstate(over="ignore", invalid="ignore"):
        coordinates = (missing @ basis.T).astype(np.float16)
        missing -= coordinates.astype(np.float32) @ basis
    halves = codes.astype(np.uint8).reshape(len(codes), -1, 2, 4)
    return (halves[:, :, 0] | halves[:, :, 1] << np.uint8(4)).reshape(len(codes), -1), half, coordinates, missing


def _interleaved(part: NDArray[np.generic]) -> NDArray[np.uint8]:
    """Reorder values of rows to blocks of 16 rows whose words, or values, lie side by side; return bytes per block."""
    words = part.view(np.uint32) if part.dtype == np.uint8 else part
    blocks = words.reshape(-1, s.ROW_BLOCK, words.shape[1]).transpose(0, 2, 1)
    return np.ascontiguousarray(blocks).view(np.uint8).reshape(len(blocks), -1)


@dataclass(slots=True)
class _Use:
    """What was learned of replies that depend on so many logits."""

    passes: int = 0
    read: int = 0
    rests: int = 0


@dataclass(slots=True)
class Screening:
    """Decides when an output table is screened: after some passes that could be, and while it rules out enough."""

    head: Matrix
    rows: int
    bias: int
    code: Callable[[], int]
    """Returns the address of the compiled `kernels.screen.screened_logits`."""
    screen: Screen | None = None
    passes: int = 0
    spared: int = 0
    """Bytes of the table that the last judged replies did not read per token."""
    _uses: dict[int, _Use] = field(default_factory=dict)
    _made: list[Screen | None] = field(default_factory=list)
    _maker: threading.Thread | None = None

    def ready(self) -> Screen | None:
        """Return a screen that has become ready since, once."""
        if not self._made:
            return None
        self.screen = self._made.pop()
        return self.screen

    def best(self, wanted: int) -> int:
        """Return how many of the largest logits the next job's reply may be screened for: `wanted`, or 0 for none."""
        if not 0 < wanted <= MOST_BEST or self.screen is None:
            return 0
        use = self._uses.setdefault(wanted, _Use())
        return 0 if use.rests > 0 else wanted

    def learn(self, wanted: int, passes: int, screened: int, read: int) -> None:
        """Take note of a job: passes, how many of them were screened, and rows that these multiplied."""
        if not 0 < wanted <= MOST_BEST:
            self.spared = 0
            return
        self.passes += passes
        if self._maker is None and self.passes >= BEGIN_AFTER:
            # during the replies, which are the same with and without
            maker = threading.Thread(target=self.make, name="screen", daemon=True)
            with contextlib.suppress(RuntimeError):  # no thread can be started, and the reply continues without
                maker.start()
                self._maker = maker
        use = self._uses.setdefault(wanted, _Use())
        if use.rests > 0:
            use.rests -= passes
            return
        use.passes, use.read = use.passes + screened, use.read + read
        if use.passes >= TRIAL:
            share = use.read / (self.rows * use.passes)
            use.rests = REST if share > MOST_READ else 0
            use.passes = use.read = 0
            if self.screen is not None:
                screened = self.screen.table.nbytes + int(share * self.screen.rows.nbytes)
                self.spared = 0 if use.rests else self.head.nbytes - screened

    def after_fork(self) -> None:
        """Begin again in a child process, where the thread is missing that was making a screen."""
        if self.screen is None and not self._made:
            self._maker = None

    def settle(self) -> None:
        """Wait until a screen that is being made is there."""
        if self._maker is not None:
            self._maker.join()

    def make(self) -> None:
        """Make the screen now; without memory for it, or what compiles its code, there is none.

        In its own thread an error would be written across the application's screen, and replies need no
        screen: eigenvectors may not converge, files may be missing in the middle of an update.
        """
        with contextlib.suppress(MemoryError, OSError, RuntimeError, UserError, ValueError):
            code, made = self.code(), make_screen(self.head, self.rows, self.bias)
            self._made.append(None if made is None else replace(made, code=code))
