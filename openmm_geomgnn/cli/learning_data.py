"""Everything that was simulated of a molecule so far, to learn from: unbiased runs, what was explored, biased rounds."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mdtraj
import numpy as np

from openmm_geomgnn.cli.biased_runs import read_biased
from openmm_geomgnn.cli.settings.biased import BiasedRuns
from openmm_geomgnn.representation.rotatable import rotatable_torsions
from openmm_geomgnn.sampling.explore import Explored


@dataclass(frozen=True, eq=False)
class LearningData:
    """Trajectories of one molecule.

    Attributes
    ----------
    topology : mdtraj.Topology
    trajectories : list of mdtraj.Trajectory
    frame_intervals : list of float
        ps.
    biases : list of (F,) ndarray or None
        kJ/mol; None where there was no bias.
    lagtime : float
        ps; trajectories that are no longer are left out.
    """

    topology: mdtraj.Topology
    trajectories: list[mdtraj.Trajectory]
    frame_intervals: list[float]
    biases: list[np.ndarray | None]
    lagtime: float

    @classmethod
    def of_runs(cls, runs: Sequence[mdtraj.Trajectory], frame_interval: float, lagtime: float) -> "LearningData":
        """Unbiased runs with so many ps between frames."""
        return cls(runs[0].topology, list(runs), [frame_interval] * len(runs), [None] * len(runs), lagtime)

    @property
    def unbiased(self) -> list[bool]:
        """Which trajectories had no bias."""
        return [bias is None for bias in self.biases]

    def with_explored(self, explored: Sequence[Explored]) -> "LearningData":
        """With the trajectories that were explored, which count as biased; conformers are none."""
        moving = [one for one in explored if one.frame_interval is not None]
        return self._with(
            [one.trajectory(self.topology) for one in moving],
            [float(one.frame_interval or 0) for one in moving],
            [np.zeros(len(one)) if one.bias is None else one.bias for one in moving],
        )

    def with_unbiased(self, runs: Sequence[mdtraj.Trajectory], frame_interval: float) -> "LearningData":
        """With further unbiased runs with so many ps between frames."""
        return self._with(runs, [frame_interval] * len(runs), [None] * len(runs))

    def with_run(self, folder: Path) -> "LearningData":
        """With the biased run in a folder, less its start, which its report leaves out too."""
        walkers = read_biased([BiasedRuns.model_construct(run=folder)], self.topology)
        return self._with(
            [one.trajectory for one in walkers], [one.frame_interval for one in walkers], [one.bias for one in walkers]
        )

    def _with(
        self, trajectories: Sequence[mdtraj.Trajectory], intervals: Sequence[float], biases: Sequence[np.ndarray | None]
    ) -> "LearningData":
        every = zip(trajectories, intervals, biases, strict=True)
        long = [one for one in every if (len(one[0]) - 1) * one[1] > self.lagtime]
        return replace(
            self,
            trajectories=[*self.trajectories, *(one[0] for one in long)],
            frame_intervals=[*self.frame_intervals, *(one[1] for one in long)],
            biases=[*self.biases, *(one[2] for one in long)],
        )

    def torsions(self) -> tuple[Sequence[str], list[np.ndarray]]:
        """Names and values (F, T) in radians of all torsions in every trajectory; none of a molecule without bonds."""
        if not self.topology.n_bonds:
            return (), [np.zeros((len(one), 0)) for one in self.trajectories]
        torsions = rotatable_torsions(self.topology)
        return torsions.names, [torsions.compute(one) for one in self.trajectories]

    def stride(self, frames: int) -> int:
        """The step between frames with which at most about so many are left of all trajectories together."""
        return max(1, math.ceil(sum(map(len, self.trajectories)) / frames))

    def fit_arguments(self) -> dict[str, Any]:
        """Biases and intervals, as `fit_cv` takes them; none where they say nothing."""
        if all(self.unbiased) and len(set(self.frame_intervals)) <= 1:
            return {}
        return {"biases": self.biases, "frame_intervals": self.frame_intervals}


def spread_starts(data: LearningData, number: int) -> list[int]:
    """The first `number` trajectories in an order in which each is as far from those before as possible.

    The first remains the first; distances are those of the mean cosines and sines of all torsions.
    """
    _, torsions = data.torsions()
    places = np.array([_mean_direction(part) for part in torsions[:number]])
    order = [0]
    while len(order) < number:
        away = np.linalg.norm(places[:, None] - places[order], axis=2).min(axis=1)
        away[order] = -1.0
        order.append(int(away.argmax()))
    return order


def _mean_direction(torsions: np.ndarray) -> np.ndarray:
    """The mean cosine and sine of each torsion of one trajectory, (2 T,)."""
    return np.concatenate([np.cos(torsions).mean(axis=0), np.sin(torsions).mean(axis=0)])
