"""Free energies from biased simulations: reweighted histograms with block-bootstrap error bars.

Energies are in kJ/mol. A frame recorded under the bias V has the log-weight beta*V, with one offset for all walkers
(Torrie & Valleau, J. Comput. Phys. 23, 187, 1977; for OPES: Invernizzi & Parrinello, J. Phys. Chem. Lett. 11, 2731,
2020). Frames are given per walker, as lists of (T_w,) arrays, or as one array for a single walker.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, NamedTuple

import numpy as np

from openmm_geomgnn.analysis.resampling import (
    Blocks,
    Series,
    as_walkers,
    check_same_lengths,
    make_blocks,
    relative_weights,
    statistical_inefficiency,
    walkers_apart,
)
from openmm_geomgnn.errors import GeomGNNError

CHANCE = 0.003  # probability below which it is said that walkers differ


@dataclass(frozen=True)
class FreeEnergy:
    """A free energy on bins.

    edges: one array of bin edges per dimension. values, error: kJ/mol, in the shape of the bins; the minimum of `values` is
    0, and bins that were not visited are nan. n_blocks, block_length: the blocks of frames behind the error bars.
    """

    edges: tuple[np.ndarray, ...]
    values: np.ndarray
    error: np.ndarray
    n_blocks: int
    block_length: int

    @property
    def centres(self) -> tuple[np.ndarray, ...]:
        """The middles of the bins: one array per dimension."""
        return tuple((edges[1:] + edges[:-1]) / 2 for edges in self.edges)


class FreeEnergyDifference(NamedTuple):
    """F(B) - F(A) and its standard error in kJ/mol; nan if the data are insufficient. reason: what there is to doubt."""

    value: float
    error: float
    reason: str


def log_weights(bias: Series, kT: float) -> list[np.ndarray]:
    """Compute the log-weights beta*V of the frames, the largest over all walkers being 0.

    bias: V in kJ/mol at the time of each frame, summed over all acting biases: (T,), or a list of (T_w,). kT in kJ/mol.
    Returns a list of (T_w,) arrays. All walkers have one offset: separate ones would change their relative weights.
    """
    _check_kT(kT)
    scaled = [walker / kT for walker in as_walkers(bias, "bias")]
    values = np.concatenate(scaled)
    if not np.isfinite(values).all():
        raise GeomGNNError(
            f"{np.count_nonzero(~np.isfinite(values))} of {len(values)} bias values are not finite. The simulation "
            "failed there: analyse the part before, and look at its temperature."
        )
    return [walker - values.max() for walker in scaled]


def kish_size(logw: Series) -> float:
    """Compute the effective number of frames (sum w)^2/sum w^2, from 1 to their number (Kish, Survey Sampling, 1965)."""
    weights = np.concatenate(relative_weights(logw))
    return float(weights.sum() ** 2 / np.dot(weights, weights))


def free_energy_1d(
    s: Series,
    logw: Series,
    kT: float,
    edges: Any = 60,
    periodic: Any = False,
    *,
    inefficiency: float | None = None,
    n_bootstrap: int = 200,
    rng: int | np.random.Generator = 0,
) -> FreeEnergy:
    """Estimate F(s) = -kT*ln p(s) on bins, with error bars.

    s, logw: (T,) array or a list of (T_w,) arrays. edges: bin edges, or a number of equal bins over the range of s
    (over -pi to pi when periodic). periodic: s is wrapped into the range of the edges, which must be one period.
    inefficiency: correlation time in frames; estimated from the data by default. rng: a Generator or a seed.

    An error bar is the standard deviation over bootstrap replicas of -kT*ln of the normalised density, so it is the
    uncertainty relative to the whole ensemble, and does not depend on a single bin such as the minimum. It is nan in
    bins that only one block visited, and wider where walkers differ, as that of `delta_F`. Returns a FreeEnergy.
    """
    s = as_walkers(s, "s")
    if inefficiency is None:
        inefficiency = slowest_inefficiency([s], logw, (periodic,))
    return _histogram([s], logw, kT, [edges], [periodic], inefficiency, n_bootstrap, rng)


def free_energy_2d(
    x: Series,
    y: Series,
    logw: Series,
    kT: float,
    edges: Any = 50,
    periodic: Any = (False, False),
    *,
    inefficiency: float | None = None,
    n_bootstrap: int = 100,
    rng: int | np.random.Generator = 0,
) -> FreeEnergy:
    """Estimate F(x, y) on bins, as `free_energy_1d` does. edges: a number of bins, or a pair of numbers or edge arrays.

    The density is per bin area. Returns a FreeEnergy whose values and error have the shape (bins of x, bins of y).
    """
    x, y = as_walkers(x, "x"), as_walkers(y, "y")
    check_same_lengths(x, y, "x", "y")
    periodic = (periodic, periodic) if isinstance(periodic, bool) else tuple(periodic)
    if isinstance(edges, Integral):
        edges = (edges, edges)
    if len(edges) != 2:
        raise GeomGNNError(f"A map needs one number of bins, or edges for x and for y, but {len(edges)} were given.")
    if inefficiency is None:
        inefficiency = slowest_inefficiency([x, y], logw, periodic)
    return _histogram([x, y], logw, kT, list(edges), list(periodic), inefficiency, n_bootstrap, rng)


def delta_F(
    mask_A: Series,
    mask_B: Series,
    logw: Series,
    kT: float,
    *,
    inefficiency: float | None = None,
    n_bootstrap: int = 500,
    rng: int | np.random.Generator = 0,
) -> FreeEnergyDifference:
    """Estimate F(B) - F(A) = -kT*ln(sum_B w / sum_A w) and its standard error, in kJ/mol.

    mask_A, mask_B: boolean (T,) arrays or lists of (T_w,); no frame may be in both. The correlation time is that of
    the quantity's own fluctuation, w*(1_B/p_B - 1_A/p_A), unless `inefficiency` (frames) is given.

    Where walkers differ by more than the errors of each by itself, the error is as much wider, see
    `resampling.walkers_apart`.

    Returns a FreeEnergyDifference (value, error, reason). The value is nan if a state was never visited; the error is nan
    if the data hold fewer than two independent blocks, or a single block holds all visits to a state.
    """
    _check_kT(kT)
    mask_A, mask_B = as_walkers(mask_A, "mask_A", bool), as_walkers(mask_B, "mask_B", bool)
    weights = relative_weights(logw)
    check_same_lengths(mask_A, weights, "mask_A", "logw")
    check_same_lengths(mask_B, weights, "mask_B", "logw")
    lengths = [len(walker) for walker in weights]
    w, in_A, in_B = np.concatenate(weights), np.concatenate(mask_A), np.concatenate(mask_B)
    if (in_A & in_B).any():
        raise GeomGNNError(f"{np.count_nonzero(in_A & in_B)} frames are in both states. They may not overlap.")
    missing = [name for name, mask in (("A", in_A), ("B", in_B)) if not w[mask].sum() > 0]
    if missing:
        return FreeEnergyDifference(np.nan, np.nan, f"state {' and '.join(missing)} was never visited.")
    value = -kT * np.log(w[in_B].sum() / w[in_A].sum())
    if inefficiency is None:
        change = np.where(in_B, w / w[in_B].sum(), 0.0) - np.where(in_A, w / w[in_A].sum(), 0.0)
        inefficiency = statistical_inefficiency(np.split(change, np.cumsum(lengths)[:-1]))
    blocks = make_blocks(lengths, inefficiency)
    sums = blocks.sums(w, np.where(in_B, 1, np.where(in_A, 0, -1)), 2)
    if blocks.n_blocks < 2:
        reason = f"all frames lie within one correlation time ({inefficiency:.0f} frames): simulate longer."
        return FreeEnergyDifference(float(value), np.nan, reason)
    visits = np.count_nonzero(sums, axis=0)
    rarer = "AB"[int(np.argmin(visits))]
    if visits.min() < 2:
        reason = f"state {rarer} was visited in one stretch only, so the error cannot be known: simulate longer."
        return FreeEnergyDifference(float(value), np.nan, reason)
    replicas = blocks.bootstrap(n_bootstrap, rng) @ sums
    replicas = replicas[(replicas > 0).all(axis=1)]
    if len(replicas) < 2:
        return FreeEnergyDifference(float(value), np.nan, f"{n_bootstrap} bootstrap replicas are too few for an error.")
    error = kT * np.std(np.log(replicas[:, 1] / replicas[:, 0])) * blocks.small_sample_factor
    (_, apart), (_, chance) = walkers_apart(blocks, sums, n_bootstrap, rng)
    error = max(error, kT * apart)
    reason = ""
    if chance < CHANCE:
        reason = (
            "walkers differ by more than the errors of each by itself, and the error bar is as much wider: something that "
            "keeps them apart is too slow for the run. Simulate longer."
        )
    elif visits.min() < 5:
        reason = (
            f"state {rarer} was visited in {visits.min()} of {blocks.n_blocks} independent blocks, so the error bar is "
            "itself a guess. Simulate longer."
        )
    return FreeEnergyDifference(float(value), float(error), reason)


def slowest_inefficiency(variables: Sequence[Series], logw: Series, periodic: Any = None) -> float:
    """Find the largest statistical inefficiency, in frames, of the weights and of the variables under these weights.

    variables: a list of variables, each (T,) or a list of (T_w,); a periodic one (radians) enters by cosine and sine.
    """
    periodic = [False] * len(variables) if periodic is None else periodic
    largest = statistical_inefficiency(relative_weights(logw))
    for variable, is_periodic in zip(variables, periodic, strict=True):
        walkers = as_walkers(variable)
        for function in (np.cos, np.sin) if is_periodic else (np.asarray,):
            largest = max(largest, statistical_inefficiency([function(walker) for walker in walkers], logw))
    return largest


def _histogram(
    variables: Sequence[Sequence[np.ndarray]],
    logw: Series,
    kT: float,
    edges: Sequence[Any],
    periodic: Any,
    inefficiency: float,
    n_bootstrap: int,
    rng: int | np.random.Generator,
) -> FreeEnergy:
    _check_kT(kT)
    weights = relative_weights(logw)
    bins, shape, used_edges = np.zeros(sum(len(walker) for walker in weights), dtype=np.int64), [], []
    outside = np.zeros(len(bins), dtype=bool)
    for variable, edge, is_periodic in zip(variables, edges, periodic, strict=True):
        check_same_lengths(variable, weights, "s", "logw")
        values = np.concatenate(variable)
        if not np.isfinite(values).all():
            raise GeomGNNError(
                f"{np.count_nonzero(~np.isfinite(values))} of {len(values)} values of the variable are not finite. "
                "Look at the trajectory: such a simulation has failed."
            )
        edge = _make_edges(edge, values, is_periodic)
        if is_periodic:
            values = edge[0] + np.mod(values - edge[0], edge[-1] - edge[0])
        index = np.searchsorted(edge, values, side="right") - 1
        index[values == edge[-1]] = len(edge) - 2
        outside |= (index < 0) | (index >= len(edge) - 1)
        bins = bins * (len(edge) - 1) + index
        shape.append(len(edge) - 1)
        used_edges.append(edge)
    bins[outside] = -1
    if outside.all():
        raise GeomGNNError("No frame lies within the given edges. Give edges that cover the data.")
    blocks = make_blocks([len(walker) for walker in weights], inefficiency)
    n_bins = int(np.prod(shape))
    sums = blocks.sums(np.concatenate(weights), bins, n_bins)
    size = np.diff(used_edges[0])
    for edge in used_edges[1:]:
        size = np.multiply.outer(size, np.diff(edge))
    values = _minus_log_density(sums.sum(axis=0)[None], kT)[0] + kT * np.log(size.ravel())
    values -= np.nanmin(values)
    # of the bins of a map most are visited too rarely to compare walkers in them
    error = _bin_errors(blocks, sums, kT, n_bootstrap, rng, compare_walkers=len(variables) == 1)
    return FreeEnergy(tuple(used_edges), values.reshape(shape), error.reshape(shape), blocks.n_blocks, blocks.length)


def _bin_errors(
    blocks: Blocks,
    sums: np.ndarray,
    kT: float,
    n_bootstrap: int,
    rng: int | np.random.Generator,
    compare_walkers: bool,
) -> np.ndarray:
    """Standard deviation of -kT*ln p per bin over the bootstrap; nan for bins that fewer than two blocks visited."""
    error = np.full(sums.shape[1], np.nan)
    # bins that were not visited need no replicas: most of a two-dimensional map is empty
    known = np.flatnonzero(np.count_nonzero(sums, axis=0) >= 2)
    if blocks.n_blocks < 2 or n_bootstrap < 2 or len(known) == 0:
        return error
    counts = blocks.bootstrap(n_bootstrap, rng)
    total = counts @ sums.sum(axis=1)
    replicas = counts @ sums[:, known]
    visited = replicas > 0
    energies = -kT * np.log(np.where(visited, replicas / total[:, None], 1.0))
    n_visited = visited.sum(axis=0)
    mean = energies.sum(axis=0) / np.maximum(n_visited, 1)
    variance = np.sum(np.where(visited, energies - mean, 0.0) ** 2, axis=0) / np.maximum(n_visited, 1)
    error[known] = np.where(n_visited >= 2, np.sqrt(variance) * blocks.small_sample_factor, np.nan)
    return np.maximum(error, kT * walkers_apart(blocks, sums, n_bootstrap, rng)[0]) if compare_walkers else error


def _minus_log_density(sums: np.ndarray, kT: float) -> np.ndarray:
    """-kT*ln of sums normalised along the last axis; nan where a sum is zero."""
    with np.errstate(divide="ignore"):
        energies = -kT * np.log(sums / sums.sum(axis=-1, keepdims=True))
    energies[~np.isfinite(energies)] = np.nan
    return energies


def _make_edges(edges: Any, values: np.ndarray, periodic: Any) -> np.ndarray:
    if np.ndim(edges) == 0:
        n_bins = int(edges)
        if n_bins < 1 or n_bins != edges:
            raise GeomGNNError(f"The number of bins must be a positive integer, but it is {edges}.")
        low, high = (-np.pi, np.pi) if periodic else (float(values.min()), float(values.max()))
        if high <= low:
            low, high = low - 0.5, high + 0.5
        return np.linspace(low, high, n_bins + 1)
    edges = np.asarray(edges, dtype=np.float64)
    if edges.ndim != 1 or len(edges) < 2 or not (np.diff(edges) > 0).all():
        raise GeomGNNError(f"Bin edges must be at least two increasing numbers, but they are {edges.tolist()}.")
    return edges


def _check_kT(kT: float) -> None:
    if not (np.isfinite(kT) and kT > 0):
        raise GeomGNNError(f"kT must be a positive energy in kJ/mol, but it is {kT}. At 300 K it is 2.494339.")
