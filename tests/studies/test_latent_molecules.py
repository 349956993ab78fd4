"""Observables of molecules, states between the layers of networks, and the comparison with random weights."""

import mdtraj
import numpy as np
import pytest
import torch
from molecules import ala2, random_encoder
from turning_phi import trajectory

from openmm_geomgnn import Encoder
from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.representation.featurization import Featurization
from openmm_geomgnn.representation.selection import select_atoms
from openmm_geomgnn.representation.spec import TokenSpec
from openmm_geomgnn.studies.latent.networks import layer_features, make_networks, representations
from openmm_geomgnn.studies.latent.observables import Observable, observables
from openmm_geomgnn.studies.latent.study import LatentSpace
from openmm_geomgnn.studies.latent.tables import compare
from torchmdnet_ext.layers import layers_of, recorded_states


@pytest.fixture(scope="module")
def turning():
    return trajectory(60)


def heavy(part):
    return select_atoms(part.topology)


class TestObservables:
    def test_torsions_size_and_distance(self, turning):
        part, turned = turning
        atoms = heavy(part)
        found = {one.name: one for one in observables([part.xyz[:20, atoms], part.xyz[20:, atoms]], part.topology, atoms)}
        assert [one.kind for one in found.values()] == ["omega", "phi", "psi", "omega", "radius of gyration", "RMSD"]
        phi = found["phi ALA2"]
        np.testing.assert_allclose(phi.values, mdtraj.compute_phi(part)[1][:, 0], atol=1e-5)
        assert phi.is_angle and phi.target.shape == (60, 2) and abs(np.corrcoef(phi.values, turned)[0, 1]) > 0.9
        np.testing.assert_allclose(np.arctan2(*phi.target.T[::-1]), phi.values)
        alone = part.atom_slice(atoms)
        np.testing.assert_allclose(found["RMSD"].values, mdtraj.rmsd(alone, alone, 0), atol=2e-4)
        masses = np.array([atom.element.mass for atom in alone.topology.atoms])
        centred = alone.xyz - np.average(alone.xyz, axis=1, weights=masses)[:, None]
        radius = np.sqrt((masses[:, None] * centred**2).sum(axis=(1, 2)) / masses.sum())
        np.testing.assert_allclose(found["radius of gyration"].values, radius, atol=1e-6)

    def test_reference(self, turning):
        part, _ = turning
        atoms = heavy(part)
        found = observables([part.xyz[:, atoms]], part.topology, atoms, part.xyz[7, atoms])
        distances = next(one for one in found if one.name == "RMSD").values
        assert distances.argmin() == 7 and distances[0] > 0.01

    def test_contacts(self, repository):
        """Of a chain that is stretched there are none left, and fewer the more it is stretched."""
        part = mdtraj.load(str(repository / "openmm_geomgnn/data/ala3.pdb"))
        atoms = heavy(part)
        folded = part.xyz[0, atoms]
        folded = folded * 0.5  # everything is near everything
        frames = np.stack([folded * scale for scale in (1.0, 2.0, 20.0)])
        found = {one.name: one.values for one in observables([frames], part.topology, atoms)}
        assert found["contacts"][0] == found["contacts"].max() > 0 and found["contacts"][2] == 0
        np.testing.assert_allclose(found["contacts kept"][[0, 2]], [1, 0])

    def test_nothing_varies(self):
        frame = ala2()
        atoms = heavy(frame)
        with pytest.raises(GeomGNNError, match="Neither torsions nor the size"):
            observables([np.repeat(frame.xyz[:, atoms], 5, axis=0)], frame.topology, atoms)


NETWORKS = {
    "smooth-equivariant-transformer": {},
    "visnet": {"embedding_dimension": 16},
    "smooth-tensornet": {},
}


@pytest.mark.parametrize("model", NETWORKS)
def test_states_between_layers(model, turning):
    """There is one for each layer, they turn with the molecule, and recording changes nothing."""
    encoder = random_encoder(model, **NETWORKS[model])
    network = encoder.network
    pos = torch.as_tensor(10 * ala2().xyz[0])
    z = torch.tensor([atom.element.atomic_number for atom in ala2().topology.atoms])
    turn = torch.as_tensor(np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0], dtype=torch.float32)
    batch = torch.zeros(len(z), dtype=torch.long)
    plain = encoder(z, pos, batch)
    with recorded_states(network) as states:
        recorded = encoder(z, pos, batch)
        straight = list(states)
        encoder(z, pos @ turn.T, batch)
        turned = list(states)
    assert len(layers_of(network)) == len(straight) == len(turned) == 2
    torch.testing.assert_close(recorded, plain)
    for (x, v), (other_x, other_v) in zip(straight, turned, strict=True):
        assert x.shape == (22, 16) and v.shape == (22, 3, 16)
        torch.testing.assert_close(other_x, x, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(other_v, torch.einsum("ij,njh->nih", turn, v), atol=1e-4, rtol=1e-4)
    assert straight[1][0].std() > 0 and straight[1][1].abs().max() > 0
    encoder(z, pos, batch)
    assert len(states) == 2  # nothing is recorded any more


def test_a_network_whose_layers_are_not_known():
    network = torch.nn.Linear(2, 2)
    with recorded_states(network) as states:
        network(torch.zeros(1, 2))
    assert layers_of(network) is None and states == []


def test_layers_end_in_the_output(turning):
    part, _ = turning
    (network, *untrained) = make_networks([random_encoder()], 2, seed=3)
    featurization = Featurization(part.topology, TokenSpec(window="sequence"), network.encoder)
    positions = [featurization.molecule.positions(part)]
    found = dict(layer_features(network, featurization, positions, [torch.arange(0, 60, 3)]))
    assert list(found) == ["embedding", "layer 1", "layer 2"]
    tokens = featurization.tokenizer.embed(positions[0])
    both = representations([tokens])
    for name, features in found["layer 2"].items():
        np.testing.assert_allclose(features, both[name][::3], atol=1e-5)
    assert np.ptp(found["layer 1"]["pooled"], axis=0).max() > 1e-3
    assert both["pooled"].shape == (60, 32) and both["tokens"].shape == (60, 3 * 32)
    np.testing.assert_allclose(both["tokens"].reshape(60, 3, 32).mean(axis=1), both["pooled"], atol=1e-5)
    assert [one.name for one in untrained] == ["random weights 1", "random weights 2"]
    assert len({one.encoder.content_hash() for one in (network, *untrained)}) == 3
    assert untrained[0].encoder.content_hash() == network.encoder.with_random_weights(3).content_hash()


def test_encoders_of_the_same_name_are_told_apart():
    networks = make_networks([Encoder.load("et-64"), Encoder.load("et-64")], 0, 1)
    assert [one.name for one in networks] == ["et-64 (1)", "et-64 (2)"]


def test_comparison_with_random_weights():
    networks = make_networks([random_encoder()], 3, 1)
    names = ("phi 1", "phi 2", "RMSD")
    space = LatentSpace(networks, [Observable(name, name[:3], np.zeros(2), "") for name in names], [2])
    for representation in ("pooled", "tokens"):
        space.r2["random", representation] = np.array([[0.9, 0.8], [0.5, 0.5], [0.1, 0.3]])
        for k in range(3):
            space.r2[f"random weights {k + 1}", representation] = np.array([[0.7, 0.7], [0.4 + k / 10] * 2, [0.6, 0.6]])
    found = compare(space)[0]
    assert (found.better, found.worse, found.observables) == (1, 1, 3)
    assert found.r2 == pytest.approx(31 / 60) and found.random == pytest.approx((17 / 30, 18 / 30, 19 / 30))
    assert found.difference == pytest.approx(31 / 60 - 0.6) and found.difference_error == pytest.approx(1 / 60)
    assert "0.567 to 0.633 with random weights (3 networks)" in found.in_words()
    space.r2["random", "pooled"][2, 0] = np.nan  # it does not vary there in any network
    for k in range(3):
        space.r2[f"random weights {k + 1}", "pooled"][2, 0] = np.nan
    assert compare(space)[0].observables == 2
    assert compare(LatentSpace(networks[:1], space.observables, [2], space.r2)) == []
