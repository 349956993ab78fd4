"""From a topology to the fixed graphs that the encoder sees.

Everything here is made once, before a simulation: which windows around which residue, which pairs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import mdtraj
import numpy as np

from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.representation.reference import contacts
from openmm_geomgnn.representation.selection import Polymers
from openmm_geomgnn.representation.spec import RADIUS
from openmm_geomgnn.units import did_you_mean

_POLYMER_BONDS = ({"C", "N"}, {"O", "P"})  # peptide and phosphodiester


@dataclass(frozen=True)
class Windows:
    """The graphs of one molecule.

    Attributes
    ----------
    z : (n,) int64
        Atomic numbers of the selected atoms.
    rows : (M,) int64
        Window atoms: indices into the selected atoms, all windows one after the other.
    graph : (M,) int64
        The window of each window atom.
    token : (M,) int64
        Residue to whose token a window atom contributes, or -1 for its neighbours.
    pairs : two (P,) int64
        All pairs i < j of window atoms that share a window, window by window.
    n_tokens : int
    neighbours : list of lists of int, or None
        The residues in each residue's window, itself among them, numbered as in `selection.residue_table`; None where all
        atoms are one graph. It is all that `make_windows` needs to make the same windows again.
    """

    z: np.ndarray
    rows: np.ndarray
    graph: np.ndarray
    token: np.ndarray
    pairs: tuple[np.ndarray, np.ndarray] = field(repr=False)
    n_tokens: int = 0
    neighbours: list[list[int]] | None = field(default=None, repr=False)

    @property
    def n_atoms(self) -> int:
        """Number of selected atoms."""
        return len(self.z)

    @property
    def n_graphs(self) -> int:
        """Number of windows."""
        return int(self.graph[-1]) + 1

    @property
    def contacts(self) -> list[tuple[int, int]]:
        """Pairs (a, b) of the first selected atoms of residues that share a window, for `periodic.MoleculeUnwrapper`."""
        own = self.token >= 0
        first = self.rows[own][np.unique(self.token[own], return_index=True)[1]].tolist()
        return [(first[k], first[m]) for k, near in enumerate(self.neighbours or ()) for m in near if m > k]


def make_windows(
    topology: mdtraj.Topology,
    atoms: np.ndarray,
    window: str = "all",
    context: int = 1,
    radius: float = RADIUS,
    reference: mdtraj.Trajectory | None = None,
    neighbours: list[list[int]] | None = None,
) -> Windows:
    """Windows over the residues of the selected atoms.

    Parameters
    ----------
    window : {"all", "sequence", "space"}
        One graph of all selected atoms, or one per residue: its own atoms and those of residues near it, in sequence or in
        the space of a reference structure.
    context : int
        k, of `sequence`: residues up to k peptide or phosphodiester bonds away, around the ring of a cyclic molecule too.
        Disulfides do not count, so a ligand has a window of its own. Where a topology has no bonds for a residue, adjacent
        residues of a chain are neighbours if their numbers follow. Residues without selected atoms count as steps.
    radius : float
        nm, of `space`: residues with a selected atom this close to one of the residue's.
    reference : mdtraj.Trajectory, optional
        For `space`: its first frame, of the selected atoms alone (any order within a residue); chains are near by the
        minimum image if it has a box.
    neighbours : list of lists of int, optional
        As in `Windows`: takes the place of `context`, `radius` and `reference`.

    Raises
    ------
    GeomGNNError
        If `window` is not known, `context` or `radius` make no sense, `space` has no reference, or there is one atom only.
    """
    if len(atoms) == 1:
        raise GeomGNNError(
            f"The selection is a single atom, {topology.atom(int(atoms[0]))}, which has no shape that a collective variable "
            "could see. Select several atoms of one molecule."
        )
    residues, own = _residues(topology, atoms)
    if neighbours is None:
        neighbours = _kind(window)(topology, residues, own, context, radius, reference)
    elif len(neighbours) != len(residues):
        raise GeomGNNError(
            f"There are windows for {len(neighbours)} residues, but the selection has {len(residues)}. Make the windows "
            "again for this selection."
        )
    if neighbours is None:
        rows, graph = [np.arange(len(atoms))], np.zeros(len(atoms), dtype=np.int64)
        token = [np.concatenate([np.full(len(part), k) for k, part in enumerate(own)])]
    else:
        rows = [np.concatenate([own[m] for m in near]) for near in neighbours]
        token = [np.full(len(own[m]), k if m == k else -1) for k, near in enumerate(neighbours) for m in near]
        graph = np.repeat(np.arange(len(rows)), [len(part) for part in rows])
    return Windows(
        z=np.array([topology.atom(int(index)).element.number for index in atoms], dtype=np.int64),
        rows=np.concatenate(rows).astype(np.int64),
        graph=graph.astype(np.int64),
        token=np.concatenate(token).astype(np.int64),
        pairs=_pairs_within(graph),
        n_tokens=len(residues),
        neighbours=neighbours,
    )


def neighbours_by_number(topology: mdtraj.Topology, atoms: np.ndarray, context: int) -> list[list[int]]:
    """Windows by sequence as in version 1 of CV files: selected residues of a chain whose numbers follow, bonded or not."""
    residues, _ = _residues(topology, atoms)
    links: list[list[int]] = [[] for _ in residues]
    for k in range(len(residues) - 1):
        before, after = residues[k : k + 2]
        if after.index - before.index == 1 and _numbers_follow(before, after):
            links[k].append(k + 1)
            links[k + 1].append(k)
    return [_within(links, k, context) for k in range(len(residues))]


def _residues(topology: mdtraj.Topology, atoms: np.ndarray) -> tuple[list[Any], list[np.ndarray]]:
    """Residues that have selected atoms, and the rows of these among the selected atoms."""
    residues: list[Any] = []
    own: list[list[int]] = []
    for row, index in enumerate(atoms):
        residue = topology.atom(int(index)).residue
        if not residues or residue is not residues[-1]:
            residues.append(residue)
            own.append([])
        own[-1].append(row)
    return residues, [np.array(part) for part in own]


def _one_graph(
    topology: mdtraj.Topology,
    residues: Sequence[Any],
    own: Sequence[np.ndarray],
    context: int,
    radius: float,
    reference: Any,
) -> None:
    return None


def _near_in_sequence(
    topology: mdtraj.Topology,
    residues: Sequence[Any],
    own: Sequence[np.ndarray],
    context: int,
    radius: float,
    reference: Any,
) -> list[list[int]]:
    if int(context) != context or context < 0:
        raise GeomGNNError(f"The window's context is a number of residues, 0 or more, but was {context}.")
    links = _links(topology)
    selected = {residue.index: k for k, residue in enumerate(residues)}
    return [
        [selected[index] for index in _within(links, residue.index, context) if index in selected] for residue in residues
    ]


def _near_in_space(
    topology: mdtraj.Topology,
    residues: Sequence[Any],
    own: Sequence[np.ndarray],
    context: int,
    radius: float,
    reference: mdtraj.Trajectory,
) -> list[list[int]]:
    if not 0 < radius < np.inf:
        raise GeomGNNError(f"The window's radius is a length in nm, but was {radius}. Use 0.3 to 1 nm.")
    if reference is None:
        raise GeomGNNError(
            "window: space needs a reference structure in which residues are near each other or not: give reference, an "
            "mdtraj trajectory of the selected atoms."
        )
    residue = np.concatenate([np.full(len(part), k) for k, part in enumerate(own)])
    if reference.n_atoms != len(residue):
        raise GeomGNNError(
            f"The reference structure has {reference.n_atoms} atoms, but {len(residue)} are selected. Give the selected "
            "atoms alone."
        )
    near = [{k} for k in range(len(residues))]
    for a, b in contacts(reference, residue, radius):
        near[a].add(b)
        near[b].add(a)
    return [sorted(part) for part in near]


WINDOWS = {"all": _one_graph, "sequence": _near_in_sequence, "space": _near_in_space}


def _kind(window: str) -> Callable[..., list[list[int]] | None]:
    if window not in WINDOWS:
        raise GeomGNNError(
            f"Unknown window '{window}'; the choices are {', '.join(WINDOWS)}.{did_you_mean(window, WINDOWS)}"
        )
    return WINDOWS[window]


def _links(topology: mdtraj.Topology) -> list[list[int]]:
    """For every residue of the topology those that follow or precede it in a chain, by their indices."""
    links: list[list[int]] = [[] for _ in range(topology.n_residues)]
    bonded: set[int] = set()
    for a, b in topology.bonds:
        first, second = a.residue.index, b.residue.index
        bonded.update((first, second))
        if first != second and {a.element.symbol, b.element.symbol} in _POLYMER_BONDS:
            links[first].append(second)
            links[second].append(first)
    polymers = Polymers(topology)
    for chain in topology.chains:
        before: Any = None
        for after in chain.residues:
            unknown = before is not None and not {before.index, after.index} <= bonded
            if unknown and polymers.holds(before) and polymers.holds(after) and _numbers_follow(before, after):
                links[before.index].append(after.index)
                links[after.index].append(before.index)
            before = after
    return links


def _numbers_follow(before: Any, after: Any) -> bool:
    """Insertion codes, which mdtraj drops, make numbers that are equal."""
    return before.chain is after.chain and after.resSeq - before.resSeq in (0, 1)


def _within(links: Sequence[Sequence[int]], start: int, steps: int) -> list[int]:
    """Sorted nodes of a graph that are at most `steps` links away."""
    found, front = {start}, [start]
    for _ in range(int(steps)):
        front = [other for node in front for other in links[node] if other not in found]
        if not front:
            break
        found.update(front)
    return sorted(found)


def _pairs_within(graph: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    starts = np.flatnonzero(np.r_[True, graph[1:] != graph[:-1]])
    ends = np.r_[starts[1:], len(graph)]
    blocks = []
    for start, end in zip(starts, ends, strict=True):
        i, j = np.triu_indices(end - start, k=1)
        blocks.append(np.stack([i, j]) + start)
    i, j = np.concatenate(blocks, axis=1).astype(np.int64)
    return i, j
