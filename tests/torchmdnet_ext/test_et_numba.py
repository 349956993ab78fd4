"""The compiled equivariant transformer against the plain PyTorch one; the table of filters; the folder of kernels."""

import numpy as np
import pytest
import torch

pytest.importorskip("numba")

from compiled_suite import CUTOFF, CompiledSuite, ready

from torchmdnet_ext.compiled.cache import cache_folder
from torchmdnet_ext.compiled.et_numba import NumbaET
from torchmdnet_ext.compiled.tables import radial_filters_and_slopes, tabulate
from torchmdnet_ext.models.equivariant_transformer import SmoothEquivariantTransformer

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


class TestET(CompiledSuite):
    engine = NumbaET
    model = "smooth-equivariant-transformer"
    weights = "et_l6_h64_rbf64_r75"
    exact = 2e-7

    @staticmethod
    def make_network(**settings):
        torch.manual_seed(0)
        defaults = {"hidden_channels": 32, "num_layers": 3, "num_rbf": 32, "num_heads": 8, "cutoff_upper": CUTOFF}
        return ready(SmoothEquivariantTransformer(**{**defaults, "neighbor_embedding": False, **settings}))

    @pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: "-".join(f"{k}={v}" for k, v in s.items()))
    def test_equals_the_plain_network(self, settings):
        self.check_settings(settings)

    def test_nan_in_parameters(self):
        network = self.make_network()
        self.check_nan_in_parameters(network, network.attention_layers[1].k_proj.weight)

    def test_settings_that_are_not_covered(self):
        self.check_refused("neighbor_embedding", neighbor_embedding=True)
        self.check_refused("attn_activation", attn_activation="tanh")

    def test_table_converges_with_the_fourth_power(self):
        network = self.make_network()
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
        # nothing at the cutoff
        assert np.abs(exact[:, -1, 1:]).max() < 1e-12 and np.abs(slope[:, -1, 1:]).max() < 1e-12


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

    from torchmdnet_ext.compiled.cache import keep_compiled

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
