"""What must fit together in the settings of a fit, wherever they come from."""

import pytest

from openmm_geomgnn.cv.rules import SettingMismatch, check_parts, lag_in_frames
from openmm_geomgnn.errors import GeomGNNError


@pytest.mark.parametrize(
    ("lag", "interval", "frames"),
    [
        (5, 0.2, 25),
        (5, 5, 1),
        (5, 0.200000003, 25),
        (0.3, 0.1, 3),
        (100, 0.0333, 3003),
        *((30 * s, s, 30) for s in (2, 1e-3)),
    ],
)
def test_lag_in_frames(lag, interval, frames):
    assert lag_in_frames(lag, interval) == frames


@pytest.mark.parametrize(
    ("lag", "interval", "parts"),
    [
        (5.1, 0.2, ["The lag time is 5.1 ps, not a multiple of the 0.2 ps", "is 5 ps"]),
        (0.04, 0.2, ["shorter than", "is 0.2 ps"]),
        (5, 0.3, ["is 5.1 ps"]),
        (10.02, 2, ["not a multiple", "is 10 ps"]),
        (0, 2, ["shorter than", "is 2 ps"]),
        (-2, 2, ["shorter than", "is 2 ps"]),
    ],
)
def test_lag_that_does_not_fit(lag, interval, parts):
    with pytest.raises(GeomGNNError) as error:
        lag_in_frames(lag, interval)
    assert all(part in str(error.value) for part in parts)


@pytest.mark.parametrize(
    ("parts", "setting", "message"),
    [
        (("vampnet", "none", 1, 50), "estimator", "Use mixer: mlp or mixer: attention, or estimator: linear"),
        (("linear", "mlp", 1, 50), "mixer", "mixer: mlp has weights.* Use estimator: vampnet, or mixer: none"),
        (("linear", "none", 3, 2), "components", "3 components cannot be made of 2 principal components"),
        (("linear", "none", 1, 50, 0.02, False), "softening", "set reversible: true, or softening: 0"),
    ],
)
def test_parts_that_do_not_fit(parts, setting, message):
    with pytest.raises(SettingMismatch, match=message) as error:
        check_parts(*parts)
    assert error.value.setting == setting


def test_parts_that_fit():
    for parts in (("linear", "none", 3, None), ("linear", "none", 3, 3, 0.02), ("linear", "none", 1, 50, 0.0, False)):
        check_parts(*parts)
    # what is not used may be anything
    check_parts("vampnet", "mlp", 3, 2, 0.02, False)
