"""Intervals of a variable on a line or, with a period, on a circle: plain arithmetic for numbers and arrays.

An interval is (low, high). On a circle it extends from low upwards to high, across the end of the period if low is larger:
(150, -150) degrees are the 60 degrees around 180.
"""

import math
from typing import Any, TypeAlias

# (low, high)
Interval: TypeAlias = tuple[float, float]

TURN = 2 * math.pi  # the period of an angle in radians


def within(x: Any, interval: Interval, period: float | None = None) -> Any:
    """Whether x, a number or an array, lies in the closed interval."""
    low, high = interval
    if period is None:
        return (x >= low) & (x <= high)
    return (x - low) % period <= (high - low) % period


def width(interval: Interval, period: float | None = None) -> float:
    """The distance from low to high; on a circle upwards."""
    low, high = interval
    return high - low if period is None else (high - low) % period


def overlap(first: Interval, second: Interval, period: float | None = None) -> bool:
    """Whether two intervals have a point in common."""
    return bool(within(first[0], second, period) or within(second[0], first, period))


def gaps_between(first: Interval, second: Interval, period: float | None = None) -> tuple[Interval, ...]:
    """The intervals between two that do not overlap.

    There is one on a line; on a circle there is one from `first` upwards to `second`, and one from `second` to `first`.
    """
    if period is None:
        lower, upper = sorted((first, second))
        return ((lower[1], upper[0]),)
    return (first[1], second[0]), (second[1], first[0])
