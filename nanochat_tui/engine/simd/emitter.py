"""A small vocabulary for writing LLVM IR: 16-lane float32 and int32 vectors, addresses, loops.

Every floating-point operation is spelled out (fused multiply-add where it says `fma`, reductions as a
fixed tree), so that the same source gives the same bits on every instruction set.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir

I8, I16, I32, I64 = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64)
F16, F32 = ir.HalfType(), ir.FloatType()
LANES = 16
"""Lanes of every vector: one AVX-512 register; LLVM splits it in two or four on narrower machines."""

VF32, VI32, VI16, VF16 = (ir.VectorType(t, LANES) for t in (F32, I32, I16, F16))
VI8x64 = ir.VectorType(I8, 64)

LOG2_E = 1.4426950408889634
# ln 2 in two parts, so that x - n·ln 2 keeps its low bits; polynomial of Cephes' expf (max error 1 ulp)
LN2_HIGH, LN2_LOW = 0.693359375, -2.12194440e-4
EXP_POLYNOMIAL = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 0.5)
EXP_MIN, EXP_MAX = -87.0, 88.0


class Emitter:
    """Writes instructions into one LLVM function. Addresses are i64 values; offsets and strides are bytes."""

    def __init__(self, builder: ir.IRBuilder, hardware_half: bool) -> None:
        self.b = builder
        self.hardware_half = hardware_half

    # ---- constants, addresses, memory

    def i64(self, value):
        """Return an i64 from a Python int; IR values pass through."""
        return I64(value) if isinstance(value, int) else value

    def f32(self, value):
        """Return a float32 constant, rounded from the Python float."""
        return F32(value) if isinstance(value, (int, float)) else value

    def add(self, *terms):
        """Return the sum of i64 terms."""
        total = self.i64(terms[0])
        for term in terms[1:]:
            total = self.b.add(total, self.i64(term))
        return total

    def mul(self, *factors):
        """Return the product of i64 factors."""
        product = self.i64(factors[0])
        for factor in factors[1:]:
            product = self.b.mul(product, self.i64(factor))
        return product

    def load(self, kind, address, offset=0):
        """Load a value of LLVM type `kind` (no alignment assumed)."""
        pointer = self.b.inttoptr(self.add(address, offset), kind.as_pointer())
        value = self.b.load(pointer)
        value.align = 1
        return value

    def read(self, table, address, *slots):
        """Load slots of the table at an address; raises TypeError if they are another table's."""
        if any(slot.table is not table for slot in slots):
            raise TypeError(f"a kernel reads slots of other tables from a {table} table")
        return [self.load(I64, address, 8 * slot) for slot in slots]

    def store(self, value, address, offset=0):
        """Store a value (no alignment assumed)."""
        pointer = self.b.inttoptr(self.add(address, offset), value.type.as_pointer())
        self.b.store(value, pointer).align = 1

    def prefetch(self, address, offset=0, *, level=1):
        """Ask for the cache line at an address, which need not exist, to be brought into a cache (level 1 or 2)."""
        pointer = self.b.inttoptr(self.add(address, offset), I8.as_pointer())
        name = "llvm.prefetch.p0"
        function = self.b.module.globals.get(name)
        if function is None:
            kind = ir.FunctionType(ir.VoidType(), [I8.as_pointer(), I32, I32, I32])
            function = ir.Function(self.b.module, kind, name)
        self.b.call(function, [pointer, I32(0), I32(4 - level), I32(1)])

    # ---- vectors

    def constant(self, kind, value):
        """Return a vector constant with every lane equal to `value`."""
        return ir.Constant(kind, [value] * kind.count)

    def splat(self, scalar, lanes=LANES):
        """Return a vector with every lane equal to `scalar` (an IR value or a Python float)."""
        if isinstance(scalar, (int, float)):
            return self.constant(VF32, float(scalar))
        kind = ir.VectorType(scalar.type, lanes)
        vector = self.b.insert_element(ir.Constant(kind, ir.Undefined), scalar, I32(0))
        return self.shuffle(vector, vector, [0] * lanes)

    def shuffle(self, a, b, order):
        """Return lanes of a and b concatenated, picked by `order`."""
        return self.b.shuffle_vector(a, b, ir.Constant(ir.VectorType(I32, len(order)), list(order)))

    def half_of(self, vector, high):
        """Return the lower or upper half of a vector."""
        n = vector.type.count // 2
        return self.shuffle(vector, vector, range(n * high, n * high + n))

    def concatenate(self, low, high):
        """Return both vectors as one of twice the width."""
        return self.shuffle(low, high, range(2 * low.type.count))

    def transposed(self, rows):
        """Return the columns of 16 rows of 16 lanes: rows 8, 4, 2, 1 apart exchange what is as far off the diagonal."""
        rows = list(rows)
        for distance in (8, 4, 2, 1):
            # lanes 0 to 15 are the first row's, 16 to 31 the second's
            first = [lane + 16 - distance if lane & distance else lane for lane in range(LANES)]
            second = [lane + 16 if lane & distance else lane + distance for lane in range(LANES)]
            for i in (i for i in range(LANES) if not i & distance):
                a, b = rows[i], rows[i + distance]
                rows[i], rows[i + distance] = self.shuffle(a, b, first), self.shuffle(a, b, second)
        return rows

    def call(self, name, result, arguments):
        """Call an LLVM intrinsic, declaring it on first use."""
        module = self.b.module
        function = module.globals.get(name)
        if function is None:
            function = ir.Function(module, ir.FunctionType(result, [a.type for a in arguments]), name)
        return self.b.call(function, arguments)

    def _float_intrinsic(self, name, *arguments):
        kind = arguments[0].type
        suffix = "f32" if kind == F32 else f"v{kind.count}f32"
        return self.call(f"llvm.{name}.{suffix}", kind, list(arguments))

    def fma(self, a, b, c):
        """Return a·b + c, rounded once."""
        return self._float_intrinsic("fma", a, b, c)

    def sqrt(self, a):
        """Return the correctly rounded square root."""
        return self._float_intrinsic("sqrt", a)

    def fabs(self, a):
        """Return the absolute value."""
        return self._float_intrinsic("fabs", a)

    def maximum(self, a, b):
        """Return the larger operand; a NaN in `a` gives b."""
        return self.b.select(self.b.fcmp_ordered(">", a, b), a, b)

    def minimum(self, a, b):
        """Return the smaller operand; a NaN in `a` gives b."""
        return self.b.select(self.b.fcmp_ordered("<", a, b), a, b)

    def to_i32(self, a):
        """Round to the nearest integer, halves to even, as int32 lanes."""
        return self.b.fptosi(self._float_intrinsic("rint", a), VI32)

    def to_f32(self, a):
        """Convert int32 lanes to float32."""
        return self.b.sitofp(a, VF32)

    def _fold(self, vector, combine):
        while vector.type.count > 1:
            vector = combine(self.half_of(vector, 0), self.half_of(vector, 1))
        return self.b.extract_element(vector, I32(0))

    def sum_lanes(self, vector):
        """Return the sum of the lanes, added as a tree (lane i with lane i + n/2)."""
        plus = self.b.fadd if vector.type.element == F32 else self.b.add
        return self._fold(vector, plus)

    def max_lanes(self, vector):
        """Return the largest lane."""
        return self._fold(vector, self.maximum)

    def exp(self, x):
        """Return e^x of float32 lanes to about 1 ulp, x clamped to [-87, 88]."""
        b = self.b
        x = self.minimum(self.maximum(x, self.splat(EXP_MIN)), self.splat(EXP_MAX))
        n = self._float_intrinsic("rint", b.fmul(x, self.splat(LOG2_E)))
        r = self.fma(n, self.splat(-LN2_HIGH), x)
        r = self.fma(n, self.splat(-LN2_LOW), r)
        p = self.splat(EXP_POLYNOMIAL[0])
        for coefficient in EXP_POLYNOMIAL[1:]:
            p = self.fma(p, r, self.splat(coefficient))
        p = b.fadd(self.fma(p, b.fmul(r, r), r), self.splat(1.0))
        exponent = b.shl(b.add(b.fptosi(n, VI32), self.constant(VI32, 127)), self.constant(VI32, 23))
        return b.fmul(p, b.bitcast(exponent, VF32))

    # ---- half precision

    def load_half(self, address, offset=0):
        """Load 16 float16 and widen to float32, exactly."""
        if self.hardware_half:
            return self.b.fpext(self.load(VF16, address, offset), VF32)
        # Without F16C LLVM would call a runtime function that may not exist: move the exponent by a multiplication.
        b = self.b
        bits = b.zext(self.load(VI16, address, offset), VI32)
        magnitude = b.shl(b.and_(bits, self.constant(VI32, 0x7FFF)), self.constant(VI32, 13))
        value = b.fmul(b.bitcast(magnitude, VF32), self.splat(2.0**112))
        sign = b.shl(b.and_(bits, self.constant(VI32, 0x8000)), self.constant(VI32, 16))
        return b.bitcast(b.or_(b.bitcast(value, VI32), sign), VF32)

    def store_half(self, value, address, offset=0):
        """Round 16 float32 to float16 (to nearest even) and store them."""
        self.store(self.half_bits(value), address, offset)

    def half_bits(self, value):
        """Return 16 float32 as the bits (int16 lanes) of the nearest float16; beyond ±65504 is infinite."""
        b = self.b
        if self.hardware_half:
            return b.bitcast(b.fptrunc(value, VF16), VI16)
        bits = b.bitcast(value, VI32)
        sign = b.and_(bits, self.constant(VI32, 0x80000000 - 2**32))
        magnitude = b.xor(bits, sign)
        odd = b.and_(b.lshr(magnitude, self.constant(VI32, 13)), self.constant(VI32, 1))
        # normal: rebias the exponent by -112 and add just under half a unit, plus one if the result would be odd
        rounding = self.constant(VI32, 0xFFF - (112 << 23))
        normal = b.lshr(b.add(b.add(magnitude, rounding), odd), self.constant(VI32, 13))
        # subnormal: adding 0.5 lines the bits up with float16's fixed point, rounding on the way
        half = self.constant(VI32, 0x3F000000)
        shifted = b.fadd(b.bitcast(magnitude, VF32), self.splat(0.5))
        subnormal = b.sub(b.bitcast(shifted, VI32), half)
        small = b.icmp_unsigned("<", magnitude, self.constant(VI32, 113 << 23))
        large = b.icmp_unsigned(">=", magnitude, self.constant(VI32, 0x477FF000))
        is_nan = b.icmp_unsigned(">", magnitude, self.constant(VI32, 0x7F800000))
        result = b.select(large, self.constant(VI32, 0x7C00), b.select(small, subnormal, normal))
        result = b.select(is_nan, self.constant(VI32, 0x7E00), result)
        result = b.or_(result, b.lshr(sign, self.constant(VI32, 16)))
        return b.trunc(result, VI16)

    # ---- control

    def loop(
        self,
        start: Any,
        stop: Any,
        step: Any,
        carried: Sequence[Any],
        body: Callable[..., Sequence[Any] | None],
    ) -> list[Any]:
        """Emit `for index in range(start, stop, step)` with loop-carried values; return their final values.

        `body(index, *values)` emits one round and returns the new values. `step` is positive.
        """
        b = self.b
        start, stop, step = self.i64(start), self.i64(stop), self.i64(step)
        before = b.block
        head = b.append_basic_block("head")
        inside = b.append_basic_block("body")
        after = b.append_basic_block("after")
        b.branch(head)
        b.position_at_end(head)
        index = b.phi(I64)
        phis = [b.phi(value.type) for value in carried]
        b.cbranch(b.icmp_signed("<", index, stop), inside, after)
        b.position_at_end(inside)
        results = list(body(index, *phis) or ())
        following = b.add(index, step)
        end = b.block
        b.branch(head)
        index.add_incoming(start, before)
        index.add_incoming(following, end)
        for phi, first, later in zip(phis, carried, results, strict=True):
            phi.add_incoming(first, before)
            phi.add_incoming(later, end)
        b.position_at_end(after)
        return phis
