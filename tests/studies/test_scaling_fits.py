"""Scaling laws: constants of known laws, their intervals, and which law is preferred."""

import numpy as np
import pytest

from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.studies.scaling.fits import CONSTANT, POWER, SATURATING, fit_laws

SIZES = np.geomspace(1e4, 1e7, 8)
REFERENCE = np.exp(np.log(SIZES).mean())
TRUE = {
    CONSTANT.name: {"a": 0.4},
    POWER.name: {"a": 0.5, "b": 0.2},
    SATURATING.name: {"a": 0.3, "b": 0.35, "L0": 0.25},
}


def losses(true, noise, seed, sizes=SIZES):
    exact = true.get("L0", 0.0) + true["a"] * (sizes / REFERENCE) ** -true.get("b", 0.0)
    return exact * np.exp(noise * np.random.default_rng(seed).standard_normal(len(sizes)))


def fit_of(comparison, name):
    return next(fit for fit in comparison.fits if fit.law.name == name)


@pytest.mark.parametrize("name", TRUE)
def test_constants_of_a_law_without_noise(name):
    comparison = fit_laws(SIZES, losses(TRUE[name], 0.0, 0), draws=5)
    fit = fit_of(comparison, name)
    assert fit.values == pytest.approx(TRUE[name], rel=1e-4)
    assert fit.predict(SIZES) == pytest.approx(losses(TRUE[name], 0.0, 0), rel=1e-6)
    assert comparison.preferred == name and comparison.weights[name] > 0.9


@pytest.mark.parametrize("name", [POWER.name, SATURATING.name])
def test_noise_the_right_law_and_intervals_that_cover(name):
    true, covered, preferred, draws = TRUE[name], [], [], 8
    for seed in range(draws):
        comparison = fit_laws(SIZES, losses(true, 0.01, seed), draws=80, seed=seed)
        fit = fit_of(comparison, name)
        covered += [low <= true[key] <= high for key, (low, high) in fit.intervals.items()]
        assert all(low < high for low, high in fit.intervals.values())
        preferred.append(comparison.preferred)
        assert 0.002 < fit.spread < 0.03
    assert np.mean(covered) > 0.7  # of 0.95; the constants of a fit miss together, and there are eight fits
    assert preferred.count(name) > 0.8 * draws
    assert not {CONSTANT.name} & set(preferred)


def test_intervals_grow_with_the_noise():
    def width(noise):
        low, high = fit_of(fit_laws(SIZES, losses(TRUE[POWER.name], noise, 3), draws=60), POWER.name).intervals["b"]
        return high - low

    assert 5 < width(0.1) / width(0.01) < 20


def test_what_cannot_be_told_is_said():
    few = fit_laws(SIZES[:4], losses(TRUE[POWER.name], 0.01, 1, SIZES[:4]), draws=20)
    assert few.preferred is None and "cannot tell the laws apart: this takes 7" in few.words
    vague = fit_laws(SIZES, losses(TRUE[SATURATING.name], 0.04, 3), draws=20)
    assert vague.preferred is None and "whether the power law or the saturating law holds" in vague.words


def test_no_dependence():
    comparison = fit_laws(SIZES, losses(TRUE[CONSTANT.name], 0.01, 5), draws=20)
    assert comparison.preferred == CONSTANT.name and "no dependence on size" in comparison.words


def test_seeds_of_one_size_are_one_point():
    single = fit_laws(SIZES, losses(TRUE[POWER.name], 0.01, 1), draws=20)
    twice = fit_laws([*SIZES, *SIZES], [*losses(TRUE[POWER.name], 0.01, 1)] * 2, draws=20)
    for one, other in zip(single.fits, twice.fits, strict=True):
        assert other.values == pytest.approx(one.values, rel=1e-4, abs=1e-6)
        assert other.aicc == pytest.approx(one.aicc, abs=1e-4)


@pytest.mark.parametrize(
    ("sizes", "values", "message"),
    [
        ([1, 2], [1, 2], "3 sizes or more, and there are losses of 2"),
        ([1, 1, 1, 2], [1, 1, 1, 2], "losses of 2"),
        ([1, 2, 3], [1, float("nan"), 1], "A loss is nan, but it must be positive"),
        ([0, 2, 3], [1, 1, 1], "A size is 0.0"),
        ([1, 2, 3], [1, 2], "one loss for each size"),
    ],
)
def test_bad_points(sizes, values, message):
    with pytest.raises(GeomGNNError, match=message):
        fit_laws(sizes, values)
