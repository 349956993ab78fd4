"""A linear CV in one step: standardisation, principal components and TICA or VAMP, folded into one projection."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.linalg

from ..errors import GeomGNNError
from .covariance import (
    Covariances,
    PairsLike,
    Trajectories,
    Weights,
    as_trajectories,
    check_lagtime,
    covariances,
    frame_weights,
    frames_at_once,
    pair_means,
)
from .vamp import EPSILON, KoopmanModel, check_n_components, fix_sign, project, vamp

# A feature whose spread is below these fractions of its mean and of the widest spread is noise of float32 arithmetic: it
# is divided by this floor, which keeps it small, instead of its spread.
FLOOR_OF_MEAN, FLOOR_OF_WIDEST = 1e-5, 1e-6


def fit_linear(
    features: Trajectories,
    lagtime: int,
    n_components: int,
    pca: int | None = 50,
    reversible: bool = True,
    weights: Weights | None = None,
    epsilon: float = EPSILON,
    rates: npt.ArrayLike | None = None,
    softening: float = 0.0,
    pairs: PairsLike = None,
) -> KoopmanModel:
    """Find the slowest linear combinations of features, as one map from the raw features.

    The features are standardised and reduced to the `pca` principal components of largest variance (of all frames alike,
    also where they have weights), to which TICA (reversible) or VAMP is applied. Few components limit overfitting and the
    noise of directions that hardly vary.
    There is an example at `KoopmanModel`.

    A CV that follows every bond vibration heats the simulation that it biases. With `softening`, a time, the estimator
    maximises the autocorrelation over <psi^2> + softening^2 <(dpsi/dt)^2>: of several functions that are about equally slow
    it selects one that moves little at the thermal velocities of the atoms.

    Parameters
    ----------
    features
        (T, n) array, or a list of them, one for each trajectory; they may be lazy, see `covariance.as_trajectories`.
    lagtime
        In frames.
    n_components
        Number of components of the result.
    pca
        Number of principal components; None keeps all above the cutoff.
    reversible
        See `covariances`.
    weights
        (T,) array for each trajectory; see `covariances`.
    epsilon
        Principal components with less than this fraction of the largest variance are dropped.
    rates
        (K, n) time derivatives of the features at thermal velocities, drawn at frames of the data; needed for `softening`.
    softening
        In the time unit of `rates`; 0 switches it off. Requires the reversible estimator.
    pairs
        `Pairs` of frames for each trajectory, in place of all that are `lagtime` apart: those of `rescaled_time_pairs`,
        for data of a biased simulation.

    Returns
    -------
    KoopmanModel
        The map from raw features to psi: unit variance, decorrelated, singular values descending, positive skewness over
        `features`. `info` has the number of flat features (which vary no more than float32 noise) and the number of
        components and fraction of the variance that the PCA kept; `dropped` counts the directions below `epsilon`.

    Raises
    ------
    GeomGNNError
        If trajectories are not longer than the lag time, features are not finite (the message names trajectory and frame),
        weights are not usable, or `n_components` exceeds the number of independent directions.
    """
    basis = linear_basis(features, lagtime, pca, reversible, weights, epsilon, pairs)
    return fix_sign(basis.model(n_components, None, rates, softening, epsilon), as_trajectories(features))


@dataclass(frozen=True)
class LinearBasis:
    """Principal components of features and their covariances, from which linear CVs with any settings follow at once.

    Attributes
    ----------
    mean : (n,) ndarray
        Of the features.
    projection : (n, k) ndarray
        To principal components of unit variance, that of the largest variance first.
    covariances : Covariances
        Of these.
    variances : (r,) ndarray
        Of the principal components of the standardised features, descending; k of them are in `projection`.
    info : dict
        As in the `KoopmanModel` of `fit_linear`.
    right_mean : (n,) ndarray, optional
        Of the second frames of the pairs; None when reversible.
    """

    mean: np.ndarray
    projection: np.ndarray
    covariances: Covariances
    variances: np.ndarray
    info: dict[str, Any]
    right_mean: np.ndarray | None = None

    def reduce(self, x: Any) -> np.ndarray:
        """The principal components (T, k) of features (T, n), lazy ones too."""
        return project(x, self.mean, self.projection)

    def solve(
        self,
        n_components: int,
        pca: int | None = None,
        rates: npt.ArrayLike | None = None,
        softening: float = 0.0,
        epsilon: float = EPSILON,
    ) -> KoopmanModel:
        """The KoopmanModel of the principal components themselves; arguments are those of `fit_linear`."""
        size = self._size(pca)
        check_n_components(n_components, size, len(self.mean))
        chosen = np.eye(self.projection.shape[1])[:, :size]
        cov = self.covariances.project(chosen)
        if softening > 0:
            soft = _soft_directions(cov, rates, self.projection[:, :size], softening, n_components)
            cov, chosen = cov.project(soft), chosen @ soft
        inner = vamp(cov, n_components, epsilon)
        right = None if inner.right_projection is None else chosen @ inner.right_projection
        return replace(inner, mean=np.zeros(len(chosen)), projection=chosen @ inner.projection, right_projection=right)

    def model(
        self,
        n_components: int,
        pca: int | None = None,
        rates: npt.ArrayLike | None = None,
        softening: float = 0.0,
        epsilon: float = EPSILON,
    ) -> KoopmanModel:
        """The KoopmanModel of `fit_linear`, which takes the same arguments, with either sign of each component."""
        inner = self.solve(n_components, pca, rates, softening, epsilon)
        size = self._size(pca)
        explained = float(self.variances[:size].sum() / self.variances.sum())
        right = None if inner.right_projection is None else self.projection @ inner.right_projection
        return KoopmanModel(
            self.mean,
            self.projection @ inner.projection,
            inner.singular_values,
            len(self.mean) - self.info["rank"] + inner.dropped,
            inner.lagtime,
            inner.reversible,
            self.right_mean,
            right,
            info=inner.info | self.info | {"pca_components": size, "explained_variance": explained},
        )

    def _size(self, pca: int | None) -> int:
        size = self.projection.shape[1]
        return size if pca is None else min(pca, size)


def linear_basis(
    features: Trajectories,
    lagtime: int,
    pca: int | None = None,
    reversible: bool = True,
    weights: Weights | None = None,
    epsilon: float = EPSILON,
    pairs: PairsLike = None,
) -> LinearBasis:
    """Everything of `fit_linear` that takes passes over the data, for at most `pca` principal components.

    Arguments and errors are those of `fit_linear`.

    Examples
    --------
    >>> import numpy as np
    >>> from openmm_geomgnn.koopman import fit_linear, linear_basis
    >>> features = np.cumsum(np.random.default_rng(0).normal(size=(1000, 6)), axis=0)
    >>> basis = linear_basis(features, 5)
    >>> one, same = basis.model(1, pca=3), fit_linear(features, 5, 1, pca=3)
    >>> bool(np.allclose(one.singular_values, same.singular_values))
    True
    """
    check_lagtime(lagtime)
    trajs = as_trajectories(features, lagtime if pairs is None else 0)
    lengths = [len(x) for x in trajs]
    frames = frame_weights(lengths, lagtime, weights, pairs)
    weighted = weights is not None or pairs is not None
    # principal components only choose a basis, in which a state of little weight must have its place as well
    whitened = _whiten(trajs, frame_weights(lengths, 1, None) if weighted else frames, pca, epsilon)
    mean = _mean(trajs, frames) if weighted else whitened.mean
    cov = covariances([project(x, mean, whitened.projection) for x in trajs], lagtime, weights, reversible, pairs)
    right_mean = None
    if not reversible:
        mean, right_mean = pair_means(trajs, lagtime, weights, pairs)
    return LinearBasis(mean, whitened.projection, cov, whitened.variances, whitened.info, right_mean)


@dataclass(frozen=True)
class _Whitened:
    """The mean (n,) of features, their projection (n, k) to principal components of unit variance, and facts about both."""

    mean: np.ndarray
    projection: np.ndarray
    variances: np.ndarray
    info: dict[str, Any]


def _whiten(trajs: Sequence[np.ndarray], frames: Sequence[np.ndarray], pca: int | None, epsilon: float) -> _Whitened:
    """Standardise the features and keep their `pca` principal components of largest variance."""
    mean, std, flat = _standardisation(trajs, frames)
    n = len(mean)
    if flat == n:
        raise GeomGNNError(
            f"None of the {flat} features varies by more than the noise of float32 numbers: check "
            "that the frames differ and that the selection moves."
        )
    variances, components = _principal_components(trajs, frames, mean, std)
    rank = int(np.count_nonzero(variances > epsilon * variances[0]))
    kept = rank if pca is None else min(pca, rank)
    # Components of unit variance, so that the cutoff inside `vamp` sees dependence only, not size.
    projection = components[:, :kept] / std[:, None] / np.sqrt(variances[:kept])
    return _Whitened(mean, projection, variances, {"n_features": n, "rank": rank, "flat_features": flat})


def _soft_directions(
    cov: Covariances, rates: npt.ArrayLike | None, to_components: np.ndarray, softening: float, n_components: int
) -> np.ndarray:
    """Find the directions (k, n_components) of largest autocorrelation over variance + softening^2 * mean squared rate.

    `rates` is (K, n), of the features, and `to_components` (n, k).
    """
    if rates is None or not cov.reversible:
        raise GeomGNNError(
            "softening needs the features' rates and the reversible estimator: set reversible: true, or softening: 0."
        )
    changes = np.asarray(rates, np.float64) @ to_components
    penalised = cov.c00 + softening**2 * (changes.T @ changes) / len(changes)
    _, directions = scipy.linalg.eigh(0.5 * (cov.c0t + cov.c0t.T), penalised)
    return directions[:, ::-1][:, :n_components]


def _pieces(trajs: Sequence[np.ndarray], frames: Sequence[np.ndarray]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pieces of (features in float64, weights of their frames)."""
    for x, w in zip(trajs, frames, strict=True):
        size = frames_at_once(x)
        for start in range(0, len(x), size):
            yield np.asarray(x[start : start + size], np.float64), w[start : start + size]


def _mean(trajs: Sequence[np.ndarray], frames: Sequence[np.ndarray]) -> np.ndarray:
    return sum(w @ x for x, w in _pieces(trajs, frames))


def _standardisation(trajs: Sequence[np.ndarray], frames: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray, int]:
    """Mean (n,), floored standard deviation (n,) and the number of features below the floor."""
    mean = _mean(trajs, frames)
    std = np.sqrt(sum(w @ (x - mean) ** 2 for x, w in _pieces(trajs, frames)))
    floor = FLOOR_OF_MEAN * np.abs(mean) + FLOOR_OF_WIDEST * std.max()
    flat = int(np.count_nonzero(std <= floor))
    std = np.maximum(std, floor)
    return mean, np.where(std > 0, std, 1.0), flat


def _principal_components(
    trajs: Sequence[np.ndarray], frames: Sequence[np.ndarray], mean: np.ndarray, std: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Variances (k,), descending, and components (n, k) of the standardised features."""
    n, n_frames = len(mean), sum(len(x) for x in trajs)
    if n_frames < n:
        rows = np.concatenate([np.sqrt(w)[:, None] * ((x - mean) / std) for x, w in _pieces(trajs, frames)])
        _, s, vt = np.linalg.svd(rows, full_matrices=False)
        return s**2, vt.T
    correlation = np.zeros((n, n))
    for x, w in _pieces(trajs, frames):
        z = np.sqrt(w)[:, None] * ((x - mean) / std)
        correlation += z.T @ z
    values, vectors = np.linalg.eigh(correlation)
    return np.maximum(values[::-1], 0.0), vectors[:, ::-1]
