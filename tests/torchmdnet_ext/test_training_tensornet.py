"""TensorNet's compiled layers in training, against plain PyTorch."""

import pytest
import torch
from training_cases import CompiledTrainingSuite, PhysicsOfTraining, batch, gradients, largest_difference, plain

pytest.importorskip("numba")

from openmm_geomgnn.testing.encoders import CUTOFF
from openmm_geomgnn.testing.numerics import JUMP, as_if_trained, randn
from torchmdnet_ext.models import fused_tensors
from torchmdnet_ext.models.fused_tensors import Edges, reason_against
from torchmdnet_ext.models.radial_grid import arrays, filter_table
from torchmdnet_ext.models.tensornet import SmoothTensorNet

pytestmark = pytest.mark.slow

SETTINGS = {"hidden_channels": 16, "num_layers": 2, "num_rbf": 16, "cutoff_upper": 5.0, "max_z": 40}


def make(dtype=torch.float64, **settings):
    torch.manual_seed(3)
    return as_if_trained(SmoothTensorNet(**{**SETTINGS, "dtype": dtype, **settings})).train()


class TestPhysicsOfCompiledLayers(PhysicsOfTraining):
    reason_against = staticmethod(reason_against)

    def make(self, **settings):
        return SmoothTensorNet(**{**SETTINGS, "num_rbf": 8, "cutoff_upper": CUTOFF}, **settings)

    def test_the_published_network_jumps_at_the_cutoff(self):
        value, slope = self.across_the_cutoff(self.network_of(torch.float64, smooth_cutoff=False), 0)
        assert value < JUMP and JUMP < slope < 1e-5


class TestCompiledTraining(CompiledTrainingSuite):
    make, reason_against = staticmethod(make), staticmethod(reason_against)
    function, weight = fused_tensors._Embed, "tensor_embedding.emb.weight"
    uncovered = [({"hidden_channels": 8}, "multiple of 16")]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 5e-5)])
@pytest.mark.parametrize(
    "settings",
    [{}, {"trainable_rbf": True, "smooth_cutoff": False}, {"rbf_type": "gauss", "activation": "tanh"}, {"num_layers": 1}],
    ids=lambda settings: ",".join(settings) or "default",
)
@pytest.mark.parametrize("charged", [False, True])
def test_all_gradients_are_those_of_the_plain_path(settings, dtype, tolerance, charged):
    network = make(dtype, **settings)
    z, pos, graphs = batch(dtype=dtype)
    assert reason_against(network, pos, None) is None
    charges = {"q": torch.tensor([1, -2, 0, 3, -1])} if charged else {}
    found = gradients(network, z, pos, graphs, **charges)
    assert largest_difference(found, gradients(plain(network).double(), z, pos.double(), graphs, **charges)) < tolerance


@pytest.mark.parametrize("channels", [32, 48])
def test_other_numbers_of_channels(channels):
    network = make(hidden_channels=channels)
    assert largest_difference(gradients(network, *batch()), gradients(plain(network), *batch())) < 1e-12


@pytest.mark.parametrize("settings", [{}, {"trainable_rbf": True}])
def test_interpolated_filters_are_as_good_as_exact_ones(settings):
    network = make(torch.float32, **settings)
    z, pos, graphs = batch((20, 1, *range(16, 34)), dtype=torch.float32)
    table, pairs = filter_table(network, network.distance(pos, graphs)), len(network.distance(pos, graphs).i)
    assert table.step == 1 and len(table.basis) < pairs
    expected = gradients(plain(network).double(), z, pos.double(), graphs)
    rounding = largest_difference(gradients(plain(network), z, pos, graphs), expected)
    assert rounding < 5e-5
    assert largest_difference(gradients(network, z, pos, graphs), expected) < 2e-5 + rounding


def test_gradients_of_the_messages_are_exact_transposes():
    """With a table of more rows than one a pair, as where filters are interpolated."""
    edges = Edges(
        first=torch.tensor([0, 1, 3, 4]),
        source=torch.tensor([1, 0, 2, 1]),
        pair=torch.tensor([0, 0, 1, 1]),
        parts=randn(4, 8, seed=1),
        row=torch.tensor([0, 2]),
        step=1,
        coefficient=randn(2, 4, seed=2),
        self_row=1,
        self_weight=0.7,
    )
    table, charge = randn(6, 48, seed=3), torch.tensor([1.0, 1.1, 0.8], dtype=torch.float64)
    y, centre, neighbour = randn(9, 3, 16, seed=4), randn(3, 16, seed=5), randn(3, 16, seed=6)

    def check(function, *inputs):
        inputs = [tensor.requires_grad_() for tensor in inputs]
        assert torch.autograd.gradcheck(function, inputs, fast_mode=True, eps=1e-6, atol=1e-6, rtol=1e-6)

    check(lambda y, table: fused_tensors._Exchange.apply(y, table, charge, edges), y, table)
    check(lambda *inputs: fused_tensors._Embed.apply(*inputs, edges), table, centre, neighbour)
    check(lambda x, u: fused_tensors._Next.apply(x, u, charge, False), y, randn(9, 3, 16, seed=7))
    check(fused_tensors._First.apply, y, randn(3, 48, seed=8))


def test_a_tensor_that_is_not_contiguous_is_refused():
    with pytest.raises(ValueError, match="not contiguous"):
        arrays(torch.zeros(3, 2).T)
