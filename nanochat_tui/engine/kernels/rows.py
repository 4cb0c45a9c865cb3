"""One row of a packed matrix as floats: what an embedding looks up, whatever its kind."""

from __future__ import annotations

from llvmlite import ir

from nanochat_tui.engine.kernels.tables import bytes_to_i32, codes_of
from nanochat_tui.engine.layout import kinds as k
from nanochat_tui.engine.layout import slots as s
from nanochat_tui.engine.layout.kinds import LAYOUTS
from nanochat_tui.engine.layout.table import MATRIX
from nanochat_tui.engine.simd.base import STEP_BYTES, STEP_COLUMNS
from nanochat_tui.engine.simd.emitter import F32, I8, I16, I32, LANES, VF32
from nanochat_tui.engine.simd.intrinsics import kernel

WORD = 4 * LANES
FOUR_BYTES, FOUR, FOUR_FLOATS = ir.VectorType(I8, 4), ir.VectorType(I32, 4), ir.VectorType(F32, 4)


class _Row:
    """Addresses of one row of a matrix, and how its numbers are written out."""

    def __init__(self, e, weights, scales, row, out):
        self.e, self.weights, self.scales, self.out = e, weights, scales, out
        self.block = e.b.sdiv(row, e.i64(LANES))
        self.lane = e.b.srem(row, e.i64(LANES))

    def pick(self, vector):
        """Return this row's lane of a vector."""
        return self.e.b.extract_element(vector, self.e.b.trunc(self.lane, I32))

    def half(self, address, offset=0):
        """Return this row's float16 of 16 as float32."""
        return self.pick(self.e.load_half(address, offset))

    def store(self, codes, offset, scale, minimum, at):
        """Write scale · (code - offset) + minimum for the four bytes of an i32 of codes."""
        e, b = self.e, self.e.b
        wide = b.zext(b.bitcast(codes, FOUR_BYTES), FOUR)
        values = b.sitofp(b.sub(wide, e.constant(FOUR, offset)), FOUR_FLOATS)
        values = b.fmul(values, e.splat(scale, 4))
        if minimum is not None:
            values = b.fadd(values, e.splat(minimum, 4))
        e.store(values, self.out, at)


def _ternary(e, target, r, columns, padded, by_row):
    b, steps = e.b, target.group // STEP_COLUMNS
    groups = b.sdiv(padded, e.i64(target.group))
    base = e.add(r.weights, e.mul(r.block, groups, steps * STEP_BYTES), e.mul(r.lane, 4))
    row_scale = r.pick(e.load(VF32, r.scales, e.mul(r.block, WORD))) if by_row else None

    def step(index):
        scale = row_scale
        if scale is None:
            group = b.sdiv(index, e.i64(steps))
            scale = r.half(e.add(r.scales, e.mul(e.add(e.mul(r.block, groups), group), 2 * LANES)))
        packed = e.load(I32, base, e.mul(index, STEP_BYTES))
        for pair in range(4):
            codes = b.and_(b.lshr(packed, I32(2 * pair)), I32(0x03030303))
            r.store(codes, 1, scale, None, e.add(e.mul(index, 4 * STEP_COLUMNS), 16 * pair))

    e.loop(0, b.sdiv(columns, e.i64(STEP_COLUMNS)), 1, [], step)


def _dense(e, r, columns, kind):
    b, size = e.b, 4 if kind == k.F32 else 2
    base = e.add(r.weights, e.mul(r.block, columns, size * LANES), e.mul(r.lane, size))

    def one(column):
        at = e.add(base, e.mul(column, size * LANES))
        if kind == k.F32:
            value = e.load(F32, at)
        elif kind == k.BF16:
            value = b.bitcast(b.shl(b.zext(e.load(I16, at), I32), I32(16)), F32)
        else:
            whole = e.load_half(b.sub(at, e.mul(r.lane, size)))
            value = r.pick(whole)
        e.store(value, r.out, e.mul(column, 4))

    e.loop(0, columns, 1, [], one)


def _table(e, target, r, columns, layout):
    """The order of operations is the one of the gguf package, so that rows are equal to it bit for bit."""
    b = e.b
    parts = b.sdiv(columns, e.i64(layout.columns))
    integers = 2 * LANES * (2 if layout.minimum else 1)

    def part(p):
        place = e.add(e.mul(r.block, parts), p)
        words = e.add(r.weights, e.mul(place, layout.words * WORD), e.mul(r.lane, 4))
        scales = e.add(r.scales, e.mul(place, layout.scale_bytes))
        for n in range(layout.blocks):
            minimum = None
            if layout.nested:
                signed = layout.kind == k.Q6_K
                factor = e.to_f32(bytes_to_i32(e, scales, integers + n * LANES, signed))
                scale = b.fmul(r.half(scales), r.pick(factor))
                if layout.minimum:
                    factor = e.to_f32(bytes_to_i32(e, scales, integers + (layout.blocks + n) * LANES, signed=False))
                    minimum = b.fneg(b.fmul(r.half(scales, 2 * LANES), r.pick(factor)))
            else:
                at = n * 2 * LANES * (2 if layout.minimum else 1)
                scale = r.half(scales, at)
                minimum = r.half(scales, at + 2 * LANES) if layout.minimum else None
            for column in range(n * layout.block, (n + 1) * layout.block, 4):
                codes, offset = codes_of(e, layout.kind, words, column, I32), layout.offset
                if layout.kind == k.Q8:
                    # a target without bias stores signed bytes; with their sign turned over they are w + 128 as well
                    offset, codes = 128, codes if target.isa.q8_bias else b.xor(codes, I32(0x80808080 - (1 << 32)))
                r.store(codes, offset, scale, minimum, e.add(e.mul(p, 4 * layout.columns), 4 * column))

    e.loop(0, parts, 1, [], part)


@kernel("v:Xii")
def matrix_row(e, target, matrix, row, out):
    """Write row `row` of a matrix (address of its slots, see `kinds`) as float32 [columns]."""
    b = e.b
    kind, weights, scales = e.read(MATRIX, matrix, s.MATRIX_KIND, s.MATRIX_WEIGHTS, s.MATRIX_SCALES)
    columns, padded = e.read(MATRIX, matrix, s.MATRIX_COLUMNS, s.MATRIX_PADDED)
    r = _Row(e, weights, scales, row, out)
    for number in sorted(target.kinds):
        with b.if_then(b.icmp_signed("==", kind, e.i64(number))):
            if number in k.TERNARY_NAMES:
                _ternary(e, target, r, columns, padded, number == k.TERNARY_ROW)
            elif number in k.DENSE:
                _dense(e, r, columns, number)
            else:
                _table(e, target, r, columns, LAYOUTS[number])
