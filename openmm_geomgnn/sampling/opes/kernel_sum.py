"""Sums of truncated Gaussian kernels, and the merging that keeps them few: numpy only, no engine, no state.

A kernel of centre c, width sigma and height h is G(s) = h*(exp(-r^2/2) - exp(-cutoff^2/2)) where
r^2 = sum_i ((s_i - c_i)/sigma_i)^2 is below cutoff^2, and zero elsewhere (Invernizzi & Parrinello, J. Phys. Chem. Lett.
2020, 10.1021/acs.jpclett.0c00497). All heights are logarithms, since the weights from which they follow may overflow.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

# exp(-600) = 1e-261 leaves room for products within a double; beyond it sums are taken in log space
_SAFE_EXPONENT = 600.0
# pairs (point, kernel) evaluated at once: 1 MiB of float64 per temporary array, so that it stays in the cache
_BLOCK_PAIRS = 2**17


def minimum_image(delta: np.ndarray, lengths: np.ndarray | None) -> np.ndarray:
    """Compute the shortest periodic image of differences.

    delta: (..., d) ndarray. lengths: (d,) ndarray with the period of each component, 0 where it is not periodic, or
    None when no component is periodic. Returns a (..., d) ndarray within [-length/2, length/2].
    """
    if lengths is None:
        return delta
    inverse = np.divide(1.0, lengths, out=np.zeros_like(lengths), where=lengths > 0)
    return delta - lengths * np.rint(delta * inverse)


def wrap(s: np.ndarray, lows: np.ndarray | None, lengths: np.ndarray | None) -> np.ndarray:
    """Bring (..., d) values into [low, low + length) in the periodic components (lengths as in `minimum_image`)."""
    if lengths is None:
        return s
    periodic = lengths > 0
    return np.where(periodic, lows + np.mod(s - lows, np.where(periodic, lengths, 1.0)), s)


class KernelSum:
    """A fixed sum of K kernels, arranged for fast evaluation at one point or at many.

    centres, sigmas: (K, d) ndarrays with K > 0. log_heights: (K,) ndarray, normalisation included. cutoff: in units of
    sigma. lengths: (d,) periods (0: not periodic) or None.
    """

    def __init__(
        self,
        centres: np.ndarray,
        sigmas: np.ndarray,
        log_heights: np.ndarray,
        cutoff: float,
        lengths: np.ndarray | None = None,
    ) -> None:
        self._centres = [np.ascontiguousarray(c) for c in centres.T]
        self._inverse_sigmas = [np.ascontiguousarray(1.0 / sigma) for sigma in sigmas.T]
        # all components in one array, for single points, whose cost is the number of numpy calls
        self._rows, self._inverse_rows = np.stack(self._centres), np.stack(self._inverse_sigmas)
        self._minus_halves, self._end = np.full(len(self._centres), -0.5), -0.5 * cutoff * cutoff
        self._log_heights = log_heights
        self._heights = np.exp(np.minimum(log_heights, _SAFE_EXPONENT))
        self._cutoff2 = cutoff * cutoff
        self._shift = math.exp(-0.5 * self._cutoff2)
        self._lengths = [0.0] * len(self._centres) if lengths is None else [float(length) for length in lengths]
        self._periods = None if lengths is None or not np.any(lengths) else np.array(lengths, dtype=np.float64)[:, None]
        self._in_range = 0.5 * self._cutoff2 < _SAFE_EXPONENT and bool(np.abs(log_heights).max() < _SAFE_EXPONENT)

    def density(self, s: np.ndarray) -> np.ndarray:
        """Compute the sum (F,) at s (F, d); kernels too low for a double count as zero."""
        return self._in_blocks(s, self._density, gradient=False)[0]

    def log_density(self, s: np.ndarray, log_epsilon: float) -> tuple[np.ndarray, np.ndarray]:
        """Compute ln(P(s) + epsilon) (F,) and its exact gradient (F, d) at s (F, d)."""
        if not self._in_range or log_epsilon < -_SAFE_EXPONENT:
            return self._in_blocks(s, self._log_space, log_epsilon)
        total, gradient = self._in_blocks(s, self._density)
        total = total + math.exp(log_epsilon)
        return np.log(total), gradient / total[:, None]

    def log_density_at(self, s: np.ndarray, log_epsilon: float, factor: float) -> tuple[float, np.ndarray]:
        """Compute `factor` times ln(P(s) + epsilon) and its gradient at one point s (d,): a float and a (d,) ndarray.

        The result equals that of `log_density` up to rounding, in half the time.
        """
        if not self._in_range or log_epsilon < -_SAFE_EXPONENT:
            value, gradient = self._log_space(s[None], log_epsilon)
            return factor * float(value[0]), factor * gradient[0]
        z = self._rows - s[:, None]
        if self._periods is not None:
            z = minimum_image(z, self._periods)
        z *= self._inverse_rows
        exponents = self._minus_halves.dot(z * z)
        outside = exponents <= self._end
        gauss = np.exp(exponents, out=exponents)
        kernels = gauss - self._shift
        np.maximum(kernels, 0.0, out=kernels)
        total = float(kernels.dot(self._heights)) + math.exp(log_epsilon)
        # see `_density`
        gauss *= self._heights
        np.putmask(gauss, outside, 0.0)
        z *= self._inverse_rows
        gradient = z.dot(gauss)
        gradient *= factor / total
        return factor * math.log(total), gradient

    def _in_blocks(self, s: np.ndarray, function: Callable[..., tuple], *args: Any, **kwargs: Any) -> tuple:
        rows = max(1, _BLOCK_PAIRS // len(self._heights))
        if len(s) <= rows:
            return function(s, *args, **kwargs)
        parts = [function(s[start : start + rows], *args, **kwargs) for start in range(0, len(s), rows)]
        return tuple(None if part[0] is None else np.concatenate(part) for part in zip(*parts, strict=True))

    def _scaled_differences(self, s: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
        """Per component (c_i - s_i)/sigma_i as (F, K) ndarrays, and r^2 (F, K)."""
        scaled: list[np.ndarray] = []
        r2: Any = None
        for i, (centres, inverse, length) in enumerate(zip(self._centres, self._inverse_sigmas, self._lengths, strict=True)):
            z = centres - s[:, i, None]
            if length:
                z -= length * np.rint(z * (1.0 / length))
            z *= inverse
            r2 = z * z if r2 is None else r2 + z * z
            scaled.append(z)
        return scaled, r2

    def _density(self, s: np.ndarray, gradient: bool = True) -> tuple[np.ndarray, np.ndarray | None]:
        scaled, r2 = self._scaled_differences(s)
        inside = r2 < self._cutoff2
        r2 *= -0.5
        gauss = np.exp(r2, out=r2)
        kernels = gauss - self._shift
        # negative outside the cutoff, and by a rounding error just inside it
        np.maximum(kernels, 0.0, out=kernels)
        kernels *= self._heights
        total = np.add.reduce(kernels, axis=1)
        if not gradient:
            return total, None
        # dG/ds = -h*(s - c)/sigma^2*exp(-r^2/2): the unshifted Gaussian, which is the derivative of the shifted one
        gauss *= self._heights
        gauss *= inside
        return total, self._contract(gauss, scaled)

    def _log_space(self, s: np.ndarray, log_epsilon: float) -> tuple[np.ndarray, np.ndarray]:
        scaled, r2 = self._scaled_differences(s)
        inside = r2 < self._cutoff2
        log_gauss = self._log_heights - 0.5 * r2
        # ln(exp(-r^2/2) - exp(-cutoff^2/2)) = -r^2/2 + ln(1 - exp(-q)), q = (cutoff^2 - r^2)/2; q is 1 outside, unused
        q = np.where(inside, 0.5 * (self._cutoff2 - r2), 1.0)
        log_kernels = np.where(inside, log_gauss + np.log(-np.expm1(-q)), -np.inf)
        top = np.maximum(log_kernels.max(axis=1), log_epsilon)
        total = np.exp(log_kernels - top[:, None]).sum(axis=1) + np.exp(log_epsilon - top)
        gauss = np.exp(np.where(inside, log_gauss - top[:, None], -np.inf))
        return top + np.log(total), self._contract(gauss, scaled) / total[:, None]

    def _contract(self, gauss: np.ndarray, scaled: list[np.ndarray]) -> np.ndarray:
        gradient = np.empty((len(gauss), len(scaled)))
        for i, (z, inverse) in enumerate(zip(scaled, self._inverse_sigmas, strict=True)):
            z *= inverse
            z *= gauss
            np.add.reduce(z, axis=1, out=gradient[:, i])
        return gradient


def merge_pair(
    centre_1: np.ndarray,
    sigma_1: np.ndarray,
    log_height_1: float,
    centre_2: np.ndarray,
    sigma_2: np.ndarray,
    log_height_2: float,
    lengths: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, float]:
    """Two kernels as one of the same mass (h1 + h2), mean and variance, per component.

    Centres and sigmas are (d,) ndarrays. Returns (centre, sigma, log_height); the centre is in the periodic image of
    centre_1, not wrapped.
    """
    log_height = np.logaddexp(log_height_1, log_height_2)
    fraction_1, fraction_2 = math.exp(log_height_1 - log_height), math.exp(log_height_2 - log_height)
    apart = minimum_image(centre_2 - centre_1, lengths)
    # (h1*(sigma1^2 + c1^2) + h2*(sigma2^2 + c2^2))/h - c^2, written without the difference of large squares
    variance = fraction_1 * sigma_1**2 + fraction_2 * sigma_2**2 + fraction_1 * fraction_2 * apart**2
    return centre_1 + fraction_2 * apart, np.sqrt(variance), float(log_height)


def add_kernel(
    centres: np.ndarray,
    sigmas: np.ndarray,
    log_heights: np.ndarray,
    kernel: tuple[np.ndarray, np.ndarray, float],
    threshold: float,
    lows: np.ndarray | None = None,
    lengths: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Add one kernel, merging it into its nearest neighbour while one lies within the threshold.

    centres, sigmas: (K, d) and log_heights: (K,) ndarrays, which are left as they are. kernel: (centre (d,), sigma
    (d,), log_height). threshold: in units of the existing kernel's sigma; 0 only appends. Returns the three new arrays.
    The merged kernel takes the place of the neighbour; it is then tried against the remaining kernels in turn.
    """
    centre, sigma, log_height = kernel
    place = None
    while threshold > 0 and len(centres) > (place is not None):
        distance2 = np.add.reduce((minimum_image(centres - centre, lengths) / sigmas) ** 2, axis=1)
        if place is not None:
            distance2[place] = np.inf
        nearest = int(distance2.argmin())
        if not distance2[nearest] < threshold * threshold:
            break
        centre, sigma, log_height = merge_pair(
            centres[nearest], sigmas[nearest], log_heights[nearest], centre, sigma, log_height, lengths
        )
        centre = wrap(centre, lows, lengths)
        if place is None:
            centres, sigmas, log_heights = centres.copy(), sigmas.copy(), log_heights.copy()
        else:
            centres, sigmas = np.delete(centres, place, axis=0), np.delete(sigmas, place, axis=0)
            log_heights = np.delete(log_heights, place)
            nearest -= place < nearest
        place = nearest
        centres[place], sigmas[place], log_heights[place] = centre, sigma, log_height
    if place is None:
        centres = np.concatenate([centres, wrap(centre, lows, lengths)[None]])
        sigmas, log_heights = np.concatenate([sigmas, sigma[None]]), np.append(log_heights, log_height)
    return centres, sigmas, log_heights
