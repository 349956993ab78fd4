"""Whether a bias on a CV would drive slow torsions, or distortions that look like it."""

from collections.abc import Sequence
from itertools import product

import numpy as np
import numpy.typing as npt

from openmm_geomgnn.analysis.progress import SlowTorsion, progress_targets, side_targets
from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.units import BOLTZMANN

_NEAR = 0.25  # from the end, or from the middle, of the way between two wells, in units of half of it
_FEWEST_FRAMES = 10  # there
_RIDGE = 1e-9  # added to the covariance of a CV at an end, in units of its variance over all frames


def drive_margin(
    values: Sequence[npt.ArrayLike],
    slow: Sequence[SlowTorsion],
    torsions: Sequence[npt.ArrayLike],
    barrier: float,
    temperature: float,
) -> np.ndarray:
    """Tell whether a bias on a CV would drive slow torsions, or distortions that look like them.

    At an end of the way from one well of a torsion to the next the CV s has the mean m and the covariance C, half way m'. To
    look like half way while staying at the end costs about kT/2 (m' - m)^T C^-1 (m' - m), if the fluctuations are Gaussian.
    The margin of a way is the smaller of the costs of both ends over the barrier: above 1 the bias pays less for crossing
    than for the distortion. It is an estimate by fluctuations that were seen, and worth the more the more of the frames had
    a bias on s.

    Of a torsion with two wells the ends are where its progress is near -1 and +1, half way where it is near 0. On which side
    of the circle that is, is told apart where a CV is to follow it (`side_targets`), and the cheaper side counts. A torsion
    with n > 2 wells has a way between each two neighbours, n in all, and without the cheapest of them all wells can still be
    reached: the second cheapest is the margin.

    Parameters
    ----------
    values : list of (F, d) array
        The CV in every frame.
    slow : list of SlowTorsion
        m of them.
    torsions : list of (F, T) array
        Radians, of the same frames.
    barrier : float
        kJ/mol.
    temperature : float
        K.

    Returns
    -------
    (m,) ndarray
        nan where fewer than ten frames are at an end, or half way.

    Raises
    ------
    GeomGNNError
        If values and torsions are not of the same frames.
    """
    parts = [[np.asarray(part, dtype=np.float64) for part in both] for both in (values, torsions)]
    shapes = [[part.shape for part in both] for both in parts]
    frames = [[shape[0] for shape in both if len(shape) == 2] for both in shapes]
    if not frames[0] or frames[0] != frames[1] or list(map(len, shapes)) != list(map(len, frames)):
        raise GeomGNNError(
            f"The CV has the shapes {shapes[0]} and the torsions {shapes[1]}: give (F, d) and (F, T) for the same frames of "
            "each run."
        )
    s, angles = map(np.concatenate, parts)
    scale = s.std(axis=0)
    s = s / np.where(scale > 0, scale, 1.0)
    costs = [_cost_of_two(s, one, angles, slow) if len(one.centres) == 2 else _cost_of_many(s, one, angles) for one in slow]
    return np.array(costs) * BOLTZMANN * temperature / barrier


def _cost_of_two(s: np.ndarray, one: SlowTorsion, angles: np.ndarray, slow: Sequence[SlowTorsion]) -> float:
    """The cost, in kT, of a torsion with two wells. s: (N, d), of unit variance. angles: (N, T)."""
    progress, side = progress_targets([one], [angles])[1][0][:, 0], side_targets(slow, [angles])[1][0]
    ends = [s[np.abs(progress - end) < _NEAR] for end in (-1.0, 1.0)]
    between = np.abs(progress) < _NEAR
    upper = side[:, 0] > 0 if side.shape[1] else np.ones(len(s), dtype=bool)
    middles = [s[between & way] for way in (upper, ~upper)]
    return _cost(ends, [middle for middle in middles if len(middle) >= _FEWEST_FRAMES] or [s[between]])


def _cost_of_many(s: np.ndarray, one: SlowTorsion, angles: np.ndarray) -> float:
    """The cost, in kT, of a torsion with more than two wells."""
    centres = np.sort(one.centres)
    costs = []
    for a, b in zip(centres, np.roll(centres, -1), strict=True):
        half = ((b - a) % (2 * np.pi)) / 2
        way = np.angle(np.exp(1j * (angles[:, one.column] - a - half))) / half  # -1 at a and +1 at b
        near = [s[np.abs(way - place) < _NEAR] for place in (-1.0, 0.0, 1.0)]
        costs.append(_cost([near[0], near[2]], [near[1]]))
    return sorted(costs, key=lambda cost: -np.inf if np.isnan(cost) else cost)[1]


def _cost(ends: Sequence[np.ndarray], middles: Sequence[np.ndarray]) -> float:
    """The smallest of the costs, in kT, of looking like a middle while staying at an end; (n, d) each."""
    if min(map(len, (*middles, *ends))) < _FEWEST_FRAMES:
        return float("nan")
    costs = []
    for end, middle in product(ends, middles):
        covariance = np.atleast_2d(np.cov(end.T)) + _RIDGE * np.eye(end.shape[1])
        away = middle.mean(axis=0) - end.mean(axis=0)
        costs.append(0.5 * float(away @ np.linalg.solve(covariance, away)))
    return min(costs)
