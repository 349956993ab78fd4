"""Alignment of refitted slow functions to earlier ones: order, sign, and rotation among functions that are equally slow."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment

from ..errors import GeomGNNError
from .vamp import KoopmanModel

# Difference of singular values below which two functions count as equally slow, where no error is known.
TOLERANCE = 0.01
# Correlation with the old component below which a component counts as another function.
LEAST_CORRELATION = 0.7


@dataclass(frozen=True)
class Alignment:
    """How refitted functions follow from the order and the signs of the old ones; see `align`.

    Attributes
    ----------
    rotation : (d, d) ndarray
        Orthogonal; the aligned functions are psi_new @ rotation. It permutes and changes signs, except among functions that
        are equally slow, where it also rotates.
    overlap : float
        Fraction of the variance of the old functions that some linear combination of the new ones reproduces: 1 where they
        span the same space or the new space contains the old one, 0 where no new function correlates with any old one.
    partners : (min(d, k),) ndarray of int
        Number, from 0, of the old function that each of the leading aligned functions follows, ascending. These are all old
        functions unless there are fewer new ones.
    correlations : (d,) ndarray
        Correlation of each aligned function with its partner; nan where it has none.
    singular_values : (d,) ndarray
        Of the aligned functions: their autocorrelation at the lag time, for reversible estimates. They need not descend.
    notes : list of str
        What changed, in words; empty where everything stayed in place.
    """

    rotation: np.ndarray
    overlap: float
    partners: np.ndarray
    correlations: np.ndarray
    singular_values: np.ndarray
    notes: list[str]

    def rotate(self, model: KoopmanModel) -> KoopmanModel:
        """Return the model of the aligned functions, in the order of the old ones."""
        right = None if model.right_projection is None else model.right_projection @ self.rotation
        return replace(
            model,
            projection=model.projection @ self.rotation,
            right_projection=right,
            singular_values=self.singular_values,
        )


def align(
    psi_new: npt.ArrayLike,
    psi_old: npt.ArrayLike,
    singular_values: npt.ArrayLike,
    errors: npt.ArrayLike = TOLERANCE,
    weights: npt.ArrayLike | None = None,
) -> Alignment:
    """Align refitted slow functions to old ones, both evaluated at the same reference frames.

    A refit returns the slow functions in the order of its own singular values, with signs of its own, and mixes those that
    are equally slow in any way. New functions are assigned to the old ones such that the squared correlations are largest;
    signs follow. Neighbouring functions whose singular values differ by no more than their error form a block: the whole
    block is assigned, then rotated to the old functions by an orthogonal Procrustes fit. Functions outside of such blocks
    are never mixed, so they remain the estimated singular functions.

    Parameters
    ----------
    psi_new : (F, d) array
    psi_old : (F, k) array
        The reference frames should be the same in every round, and visit all states.
    singular_values : (d,) array
        Of the new functions, descending.
    errors : float or (d,) array, optional
        Of the singular values. Neighbours that differ by at most the larger of their errors are equally slow.
    weights : (F,) array, optional
        Weights of the frames; all count alike by default.

    Raises
    ------
    GeomGNNError
        If the shapes do not fit, numbers are not finite, weights are negative, or a function does not vary over the frames.

    Examples
    --------
    >>> import numpy as np
    >>> from openmm_geomgnn.koopman import align
    >>> old = np.random.default_rng(0).normal(size=(1000, 2))
    >>> found = align(old[:, ::-1] * [1, -1], old, singular_values=[0.9, 0.8])
    >>> found.rotation.tolist()
    [[0.0, 1.0], [-1.0, 0.0]]
    >>> found.notes
    ['cv.1 was component 2 of the refit', 'cv.2 was component 1 of the refit']
    >>> round(found.overlap, 6)
    1.0
    """
    new, old, share = _checked(psi_new, psi_old, weights)
    d = new.shape[1]
    s = np.asarray(singular_values, dtype=np.float64)
    spread = np.full(d, errors, dtype=np.float64) if np.ndim(errors) == 0 else np.asarray(errors, dtype=np.float64)
    if s.shape != (d,) or spread.shape != (d,) or not np.isfinite(s).all() or not (spread >= 0).all():
        raise GeomGNNError(
            f"There are {d} new functions: give as many singular values, and errors that are not negative, one or {d}."
        )
    unit_old = _standardised(old, share)
    correlation = _standardised(new, share).T @ unit_old
    blocks = _blocks(s, spread)
    rotation, partners = _rotation(correlation, blocks)
    aligned = _standardised(new @ rotation, share)
    matched = np.full(d, np.nan)
    matched[: len(partners)] = np.sum(aligned[:, : len(partners)] * unit_old[:, partners], axis=0)
    return Alignment(
        rotation,
        _overlap(new, old, share),
        partners,
        matched,
        np.einsum("ij,i,ij->j", rotation, s, rotation),
        _notes(rotation, blocks, partners, matched),
    )


def _checked(
    psi_new: npt.ArrayLike, psi_old: npt.ArrayLike, weights: npt.ArrayLike | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Both sets of functions about their means, and weights (F,) that sum to 1."""
    new, old = (np.asarray(psi, dtype=np.float64) for psi in (psi_new, psi_old))
    if new.ndim != 2 or old.ndim != 2 or len(new) != len(old) or not len(new) or not new.size or not old.size:
        raise GeomGNNError(
            f"The functions must be given as (frames, components) at the same frames, but have the shapes {new.shape} and "
            f"{old.shape}."
        )
    share = np.full(len(new), 1.0) if weights is None else np.asarray(weights, dtype=np.float64)
    if share.shape != (len(new),) or not np.isfinite(share).all() or (share < 0).any() or not share.sum() > 0:
        raise GeomGNNError(f"Weights must be {len(new)} finite numbers that are not negative, and not all zero.")
    share = share / share.sum()
    centred = []
    for name, psi in (("new", new), ("old", old)):
        if not np.isfinite(psi).all():
            raise GeomGNNError(f"The {name} functions are not finite in every reference frame.")
        mean = share @ psi
        psi = psi - mean
        still = np.flatnonzero(share @ psi**2 <= 1e-24 * (1.0 + mean**2))
        if len(still):
            raise GeomGNNError(
                f"Component {still[0] + 1} of the {name} functions does not vary over the reference frames: choose frames "
                "of all states."
            )
        centred.append(psi)
    return centred[0], centred[1], share


def _standardised(psi: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Columns of norm 1 whose products are correlations."""
    scaled = np.sqrt(share)[:, None] * psi
    return scaled / np.linalg.norm(scaled, axis=0)


def _overlap(new: np.ndarray, old: np.ndarray, share: np.ndarray) -> float:
    """Sum of the squared cosines of the principal angles between both spans, over the number of old functions."""
    bases = []
    for psi in (new, old):
        left, sizes, _ = np.linalg.svd(_standardised(psi, share), full_matrices=False)
        bases.append(left[:, sizes > 1e-8 * sizes[0]])
    return float(min(1.0, np.sum((bases[0].T @ bases[1]) ** 2) / bases[1].shape[1]))


def _blocks(singular_values: np.ndarray, errors: np.ndarray) -> list[list[int]]:
    """Numbers of functions, neighbours that are equally slow together."""
    blocks = [[0]]
    for i in range(1, len(singular_values)):
        alike = abs(singular_values[i - 1] - singular_values[i]) <= max(errors[i - 1], errors[i])
        if alike:
            blocks[-1].append(i)
        else:
            blocks.append([i])
    return blocks


def _rotation(correlation: np.ndarray, blocks: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """The orthogonal (d, d) matrix of `align` and the partners of its leading columns, from the correlations (d, k)."""
    d, k = correlation.shape
    gain = np.empty((d, k))
    for block in blocks:  # any function of a block can become any combination of it
        gain[block] = np.sum(correlation[block] ** 2, axis=0)
    rows, columns = linear_sum_assignment(gain, maximize=True)
    partner = dict(zip(rows.tolist(), columns.tolist(), strict=True))
    # Old components without a partner are closed up, and functions without one follow in their own order.
    place = {column: number for number, column in enumerate(sorted(partner.values()))}
    next_free = len(place)
    rotation = np.zeros((d, d))
    for block in blocks:
        targets = [partner[i] for i in block if i in partner]
        turned = _procrustes(correlation[np.ix_(block, targets)])
        places = [place[column] for column in targets]
        more = len(block) - len(targets)
        places += range(next_free, next_free + more)
        next_free += more
        rotation[np.ix_(block, places)] = turned
    return rotation, np.array(sorted(partner.values()))


def _procrustes(cross: np.ndarray) -> np.ndarray:
    """The orthogonal (b, b) matrix Q whose first columns (b, t) maximise tr(Q^T cross); `cross` is (b, t), t <= b."""
    size, targets = cross.shape
    if size == 1:
        return np.array([[-1.0 if targets and cross[0, 0] < 0 else 1.0]])
    left, _, right = np.linalg.svd(cross, full_matrices=True)
    rest = left[:, targets:]
    # signs of the completion: its largest element is positive
    largest = np.abs(rest).argmax(axis=0)
    rest = rest * np.where(rest[largest, np.arange(rest.shape[1])] < 0, -1.0, 1.0)
    return np.hstack([left[:, :targets] @ right, rest])


def _notes(
    rotation: np.ndarray, blocks: Sequence[Sequence[int]], partners: np.ndarray, correlations: np.ndarray
) -> list[str]:
    notes = [
        f"cv.{place} follows component {old} of the old functions, of which there were more"
        for place, old in enumerate(partners + 1, start=1)
        if place != old
    ]
    for j, (column, correlation) in enumerate(zip(rotation.T, correlations, strict=True), start=1):
        source = int(np.abs(column).argmax())
        block = next(block for block in blocks if source in block)
        if len(block) > 1:
            notes.append(
                f"cv.{j} is a combination of components {block[0] + 1} to {block[-1] + 1} of the refit, which are equally "
                "slow"
            )
        elif source + 1 != j:
            notes.append(f"cv.{j} was component {source + 1} of the refit")
        if np.isnan(correlation):
            notes.append(f"cv.{j} has no counterpart among the old components")
        elif correlation < LEAST_CORRELATION:
            notes.append(f"cv.{j} is another function than before: its correlation with the old one is {correlation:.2f}")
    return notes
