"""Named tuples of arrays that the kernels of all networks take.

Numba compiles a named tuple as it compiles its arrays one by one. The order of the fields goes into the compiled code, so
the files that define such tuples are among the sources of the kernels' cache.
"""

from typing import NamedTuple

import numpy as np


class RadialTable(NamedTuple):
    """The radial filters of a network as piecewise cubics, and the grid of their intervals; see `tables.Grid`."""

    cutoff: float
    share: float
    steepness: float
    alpha: float
    intervals: int
    coefficients: np.ndarray  # in an order of each network's own


class Near(NamedTuple):
    """Pairs closer than the cutoff, which `pair_kernels.neighbours` fills in; there is room for P."""

    i: np.ndarray  # (P,)
    j: np.ndarray  # (P,)
    node: np.ndarray  # (P,) interval of the table
    geometry: np.ndarray  # (P, 6), float64: place t in the interval, dt/dr, 1/r, unit vector from i to j (0 at r = 0)


def make_near(pairs):
    """Room for so many pairs."""
    return Near(*(np.zeros(pairs, np.int64) for _ in range(3)), np.zeros((pairs, 6)))
