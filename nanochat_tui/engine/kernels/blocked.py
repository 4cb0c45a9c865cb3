"""Products of ternary matrices with 16 and more tokens, in the processor's tile registers.

A tile of activations is 16 tokens x 64 columns, a tile of weights 16 quads of columns x 16 rows, their product 16
tokens x 16 rows: lanes are rows, as everywhere. Weights lie so that unpacking alone makes their tiles; activations lie
[quad][token] and are transposed, once per tile of tokens for all rows. Codes less one are signed bytes, so that the
activations' sums are not needed. All the integers are exact and the floats see the operations of `linear._ternary` in
the same order, so that results are its bits.

For each two row blocks and each group of columns, weights are unpacked into the first-level cache once and meet every
tile of tokens of the job; two by two, so that each tile that is loaded is used twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nanochat_tui.engine.kernels.kinds import SCRATCH_FIXED, TERNARY, TERNARY_ROW, TOGETHER
from nanochat_tui.engine.kernels.tiles import FAR_BYTES, store_tile
from nanochat_tui.engine.simd.amx import ROW_BYTES, TILE_BYTES, TILE_ROWS
from nanochat_tui.engine.simd.base import STEP_BYTES, STEP_COLUMNS
from nanochat_tui.engine.simd.emitter import LANES, VF32, VI32, VI8x64
from nanochat_tui.engine.simd.intrinsics import kernel

TOKENS = TILE_ROWS
LEFT, RIGHT = (4, 5), (6, 7)
"""Registers of activations and of weights; the four products are in 0 to 3."""
TOTALS, CODES, DOTS = 0, TOGETHER * 2 * TILE_BYTES, SCRATCH_FIXED - 4 * TILE_BYTES
"""Where in the scratch: the running totals of all tiles, two row blocks' codes of a group, four integer products."""


@dataclass(frozen=True)
class _Batch:
    """Some tiles of tokens, `count` of them (an IR value), number i being tile first + i · step of x."""

    first: Any
    step: Any
    count: Any


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
    by_row: bool

    @property
    def slabs(self) -> int:
        """Tiles of 64 columns in a group."""
        return int(self.target.group) // ROW_BYTES

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
        out = e.add(self.scratch, CODES + row * self.slabs * TILE_BYTES)
        for step in range(steps):
            for pair, codes in enumerate(self.target.isa.unpack(e, e.load(VI32, address, step * STEP_BYTES))):
                signed = e.b.sub(e.b.bitcast(codes, VI8x64), e.constant(VI8x64, 1))
                e.store(signed, out, (4 * step + pair) * ROW_BYTES)

    def multiply(self, number: Any, tokens: int, rows: int, group: Any, scales: list[Any]) -> None:
        """Add the products of a group's columns, tiles `number` on of tokens (one or two), to the totals."""
        e, t = self.e, self.t
        pairs = [(a, r) for a in range(tokens) for r in range(rows)]
        for a, r in pairs:
            if self.by_row:
                t.load(2 * a + r, self.totals(e.add(number, a), r))
            else:
                t.zero(2 * a + r)
        for slab in range(self.slabs):
            at = e.add(e.mul(group, self.target.group * TOKENS), slab * TILE_BYTES)
            for r in range(rows):
                t.load(RIGHT[r], e.add(self.scratch, CODES + (r * self.slabs + slab) * TILE_BYTES))
            for a in range(tokens):
                t.load(LEFT[a], e.add(self.activations(e.add(number, a)), at))
                for r in range(rows):
                    t.dot(2 * a + r, LEFT[a], RIGHT[r])
        for a, r in pairs:
            dots = e.add(self.scratch, DOTS + (2 * a + r) * TILE_BYTES)
            t.store(2 * a + r, self.totals(e.add(number, a), r) if self.by_row else dots)
        for a, r in [] if self.by_row else pairs:
            dots, totals = e.add(self.scratch, DOTS + (2 * a + r) * TILE_BYTES), self.totals(e.add(number, a), r)
            for token in range(TOKENS):
                n, total = e.load(VI32, dots, ROW_BYTES * token), e.load(VF32, totals, ROW_BYTES * token)
                e.store(e.fma(e.to_f32(n), scales[r], total), totals, ROW_BYTES * token)

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

        def one_group(g):
            scales = []
            for r, number in enumerate(blocks):
                place = e.add(e.mul(number, self.groups), g)
                packed = e.add(self.weights, e.mul(place, group_bytes))
                for line in range(0, group_bytes, ROW_BYTES):
                    e.prefetch(packed, FAR_BYTES + line, level=2)
                self.unpack(packed, r)
                if not self.by_row:
                    scales.append(e.load_half(e.add(self.scales, e.mul(place, 2 * LANES))))
            even = e.mul(e.b.sdiv(batch.count, e.i64(2)), 2)
            e.loop(0, even, 2, [], lambda number: self.multiply(number, 2, rows, g, scales))
            e.loop(even, batch.count, 1, [], lambda number: self.multiply(number, 1, rows, g, scales))

        e.loop(0, self.groups, 1, [], one_group)

        def finish(number):
            start = e.mul(e.add(batch.first, e.mul(number, batch.step)), TOKENS)
            for r, row in enumerate(blocks):
                places = [e.add(self.totals(number, r), ROW_BYTES * token) for token in range(TOKENS)]
                if self.by_row:
                    scale = e.load(VF32, e.add(self.scales, e.mul(row, 4 * LANES)))
                    sums = [e.b.fmul(e.to_f32(e.load(VI32, place)), scale) for place in places]
                else:
                    sums = [e.load(VF32, place) for place in places]
                store_tile(e, sums, start, self.x_scale, self.y, self.y_stride, row)

        e.loop(0, batch.count, 1, [], finish)


def _register(name, kind, by_row):
    """Make the kernel of one kind."""

    def emit(e, target, weights, scales, x, scratch, x_scale, y, first, last, groups, y_stride, t0, t1, step):
        b, t = e.b, target.isa.tiles(e)
        tiled = _Tiled(e, target, t, weights, scales, x, scratch, x_scale, y, y_stride, groups, by_row)
        t.configure()
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


_register("ternary", TERNARY, by_row=False)
_register("ternary_row", TERNARY_ROW, by_row=True)
