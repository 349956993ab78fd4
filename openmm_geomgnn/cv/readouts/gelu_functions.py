"""The activation gelu(x) = x * Phi(x) and its slope, of SIMD lanes; Phi is the normal distribution's cumulative function.

For u >= 0, 1 - Phi(u) = exp(-u^2 / 2) * t * q(2 t - 1) with t = 1 / (1 + a u) and a polynomial q, which interpolates what it
has to be at Chebyshev nodes in t: the right side is wrong by 4e-9 in single and by 2e-15 in double precision.
"""

import math
from typing import Any

from llvmlite import ir
from numba import njit
from numba.core import types
from numba.extending import intrinsic

from torchmdnet_ext.compiled.lane_functions import larger, where_positive
from torchmdnet_ext.kernels.lanes import exp8

_FUSE = ("contract",)
_SINGLE = 0.4, (
    5.621265386e-05, -1.169584520e-04, -2.636837823e-04, 9.975298999e-04, 6.361912372e-04, -6.548782793e-03,
    -3.693970818e-03, 5.279396159e-02, 1.734768229e-01, 2.826626819e-01,
)  # fmt: skip
_DOUBLE = 0.2, (
    7.8736112278592898e-10, 4.0540539481272854e-10, -1.0444428866254514e-08, -5.6548230027725041e-09,
    8.1916482209059304e-08, 6.4095678370386269e-08, -5.4919158726086428e-07, -7.9376987425300727e-07,
    3.3333868757981300e-06, 9.9513805735788766e-06, -1.1874045758393629e-05, -1.0897944051826144e-04,
    -1.5957414006609143e-04, 5.9867528268276414e-04, 4.1590133956026119e-03, 1.3823727748822387e-02,
    3.3004073231585697e-02, 6.2706631333892510e-02, 9.9061123194063239e-02, 1.3307650057801676e-01,
    1.5383860995001231e-01,
)  # fmt: skip


def _constant(lanes: Any, value: float) -> Any:
    return ir.Constant(lanes, [value] * lanes.count)


@intrinsic
def _tail(typingctx: Any, lanes: Any) -> Any:
    """Evaluate t * q(2 t - 1) in every lane."""
    a, coefficients = _SINGLE if lanes.dtype == types.float32 else _DOUBLE

    def codegen(context: int, builder: Any, sig: Any, args: Any) -> Any:
        kind = lanes.llvm
        one = _constant(kind, 1.0)
        t = builder.fdiv(one, builder.fadd(builder.fmul(args[0], _constant(kind, a), flags=_FUSE), one, flags=_FUSE))
        y = builder.fsub(builder.fadd(t, t), one)
        value = _constant(kind, coefficients[0])
        for coefficient in coefficients[1:]:
            value = builder.fadd(builder.fmul(value, y, flags=_FUSE), _constant(kind, coefficient), flags=_FUSE)
        return builder.fmul(value, t)

    return lanes(lanes), codegen


def _make_constant(value: float) -> Any:
    @intrinsic
    def constant(typingctx: Any, lanes: Any) -> Any:
        """A vector with the number in all lanes."""

        def codegen(context: int, builder: Any, sig: Any, args: Any) -> Any:
            return _constant(lanes.llvm, value)

        return lanes(lanes), codegen

    return constant


_zero, _one, _minus_half = (_make_constant(value) for value in (0.0, 1.0, -0.5))
_density = _make_constant(1.0 / math.sqrt(2.0 * math.pi))


@njit(error_model="numpy")
def _cumulative(x: Any, power: Any) -> Any:
    tail = _tail(larger(x, _zero(x) - x)) * power
    return tail + where_positive(x, _one(x) - tail - tail)


@njit(error_model="numpy")
def gelu(x: Any) -> Any:
    """Evaluate x * Phi(x) in every lane."""
    return x * _cumulative(x, exp8(_minus_half(x) * x * x))


@njit(error_model="numpy")
def gelu_slope(x: Any) -> Any:
    """Evaluate the derivative of `gelu` in every lane."""
    power = exp8(_minus_half(x) * x * x)
    return _cumulative(x, power) + x * power * _density(x)
