"""What every network that is compiled for training must do, with the same network in plain PyTorch as the reference.

Subclass `CompiledTrainingSuite` and `PhysicsOfTraining` under names that start with `Test`, and give them what they declare.
"""

import copy

import pytest
import torch
from physics import NetworkSuite

from openmm_geomgnn.testing.numerics import molecule, randn, relative
from torchmdnet_ext.models import radial_grid


def batch(sizes=(20, 1, 17, 2, 22), dtype=torch.float64):
    """Molecules; in the first, one atom is out of reach and two are at the same place."""
    parts = [molecule(n, seed=n) for n in sizes]
    parts[0][1][4] += 40.0
    parts[0][1][7] = parts[0][1][9]
    z, pos = torch.cat([z for z, _ in parts]), torch.cat([pos for _, pos in parts])
    return z, pos.to(dtype), torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))


def scalar(x, v):
    return (x * randn(*x.shape, seed=3).to(x)).sum() + (v * randn(*v.shape, seed=4).to(v)).sum()


def gradients(network, z, pos, graphs, **options):
    """Features, and the gradients of a scalar of them with respect to all parameters."""
    x, v, *_ = network(z, pos, graphs, **options)
    energy = scalar(x, v)
    names, parameters = zip(*((name, p) for name, p in network.named_parameters() if p.requires_grad), strict=True)
    return {"x": x, "v": v, **dict(zip(names, torch.autograd.grad(energy, parameters), strict=True))}


def plain(network):
    network = copy.deepcopy(network)
    network.compiled = False
    return network


def largest_difference(found, expected):
    assert found.keys() == expected.keys()
    return max(relative(found[name], expected[name]) for name in found if bool(expected[name].any()))


def check_by_differences(network, h=1e-5):
    """The gradient by each parameter, along a random direction, against central differences of the scalar."""
    arguments = batch((10, 1, 8))
    found, largest = gradients(network, *arguments), 0.0
    for k, (name, parameter) in enumerate(network.named_parameters()):
        direction, values = randn(*parameter.shape, seed=k).to(parameter), []
        with torch.no_grad():
            for step in (h, -2 * h):
                parameter += step * direction
                values.append(float(scalar(*network(*arguments)[:2])))
            parameter += h * direction
        slope = float((found[name] * direction).sum())
        assert slope == pytest.approx((values[0] - values[1]) / (2 * h), rel=1e-5, abs=1e-6), name
        largest = max(largest, abs(slope))
    assert largest > 1.0


class PhysicsOfTraining(NetworkSuite):
    """The suite in training mode: without a gradient of the positions the compiled path is the one that runs."""

    reason_against = None  # of the module with the kernels, as a staticmethod

    def network_of(self, dtype, **settings):
        network = super().network_of(dtype, **settings).train()
        assert self.reason_against(network, torch.zeros(1, 3, dtype=dtype), None) is None
        return network


class CompiledTrainingSuite:
    """The compiled path against the plain one, and what is left to that.

    Attributes
    ----------
    make, reason_against : staticmethod
        (dtype, **settings) -> a network in training mode; the function of that name of the module with the kernels.
    function : torch.autograd.Function
        One that is called wherever the kernels are used.
    weight : str
        A parameter on which the features depend through the kernels.
    uncovered : list of (settings, reason)
        Of networks for which there are no kernels.
    """

    make, reason_against, function, weight, uncovered = None, None, None, "", ()

    @pytest.fixture
    def no_kernels(self, monkeypatch):
        def refuse(*arguments):
            raise AssertionError("the kernels were used")

        monkeypatch.setattr(self.function, "apply", refuse)

    def test_the_same_batch_gives_the_same_bits(self):
        network, arguments = self.make(torch.float32), batch((30, 1, 31, 32), dtype=torch.float32)
        one, other = gradients(network, *arguments), gradients(network, *arguments)
        assert all(torch.equal(one[name], other[name]) for name in one)

    @pytest.mark.parametrize("sizes", [(1,), (1, 1), (2,)])
    def test_graphs_without_pairs(self, sizes):
        network = self.make()
        z, pos, _ = (part[: sum(sizes)] for part in batch((14, 1)))
        graphs, pos = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes)), 10.0 * pos
        assert len(network.distance(pos, graphs).i) == 0
        # what is 0 without directions is so but for rounding in the plain path
        found, expected = (gradients(one, z, pos, graphs) for one in (network, plain(network)))
        for name in found:
            torch.testing.assert_close(found[name], expected[name], rtol=1e-12, atol=1e-12)
        assert max(float(part.detach().abs().max()) for part in found.values()) > 1.0

    def test_second_derivatives_are_refused(self):
        network = self.make()
        x, *_ = network(*batch())
        parameter = network.get_parameter(self.weight)
        (gradient,) = torch.autograd.grad(x.square().sum(), parameter, create_graph=True)
        with pytest.raises(RuntimeError, match="once_differentiable"):
            gradient.sum().backward()

    def test_without_numba(self, no_kernels, monkeypatch):
        monkeypatch.setattr(radial_grid, "numba_is_there", lambda: False)
        network = self.make()
        assert "numba" in self.reason_against(network, batch()[1], None)
        assert largest_difference(gradients(network, *batch()), gradients(plain(network), *batch())) == 0

    def test_settings_without_kernels(self, no_kernels):
        for settings, reason in self.uncovered:
            network = self.make(**settings)
            assert reason in self.reason_against(network, batch()[1], None)
            assert largest_difference(gradients(network, *batch()), gradients(plain(network), *batch())) == 0

    def test_positions_with_a_gradient(self, no_kernels):
        """Forces, and the gradient of their length by the positions and by a parameter."""
        network, (z, pos, graphs) = self.make(), batch((10, 1, 8))
        assert "positions" in self.reason_against(network, pos.clone().requires_grad_(), None)
        pos[7] += 0.6  # not at the place of another atom, where there is a kink
        direction, h = randn(*pos.shape, seed=9), 1e-5

        def energy_and_squared_force(pos):
            pos = pos.clone().requires_grad_()
            energy = scalar(*network(z, pos, graphs)[:2])
            (force,) = torch.autograd.grad(energy, pos, create_graph=True)
            squared = force.square().sum()
            squared.backward(inputs=[pos, network.get_parameter(self.weight)])
            slopes = [float((slope.detach() * direction).sum()) for slope in (force, pos.grad)]
            return torch.stack([energy, squared]).detach(), slopes

        _, found = energy_and_squared_force(pos)
        assert network.get_parameter(self.weight).grad.abs().max() > 1e-3
        up, down = (energy_and_squared_force(pos + step * direction)[0] for step in (h, -h))
        assert found == pytest.approx(((up - down) / (2 * h)).tolist(), rel=1e-5)
        assert min(map(abs, found)) > 1e-3

    def test_evaluation(self, no_kernels):
        network, arguments = self.make(), batch()
        expected = plain(network)(*arguments)[:2]
        with torch.no_grad():
            found = [network(*arguments)[:2]]
        found.append(network.eval()(*arguments)[:2])
        for values in found:
            torch.testing.assert_close(values, expected, rtol=1e-12, atol=1e-12)
        assert all(float(part.detach().abs().max()) > 0.1 for part in expected)

    def test_mixed_precision(self, no_kernels):
        network, arguments = self.make(torch.float32), batch(dtype=torch.float32)
        exact = gradients(plain(network), *arguments)
        with torch.autocast("cpu", torch.bfloat16):
            found, expected = (gradients(one, *arguments) for one in (network, plain(network)))
        assert largest_difference(found, expected) == 0 and largest_difference(found, exact) > 1e-4
