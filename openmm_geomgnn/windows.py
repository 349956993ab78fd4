"""From a topology to the fixed graphs that the encoder sees.

Everything here is made once, before a simulation: which atoms, which windows around which residue, which pairs.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path

import mdtraj
import numpy as np

from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.units import did_you_mean

DEFAULT_SELECTION = "protein and not element H"
WINDOWS = ("all", "sequence")

# protonation states and naming schemes of the same residue
_SAME_RESIDUE = {
    **dict.fromkeys(("HID", "HIE", "HIP", "HSD", "HSE", "HSP"), "HIS"),
    **dict.fromkeys(("CYX", "CYM"), "CYS"),
    "ASH": "ASP",
    "GLH": "GLU",
    "LYN": "LYS",
    "NMA": "NME",
    "NHE": "NH2",
}
# mdtraj's keyword does not know all of these names, among them AMBER's HID, HIE and CYX
_PROTEIN = f"(protein or resname {' '.join(sorted({*_SAME_RESIDUE, *_SAME_RESIDUE.values()}))})"


def as_topology(topology):
    """An mdtraj topology from one of mdtraj, of OpenMM, or the path of a structure file.

    Raises
    ------
    GeomGNNError
        If it is none of these, or the file cannot be read.
    """
    if isinstance(topology, mdtraj.Topology):
        return topology
    if isinstance(topology, mdtraj.Trajectory):
        return topology.topology
    if hasattr(topology, "atoms") and hasattr(topology, "getPeriodicBoxVectors"):
        return mdtraj.Topology.from_openmm(topology)
    if isinstance(topology, str | Path):
        path = Path(topology)
        if not path.is_file():
            raise GeomGNNError(f"There is no topology file {path}. Give the path of a PDB, GRO, PRMTOP or PSF file.")
        try:
            return mdtraj.load_topology(str(path))
        except (OSError, ValueError, KeyError, IndexError) as error:
            raise GeomGNNError(f"The topology cannot be read from {path}: {error}. Give a PDB or GRO file.") from error
    raise GeomGNNError(
        f"A topology must be an openmm.app.Topology, an mdtraj.Topology or the path of a structure file, not a "
        f"{type(topology).__name__}."
    )


def select_atoms(topology, selection=None):
    """Sorted indices of the atoms that `selection` (mdtraj's language) names; None is the heavy atoms of all protein.

    `protein` takes in every protonation state and cap, whatever a force field calls it.

    Raises
    ------
    GeomGNNError
        If the selection cannot be parsed, is empty, or takes in virtual sites.
    """
    text = selection or DEFAULT_SELECTION
    try:
        atoms = topology.select(re.sub(r"\b(is_)?protein\b", _PROTEIN, text))
    except Exception as error:  # mdtraj's parser raises whatever its grammar trips over, and prints the grammar
        raise GeomGNNError(
            f"The selection '{text}' is not valid. It is written in mdtraj's language, for example '{DEFAULT_SELECTION}' "
            "or 'chainid 0 and name CA CB'."
        ) from error
    if len(atoms) == 0:
        names = sorted({residue.name for residue in topology.residues})
        raise GeomGNNError(
            f"The selection '{text}' matches none of the {topology.n_atoms} atoms (residues: {', '.join(names[:12])}). "
            "Give a selection in mdtraj's language that names the molecule of interest."
        )
    virtual = [topology.atom(i) for i in atoms if topology.atom(i).element.number == 0]
    if virtual:
        raise GeomGNNError(f"The selection '{text}' includes virtual sites such as {virtual[0]}. Leave them out of it.")
    return np.sort(atoms)


def residue_table(topology, atoms):
    """Per residue that has selected atoms: [chain number, residue name, {element symbol: count}], JSON-able.

    This is all the network can see of a topology, so it is what must agree between the molecule a CV was trained on and
    the one it is used on. Names of protonation states are unified; the order of atoms in a residue does not matter.
    """
    table, last, chains = [], None, {}
    for index in atoms:
        atom = topology.atom(int(index))
        residue = atom.residue
        if residue.index != last:
            chain = chains.setdefault(residue.chain.index, len(chains))
            table.append([chain, _SAME_RESIDUE.get(residue.name, residue.name), {}])
            last = residue.index
        elements = table[-1][2]
        elements[atom.element.symbol] = elements.get(atom.element.symbol, 0) + 1
    return table


def check_same_molecule(expected, found, what="the CV file"):
    """Raise a GeomGNNError at the first residue in which two residue tables differ."""
    advice = (
        "Use the topology the CV was trained on (solvent and ions may differ), or fit a new CV for this molecule with "
        "`geomgnn fit`."
    )
    for number, (old, new) in enumerate(zip(expected, found, strict=False), start=1):
        old, new = [old[0], old[1], dict(sorted(old[2].items()))], [new[0], new[1], dict(sorted(new[2].items()))]
        if old == new:
            continue

        def describe(row):
            return f"{row[1]} of chain {row[0] + 1} with atoms {''.join(f'{e}{n}' for e, n in row[2].items())}"

        raise GeomGNNError(
            f"This topology is not that of {what}: residue {number} of the selection was {describe(old)} there and is "
            f"{describe(new)} here. {advice}"
        )
    if len(expected) != len(found):
        raise GeomGNNError(
            f"This topology is not that of {what}: the selection has {len(found)} residues here and had {len(expected)} "
            f"there. {advice}"
        )


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
        All pairs i < j of window atoms that share a window.
    n_tokens : int
    """

    z: np.ndarray
    rows: np.ndarray
    graph: np.ndarray
    token: np.ndarray
    pairs: tuple = field(repr=False)
    n_tokens: int = 0

    @property
    def n_atoms(self):
        return len(self.z)

    @property
    def n_graphs(self):
        return int(self.graph[-1]) + 1


def make_windows(topology, atoms, window="all", context=1):
    """Windows over the residues of the selected atoms.

    Parameters
    ----------
    window : {"all", "sequence"}
        One graph of all selected atoms, or one per residue: its own atoms and those of the `context` residues before and
        after it in its chain. Windows do not reach over chain breaks (residue numbers that skip).
    context : int
        k; a window holds up to 2k + 1 residues.

    Raises
    ------
    GeomGNNError
        If `window` is not known or `context` is negative.
    """
    if window not in WINDOWS:
        raise GeomGNNError(
            f"Unknown window '{window}'; the choices are {', '.join(WINDOWS)}.{did_you_mean(window, WINDOWS)}"
        )
    if int(context) != context or context < 0:
        raise GeomGNNError(f"The window's context is a number of residues, 0 or more, but was {context}.")
    members = [topology.atom(int(index)) for index in atoms]
    residues, own = [], []
    for row, atom in enumerate(members):
        if not residues or atom.residue is not residues[-1]:
            residues.append(atom.residue)
            own.append([])
        own[-1].append(row)
    if window == "all":
        rows, graph = [np.arange(len(members))], [np.zeros(len(members), dtype=np.int64)]
        token = [np.concatenate([np.full(len(part), k) for k, part in enumerate(own)])]
    else:
        rows, graph, token = [], [], []
        for k in range(len(residues)):
            first, last = k, k
            while first > 0 and k - first < context and _bonded_in_sequence(residues[first - 1], residues[first]):
                first -= 1
            end = len(residues) - 1
            while last < end and last - k < context and _bonded_in_sequence(residues[last], residues[last + 1]):
                last += 1
            inside = np.concatenate([own[m] for m in range(first, last + 1)])
            rows.append(inside)
            graph.append(np.full(len(inside), k))
            token.append(np.where(np.isin(inside, own[k]), k, -1))
    graph = np.concatenate(graph)
    return Windows(
        z=np.array([atom.element.number for atom in members], dtype=np.int64),
        rows=np.concatenate(rows).astype(np.int64),
        graph=graph.astype(np.int64),
        token=np.concatenate(token).astype(np.int64),
        pairs=_pairs_within(graph),
        n_tokens=len(residues),
    )


def _bonded_in_sequence(before, after):
    return before.chain is after.chain and after.index - before.index == 1 and after.resSeq - before.resSeq in (0, 1)


def _pairs_within(graph):
    starts = np.flatnonzero(np.r_[True, graph[1:] != graph[:-1]])
    ends = np.r_[starts[1:], len(graph)]
    blocks = []
    for start, end in zip(starts, ends, strict=True):
        i, j = np.triu_indices(end - start, k=1)
        blocks.append(np.stack([i, j]) + start)
    i, j = np.concatenate(blocks, axis=1).astype(np.int64)
    return i, j
