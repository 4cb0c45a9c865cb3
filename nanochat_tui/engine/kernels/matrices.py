"""A product with a matrix of any kind: one kernel that branches to the one for kind and tile.

`matrix_product` is what a forward pass calls. The branches for kinds that a target does not have are not
compiled, so that a model pays for the kinds it holds.
"""

from __future__ import annotations

from nanochat_tui.engine.kernels.blocked import TOKENS
from nanochat_tui.engine.kernels.dense import DENSE_NAMES, FEW
from nanochat_tui.engine.kernels.tables import TABLE_NAMES
from nanochat_tui.engine.kernels.tiles import by_tile, call_kernel
from nanochat_tui.engine.layout import kinds as k
from nanochat_tui.engine.layout import slots as s
from nanochat_tui.engine.layout.kinds import LAYOUTS
from nanochat_tui.engine.layout.table import MATRIX
from nanochat_tui.engine.simd.intrinsics import kernel


@kernel("v:Xiiiiiiiiiiiiiii")
def matrix_product(e, target, matrix, tile, x8, init, x_scale, source, x_stride, scratch, y, y_stride, first, last,
                   count, t0, t1, step):  # fmt: skip
    """Write y = W x, float32, for row blocks first..last and the tokens of tiles t0, t0 + step … below t1.

    matrix: address of its slots (see `slots`). tile: one of `TILES`, up to the target's own. x8, init, x_scale: the
    tokens as `quantise_for` left them, for integer kinds. source: the tokens as float32 rows x_stride bytes apart, for
    dense kinds, which never go beyond `count` tokens. scratch: `kinds.tile_scratch` bytes that ternary kinds work in
    where there are tile registers. y must have room for whole tiles; strides are bytes.
    """
    b = e.b
    kind, weights, scales = e.read(MATRIX, matrix, s.MATRIX_KIND, s.MATRIX_WEIGHTS, s.MATRIX_SCALES)
    columns, padded = e.read(MATRIX, matrix, s.MATRIX_COLUMNS, s.MATRIX_PADDED)

    def is_(value, number):
        return b.icmp_signed("==", value, e.i64(number))

    def ternary(name):
        groups = b.sdiv(padded, e.i64(target.group))
        output = (x_scale, y, first, last, groups, y_stride, t0, t1, step)
        if target.isa.tiles is None:
            by_tile(e, tile, name, (weights, scales, x8, init, *output))
            return
        with b.if_else(is_(tile, TOKENS)) as (whole, few):
            with whole:
                call_kernel(e, f"{name}_tiles", (weights, scales, x8, scratch, *output))
            with few:
                by_tile(e, tile, name, (weights, scales, x8, init, *output), below=TOKENS)

    def table(number):
        activations = (x8, init, x_scale)
        arguments = (tile, weights, scales, *activations, y, first, last, columns, padded, y_stride, t0, t1, step)
        by_tile(e, tile, TABLE_NAMES[number], arguments)

    def dense(name):
        # tiles of few tokens, then the last ones singly: rows behind `count` do not exist in `source`
        def one_tile(index):
            start = e.mul(index, tile)
            stop = e.add(start, tile)
            stop = b.select(b.icmp_signed("<", stop, count), stop, count)
            whole = b.sdiv(b.sub(stop, start), e.i64(FEW))
            row, out = e.add(source, e.mul(start, x_stride)), e.add(y, e.mul(start, y_stride))
            rest = e.mul(whole, FEW)
            few = (weights, row, x_stride, out, y_stride, first, last, columns)
            call_kernel(e, f"{name}_{FEW}", (*few, e.i64(0), whole, e.i64(1)))
            call_kernel(e, f"{name}_1", (*few, rest, b.sub(stop, start), e.i64(1)))

        e.loop(t0, t1, step, [], one_tile)

    for number in sorted(target.kinds):
        with b.if_then(is_(kind, number)):
            if number in LAYOUTS:
                table(number)
            elif number in DENSE_NAMES:
                dense(DENSE_NAMES[number])
            else:
                ternary(k.TERNARY_NAMES[number])
