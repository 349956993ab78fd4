"""The widths of the kernels of OPES: given, or measured while the walkers move. `opes` is an `OPES` in all functions."""

import math
from typing import Any

import numpy as np

from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.sampling.opes.arguments import warn
from openmm_geomgnn.sampling.opes.state import OPESState

SMALLEST_SIGMA = 1e-6  # below it a measured width means that the CV did not move at all


def check_widths(opes: Any) -> None:
    """Raise a GeomGNNError, or warn, where a given sigma does not fit the floor or the periods."""
    sigma0, sigma_min = given_sigma(opes, opes.dimension or 1)[0], floor_of(opes, opes.dimension or 1)
    cutoff = opes.kernel_cutoff
    if sigma_min is not None and np.any(sigma_min > sigma0):
        raise GeomGNNError(
            f"sigma_min ({opes.sigma_min}) is above sigma ({opes.sigma}), so every kernel would have the width "
            "sigma_min: lower sigma_min or raise sigma."
        )
    for i, (low, high) in enumerate(period or (-math.inf, math.inf) for period in opes.periods or ()):
        if not opes.explore and 2 * cutoff * sigma0[i] > high - low:
            warn(
                f"sigma = {sigma0[i]:g} in component {i} reaches beyond half the period ({low:g}, {high:g}) with a "
                f"cutoff of {cutoff:.3g} sigma, so the force jumps opposite each kernel: use a sigma "
                f"below {(high - low) / (2 * cutoff):.3g}.",
                depth=1,
            )


def given_sigma(opes: Any, d: int) -> np.ndarray:
    """Return the given sigma as (1, d); it is wider for EXPLORE, whose target is."""
    return np.full((1, d), opes.sigma) * (math.sqrt(opes.biasfactor) if opes.explore else 1.0)


def floor_of(opes: Any, d: int) -> np.ndarray | None:
    """Return sigma_min as (d,); None if there is none."""
    return None if opes.sigma_min is None else np.full(d, opes.sigma_min)


def current_widths(opes: Any, state: OPESState) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compute (sigma0 (1, d), widths before the bandwidth factor, M2) for the kernels of an update.

    The widths are (1, d), or (n_walkers, d) once each walker measures its own. sigma0 is shared, the root mean square over
    the walkers of what they measured first: the mass of a kernel, h*prod(sigma) = w*prod(sigma0), is then set by its weight
    alone, whichever walker deposits it.

    Raises
    ------
    GeomGNNError
        If a measured width is below `SMALLEST_SIGMA` and there is no sigma_min.
    """
    if not opes.adaptive:
        return state.sigma0, state.sigma0, state.M2
    first = not len(state.sigma0)
    # the first measurement is unbiased: M2 is scaled to what the biased dynamics would have shown
    M2 = opes.biasfactor * state.M2 if first else state.M2
    widths = np.sqrt(M2 / (state.a[:, None] * (1.0 if opes.explore else opes.biasfactor)))
    floor = floor_of(opes, widths.shape[1])
    if floor is not None:
        widths = np.maximum(widths, floor) if first else widths
    elif widths.min() < SMALLEST_SIGMA:
        walker, component = np.unravel_index(widths.argmin(), widths.shape)
        raise GeomGNNError(
            f"The adaptive sigma of component {component}, walker {walker} is {widths.min():.3g}, below "
            f"{SMALLEST_SIGMA:g}: the CV hardly moved in {state.a[walker]} steps. Is it constant, or is the "
            "adaptive_stride too short? Give sigma, or a floor with sigma_min."
        )
    if not first:
        return state.sigma0, widths, M2
    sigma0 = np.sqrt(np.square(widths).mean(axis=0, keepdims=True))
    return sigma0, sigma0, M2


def effective_size(log_W: float, log_W2: float) -> float:
    """Compute the effective number of samples, (1 + W)^2/(1 + W2), from the logarithms of these sums."""
    return math.exp(2 * np.logaddexp(0.0, log_W) - np.logaddexp(0.0, log_W2))
