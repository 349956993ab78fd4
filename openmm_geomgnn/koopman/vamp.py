"""The variational approach for Markov processes: from covariances to a frozen projection, scores and timescales."""

from dataclasses import dataclass, field, replace
from numbers import Integral
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import GeomGNNError
from .covariance import Covariances, Trajectories, as_trajectories, frames_at_once

# Directions with less than this fraction of the largest variance are dropped in the whitening.
EPSILON = 1e-6


@dataclass(frozen=True)
class KoopmanModel:
    """The frozen map chi -> psi = (chi - mean) @ projection: unit variance, decorrelated, slowest first.

    Attributes
    ----------
    mean : (n,) ndarray
    projection : (n, m) ndarray
        U; all float64.
    singular_values : (m,) ndarray
        Singular values of the Koopman operator without the constant function, descending, within [0, 1].
    dropped : int
        Number of directions that the whitening dropped because they hardly vary (over the first frames, if not reversible).
    lagtime : int
        In frames.
    reversible : bool
    right_mean, right_projection : ndarray or None
        The same for the second frames of the pairs, needed for scores only; None when reversible, where both maps agree
        up to the sign.
    info : dict
        Facts about the estimation, which JSON can hold.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> slow, fast = np.zeros(5000), rng.normal(size=5000)
    >>> for t in range(1, 5000):  # relaxes in 100 frames
    ...     slow[t] = 0.99 * slow[t - 1] + 0.14 * rng.normal()
    >>> features = np.stack([slow + fast, slow - fast, fast], axis=1)
    >>> from openmm_geomgnn.koopman import fit_linear
    >>> model = fit_linear(features, 10, 1)
    >>> psi = model.transform(features)
    >>> psi.shape, bool(abs(np.corrcoef(psi[:, 0], slow)[0, 1]) > 0.99)
    ((5000, 1), True)
    """

    mean: np.ndarray
    projection: np.ndarray
    singular_values: np.ndarray
    dropped: int = 0
    lagtime: int = 0
    reversible: bool = True
    right_mean: np.ndarray | None = None
    right_projection: np.ndarray | None = None
    info: dict[str, Any] = field(default_factory=dict)

    @property
    def n_components(self) -> int:
        """Number of components of psi."""
        return self.projection.shape[1]

    def transform(self, chi: Any) -> np.ndarray:
        """Evaluate psi (T, m), in float64, from an array or tensor chi (T, n)."""
        if not getattr(chi, "lazy", False):
            chi = chi.detach().cpu().numpy() if hasattr(chi, "detach") else np.asarray(chi)
        if chi.ndim != 2 or chi.shape[1] != len(self.mean):
            raise GeomGNNError(f"The projection takes (frames, {len(self.mean)}) features but got {chi.shape}.")
        return project(chi, self.mean, self.projection)

    def truncate(self, n_components: int) -> "KoopmanModel":
        """Return the model of the `n_components` leading components."""
        right = None if self.right_projection is None else self.right_projection[:, :n_components]
        return replace(
            self,
            projection=self.projection[:, :n_components],
            singular_values=self.singular_values[:n_components],
            right_projection=right,
        )


def project(chi: np.ndarray, mean: np.ndarray, projection: np.ndarray) -> np.ndarray:
    """Compute (chi - mean) @ projection (T, m) in float64, piece by piece."""
    size = frames_at_once(chi)
    pieces = [(np.asarray(chi[i : i + size], np.float64) - mean) @ projection for i in range(0, len(chi), size)]
    return np.concatenate(pieces) if pieces else np.zeros((0, projection.shape[1]))


def whiten(covariance: np.ndarray, epsilon: float = EPSILON) -> np.ndarray:
    """Compute L (n, r) with L.T @ C @ L = 1 for the symmetric C (n, n): C^-1 = L L^T on the directions that are kept.

    A direction is kept when its eigenvalue exceeds `epsilon` times the largest one; the cutoff is relative, so it
    does not depend on the unit of the features (but on their relative scale: standardise features of different
    kinds).
    """
    values, vectors = np.linalg.eigh(0.5 * (covariance + covariance.T))
    keep = values > epsilon * values[-1]
    return vectors[:, keep] / np.sqrt(values[keep])


def vamp(cov: Covariances, n_components: int | None = None, epsilon: float = EPSILON) -> KoopmanModel:
    """Estimate the `n_components` leading singular functions of the Koopman operator in the span of the features.

    With C00^-1 = L0 L0^T and the SVD L0^T C0t Lt = A S B^T, the projection is U = L0 A[:, :n_components].

    Parameters
    ----------
    cov
        See `covariances`; reversible ones give TICA, others VAMP.
    n_components
        By default all directions that the whitening keeps.
    epsilon
        Relative cutoff of the whitening; see `whiten`.

    Raises
    ------
    GeomGNNError
        If no feature varies or `n_components` exceeds the number of independent directions.

    Wu & Noé, J. Nonlinear Sci. 30, 23 (2020).

    Examples
    --------
    >>> import numpy as np
    >>> from openmm_geomgnn.koopman import covariances, vamp
    >>> features = np.cumsum(np.random.default_rng(0).normal(size=(1000, 3)), axis=0)
    >>> model = vamp(covariances(features, 5), 2)
    >>> model.transform(features).shape
    (1000, 2)
    """
    if not cov.varies:
        raise GeomGNNError(
            "No feature varies over the trajectories, so there is nothing to project on: check that "
            "the frames differ and that the selection moves."
        )
    left = whiten(cov.c00, epsilon)
    right = left if cov.reversible else whiten(cov.ctt, epsilon)
    n, rank = len(cov.c00), min(left.shape[1], right.shape[1])
    check_n_components(n_components, rank, n)
    a, s, bt = np.linalg.svd(left.T @ cov.c0t @ right, full_matrices=False)
    m = rank if n_components is None else n_components
    # At most 1 by Cauchy and Schwarz; whitening of nearly dependent features lets rounding exceed it.
    s = np.minimum(s[:m], 1.0)
    info = {"n_features": n, "rank": rank, "n_pairs": cov.n_pairs, "effective_pairs": cov.effective_pairs}
    model = KoopmanModel(cov.mean_0, left @ a[:, :m], s, n - left.shape[1], cov.lagtime, cov.reversible, info=info)
    if cov.reversible:
        return model
    return replace(model, right_mean=cov.mean_t, right_projection=right @ bt[:m].T)


def check_n_components(n_components: int | None, rank: int, n_features: int) -> None:
    """Raise a GeomGNNError unless 1 <= n_components <= rank (None is fine)."""
    if n_components is None:
        return
    if isinstance(n_components, bool) or not isinstance(n_components, Integral) or n_components < 1:
        raise GeomGNNError(f"n_components must be a whole number of at least 1 but was {n_components!r}.")
    if n_components > rank:
        raise GeomGNNError(
            f"n_components is {n_components} but only {rank} of the {n_features} features' directions vary "
            "independently: take a smaller n_components, or more features or data."
        )


def singular_score(singular_values: np.ndarray, r: float = 2) -> float:
    """Compute the VAMP-r score 1 + sum s_i^r; the 1 belongs to the constant function, which the means remove."""
    return 1.0 + float(np.sum(np.asarray(singular_values, dtype=np.float64) ** r))


def vamp_score(model: KoopmanModel, held_out: Covariances | None = None, r: float = 2, epsilon: float = EPSILON) -> float:
    """Compute the VAMP-r score of a model on its own data, or of its fixed functions on held-out data.

    Parameters
    ----------
    held_out
        Covariances of the same features chi over data that the model has not seen; by default the model's own data.
    r
        1 or 2 (any r >= 1).

    Wu & Noé 2020, equation 33; McGibbon & Pande, J. Chem. Phys. 142, 124105 (2015) for the held-out score.
    """
    if held_out is None:
        return singular_score(model.singular_values, r)
    return subspace_score(held_out.project(model.projection, model.right_projection), r, epsilon)


def subspace_score(cov: Covariances, r: float = 2, epsilon: float = EPSILON) -> float:
    """Compute the VAMP-r score of the space that functions with covariances `cov` span: 1 + |C00^-1/2 C0t Ctt^-1/2|_r^r.

    Functions that do not vary over the data contribute nothing.
    """
    if not cov.varies:
        return 1.0
    correlation = whiten(cov.c00, epsilon).T @ cov.c0t @ whiten(cov.ctt, epsilon)
    return singular_score(np.linalg.svd(correlation, compute_uv=False), r)


def timescales(singular_values: npt.ArrayLike, lagtime: float) -> np.ndarray:
    """Compute implied timescales -lagtime / ln|s|, in the unit of `lagtime`; inf where |s| >= 1, 0 where s = 0.

    They are relaxation times for reversible, unbiased equilibrium data, and merely an ordering for other data.

    Examples
    --------
    >>> from openmm_geomgnn.koopman import timescales
    >>> timescales([0.9, 0.5], 10.0).round(2).tolist()
    [94.91, 14.43]
    """
    s = np.abs(np.asarray(singular_values, dtype=np.float64))
    with np.errstate(divide="ignore"):
        return np.where(s >= 1, np.inf, -lagtime / np.log(np.where(s >= 1, 0.5, s)))


def skewness(psi: np.ndarray) -> np.ndarray:
    """Compute the third standardised moment of each column of psi (T, m)."""
    centred = psi - psi.mean(0)
    spread = np.sqrt(np.mean(centred**2, axis=0))
    return np.mean(centred**3, axis=0) / np.where(spread > 0, spread, 1.0) ** 3


def fix_sign(model: KoopmanModel, trajs: Trajectories) -> KoopmanModel:
    """Choose the sign of each component such that its skewness over all frames of `trajs` is positive.

    The rarer side of a component is then its positive side. Unlike a rule on coefficients, this one survives retraining and
    a change of basis; it is undecided for symmetric distributions.
    """
    return with_sign(model, np.concatenate([model.transform(x) for x in as_trajectories(trajs)]))


def with_sign(model: KoopmanModel, psi: np.ndarray) -> KoopmanModel:
    """Do as `fix_sign` does, given psi (T, m), the model's values over the training data."""
    sign = np.where(skewness(psi) < 0, -1.0, 1.0)
    right = None if model.right_projection is None else model.right_projection * sign
    return replace(model, projection=model.projection * sign, right_projection=right)
