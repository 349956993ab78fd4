"""Positions of the selected atoms; molecules cut by the periodic box are made whole along their bonds."""

import itertools
from collections import deque
from collections.abc import Iterable
from typing import Any

import mdtraj
import numpy as np
import numpy.typing as npt
import torch

from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.pickling import pickled_as
from openmm_geomgnn.representation.matching import AtomMatcher
from openmm_geomgnn.units import NM_TO_ANGSTROM

_SHIFTS = np.array(sorted(itertools.product((-1.0, 0.0, 1.0), repeat=3), key=np.linalg.norm))  # none first


@pickled_as("molecule unwrapper")
class MoleculeUnwrapper:
    """Moves atoms by whole box vectors so that bonded atoms are neighbours in space.

    Parameters
    ----------
    topology : mdtraj.Topology
        Bonds between the selected atoms say what belongs together. Groups of atoms without a bond between them (several
        chains, or a selection with gaps) are joined by the minimum image: at a pair of `near`, else at their first atoms.
    atoms : (n,) int
        The selected atoms.
    near : list of (a, b), optional
        Rows of atoms that are near each other wherever the molecules of a complex move, see `Windows.contacts`.

    Notes
    -----
    Only multiples of the box vectors are added, so derivatives with respect to the positions are unchanged.
    """

    def __init__(self, topology: mdtraj.Topology, atoms: np.ndarray, near: Iterable[tuple[int, int]] = ()) -> None:
        row = {int(index): k for k, index in enumerate(atoms)}
        partners: list[list[int]] = [[] for _ in row]
        companions: list[list[int]] = [[] for _ in row]
        for a, b in near:
            companions[a].append(b)
            companions[b].append(a)
        for bond in topology.bonds:
            one, other = row.get(bond[0].index), row.get(bond[1].index)
            if one is not None and other is not None:
                partners[one].append(other)
                partners[other].append(one)
        # breadth first: level k holds (child, parent) with every parent placed in an earlier level
        levels: list[tuple[list[int], list[int]]] = []
        seen = np.zeros(len(row), dtype=bool)
        previous_root: int | None = None
        for root in range(len(row)):
            waiting: deque[tuple[int, int | None]] = deque(
                [(root, previous_root)]
            )  # the first atoms of groups, and what they are joined to
            previous_root = previous_root if seen[root] else root
            while waiting:
                first, joined_to = waiting.popleft()
                if seen[first]:
                    continue
                seen[first] = True
                if joined_to is not None:
                    levels.append(([first], [joined_to]))
                front = [first]
                while front:
                    children, parents = [], []
                    for parent in front:
                        waiting.extend((companion, parent) for companion in companions[parent])
                        for child in partners[parent]:
                            if not seen[child]:
                                seen[child] = True
                                children.append(child)
                                parents.append(parent)
                    if children:
                        levels.append((children, parents))
                    front = children
        self.levels = [(np.array(children), np.array(parents)) for children, parents in levels]
        none = np.zeros(0, dtype=int)
        self._children = np.concatenate([none, *(children for children, _ in self.levels)])
        self._parents = np.concatenate([none, *(parents for _, parents in self.levels)])

    def __call__(self, pos: npt.ArrayLike, box: npt.ArrayLike) -> np.ndarray:
        """Whole molecules.

        Parameters
        ----------
        pos : (n, 3) or (F, n, 3)
        box : (3, 3) or (F, 3, 3)
            Reduced box vectors, as rows, in the same unit; zeros mean that there is no box.
        """
        box = np.asarray(box, dtype=np.float64)
        if not box.any():
            return np.asarray(pos)
        pos = np.asarray(pos)
        apart = pos[..., self._children, :] - pos[..., self._parents, :]
        moves = minimum_image(apart, box) - apart
        if not moves.any():
            return pos
        moved, start = np.zeros(pos.shape, dtype=pos.dtype), 0
        for children, parents in self.levels:
            moved[..., children, :] = moved[..., parents, :] + moves[..., start : start + len(children), :]
            start += len(children)
        return pos + moved


def minimum_image(delta: np.ndarray, box: np.ndarray) -> np.ndarray:
    """The shortest of the vectors that differ from `delta` (..., m, 3) by multiples of the box vectors.

    Parameters
    ----------
    box : (..., 3, 3)
        Reduced box vectors, as rows.
    """
    # A vector within the largest ball in the brick that the diagonal of the box spans is the shortest. Rounding takes
    # any vector into the brick, but outside the ball an oblique box may have a nearer image across another face.
    limit = 0.25 * np.einsum("...kk->...k", box).min(axis=-1)[..., None] ** 2
    if ((delta * delta).sum(axis=-1) <= limit).all():
        return delta
    for k in (2, 1, 0):
        rows = box[..., None, k, :]
        delta = delta - np.round(delta[..., k : k + 1] / rows[..., k : k + 1]) * rows
    far = (delta * delta).sum(axis=-1) > limit
    if far.any():
        images = delta[far][:, None] + _SHIFTS @ np.broadcast_to(box[..., None, :, :], (*far.shape, 3, 3))[far]
        delta[far] = images[np.arange(len(images)), (images * images).sum(axis=-1).argmin(axis=-1)]
    return delta


@pickled_as("molecule")
class SelectedMolecule:
    """The selected atoms of a system: how they hang together, and their positions from whatever users hold them in.

    Parameters
    ----------
    topology : mdtraj.Topology
        Of the whole system.
    atoms : (n,) int
    near : list of (a, b), optional
        As in `MoleculeUnwrapper`.

    Attributes
    ----------
    atoms : (n,) int
    topology : mdtraj.Topology
        Of the selected atoms alone, see `selected_part`.
    n_atoms_total : int
        Atoms of the whole system.
    make_whole : MoleculeUnwrapper
    """

    def __init__(self, topology: mdtraj.Topology, atoms: np.ndarray, near: Iterable[tuple[int, int]] = ()) -> None:
        self.atoms = atoms
        self.topology = selected_part(topology, atoms)
        self.n_atoms_total = topology.n_atoms
        self._matcher = AtomMatcher(topology, atoms)
        self.make_whole = MoleculeUnwrapper(topology, atoms, near)

    def rows(self, topology: mdtraj.Topology) -> np.ndarray:
        """Indices (n,) of the selected atoms in the topology of a trajectory; a GeomGNNError says what does not fit."""
        return self._matcher.rows(topology)

    def positions(self, trajectory: mdtraj.Trajectory | npt.ArrayLike, boxes: npt.ArrayLike | None = None) -> torch.Tensor:
        """Whole molecules (F, n, 3) in angstrom, float64 tensor.

        Parameters
        ----------
        trajectory : mdtraj.Trajectory, or (F, N, 3) or (N, 3) array or Quantity
            Of all N atoms of the system; bare numbers are nm. The atoms of an mdtraj trajectory are found by its own
            topology, see `matching.AtomMatcher`: their order, and solvent around them, do not matter.
        boxes : (F, 3, 3) or (3, 3) array or Quantity, optional
            Periodic box vectors, as rows, of a trajectory that does not hold them: one box for each frame, or one for all.

        Raises
        ------
        GeomGNNError
            If the atoms do not fit, positions are not finite, or boxes make no sense.
        """
        rows, n_atoms = self.atoms, self.n_atoms_total
        if isinstance(trajectory, mdtraj.Trajectory):
            pos, box = trajectory.xyz, trajectory.unitcell_vectors
            if trajectory.topology is not None:
                rows, n_atoms = self.rows(trajectory.topology), trajectory.n_atoms
            if box is not None and boxes is not None:
                raise GeomGNNError("The trajectory has boxes of its own, so boxes would contradict it. Leave boxes out.")
        else:
            pos, box = _in_nm(trajectory), None
            pos = pos[None] if pos.ndim == 2 else pos
        if pos.ndim != 3 or pos.shape[1:] != (n_atoms, 3):
            raise GeomGNNError(
                f"Positions of shape {pos.shape} do not fit this topology of {self.n_atoms_total} atoms. Give an mdtraj "
                "trajectory or positions (frames, atoms, 3) in nm of the whole system that the topology describes."
            )
        if boxes is not None:
            box = _checked_boxes(_in_nm(boxes), len(pos))
        pos = pos[:, rows].astype(np.float64)
        bad = ~np.isfinite(pos).all(axis=(1, 2))
        if bad.any():
            raise GeomGNNError(
                f"{bad.sum()} of {len(pos)} frames have positions that are not finite, the first is frame "
                f"{np.flatnonzero(bad)[0]}. Remove them, or repair the run they come from."
            )
        if box is not None:
            pos = self.make_whole(pos, box)
        return torch.as_tensor(pos * NM_TO_ANGSTROM)


def _in_nm(numbers: Any) -> np.ndarray:
    if hasattr(numbers, "value_in_unit"):
        from openmm import unit

        numbers = numbers.value_in_unit(unit.nanometer)
    return np.asarray(numbers)


def _checked_boxes(boxes: np.ndarray, count: int) -> np.ndarray:
    """Boxes (3, 3) or (count, 3, 3); a GeomGNNError says what they lack."""
    if boxes.shape not in ((3, 3), (count, 3, 3)):
        raise GeomGNNError(
            f"Boxes of shape {boxes.shape} do not fit {count} frames. Give the box vectors as rows, in nm: (3, 3) for all "
            f"frames alike, or ({count}, 3, 3), a box for each."
        )
    diagonal, upper = np.einsum("...kk->...k", boxes), boxes[..., [0, 0, 1], [1, 2, 2]]
    if not (np.isfinite(boxes).all() and (diagonal > 0).all() and not upper.any()):
        raise GeomGNNError(
            "The boxes are not those of OpenMM: their vectors are rows, in nm, the first along x, the second in the xy "
            "plane. Give what `State.getPeriodicBoxVectors` or `mdtraj.Trajectory.unitcell_vectors` returns."
        )
    return boxes


def selected_part(topology: mdtraj.Topology, atoms: np.ndarray) -> mdtraj.Topology:
    """The topology of the selected atoms alone, with the bonds between them: all of a topology that a CV needs.

    Of residues without selected atoms one is left, empty, wherever there are some between two others, so that residues
    with nothing between them stay the only ones with consecutive indices.

    Parameters
    ----------
    topology : mdtraj.Topology
    atoms : (n,) int, sorted
    """
    part, chain, residue, before, new = mdtraj.Topology(), None, None, None, {}
    for index in atoms:
        atom = topology.atom(int(index))
        if before is None or atom.residue.chain is not before.chain:
            chain = part.add_chain(atom.residue.chain.chain_id)
        elif atom.residue.index > before.index + 1:
            part.add_residue("", chain)
        if atom.residue is not before:
            before = atom.residue
            residue = part.add_residue(before.name, chain, before.resSeq, before.segment_id)
        new[atom.index] = part.add_atom(atom.name, atom.element, residue, serial=atom.serial)
    for bond in topology.bonds:
        if bond[0].index in new and bond[1].index in new:
            part.add_bond(new[bond[0].index], new[bond[1].index], type=bond.type, order=bond.order)
    return part
