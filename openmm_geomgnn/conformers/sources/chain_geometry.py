"""Torsions of chain molecules, and rotations about them."""

from typing import TYPE_CHECKING, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from openmm import app

Torsion: TypeAlias = tuple[int, int, np.ndarray]  # atoms b and c, and the atoms that turn with c


def bond_distances(n_atoms: int, bonds: np.ndarray) -> np.ndarray:
    """Count the bonds on the shortest path between any two atoms, (n, n); 4 for all that are further apart."""
    adjacent = np.eye(n_atoms, dtype=int)
    adjacent[bonds[:, 0], bonds[:, 1]] = adjacent[bonds[:, 1], bonds[:, 0]] = 1
    reach = np.eye(n_atoms, dtype=int)
    distance = np.full((n_atoms, n_atoms), 4)
    for step in range(4):
        distance = np.minimum(distance, np.where(reach > 0, step, 4))
        reach = reach @ adjacent
    return distance


def rotatable_bonds(topology: "app.Topology", bonds: np.ndarray) -> list[Torsion]:
    """Find the torsions to randomise, as (atom b, atom c, the atoms that turn with c): no rings, no amide bonds.

    Parameters
    ----------
    topology : openmm.app.Topology
    bonds : (B, 2) int
    """
    atoms = list(topology.atoms())
    neighbours: list[set[int]] = [set() for _ in atoms]
    for b, c in bonds:
        neighbours[b].add(c)
        neighbours[c].add(b)
    heavy = [sum(atoms[j].element.atomic_number > 1 for j in near) for near in neighbours]
    found = []
    for b, c in sorted(map(tuple, np.sort(bonds, axis=1).tolist())):
        stiff = {atoms[b].name, atoms[c].name} in ({"C", "N"}, {"NE", "CZ"})
        hydrogen = 1 in (atoms[b].element.atomic_number, atoms[c].element.atomic_number)
        if stiff or hydrogen or min(heavy[b], heavy[c]) < 2:
            continue
        side, grow = {c}, [c]
        while grow:
            a = grow.pop()
            new = neighbours[a] - side - ({b} if a == c else set())
            side |= new
            grow += new
        if b not in side:
            found.append((b, c, np.array(sorted(side))))
    return found


def rotate(pos: np.ndarray, b: int, c: int, side: np.ndarray, angle: float) -> np.ndarray:
    """Turn the atoms `side` of pos (N, 3) about the axis b-c by `angle` (radians); returns a new array."""
    axis = pos[c] - pos[b]
    axis /= np.linalg.norm(axis)
    arm = pos[side] - pos[c]
    along = np.outer(arm @ axis, axis)
    pos = pos.copy()
    pos[side] = pos[c] + along + (arm - along) * np.cos(angle) + np.cross(axis, arm) * np.sin(angle)
    return pos


def random_torsions(
    reference: np.ndarray,
    torsions: list[Torsion],
    apart: np.ndarray,
    rng: np.random.Generator,
    clash: float,
    attempts: int = 200,
) -> np.ndarray:
    """Randomise every torsion of the reference geometry (N, 3) nm, without clashes if an attempt has none.

    Parameters
    ----------
    torsions : list
        As returned by `rotatable_bonds`.
    apart : (N, N) bool
        Pairs of atoms that must not clash.
    clash : float
        Shortest allowed distance between those, nm.
    """
    best, best_gap = reference, -1.0
    for _ in range(attempts):
        pos = reference
        for torsion in torsions:
            pos = rotate(pos, *torsion, rng.uniform(0, 2 * np.pi))
        gap = np.linalg.norm(pos[:, None] - pos[None], axis=2)[apart].min()
        if gap > best_gap:
            best, best_gap = pos, gap
        if gap > clash:
            break
    return best
