"""The compiled equivariant transformer against the plain PyTorch one."""

import copy
import math

import numpy as np
import pytest
import torch

pytest.importorskip("numba")

from openmm_geomgnn.engines.et_numba import NumbaET
from openmm_geomgnn.engines.kernel_cache import cache_folder
from openmm_geomgnn.engines.tables import radial_filters_and_slopes, tabulate
from openmm_geomgnn.errors import GeomGNNError
from torchmdnet_ext.models.equivariant_transformer import SmoothEquivariantTransformer

CUTOFF = 5.0
ELEMENTS = np.array([1, 6, 7, 8, 16, 35])


def make_network(seed=0, **settings):
    defaults = {
        "hidden_channels": 32,
        "num_layers": 3,
        "num_rbf": 32,
        "num_heads": 8,
        "cutoff_upper": CUTOFF,
        "neighbor_embedding": False,
    }
    torch.manual_seed(seed)
    network = SmoothEquivariantTransformer(**{**defaults, **settings})
    with torch.no_grad():  # as made, all biases are 0 and all gains are 1
        for name, parameter in network.named_parameters():
            if name.endswith("bias") or "norm" in name:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return network.eval().requires_grad_(False)


def make_molecule(n, seed=0):
    """A random tree of atoms 1.4 angstrom apart."""
    rng = np.random.default_rng(seed)
    pos = [np.zeros(3)]
    while len(pos) < n:
        step = rng.normal(size=3)
        new = pos[rng.integers(max(0, len(pos) - 3), len(pos))] + 1.4 * step / np.linalg.norm(step)
        if np.linalg.norm(np.array(pos) - new, axis=1).min() > 1.2:
            pos.append(new)
    return rng.choice(ELEMENTS, n), torch.tensor(np.array(pos))


def cotangents(n, hidden, seed=3):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, hidden, generator=generator, dtype=torch.float64)
    return x, torch.randn(n, 3, hidden, generator=generator, dtype=torch.float64)


def run(function, pos, hidden):
    """x, v and the gradient of a random combination of them."""
    pos = pos.clone().requires_grad_()
    x, v = function(pos)
    g_x, g_v = cotangents(len(pos), hidden)
    (gradient,) = torch.autograd.grad((x * g_x.to(x)).sum() + (v * g_v.to(v)).sum(), pos)
    return x.detach(), v.detach(), gradient


def eager(network, z, pairs, batch=None):
    network, z = copy.deepcopy(network).double(), torch.as_tensor(z)
    pairs = tuple(torch.as_tensor(side) for side in pairs)
    batch = torch.zeros(len(z), dtype=torch.long) if batch is None else batch
    return lambda pos: network(z, pos.double(), batch, pairs=pairs)[:2]


SETTINGS = [
    {"hidden_channels": 64, "num_rbf": 64, "cutoff_upper": 7.5},
    {"hidden_channels": 16, "num_heads": 4, "num_layers": 2},
    {"hidden_channels": 48, "num_heads": 16},  # two groups of heads, an odd number of channels in each head
    {"hidden_channels": 15, "num_heads": 3, "num_layers": 2},
    {"num_layers": 1},
    {"num_heads": 1, "num_layers": 2},
    {"smooth_cutoff": False},
    {"vector_cutoff": True, "smooth_cutoff": False},
    {"vector_cutoff": True, "envelope_width": 2.5},
    {"distance_influence": "keys", "rbf_type": "gauss", "trainable_rbf": False},
    {"distance_influence": "values", "activation": "tanh"},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: "-".join(f"{k}={v}" for k, v in s.items()))
def test_equals_the_plain_network(settings):
    network = make_network(**settings)
    z, pos = make_molecule(14)
    pos[4] += 40.0  # an isolated atom; other pairs are beyond the cutoff, too
    pairs = np.triu_indices(14, 1)
    hidden = network.hidden_channels
    expected = run(eager(network, z, pairs), pos, hidden)
    for precision, tolerance in (("single", 1e-5), ("double", 2e-7)):
        x, v, gradient = run(NumbaET(network, z, pairs, precision=precision), pos, hidden)
        assert x.dtype == (torch.float32 if precision == "single" else torch.float64)
        assert gradient.dtype == pos.dtype
        for value, reference in ((x, expected[0]), (v, expected[1])):
            assert (value - reference).abs().max() < tolerance * max(1.0, reference.abs().max())
        assert (gradient - expected[2]).norm() < 2 * max(tolerance, 5e-6) * expected[2].norm()


def test_two_graphs_in_any_order_of_pairs():
    network = make_network()
    (z, pos), (z2, pos2) = make_molecule(9, 1), make_molecule(7, 2)
    z, pos = np.concatenate([z, z2]), torch.cat([pos, pos2])
    first, second = np.triu_indices(9, 1), np.triu_indices(7, 1)
    pairs = [np.concatenate([a, b + 9]) for a, b in zip(first, second, strict=True)]
    batch = torch.tensor([0] * 9 + [1] * 7)
    expected = run(eager(network, z, pairs, batch), pos, 32)
    shuffled = np.random.default_rng(0).permutation(len(pairs[0]))
    for order in (np.arange(len(shuffled)), shuffled):
        got = run(NumbaET(network, z, [side[order] for side in pairs]), pos.float(), 32)
        for value, reference in zip(got, expected, strict=True):
            assert (value - reference).norm() < 1e-5 * reference.norm()


def test_single_atom_without_pairs():
    network = make_network()
    none = np.zeros(0, int)
    x, v, gradient = run(NumbaET(network, [8], (none, none)), torch.zeros(1, 3), 32)
    reference, _ = eager(network, [8], (none, none))(torch.zeros(1, 3))
    assert (x - reference).abs().max() < 1e-5
    assert not v.any() and not gradient.any()


def test_gradient_is_the_derivative_of_the_value():
    # of the tabulated value, so that energy is conserved: it must hold with a coarse table as well
    network = make_network()
    z, pos = make_molecule(8)
    pos[5] = pos[2] + torch.tensor([0.0, 0.1, 0.2])  # far closer than in any molecule
    for intervals in (None, 100):
        engine = NumbaET(network, z, np.triu_indices(8, 1), precision="double", intervals=intervals)
        _, _, gradient = run(engine, pos, 32)
        g_x, g_v = cotangents(8, 32)
        h = 1e-5
        for atom in range(8):
            for axis in range(3):
                step = torch.zeros_like(pos)
                step[atom, axis] = h
                with torch.no_grad():
                    (xa, va), (xb, vb) = engine(pos + step), engine(pos - step)
                slope = (((xa - xb) * g_x).sum() + ((va - vb) * g_v).sum()) / (2 * h)
                assert abs(slope - gradient[atom, axis]) < 1e-6 * gradient.abs().max()


def random_rotation(seed):
    q, r = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    q *= np.sign(np.diag(r))
    return torch.tensor(q * np.sign(np.linalg.det(q)), dtype=torch.float64)


@pytest.mark.parametrize("improper", [False, True])
def test_equivariance(improper):
    network = make_network()
    z, pos = make_molecule(12)
    engine = NumbaET(network, z, np.triu_indices(12, 1))
    rotation = random_rotation(5) * (-1 if improper else 1)
    x, v = engine(pos)
    x2, v2 = engine(pos @ rotation.T + torch.tensor([3.0, -20.0, 1.0]))
    assert (x - x2).abs().max() < 1e-5
    assert (torch.einsum("ab,nbh->nah", rotation.float(), v) - v2).abs().max() < 1e-5


def test_nan_in_nan_out():
    network = make_network()
    z, pos = make_molecule(6)
    engine = NumbaET(network, z, np.triu_indices(6, 1))
    for bad in (math.nan, math.inf):
        broken = pos.clone()
        broken[3, 1] = bad
        assert all(part.isnan().all() for part in run(engine, broken, 32))
    x, v, gradient = run(engine, pos, 32)
    assert x.isfinite().all() and v.isfinite().all() and gradient.isfinite().all()
    # NaN in the parameters of one layer reaches the output as well
    network.attention_layers[1].k_proj.weight[0, 0] = math.nan
    assert NumbaET(network, z, np.triu_indices(6, 1), intervals=64)(pos)[0].isnan().any()


def test_smooth_across_the_cutoff():
    network = make_network()
    engine = NumbaET(network, [6, 8], ([0], [1]), precision="double")

    def at(distance):
        return run(engine, torch.tensor([[0.1, 0.2, 0.0], [0.1, 0.2, distance]], dtype=torch.float64), 32)

    gap = 1e-5
    for inside, outside in zip(at(CUTOFF - gap), at(CUTOFF + gap), strict=True):
        assert (inside - outside).abs().max() < 1000 * gap**2  # value and gradient; the envelope's slope is that small
    # and through the end of the envelope's plateau and through nodes of the table
    nodes = engine.grid.nodes()
    for middle in (CUTOFF - 1.0, nodes[300], nodes[500], nodes[-2]):
        for low, high in zip(at(middle - gap), at(middle + gap), strict=True):
            assert (low - high).abs().max() < 200 * gap * max(1.0, low.abs().max())


def test_the_cutoff_jump_of_the_published_network_is_kept():
    network = make_network(smooth_cutoff=False)
    engine = NumbaET(network, [6, 8], ([0], [1]))
    pos = torch.zeros(2, 3)
    pos[1, 0] = CUTOFF - 1e-3
    assert (engine(pos)[1] - eager(network, [6, 8], ([0], [1]))(pos)[1]).abs().max() < 1e-5
    assert engine(pos)[1].abs().max() > 1e-3
    pos[1, 0] = CUTOFF + 1e-3
    assert engine(pos)[1].abs().max() == 0


def test_atoms_at_the_same_place():
    network = make_network()
    pos = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, 0.0], [1.4, 0.0, 0.0]], dtype=torch.float64)
    pairs = np.triu_indices(3, 1)
    got = run(NumbaET(network, [1, 6, 8], pairs), pos, 32)
    for value, reference in zip(got[:2], run(eager(network, [1, 6, 8], pairs), pos, 32)[:2], strict=True):
        assert (value - reference).abs().max() < 1e-5
    assert got[2].isfinite().all()


def test_bitwise_repeatable_and_independent_of_other_evaluations():
    network = make_network()
    z, pos = make_molecule(11)
    other = pos + 0.1 * torch.randn(pos.shape, generator=torch.Generator().manual_seed(1), dtype=pos.dtype)
    engine = NumbaET(network, z, np.triu_indices(11, 1))
    first = run(engine, pos, 32)
    run(engine, other, 32)
    for again in (run(engine, pos, 32), run(NumbaET(network, z, np.triu_indices(11, 1)), pos, 32)):
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


def test_gradient_of_one_output_only():
    network = make_network()
    z, pos = make_molecule(6)
    pairs = np.triu_indices(6, 1)
    for output in (0, 1):
        gradients = []
        for function in (NumbaET(network, z, pairs), eager(network, z, pairs)):
            q = pos.clone().requires_grad_()
            gradients.append(torch.autograd.grad(function(q)[output].square().sum(), q)[0])
        assert (gradients[0] - gradients[1]).norm() < 1e-5 * gradients[1].norm()


def test_parameters_are_copied():
    network = make_network()
    z, pos = make_molecule(6)
    engine = NumbaET(network, z, np.triu_indices(6, 1))
    before = engine(pos)[0]
    network.embedding.weight.mul_(2.0)
    network.out_norm.weight.zero_()
    assert torch.equal(before, engine(pos)[0])


def test_table_converges_with_the_fourth_power():
    network = make_network()
    r = np.linspace(0.0, CUTOFF, 997)
    exact, slope = radial_filters_and_slopes(network, r)
    errors = []
    for intervals in (512, 1024):
        grid, coefficients = tabulate(network, intervals)
        s = grid.u(r) * intervals
        k = np.minimum(s.astype(int), intervals - 1)
        t = (s - k).reshape(1, -1, 1, 1)
        c = coefficients[:, k].transpose(2, 0, 1, 3, 4)
        value = c[0] + t * (c[1] + t * (c[2] + t * c[3]))
        errors.append(np.abs(value - exact).max())
    assert errors[1] < 2e-6 and errors[0] / errors[1] > 10
    assert np.abs(exact[:, -1, 1:]).max() < 1e-12 and np.abs(slope[:, -1, 1:]).max() < 1e-12  # nothing at the cutoff


def test_refusals():
    assert NumbaET.supports(make_network()) is None
    refused = make_network(neighbor_embedding=True)
    assert "neighbor_embedding" in NumbaET.supports(refused)
    with pytest.raises(GeomGNNError, match="neighbor_embedding"):
        NumbaET(refused, [6], ([], []))
    assert "Linear" in NumbaET.supports(torch.nn.Linear(2, 2))
    assert "attn_activation" in NumbaET.supports(make_network(attn_activation="tanh"))
    network = make_network()
    for z, pairs, message in (
        ([6, 6], ([0], [2]), "numbered from 0 to 1"),
        ([6, 6], ([1], [1]), "two different atoms"),
        ([6, 6], ([0, 1], [1, 0]), "twice"),
        ([6, 6], ([0], [1, 0]), "equally long"),
        ([6, 400], ([0], [1]), "Atomic numbers"),
    ):
        with pytest.raises(GeomGNNError, match=message):
            NumbaET(network, z, pairs)
    with pytest.raises(GeomGNNError, match="precision"):
        NumbaET(network, [6], ([], []), precision="half")
    engine = NumbaET(network, [6, 6], ([0], [1]), intervals=64)
    with pytest.raises(GeomGNNError, match="shape"):
        engine(torch.zeros(3, 3))
    q = torch.tensor([[0.0, 0, 0], [1.5, 0, 0]], requires_grad=True)
    (gradient,) = torch.autograd.grad(engine(q)[0].sum(), q, create_graph=True)
    with pytest.raises(RuntimeError):
        gradient.sum().backward()  # second derivatives are refused, not silently 0


def test_compiled_kernels_go_to_a_folder_that_can_be_written(monkeypatch, tmp_path):
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "kernels"))
    assert cache_folder().is_relative_to(tmp_path / "kernels")
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(blocked))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    assert cache_folder().is_relative_to(tmp_path / "user")


def test_processes_share_the_folder_of_compiled_kernels(monkeypatch, tmp_path):
    from numba import njit

    from openmm_geomgnn.engines.kernel_cache import keep_compiled

    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))

    def add_one(x):
        return x + 1

    def fresh():
        # what another process does: a new dispatcher that has not seen the folder yet
        return keep_compiled(njit(add_one))

    one, other = fresh(), fresh()
    assert one(1) == 2 and other(1.5) == 2.5  # two signatures, written by different processes
    again = fresh()
    assert again(2) == 3 and again(2.5) == 3.5
    assert sum(again.stats.cache_hits.values()) == 2 and not again.stats.cache_misses
