"""The compiled TensorNet against the plain PyTorch one, and against geom2vec's own numbers."""

import pytest
import torch

pytest.importorskip("numba")

from compiled_suite import CUTOFF, CompiledSuite, ready

from torchmdnet_ext.compiled.tensornet_numba import NumbaTensorNet
from torchmdnet_ext.models.tensornet import SmoothTensorNet

pytestmark = pytest.mark.slow

SETTINGS = [
    {"hidden_channels": 64, "num_layers": 3, "num_rbf": 32, "cutoff_upper": 7.5},
    {"hidden_channels": 40},  # channels that do not fill the lanes
    {"num_layers": 1},
    {"smooth_cutoff": False},
    {"envelope_width": 2.5},
    {"rbf_type": "gauss", "trainable_rbf": True},
]


class TestTensorNet(CompiledSuite):
    engine = NumbaTensorNet
    model = "smooth-tensornet"
    weights = "tensornet_l3_h64_rbf32_r5"
    exact = 2e-8
    jumps = False

    @staticmethod
    def make_network(**settings):
        torch.manual_seed(0)
        defaults = {"hidden_channels": 32, "num_layers": 2, "num_rbf": 16, "cutoff_upper": CUTOFF}
        return ready(SmoothTensorNet(**{**defaults, **settings}))

    @pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: "-".join(f"{k}={v}" for k, v in s.items()))
    def test_equals_the_plain_network(self, settings):
        self.check_settings(settings)

    def test_nan_in_parameters(self):
        network = self.make_network()
        self.check_nan_in_parameters(network, network.layers[1].linears_tensor[4].weight)

    def test_settings_that_are_not_covered(self):
        self.check_refused("activation must be silu, but is Tanh", activation="tanh")
        self.check_refused("no layers", num_layers=0)
