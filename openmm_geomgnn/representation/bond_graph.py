"""What a topology knows of the bonds of a molecule, and whether two of them, or a conformation, contradict one another.

Topologies differ in what they know: bonds of ligands, disulfides and hydrogens are in some only. What one of them does not
know is not compared. Atoms are told by their bonds, so that neither their order nor their names matter.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import mdtraj
import numpy as np
import numpy.typing as npt

from openmm_geomgnn.errors import GeomGNNError

# what `describe_bonds` says of a residue
BondFacts: TypeAlias = dict[str, Any]

# bonds to these are a matter of taste
_METALS = {
    *("Li", "Na", "K", "Rb", "Cs", "Be", "Mg", "Ca", "Sr", "Ba", "Al", "Ga", "Ti", "V", "Cr", "Mn", "Fe", "Co", "Ni", "Cu"),
    *("Zn", "Zr", "Mo", "Tc", "Ru", "Rh", "Pd", "Ag", "Cd", "In", "Sn", "W", "Re", "Os", "Ir", "Pt", "Au", "Hg", "Tl", "Pb"),
}  # fmt: skip
_CENTRES = {"C", "Si", "P", "S"}  # whose four neighbours stay where they are: an amine inverts
_ROUNDS = 12  # bonds that the surroundings of an atom reach
# triple product of unit vectors to three neighbours: 0.77 in a tetrahedron, 0 in a plane
_TETRAHEDRAL, _INVERTED = 0.4, -0.3
_LONGEST_BOND = 2.6  # angstrom; longer ones are torn by a box, or of a structure that is no molecule yet
_FRAMES = 20  # of a trajectory that are looked at


def describe_bonds(topology: mdtraj.Topology, atoms: Iterable[int]) -> list[BondFacts]:
    """What is known of each residue that has selected atoms, JSON-able.

    Returns
    -------
    list of dict
        names, elements : of the selected atoms.
        bonds : pairs of these without hydrogens, by their number in the residue; None where the topology does not have the
        residue's bonds.
        hydrogens : how many each carbon carries, -1 for other elements; None where they are not there.
        links : [atom, residue, atom], bonds to selected atoms of other residues.

    `record_centres` adds to each which way round its stereocentres are.
    """
    place: dict[int, tuple[int, int]] = {}
    parts: list[BondFacts] = []
    residues: list[Any] = []
    for index in map(int, atoms):
        atom = topology.atom(index)
        if not residues or residues[-1] is not atom.residue:
            residues.append(atom.residue)
            parts.append({"names": [], "elements": [], "bonds": [], "hydrogens": [], "links": []})
        part = parts[-1]
        place[index] = len(parts) - 1, len(part["names"])
        part["names"].append(atom.name)
        part["elements"].append(atom.element.symbol)
    wanted = {residue.index for residue in residues}
    within: dict[int, list[tuple[int, int]]] = {index: [] for index in wanted}
    hydrogens: Counter[int] = Counter()
    free: Counter[int] = Counter()
    for residue in residues:
        free[residue.index] = sum(atom.element.symbol == "H" for atom in residue.atoms)
    for a, b in topology.bonds:
        symbols = {a.element.symbol, b.element.symbol}
        if symbols & _METALS or symbols == {"H"} or not {a.residue.index, b.residue.index} & wanted:
            continue
        if "H" in symbols:
            free[a.residue.index] -= 1
            hydrogens[b.index if a.element.symbol == "H" else a.index] += 1
            continue
        if a.residue is b.residue:
            within[a.residue.index].append((a.index, b.index))
        if a.index in place and b.index in place:
            (k, i), (m, j) = place[a.index], place[b.index]
            if k == m:
                parts[k]["bonds"].append(sorted((i, j)))
            else:
                parts[k]["links"].append([i, m, j])
                parts[m]["links"].append([j, k, i])
    for residue, part in zip(residues, parts, strict=True):
        heavy = [atom for atom in residue.atoms if atom.element.number > 1 and atom.element.symbol not in _METALS]
        known = _connected(heavy, within)
        part["bonds"] = sorted(map(list, {tuple(bond) for bond in part["bonds"]})) if known else None
        part["links"].sort()
        carried = [hydrogens[atom.index] for atom in residue.atoms if atom.index in place]
        # united atoms have none on carbon; those without a bond are on nobody knows what
        there = free[residue.index] == 0 and any(hydrogens[a.index] for a in heavy if a.element.symbol == "C")
        carbons = [n if symbol == "C" else -1 for n, symbol in zip(carried, part["elements"], strict=True)]
        part["hydrogens"] = carbons if known and there else None
    return parts


def _connected(atoms: Sequence[Any], within: Mapping[int, Sequence[tuple[int, int]]]) -> bool:
    """Whether the bonds within a residue join all of these atoms of it."""
    if len(atoms) < 2:
        return True
    partners: dict[int, list[int]] = {atom.index: [] for atom in atoms}
    for a, b in within[atoms[0].residue.index]:
        if a in partners and b in partners:
            partners[a].append(b)
            partners[b].append(a)
    found, front = {atoms[0].index}, [atoms[0].index]
    while front:
        front = [other for index in front for other in partners[index] if other not in found]
        found.update(front)
    return len(found) == len(atoms)


def contradiction(expected: Sequence[Any], found: Sequence[Any]) -> tuple[int, str] | None:
    """The first residue in which two molecules differ, (its number, in what it differs), or None.

    `expected` and `found` are what `describe_bonds` returned, for the same elements in each residue; entries may be None.
    """
    for number, (old, new) in enumerate(zip(expected, found, strict=True)):
        if _known(old, new):
            difference = _difference(old, new)
            if difference:
                return number, difference
    colours: list[list[Any]] = [
        [_colours(part) if _known(old, new) else part and part["elements"] for part in (old, new)]
        for old, new in zip(expected, found, strict=True)
    ]
    for number, (old, new) in enumerate(zip(expected, found, strict=True)):
        if _known(old, new):
            there, here = (_partners(part, number, [pair[side] for pair in colours]) for side, part in enumerate((old, new)))
            for colour in there.keys() & here.keys():
                if there[colour] != here[colour]:
                    atom = new["names"][colours[number][1].index(colour)]
                    listed = (", ".join(f"residue {k + 1}" for k, _ in sorted(side[colour])) for side in (here, there))
                    return number, "{} is bound to {} here and to {} there, or to another atom of it".format(atom, *listed)
    return None


def _known(old: BondFacts | None, new: BondFacts | None) -> bool:
    return bool(old and new and old["bonds"] is not None and new["bonds"] is not None)


def _partners(part: BondFacts, number: int, colours: Sequence[Any]) -> dict[str, Counter[tuple[int, str]]]:
    """{colour of an atom of a residue: Counter of (other residue, colour there) that it is bound to}."""
    found: dict[str, Counter[tuple[int, str]]] = {}
    for i, k, j in part["links"]:
        if colours[k]:
            found.setdefault(colours[number][i], Counter())[k, colours[k][j]] += 1
    return found


def _difference(old: BondFacts, new: BondFacts) -> str | None:
    """In what the bonds within a residue differ, in words; None if they do not."""
    if old["bonds"] == new["bonds"] and old["elements"] == new["elements"] and old["hydrogens"] == new["hydrogens"]:
        return None
    with_hydrogens = old["hydrogens"] is not None and new["hydrogens"] is not None
    graphs = [_coloured(part, with_hydrogens) for part in (old, new)]
    if Counter(graphs[0].colours) == Counter(graphs[1].colours) and _isomorphic(*graphs):
        return None
    same_names = sorted(old["names"]) == sorted(new["names"]) and len(set(new["names"])) == len(new["names"])
    surroundings = [_surroundings(part, with_hydrogens, same_names) for part in (old, new)]
    if same_names:
        for name, here in surroundings[1].items():
            if here != surroundings[0][name]:
                return f"{name} has {here} here and {surroundings[0][name]} there"
    counts = Counter(surroundings[0].values())
    for name, here in surroundings[1].items():
        counts[here] -= 1
        if counts[here] < 0:
            return f"{name} has {here} here, and no atom there has these"
    return "its bonds make another molecule of the same atoms"


class _Graph(NamedTuple):
    colours: list
    bonds: list


def _coloured(part: BondFacts, with_hydrogens: bool) -> _Graph:
    return _Graph(_colours(part, with_hydrogens), part["bonds"])


def _colours(part: BondFacts, with_hydrogens: bool = False) -> list[str]:
    """A text for each atom that is the same for atoms with the same surroundings (Weisfeiler and Leman)."""
    partners: list[list[int]] = [[] for _ in part["names"]]
    for i, j in part["bonds"]:
        partners[i].append(j)
        partners[j].append(i)
    colours = list(part["elements"])
    if with_hydrogens:
        colours = [f"{symbol}{n}" for symbol, n in zip(colours, part["hydrogens"], strict=True)]
    for _ in range(min(_ROUNDS, len(colours))):
        texts = ("|".join([colours[k], *sorted(colours[m] for m in partners[k])]) for k in range(len(colours)))
        colours = [hashlib.sha256(text.encode()).hexdigest()[:12] for text in texts]
    return colours


def _isomorphic(one: _Graph, other: _Graph) -> bool:
    """Whether graphs with the same colours are the same: rings of different sizes may have them, too."""
    if len(set(one.colours)) == len(one.colours):  # each atom has one counterpart, with the same neighbours
        return True
    import networkx

    graphs = []
    for graph in (one, other):
        made = networkx.Graph(map(tuple, graph.bonds))
        made.add_nodes_from((k, {"colour": colour}) for k, colour in enumerate(graph.colours))
        graphs.append(made)
    return networkx.vf2pp_is_isomorphic(*graphs, node_label="colour")


def _surroundings(part: BondFacts, with_hydrogens: bool, by_name: bool) -> dict[str, str]:
    """{name: neighbours of an atom in words}."""
    shown = part["names" if by_name else "elements"]
    partners: dict[int, list[str]] = {k: [] for k in range(len(shown))}
    for i, j in part["bonds"]:
        partners[i].append(shown[j])
        partners[j].append(shown[i])
    found = {}
    for k, name in enumerate(part["names"]):
        text = f"the neighbours {', '.join(sorted(partners[k]))}" if partners[k] else "no neighbours"
        if with_hydrogens and part["hydrogens"][k] >= 0:
            text += f" and {part['hydrogens'][k]} H"
        found[name] = text
    return found


class Centre(NamedTuple):
    """A stereocentre.

    Attributes
    ----------
    key : str
        What it is told by in any topology.
    rows : tuple of int
        Of the atom and three neighbours among the selected atoms.
    name : str
        Of the atom.
    """

    key: str
    rows: tuple[int, ...]
    name: str


def centres(parts: Sequence[BondFacts | None]) -> list[Centre]:
    """The `Centre` of every atom that may be one, by its bonds: three or more neighbours, all of them different."""
    found, start = [], 0
    for number, part in enumerate(parts):
        if part and part["bonds"] is not None:
            colours = _colours(part)
            for k, symbol in enumerate(part["elements"]):
                near = [j if i == k else i for i, j in part["bonds"] if k in (i, j)]
                different = {colours[j] for j in near}
                if symbol in _CENTRES and len(near) >= 3 and len(different) == len(near) and colours.count(colours[k]) == 1:
                    near.sort(key=colours.__getitem__)
                    key = ":".join([str(number), colours[k], *(colours[j] for j in near)])
                    rows = tuple(start + row for row in (k, *near[:3]))
                    found.append(Centre(key, rows, f"{part['names'][k]} of residue {number + 1}"))
        start += len(part["names"]) if part else 0
    return found


def handedness(found: Sequence[Centre], pos: npt.ArrayLike) -> np.ndarray:
    """`triple_products` of a few of the frames."""
    frames = np.asarray(pos)
    return triple_products(found, frames[np.unique(np.linspace(0, len(frames) - 1, min(len(frames), _FRAMES)).astype(int))])


def triple_products(found: Sequence[Centre], pos: npt.ArrayLike) -> np.ndarray:
    """Triple products (K, F) of the unit vectors to three neighbours of `Centre`s; NaN where a bond is torn.

    `pos` is (F, n, 3) in angstrom. The sign says which way round a centre is, and the size how far it is from flat.
    """
    frames = np.asarray(pos)
    if not found:
        return np.zeros((0, len(frames)))
    rows = np.array([centre.rows for centre in found])
    vectors = frames[:, rows[:, 1:]] - frames[:, rows[:, :1]]  # (F, K, 3, 3)
    lengths = np.linalg.norm(vectors, axis=-1)
    good = ((lengths > 0.1) & (lengths < _LONGEST_BOND)).all(axis=-1)
    volumes = np.linalg.det(vectors / np.maximum(lengths, 0.1)[..., None])
    return np.where(good, volumes, np.nan).T


def known_signs(found: Sequence[Centre], pos: npt.ArrayLike) -> dict[str, int]:
    """{key: 1 or -1} of the centres that are tetrahedral and have one handedness in all frames."""
    signs = {}
    for centre, values in zip(found, handedness(found, pos), strict=True):
        values = values[np.isfinite(values)]
        if len(values) and abs(values.mean()) > _TETRAHEDRAL and (values * values.mean() > 0).all():
            signs[centre.key] = int(np.sign(values.mean()))
    return signs


def inverted(found: Sequence[Centre], signs: Mapping[str, int], pos: npt.ArrayLike) -> list[Centre]:
    """The `Centre`s that are the mirror image of what `signs` (of `known_signs`) says, in conformations (F, n, 3)."""
    compared = [centre for centre in found if centre.key in signs]
    wrong = []
    for centre, values in zip(compared, handedness(compared, pos), strict=True):
        values = signs[centre.key] * values[np.isfinite(values)]
        if len(values) and values.mean() < _INVERTED:
            wrong.append(centre)
    return wrong


def record_centres(parts: Sequence[BondFacts], trajectories: Iterable[npt.ArrayLike]) -> None:
    """Note which way round the stereocentres of a molecule are: `centres` of each part of `parts`, {key: 1 or -1}.

    `trajectories` has the positions (F, n, 3) of each, in angstrom.

    Raises
    ------
    GeomGNNError
        If they are not the same way round in all trajectories.
    """
    found = centres(parts)
    signs: dict[str, tuple[int, int]] = {}
    for number, pos in enumerate(trajectories, start=1):
        for key, sign in known_signs(found, pos).items():
            first, known = signs.setdefault(key, (number, sign))
            if known != sign:
                name = next(centre.name for centre in found if centre.key == key)
                raise GeomGNNError(
                    f"The trajectories are of different stereoisomers: atom {name} of the selection is one way round in "
                    f"trajectory {first} and its mirror image in trajectory {number}. Fit those of one molecule."
                )
    for number, part in enumerate(parts):
        part["centres"] = {key: sign for key, (_, sign) in signs.items() if key.startswith(f"{number}:")}
