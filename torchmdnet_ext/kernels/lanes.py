"""Short vectors of numbers for Numba kernels: explicit SIMD.

LLVM does not vectorise loops over pairs of atoms that gather, reduce over heads and scatter, so the kernels say what is a
vector. A value of type `Lanes` is an LLVM vector in registers; `+ - * /` act lane by lane, and a product and a sum may be
contracted to one fused multiply-add. No other fast-math licence is given: NaN stays NaN, and the order of all sums is fixed.

Offsets count elements from the start of a C-contiguous array of any shape; nothing checks them.
"""

import math
import operator

from llvmlite import ir
from numba.core import cgutils, types
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, models, register_model
from numba.np.arrayobj import make_array

WIDTH = 8  # lanes of the pair kernels: the heads of one group
PANEL = 16  # lanes of the matrix products: the columns of one panel

# Cephes' polynomial for exp on [-ln(2)/2, ln(2)/2] in single precision
_EXP = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)
_FUSE = ("contract",)


class Lanes(types.Type):
    """A vector of `count` numbers of type `dtype` (float32 or float64)."""

    def __init__(self, dtype, count):
        self.dtype, self.count = dtype, count
        super().__init__(name=f"Lanes({dtype}, {count})")

    @property
    def llvm(self):
        """The vector type in LLVM."""
        return ir.VectorType(ir.FloatType() if self.dtype == types.float32 else ir.DoubleType(), self.count)


@register_model(Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, dmm, fe_type):
        super().__init__(dmm, fe_type, fe_type.llvm)


def _register(function, instruction):
    @infer_global(function)
    class _Typing(AbstractTemplate):
        def generic(self, args, kws):
            if len(args) == 2 and isinstance(args[0], Lanes) and args[0] == args[1]:
                return signature(args[0], *args)
            return None

    @lower_builtin(function, Lanes, Lanes)
    def _lower(context, builder, sig, args):
        return getattr(builder, instruction)(args[0], args[1], flags=_FUSE)


for _function, _instruction in (
    (operator.add, "fadd"),
    (operator.sub, "fsub"),
    (operator.mul, "fmul"),
    (operator.truediv, "fdiv"),
):
    _register(_function, _instruction)


def _constant(lanes, value):
    return ir.Constant(lanes, [value] * lanes.count)


def _splat(builder, scalar, lanes):
    index = ir.IntType(32)
    one = builder.insert_element(ir.Constant(lanes, ir.Undefined), scalar, index(0))
    mask = ir.Constant(ir.VectorType(index, lanes.count), [0] * lanes.count)
    return builder.shuffle_vector(one, ir.Constant(lanes, ir.Undefined), mask)


def _address(context, builder, array_type, array, offset):
    data = make_array(array_type)(context, builder, array).data
    return builder.gep(data, [offset])


def _load(builder, address, lanes, itemsize):
    return builder.load(builder.bitcast(address, lanes.as_pointer()), align=itemsize)


def _itemsize(array_type):
    return array_type.dtype.bitwidth // 8


def _make_load(count):
    @intrinsic
    def load(typingctx, array, offset):
        lanes = Lanes(array.dtype, count)

        def codegen(context, builder, sig, args):
            address = _address(context, builder, array, args[0], args[1])
            return _load(builder, address, lanes.llvm, _itemsize(array))

        return lanes(array, types.intp), codegen

    return load


def _make_splat(count):
    @intrinsic
    def splat(typingctx, array, value):
        lanes = Lanes(array.dtype, count)

        def codegen(context, builder, sig, args):
            return _splat(builder, args[1], lanes.llvm)

        return lanes(array, array.dtype), codegen

    return splat


load8, load16 = _make_load(WIDTH), _make_load(PANEL)  # (array, offset) -> lanes
splat8, splat16 = _make_splat(WIDTH), _make_splat(PANEL)  # (array for its dtype, number) -> lanes


def _make_broadcast(count):
    @intrinsic
    def broadcast(typingctx, array, offset):
        lanes = Lanes(array.dtype, count)

        def codegen(context, builder, sig, args):
            return _splat(builder, builder.load(_address(context, builder, array, args[0], args[1])), lanes.llvm)

        return lanes(array, types.intp), codegen

    return broadcast


broadcast8, broadcast16 = _make_broadcast(WIDTH), _make_broadcast(PANEL)  # (array, offset) -> that number in all lanes


def _make_product(rows):
    @intrinsic
    def product(typingctx, a, a0, inner, packed, w, start, out, out0, columns, add):
        """Compute PANEL columns in `rows` rows of a matrix product.

        out = start + a @ packed, or out += start + a @ packed where `add` is set, with a (rows, inner) from a0 on, packed
        (inner, PANEL) from w on and out (rows, columns) from out0 on; `start` is lanes.
        """

        def codegen(context, builder, sig, args):
            a_array, a_first, count, weights, w_first, first_value, target, out_first, stride, added = args
            totals = [cgutils.alloca_once_value(builder, first_value) for _ in range(rows)]
            row_starts = [builder.add(a_first, builder.mul(count, count.type(row))) for row in range(rows)]
            with cgutils.for_range(builder, count, intp=count.type) as loop:
                at = builder.add(w_first, builder.mul(loop.index, count.type(PANEL)))
                line = _load(builder, _address(context, builder, packed, weights, at), start.llvm, _itemsize(packed))
                for total, row in zip(totals, row_starts, strict=True):
                    address = _address(context, builder, a, a_array, builder.add(row, loop.index))
                    term = builder.fmul(_splat(builder, builder.load(address), start.llvm), line, flags=_FUSE)
                    builder.store(builder.fadd(builder.load(total), term, flags=_FUSE), total)
            addresses = [
                builder.bitcast(
                    _address(context, builder, out, target, builder.add(out_first, builder.mul(stride, count.type(row)))),
                    start.llvm.as_pointer(),
                )
                for row in range(rows)
            ]
            size = _itemsize(out)
            with builder.if_else(added) as (then, otherwise):
                with then:
                    for address, total in zip(addresses, totals, strict=True):
                        old = builder.load(address, align=size)
                        builder.store(builder.fadd(old, builder.load(total), flags=_FUSE), address, align=size)
                with otherwise:
                    for address, total in zip(addresses, totals, strict=True):
                        builder.store(builder.load(total), address, align=size)
            return context.get_dummy_value()

        index = types.intp
        return types.void(a, index, index, packed, index, start, out, index, index, types.boolean), codegen

    return product


product1, product2, product3, product4, product5, product6 = (_make_product(rows) for rows in range(1, 7))


@intrinsic
def store(typingctx, array, offset, lanes):
    """Set array[offset:] = lanes."""

    def codegen(context, builder, sig, args):
        address = _address(context, builder, array, args[0], args[1])
        builder.store(args[2], builder.bitcast(address, lanes.llvm.as_pointer()), align=_itemsize(array))
        return context.get_dummy_value()

    return types.void(array, types.intp, lanes), codegen


@intrinsic
def increase(typingctx, array, offset, lanes):
    """Set array[offset:] += lanes."""

    def codegen(context, builder, sig, args):
        address = _address(context, builder, array, args[0], args[1])
        old = _load(builder, address, lanes.llvm, _itemsize(array))
        new = builder.fadd(old, args[2], flags=_FUSE)
        builder.store(new, builder.bitcast(address, lanes.llvm.as_pointer()), align=_itemsize(array))
        return context.get_dummy_value()

    return types.void(array, types.intp, lanes), codegen


@intrinsic
def prefetch(typingctx, array, offset):
    """Ask for the cache line at `offset`: to be read soon."""

    def codegen(context, builder, sig, args):
        byte, word = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte, word, word, word])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
        address = builder.bitcast(_address(context, builder, array, args[0], args[1]), byte)
        builder.call(function, [address, word(0), word(3), word(1)])
        return context.get_dummy_value()

    return types.void(array, types.intp), codegen


def _coefficients(context, builder, array_type, args, lanes, numbers):
    loaded = []
    for number in numbers:
        offset = builder.add(args[1], ir.Constant(args[1].type, number * lanes.count))
        address = _address(context, builder, array_type, args[0], offset)
        loaded.append(_load(builder, address, lanes, _itemsize(array_type)))
    return loaded


@intrinsic
def cubic8(typingctx, table, offset, t):
    """c0 + t (c1 + t (c2 + t c3)) with the four coefficient vectors at `offset`."""

    def codegen(context, builder, sig, args):
        c = _coefficients(context, builder, table, args, t.llvm, range(4))
        value = c[3]
        for k in (2, 1, 0):
            value = builder.fadd(builder.fmul(value, args[2], flags=_FUSE), c[k], flags=_FUSE)
        return value

    return t(table, types.intp, t), codegen


@intrinsic
def slope8(typingctx, table, offset, t):
    """The derivative of `cubic8` with respect to t."""

    def codegen(context, builder, sig, args):
        c1, c2, c3 = _coefficients(context, builder, table, args, t.llvm, (1, 2, 3))
        value = builder.fmul(c3, builder.fmul(args[2], _constant(t.llvm, 3.0)), flags=_FUSE)
        value = builder.fadd(value, builder.fadd(c2, c2), flags=_FUSE)
        return builder.fadd(builder.fmul(value, args[2], flags=_FUSE), c1, flags=_FUSE)

    return t(table, types.intp, t), codegen


@intrinsic
def total8(typingctx, lanes):
    """Sum over the lanes, pairwise."""

    def codegen(context, builder, sig, args):
        value, count = args[0], lanes.count
        while count > 1:
            count //= 2
            index = ir.VectorType(ir.IntType(32), count)
            low = builder.shuffle_vector(value, value, ir.Constant(index, list(range(count))))
            high = builder.shuffle_vector(value, value, ir.Constant(index, list(range(count, 2 * count))))
            value = builder.fadd(low, high)
        return builder.extract_element(value, ir.IntType(32)(0))

    return lanes.dtype(lanes), codegen


def _exp_single(builder, x, lanes):
    # limits by comparisons that are false for NaN, so that NaN stays; no float-to-integer conversion, whose result is
    # undefined for NaN: adding 1.5 * 2^23 leaves the rounded integer in the low bits
    integers = ir.VectorType(ir.IntType(32), lanes.count)
    for comparison, limit in ((">", 87.0), ("<", -87.0)):
        bound = _constant(lanes, limit)
        x = builder.select(builder.fcmp_ordered(comparison, x, bound), bound, x)
    magic = _constant(lanes, 12582912.0)
    shifted = builder.fadd(builder.fmul(x, _constant(lanes, 1.44269504088896341)), magic)
    n = builder.fsub(shifted, magic)
    x = builder.fsub(x, builder.fmul(n, _constant(lanes, 0.693359375), flags=_FUSE), flags=_FUSE)
    x = builder.fadd(x, builder.fmul(n, _constant(lanes, 2.12194440e-4), flags=_FUSE), flags=_FUSE)
    y = _constant(lanes, _EXP[0])
    for coefficient in _EXP[1:]:
        y = builder.fadd(builder.fmul(y, x, flags=_FUSE), _constant(lanes, coefficient), flags=_FUSE)
    y = builder.fadd(builder.fmul(y, builder.fmul(x, x), flags=_FUSE), x, flags=_FUSE)
    y = builder.fadd(y, _constant(lanes, 1.0))
    bits = builder.sub(builder.bitcast(shifted, integers), ir.Constant(integers, [0x4B400000 - 127] * lanes.count))
    power = builder.shl(bits, ir.Constant(integers, [23] * lanes.count))
    return builder.fmul(y, builder.bitcast(power, lanes))


def _exp_double(builder, x, lanes):
    # as in single precision, with the Taylor polynomial of degree 13: its error on [-ln(2)/2, ln(2)/2] is 4e-18
    integers = ir.VectorType(ir.IntType(64), lanes.count)
    for comparison, limit in ((">", 709.0), ("<", -708.0)):
        bound = _constant(lanes, limit)
        x = builder.select(builder.fcmp_ordered(comparison, x, bound), bound, x)
    magic = _constant(lanes, 6755399441055744.0)  # 1.5 * 2^52
    shifted = builder.fadd(builder.fmul(x, _constant(lanes, 1.44269504088896341)), magic)
    n = builder.fsub(shifted, magic)
    # ln(2) in two parts, the first of which times n is exact
    x = builder.fsub(x, builder.fmul(n, _constant(lanes, 6.93147180369123816490e-1), flags=_FUSE), flags=_FUSE)
    x = builder.fsub(x, builder.fmul(n, _constant(lanes, 1.90821492927058770002e-10), flags=_FUSE), flags=_FUSE)
    y = _constant(lanes, 1.0 / math.factorial(13))
    for power in range(12, -1, -1):
        y = builder.fadd(builder.fmul(y, x, flags=_FUSE), _constant(lanes, 1.0 / math.factorial(power)), flags=_FUSE)
    bits = builder.sub(builder.bitcast(shifted, integers), ir.Constant(integers, [0x4338000000000000 - 1023] * lanes.count))
    power = builder.shl(bits, ir.Constant(integers, [52] * lanes.count))
    return builder.fmul(y, builder.bitcast(power, lanes))


def exp_of_lanes(builder, x, lanes):
    """Calculate exp of a vector of the LLVM type `lanes`, clamped to the range of normal numbers; NaN stays NaN."""
    return (_exp_single if lanes.element == ir.FloatType() else _exp_double)(builder, x, lanes)


@intrinsic
def exp8(typingctx, lanes):
    """Calculate exp of every lane, clamped to the range of normal numbers."""

    def codegen(context, builder, sig, args):
        return exp_of_lanes(builder, args[0], lanes.llvm)

    return lanes(lanes), codegen
