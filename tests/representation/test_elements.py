"""Elements that an encoder was trained on, and molecules that have others."""

import warnings

import mdtraj
import numpy as np
import pytest
from molecules import random_encoder

from openmm_geomgnn import Encoder
from openmm_geomgnn.cv.fit import FitSettings, fit_cv
from openmm_geomgnn.representation import encoder as encoders
from openmm_geomgnn.representation.featurization import Featurization
from openmm_geomgnn.representation.shipped import shipped_elements, shipped_encoders
from openmm_geomgnn.representation.spec import TokenSpec

WARNING = r"The encoder et-64 was not trained on P: .* random weights"


@pytest.fixture(autouse=True)
def warned_anew():
    encoders._warn_of_untrained.cache_clear()


def phosphate():
    """H2PO4, as a ligand of its own."""
    topology = mdtraj.Topology()
    residue = topology.add_residue("PO4", topology.add_chain())
    for name, symbol in (("P", "P"), ("O1", "O"), ("O2", "O"), ("O3", "O"), ("O4", "O"), ("H1", "H"), ("H2", "H")):
        topology.add_atom(name, mdtraj.element.get_by_symbol(symbol), residue)
    atoms = list(topology.atoms)
    for a, b in ((0, 1), (0, 2), (0, 3), (0, 4), (1, 5), (2, 6)):
        topology.add_bond(atoms[a], atoms[b])
    corners = np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]) * 0.09
    return topology, np.vstack([np.zeros(3), corners, corners[:2] * 1.6])


def test_every_shipped_encoder_says_what_it_was_trained_on():
    for name in shipped_encoders():
        assert set(shipped_elements(name)) >= set("HCNO")
        assert Encoder.load(name).training_information["elements"] == list(shipped_elements(name))


def test_other_elements_are_warned_about_once():
    encoder = Encoder.load("et-64")
    assert encoder.untrained_elements([1, 15, 6, 15, 26]) == ["P", "Fe"]
    topology, pos = phosphate()
    with pytest.warns(UserWarning, match=WARNING):
        Featurization(topology, TokenSpec(), encoder)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encoder.embed([15, 8], 10 * pos[:2])
        encoder.embed([6, 8], 10 * pos[:2])


def test_nothing_is_said_of_an_encoder_whose_training_is_not_known():
    topology, _ = phosphate()
    encoder = random_encoder()
    assert encoder.untrained_elements([15]) == []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Featurization(topology, TokenSpec(), encoder)


def test_the_verdict_on_a_cv_says_so():
    topology, pos = phosphate()
    rng = np.random.default_rng(0)
    shift = np.cumsum(rng.normal(size=400)) * 0.002
    frames = pos + rng.normal(size=(400, 7, 3)) * 0.003
    frames[:, 1] += shift[:, None]
    trajectory = mdtraj.Trajectory(frames, topology)
    with pytest.warns(UserWarning, match=WARNING):
        cv = fit_cv([trajectory], topology, FitSettings(encoder="et-64", lagtime=2.0, frame_interval=1.0))
    assert cv.training_information["untrained_elements"] == ["P"]
    reasons = cv.training_information["verdict"]["reasons"]
    assert any("not trained on P" in reason for reason in reasons)
