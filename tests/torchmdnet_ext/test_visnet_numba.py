"""The compiled ViSNet against the plain PyTorch one, and against geom2vec's own numbers."""

import pytest
import torch

pytest.importorskip("numba")

from compiled_suite import CUTOFF, CompiledSuite, all_pairs, make_molecule, ready, run

from torchmdnet_ext.compiled import visnet_arguments
from torchmdnet_ext.compiled.visnet_numba import NumbaViSNet
from torchmdnet_ext.models.visnet import ViSNet

pytestmark = pytest.mark.slow

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
    {"vertex": True},
    {"vertex": True, "lmax": 2, "vecnorm_type": "max_min"},
]


class TestViSNet(CompiledSuite):
    engine = NumbaViSNet
    model = "visnet"
    weights = "visnet_l6_h64_rbf64_r75"
    hard = {"vecnorm_type": "max_min", "lmax": 2}

    @staticmethod
    def make_network(**settings):
        torch.manual_seed(0)
        defaults = {"hidden_channels": 32, "num_layers": 4, "num_rbf": 16, "num_heads": 8, "cutoff_upper": CUTOFF}
        return ready(ViSNet(**{**defaults, **settings}))

    @pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: "-".join(f"{k}={v}" for k, v in s.items()))
    def test_equals_the_plain_network(self, settings):
        self.check_settings(settings)

    def test_nan_in_parameters(self):
        network = self.make_network()
        self.check_nan_in_parameters(network, network.vis_mp_layers[1].dk_proj.weight)

    def test_projections_that_are_computed_again(self, monkeypatch):
        # where they would take too much memory
        network = self.make_network()
        z, pos = make_molecule(14)
        kept = run(self.engine(network, z, all_pairs(14)), pos)
        monkeypatch.setattr(visnet_arguments, "MOST_HELD", 0)
        again = run(self.engine(network, z, all_pairs(14)), pos)
        assert all(torch.equal(a, b) for a, b in zip(kept, again, strict=True))
