"""What is looked for in features: torsions, radius of gyration, distance from a structure, contacts."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import mdtraj
import numpy as np

from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.representation.rotatable import torsions_among
from openmm_geomgnn.representation.spec import RADIUS

APART = 3  # residues in sequence, from which on a pair can be a contact
RADIUS_OF_GYRATION, RMSD, CONTACTS, KEPT = "radius of gyration", "RMSD", "contacts", "contacts kept"
_FRAMES = 100  # at once, of all distances between residues


@dataclass(frozen=True, eq=False)
class Observable:
    """A quantity along all trajectories together.

    Attributes
    ----------
    name : str
    kind : str
        What it is averaged with in a table: "phi", "chi1", "radius of gyration"; torsions that are none of a peptide are
        "torsion".
    values : (F,) array
    unit : str
        "rad", "nm", or "" for numbers and shares.
    """

    name: str
    kind: str
    values: np.ndarray
    unit: str

    @property
    def is_angle(self) -> bool:
        """Whether the values come back to themselves after a turn."""
        return self.unit == "rad"

    @property
    def target(self) -> np.ndarray:
        """What a probe is to give: (F, 2) cosine and sine of an angle, else (F, 1)."""
        if self.is_angle:
            return np.stack([np.cos(self.values), np.sin(self.values)], axis=1)
        return self.values[:, None]

    @property
    def spread(self) -> float:
        """Standard deviation; of an angle that of its cosine and sine together, at most 1."""
        return float(np.sqrt(self.target.var(axis=0).sum()))


def observables(
    positions: Sequence[np.ndarray],
    topology: mdtraj.Topology,
    atoms: np.ndarray,
    reference: np.ndarray | None = None,
) -> list[Observable]:
    """All that is known how to look for, without what is the same in all frames.

    Parameters
    ----------
    positions : list of (F, n, 3) arrays
        Of the selected atoms along each trajectory, whole molecules in nm.
    topology : mdtraj.Topology
        Of the whole system, with the bonds.
    atoms : (n,) int
        The selected ones.
    reference : (n, 3) array, optional
        Structure in nm from which the RMSD is measured and whose contacts are counted; the first frame by default.

    Raises
    ------
    GeomGNNError
        If nothing varies.
    """
    selected = topology.subset(atoms)
    trajectory = mdtraj.Trajectory(np.concatenate([np.asarray(part, np.float32) for part in positions]), selected)
    structure = trajectory[0]
    if reference is not None:
        structure = mdtraj.Trajectory(np.asarray(reference, np.float32)[None], selected)
    found = [
        *_torsions(trajectory, topology, atoms),
        Observable(RADIUS_OF_GYRATION, RADIUS_OF_GYRATION, _radius_of_gyration(trajectory), "nm"),
        Observable(RMSD, RMSD, mdtraj.rmsd(trajectory, structure).astype(np.float64), "nm"),
        *_contacts(trajectory, structure),
    ]
    varying = [one for one in found if one.spread > 1e-6]
    if not varying:
        raise GeomGNNError(
            "Neither torsions nor the size of the molecule vary in the trajectories. Give other trajectories."
        )
    return varying


def _radius_of_gyration(trajectory: mdtraj.Trajectory) -> np.ndarray:
    """About the centre of mass (mdtraj's is about the mean of the positions)."""
    weights = np.array([atom.element.mass for atom in trajectory.topology.atoms])
    weights /= weights.sum()
    xyz = trajectory.xyz.astype(np.float64)
    centred = xyz - np.einsum("fni,n->fi", xyz, weights)[:, None]
    return np.sqrt(np.einsum("fni,n->f", np.square(centred), weights))


def _torsions(trajectory: mdtraj.Trajectory, topology: mdtraj.Topology, atoms: np.ndarray) -> list[Observable]:
    """Every torsion between selected atoms about which the molecule turns."""
    torsions = torsions_among(topology, atoms)
    angles = torsions.compute(trajectory)
    return [Observable(name, _kind(name), column, "rad") for name, column in zip(torsions.names, angles.T, strict=True)]


def _kind(name: str) -> str:
    first = name.split()[0]
    return first if first.rstrip("12345") in ("phi", "psi", "omega", "chi") else "torsion"


def _contacts(trajectory: mdtraj.Trajectory, structure: mdtraj.Trajectory) -> list[Observable]:
    """How many pairs of residues have atoms closer than RADIUS, and which share of those in the structure still have."""
    residues = range(trajectory.n_residues)
    pairs = [(a, b) for a, b in combinations(residues, 2) if b - a >= APART]
    if not pairs:
        return []

    def near(part: mdtraj.Trajectory) -> np.ndarray:
        return mdtraj.compute_contacts(part, pairs, scheme="closest", periodic=False)[0] < RADIUS

    native = near(structure)[0]
    blocks = [near(trajectory[k : k + _FRAMES]) for k in range(0, len(trajectory), _FRAMES)]
    number = np.concatenate([block.sum(axis=1) for block in blocks]).astype(np.float64)
    found = [Observable(CONTACTS, CONTACTS, number, "")]
    if native.any():
        kept = np.concatenate([block[:, native].mean(axis=1) for block in blocks])
        found.append(Observable(KEPT, KEPT, kept, ""))
    return found
