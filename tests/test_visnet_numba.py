"""The compiled ViSNet against the plain PyTorch one, and against geom2vec's own numbers."""

import copy
import math

import numpy as np
import pytest
import torch

pytest.importorskip("numba")

from molecules import ala2, random_cv, random_encoder
from physics import molecule, orthogonal

from openmm_geomgnn import Encoder
from openmm_geomgnn.engines import compiled_class, compiled_forward
from openmm_geomgnn.engines.visnet_numba import NumbaViSNet
from openmm_geomgnn.errors import GeomGNNError
from torchmdnet_ext.models.visnet import ViSNet

CUTOFF = 5.0


def make_network(**settings):
    torch.manual_seed(0)
    defaults = {"hidden_channels": 32, "num_layers": 4, "num_rbf": 16, "num_heads": 8, "cutoff_upper": CUTOFF}
    network = ViSNet(**{**defaults, **settings})
    with torch.no_grad():  # as made, all biases are 0 and all gains are 1
        for name, parameter in network.named_parameters():
            if name.endswith("bias") or "norm" in name:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return network.eval().requires_grad_(False)


def make_molecule(n, seed=0):
    z, pos = molecule(n, seed)
    return z.numpy(), pos.double()


def cotangents(n, hidden, seed=3):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, hidden, generator=generator, dtype=torch.float64)
    return x, torch.randn(n, 3, hidden, generator=generator, dtype=torch.float64)


def run(function, pos):
    """x, v and the gradient of a random combination of them."""
    pos = pos.clone().requires_grad_()
    x, v = function(pos)
    g_x, g_v = cotangents(*x.shape)
    (gradient,) = torch.autograd.grad((x * g_x.to(x)).sum() + (v * g_v.to(v)).sum(), pos)
    return x.detach(), v.detach(), gradient


def eager(network, z, pairs):
    network, z = copy.deepcopy(network).double(), torch.as_tensor(z)
    pairs = tuple(torch.as_tensor(side) for side in pairs)
    batch = torch.zeros(len(z), dtype=torch.long)

    def features(pos):
        x, v = network(z, pos.double(), batch, pairs=pairs)[:2]
        return x, v[:, :3]

    return features


def assert_equal(found, expected, tolerance, slope):
    for value, reference in zip(found[:2], expected[:2], strict=True):
        assert (value - reference).abs().max() < tolerance * reference.abs().max()
    assert (found[2] - expected[2]).norm() < slope * expected[2].norm()


SETTINGS = [
    {"hidden_channels": 64, "num_layers": 6, "num_rbf": 64, "cutoff_upper": 7.5},
    {"vecnorm_type": "max_min", "trainable_vecnorm": True},
    {"lmax": 2},
    {"lmax": 2, "vecnorm_type": "max_min", "trainable_vecnorm": True},
    {"smooth_cutoff": False},
    {"envelope_width": 2.5},
    {"num_layers": 1},
    {"num_layers": 2},
    {"num_layers": 3},
    {"hidden_channels": 48, "num_heads": 16},  # two groups of heads, an odd number of channels in each head
    {"hidden_channels": 15, "num_heads": 3, "vecnorm_type": "max_min"},
    {"num_heads": 1},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: "-".join(f"{k}={v}" for k, v in s.items()))
def test_equals_the_plain_network(settings):
    network = make_network(**settings)
    z, pos = make_molecule(14)
    pos[4] += 40.0  # an isolated atom; other pairs are beyond the cutoff, too
    pairs = np.triu_indices(14, 1)
    expected = run(eager(network, z, pairs), pos)
    found = run(NumbaViSNet(network, z, pairs), pos)
    assert found[0].dtype == found[1].dtype == torch.float32 and found[2].dtype == pos.dtype
    assert_equal(found, expected, 1e-5, 2e-5)
    assert_equal(run(NumbaViSNet(network, z, pairs, precision="double"), pos), expected, 1e-9, 1e-6)


@pytest.mark.parametrize("system", ["ala2", "chignolin"])
def test_equals_what_geom2vec_computes(shared_data, system):
    weights = shared_data / "geom2vec_weights" / "visnet_l6_h64_rbf64_r75.pth"
    network = Encoder.load(weights, smooth_cutoff=False).network
    reference = np.load(shared_data / "reference_embeddings" / f"visnet_l6_h64_rbf64_r75_{system}.npz")
    for atoms in ("all", "heavy"):
        z, frames = reference[f"Z_{atoms}"], reference[f"pos_{atoms}"]
        single = NumbaViSNet(network, z, np.triu_indices(len(z), 1), gradient=False)
        for frame, x, v in zip(frames, reference[f"x_f64_{atoms}"], reference[f"v_f64_{atoms}"], strict=True):
            for found, expected in zip(single.forward(frame), (x, v), strict=False):
                assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()
    double = NumbaViSNet(network, z, np.triu_indices(len(z), 1), "double", gradient=False)
    for found, expected in zip(double.forward(frame), (x, v), strict=False):
        assert np.abs(found - expected).max() < 1e-9 * np.abs(expected).max()


def test_parts_and_graphs_without_gradient():
    """Groups of atoms one after the other give what all at once give, also after evaluations of larger ones."""
    network = make_network(vecnorm_type="max_min")
    sizes = (9, 14, 1, 6)
    molecules = [make_molecule(n, n) for n in sizes]
    z, pos = np.concatenate([z for z, _ in molecules]), torch.cat([pos for _, pos in molecules])
    ends = np.cumsum(sizes)
    pairs = np.concatenate([np.array(np.triu_indices(n, 1)) + end - n for n, end in zip(sizes, ends, strict=True)], 1)
    whole, parts = NumbaViSNet(network, z, pairs), compiled_forward(network, z, pairs, ends)
    assert isinstance(parts, NumbaViSNet)
    for _ in range(2):
        for found, expected in zip(parts.forward(pos.numpy())[:2], whole.forward(pos.numpy())[:2], strict=True):
            np.testing.assert_allclose(found, expected, atol=2e-6)
        pos = pos * 1.01
    for k, end in enumerate(ends):
        expected = eager(network, molecules[k][0], np.triu_indices(sizes[k], 1))(pos[end - sizes[k] : end])
        for found, reference in zip(parts.forward(pos.numpy())[:2], expected, strict=True):
            assert np.abs(found[end - sizes[k] : end] - reference.numpy()).max() < 1e-5 * max(1.0, reference.abs().max())
    with pytest.raises(GeomGNNError, match="gradient=True"):
        parts.vjp(pos.numpy(), None, None)
    with pytest.raises(GeomGNNError, match="joins atoms of two parts"):
        compiled_forward(network, z, pairs, [3, len(z)])
    with pytest.raises(GeomGNNError, match="must rise to the number of atoms, 30"):
        compiled_forward(network, z, pairs, [9])


def test_gradient_is_the_derivative_of_the_value():
    # of the tabulated value, so that energy is conserved: it must hold with a coarse table as well
    network = make_network(vecnorm_type="max_min", lmax=2)
    z, pos = make_molecule(6)
    pos[5] = pos[2] + torch.tensor([0.0, 0.1, 0.2])  # far closer than in any molecule
    engine = NumbaViSNet(network, z, np.triu_indices(6, 1), precision="double", intervals=100)
    _, _, gradient = run(engine, pos)
    g_x, g_v = cotangents(6, 32)
    h = 1e-5
    for atom in range(6):
        for axis in range(3):
            step = torch.zeros_like(pos)
            step[atom, axis] = h
            with torch.no_grad():
                (xa, va), (xb, vb) = engine(pos + step), engine(pos - step)
            slope = (((xa - xb) * g_x).sum() + ((va - vb) * g_v).sum()) / (2 * h)
            assert abs(slope - gradient[atom, axis]) < 1e-6 * gradient.abs().max()


@pytest.mark.parametrize("proper", [True, False])
def test_equivariance(proper):
    network = make_network(vecnorm_type="max_min", lmax=2)
    z, pos = make_molecule(12)
    engine = NumbaViSNet(network, z, np.triu_indices(12, 1))
    rotation = orthogonal(5, proper).double()
    x, v = engine(pos)
    x2, v2 = engine(pos @ rotation.T + torch.tensor([3.0, -20.0, 1.0]))
    assert (x - x2).abs().max() < 2e-5
    assert (torch.einsum("ab,nbh->nah", rotation.float(), v) - v2).abs().max() < 2e-5


def test_single_atom_without_pairs():
    network = make_network(vecnorm_type="max_min")
    none = np.zeros(0, int)
    x, v, gradient = run(NumbaViSNet(network, [8], (none, none)), torch.zeros(1, 3))
    reference, _ = eager(network, [8], (none, none))(torch.zeros(1, 3))
    assert (x - reference).abs().max() < 1e-5 * reference.abs().max()
    assert not v.any() and not gradient.any()


@pytest.mark.parametrize("vecnorm", ["none", "max_min"])
def test_atoms_at_the_same_place(vecnorm):
    network = make_network(vecnorm_type=vecnorm)
    pos = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, 0.0], [1.4, 0.0, 0.2]], dtype=torch.float64)
    pairs = np.triu_indices(3, 1)
    found = run(NumbaViSNet(network, [1, 6, 8], pairs), pos)
    assert_equal(found, run(eager(network, [1, 6, 8], pairs), pos), 1e-5, 1e-4)


def test_nan_in_nan_out():
    network = make_network()
    z, pos = make_molecule(6)
    engine = NumbaViSNet(network, z, np.triu_indices(6, 1))
    for bad in (math.nan, math.inf):
        broken = pos.clone()
        broken[3, 1] = bad
        assert all(part.isnan().all() for part in run(engine, broken))
    assert all(part.isfinite().all() for part in run(engine, pos))
    # NaN in the parameters of one layer reaches the output as well
    network.vis_mp_layers[1].dk_proj.weight[0, 0] = math.nan
    assert NumbaViSNet(network, z, np.triu_indices(6, 1), intervals=64)(pos)[0].isnan().any()


def test_smooth_across_the_cutoff():
    network = make_network()
    engine = NumbaViSNet(network, [6, 8], ([0], [1]), precision="double")

    def at(distance):
        return run(engine, torch.tensor([[0.1, 0.2, 0.0], [0.1, 0.2, distance]], dtype=torch.float64))

    gap = 1e-5
    for inside, outside in zip(at(CUTOFF - gap), at(CUTOFF + gap), strict=True):
        assert (inside - outside).abs().max() < 1000 * gap**2  # value and gradient; the envelope's slope is that small
    rough = NumbaViSNet(make_network(smooth_cutoff=False), [6, 8], ([0], [1]))
    pos = torch.zeros(2, 3)
    pos[1, 0] = CUTOFF - 1e-3
    assert rough(pos)[1].abs().max() > 1e-3  # the jump of the published network is kept
    pos[1, 0] = CUTOFF + 1e-3
    assert rough(pos)[1].abs().max() == 0


def test_bitwise_repeatable_and_independent_of_other_evaluations():
    network = make_network(vecnorm_type="max_min")
    z, pos = make_molecule(11)
    other = pos * 1.3
    engine = NumbaViSNet(network, z, np.triu_indices(11, 1))
    first = run(engine, pos)
    run(engine, other)
    for again in (run(engine, pos), run(NumbaViSNet(network, z, np.triu_indices(11, 1)), pos)):
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    # the backward pass of an evaluation that was not the last one, twice
    q = pos.clone().requires_grad_()
    x, v = engine(q)
    engine(other)
    g_x, g_v = cotangents(11, 32)
    loss = (x * g_x.float()).sum() + (v * g_v.float()).sum()
    for _ in range(2):
        (gradient,) = torch.autograd.grad(loss, q, retain_graph=True)
        assert torch.equal(gradient, first[2])


def test_parameters_are_copied():
    network = make_network()
    z, pos = make_molecule(6)
    engine = NumbaViSNet(network, z, np.triu_indices(6, 1))
    before = engine(pos)[0]
    network.embedding.weight.mul_(2.0)
    network.out_norm.weight.zero_()
    assert torch.equal(before, engine(pos)[0])


def test_refusals():
    network = make_network(num_layers=1)
    assert NumbaViSNet.supports(network) is None and compiled_class(network) is NumbaViSNet
    assert "vertex" in NumbaViSNet.supports(make_network(vertex=True))
    with pytest.raises(GeomGNNError, match="vertex"):
        NumbaViSNet(make_network(vertex=True), [6], ([], []))
    assert "Linear" in NumbaViSNet.supports(torch.nn.Linear(2, 2)) and compiled_class(torch.nn.Linear(2, 2)) is None
    network.distance.box.copy_(20.0 * torch.eye(3))
    assert "periodic" in NumbaViSNet.supports(network)
    network = make_network(num_layers=1)
    for z, pairs, message in (
        ([6, 6], ([0], [2]), "numbered from 0 to 1"),
        ([6, 6], ([1], [1]), "two different atoms"),
        ([6, 6], ([0, 1], [1, 0]), "twice"),
        ([6, 6], ([0], [1, 0]), "equally long"),
        ([6, 400], ([0], [1]), "Atomic numbers"),
    ):
        with pytest.raises(GeomGNNError, match=message):
            NumbaViSNet(network, z, pairs)
    with pytest.raises(GeomGNNError, match="precision"):
        NumbaViSNet(network, [6], ([], []), precision="half")
    with pytest.raises(GeomGNNError, match="shape"):
        NumbaViSNet(network, [6, 6], ([0], [1]), intervals=64)(torch.zeros(3, 3))


@pytest.mark.parametrize("window", ["all", "sequence"])
def test_a_collective_variable_uses_it(window):
    topology = ala2().topology
    cv = random_cv(topology, random_encoder("visnet"), mixer="mlp", window=window)
    bound = {engine: cv.bind(topology, engine=engine) for engine in ("auto", "numba")}
    assert [each.engine_name for each in bound.values()] == ["numba", "numba"]
    exact = cv.bind(topology, "double", "eager")
    pos, weights = 10.0 * ala2().xyz[0].astype(np.float64)[exact.atoms], np.array([0.7, -1.3])
    expected, vjp = exact.value_and_vjp(pos)
    gradient = vjp(weights)
    for each in bound.values():
        found, vjp = each.value_and_vjp(pos)
        np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())
        assert np.abs(vjp(weights) - gradient).max() < 1e-3 * np.abs(gradient).max()
