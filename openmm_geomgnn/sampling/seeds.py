"""Seeds: structures spread over what was explored, quenched, from which unbiased runs start."""

import copy
import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import mdtraj
import numpy as np
from openmm import app, unit

from openmm_geomgnn.aliases import PathLike
from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.files import atomic_write
from openmm_geomgnn.representation.rotatable import rotatable_torsions
from openmm_geomgnn.sampling.explore.base import Explored
from openmm_geomgnn.sampling.explore.quench import quench
from openmm_geomgnn.sampling.systems import load_structure
from openmm_geomgnn.sampling.walker_spec import WalkerSpec

NAME = "seeds.json"  # in the folder of the seeds
SAME = 0.05  # nm, RMSD of heavy atoms below which two are one
_VARIANCE = 0.95  # of the features, that the principal components keep
_COMPONENTS = 20  # at most
_BISECTIONS = 30


class Place(NamedTuple):
    """A frame of what was explored: the number of the piece and that of the frame in it, from 0."""

    piece: int
    frame: int


@dataclass(frozen=True, eq=False)
class Seed:
    """A quenched structure.

    Attributes
    ----------
    origin : str
        As in "frame 12 of omega ACE1-PRO2 from pro-trans".
    positions : (N, 3) ndarray
        nm.
    box : (3, 3) ndarray or None
        nm.
    energy : float
        Potential energy, kJ/mol.
    """

    origin: str
    positions: np.ndarray
    box: np.ndarray | None
    energy: float


def choose_seeds(features: Sequence[np.ndarray], explored: Sequence[Explored], number: int) -> list[tuple[int, int]]:
    """Choose frames that are spread over what was explored: one in the middle of each cluster of regular space.

    Clusters of regular space are equally far apart, so a state that was seen rarely counts as much as one that was seen
    often. On Ace-Ala3-Nme 16 of them are in more basins than 16 of k-means.

    Parameters
    ----------
    features : list of (F, D) ndarray
        Of the frames of each piece, as residue tokens. Their principal components are clustered.
    explored : list of Explored
    number : int
        Of clusters, at most.

    Returns
    -------
    list of Place
        In the order of pieces and frames.

    Raises
    ------
    GeomGNNError
        If the features are not those of the frames, or there are none.
    """
    lengths = [len(piece) for piece in explored]
    if [len(one) for one in features] != lengths:
        raise GeomGNNError(
            f"There are features of {[len(one) for one in features]} frames, but {lengths} were explored: compute them for "
            "every frame of every piece."
        )
    if number < 1:
        raise GeomGNNError(f"number is {number}, but there must be 1 seed or more.")
    if not sum(lengths):
        raise GeomGNNError("There are no frames to choose seeds from: nothing was explored, or everything was left out.")
    places = [Place(piece, frame) for piece, length in enumerate(lengths) for frame in range(length)]
    data = _components(np.concatenate([np.asarray(one, dtype=np.float64).reshape(len(one), -1) for one in features]))
    if len(data) <= number:
        return list(places)
    nearest = _nearest(data, _centres(data, number))
    chosen = []
    for centre in np.unique(nearest):
        members = np.flatnonzero(nearest == centre)
        away = np.linalg.norm(data[members] - data[members].mean(axis=0), axis=1)
        chosen.append(places[members[away.argmin()]])
    return sorted(chosen)


def _centres(data: np.ndarray, number: int) -> np.ndarray:
    """At most `number` centres (K, k) of regular space in data (F, k), as many as a distance between them gives."""
    from deeptime.clustering import RegularSpace

    def centres(distance: float) -> np.ndarray:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # more than max_centers: the distance is too short
            return RegularSpace(distance, max_centers=number + 1, n_jobs=1).fit_fetch(data).cluster_centers

    low, high = 0.0, float(np.linalg.norm(np.ptp(data, axis=0))) + 1e-9
    best = data[:1]
    for _ in range(_BISECTIONS):
        middle = 0.5 * (low + high)
        found = centres(middle)
        if len(found) > number:
            low = middle
        else:
            high, best = middle, found
    return best


def _nearest(data: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """The number of the nearest of centres (K, k), of each point (F, k)."""
    return np.argmin([((data - centre) ** 2).sum(axis=1) for centre in centres], axis=0)


def _components(data: np.ndarray) -> np.ndarray:
    """The leading principal components (F, k) of data (F, D)."""
    centred = data - data.mean(axis=0)
    left, sizes, _ = np.linalg.svd(centred, full_matrices=False)
    kept = np.cumsum(sizes**2) / max(float((sizes**2).sum()), 1e-300)
    count = min(int(np.searchsorted(kept, _VARIANCE)) + 1, _COMPONENTS, len(sizes))
    return left[:, :count] * sizes[:count]


def make_seeds(
    spec: WalkerSpec,
    explored: Sequence[Explored],
    chosen: Sequence[tuple[int, int]],
    known: Sequence[np.ndarray] = (),
) -> tuple[list[Seed], list[str]]:
    """Quench chosen frames, leave out what is no longer the molecule, and merge those that fall into one minimum.

    Parameters
    ----------
    spec : WalkerSpec
        As for `quench`.
    explored : list of Explored
    chosen : list of (piece, frame)
        Of `choose_seeds`.
    known : list of (N, 3) ndarray
        nm, structures that need no seed; they are quenched too.

    Returns
    -------
    seeds : list of Seed
        In the order of their energies.
    notes : list of str
        Sentences: what was left out and why.
    """
    frames = [explored[piece].positions[frame] for piece, frame in chosen]
    origins = [f"frame {frame} of {explored[piece].name}" for piece, frame in chosen]
    boxes = [_box(explored[piece], frame) for piece, frame in chosen]
    periodic = np.array(boxes) if boxes and boxes[0] is not None else None
    positions, energies, faults = quench(spec, np.array(frames), periodic)
    notes = [f"{origin} is left out: {fault}." for origin, fault in zip(origins, faults, strict=True) if fault]
    minima = list(quench(spec, np.array(known)).positions) if len(known) else []
    topology = mdtraj.Topology.from_openmm(load_structure(spec.structure)[0])
    heavy = [a.index for a in topology.atoms if a.element.number > 1 and not a.residue.is_water]
    seeds = []
    for k in np.argsort(energies, kind="stable"):
        if faults[k] or (minima and _distances(topology, heavy, minima, positions[k]).min() < SAME):
            continue
        minima.append(positions[k])
        seeds.append(Seed(origins[k], positions[k], boxes[k], float(energies[k])))
    merged = len(chosen) - len(seeds) - len(notes)
    if merged:
        notes.append(f"{merged} of {len(chosen)} are left out, whose minimum is that of another, or known.")
    return seeds, notes


def _box(piece: Explored, frame: int) -> np.ndarray | None:
    return None if piece.boxes is None else piece.boxes[frame]


def _distances(topology: mdtraj.Topology, atoms: list[int], some: list[np.ndarray], one: np.ndarray) -> np.ndarray:
    """RMSD (F,) in nm of these atoms between some structures and one."""
    there, here = mdtraj.Trajectory(np.array(some), topology), mdtraj.Trajectory(one[None], topology)
    return mdtraj.rmsd(there, here, 0, atom_indices=atoms)


def write_seeds(folder: PathLike, topology: app.Topology, seeds: Sequence[Seed], notes: Sequence[str] = ()) -> list[Path]:
    """Write seed.K.pdb for each seed, and seeds.json last: where each came from, its energy and torsions.

    Parameters
    ----------
    folder : path
    topology : openmm.app.Topology
    seeds : list of Seed
    notes : list of str

    Returns
    -------
    list of Path
        The structure files.
    """
    folder, topology = Path(folder), copy.deepcopy(topology)  # it takes the boxes of the seeds
    torsions = rotatable_torsions(topology)
    molecule, paths, entries = mdtraj.Topology.from_openmm(topology), [], []
    for number, seed in enumerate(seeds):
        path = folder / f"seed.{number}.pdb"
        if seed.box is not None:
            topology.setPeriodicBoxVectors(np.asarray(seed.box) * unit.nanometer)
        with atomic_write(path) as temporary, temporary.open("w") as file:
            app.PDBFile.writeFile(topology, seed.positions * unit.nanometer, file, keepIds=True)
        angles = np.degrees(torsions.compute(mdtraj.Trajectory(seed.positions[None], molecule))[0])
        turned = dict(zip(torsions.names, angles.round(1).tolist(), strict=True))
        entry = {"file": path.name, "origin": seed.origin, "energy": round(seed.energy, 3), "torsions (degrees)": turned}
        entries.append(entry)
        paths.append(path)
    with atomic_write(folder / NAME) as temporary:
        content = json.dumps({"seeds": entries, "notes": list(notes)}, indent=1)
        temporary.write_text(content + "\n", encoding="utf-8")
    return paths


def read_seeds(folder: PathLike) -> list[dict[str, Any]]:
    """What `write_seeds` noted of each seed in a folder: file, origin, energy in kJ/mol, torsions; [] if it did not."""
    path = Path(folder) / NAME
    return json.loads(path.read_text(encoding="utf-8"))["seeds"] if path.is_file() else []
