"""Reference structures: which residues are near each other in one, periodic or not; and how one is read."""

import itertools

import mdtraj
import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from openmm_geomgnn.aliases import PathLike
from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.representation.formats import reason
from openmm_geomgnn.representation.matching import AtomMatcher
from openmm_geomgnn.representation.periodic import MoleculeUnwrapper
from openmm_geomgnn.representation.selection import as_topology, check_same_molecule, residue_table, select_atoms


def contacts(structure: mdtraj.Trajectory, residue: np.ndarray, radius: float) -> list[tuple[int, int]]:
    """Pairs (a, b), a < b, of residues with two atoms closer than `radius` in the first frame of a structure.

    Parameters
    ----------
    structure : mdtraj.Trajectory
        If it has a box, bonded atoms belong together however the box cuts them, and molecules are near each other by any
        of their periodic images; a molecule is not near to its own images.
    residue : (n,) int
        Of each atom.
    radius : float
        nm

    Raises
    ------
    GeomGNNError
        If positions are not finite or the box is narrower than twice the radius.
    """
    xyz = structure.xyz[0].astype(np.float64)
    if not np.isfinite(xyz).all():
        raise GeomGNNError("The reference structure has positions that are not finite. Give another structure.")
    box = None if structure.unitcell_vectors is None else structure.unitcell_vectors[0].astype(np.float64)
    if box is None or not box.any():
        i, j = cKDTree(xyz).query_pairs(radius, output_type="ndarray").T
    else:
        i, j = _periodic(xyz, box, structure.topology, radius)
    a, b = np.minimum(residue[i], residue[j]), np.maximum(residue[i], residue[j])
    pairs = np.unique(np.stack([a, b], axis=1)[a != b], axis=0)
    return [(int(a), int(b)) for a, b in pairs]


def _periodic(xyz: np.ndarray, box: np.ndarray, topology: mdtraj.Topology, radius: float) -> tuple[np.ndarray, np.ndarray]:
    if np.diag(box).min() < 2 * radius:
        raise GeomGNNError(
            f"The box of the reference structure is {np.diag(box).min():.3f} nm wide, less than twice the radius of "
            f"{radius:g} nm. Give a structure with its true box, or none."
        )
    n = len(xyz)
    bonds = np.array([(a.index, b.index) for a, b in topology.bonds], dtype=int).reshape(-1, 2).T
    _, molecule = connected_components(coo_array((np.ones(bonds.shape[1]), tuple(bonds)), shape=(n, n)), directed=False)
    whole = MoleculeUnwrapper(topology, np.arange(n))(xyz, box)
    cell = np.floor(whole @ np.linalg.inv(box))
    inside = whole - cell @ box
    shifts = np.array(list(itertools.product((-1, 0, 1), repeat=3)))
    images = (inside + (shifts @ box)[:, None]).reshape(-1, 3)
    lower, upper = inside.min(axis=0) - radius, inside.max(axis=0) + radius
    close = np.flatnonzero(((images >= lower) & (images <= upper)).all(axis=1))
    found = cKDTree(inside).sparse_distance_matrix(cKDTree(images[close]), radius, output_type="ndarray")
    i, image = found["i"], close[found["j"]]
    j, shift = image % n, shifts[image // n]
    keep = (molecule[i] != molecule[j]) | (shift == cell[j] - cell[i]).all(axis=1)
    return i[keep], j[keep]


def read_reference(
    path: PathLike, topology: mdtraj.Topology, atoms: np.ndarray, selection: str | None = None
) -> mdtraj.Trajectory:
    """The selected atoms of a structure file that holds the molecule `atoms` of `topology` (solvent may differ).

    Raises
    ------
    GeomGNNError
        If the file cannot be read or holds another molecule.
    """
    found = as_topology(path)
    chosen = select_atoms(found, selection)
    check_same_molecule(residue_table(topology, atoms), residue_table(found, chosen), "the trajectories")
    try:
        structure = mdtraj.load_frame(str(path), 0)
    except Exception as error:  # mdtraj's readers raise whatever they trip over
        raise GeomGNNError(
            f"The reference structure {path} cannot be read ({reason(error)}). Give a PDB or GRO file."
        ) from error
    return structure.atom_slice(chosen)


def first_frame(trajectory: mdtraj.Trajectory, topology: mdtraj.Topology, atoms: np.ndarray) -> mdtraj.Trajectory:
    """The selected atoms of `topology` in the first frame of a trajectory of one or more, as a trajectory of one.

    Raises
    ------
    GeomGNNError
        If the trajectory is of another system.
    """
    frame = trajectory[0]
    rows = AtomMatcher(topology, atoms).rows(frame.topology)
    return mdtraj.Trajectory(frame.xyz[:, rows], topology.subset(atoms), None, frame.unitcell_lengths, frame.unitcell_angles)
