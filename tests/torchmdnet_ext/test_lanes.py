"""Functions of SIMD lanes against numpy."""

import numpy as np
import pytest

pytest.importorskip("numba")

from numba import njit

from torchmdnet_ext.compiled.lane_functions import sigmoid
from torchmdnet_ext.kernels.lanes import WIDTH, exp8, load8, store


@njit
def exponentials(x, out):
    for k in range(0, x.shape[0], WIDTH):
        store(out, k, exp8(load8(x, k)))


@njit
def sigmoids(x, out):
    for k in range(0, x.shape[0], WIDTH):
        store(out, k, sigmoid(load8(x, k)))


def applied(function, x):
    out = np.empty_like(x)
    function(x, out)
    return out


PRECISIONS = [(np.float32, 2e-7, 87.0), (np.float64, 4e-16, 708.0)]


@pytest.mark.parametrize(("dtype", "tolerance", "limit"), PRECISIONS)
def test_exp(dtype, tolerance, limit):
    x = np.random.default_rng(0).uniform(-limit, limit, 80_000).astype(dtype)
    x[:40_000] /= dtype(limit)
    x[:3] = 0.0, limit, -limit
    exact = np.exp(x.astype(np.longdouble))
    assert np.abs(applied(exponentials, x) / exact - 1).max() < tolerance
    assert applied(exponentials, x)[0] == 1.0


@pytest.mark.parametrize(("dtype", "tolerance", "limit"), PRECISIONS)
def test_exp_of_what_is_too_large_or_not_a_number(dtype, tolerance, limit):
    x = np.array([np.inf, -np.inf, np.nan, 10 * limit, -10 * limit, 1e30, -1e30, 0.0], dtype)
    found = applied(exponentials, x)
    assert np.isnan(found[2]) and np.isfinite(found[[0, 1, 3, 4, 5, 6]]).all()
    assert (found[[0, 3, 5]] > np.finfo(dtype).max ** 0.97).all() and (found[[1, 4, 6]] < np.finfo(dtype).tiny ** 0.97).all()


@pytest.mark.parametrize(("dtype", "tolerance", "limit"), PRECISIONS)
def test_sigmoid(dtype, tolerance, limit):
    x = np.random.default_rng(0).uniform(-30, 30, 80_000).astype(dtype)
    exact = 1 / (1 + np.exp(-x.astype(np.longdouble)))
    assert np.abs(applied(sigmoids, x) - exact).max() < tolerance
    assert applied(sigmoids, np.array([1e30, -1e30] * 4, dtype))[:2] == pytest.approx([1.0, 0.0], abs=1e-30)
