"""Fits to trajectories with biases: a bias of zero is no bias, and the file says how biased frames counted."""

import numpy as np
import pytest
from molecules import ALA2
from turning_phi import INTERVAL, encoder, trajectory  # noqa: F401

from openmm_geomgnn.cv.fit import FitSettings, fit_cv
from openmm_geomgnn.cv.reweighting import weighting

pytestmark = pytest.mark.slow
HOW = {
    "linear": {"pca": None},  # the principal components are those of all frames alike where there are weights
    "vampnet": {
        "estimator": "vampnet",
        "mixer": "mlp",
        "mixer_settings": {"width": 16, "readout": 16},
        "training": {"epochs": 3, "batch_size": 300},
    },
}


@pytest.fixture(scope="module")
def data():
    return [trajectory(300, seed)[0] for seed in range(3)]


@pytest.mark.parametrize("reweighting", ["static", "rescaled-time"])
@pytest.mark.parametrize("how", HOW)
def test_a_bias_of_zero_is_no_bias(encoder, data, how, reweighting):  # noqa: F811
    settings = FitSettings(10.0, INTERVAL, encoder=encoder, reweighting=reweighting, **HOW[how])
    plain = fit_cv(data, ALA2, settings)
    flat = fit_cv(data, ALA2, settings, biases=[np.full(300, 7.0), np.full(300, 7.0), np.full(300, 7.0)])
    np.testing.assert_allclose(flat.singular_values, plain.singular_values, rtol=1e-4)
    # values, not projections: linearly dependent features leave these free
    values = [[cv.bind(ALA2, engine="eager").compute(part) for part in data] for cv in (plain, flat)]
    np.testing.assert_allclose(np.concatenate(values[1]), np.concatenate(values[0]), atol=1e-3)
    facts = flat.training_information
    assert facts["reweighting"] == reweighting and facts["biased"] == [True, True, True]
    assert "reweighting" not in plain.training_information
    assert (facts["timescales_ps"] == [None]) == (reweighting == "static")


def test_effective_pairs_are_those_of_the_biased_trajectories():
    """Many unbiased frames do not hide that a few biased ones carry all the weight."""
    settings = FitSettings(lagtime=1.0, frame_interval=0.2, reweighting="static")
    peaked = np.where(np.arange(200) == 100, 40.0, 0.0)
    found = weighting([5000, 200], settings, [None, peaked])
    assert found.any_biased and found.effective_pairs == pytest.approx(1.0, abs=0.01)
    assert np.isnan(weighting([5000], settings).effective_pairs)
