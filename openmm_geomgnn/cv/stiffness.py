"""How hard a collective variable pulls on the atoms, how far it fluctuates within a basin, and what range it covers."""

from collections.abc import Callable, Sequence
from typing import Any

import mdtraj
import numpy as np
import torch

from openmm_geomgnn.aliases import TopologyLike
from openmm_geomgnn.cv.base import Bound
from openmm_geomgnn.cv.file import SavedCV
from openmm_geomgnn.cv.fit_data import by_part, taken
from openmm_geomgnn.representation.selection import as_topology
from openmm_geomgnn.units import BOLTZMANN, NM_TO_ANGSTROM

GRADIENT_FRAMES = 400  # at which the gradient of a CV is taken
PROFILE_BINS = 20  # parts of a CV's range in which its stiffness is looked at
EVEN_KNOTS = 17  # of an even map
LARGEST_RATIO = 30.0  # of the slopes of an even map
_FEWEST_BINS = 5  # of a component, however many there are
SPREAD_WINDOW = 10.0  # ps; fluctuations within this time count as those of one basin


def stiffness(
    cv: SavedCV,
    topology: TopologyLike,
    positions: Sequence[Any],
    frame_interval: float | Sequence[float],
    values: Sequence[np.ndarray] | None = None,
    progress: Callable[[int, int], None] | None = None,
    *,
    biased: Sequence[bool] | None = None,
) -> dict[str, Any]:
    """How hard a CV pulls on the atoms, and how much it fluctuates within a basin.

    A bias of width sigma on a CV drives motions of angular frequency Omega = rate / sigma; a simulation whose outer step
    dt does not resolve them heats: Omega * dt of 0.5 or less is safe. The frames are those of all values of the CV alike, so
    that a CV that is soft in its basins and steep between them is seen to be steep, if the data have frames there.

    Parameters
    ----------
    positions : list of (F, n, 3) tensors
        Whole molecules in angstrom, frames `frame_interval` ps apart, or those of each trajectory its own number.
    values : list of (F, d) arrays, optional
        The CV at these frames, where it is known already.
    progress : callable, optional
        Called as progress(done, total).
    biased : list of bool, optional
        Which trajectories had a bias: the fluctuation within a basin is that of the others, where there are any.

    Returns
    -------
    dict
        `rate_300K_per_ps`, for each component sqrt(kT * p99(sum_i |ds/dx_i|^2 / m_i)) at 300 K in (CV unit)/ps;
        `rate_profile`, for each component that rate in PROFILE_BINS equal parts of its range, None where there are no
        frames; `in_basin_spread`, for each component the median standard deviation within pieces of 10 ps; `range`, the 1st
        and 99th percentile of each component.
    """
    bound = cv.bind(topology, engine="eager")
    masses = atomic_masses(as_topology(topology), bound.atoms)
    if values is None:
        values = [bound.compute_whole(pos) for pos in positions]
    return stiffness_of(bound, masses, positions, frame_interval, values, progress, biased=biased)


def stiffness_of(
    bound: Bound,
    masses: torch.Tensor,
    positions: Sequence[Any],
    frame_interval: float | Sequence[float],
    values: Sequence[np.ndarray],
    progress: Callable[[int, int], None] | None = None,
    *,
    biased: Sequence[bool] | None = None,
) -> dict[str, Any]:
    """As `stiffness`, of a CV that is bound already to atoms with these masses (n,) in amu."""
    there, rates = rates_along(bound, masses, positions, values, GRADIENT_FRAMES, progress)
    intervals = np.broadcast_to(frame_interval, len(values))
    free = [not one for one in biased or []]
    resting = [k for k in range(len(values)) if not any(free) or free[k]]
    spreads = [
        part.std(axis=0)
        for k in resting
        for part in np.array_split(values[k], max(1, len(values[k]) // max(2, round(SPREAD_WINDOW / intervals[k]))))
        if len(part) > 1
    ]
    low, high = np.percentile(np.concatenate(values), [1, 99], axis=0)
    return {
        "rate_300K_per_ps": np.quantile(rates, 0.99, axis=0).tolist(),
        "rate_profile": [_profile(*columns) for columns in zip(there.T, rates.T, low, high, strict=True)],
        "in_basin_spread": np.median(spreads, axis=0).tolist(),
        "range": [[float(a), float(b)] for a, b in zip(low, high, strict=True)],
    }


def thermal_rates(
    bound: Bound, positions: torch.Tensor, masses: torch.Tensor, progress: Callable[[int, int], None] | None = None
) -> torch.Tensor:
    """How fast thermal motion changes each component: sqrt(kT * sum_i |ds/dx_i|^2 / m_i) at 300 K, (F, d), per ps.

    Parameters
    ----------
    bound : Bound
    positions : (F, n, 3) float64 tensor
        Whole molecules in angstrom.
    masses : (n,) tensor
        amu.
    progress : callable, optional
        Called as progress(done, total).
    """
    squared: list[torch.Tensor] = []
    for frames in positions.split(bound.frames_per_pass):
        frames = frames.clone().requires_grad_(True)
        psi = bound(frames)
        rows = []
        for component in range(bound.dimension):
            (gradient,) = torch.autograd.grad(psi[:, component].sum(), frames, retain_graph=True)
            rows.append(((NM_TO_ANGSTROM * gradient).square().sum(2) / masses).sum(1))  # 1/nm^2/amu
        squared.append(BOLTZMANN * 300.0 * torch.stack(rows, 1))
        if progress is not None:
            progress(sum(map(len, squared)), len(positions))
    return torch.cat(squared).sqrt()


def rates_along(
    bound: Bound,
    masses: torch.Tensor,
    positions: Sequence[Any],
    values: Sequence[np.ndarray],
    number: int,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The values, (K, d), and the `thermal_rates` there, (K, d), at about `number` frames of `frames_along`.

    positions: list of (F, n, 3) tensors, whole molecules in angstrom. values: list of (F, d) arrays, along which the frames
    are chosen.
    """
    sample = frames_along(values, number)
    rates = thermal_rates(bound, taken(positions, sample), masses, progress).numpy()
    return np.concatenate([value[here.numpy()] for value, here in zip(values, sample, strict=True)]), rates


def frames_along(values: Sequence[np.ndarray], number: int) -> list[torch.Tensor]:
    """Numbers of about `number` frames, spread over the values (F, d) of the CV and over time: a tensor for each part.

    Half of them are evenly spaced in time; of the others each component has the same share, spread over its range. Many
    components share them in fewer parts of their ranges.
    """
    together = np.concatenate(values)
    chosen = [np.linspace(0, len(together) - 1, min(number // 2, len(together))).astype(int)]
    share = max(_FEWEST_BINS, number // 2 // together.shape[1])
    bins = min(PROFILE_BINS, share)
    for column in together.T:
        order = np.argsort(column, kind="stable")
        edges = np.linspace(column[order[0]], column[order[-1]], bins + 1)
        for part in np.split(order, np.searchsorted(column[order], edges[1:-1])):
            if len(part):
                chosen.append(part[np.linspace(0, len(part) - 1, min(share // bins, len(part))).astype(int)])
    return by_part(torch.from_numpy(np.unique(np.concatenate(chosen))), [len(value) for value in values])


def even_slopes(values: np.ndarray, rates: np.ndarray, low: float, high: float) -> np.ndarray:
    """Slopes (K,) at equidistant knots from `low` to `high` of the map that evens the mean rate along a component.

    Parameters
    ----------
    values, rates : (F,) array
        A component at some frames, and its `thermal_rates` there.
    low, high : float

    Notes
    -----
    The slope is one over the mean rate near a knot. Where there are no frames, the rate is taken to change exponentially
    from one knot with frames to the next; the ratio of the largest slope to the smallest is at most LARGEST_RATIO.
    """
    knots = np.linspace(low, high, EVEN_KNOTS)
    distance = (values[None] - knots[:, None]) / (knots[1] - knots[0])
    weights = np.maximum(1 - np.abs(distance), 0.0)  # a hat around each knot
    total = weights.sum(axis=1)
    known = total > 0.5
    if not known.any():
        return np.ones(EVEN_KNOTS)
    log_rate = np.log(np.maximum((weights @ rates)[known] / total[known], np.finfo(float).tiny))
    log_rate = np.interp(np.arange(EVEN_KNOTS), np.flatnonzero(known), log_rate)
    middle = np.median(log_rate)
    half = 0.5 * np.log(LARGEST_RATIO)
    return np.exp(-np.clip(log_rate - middle, -half, half))


def _profile(values: np.ndarray, rates: np.ndarray, low: float, high: float) -> list[float | None]:
    """The 99th percentile of the rate in equal parts of the range; None where there are no frames."""
    number = np.clip((values - low) / max(high - low, np.finfo(float).tiny) * PROFILE_BINS, 0, PROFILE_BINS - 1).astype(int)
    parts = [rates[number == k] for k in range(PROFILE_BINS)]
    return [float(np.quantile(part, 0.99)) if len(part) else None for part in parts]


def atomic_masses(topology: mdtraj.Topology, atoms: np.ndarray) -> torch.Tensor:
    """(n,) float64 tensor of the elements' masses in amu."""
    return torch.tensor([topology.atom(int(index)).element.mass for index in atoms], dtype=torch.float64)
