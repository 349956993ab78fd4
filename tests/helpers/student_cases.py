"""Students of random weights, of the heavy atoms of alanine dipeptide, and conformations for them."""

import numpy as np
import torch
from molecules import ala2

from openmm_geomgnn.cv.students.coordinates import InternalCoordinates, proper_torsions
from openmm_geomgnn.cv.students.cv import StudentCV, named_atoms
from openmm_geomgnn.cv.students.network import StudentNetwork
from openmm_geomgnn.representation.selection import residue_table, select_atoms

FRAME = ala2()
HEAVY = select_atoms(FRAME.topology)


def frames(n=6, seed=0, spread=0.02):
    """Deformed conformations (n, 22, 3) in nm."""
    noise = np.random.default_rng(seed).normal(size=(n, 22, 3))
    return FRAME.xyz[0].astype(np.float64) + spread * noise


def bonds_of(topology, atoms):
    row = {int(index): k for k, index in enumerate(atoms)}
    return [(row[a.index], row[b.index]) for a, b in topology.bonds if a.index in row and b.index in row]


BONDS = bonds_of(FRAME.topology, HEAVY)
TORSIONS = proper_torsions(BONDS, len(HEAVY))
PAIRS = np.array(np.triu_indices(len(HEAVY), 1)).T


def student(dimension=2, hidden=16, seed=3):
    """A student of random weights whose coordinates lie where those of alanine dipeptide do."""
    coordinates = InternalCoordinates(TORSIONS, PAIRS)
    torch.manual_seed(seed)
    network = StudentNetwork(len(coordinates), hidden, dimension)
    found = coordinates(torch.tensor(10 * frames(50)[:, HEAVY]))
    network.mean.copy_(found.mean(0))
    network.scale.copy_(found.std(0))
    atoms, table = named_atoms(FRAME.topology, HEAVY), residue_table(FRAME.topology, HEAVY)
    return StudentCV(network, coordinates, atoms, table, lagtime=5.0, training={"note": "random"})
