"""Weights with which biased or short trajectories speak of the unbiased equilibrium: static, rescaled time, Koopman's."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import scipy.linalg
from scipy.special import logsumexp

from ..errors import GeomGNNError
from .covariance import Pairs, Trajectories, as_list, as_trajectories, check_lagtime

# share of the largest eigenvalue below which a direction of the features is noise, for Koopman weights
_RANK_CUTOFF = 1e-8
# share of the shorter of two intervals below which their overlap is rounding: long runs have long sums of intervals
_ROUNDING = 1e-8


def static_weights(biases: npt.ArrayLike | Sequence[npt.ArrayLike], kT: float) -> list[np.ndarray]:
    """Weights exp(V/kT) of frames that a bias V acted on.

    They correct the distribution of biased data, not the propagator, so treat singular values that are estimated with them
    as an ordering, not as timescales.

    Parameters
    ----------
    biases
        (T,) bias in every frame of each trajectory, zero where there was none; of several biases their sum. All trajectories
        share one offset, the largest bias: one for each would corrupt their relative weights. See `normalised_biases` for
        runs under different biases.
    kT : float
        In the unit of the biases.

    Returns
    -------
    list of (T,) ndarray
        At most 1.

    Raises
    ------
    GeomGNNError
        If a bias is not finite, or there are no frames.

    Examples
    --------
    >>> from openmm_geomgnn.koopman import static_weights
    >>> [w.round(3).tolist() for w in static_weights([[0.0, -2.5], [-5.0]], kT=2.5)]
    [[1.0, 0.368], [0.135]]
    """
    energies = _energies(biases, kT)
    top = max(float(v.max()) for v in energies if len(v))
    return [np.exp(v - top) for v in energies]


def normalised_biases(biases: Sequence[npt.ArrayLike], kT: float, groups: Sequence[int] | None = None) -> list[np.ndarray]:
    """Shift biases such that frames of different runs, and of unbiased ones, have the same weight on average.

    A bias is known up to a constant, which differs from run to run. Of each group of trajectories (the walkers that share
    a bias), kT*log(mean(exp(V/kT))) over all their frames is subtracted.

    Parameters
    ----------
    biases : list of (T,) array
    kT : float
        In the unit of the biases.
    groups : list of int, optional
        The group of each trajectory; all are one group by default.

    Returns
    -------
    list of (T,) ndarray
        In the unit of the biases.
    """
    energies = _energies(biases, kT)
    numbers = [0] * len(energies) if groups is None else list(groups)
    if len(numbers) != len(energies):
        raise GeomGNNError(f"There are {len(numbers)} groups for {len(energies)} trajectories: give one number for each.")
    offsets = {}
    for group in set(numbers):
        together = np.concatenate([v for v, number in zip(energies, numbers, strict=True) if number == group])
        offsets[group] = logsumexp(together) - np.log(len(together)) if len(together) else 0.0
    return [kT * (v - offsets[number]) for v, number in zip(energies, numbers, strict=True)]


def rescaled_time_pairs(
    biases: npt.ArrayLike | Sequence[npt.ArrayLike], kT: float, dt: float | Sequence[float], lag: float
) -> list[Pairs]:
    """Pairs of frames a lag time apart in the time that an unbiased simulation would have taken.

    Under a bias V that is zero at barriers, or changes slowly, time passes faster by exp(V/kT): each frame stands for
    dt' = dt*exp(V/kT), and frames i and j are a pair as far as the interval of i, shifted by the lag, overlaps that of j;
    the weight is the length of the overlap. With no bias these are the usual pairs. A frame that stands for more than the
    lag is a pair with itself, which looks slow: if many do, take a longer lag.

    Pairs never reach from one trajectory into another. A run that is cut into trajectories keeps the pairs within them, with
    the same weights, and loses those across the cuts: join the pieces of one run before.

    Parameters
    ----------
    biases
        (T,) bias in every frame of each trajectory. One offset is subtracted from all, such that the rescaled time is as
        long as the simulated one; see `normalised_biases` for runs under different biases.
    kT : float
        In the unit of the biases.
    dt : float, or a list of them
        Time between frames, of all or of each trajectory.
    lag : float
        In the unit of `dt`.

    Returns
    -------
    list of Pairs
        For each trajectory, in ascending order of both frames; at most 2T - 1 pairs, weights in the unit of `dt`.

    Raises
    ------
    GeomGNNError
        If no trajectory is longer than the lag in its rescaled time, or biases are not finite.

    McCarty & Parrinello, J. Chem. Phys. 147, 204109 (2017); Yang & Parrinello, J. Chem. Theory Comput. 14, 2889 (2018).

    Examples
    --------
    >>> import numpy as np
    >>> from openmm_geomgnn.koopman import rescaled_time_pairs
    >>> (pairs,) = rescaled_time_pairs([np.zeros(4)], kT=2.5, dt=1.0, lag=2.0)
    >>> pairs.first.tolist(), pairs.second.tolist(), pairs.weights.tolist()
    ([0, 1], [2, 3], [1.0, 1.0])
    """
    energies = _energies(biases, kT)
    steps = np.full(len(energies), dt) if np.ndim(dt) == 0 else np.asarray(dt, dtype=np.float64)
    if not (steps.shape == (len(energies),) and (steps > 0).all() and np.isfinite(steps).all() and 0 < lag < np.inf):
        raise GeomGNNError(f"dt and lag must be positive times, dt one for each trajectory, but they are {dt} and {lag}.")
    # so that the whole of the rescaled time is as long as the simulated one
    total = logsumexp(np.concatenate([v + np.log(step) for v, step in zip(energies, steps, strict=True)]))
    offset = total - np.log(sum(len(v) * step for v, step in zip(energies, steps, strict=True)))
    durations = [step * np.exp(v - offset) for v, step in zip(energies, steps, strict=True)]
    found = [_overlaps(part, lag) for part in durations]
    if not any(len(pairs.first) for pairs in found):
        longest = max(float(part.sum()) for part in durations)
        raise GeomGNNError(
            f"No two frames are {lag:g} apart in rescaled time, of which the longest trajectory has {longest:g}. Use a "
            "shorter lag, or longer runs."
        )
    return found


def _overlaps(durations: np.ndarray, lag: float) -> Pairs:
    """The pairs of one trajectory whose frames stand for these durations (T,)."""
    edges = np.concatenate([[0.0], np.cumsum(durations)])
    # both sets of edges in one ascending list, of which each stretch belongs to one shifted frame and one frame
    shifted = edges + lag
    both = np.concatenate([shifted, edges])
    order = np.argsort(both, kind="stable")  # two runs that are sorted: a merge
    times = both[order]
    of_shifted = np.cumsum(order < len(shifted)) - 1
    of_plain = np.cumsum(order >= len(shifted)) - 1
    lengths = np.diff(times)
    first, second = of_shifted[:-1], of_plain[:-1]
    n = len(durations)
    inside = (lengths > 1e-12 * lag) & (first >= 0) & (first < n) & (second >= 0) & (second < n)
    first, second, lengths = first[inside], second[inside], lengths[inside]
    # edges that meet are rounded: what is left between them is no overlap
    true = lengths > _ROUNDING * np.minimum(durations[first], durations[second])
    return Pairs(first[true], second[true], lengths[true])


def koopman_weights(features: Trajectories, lagtime: int, epsilon: float = _RANK_CUTOFF) -> list[np.ndarray]:
    """Weights that make many short unbiased trajectories stationary.

    Short runs start where somebody let them start, not in equilibrium. If they connect, the stationary density is that which
    the Koopman operator leaves unchanged: with chi the features and a constant, K = C00^-1 C0t, the weight of a frame is
    chi.u, where K^T (C00 u) = C00 u.

    Parameters
    ----------
    features
        (T, n) array for each trajectory, such as the leading functions of a first fit.
    lagtime : int
        In frames.
    epsilon : float, optional
        Directions of less than this fraction of the largest variance are left out.

    Returns
    -------
    list of (T,) ndarray
        With mean 1 over the first frames of all pairs. Weights of a finite sample can be negative: those are set to zero.

    Raises
    ------
    GeomGNNError
        If trajectories are not longer than the lag time, or there is no stationary density because they do not connect.

    Wu et al., J. Chem. Phys. 146, 154104 (2017).
    """
    check_lagtime(lagtime)
    arrays = [np.asarray(x, dtype=np.float64) for x in as_trajectories(features, lagtime)]
    together = np.concatenate([x[:-lagtime] for x in arrays])
    mean = together.mean(axis=0)
    variances, directions = np.linalg.eigh(np.atleast_2d(np.cov(together.T, bias=True)))
    kept = variances > epsilon * variances[-1]
    if not kept.any():
        raise GeomGNNError("The features do not vary, so nothing can be said of the equilibrium.")
    whiten = directions[:, kept] / np.sqrt(variances[kept])
    chi = [np.column_stack([(x - mean) @ whiten, np.ones(len(x))]) for x in arrays]
    pairs = sum(len(x) - lagtime for x in arrays)
    c0t = sum(x[:-lagtime].T @ x[lagtime:] for x in chi) / pairs
    # chi is white: C00 is the identity, and u the left eigenvector of K for the eigenvalue 1
    values, vectors = scipy.linalg.eig(c0t.T)
    near = int(np.argmin(np.abs(values - 1.0)))
    u = np.real(vectors[:, near])
    if np.count_nonzero(np.abs(values - 1.0) < 1e-6) > 1 or abs(u[-1]) < 1e-8 * np.abs(u).max():
        raise GeomGNNError(
            "The trajectories do not connect: more than one density would be stationary, so their relative weights are not "
            "known. Add runs that cross, or a biased run."
        )
    weights = [np.maximum(x @ (u / u[-1]), 0.0) for x in chi]
    scale = sum(w[:-lagtime].sum() for w in weights) / pairs
    return [w / scale for w in weights]


def _as_arrays(biases: npt.ArrayLike | Sequence[npt.ArrayLike]) -> list[np.ndarray]:
    """One array (T,) for each trajectory."""
    parts = as_list(biases)
    if parts and np.ndim(parts[0]) == 0:
        parts = [parts]
    return [np.asarray(part, dtype=np.float64) for part in parts]


def _energies(biases: npt.ArrayLike | Sequence[npt.ArrayLike], kT: float) -> list[np.ndarray]:
    """Biases in units of kT, checked."""
    if not (np.isfinite(kT) and kT > 0):
        raise GeomGNNError(f"kT must be a positive energy, but it is {kT}.")
    energies = [part / kT for part in _as_arrays(biases)]
    for k, part in enumerate(energies):
        if part.ndim != 1:
            raise GeomGNNError(f"The bias of trajectory {k} has the shape {part.shape}, but must have one number a frame.")
        bad = np.flatnonzero(~np.isfinite(part))
        if len(bad):
            raise GeomGNNError(
                f"The bias in frame {bad[0]} of trajectory {k} is {kT * part[bad[0]]}: biases must be finite. Leave out the "
                "frames that have none."
            )
    if not any(len(part) for part in energies):
        raise GeomGNNError("There are no biases: give one number for each frame of each trajectory.")
    return energies
