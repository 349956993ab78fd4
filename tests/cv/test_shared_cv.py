"""A CV of several molecules: it binds to others, live as well, says what it is, and becomes the CV of one of them."""

import mdtraj
import numpy as np
import openmm
import pytest
from molecules import ala2
from openmm import unit

from openmm_geomgnn import GeomGNNCV
from openmm_geomgnn.cli import info
from openmm_geomgnn.conformers.sources.peptides import build_peptide
from openmm_geomgnn.cv import CollectiveVariable
from openmm_geomgnn.cv.mixers import make_mixer
from openmm_geomgnn.cv.shared import cv_of_molecule, make_shared_cv
from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.koopman import KoopmanModel
from openmm_geomgnn.representation.encoder import Encoder
from openmm_geomgnn.representation.featurization import SelectedAtoms
from openmm_geomgnn.representation.spec import TokenSpec
from openmm_geomgnn.sampling.systems import build_system


def make(window="sequence", n_tokens=None, name="mlp"):
    encoder = Encoder.load("et-64")
    mixer = make_mixer(name, n_tokens, encoder.hidden_channels, pool="sum", width=8, out_features=3)
    mixer.set_statistics(np.random.default_rng(0).normal(size=(50, 3, 4, 64)).astype(np.float32))
    projection = np.random.default_rng(1).normal(size=(3, 2))
    model = KoopmanModel(np.zeros(3), projection, np.array([0.9, 0.5]))
    molecules = {name: SelectedAtoms.find(ala2().topology) for name in ("Ace-A-Nme", "another")}
    return make_shared_cv(encoder, mixer, model, molecules, spec=TokenSpec(window=window), lagtime=2.0)


def peptide(sequence):
    pytest.importorskip("PeptideBuilder")
    topology, positions = build_peptide(sequence)
    return topology, np.array(positions.value_in_unit(unit.nanometer))


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("shared") / "shared.cv.safetensors"
    make().save(path)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("sequence", ["S", "GA"])
def test_a_file_binds_to_molecules_of_any_length(file, sequence):
    topology, positions = peptide(sequence)
    frames = mdtraj.Trajectory(positions + 0.01 * np.random.default_rng(2).normal(size=(4, *positions.shape)), None)
    frames = mdtraj.Trajectory(frames.xyz, mdtraj.Topology.from_openmm(topology))
    cv = CollectiveVariable.load(file)
    assert cv.is_shared
    bound = cv.bind(topology, engine="eager")
    assert bound.tokenizer.windows.n_tokens == len(sequence) + 2
    np.testing.assert_allclose(GeomGNNCV(file, topology).compute(frames), bound.compute(frames), atol=1e-5)


@pytest.mark.slow
def test_its_force_is_its_gradient(file):
    topology, positions = peptide("S")
    system = build_system(topology)
    force = openmm.CustomCVForce("q")
    force.addCollectiveVariable("q", GeomGNNCV(file, topology, component=1))
    force.setForceGroup(5)
    system.addForce(force)
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatform("Reference"))

    def state(pos):
        context.setPositions(pos)
        return context.getState(energy=True, forces=True, groups={5})

    forces = state(positions).getForces(asNumpy=True)._value
    direction = np.random.default_rng(3).normal(size=positions.shape)
    step = 2e-4
    up, down = (state(positions + sign * step * direction).getPotentialEnergy()._value for sign in (1, -1))
    assert (forces * direction).sum() == pytest.approx(-(up - down) / (2 * step), rel=0.02)
    assert abs((forces * direction).sum()) > 0.1


def test_it_becomes_the_cv_of_a_molecule_with_data_of_it(file, tmp_path):
    shared, structure = CollectiveVariable.load(file), ala2()
    noise = 0.01 * np.random.default_rng(4).normal(size=(120, structure.n_atoms, 3))
    trajectory = mdtraj.Trajectory(structure.xyz + noise, structure.topology)
    own = cv_of_molecule(shared, structure.topology, [trajectory], 1.0)
    psi = own.bind(structure.topology).compute(trajectory)
    np.testing.assert_allclose(psi.mean(0), 0, atol=0.1)
    np.testing.assert_allclose(psi.std(0), 1, atol=0.1)
    assert not own.output.is_identity and own.training_information["frames"] == [120]
    own.save(tmp_path / "own.cv.safetensors")
    again = CollectiveVariable.load(tmp_path / "own.cv.safetensors")
    np.testing.assert_array_equal(again.bind(structure.topology).compute(trajectory), psi)
    with pytest.raises(GeomGNNError, match="residue"):  # it is for no other
        own.bind(peptide("S")[0])
    with pytest.raises(GeomGNNError, match="that of one molecule"):
        cv_of_molecule(own, structure.topology, [trajectory], 1.0)


def test_elements_that_it_has_not_seen_are_named(file):
    topology, _ = peptide("M")
    with pytest.warns(UserWarning, match="trained on molecules of C, N, O, and this one has S"):
        CollectiveVariable.load(file).bind(topology)


def test_info_says_what_it_is(file, capsys):
    info.show_info(file)
    told = capsys.readouterr().out
    assert "a network for several molecules" in told and "Ace-A-Nme, another" in told


@pytest.mark.parametrize(
    ("options", "message"), [({"n_tokens": 3}, "any number of tokens"), ({"window": "space"}, "Windows by space")]
)
def test_what_is_for_one_molecule_alone_is_refused(options, message):
    with pytest.raises(GeomGNNError, match=message):
        make(**options)
