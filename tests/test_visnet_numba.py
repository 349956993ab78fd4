"""The compiled ViSNet against the plain PyTorch one, and against geom2vec's own numbers."""

import numpy as np
import pytest
import torch

pytest.importorskip("numba")

from compiled_suite import CUTOFF, CompiledSuite, all_pairs, make_molecule, ready, run
from molecules import ala2, random_cv, random_encoder

from openmm_geomgnn import Encoder
from openmm_geomgnn.engines import visnet_numba
from openmm_geomgnn.engines.visnet_numba import NumbaViSNet
from torchmdnet_ext.models.visnet import ViSNet

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
        monkeypatch.setattr(visnet_numba, "MOST_HELD", 0)
        again = run(self.engine(network, z, all_pairs(14)), pos)
        assert all(torch.equal(a, b) for a, b in zip(kept, again, strict=True))


@pytest.mark.parametrize("system", ["ala2", "chignolin"])
def test_equals_what_geom2vec_computes(shared_data, system):
    weights = shared_data / "geom2vec_weights" / "visnet_l6_h64_rbf64_r75.pth"
    network = Encoder.load(weights, smooth_cutoff=False).network
    reference = np.load(shared_data / "reference_embeddings" / f"visnet_l6_h64_rbf64_r75_{system}.npz")
    for atoms in ("all", "heavy"):
        z, frames = reference[f"Z_{atoms}"], reference[f"pos_{atoms}"]
        single = NumbaViSNet(network, z, all_pairs(len(z)), gradient=False)
        for frame, x, v in zip(frames, reference[f"x_f64_{atoms}"], reference[f"v_f64_{atoms}"], strict=True):
            for found, expected in zip(single.forward(frame), (x, v), strict=False):
                assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()
    double = NumbaViSNet(network, z, all_pairs(len(z)), "double", gradient=False)
    for found, expected in zip(double.forward(frame), (x, v), strict=False):
        assert np.abs(found - expected).max() < 1e-9 * np.abs(expected).max()


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
