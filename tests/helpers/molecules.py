"""Topologies, random encoders and random collective variables for tests of windows, CVs and forces."""

from importlib import resources

import mdtraj
import numpy as np
import torch
from mdtraj.core import element

from openmm_geomgnn.cv.mixers import make_mixer
from openmm_geomgnn.cv.network import CollectiveVariable
from openmm_geomgnn.representation.encoder import Encoder
from openmm_geomgnn.representation.featurization import Featurization
from openmm_geomgnn.representation.spec import TokenSpec
from openmm_geomgnn.testing.numerics import as_if_trained
from torchmdnet_ext import registration

ALA2 = resources.files("openmm_geomgnn") / "data" / "ala2-c7eq.pdb"
CUTOFF = 5.0  # angstrom, of the random encoders
SETTINGS = {
    "embedding_dimension": 16,
    "num_layers": 2,
    "num_rbf": 12,
    "num_heads": 4,
    "max_z": 40,
    "cutoff_lower": 0.0,
    "cutoff_upper": CUTOFF,
    "rbf_type": "expnorm",
    "trainable_rbf": False,
    "activation": "silu",
    "attn_activation": "silu",
    "distance_influence": "both",
    "neighbor_embedding": False,
}
TRANSFORMER = "smooth-equivariant-transformer"
BOXES = {
    "orthorhombic": np.diag([3.1, 3.6, 2.9]),
    "triclinic": np.array([[3.1, 0.0, 0.0], [-1.2, 3.3, 0.0], [1.4, -1.5, 3.0]]),
}


def ala2():
    """Alanine dipeptide, 22 atoms, as an mdtraj trajectory of one frame."""
    return mdtraj.load(str(ALA2))


def random_encoder(model=TRANSFORMER, seed=5, **settings):
    settings = {**SETTINGS, "model": model, **settings}
    torch.manual_seed(seed)
    network = as_if_trained(registration.representation_model({"precision": 32, **settings}))
    return Encoder(network.requires_grad_(False).eval(), settings, {"seed": seed}, "random")


def random_cv(topology, encoder=None, dimension=2, mixer="none", scale=1.0, mixer_settings=None, **options):
    """A CV of random weights whose components vary by about `scale`.

    `options` are those of TokenSpec and of CollectiveVariable; a `reference` is an mdtraj.Trajectory.
    """
    reference = options.pop("reference", None)
    spec = TokenSpec(**{name: options.pop(name) for name in TokenSpec().to_metadata() if name in options})
    featurization = Featurization(topology, spec, encoder or random_encoder(), structure=lambda: reference)
    encoder, n_tokens = featurization.encoder, featurization.windows.n_tokens
    mixer = make_mixer(mixer, n_tokens, encoder.hidden_channels, **(mixer_settings or {}))
    if not mixer.has_statistics:
        noise = np.random.default_rng(2).normal(size=(40, len(featurization.atoms), 3))
        mixer.set_statistics(featurization.tokenizer.embed(3 * noise))
    rng = np.random.default_rng(3)
    projection = scale * rng.normal(size=(mixer.out_features, dimension)) / np.sqrt(mixer.out_features)
    koopman = rng.normal(size=mixer.out_features), projection, np.linspace(0.9, 0.5, dimension)
    return CollectiveVariable(encoder, mixer, *koopman, featurization.table, spec=featurization.spec, **options)


def peptide(*chains):
    """A topology of glycines: one list of residue numbers per chain, bonded within a chain where numbers follow."""
    topology = mdtraj.Topology()
    for numbers in chains:
        chain, last, previous = topology.add_chain(), None, None
        for number in numbers:
            residue = topology.add_residue("GLY", chain, resSeq=number)
            atoms = [
                topology.add_atom(name, element.get_by_symbol(symbol), residue)
                for name, symbol in (("N", "N"), ("H", "H"), ("CA", "C"), ("C", "C"), ("O", "O"))
            ]
            for a, b in ((0, 1), (0, 2), (2, 3), (3, 4)):
                topology.add_bond(atoms[a], atoms[b])
            if last is not None and number - previous in (0, 1):
                topology.add_bond(last, atoms[0])
            last, previous = atoms[3], number
    return topology


def with_water(topology, xyz, before=False):
    """The topology and positions (N, 3) in nm with two water molecules and an ion after (or before) the molecule."""
    solvent = mdtraj.Topology()
    chain = solvent.add_chain()
    for k in range(2):
        residue = solvent.add_residue("HOH", chain, resSeq=k)
        for name, kind in (("O", element.oxygen), ("H1", element.hydrogen), ("H2", element.hydrogen)):
            solvent.add_atom(name, kind, residue)
    solvent.add_atom("CL", element.chlorine, solvent.add_residue("CL", chain, resSeq=9))
    places = xyz.max(axis=0) + 0.3 * np.arange(1, 8)[:, None]
    if before:
        return solvent.join(topology), np.concatenate([places, xyz])
    return topology.join(solvent), np.concatenate([xyz, places])


def wrapped(xyz, box):
    """Positions with every atom moved into the box on its own, as engines may report them."""
    return xyz - np.floor(xyz @ np.linalg.inv(box)) @ box


def rotation(seed, proper=True):
    q, r = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    q = q * np.sign(np.diag(r))
    return q if (np.linalg.det(q) > 0) == proper else -q
