"""Scaling laws of a loss: power, saturating and none at all, with intervals of their constants and a comparison.

The laws are those of Hestness et al. 2017 (arXiv 1712.00409) and Kaplan et al. 2020 (arXiv 2001.08361). They are compared by
Akaike's information criterion, corrected for few points (Hurvich & Tsai 1989; Burnham & Anderson 2002).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import least_squares
from scipy.special import expit, logit
from scipy.stats import norm, t

from openmm_geomgnn.errors import GeomGNNError

FEWEST = 3  # sizes, of which anything is fitted
LEVEL = 0.95
DECISIVE = 2.0  # difference of AICc below which laws count as equally good
_FLOORS = (0.0, 0.3, 0.6, 0.8, 0.9, 0.97)  # L0 relative to the smallest loss, from which the optimiser starts
_STEEPEST = 4.0  # ln(b)


@dataclass(frozen=True)
class Law:
    """A law for the loss L of size N: how it is written, and its constants, of which those of the prediction are free."""

    name: str
    formula: str
    constants: tuple[str, ...]


CONSTANT = Law("constant", "L = a", ("a",))
POWER = Law("power law", "L = a (N/N0)^-b", ("a", "b"))
SATURATING = Law("saturating law", "L = L0 + a (N/N0)^-b", ("a", "b", "L0"))
LAWS = (CONSTANT, POWER, SATURATING)


@dataclass(frozen=True)
class Fit:
    """A law that was fitted.

    Attributes
    ----------
    law : Law
    values : dict
        Constant -> value. `a` is what the power contributes to the loss at N = `reference`.
    intervals : dict
        Constant -> (lower, upper) of 95 %.
    reference : float
        N0, the geometric mean of the sizes.
    spread : float
        Standard deviation of ln(L) about the law, with the degrees of freedom that are left.
    aicc : float
        Akaike's criterion, corrected for few points; inf where there are too few to tell.
    """

    law: Law
    values: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    reference: float
    spread: float
    aicc: float

    def predict(self, sizes: np.ndarray) -> np.ndarray:
        """The loss at these sizes."""
        constants = [self.values[name] for name in self.law.constants]
        return np.exp(_log_loss(np.log(np.asarray(sizes, dtype=np.float64) / self.reference), *constants))


@dataclass(frozen=True)
class Comparison:
    """Laws fitted to the same points, and which one these prefer.

    Attributes
    ----------
    fits : tuple of Fit
    weights : dict
        Law -> its share of the Akaike weights, of those that the points suffice for.
    preferred : str or None
        None where the points cannot tell.
    words : str
    """

    fits: tuple[Fit, ...]
    weights: dict[str, float]
    preferred: str | None
    words: str


def fit_laws(sizes: Sequence[float], losses: Sequence[float], draws: int = 200, seed: int = 1) -> Comparison:
    """Fit all laws to losses of networks, and compare them.

    Deviations are taken relative, as ln(L). Of several losses at the same size, as of several seeds, the mean of ln(L) is
    one point: seeds say nothing about how far a law is wrong. Intervals are bootstrapped: the deviations of the points,
    spread to the degrees of freedom that are left and to Student's t, are drawn anew.

    Parameters
    ----------
    sizes : (n,)
        Number of parameters, or of conformers.
    losses : (n,)
    draws : int
        Of the bootstrap.
    seed : int

    Returns
    -------
    Comparison

    Raises
    ------
    GeomGNNError
        If there are fewer than three different sizes, or a size or a loss is not positive and finite.
    """
    x, y, reference = _points(sizes, losses)
    fits = tuple(_fit(law, x, y, reference, draws, seed) for law in LAWS if len(x) >= len(law.constants) + 1)
    known = [fit for fit in fits if math.isfinite(fit.aicc)]
    best = min((fit.aicc for fit in known), default=0.0)
    shares = {fit.law.name: math.exp(-0.5 * (fit.aicc - best)) for fit in known}
    weights = {name: share / sum(shares.values()) for name, share in shares.items()}
    preferred = _preferred(known, best)
    return Comparison(fits, weights, preferred, _words(fits, known, preferred, weights, len(x)))


def _points(sizes: Sequence[float], losses: Sequence[float]) -> tuple[np.ndarray, np.ndarray, float]:
    """ln(N / N0), the mean of ln(L) at each N, and N0."""
    n, loss = np.asarray(sizes, dtype=np.float64), np.asarray(losses, dtype=np.float64)
    if n.shape != loss.shape or n.ndim != 1:
        raise GeomGNNError(
            f"There are sizes of shape {n.shape} and losses of shape {loss.shape}. Give one loss for each size."
        )
    for name, values in (("size", n), ("loss", loss)):
        wrong = ~(np.isfinite(values) & (values > 0))
        if wrong.any():
            raise GeomGNNError(f"A {name} is {values[wrong][0]}, but it must be positive. Leave that network out.")
    distinct, which = np.unique(n, return_inverse=True)
    if len(distinct) < FEWEST:
        raise GeomGNNError(f"A law takes {FEWEST} sizes or more, and there are losses of {len(distinct)}.")
    y = np.bincount(which, np.log(loss)) / np.bincount(which)
    reference = float(np.exp(np.log(distinct).mean()))
    return np.log(distinct / reference), y, reference


def _log_loss(x: np.ndarray, a: float, b: float = 0.0, floor: float = 0.0) -> np.ndarray:
    return np.log(floor + a * np.exp(-b * x))


def _fit(law: Law, x: np.ndarray, y: np.ndarray, reference: float, draws: int, seed: int) -> Fit:
    solve = _SOLVERS[law.name]
    values = solve(x, y)
    predicted = _log_loss(x, *values)
    residuals, free = y - predicted, len(x) - len(values)
    square = float((residuals**2).sum())
    scale = math.sqrt(len(x) / free) * float(t.ppf(0.5 + LEVEL / 2, free) / norm.ppf(0.5 + LEVEL / 2))
    rng = np.random.default_rng(seed)
    drawn = np.array([solve(x, predicted + scale * rng.choice(residuals, len(x)), values) for _ in range(draws)])
    low, high = np.quantile(drawn, [0.5 - LEVEL / 2, 0.5 + LEVEL / 2], axis=0)
    return Fit(
        law,
        dict(zip(law.constants, map(float, values), strict=True)),
        {name: (float(low[i]), float(high[i])) for i, name in enumerate(law.constants)},
        reference,
        math.sqrt(square / free),
        _aicc(square, len(x), len(values) + 1),
    )


def _aicc(square: float, points: int, constants: int) -> float:
    """The criterion of a sum of squares; `constants` include the standard deviation."""
    if points < constants + 3:
        return math.inf
    # deviations below rounding are none
    square = max(square, points * 1e-24)
    return points * math.log(square / points) + 2 * constants + 2 * constants * (constants + 1) / (points - constants - 1)


Constants = tuple[float, ...]


def _solve_constant(x: np.ndarray, y: np.ndarray, near: Constants | None = None) -> Constants:
    return (math.exp(y.mean()),)


def _solve_power(x: np.ndarray, y: np.ndarray, near: Constants | None = None) -> Constants:
    slope, offset = np.polyfit(x, y, 1)
    return math.exp(offset), -float(slope)


def _solve_saturating(x: np.ndarray, y: np.ndarray, near: Constants | None = None) -> Constants:
    """Least squares in ln(a), ln(b) and L0, from several starts or from constants nearby; b > 0, or nothing saturates."""
    smallest = math.exp(y.min())
    if near is None:
        starts = [(*_solve_power(x, np.log(np.exp(y) - share * smallest)), share) for share in _FLOORS]
    else:
        starts = [(near[0], near[1], near[2] / smallest), (*_solve_power(x, y), _FLOORS[0])]

    def constants(p: np.ndarray) -> Constants:
        return math.exp(p[0]), math.exp(min(p[1], _STEEPEST)), smallest * float(expit(p[2]))

    best: tuple[float, Constants] | None = None
    for a, b, share in starts:
        start = [math.log(a), math.log(min(max(b, 1e-3), 20.0)), float(logit(min(max(share, 1e-3), _FLOORS[-1])))]
        found = least_squares(lambda p: _log_loss(x, *constants(p)) - y, start, method="lm", ftol=1e-10, xtol=1e-10)
        if best is None or found.cost < best[0]:
            best = found.cost, constants(found.x)
    assert best is not None
    return best[1]


_SOLVERS: dict[str, Callable[..., Constants]] = {
    CONSTANT.name: _solve_constant,
    POWER.name: _solve_power,
    SATURATING.name: _solve_saturating,
}


def _preferred(known: Sequence[Fit], best: float) -> str | None:
    """The law that is better than all others by more than `DECISIVE`."""
    near = [fit.law.name for fit in known if fit.aicc - best <= DECISIVE]
    return near[0] if len(near) == 1 and len(known) == len(LAWS) else None


def _words(fits: Sequence[Fit], known: Sequence[Fit], preferred: str | None, weights: dict[str, float], points: int) -> str:
    if len(known) < len(LAWS):
        needed = len(SATURATING.constants) + 4
        return f"{points} sizes cannot tell the laws apart: this takes {needed}"
    if preferred is None:
        best = min(fit.aicc for fit in known)
        near = [fit.law.name for fit in known if fit.aicc - best <= DECISIVE]
        return f"the {points} sizes cannot tell whether the {' or the '.join(near)} holds"
    others = [fit.aicc for fit in known if fit.law.name != preferred]
    chosen = next(fit for fit in fits if fit.law.name == preferred)
    ahead = min(others) - chosen.aicc
    share = f"{100 * weights[preferred]:.0f} % of the weight"
    if preferred == CONSTANT.name:
        return f"the data show no dependence on size (AICc lower by {ahead:.1f}, {share})"
    return f"the data prefer the {preferred} (AICc lower by {ahead:.1f} than that of the next, {share})"
