"""What every compiled network must do, as one suite of tests: the plain PyTorch network is the reference.

Subclass `CompiledSuite` under a name that starts with `Test`, give it an `engine`, `make_network` and a test of settings.
"""

import copy
import math

import numpy as np
import pytest
import torch
from molecules import ala2, random_cv, random_encoder

from openmm_geomgnn import Encoder
from openmm_geomgnn.testing.numerics import molecule, orthogonal
from torchmdnet_ext.compiled import compiled_class, compiled_forward

CUTOFF = 5.0


def ready(network):
    """A network as it is used, with biases that are not 0 and gains that are not 1."""
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith("bias") or "norm" in name:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return network.eval().requires_grad_(False)


def make_molecule(n, seed=0):
    z, pos = molecule(n, seed)
    return z.numpy(), pos.double()


def all_pairs(n):
    return np.triu_indices(n, 1)


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
        assert (value - reference).abs().max() < tolerance * max(1.0, reference.abs().max())
    assert (found[2] - expected[2]).norm() < slope * expected[2].norm()


class CompiledSuite:
    """What subclasses set.

    Attributes
    ----------
    engine : class
    model : str
        Its name for `torchmd-train`.
    weights : str
        The stem of geom2vec's weights for it.
    exact : float
        Error in double precision.
    hard : dict
        Settings of a hard case.
    jumps : bool
        Whether the published network is not continuous at the cutoff.
    """

    exact = 1e-9
    hard = {}
    jumps = True

    @staticmethod
    def make_network(**settings):
        """A network of 32 channels with the cutoff of this module."""
        raise NotImplementedError

    def check_settings(self, settings):
        network = self.make_network(**settings)
        z, pos = make_molecule(14)
        pos[4] += 40.0  # an isolated atom; other pairs are beyond the cutoff, too
        pairs = all_pairs(14)
        expected = run(eager(network, z, pairs), pos)
        found = run(self.engine(network, z, pairs), pos)
        assert found[0].dtype == found[1].dtype == torch.float32 and found[2].dtype == pos.dtype
        assert_equal(found, expected, 1e-5, 2e-5)
        found = run(self.engine(network, z, pairs, precision="double"), pos)
        assert found[0].dtype == found[1].dtype == torch.float64
        assert_equal(found, expected, self.exact, 1e-5)

    def test_pairs_in_any_order(self):
        network = self.make_network()
        z, pos = make_molecule(9)
        pairs = np.stack(all_pairs(9))
        shuffled = np.random.default_rng(0).permutation(pairs, axis=1)[::-1]
        first, second = (run(self.engine(network, z, both), pos) for both in (pairs, shuffled))
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))

    def test_single_atom_without_pairs(self):
        network = self.make_network(**self.hard)
        none = np.zeros(0, int)
        x, v, gradient = run(self.engine(network, [8], (none, none)), torch.zeros(1, 3))
        reference, _ = eager(network, [8], (none, none))(torch.zeros(1, 3))
        assert (x - reference).abs().max() < 1e-5 * max(1.0, reference.abs().max())
        assert not v.any() and not gradient.any()

    def test_gradient_is_the_derivative_of_the_value(self):
        # of the tabulated value, so that energy is conserved: it must hold with a coarse table as well
        network = self.make_network(**self.hard)
        z, pos = make_molecule(6)
        pos[5] = pos[2] + torch.tensor([0.0, 0.1, 0.2])  # far closer than in any molecule
        g_x, g_v = cotangents(6, 32)
        h = 1e-5
        for intervals in (None, 100):
            engine = self.engine(network, z, all_pairs(6), precision="double", intervals=intervals)
            _, _, gradient = run(engine, pos)
            for atom in range(6):
                for axis in range(3):
                    step = torch.zeros_like(pos)
                    step[atom, axis] = h
                    with torch.no_grad():
                        (xa, va), (xb, vb) = engine(pos + step), engine(pos - step)
                    slope = (((xa - xb) * g_x).sum() + ((va - vb) * g_v).sum()) / (2 * h)
                    assert abs(slope - gradient[atom, axis]) < 1e-6 * gradient.abs().max()

    @pytest.mark.parametrize("proper", [True, False])
    def test_equivariance(self, proper):
        network = self.make_network(**self.hard)
        z, pos = make_molecule(12)
        engine = self.engine(network, z, all_pairs(12))
        rotation = orthogonal(5, proper).double()
        x, v = engine(pos)
        x2, v2 = engine(pos @ rotation.T + torch.tensor([3.0, -20.0, 1.0]))
        assert (x - x2).abs().max() < 2e-5
        assert (torch.einsum("ab,nbh->nah", rotation.float(), v) - v2).abs().max() < 2e-5

    def test_nan_in_nan_out(self):
        network = self.make_network()
        z, pos = make_molecule(6)
        engine = self.engine(network, z, all_pairs(6))
        for bad in (math.nan, math.inf):
            broken = pos.clone()
            broken[3, 1] = bad
            assert all(part.isnan().all() for part in run(engine, broken))
        assert all(part.isfinite().all() for part in run(engine, pos))

    def check_nan_in_parameters(self, network, parameter):
        """NaN in the parameters of one layer reaches the output."""
        parameter[0, 0] = math.nan
        z, pos = make_molecule(6)
        assert self.engine(network, z, all_pairs(6), intervals=64)(pos)[0].isnan().any()

    def test_smooth_across_the_cutoff(self):
        engine = self.engine(self.make_network(), [6, 8], ([0], [1]), precision="double")

        def at(distance):
            return run(engine, torch.tensor([[0.1, 0.2, 0.0], [0.1, 0.2, distance]], dtype=torch.float64))

        gap = 1e-5
        for inside, outside in zip(at(CUTOFF - gap), at(CUTOFF + gap), strict=True):
            assert (inside - outside).abs().max() < 1000 * gap**2  # value and gradient; the envelope's slope is that small
        # and through the end of the envelope's plateau and through nodes of the table
        nodes = engine.grid.nodes()
        for middle in (CUTOFF - 1.0, nodes[300], nodes[500], nodes[-2]):
            for low, high in zip(at(middle - gap), at(middle + gap), strict=True):
                assert (low - high).abs().max() < 200 * gap * max(1.0, low.abs().max())

    def test_the_cutoff_jump_of_the_published_network_is_kept(self):
        network = self.make_network(smooth_cutoff=False)
        engine, reference = self.engine(network, [6, 8], ([0], [1])), eager(network, [6, 8], ([0], [1]))
        pos = torch.zeros(2, 3)
        pos[1, 0] = CUTOFF - 1e-3
        assert (engine(pos)[1] - reference(pos)[1]).abs().max() < 1e-5
        assert bool(engine(pos)[1].abs().max() > 1e-3) == self.jumps
        pos[1, 0] = CUTOFF + 1e-3
        assert engine(pos)[1].abs().max() == 0

    def test_atoms_at_the_same_place(self):
        pos = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, 0.0], [1.4, 0.0, 0.2]], dtype=torch.float64)
        z, pairs = [1, 6, 8], all_pairs(3)
        for settings in ({}, self.hard):
            network = self.make_network(**settings)
            found, expected = run(self.engine(network, z, pairs), pos), run(eager(network, z, pairs), pos)
            for value, reference in zip(found[:2], expected[:2], strict=True):
                assert (value - reference).abs().max() < 1e-5 * max(1.0, reference.abs().max())
            assert found[2].isfinite().all()

    def test_bitwise_repeatable_and_independent_of_other_evaluations(self):
        network = self.make_network(**self.hard)
        z, pos = make_molecule(11)
        other, pairs = pos * 1.3, all_pairs(11)
        engine = self.engine(network, z, pairs)
        first = run(engine, pos)
        run(engine, other)
        for again in (run(engine, pos), run(self.engine(network, z, pairs), pos)):
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

    def test_gradient_of_one_output_only(self):
        network = self.make_network()
        z, pos = make_molecule(6)
        for output in (0, 1):
            gradients = []
            for function in (self.engine(network, z, all_pairs(6)), eager(network, z, all_pairs(6))):
                q = pos.clone().requires_grad_()
                gradients.append(torch.autograd.grad(function(q)[output].square().sum(), q)[0])
            assert (gradients[0] - gradients[1]).norm() < 1e-5 * gradients[1].norm()

    def test_graphs_and_parts(self):
        """Groups of atoms one after the other give what all at once give, also after evaluations of larger ones."""
        network = self.make_network(**self.hard)
        sizes = (9, 14, 1, 6)
        molecules = [make_molecule(n, n) for n in sizes]
        z, pos = np.concatenate([z for z, _ in molecules]), torch.cat([pos for _, pos in molecules])
        ends = np.cumsum(sizes)
        pairs = np.concatenate([np.array(all_pairs(n)) + end - n for n, end in zip(sizes, ends, strict=True)], 1)
        whole, parts = self.engine(network, z, pairs), compiled_forward(network, z, pairs, ends)
        assert isinstance(parts, self.engine)
        for _ in range(2):
            for found, expected in zip(parts.forward(pos.numpy())[:2], whole.forward(pos.numpy())[:2], strict=True):
                np.testing.assert_allclose(found, expected, atol=2e-6)
            pos = pos * 1.01
        for k, end in enumerate(ends):
            expected = eager(network, molecules[k][0], all_pairs(sizes[k]))(pos[end - sizes[k] : end])
            for found, reference in zip(parts.forward(pos.numpy())[:2], expected, strict=True):
                error = np.abs(found[end - sizes[k] : end] - reference.numpy()).max()
                assert error < 1e-5 * max(1.0, reference.abs().max())
        with pytest.raises(ValueError, match="gradient=True"):
            parts.vjp(pos.numpy(), None, None)
        with pytest.raises(ValueError, match="joins atoms of two parts"):
            compiled_forward(network, z, pairs, [3, len(z)])
        with pytest.raises(ValueError, match="must rise to the number of atoms, 30"):
            compiled_forward(network, z, pairs, [9])

    @pytest.mark.parametrize("n", [7, 31])  # 4 frames are evaluated together, or each alone
    def test_many_frames(self, n):
        network = self.make_network(**self.hard)
        z, pos = make_molecule(n)
        frames = pos.numpy() * np.linspace(0.9, 1.5, 6)[:, None, None]
        engine = compiled_forward(network, z, all_pairs(n), [n])
        found = engine.embed(frames)
        for k, frame in enumerate(frames):
            for values, expected in zip(found, engine.forward(frame), strict=False):
                np.testing.assert_allclose(values[k], expected, atol=2e-6 * max(1.0, np.abs(expected).max()))
        frames[2, 5, 0] = math.nan
        for values, before in zip(engine.embed(frames), found, strict=True):
            assert np.isnan(values[2]).all()
            np.testing.assert_array_equal(np.delete(values, 2, 0), np.delete(before, 2, 0))
        assert [values.shape for values in engine.embed(frames[:0])] == [(0, n, 32), (0, n, 3, 32)]
        with pytest.raises(ValueError, match=rf"shape \(F, {n}, 3\)"):
            engine.embed(frames[0])

    def test_parameters_are_copied(self):
        network = self.make_network()
        z, pos = make_molecule(6)
        engine = self.engine(network, z, all_pairs(6))
        before = engine(pos)[0]
        for parameter in network.parameters():
            parameter.mul_(2.0)
        assert torch.equal(before, engine(pos)[0])

    def test_refusals(self):
        network = self.make_network(num_layers=1)
        assert self.engine.supports(network) is None and compiled_class(network) is self.engine
        assert "Linear" in self.engine.supports(torch.nn.Linear(2, 2)) and compiled_class(torch.nn.Linear(2, 2)) is None
        for z, pairs, message in (
            ([6, 6], ([0], [2]), "numbered from 0 to 1"),
            ([6, 6], ([1], [1]), "two different atoms"),
            ([6, 6], ([0, 1], [1, 0]), "twice"),
            ([6, 6], ([0], [1, 0]), "equally long"),
            ([6, 400], ([0], [1]), "Atomic numbers"),
        ):
            with pytest.raises(ValueError, match=message):
                self.engine(network, z, pairs)
        with pytest.raises(ValueError, match="precision"):
            self.engine(network, [6], ([], []), precision="half")
        engine = self.engine(network, [6, 6], ([0], [1]), intervals=64)
        with pytest.raises(ValueError, match="shape"):
            engine(torch.zeros(3, 3))
        q = torch.tensor([[0.0, 0, 0], [1.5, 0, 0]], requires_grad=True)
        (gradient,) = torch.autograd.grad(engine(q)[0].sum(), q, create_graph=True)
        with pytest.raises(RuntimeError):
            gradient.sum().backward()  # second derivatives are refused, not silently 0
        network.distance.box.copy_(20.0 * torch.eye(3))
        with pytest.raises(ValueError, match="periodic"):
            self.engine(network, [6], ([], []))

    @pytest.mark.parametrize("system", ["ala2", "chignolin"])
    def test_equals_what_geom2vec_computes(self, shared_data, system):
        network = Encoder.load(shared_data / "geom2vec_weights" / f"{self.weights}.pth", smooth_cutoff=False).network
        reference = np.load(shared_data / "reference_embeddings" / f"{self.weights}_{system}.npz")
        for atoms in ("all", "heavy"):
            z, frames = reference[f"Z_{atoms}"], reference[f"pos_{atoms}"]
            single = self.engine(network, z, all_pairs(len(z)), gradient=False)
            for frame, x, v in zip(frames, reference[f"x_f64_{atoms}"], reference[f"v_f64_{atoms}"], strict=True):
                for found, expected in zip(single.forward(frame), (x, v), strict=False):
                    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()
        double = self.engine(network, z, all_pairs(len(z)), "double", gradient=False)
        for found, expected in zip(double.forward(frame), (x, v), strict=False):
            assert np.abs(found - expected).max() < 10 * self.exact * np.abs(expected).max()

    def test_encoders_embed_with_it(self):
        encoder, frame = random_encoder(self.model), ala2()
        z = np.array([atom.element.number for atom in frame.topology.atoms])
        frames = 10.0 * frame.xyz + 0.05 * np.random.default_rng(0).normal(size=(200, 22, 3))
        found, plain = encoder.embed(z, frames), encoder.embed(z, frames, engine="eager")
        expected = encoder.double().embed(z, frames, engine="eager")
        for values, eagerly, reference in zip(found, plain, expected, strict=True):
            assert not np.array_equal(values, eagerly)
            np.testing.assert_allclose(values, reference, atol=5e-5 * np.abs(reference).max())

    @pytest.mark.parametrize("window", ["all", "sequence"])
    def test_a_collective_variable_uses_it(self, window):
        topology = ala2().topology
        cv = random_cv(topology, random_encoder(self.model), mixer="mlp", window=window)
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

    def check_refused(self, message, **settings):
        refused = self.make_network(**settings)
        assert message in self.engine.supports(refused)
        with pytest.raises(ValueError, match=message):
            self.engine(refused, [6], ([], []))
