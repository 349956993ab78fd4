"""Sums of kernels, and their merging."""

import math

import numpy as np
import pytest
from biases import deposit

from openmm_geomgnn.sampling.opes.kernel_sum import KernelSum, add_kernel, merge_pair, minimum_image, wrap
from openmm_geomgnn.sampling.opes.method import OPES


def test_merging_conserves_mass_mean_and_variance():
    rng = np.random.default_rng(1)
    for _ in range(20):
        (c1, c2), (s1, s2) = rng.normal(1000, 1, (2, 3)), rng.uniform(0.05, 0.5, (2, 3))
        h1, h2 = rng.uniform(0.1, 3, 2)
        centre, sigma, log_height = merge_pair(c1, s1, math.log(h1), c2, s2, math.log(h2))
        h = h1 + h2
        assert math.exp(log_height) == pytest.approx(h, rel=1e-13)
        assert centre == pytest.approx((h1 * c1 + h2 * c2) / h, rel=1e-14)
        variance = (h1 * (s1**2 + (c1 - centre) ** 2) + h2 * (s2**2 + (c2 - centre) ** 2)) / h
        assert sigma**2 == pytest.approx(variance, rel=1e-10)


def test_merging_across_a_period_and_of_weights_beyond_a_double():
    lows, lengths = np.array([-math.pi]), np.array([2 * math.pi])
    kernels = np.array([[math.pi - 0.1]]), np.array([[0.3]]), np.array([900.0])
    new = np.array([0.1 - math.pi]), np.array([0.3]), 900.0
    centres, sigmas, log_heights = add_kernel(*kernels, new, 1, lows, lengths)
    assert abs(minimum_image(centres[0] - math.pi, lengths)[0]) < 1e-14
    assert -math.pi <= centres[0, 0] <= math.pi
    assert sigmas[0, 0] == pytest.approx(math.hypot(0.3, 0.1)) and log_heights[0] == pytest.approx(900 + math.log(2))


def test_merging_is_recursive_and_measured_in_the_existing_sigma():
    # 0 and 1.8 are too far apart to merge, until a heavy kernel near 0.95 draws the second within reach of the first
    centres, sigmas, log_heights = np.array([[0.0], [1.8], [40.0]]), np.full((3, 1), 1.0), np.zeros(3)
    new = np.array([0.95]), np.array([1.0]), 3.0
    merged = add_kernel(centres, sigmas, log_heights, new, threshold=1.0)
    assert [len(part) for part in merged] == [2, 2, 2]
    masses = np.exp(merged[2]) @ [1, 1]
    assert masses == pytest.approx(3 + math.exp(3))
    assert (np.exp(merged[2]) @ merged[0])[0] == pytest.approx(41.8 + 0.95 * math.exp(3))
    assert [len(part) for part in add_kernel(centres, sigmas, log_heights, new, threshold=0.5)] == [4, 4, 4]
    assert [len(part) for part in add_kernel(centres, sigmas, log_heights, new, threshold=0)] == [4, 4, 4]
    # a narrow newcomer within the reach of a wide kernel merges; a wide newcomer beside a narrow kernel does not
    wide, narrow = (np.array([[0.0]]), np.array([[1.0]])), (np.array([[0.0]]), np.array([[0.1]]))
    at = np.array([0.5])
    assert len(add_kernel(*wide, np.zeros(1), (at, np.array([0.1]), 0.0), 1.0)[0]) == 1
    assert len(add_kernel(*narrow, np.zeros(1), (at, np.array([1.0]), 0.0), 1.0)[0]) == 2


def test_merging_keeps_the_kernels_few():
    points = np.random.default_rng(2).normal(0, 0.3, (2000, 1))
    state = deposit(OPES(40, 500, sigma=0.1, sigma_min=0.05), points)
    assert len(state.centres) < 60
    assert len(deposit(OPES(40, 500, sigma=0.1, compression_threshold=0), points[:100]).centres) == 100


def test_density_in_blocks_is_the_same():
    rng = np.random.default_rng(3)
    total = KernelSum(rng.normal(size=(700, 2)), np.full((700, 2), 0.3), np.zeros(700), 5.0)
    points = rng.normal(size=(1000, 2))
    whole, gradient = total.log_density(points, -16.0)
    for i in (0, 187, 188, 999):
        value, slope = total.log_density(points[i : i + 1], -16.0)
        assert value[0] == pytest.approx(whole[i], rel=1e-14) and slope[0] == pytest.approx(gradient[i], rel=1e-12)
    assert np.array_equal(total.density(points)[:5], total.density(points[:5]))


def test_wrap():
    lows, lengths = np.array([-math.pi, 0.0]), np.array([2 * math.pi, 0.0])
    assert wrap(np.array([3.5, 7.0]), lows, lengths) == pytest.approx([3.5 - 2 * math.pi, 7.0])


def test_log_space_agrees_with_the_plain_sum():
    rng = np.random.default_rng(8)
    total = KernelSum(rng.normal(size=(20, 2)), np.full((20, 2), 0.4), rng.normal(size=20), 5.0)
    points = rng.normal(0, 2, (100, 2))
    plain, gradient = total.log_density(points, -12.5)
    logarithmic, slope = total._log_space(points, -12.5)
    assert logarithmic == pytest.approx(plain, rel=1e-12, abs=1e-12) and slope == pytest.approx(gradient, abs=1e-9)
