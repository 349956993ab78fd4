"""The compiled messages of the equivariant transformer in training, against plain PyTorch."""

import copy

import pytest
import torch
from training_cases import (
    CompiledTrainingSuite,
    PhysicsOfTraining,
    batch,
    check_by_differences,
    gradients,
    largest_difference,
    plain,
)

pytest.importorskip("numba")

from openmm_geomgnn.testing.encoders import CUTOFF
from openmm_geomgnn.testing.numerics import as_if_trained, randn, relative
from torchmdnet_ext.heads.noise import EquivariantNoise
from torchmdnet_ext.models import fused_attention, radial_grid
from torchmdnet_ext.models.equivariant_transformer import SmoothEquivariantTransformer
from torchmdnet_ext.models.fused_attention import LANES, FusedMessages, reason_against
from torchmdnet_ext.models.radial_grid import TOLERANCE, RadialGrid

pytestmark = pytest.mark.slow

# every number of heads and of their channels is compiled again, so most tests share theirs
SIZES = {"hidden_channels": 16, "num_heads": 2}
SETTINGS = {**SIZES, "num_layers": 3, "num_rbf": 16, "cutoff_upper": 5.0, "max_z": 40}


def make(dtype=torch.float64, **settings):
    torch.manual_seed(3)
    defaults = {**SETTINGS, "neighbor_embedding": False, "trainable_rbf": False, "dtype": dtype}
    network = SmoothEquivariantTransformer(**{**defaults, **settings})
    return as_if_trained(network.to(dtype)).train()


class TestPhysicsOfCompiledMessages(PhysicsOfTraining):
    reason_against = staticmethod(reason_against)

    def make(self, **settings):
        return SmoothEquivariantTransformer(
            **SIZES, num_layers=2, num_rbf=8, cutoff_upper=CUTOFF, max_z=40, neighbor_embedding=False, **settings
        )


class TestCompiledTraining(CompiledTrainingSuite):
    make, reason_against = staticmethod(make), staticmethod(reason_against)
    function, weight = fused_attention._Messages, "attention_layers.0.q_proj.weight"
    uncovered = [({"num_heads": 8}, f"multiple of {LANES}"), ({"attn_activation": "tanh"}, "not silu")]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 5e-5)])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"distance_influence": "keys", "trainable_rbf": True},
        {"distance_influence": "values", "vector_cutoff": True},
        {"distance_influence": "none", "smooth_cutoff": False},
        {"neighbor_embedding": True, "rbf_type": "gauss", "activation": "tanh"},
        {"num_layers": 1},
    ],
    ids=lambda settings: ",".join(settings) or "default",
)
def test_all_gradients_are_those_of_the_plain_path(settings, dtype, tolerance):
    network = make(dtype, **settings)
    z, pos, graphs = batch(dtype=dtype)
    assert reason_against(network, pos, None) is None
    found, expected = gradients(network, z, pos, graphs), gradients(plain(network).double(), z, pos.double(), graphs)
    assert largest_difference(found, expected) < tolerance
    # a parameter without any effect has a gradient of 0, not none
    assert not found["attention_layers.0.vec_proj.weight"].any()


def test_other_numbers_of_heads_and_channels():
    network = make(hidden_channels=48, num_heads=3, num_layers=2)
    assert largest_difference(gradients(network, *batch()), gradients(plain(network), *batch())) < 1e-12


class TestGrid:
    """Filters interpolated between the nodes of a grid."""

    @pytest.mark.parametrize("settings", [{}, {"rbf_type": "gauss"}, {"trainable_rbf": True}, {"num_rbf": 8}])
    def test_gradients_are_as_good_as_those_of_exact_filters(self, settings):
        network = make(torch.float32, **settings)
        z, pos, graphs = batch((20, 1, *range(16, 34)), dtype=torch.float32)
        messages = FusedMessages(network, network.distance(pos, graphs))
        assert len(messages.basis) == network.radial_grid.intervals + 1 < len(messages.pairs.i)
        expected = gradients(plain(network).double(), z, pos.double(), graphs)
        rounding = largest_difference(gradients(plain(network), z, pos, graphs), expected)
        assert rounding < 2e-5
        assert largest_difference(gradients(network, z, pos, graphs), expected) < 1e-5 + rounding

    def test_the_gradient_is_the_exact_transpose(self):
        heads, width, generator = 2, LANES, torch.Generator().manual_seed(0)
        i, j, row = torch.tensor([0, 0, 1]), torch.tensor([1, 2, 2]), torch.tensor([0, 2, 1])

        def numbers(*shape):
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        pairs = fused_attention.Pairs(i, j, row, 1, numbers(3, 9), 0, numbers(1, 9))
        inputs = [numbers(3, 5 * heads * width), numbers(3, 3, heads * width), numbers(6, 4 * heads * width)]
        for tensor in inputs:
            tensor.requires_grad_()

        def messages(qkv, vec, table):
            return fused_attention._Messages.apply(qkv, vec, table, pairs, heads)

        assert torch.autograd.gradcheck(messages, inputs, fast_mode=True, eps=1e-6, atol=1e-6, rtol=1e-6)
        assert torch.autograd.gradcheck(
            lambda qkv, table: messages(qkv, None, table), inputs[::2], fast_mode=True, eps=1e-6, atol=1e-6, rtol=1e-6
        )

    def test_interpolation_reproduces_the_radial_basis(self):
        network = make(torch.float32)
        grid = network.radial_grid
        assert grid.suits(10_000) and not grid.suits(grid.intervals)
        distance = torch.rand(2000, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 5.0
        distance[:2] = torch.tensor([0.0, 5.0])
        row, weight = radial_grid.stencil(distance, 5.0, grid.intervals)
        expansion = copy.deepcopy(network.distance_expansion).double()
        values = expansion(radial_grid.grid_nodes(5.0, grid.intervals))
        interpolated = (weight[:, :, None] * values[row[:, None] + torch.arange(4)]).sum(1)
        assert relative(interpolated, expansion(distance)) < 1.5 * TOLERANCE
        torch.testing.assert_close(grid.basis(), values.float(), rtol=0, atol=0)

    def test_another_basis_gets_another_grid(self):
        network = make(torch.float32)
        assert network.radial_grid.suits(10_000)
        before, basis = network.radial_grid.intervals, network.radial_grid.basis()
        with torch.no_grad():
            network.distance_expansion.betas.mul_(100.0)
        assert network.radial_grid.suits(10_000)
        assert network.radial_grid.intervals > before and network.radial_grid.basis().shape != basis.shape
        with torch.no_grad():
            network.distance_expansion.betas.mul_(1e4)
        assert not network.radial_grid.suits(10_000)  # too steep for any grid: filters are exact again

    def test_a_trainable_basis_keeps_its_gradient(self):
        grid = RadialGrid(make(torch.float32, trainable_rbf=True).distance_expansion, 5.0)
        assert grid.suits(10_000)
        grid.basis().sum().backward()
        assert grid.expansion.betas.grad.any()


def train(network, steps=6):
    torch.manual_seed(0)
    head = EquivariantNoise(SETTINGS["hidden_channels"], dtype=torch.float64)
    parameters = [*network.parameters(), *head.parameters()]
    optimizer, losses = torch.optim.AdamW(parameters, 1e-3), []
    z, pos, graphs = batch()
    for step in range(steps):
        noise = randn(*pos.shape, seed=step)
        x, v, *_ = network(z, pos + 0.1 * noise, graphs)
        loss = (head.pre_reduce(x, v, z, pos, graphs) - noise).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, torch.cat([parameter.detach().reshape(-1) for parameter in parameters])


def test_training_takes_the_same_steps():
    network = make()
    (found, weights), (expected, plain_weights) = train(copy.deepcopy(network)), train(plain(network))
    assert found == pytest.approx(expected, rel=1e-9) and relative(weights, plain_weights) < 1e-9
    assert found[-1] < found[0]


def test_gradients_of_the_plain_path_are_those_of_differences():
    check_by_differences(plain(make()))
