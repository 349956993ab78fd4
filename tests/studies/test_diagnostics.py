"""Over-smoothing and under-reaching: known features, symmetries, and that nothing is felt beyond what messages reach."""

import numpy as np
import pytest
import torch
from small_networks import SETTINGS, make_network
from torch import nn

from openmm_geomgnn import Encoder
from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.studies.diagnostics import _energy, _rank, layer_features, over_smoothing, under_reaching
from torchmdnet_ext.registration import MODELS

pytestmark = pytest.mark.slow
SPACING = 3.0  # angstrom, of a chain of atoms


def chain(model, atoms=9):
    network = make_network(model).eval()
    encoder = Encoder(network, SETTINGS[model])
    pos = np.zeros((atoms, 3))
    pos[:, 0] = np.arange(atoms) * SPACING
    pos += 0.05 * np.random.default_rng(0).standard_normal(pos.shape)
    return encoder, np.array([6, 7, 8] * atoms)[:atoms], pos


@pytest.mark.parametrize("model", MODELS)
def test_every_encoder(model):
    encoder, z, pos = chain(model)
    found = over_smoothing(encoder, z, pos)
    layers = len(layer_features(encoder, torch.as_tensor(z), torch.as_tensor(pos).to(encoder.dtype))) - 1
    assert layers >= 2 and len(found.energy) == len(found.rank) == layers + 1
    assert (found.energy > 0).all() and (found.rank >= 1).all() and (found.rank <= len(z) - 1 + 1e-9).all()
    turn, _ = np.linalg.qr(np.random.default_rng(1).standard_normal((3, 3)))
    order = np.random.default_rng(2).permutation(len(z))
    other = over_smoothing(encoder, z[order], (pos @ turn.T + 1.0)[order])
    assert other.energy == pytest.approx(found.energy, rel=1e-3) and other.rank == pytest.approx(found.rank, rel=1e-3)


@pytest.mark.parametrize("model", MODELS)
def test_nothing_is_felt_beyond_the_messages(model):
    encoder, z, pos = chain(model)
    layers = len(over_smoothing(encoder, z, pos).energy) - 1
    reach = under_reaching(encoder, z, pos, draws=2)
    assert reach.jacobian.shape == reach.distance.shape == reach.hops.shape == (len(z) * (len(z) - 1),)
    near, far = reach.hops == 1, reach.hops > layers + 2  # one more for embeddings of neighbours
    assert far.any() and (reach.jacobian[far] == 0).all() and (reach.jacobian[near] > 0).all()
    by_hops = reach.by_hops()
    assert by_hops[1] > by_hops[2] and list(by_hops) == sorted(by_hops)
    assert (np.ceil(reach.distance / encoder.cutoff) <= reach.hops).all()


def test_a_jacobian_is_that_of_differences():
    encoder, z, pos = chain("visnet", 4)
    double = encoder.in_precision(torch.float64) if encoder.dtype != torch.float64 else encoder
    reach = under_reaching(double, z, pos, draws=400)
    exact, step = np.zeros((4, 4)), 1e-4
    for j in range(4):
        for axis in range(3):
            ends = []
            for sign in (1, -1):
                moved = pos.copy()
                moved[j, axis] += sign * step
                ends.append(double.embed(z, moved, engine="eager")[0].astype(np.float64))
            exact[:, j] += (((ends[0] - ends[1]) / (2 * step)) ** 2).sum(1)
    exact = np.sqrt(exact)
    expected = (exact / exact.diagonal().mean())[~np.eye(4, dtype=bool)]
    assert reach.jacobian == pytest.approx(expected, rel=0.1, abs=1e-6)


def test_features_that_are_known():
    ring = np.roll(np.eye(6), 1, 0) + np.roll(np.eye(6), -1, 0) > 0
    rng = np.random.default_rng(3)
    alternating = np.array([[1.0], [-1.0]] * 3)
    assert _energy(alternating, ring) == pytest.approx(4 / (4 * 18 / 30))  # neighbours always differ
    assert _energy(np.repeat([[0.0], [1.0]], 3, 0), ring) < 1 < _energy(alternating, ring)
    assert np.isnan(_energy(np.ones((6, 2)), ring)) and _rank(np.ones((6, 2))) == 0
    assert _rank(alternating) == pytest.approx(1) and _rank(np.eye(6)) == pytest.approx(5)
    assert _rank(rng.standard_normal((200, 4))) > 3.9


def test_what_has_no_answer():
    encoder, z, pos = chain("visnet", 4)
    with pytest.raises(GeomGNNError, match="No two atoms are nearer than the cutoff"):
        over_smoothing(encoder, z, 100 * pos)
    with pytest.raises(GeomGNNError, match=r"z has shape \(3,\)"):
        under_reaching(encoder, z[:3], pos)
    encoder.network.vis_mp_layers = nn.Sequential(*encoder.network.vis_mp_layers)
    with pytest.raises(GeomGNNError, match="cannot be told"):
        over_smoothing(encoder, z, pos)
