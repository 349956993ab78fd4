"""The compiled TensorNet against the plain PyTorch one, and against geom2vec's own numbers."""

import numpy as np
import pytest
import torch

pytest.importorskip("numba")

from compiled_suite import CUTOFF, CompiledSuite, all_pairs, ready
from molecules import ala2, random_cv, random_encoder

from openmm_geomgnn import Encoder
from openmm_geomgnn.engines.tensornet_numba import NumbaTensorNet
from torchmdnet_ext.models.tensornet import SmoothTensorNet

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


@pytest.mark.parametrize("system", ["ala2", "chignolin"])
def test_equals_what_geom2vec_computes(shared_data, system):
    name = "tensornet_l3_h64_rbf32_r5"
    network = Encoder.load(shared_data / "geom2vec_weights" / f"{name}.pth", smooth_cutoff=False).network
    reference = np.load(shared_data / "reference_embeddings" / f"{name}_{system}.npz")
    for atoms in ("all", "heavy"):
        z, frames = reference[f"Z_{atoms}"], reference[f"pos_{atoms}"]
        single = NumbaTensorNet(network, z, all_pairs(len(z)), gradient=False)
        for frame, x, v in zip(frames, reference[f"x_f64_{atoms}"], reference[f"v_f64_{atoms}"], strict=True):
            for found, expected in zip(single.forward(frame), (x, v), strict=False):
                assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()
    double = NumbaTensorNet(network, z, all_pairs(len(z)), "double", gradient=False)
    for found, expected in zip(double.forward(frame), (x, v), strict=False):
        assert np.abs(found - expected).max() < 1e-7 * np.abs(expected).max()


def test_encoders_embed_with_it():
    encoder, frame = random_encoder("smooth-tensornet"), ala2()
    z = np.array([atom.element.number for atom in frame.topology.atoms])
    noise = np.random.default_rng(0).normal(size=(200, 22, 3))
    frames = 10.0 * frame.xyz + 0.05 * noise
    found, expected = encoder.embed(z, frames), encoder.embed(z, frames, engine="eager")
    for values, reference in zip(found, expected, strict=True):
        assert not np.array_equal(values, reference)
        np.testing.assert_allclose(values, reference, atol=3e-5 * np.abs(reference).max())


@pytest.mark.parametrize("window", ["all", "sequence"])
def test_a_collective_variable_uses_it(window):
    topology = ala2().topology
    cv = random_cv(topology, random_encoder("smooth-tensornet"), mixer="mlp", window=window)
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
