"""How hard a collective variable pulls on the atoms, how far it fluctuates within a basin, and what range it covers."""

from collections.abc import Callable, Sequence
from typing import Any

import mdtraj
import numpy as np
import torch

from openmm_geomgnn.aliases import TopologyLike
from openmm_geomgnn.cv.file import SavedCV
from openmm_geomgnn.cv.fit_data import evenly
from openmm_geomgnn.representation.selection import as_topology
from openmm_geomgnn.units import BOLTZMANN, NM_TO_ANGSTROM

GRADIENT_FRAMES = 200  # at which the gradient of a CV is taken
SPREAD_WINDOW = 10.0  # ps; fluctuations within this time count as those of one basin


def stiffness(
    cv: SavedCV,
    topology: TopologyLike,
    positions: Sequence[Any],
    frame_interval: float,
    values: Sequence[np.ndarray] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """How hard a CV pulls on the atoms, and how much it fluctuates within a basin.

    A bias of width sigma on a CV drives motions of angular frequency Omega = rate / sigma; a simulation whose outer step
    dt does not resolve them heats: Omega * dt of 0.5 or less is safe.

    Parameters
    ----------
    positions : list of (F, n, 3) tensors
        Whole molecules in angstrom, frames `frame_interval` ps apart.
    values : list of (F, d) arrays, optional
        The CV at these frames, where it is known already.
    progress : callable, optional
        Called as progress(done, total).

    Returns
    -------
    dict
        `rate_300K_per_ps`, for each component sqrt(kT * p99(sum_i |ds/dx_i|^2 / m_i)) at 300 K in (CV unit)/ps;
        `in_basin_spread`, for each component the median standard deviation within pieces of 10 ps; `range`, the 1st and
        99th percentile of each component.
    """
    bound = cv.bind(topology, engine="eager")
    masses = atomic_masses(as_topology(topology), bound.atoms)
    sample = evenly(positions, GRADIENT_FRAMES)
    squared_rates = []
    for frames in sample.split(bound.frames_per_pass):
        frames = frames.clone().requires_grad_(True)
        psi = bound(frames)
        rows = []
        for component in range(cv.dimension):
            (gradient,) = torch.autograd.grad(psi[:, component].sum(), frames, retain_graph=True)
            rows.append(((NM_TO_ANGSTROM * gradient).square().sum(2) / masses).sum(1))  # 1/nm^2/amu
        squared_rates.append(BOLTZMANN * 300.0 * torch.stack(rows, 1))
        if progress is not None:
            progress(sum(map(len, squared_rates)), len(sample))
    rates = torch.quantile(torch.cat(squared_rates), 0.99, dim=0).sqrt()
    if values is None:
        values = [bound.compute_whole(pos) for pos in positions]
    piece = max(2, round(SPREAD_WINDOW / frame_interval))
    spreads = [
        part.std(axis=0) for value in values for part in np.array_split(value, max(1, len(value) // piece)) if len(part) > 1
    ]
    low, high = np.percentile(np.concatenate(values), [1, 99], axis=0)
    return {
        "rate_300K_per_ps": rates.tolist(),
        "in_basin_spread": np.median(spreads, axis=0).tolist(),
        "range": [[float(a), float(b)] for a, b in zip(low, high, strict=True)],
    }


def atomic_masses(topology: mdtraj.Topology, atoms: np.ndarray) -> torch.Tensor:
    """(n,) float64 tensor of the elements' masses in amu."""
    return torch.tensor([topology.atom(int(index)).element.mass for index in atoms], dtype=torch.float64)
