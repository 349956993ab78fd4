"""ViSNet's compiled messages in training, against plain PyTorch."""

import pytest
import torch
from training_cases import CompiledTrainingSuite, PhysicsOfTraining, batch, gradients, largest_difference, plain

pytest.importorskip("numba")

from openmm_geomgnn.testing.encoders import CUTOFF
from openmm_geomgnn.testing.numerics import randn
from torchmdnet_ext.models import fused_visnet
from torchmdnet_ext.models.fused_visnet import make_edges, reason_against
from torchmdnet_ext.models.visnet import ViSNet

pytestmark = pytest.mark.slow

SETTINGS = {"hidden_channels": 16, "num_heads": 2, "num_layers": 3, "num_rbf": 16, "cutoff_upper": 5.0, "max_z": 40}


def make(dtype=torch.float64, **settings):
    torch.manual_seed(3)
    network = ViSNet(**{**SETTINGS, "dtype": dtype, **settings})
    with torch.no_grad():
        for k, parameter in enumerate(network.parameters()):  # larger steps would make vectors overflow in single precision
            parameter += 0.05 * randn(*parameter.shape, seed=k).to(parameter)
    return network.train()


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """The batches of these tests have several chunks of pairs, the last of them smaller."""
    monkeypatch.setattr(fused_visnet, "PAIRS_AT_ONCE", 50)


class TestPhysicsOfCompiledMessages(PhysicsOfTraining):
    reason_against = staticmethod(reason_against)

    def make(self, **settings):
        return ViSNet(**{**SETTINGS, "num_layers": 2, "num_rbf": 8, "cutoff_upper": CUTOFF}, **settings)


class TestCompiledTraining(CompiledTrainingSuite):
    make, reason_against = staticmethod(make), staticmethod(reason_against)
    function, weight = fused_visnet._Messages, "vis_mp_layers.0.q_proj.weight"
    uncovered = [({"num_heads": 4}, "multiple of 8")]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 5e-5)])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"lmax": 2, "trainable_rbf": True},
        {"lmax": 2, "vertex": True, "smooth_cutoff": False},
        {"vertex": True, "vecnorm_type": "max_min", "trainable_vecnorm": True},
        {"num_layers": 2},
        {"num_layers": 1},
    ],
    ids=lambda settings: ",".join(settings) or "default",
)
def test_all_gradients_are_those_of_the_plain_path(settings, dtype, tolerance):
    network = make(dtype, **settings)
    z, pos, graphs = batch(dtype=dtype)
    assert reason_against(network, pos, None) is None
    assert len(make_edges(network, network.distance(pos, graphs)).chunks) > 4
    found, expected = gradients(network, z, pos, graphs), gradients(plain(network).double(), z, pos.double(), graphs)
    assert largest_difference(found, expected) < tolerance
    # a parameter without any effect has a gradient of 0, not none
    assert not found["vis_mp_layers.0.vec_proj.weight"].any()


@pytest.mark.parametrize("settings", [{"hidden_channels": 48, "num_heads": 3}, {"hidden_channels": 16, "num_heads": 1}])
def test_other_numbers_of_heads_and_channels(settings):
    network = make(**settings)
    assert largest_difference(gradients(network, *batch()), gradients(plain(network), *batch())) < 1e-12


@pytest.mark.parametrize("lmax", [1, 2])
@pytest.mark.parametrize("shared", [False, True])
def test_gradients_of_the_messages_are_those_of_differences(lmax, shared):
    network = make(lmax=lmax, vertex=True, hidden_channels=8, num_heads=1)
    z, pos, graphs = batch((10, 1, 8))
    edges, atoms, vectors = make_edges(network, network.distance(pos, graphs)), len(z), (lmax + 1) ** 2 - 1
    rows = (len(edges.source) + atoms) // 2 if shared else len(edges.source)
    shapes = [(atoms, 24), (atoms, vectors, 8), (atoms, vectors, 32), (rows, 8), (32, 8), (32,), (16, 8), (16,)]
    inputs = [randn(*shape, seed=k).requires_grad_() for k, shape in enumerate(shapes)]

    def check(function, inputs):
        assert torch.autograd.gradcheck(function, inputs, fast_mode=True, eps=1e-6, atol=1e-5, rtol=1e-5)

    check(lambda *inputs: fused_visnet._Messages.apply(*inputs, edges, 1), inputs)
    # the first layer: no vectors, factors of directions only, no update
    inputs = [inputs[0], inputs[3], *(randn(*shape, seed=9).requires_grad_() for shape in ((16, 8), (16,), (8, 8), (8,)))]
    check(lambda qkv, *others: fused_visnet._Messages.apply(qkv, None, None, *others, edges, 1)[:2], inputs)
