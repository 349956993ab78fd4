"""Time-lagged covariances of trajectories, with static weights, in float64."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from ..errors import GeomGNNError

# one array (T, n) or tensor, or one for each trajectory
Trajectories: TypeAlias = npt.ArrayLike | Sequence[npt.ArrayLike]
# one array (T,), or one for each trajectory
Weights: TypeAlias = np.ndarray | Sequence[np.ndarray]


class Pairs(NamedTuple):
    """Pairs of frames of one trajectory, with weights; see `weights.rescaled_time_pairs`.

    first, second : (P,) int ndarray
        Numbers of frames.
    weights : (P,) ndarray
        On a scale that all trajectories share.
    """

    first: np.ndarray
    second: np.ndarray
    weights: np.ndarray


# Pairs for each trajectory; None is all pairs a lag time apart
PairsLike: TypeAlias = Sequence[Pairs] | None

_CHUNK = 16384  # frames converted to float64 at a time, at most
_CHUNK_NUMBERS = 1 << 24  # features of all these frames, at most


@dataclass(frozen=True)
class Covariances:
    """Moments of the pairs (x_t, x_{t+lag}); see `covariances`.

    Attributes
    ----------
    mean_0, mean_t : (n,) ndarray
        Means of the first and second frames of the pairs; equal when reversible.
    c00, c0t, ctt : (n, n) ndarray
        Covariances about those means; c00 = ctt and c0t symmetric when reversible.
    n_pairs : int
        Number of pairs.
    effective_pairs : float
        Kish size (sum w)^2 / sum w^2 of the pairs; n_pairs without weights.
    lagtime : int
        In frames.
    reversible : bool
    """

    mean_0: np.ndarray
    mean_t: np.ndarray
    c00: np.ndarray
    c0t: np.ndarray
    ctt: np.ndarray
    n_pairs: int
    effective_pairs: float = float("nan")
    lagtime: int = 0
    reversible: bool = False

    @property
    def varies(self) -> bool:
        """Whether any feature varies by more than the rounding of its mean."""
        moments = ((self.c00, self.mean_0), (self.ctt, self.mean_t))
        return all(np.trace(c) > 1e-24 * (mean @ mean) for c, mean in moments)

    def project(self, left: np.ndarray, right: np.ndarray | None = None) -> "Covariances":
        """Moments of x_t @ left and x_{t+lag} @ right, both (n, m); right is left by default."""
        right = left if right is None else right
        return Covariances(
            self.mean_0 @ left,
            self.mean_t @ right,
            left.T @ self.c00 @ left,
            left.T @ self.c0t @ right,
            right.T @ self.ctt @ right,
            self.n_pairs,
            self.effective_pairs,
            self.lagtime,
            self.reversible,
        )


def as_trajectories(trajs: Trajectories, lagtime: int = 0) -> list[np.ndarray]:
    """Make a list of (T, n) arrays from one array or tensor, or a sequence of them.

    Objects whose attribute `lazy` is true are passed through: data that are read or computed piece by piece and have
    `shape`, `ndim`, a length, slices of frames that are lazy as well, and `__array__`.

    Raises
    ------
    GeomGNNError
        If a trajectory is not two-dimensional, differs from the first in its number of features, is not longer than the
        lag time, or holds NaN or inf (the message names trajectory and frame).
    """
    arrays = [_as_array(x) for x in as_list(trajs)]
    if not arrays:
        raise GeomGNNError("There are no trajectories: pass a list of arrays of shape (frames, features).")
    for k, x in enumerate(arrays):
        if x.ndim != 2:
            raise GeomGNNError(
                f"Trajectory {k} must have the shape (frames, features) but has {x.shape}: reshape "
                "it, for one feature with x[:, None]."
            )
        if x.shape[1] != arrays[0].shape[1]:
            raise GeomGNNError(
                f"Trajectory {k} has {x.shape[1]} features but trajectory 0 has {arrays[0].shape[1]}: "
                "all must come from the same selection and encoder."
            )
    check_lengths([len(x) for x in arrays], lagtime)
    check_finite(arrays)
    return arrays


def as_list(arrays: Any) -> list[Any]:
    """A list of arrays, one for each trajectory, from one of them or a sequence."""
    return list(arrays) if isinstance(arrays, (list, tuple)) else [arrays]


def _as_array(x: Any) -> np.ndarray:
    if getattr(x, "lazy", False):
        return x
    return x.detach().cpu().numpy() if hasattr(x, "detach") else np.asarray(x)


def frames_at_once(x: np.ndarray) -> int:
    """Number of frames of x (T, ...) to process at a time."""
    return max(256, min(_CHUNK, _CHUNK_NUMBERS // max(1, int(np.prod(x.shape[1:])))))


def check_lengths(lengths: Sequence[int], lagtime: int) -> None:
    """Raise a GeomGNNError that names a trajectory without a pair of frames `lagtime` apart, if there is one."""
    short = [k for k, length in enumerate(lengths) if length <= lagtime]
    if short:
        k = short[0]
        raise GeomGNNError(
            f"Trajectory {k} has {lengths[k]} frames, which is not more than the lag of {lagtime} frames "
            f"({len(short)} of {len(lengths)} trajectories are so short): leave them out or take a "
            "shorter lag. Trajectories are never joined, since a pair across a joint is not dynamics."
        )


def check_finite(arrays: Sequence[np.ndarray]) -> None:
    """Raise a GeomGNNError that names the first trajectory and frame with NaN or inf, if there is one."""
    for k, x in enumerate(arrays):
        size = frames_at_once(x)
        for start in range(0, len(x), size):
            part = np.isfinite(np.asarray(x[start : start + size]))
            if not part.all():
                bad = np.flatnonzero(~part.reshape(len(part), -1).all(1))
                raise GeomGNNError(
                    f"Trajectory {k} has a feature that is NaN or infinite in frame {start + bad[0]}: "
                    "look at that frame (broken coordinates, a molecule split by the box) and leave "
                    "it out."
                )


def pair_weights(lengths: Sequence[int], lagtime: int, weights: Weights | None) -> list[np.ndarray]:
    """Weights of the pairs, (T - lagtime,) for each trajectory: those of their first frames, normalised over all pairs."""
    if weights is None:
        n_pairs = sum(length - lagtime for length in lengths)
        return [np.full(length - lagtime, 1.0 / n_pairs) for length in lengths]
    weights = [np.asarray(w, dtype=np.float64) for w in as_list(weights)]
    if [w.shape for w in weights] != [(length,) for length in lengths]:
        raise GeomGNNError(
            "Weights must be one array (frames,) for each trajectory: expected lengths "
            f"{list(lengths)} but got shapes {[w.shape for w in weights]}."
        )
    for k, w in enumerate(weights):
        bad = np.flatnonzero(~(np.isfinite(w) & (w >= 0)))
        if len(bad):
            raise GeomGNNError(
                f"The weight of frame {bad[0]} of trajectory {k} is {w[bad[0]]}: weights must be "
                "finite and not negative. From log-weights use static_weights(), which cannot "
                "overflow."
            )
    total = sum(w[: len(w) - lagtime].sum() for w in weights)
    if not total > 0:
        raise GeomGNNError("All weights are zero: nothing is left to estimate from.")
    return [w[: len(w) - lagtime] / total for w in weights]


def frame_weights(
    lengths: Sequence[int], lagtime: int, weights: Weights | None, pairs: PairsLike = None
) -> list[np.ndarray]:
    """Weight of each frame, (T,) for each trajectory, summing to one over all: half of each pair that it is part of."""
    result = []
    for length, part in zip(lengths, all_pairs(lengths, lagtime, weights, pairs), strict=True):
        frame = np.zeros(length)
        if isinstance(part, Pairs):
            np.add.at(frame, part.first, 0.5 * part.weights)
            np.add.at(frame, part.second, 0.5 * part.weights)
        else:
            frame[: length - lagtime] += 0.5 * part
            frame[lagtime:] += 0.5 * part
        result.append(frame)
    return result


def all_pairs(lengths: Sequence[int], lagtime: int, weights: Weights | None = None, pairs: PairsLike = None) -> list[Any]:
    """The pairs of each trajectory, with weights that sum to one: `Pairs` as they are given, else `pair_weights`.

    Raises
    ------
    GeomGNNError
        If both are given, or pairs do not fit the trajectories.
    """
    if pairs is None:
        return pair_weights(lengths, lagtime, weights)
    if weights is not None:
        raise GeomGNNError("Give weights of frames or pairs with their own weights, not both.")
    pairs = [Pairs(*(np.asarray(part) for part in one)) for one in pairs]
    if len(pairs) != len(lengths):
        raise GeomGNNError(f"There are pairs of {len(pairs)} trajectories, but {len(lengths)} trajectories.")
    for k, (length, (first, second, w)) in enumerate(zip(lengths, pairs, strict=True)):
        if not len(first) == len(second) == len(w):
            raise GeomGNNError(f"The pairs of trajectory {k} have {len(first)} first and {len(second)} second frames.")
        if len(first) and not (min(first.min(), second.min()) >= 0 and max(first.max(), second.max()) < length):
            raise GeomGNNError(f"Pairs of trajectory {k} are of frames that it does not have: it has {length}.")
        if not (np.isfinite(w).all() and (w >= 0).all()):
            raise GeomGNNError(f"Weights of the pairs of trajectory {k} are negative or not finite.")
    total = sum(float(one.weights.sum()) for one in pairs)
    if not total > 0:
        raise GeomGNNError("There are no pairs, or all their weights are zero: nothing is left to estimate from.")
    return [Pairs(one.first, one.second, one.weights / total) for one in pairs]


def covariances(
    trajs: Trajectories,
    lagtime: int,
    weights: Weights | None = None,
    reversible: bool = True,
    pairs: PairsLike = None,
) -> Covariances:
    """Estimate means and covariances from all pairs of frames `lagtime` apart within a trajectory, never across two.

    Parameters
    ----------
    trajs
        (T, n) array or a list of them; converted to float64 piece by piece.
    lagtime
        In frames, at least 1.
    weights
        (T,) array for each trajectory, on any common scale: a pair has the weight of its first frame in all three
        covariances. A weight of 2 is equivalent to having the pair twice.
    pairs
        `Pairs` for each trajectory in place of all pairs `lagtime` apart, as of `rescaled_time_pairs`.
    reversible
        Count each pair in both directions: one common mean, C = (C00 + Ctt)/2, C0t symmetrised. Its singular values
        are at most 1 by construction.

    Raises
    ------
    GeomGNNError
        If trajectories or weights are not usable; see `as_trajectories`.

    Wu & Noé, J. Nonlinear Sci. 30, 23 (2020); the reversible estimator is that of Pérez-Hernández et al., J. Chem.
    Phys. 139, 015102 (2013).

    Examples
    --------
    >>> import numpy as np
    >>> from openmm_geomgnn.koopman import covariances
    >>> x = np.random.default_rng(0).normal(size=(100, 2))
    >>> moments = covariances([x[:50], x[50:]], 5)  # no pair reaches from one trajectory into the other
    >>> moments.n_pairs
    90
    """
    check_lagtime(lagtime)
    trajs = as_trajectories(trajs, 0 if pairs is not None else lagtime)
    chosen = all_pairs([len(x) for x in trajs], lagtime, weights, pairs)
    n = trajs[0].shape[1]
    mean_0, mean_t = _means(trajs, chosen, lagtime)
    if reversible:
        mean_0 = mean_t = 0.5 * (mean_0 + mean_t)
    c00, c0t, ctt = np.zeros((n, n)), np.zeros((n, n)), np.zeros((n, n))
    for w, first, second in _chunks(trajs, chosen, lagtime):
        first, second = first - mean_0, second - mean_t
        weighted_first = w[:, None] * first
        c00 += weighted_first.T @ first
        c0t += weighted_first.T @ second
        ctt += (w[:, None] * second).T @ second
    if reversible:
        c00 = ctt = 0.25 * (c00 + c00.T + ctt + ctt.T)
        c0t = 0.5 * (c0t + c0t.T)
    else:
        c00, ctt = 0.5 * (c00 + c00.T), 0.5 * (ctt + ctt.T)
    each = [one.weights if isinstance(one, Pairs) else one for one in chosen]
    n_pairs = sum(map(len, each))
    kish = float(n_pairs) if weights is None and pairs is None else 1.0 / sum(float(w @ w) for w in each)
    return Covariances(mean_0, mean_t, c00, c0t, ctt, n_pairs, kish, lagtime, reversible)


def check_lagtime(lagtime: int) -> None:
    """Raise a GeomGNNError unless `lagtime` is a whole number of at least one frame."""
    if isinstance(lagtime, bool) or not isinstance(lagtime, Integral) or lagtime < 1:
        raise GeomGNNError(f"The lag must be a whole number of at least one frame but was {lagtime!r}.")


def pair_means(
    trajs: Sequence[np.ndarray], lagtime: int, weights: Weights | None, pairs: PairsLike = None
) -> tuple[np.ndarray, np.ndarray]:
    """Means (n,) of the first and of the second frames of all pairs."""
    return _means(trajs, all_pairs([len(x) for x in trajs], lagtime, weights, pairs), lagtime)


def _means(trajs: Sequence[np.ndarray], pairs: Sequence[Any], lagtime: int) -> tuple[np.ndarray, np.ndarray]:
    """As `pair_means`, of the pairs of `all_pairs`."""
    n = trajs[0].shape[1]
    mean_0, mean_t = np.zeros(n), np.zeros(n)
    for w, first, second in _chunks(trajs, pairs, lagtime):
        mean_0 += w @ first
        mean_t += w @ second
    return mean_0, mean_t


def _chunks(
    trajs: Sequence[np.ndarray], pairs: Sequence[Any], lagtime: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield pieces of (weights, first frames, second frames) in float64."""
    for x, part in zip(trajs, pairs, strict=True):
        w = part.weights if isinstance(part, Pairs) else part
        for start in range(0, len(w), _CHUNK):
            stop = min(start + _CHUNK, len(w))
            if isinstance(part, Pairs):
                first, second = part.first[start:stop], part.second[start:stop]
                low, high = min(first.min(), second.min()), max(first.max(), second.max()) + 1
                frames = np.asarray(x[low:high], np.float64)
                yield w[start:stop], frames[first - low], frames[second - low]
            else:
                yield (
                    w[start:stop],
                    np.asarray(x[start:stop], np.float64),
                    np.asarray(x[start + lagtime : stop + lagtime], np.float64),
                )
