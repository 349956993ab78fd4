"""Trajectories of a trembling molecule, the command's work on them in this process, and what must come of it."""

import mdtraj
import numpy as np
from molecules import ALA2, ala2

from openmm_geomgnn.representation.embed_trajectories import embed_trajectories
from openmm_geomgnn.representation.encoder import Encoder
from openmm_geomgnn.representation.periodic import SelectedMolecule
from openmm_geomgnn.representation.selection import select_atoms
from openmm_geomgnn.representation.tokens import Tokenizer
from openmm_geomgnn.representation.windows import make_windows

FRAMES = 50


def frames(n=FRAMES, seed=0, box=None):
    """Alanine dipeptide, trembling, at 2 ps per frame."""
    rng = np.random.default_rng(seed)
    frame = ala2()
    xyz = (frame.xyz + 0.02 * rng.normal(size=(n, frame.n_atoms, 3))).astype(np.float32)
    made = mdtraj.Trajectory(xyz, frame.topology, time=2.0 * np.arange(n) + 10.0)
    if box is not None:
        made.unitcell_vectors = np.tile(box, (n, 1, 1))
    return made


def embed(paths, output, settings, **options):
    paths = paths if isinstance(paths, list) else [paths]
    return embed_trajectories(ALA2, paths, output, settings, **{"workers": 1, **options})


def expected(trajectory, settings):
    topology = trajectory.topology
    spec = settings.tokens
    atoms = select_atoms(topology, spec.selection)
    windows = make_windows(topology, atoms, spec.window, spec.context)
    tokenizer = Tokenizer(Encoder.load(settings.encoder), windows, spec.pooling)
    return tokenizer.embed(SelectedMolecule(topology, atoms, windows.contacts).positions(trajectory)).numpy()


def everything(store):
    return [part for k in range(len(store)) for part in (store.tokens(k)[:], store.positions(k)[:], store.times(k))]
