"""The interface of a bias: every bias of ours and one of another package pass its suite, and a run takes them by it."""

import numpy as np
import pytest
import toy_bias
from biases import TORSION
from distributions import install
from phi_runs import Spring, run
from toy_bias import ToyBias

from openmm_geomgnn import sampling
from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.plugins import GROUPS, PluginError
from openmm_geomgnn.sampling import OPES
from openmm_geomgnn.sampling.bias import BIASES, get_bias
from openmm_geomgnn.sampling.colvar import read_colvar
from openmm_geomgnn.testing import BiasSuite

OPES_SETTINGS = {
    "metad": {"sigma": 0.3},
    "explore": {"sigma": 0.3, "explore": True},
    "adaptive": {"sigma_min": 0.05},
    "flat target": {"sigma": [0.3, 0.2], "biasfactor": np.inf},
    "periodic": {"sigma": 0.2, "periods": [TORSION, None]},
    "kernels kept apart": {"sigma": 0.3, "compression_threshold": 0},
}


@pytest.mark.parametrize("settings", OPES_SETTINGS.values(), ids=OPES_SETTINGS)
class TestOPES(BiasSuite):
    @pytest.fixture
    def bias(self, settings):
        return OPES(barrier=40, pace=5, **settings)


class TestSpring(BiasSuite):
    dimension, static = 1, True

    def make(self):
        return Spring(30.0)


class TestABiasOfAnotherPackage(BiasSuite):
    def make(self):
        return ToyBias()


@pytest.mark.slow
def test_a_run_takes_the_bias_of_another_package(tmp_path):
    """In one go, and in two sessions: it deposits, continues, and refuses other settings."""
    whole = run(tmp_path / "whole", 4.0, bias=ToyBias(height=2.0), walkers=2)
    run(tmp_path / "parts", 1.7, bias=ToyBias(height=2.0), walkers=2)
    again = run(tmp_path / "parts", 4.0, bias=ToyBias(height=2.0), walkers=2)
    assert (tmp_path / "whole/COLVAR").read_bytes() == (tmp_path / "parts/COLVAR").read_bytes()
    np.testing.assert_array_equal(whole.state, again.state)
    colvar = read_colvar(whole.colvar)
    assert colvar["toybias.nker"][-1] == len(whole.state) - 2 > 10 and colvar["toybias.bias"].max() > 2.0
    with pytest.raises(GeomGNNError, match="another bias setting height: it was 2.0 and is now 3.0"):
        run(tmp_path / "parts", 5.0, bias=ToyBias(height=3.0), walkers=2)


class TestByName:
    def test_ours(self):
        assert get_bias("opes") is sampling.OPES is BIASES["opes"]
        with pytest.raises(PluginError, match="bias 'opse' is unknown. Did you mean 'opes'.* Known: opes."):
            get_bias("opse")

    def test_of_an_installed_package(self, tmp_path, monkeypatch):
        entries = {"toy": "toy_bias:ToyBias", "opes": "toy_bias:ToyBias", "half": "toy_bias:Half", "none": "toy_bias:np"}
        install(tmp_path, "toy-biases", {GROUPS["bias"]: entries})
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.setattr(toy_bias, "Half", type("Half", (), {"bias": None, "update": print}), raising=False)
        assert get_bias("toy") is ToyBias and get_bias("opes") is OPES
        with pytest.raises(PluginError, match="toy-biases 1.0 cannot be used: its class has no initial_state, bias, diag"):
            get_bias("half")
        with pytest.raises(PluginError, match="toy-biases 1.0 cannot be used: it is not a class"):
            get_bias("none")
