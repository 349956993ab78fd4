"""Functions of SIMD lanes that the engines need beyond those of `torchmdnet_ext.kernels.lanes`."""

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from torchmdnet_ext.kernels.lanes import exp_of_lanes

_FUSE = ("contract",)
# minimax polynomial for 2^f on [-1/2, 1/2], relative error 8e-8
_EXP2 = (1.327646896e-3, 9.675540961e-3, 5.550713465e-2, 2.402212024e-1, 6.931469440e-1, 1.000000119)


def _constant(lanes, value):
    return ir.Constant(lanes, [value] * lanes.count)


def _call(builder, name, lanes, value):
    """LLVM's own function of every lane."""
    full_name = f"llvm.{name}.v{lanes.count}f{lanes.dtype.bitwidth}"
    kind = ir.FunctionType(lanes.llvm, [lanes.llvm])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, full_name), [value])


def _sigmoid_single(builder, x, lanes):
    # as the exp of `torchmdnet_ext.kernels.lanes`, shorter: errors of 2^u hardly matter where 2^u is far from 1
    integers = ir.VectorType(ir.IntType(32), lanes.count)
    u = builder.fmul(x, _constant(lanes, -1.44269504088896341))
    for comparison, limit in ((">", 120.0), ("<", -120.0)):
        bound = _constant(lanes, limit)
        u = builder.select(builder.fcmp_ordered(comparison, u, bound), bound, u)
    magic = _constant(lanes, 12582912.0)
    shifted = builder.fadd(u, magic)
    f = builder.fsub(u, builder.fsub(shifted, magic))
    y = _constant(lanes, _EXP2[0])
    for coefficient in _EXP2[1:]:
        y = builder.fadd(builder.fmul(y, f, flags=_FUSE), _constant(lanes, coefficient), flags=_FUSE)
    power = builder.shl(builder.bitcast(shifted, integers), ir.Constant(integers, [23] * lanes.count))
    y = builder.bitcast(builder.add(builder.bitcast(y, integers), power), lanes)
    # `arcp`: the reciprocal may be an estimate and one step of Newton's method, which leaves an error of the last bit
    one = _constant(lanes, 1.0)
    return builder.fdiv(one, builder.fadd(y, one), flags=("arcp",))


@intrinsic
def sigmoid(typingctx, lanes):
    """1 / (1 + exp(-x)) of every lane; in single precision any number for NaN, so multiply it by x."""

    def codegen(context, builder, sig, args):
        if lanes.dtype == types.float32:
            return _sigmoid_single(builder, args[0], lanes.llvm)
        one = _constant(lanes.llvm, 1.0)
        power = exp_of_lanes(builder, builder.fsub(_constant(lanes.llvm, 0.0), args[0]), lanes.llvm)
        return builder.fdiv(one, builder.fadd(one, power))

    return lanes(lanes), codegen


@intrinsic
def root(typingctx, lanes):
    """Square root of every lane."""

    def codegen(context, builder, sig, args):
        return _call(builder, "sqrt", lanes, args[0])

    return lanes(lanes), codegen


def _shuffled(builder, value, places):
    index = ir.VectorType(ir.IntType(32), len(places))
    return builder.shuffle_vector(value, value, ir.Constant(index, list(places)))


@intrinsic
def fold(typingctx, lanes):
    """The sum of the first and the second half of the lanes, twice."""

    def codegen(context, builder, sig, args):
        half = lanes.count // 2
        return builder.fadd(args[0], _shuffled(builder, args[0], [(k + half) % lanes.count for k in range(lanes.count)]))

    return lanes(lanes), codegen


def _make_extreme(comparison):
    def pick(builder, a, b):
        return builder.select(builder.fcmp_ordered(comparison, a, b), a, b)

    @intrinsic
    def of_two(typingctx, a, b):
        def codegen(context, builder, sig, args):
            return pick(builder, args[0], args[1])

        return a(a, a), codegen

    @intrinsic
    def of_all(typingctx, lanes):
        def codegen(context, builder, sig, args):
            value, count = args[0], lanes.count
            while count > 1:
                count //= 2
                low, high = range(count), range(count, 2 * count)
                value = pick(builder, _shuffled(builder, value, low), _shuffled(builder, value, high))
            return builder.extract_element(value, ir.IntType(32)(0))

        return lanes.dtype(lanes), codegen

    return of_two, of_all


larger, largest = _make_extreme(">")  # (lanes, lanes) -> lanes; lanes -> number; the second where one is NaN
smaller, smallest = _make_extreme("<")


@intrinsic
def where_positive(typingctx, condition, value):
    """Lanes of `value` where `condition` is positive, otherwise 0."""

    def codegen(context, builder, sig, args):
        zero = _constant(value.llvm, 0.0)
        return builder.select(builder.fcmp_ordered(">", args[0], zero), args[1], zero)

    return value(value, value), codegen
