"""Conformations near and between those of a simulation, for a teacher to label: displaced, or turned about bonds.

A bias drives a simulation to where the data it was learned from have nothing. The teacher can be asked there.
"""

from collections.abc import Iterable, Sequence

import numpy as np

from openmm_geomgnn.cv.students.coordinates import bonded, rotatable_bonds

FLEXIBLE = 0.25  # rad: bonds are turned whose torsions spread more than this in the data; amides spread less
MOST_TURNS = 2  # of one conformation
_CLOSEST = 0.9  # times the shortest distance, in the data, of atoms that are three or more bonds apart
_FRAMES = 500  # that spreads and distances are measured on
_ROUNDS = 5  # attempts at turning frames without putting atoms on top of one another


class Moves:
    """Makes conformations from the frames of a simulation.

    Parameters
    ----------
    bonds : iterable of (a, b)
        Rows of atoms.
    frames : (F, n, 3) float64 ndarray
        Whole molecules, angstrom.
    displacement : float
        Standard deviation of each coordinate of an atom that is displaced, angstrom.
    seed : int

    Attributes
    ----------
    turnable : list of (a, b, rows)
        As of `coordinates.rotatable_bonds`: those about which the frames differ.
    """

    def __init__(self, bonds: Iterable[tuple[int, int]], frames: np.ndarray, displacement: float, seed: int) -> None:
        self.displacement = displacement
        self._frames = frames
        self._rng = np.random.default_rng(seed)
        sample = frames[np.unique(np.linspace(0, len(frames) - 1, min(_FRAMES, len(frames))).round().astype(int))]
        n_atoms = frames.shape[1]
        partners = bonded(bonds, n_atoms)
        self.turnable = [
            (a, b, rows) for a, b, rows in rotatable_bonds(bonds, n_atoms) if _spread(sample, partners, a, b) > FLEXIBLE
        ]
        near = {(a, c) for a in range(n_atoms) for b in partners[a] for c in (b, *partners[b])}
        self._apart = np.array([(i, j) for i in range(n_atoms) for j in range(i + 1, n_atoms) if (i, j) not in near])
        self._apart = self._apart.reshape(-1, 2)
        self._closest = _CLOSEST * self._shortest(sample).min()

    def displaced(self, frames: np.ndarray) -> np.ndarray:
        """(F, n, 3): every atom displaced at random."""
        return frames + self.displacement * self._rng.normal(size=frames.shape)

    def turned(self, number: int) -> np.ndarray:
        """At most `number` frames (K, n, 3), each turned about one or two bonds by any angle; no atoms on top of others."""
        kept = [self._frames[:0]]
        for _ in range(_ROUNDS if self.turnable else 0):
            missing = number - sum(map(len, kept))
            if missing > 0:
                made = np.stack([self._turn(frame) for frame in self.drawn(missing)])
                kept.append(made[self._shortest(made) > self._closest])
        return np.concatenate(kept)

    def drawn(self, number: int) -> np.ndarray:
        """(number, n, 3) frames drawn at random, all of them once before any of them twice."""
        rounds = -(-number // len(self._frames))
        order = np.concatenate([self._rng.permutation(len(self._frames)) for _ in range(rounds)])
        return self._frames[order[:number]]

    def _turn(self, pos: np.ndarray) -> np.ndarray:
        pos = pos.copy()
        for _ in range(self._rng.integers(1, MOST_TURNS + 1)):
            a, b, rows = self.turnable[self._rng.integers(len(self.turnable))]
            axis, angle = pos[b] - pos[a], self._rng.uniform(-np.pi, np.pi)
            axis /= np.linalg.norm(axis)
            arms = pos[rows] - pos[b]
            # the formula of Rodrigues
            along = np.outer(arms @ axis, axis) * (1.0 - np.cos(angle))
            pos[rows] = pos[b] + arms * np.cos(angle) + np.cross(axis, arms) * np.sin(angle) + along
        return pos

    def _shortest(self, frames: np.ndarray) -> np.ndarray:
        if len(self._apart) == 0:
            return np.full(len(frames), np.inf)
        first, second = self._apart.T
        return np.array([np.linalg.norm(pos[first] - pos[second], axis=1).min() for pos in frames])


def _spread(frames: np.ndarray, partners: Sequence[Sequence[int]], a: int, b: int) -> float:
    """Circular standard deviation, rad, of one torsion about a bond; the others about it turn with it."""
    i, k = next(x for x in partners[a] if x != b), next(x for x in partners[b] if x != a)
    p, q, r = (frames[:, y] - frames[:, x] for x, y in ((i, a), (a, b), (b, k)))
    m, n = np.cross(p, q), np.cross(q, r)
    angle = np.arctan2(np.linalg.norm(q, axis=1) * (p * n).sum(1), (m * n).sum(1))
    length = min(abs(np.exp(1j * angle).mean()), 1.0)
    return np.sqrt(-2.0 * np.log(max(length, 1e-12)))
