"""Which row of a table of scores is taken: soft, among those that are as good as the best."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from openmm_geomgnn.cv.score_rows import REFERENCES, ScoreRow
from openmm_geomgnn.errors import GeomGNNError

SAME_GAP = 0.05  # gaps that differ by less are alike


class Choice(NamedTuple):
    """The row that was chosen, and why, in a sentence; `remarks` on what the references say."""

    row: ScoreRow
    why: str
    remarks: tuple[str, ...]


def choose(rows: Sequence[ScoreRow], components: int = 1, step: float | None = None, temperature: float = 300.0) -> Choice:
    """Choose a row of `components` components.

    Of the rows within one standard error of the best held-out score, linear ones where there are any; of these those with
    the best gap, where gaps are known; of these the softest. References are never chosen. (The rule of one standard error:
    Hastie, Tibshirani & Friedman, *The Elements of Statistical Learning*, section 7.10.) The error is that of the
    difference: a fold that is hard is hard for all rows.

    Parameters
    ----------
    rows : list of ScoreRow
    components : int
    step : float, optional
        ps between evaluations of the bias to come: CVs that are too stiff for it are left out, if others are not.
    temperature : float
        Of that simulation, K.

    Raises
    ------
    GeomGNNError
        If no row has so many components.
    """
    mine = [row for row in rows if row.components == components]
    candidates = [row for row in mine if not row.is_reference]
    if not candidates:
        raise GeomGNNError(f"No CV of {components} components was scored. Ask for fewer components, or for a larger pca.")
    why = []
    soft = [row for row in candidates if step is None or row.can_be_biased(step, temperature)]
    if step is not None and len(soft) < len(candidates):
        why.append(f"too stiff to bias every {1000 * step:g} fs: {len(candidates) - len(soft)} of {len(candidates)}")
    candidates = soft or candidates
    best = max(candidates, key=lambda row: row.vamp2_held_out)
    near = [row for row in candidates if _shortfall(best, row) <= 0]
    score = f"the best held-out VAMP-2, {best.vamp2_held_out:.3f}"
    why.append(f"within one standard error of {score}: {len(near)} of {len(candidates)}")
    linear = [row for row in near if row.case.is_linear]
    if linear and len(linear) < len(near):
        near = linear
        why.append(f"linear, which is simpler: {len(linear)}")
    gaps = [row.gap for row in near if row.gap is not None]
    if gaps:
        count = len(near)
        near = [row for row in near if row.gap is not None and row.gap >= max(gaps) - SAME_GAP]
        why.append(f"with the best gap under the bias, {max(gaps):.2f}, to within {SAME_GAP:g}: {len(near)} of {count}")
    why.append("the softest of these is taken" if len(near) > 1 else "which is taken")
    text = "; ".join(why)
    return Choice(min(near, key=lambda row: row.stiffness), text[0].upper() + text[1:], tuple(_remarks(mine, best)))


def _shortfall(best: ScoreRow, row: ScoreRow) -> float:
    """By how much more than a standard error of the difference a row scores below another."""
    difference = np.subtract(best.fold_scores, row.fold_scores)
    return float(difference.mean() - difference.std(ddof=1) / np.sqrt(len(difference)))


def _remarks(rows: Sequence[ScoreRow], best: ScoreRow) -> list[str]:
    found = []
    for name in REFERENCES:
        others = [row for row in rows if row.features == name]
        if not others:
            continue
        other = max(others, key=lambda row: row.vamp2_held_out)
        how = "worse than" if _shortfall(best, other) > 0 else "better than" if _shortfall(other, best) > 0 else "as good as"
        verb = "are" if name.endswith("s") else "is"
        found.append(f"{name.capitalize()} {verb} {how} the best ({other.vamp2_held_out:.3f} held out)")
    return found
