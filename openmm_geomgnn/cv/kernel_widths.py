"""How wide the kernels of a bias on a CV are: as a basin, but no narrower than the integrator can follow."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

# radians per outer step; runs at 0.5 stayed at their temperature, runs at 0.7 warmed up, runs at 1 boiled
LARGEST_PHASE = 0.5
# a kernel this much wider than the fluctuations within a basin merges with every other one: the bias cannot build up
WIDEST_KERNEL = 2.0


def narrowest_width(rate: npt.ArrayLike, step: float, temperature: float = 300.0) -> Any:
    """The narrowest kernels that do not heat the system, in units of the CV, as an array or a number like `rate`.

    A kernel of width sigma drives motions of angular frequency rate/sigma, whose phase must not advance by more than
    LARGEST_PHASE between two evaluations of the bias.

    Parameters
    ----------
    rate : float or (d,) array
        `rate_300K_per_ps` of `stiffness`, (CV unit)/ps.
    step : float
        Time between two evaluations of the bias, ps.
    temperature : float
        K.
    """
    return np.asarray(rate) * np.sqrt(temperature / 300.0) * step / LARGEST_PHASE


def is_too_stiff(width: npt.ArrayLike, spread: npt.ArrayLike) -> Any:
    """Whether the narrowest kernel is too wide for a basin, per component; `spread` is as of `basin_widths`."""
    return ~np.isfinite(width) | (np.asarray(width) > WIDEST_KERNEL * np.asarray(spread))


def kernel_widening(dimension: int) -> float:
    """How much wider than a component's fluctuation in a basin kernels in so many dimensions are: dimension^(3/4).

    Two frames of a Gaussian basin are sqrt(2 d) fluctuations apart. Kernels as wide as the fluctuation fill it one by one,
    and what each of them adds to the energy becomes heat. With this width depositions in such a basin add as much in up to
    four dimensions as in one; the exponent is fitted to that.
    """
    return float(dimension**0.75)


def basin_widths(facts: Mapping[str, Any]) -> np.ndarray:
    """How wide kernels are that are as wide as a basin, (d,), in units of the CV, by its `training_information`.

    As wide as the CV fluctuates there, times `kernel_widening`, but no less than its fit says; (0,) where that is not known.
    Files of before do not say that several components take wider ones, and runs with them go on as they were begun.
    """
    spread = np.multiply(facts.get("in_basin_spread", ()), facts.get("kernel_widening", 1.0))
    return np.maximum(spread, facts.get("least_kernel_width", 0.0))


def kernel_widths(
    spread: npt.ArrayLike,
    narrowest: np.ndarray,
    sigma: float | Sequence[float] | None = None,
    sigma_min: float | Sequence[float] | None = None,
    adaptive: bool = False,
) -> dict[str, tuple[float, ...]]:
    """What a bias needs to know of its kernels, of what is not given: {"sigma": ..., "sigma_min": ...}, tuples of float.

    The width is the CV's fluctuation within a basin, but no less than what the integrator can follow; a sigma_min that is
    given takes the place of that floor. An adaptive bias measures its sigma in the run.

    Parameters
    ----------
    spread, narrowest : (d,) array
        The fluctuation within a basin, and `narrowest_width`.
    sigma, sigma_min : float or sequence of float, optional
        As they are given.
    adaptive : bool, optional
        Whether the bias measures the width that is not given.
    """
    floor = narrowest if sigma_min is None else np.array(sigma_min) * np.ones(len(narrowest))
    if sigma is None and adaptive:
        return {"sigma_min": _floats(floor)}
    widths = {}
    if sigma is None:
        widths["sigma"] = _floats(np.maximum(spread, floor))
    if sigma_min is None:
        given = np.array(widths.get("sigma", sigma), dtype=float)
        widths["sigma_min"] = _floats(np.minimum(floor, given) * np.ones(len(floor)))
    return widths


def _floats(values: Iterable[float]) -> tuple[float, ...]:
    return tuple(float(value) for value in values)
