"""Correlation times of weighted series and the block bootstrap, the basis of error bars of a simulation.

A series is given per walker, as a list of (T_w,) arrays (or one array for a single walker). Walkers are independent
simulations: no lag and no block ever reaches from one into the next.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from scipy.special import chdtrc

from openmm_geomgnn.errors import GeomGNNError

# one array (T,), or one for each walker
Series: TypeAlias = np.ndarray | Sequence[np.ndarray]

# more blocks than this do not improve error bars and cost memory in two-dimensional histograms
_MOST_BLOCKS = 1000


def as_walkers(series: Series, name: str = "series", dtype: npt.DTypeLike = np.float64) -> list[np.ndarray]:
    """Convert `series`, one array or one per walker, to a list of (T_w,) arrays. Raises GeomGNNError if it has no frame."""
    if isinstance(series, np.ndarray) and series.ndim == 1 and series.dtype != object:
        series = [series]
    walkers = [np.asarray(walker, dtype=dtype) for walker in series]
    if walkers and all(walker.ndim == 0 for walker in walkers):
        walkers = [np.array(walkers, dtype=dtype)]
    shapes = [walker.shape for walker in walkers]
    if any(len(shape) != 1 for shape in shapes):
        raise GeomGNNError(f"{name} has arrays of shape {shapes}: give one array (T,), or a list, one per walker.")
    if sum(len(walker) for walker in walkers) == 0:
        raise GeomGNNError(f"{name} holds no frame at all. Check what was selected, or discard less.")
    return walkers


def statistical_inefficiency(series: Series, logw: Series | None = None) -> float:
    """Estimate the number of successive frames with the information of one independent frame, at least 1.

    g = 1 + 2*sum_t C(t), the integrated autocorrelation, with C(t) pooled over the walkers and the sum ended by
    Geyer's initial monotone positive sequence (Geyer, Stat. Sci. 7, 473, 1992). With log-weights the series is
    w*(a - <a>_w), whose sum is what makes a reweighted mean fluctuate: it sees the correlation of the weights too.

    series, logw: (T,) array, or a list of (T_w,) arrays. Returns a float; 1 for a constant series.
    """
    series = as_walkers(series)
    if logw is None:
        mean = np.mean(np.concatenate(series))
        residuals = [walker - mean for walker in series]
    else:
        weights = relative_weights(logw)
        check_same_lengths(series, weights, "series", "logw")
        mean = np.dot(np.concatenate(weights), np.concatenate(series)) / np.sum(np.concatenate(weights))
        residuals = [w * (walker - mean) for w, walker in zip(weights, series, strict=True)]
    longest = max(len(residual) for residual in residuals)
    total = sum(float(np.dot(residual, residual)) for residual in residuals)
    scale = max(float(np.max(np.abs(residual), initial=0.0)) for residual in residuals)
    if longest < 2 or total <= 0 or scale < 1e-12 * (1 + abs(mean)):
        return 1.0
    products = np.zeros(longest)
    for residual in residuals:
        if len(residual) == 0:
            continue
        size = 1 << (2 * len(residual) - 1).bit_length()
        spectrum = np.fft.rfft(residual, size)
        products[: len(residual)] += np.fft.irfft(spectrum * np.conj(spectrum), size)[: len(residual)]
    correlation = products / total
    pairs = correlation[: longest // 2 * 2].reshape(-1, 2).sum(axis=1)
    ends = np.flatnonzero(pairs <= 0)
    positive = np.minimum.accumulate(pairs[: ends[0] if len(ends) else len(pairs)])
    return float(max(1.0, 2.0 * positive.sum() - 1.0))


def relative_weights(logw: Series) -> list[np.ndarray]:
    """Compute exp(logw) with one offset for all walkers, the largest weight being 1: a list of (T_w,) arrays."""
    logw = as_walkers(logw, "logw")
    largest = max(float(np.max(walker, initial=-np.inf)) for walker in logw)
    if not np.isfinite(largest) or any(np.isnan(walker).any() for walker in logw):
        raise GeomGNNError(
            f"The log-weights hold values that are not finite (largest {largest}). Look at the bias column of the "
            "COLVAR file: such a simulation has failed."
        )
    return [np.exp(walker - largest) for walker in logw]


@dataclass(frozen=True)
class Blocks:
    """A division of all walkers' frames into consecutive blocks.

    labels: (N,) block of each frame, walkers concatenated. length: smallest number of frames in a block (a shorter walker is
    one block of its own). per_walker: the number of blocks of each walker.
    """

    labels: np.ndarray
    n_blocks: int
    length: int
    per_walker: tuple[int, ...]

    def of_walkers(self) -> list[slice]:
        """The blocks of each walker."""
        ends = np.cumsum(self.per_walker).tolist()
        return [slice(end - number, end) for end, number in zip(ends, self.per_walker, strict=True)]

    def sums(self, values: np.ndarray, bins: np.ndarray | None = None, n_bins: int = 1) -> np.ndarray:
        """Sums of values (N,) per block and bin, (n_blocks, n_bins); frames with a negative bin are left out."""
        index = self.labels if bins is None else self.labels * n_bins + bins
        if bins is not None:
            inside = bins >= 0
            index, values = index[inside], values[inside]
        return np.bincount(index, values, minlength=self.n_blocks * n_bins).reshape(self.n_blocks, n_bins)

    def bootstrap(self, n_bootstrap: int, rng: int | np.random.Generator = 0) -> np.ndarray:
        """Draw how often each replica has each block, (n_bootstrap, n_blocks). rng: a Generator or a seed."""
        return bootstrap_counts(self.n_blocks, n_bootstrap, rng)

    @property
    def small_sample_factor(self) -> float:
        """That of all blocks."""
        return small_sample_factor(self.n_blocks)


def bootstrap_counts(n_blocks: int, n_bootstrap: int, rng: int | np.random.Generator = 0) -> np.ndarray:
    """Draw how often each replica has each block, (n_bootstrap, n_blocks). rng: a Generator or a seed."""
    counts = np.random.default_rng(rng).multinomial(n_blocks, np.full(n_blocks, 1.0 / n_blocks), size=n_bootstrap)
    return counts.astype(np.float64)


def small_sample_factor(n_blocks: int) -> float:
    """sqrt(n/(n - 1)): a bootstrap over n blocks has (n - 1)/n of the variance it estimates."""
    return float(np.sqrt(n_blocks / (n_blocks - 1))) if n_blocks > 1 else float("nan")


def walkers_apart(
    blocks: Blocks, sums: np.ndarray, n_bootstrap: int, rng: int | np.random.Generator = 0
) -> tuple[np.ndarray, np.ndarray]:
    """The errors (n,) of ln(p/(1 - p)) by how far walkers are apart, and the chance (n,) that they are as far apart.

    Blocks do not see what is slower than they are long; walkers that stay apart do. Where these differ by more than the
    errors of each by itself, the error is that of their weighted mean times sqrt(chi^2/(walkers - 1)), as the Particle Data
    Group scales errors of measurements that disagree (Phys. Rev. D 110, 030001 (2024), introduction, 5.2.2); else it is 0.

    sums: (n_blocks, n), of weights in n sets of frames, of which each has the share p. A walker that was in a set, or not in
    it, in less than two blocks says nothing of it.
    """
    rest = sums.sum(axis=1, keepdims=True) - sums
    values, errors = np.full((2, len(blocks.per_walker), sums.shape[1]), np.nan)
    with np.errstate(divide="ignore", invalid="ignore"):
        for k, own in enumerate(blocks.of_walkers()):
            known = (np.count_nonzero(sums[own], axis=0) >= 2) & (np.count_nonzero(rest[own], axis=0) >= 2)
            if not known.any():
                continue
            counts = bootstrap_counts(blocks.per_walker[k], n_bootstrap, rng)
            inside, outside = sums[own][:, known], rest[own][:, known]
            replicas = np.log(counts @ inside) - np.log(counts @ outside)
            replicas[~np.isfinite(replicas)] = np.nan
            values[k, known] = np.log(inside.sum(axis=0) / outside.sum(axis=0))
            errors[k, known] = np.nanstd(replicas, axis=0) * small_sample_factor(blocks.per_walker[k])
        precision = np.where(errors > 0, 1 / np.square(errors), 0.0)
        freedom = np.count_nonzero(precision, axis=0) - 1
        total = precision.sum(axis=0)
        values = np.where(precision > 0, values, 0.0)
        chi2 = (precision * np.square(values - (precision * values).sum(axis=0) / total)).sum(axis=0)
        apart = (freedom > 0) & (chi2 > freedom)
        return np.where(apart, np.sqrt(chi2 / freedom / total), 0.0), np.where(apart, chdtrc(freedom, chi2), 1.0)


def make_blocks(lengths: Iterable[int], inefficiency: float) -> Blocks:
    """Cut walkers of `lengths` frames into blocks not shorter than `inefficiency` frames.

    Blocks as long as the correlation time are still correlated at their edges, which makes the error bar too small by about
    a third, so they are made up to five times as long as long as 20 blocks remain.
    """
    lengths = [int(length) for length in lengths]
    total = sum(lengths)
    if total == 0 or not np.isfinite(inefficiency) or inefficiency <= 0:
        raise GeomGNNError(
            f"No blocks can be cut from {total} frames with a correlation time of {inefficiency} frames. Give at least "
            "one frame and a positive correlation time."
        )
    preferred = min(int(np.ceil(5 * inefficiency)), total // 20)
    length = max(int(np.ceil(inefficiency)), preferred, -(-total // _MOST_BLOCKS))
    labels: list[np.ndarray] = []
    per_walker: list[int] = []
    for frames in lengths:
        n = max(1, frames // length) if frames else 0
        labels.append(sum(per_walker) + np.arange(frames) * n // max(1, frames))
        per_walker.append(n)
    return Blocks(np.concatenate(labels), sum(per_walker), length, tuple(per_walker))


def check_same_lengths(first: Sequence[np.ndarray], second: Sequence[np.ndarray], name_first: str, name_second: str) -> None:
    """Raise a GeomGNNError unless two lists of walkers have the same numbers of frames."""
    a, b = [len(walker) for walker in first], [len(walker) for walker in second]
    if a != b:
        raise GeomGNNError(
            f"{name_first} has {a} frames per walker and {name_second} has {b}. They must describe the same frames."
        )
