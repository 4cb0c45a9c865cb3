"""Products of ternary matrices with 16 and more tokens, in the processor's tile registers.

A tile of activations is 16 tokens x 64 columns (32 where these share a scale), a tile of weights 16 (or 8) quads of
columns x 16 rows, their product 16 tokens x 16 rows: lanes are rows, as everywhere. Weights lie so that unpacking alone
makes their tiles; activations lie [quad][token] and are transposed, once per tile of tokens for all rows. Codes less
one are signed bytes, so that the activations' sums are not needed. All the integers are exact and the floats see the
operations of `linear._ternary` in the same order, so that results are its bits.

For each two row blocks and each group of columns, weights are unpacked into the first-level cache once and meet every
tile of tokens of the job; two by two, so that each tile that is loaded is used twice.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from llvmlite import ir

from nanochat_tui.engine.kernels.tiles import FAR_BYTES, scaled, store_tile, token_scales
from nanochat_tui.engine.layout.kinds import (
    ACTIVATION_BLOCK,
    FINE_SPAN,
    SCRATCH_FIXED,
    TERNARY_FINE,
    TERNARY_NAMES,
    TERNARY_ROW,
    TOGETHER,
)
from nanochat_tui.engine.simd.amx import ROW_BYTES, TILE_BYTES, TILE_ROWS
from nanochat_tui.engine.simd.base import STEP_BYTES, STEP_COLUMNS
from nanochat_tui.engine.simd.emitter import I64, LANES, VF32, VI32, VI8x64
from nanochat_tui.engine.simd.intrinsics import kernel

TOKENS = TILE_ROWS
LEFT, RIGHT = (4, 5), (6, 7)
"""Registers of activations and of weights; the four products are in 0 to 3."""
TOTALS, CODES = 0, TOGETHER * 2 * TILE_BYTES
DOTS = CODES + 4 * TILE_BYTES
"""Where in the scratch: the running totals of all tiles, two row blocks' codes of a group, then integer products of two
steps in turn: four, or eight where columns have scales of their own."""
ROW = ir.Constant(I64, ROW_BYTES)
PRODUCT_STEPS = 4
"""Steps of the products of two tiles of tokens and two row blocks, where columns have scales of their own."""


@dataclass(frozen=True)
class _Batch:
    """Some tiles of tokens, `count` of them (an IR value), number i being tile first + i · step of x."""

    first: Any
    step: Any
    count: Any


@dataclass(frozen=True)
class _Place:
    """A span of columns: its group, and where it begins there, IR values."""

    group: Any
    column: Any


def take_turns(one: Iterable[None], other: Iterable[None]) -> None:
    """Let two emitters write their steps in turns, so that both are done after about the same share of the code."""
    first, second = iter(one), iter(other)
    each = 2 * TOKENS // PRODUCT_STEPS
    for _ in first:
        for _step in itertools.islice(second, each):
            pass
    for _step in second:
        pass


@dataclass(frozen=True)
class _Tiled:
    """What is the same in all of one product. scratch: see `kinds.tile_scratch`."""

    e: Any
    target: Any
    t: Any
    weights: Any
    scales: Any
    x: Any
    scratch: Any
    x_scale: Any
    y: Any
    y_stride: Any
    groups: Any
    kind: int

    @property
    def by_row(self) -> bool:
        """Whether integers are summed over whole rows."""
        return self.kind == TERNARY_ROW

    @property
    def fine(self) -> bool:
        """Whether tokens have a scale per 32 columns."""
        return self.kind == TERNARY_FINE

    @property
    def slab(self) -> int:
        """Columns that are multiplied by one instruction: a row of a register, or what shares a scale."""
        return ACTIVATION_BLOCK if self.fine else ROW_BYTES

    @property
    def span(self) -> int:
        """Columns whose products become floats together."""
        return FINE_SPAN if self.fine else int(self.target.group)

    def activations(self, number: Any) -> Any:
        """Return the address of a tile of tokens, transposed: [columns / 64][token][64]."""
        e = self.e
        return e.add(self.scratch, SCRATCH_FIXED, e.mul(number, self.groups, self.target.group * TOKENS))

    def totals(self, number: Any, row: int) -> Any:
        """Return the address of a tile of tokens' 16 x 16 totals for row block `row` of two."""
        return self.e.add(self.scratch, TOTALS + row * TILE_BYTES, self.e.mul(number, 2 * TILE_BYTES))

    def rearrange(self, batch: _Batch) -> None:
        """Transpose the activations of some tiles."""
        e = self.e
        size = e.mul(self.groups, self.target.group * TOKENS)

        def one(number):
            source = e.add(self.x, e.mul(e.add(batch.first, e.mul(number, batch.step)), size))
            out = self.activations(number)

            def block(at):
                quads = [e.load(VI32, e.add(source, at), ROW_BYTES * i) for i in range(LANES)]
                for i, tokens in enumerate(e.transposed(quads)):
                    e.store(tokens, e.add(out, at), ROW_BYTES * i)

            e.loop(0, size, TILE_BYTES, [], block)

        e.loop(0, batch.count, 1, [], one)

    def unpack(self, address: Any, row: int) -> None:
        """Write a group's codes of 16 rows less one, as signed bytes, to the place of row block `row` of two."""
        e = self.e
        steps = self.target.group // STEP_COLUMNS
        out = e.add(self.scratch, CODES + row * 16 * self.target.group)
        for step in range(steps):
            for pair, codes in enumerate(self.target.isa.unpack(e, e.load(VI32, address, step * STEP_BYTES))):
                signed = e.b.sub(e.b.bitcast(codes, VI8x64), e.constant(VI8x64, 1))
                e.store(signed, out, (4 * step + pair) * ROW_BYTES)

    def products(self, number: Any, tokens: int, rows: int, place: _Place, dots: Any) -> Iterator[None]:
        """Emit the integer products of a span of columns, tiles `number` on of tokens (one or two), in some steps.

        They go to `dots`, with scales by row to the totals instead. Each step stores what the one before it has left in
        the registers, as a product takes a while; other work may be emitted in between.
        """
        e, t = self.e, self.t
        waiting: list[tuple[int, Any]] = []
        for at in range(0, self.span, self.slab):
            begins, ends = at == 0 or self.fine, self.fine or at + self.slab == self.span
            column = e.add(place.column, at)
            tile = e.add(e.mul(place.group, self.target.group * TOKENS), e.mul(e.b.sdiv(column, ROW), TILE_BYTES))
            tile = e.add(tile, e.b.srem(column, ROW))
            for a in range(tokens):
                t.load(LEFT[a], e.add(self.activations(e.add(number, a)), tile))
            for r in range(rows):
                own = [(2 * a + r, self.totals(e.add(number, a), r)) for a in range(tokens)]
                if rows == 1:  # the same registers again
                    for register, where in waiting:
                        t.store(register, where)
                    waiting = []
                for register, total in own if begins else []:
                    if self.by_row:
                        t.load(register, total)
                    else:
                        t.zero(register)
                t.load(RIGHT[r], e.add(self.scratch, CODES + 16 * r * self.target.group, e.mul(column, 16)))
                for a in range(tokens):
                    t.dot(2 * a + r, LEFT[a], RIGHT[r])
                for register, where in waiting:
                    t.store(register, where)
                waiting = []
                for register, total in own if ends else []:
                    where = e.add(dots, ((at // self.slab if self.fine else 0) * 4 + register) * TILE_BYTES)
                    waiting.append((register, total if self.by_row else where))
                yield
        for register, where in waiting:
            t.store(register, where)

    def additions(
        self, batch: _Batch, number: Any, tokens: int, blocks: list[Any], place: _Place, dots: Any
    ) -> Iterator[None]:
        """Emit the addition of a span's integer products, times its scales, to the totals, in steps of one token."""
        e = self.e
        rows = [e.mul(e.add(e.mul(block, self.groups), place.group), 2 * LANES) for block in blocks]
        scales = [e.load_half(e.add(self.scales, row)) for row in rows]
        units = self.span // self.slab if self.fine else 1
        for a in range(tokens):
            index = e.add(batch.first, e.mul(e.add(number, a), batch.step))
            first = e.mul(e.add(e.mul(index, self.groups), place.group), 4 * TOKENS * (self.target.group // self.slab))
            x_scale = e.add(self.x_scale, first, e.mul(place.column, 4 * TOKENS // self.slab))
            for token in range(TOKENS):
                sums: list[Any] = []
                for unit in range(units):
                    own = e.add(dots, (unit * 4 + 2 * a) * TILE_BYTES + ROW_BYTES * token)
                    found = [e.to_f32(e.load(VI32, own, r * TILE_BYTES)) for r in range(len(blocks))]
                    if self.fine:
                        (scale,) = token_scales(e, e.add(x_scale, 4 * (unit * TOKENS + token)), 1)
                        found = scaled(e, found, [scale] * len(blocks), sums)
                    sums = found
                for r, scale in enumerate(scales):
                    totals = self.totals(e.add(number, a), r)
                    total = e.load(VF32, totals, ROW_BYTES * token)
                    e.store(e.fma(sums[r], scale, total), totals, ROW_BYTES * token)
                yield

    def row_blocks(self, block: Any, rows: int, batch: _Batch) -> None:
        """Multiply one or two blocks of 16 rows by some tiles of tokens."""
        e, group = self.e, self.target.group
        group_bytes = group // STEP_COLUMNS * STEP_BYTES
        blocks = [e.add(block, r) for r in range(rows)]
        zero = e.constant(VI32, 0)

        def clear(at):
            for i in range(4):
                e.store(zero, e.add(self.scratch, TOTALS), e.add(at, ROW_BYTES * i))

        e.loop(0, e.mul(batch.count, 2 * TILE_BYTES), 4 * ROW_BYTES, [], clear)
        even = e.mul(e.b.sdiv(batch.count, e.i64(2)), 2)
        half = (self.span // self.slab if self.fine else 1) * 4 * TILE_BYTES
        dots = e.add(self.scratch, DOTS)
        # what the first pair of tiles finds waiting are zeros
        e.loop(half, 2 * half, ROW_BYTES, [], lambda at: e.store(zero, dots, at))

        def one_group(g, *carried):
            for r, number in enumerate(blocks):
                packed = e.add(self.weights, e.mul(e.add(e.mul(number, self.groups), g), group_bytes))
                for line in range(0, group_bytes, ROW_BYTES):
                    e.prefetch(packed, FAR_BYTES + line, level=2)
                self.unpack(packed, r)
            for column in range(0, group, self.span):
                carried = one_span(_Place(g, e.i64(column)), carried)
            return carried

        def one_span(place, carried):
            def pair(number, turn, *before):
                """Multiply, and while that takes its time add up what the pair of tiles before has left."""
                products = self.products(number, 2, rows, place, e.add(dots, e.mul(turn, half)))
                take_turns(products, [] if self.by_row else add_up(turn, *before))
                return [e.b.sub(e.i64(1), turn), number, place.group, place.column]

            carried = e.loop(0, even, 2, list(carried), pair)
            with e.b.if_then(e.b.icmp_signed("<", even, batch.count)):
                last = e.add(dots, e.mul(carried[0], half))
                take_turns(self.products(even, 1, rows, place, last), [])
                if not self.by_row:
                    take_turns([], self.additions(batch, even, 1, blocks, place, last))
            return carried

        def add_up(turn, number, g, column):
            there = e.add(dots, e.mul(e.b.sub(e.i64(1), turn), half))
            return self.additions(batch, number, 2, blocks, _Place(g, column), there)

        carried = e.loop(0, self.groups, 1, [e.i64(0)] * 4, one_group)
        if not self.by_row:
            take_turns([], add_up(*carried))

        def finish(number):
            start = e.mul(e.add(batch.first, e.mul(number, batch.step)), TOKENS)
            for r, row in enumerate(blocks):
                places = [e.add(self.totals(number, r), ROW_BYTES * token) for token in range(TOKENS)]
                if self.by_row:
                    scale = e.load(VF32, e.add(self.scales, e.mul(row, 4 * LANES)))
                    sums = [e.b.fmul(e.to_f32(e.load(VI32, place)), scale) for place in places]
                else:
                    sums = [e.load(VF32, place) for place in places]
                store_tile(e, sums, start, None if self.fine else self.x_scale, self.y, self.y_stride, row)

        e.loop(0, batch.count, 1, [], finish)


def _register(name, kind):
    """Make the kernel of one kind."""

    def emit(e, target, weights, scales, x, scratch, x_scale, y, first, last, groups, y_stride, t0, t1, step):
        b, t = e.b, target.isa.tiles(e)
        tiled = _Tiled(e, target, t, weights, scales, x, scratch, x_scale, y, y_stride, groups, kind)
        t.configure(
            {**dict.fromkeys(LEFT, (TILE_ROWS, tiled.slab)), **dict.fromkeys(RIGHT, (tiled.slab // 4, ROW_BYTES))}
        )
        count = b.sdiv(e.add(b.sub(t1, t0), step, -1), step)
        pairs = e.add(first, e.mul(b.sdiv(b.sub(last, first), e.i64(2)), 2))

        def together(start):
            left = b.sub(count, start)
            left = b.select(b.icmp_signed("<", left, e.i64(TOGETHER)), left, e.i64(TOGETHER))
            batch = _Batch(e.add(t0, e.mul(start, step)), step, left)
            tiled.rearrange(batch)
            e.loop(first, pairs, 2, [], lambda block: tiled.row_blocks(block, 2, batch))
            e.loop(pairs, last, 1, [], lambda block: tiled.row_blocks(block, 1, batch))

        e.loop(0, count, TOGETHER, [], together)
        t.release()

    emit.__name__ = f"{name}_tiles"
    emit.__doc__ = f"Tiles t0, t0 + step … below t1 of {TOKENS} tokens; strides in bytes, groups per row."
    kernel("v:" + "i" * 13, kind=kind, tokens=TOKENS, tiles=True)(emit)


for _kind, _name in TERNARY_NAMES.items():
    _register(_name, _kind)
