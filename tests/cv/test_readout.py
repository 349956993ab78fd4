"""Read-outs by hand against autograd, and atoms that stand in several windows of a compiled network."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

pytest.importorskip("numba")

import numba
import torch
from molecules import ala2, random_cv

from openmm_geomgnn.cv.readouts import AttentionReadout, LinearReadout, MLPReadout, TorchReadout, make_readout
from openmm_geomgnn.cv.readouts.gelu_functions import gelu, gelu_slope
from openmm_geomgnn.cv.readouts.mixer_arguments import POOLS
from torchmdnet_ext.kernels.lanes import load16, store

pytestmark = pytest.mark.slow

FRAME = ala2()
MIXED = ("none", "mlp", "attention")


def features(windows, hidden, dtype):
    generator = torch.Generator().manual_seed(1)
    count = len(windows.rows)
    shapes = (count, hidden), (count, 3, hidden)
    return tuple(torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).numpy() for shape in shapes)


def both_readouts(cv, precision="double"):
    """The read-out by kernels and that by autograd, with features to read."""
    bound = cv.bind(FRAME.topology, precision, "eager")
    parts = bound.tokenizer, bound.mixer, bound.mean, bound.projection, bound._project
    x, v = features(bound.tokenizer.windows, bound.tokenizer.encoder.hidden_channels, bound.dtype)
    return *(make_readout(*parts, compiled=compiled) for compiled in (True, False)), x, v


def check_same(found, expected, x, v, tolerance):
    """Values and gradients, the latter of one evaluation after another and twice, are those of autograd."""
    weights = np.random.default_rng(2).normal(size=2)
    (psi, vjp), (reference, reference_vjp) = found(x, v), expected(x, v)
    found(1.1 * x, v)  # another evaluation must not matter
    np.testing.assert_allclose(psi, reference, atol=tolerance * np.abs(reference).max())
    for gradient, other, wanted in zip(vjp(weights), vjp(weights), reference_vjp(weights), strict=True):
        assert gradient.dtype == x.dtype and gradient.shape == wanted.shape
        assert np.linalg.norm(gradient - wanted) < tolerance * np.linalg.norm(wanted)
        np.testing.assert_array_equal(gradient, other)


@pytest.mark.parametrize("pool", ["flatten", "sum", "mean"])
@pytest.mark.parametrize("pooling", ["sum", "mean"])
@pytest.mark.parametrize("window", ["all", "sequence"])
def test_linear_readout_is_that_of_autograd(window, pooling, pool):
    cv = random_cv(FRAME.topology, window=window, pooling=pooling, mixer_settings={"pool": pool})
    found, *rest = both_readouts(cv)
    assert isinstance(found, LinearReadout)
    check_same(found, *rest, 1e-12)


ODD = {"width": 21, "layers": 1, "readout": 9, "out_features": 3}  # channels that do not fill panels
MIXERS = {
    "mlp": ("mlp", {}),
    "mlp, odd": ("mlp", ODD),
    "mlp, three layers": ("mlp", {"width": 32, "layers": 3}),
    "attention": ("attention", {}),
    "attention, odd": ("attention", {**ODD, "heads": 3, "feedforward": 35}),
    "attention, wide": ("attention", {"width": 16, "layers": 3, "feedforward": 700}),
}


@pytest.mark.parametrize("precision, tolerance", [("single", 2e-6), ("double", 1e-12)])
@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("case", MIXERS)
def test_mixer_readout_is_that_of_autograd(case, pool, precision, tolerance):
    name, settings = MIXERS[case]
    options = {"window": "sequence", "pooling": "mean"} if pool in ("flatten", "mean") else {}
    cv = random_cv(FRAME.topology, mixer=name, mixer_settings={**settings, "pool": pool}, **options)
    found, *rest = both_readouts(perturbed(cv), precision)
    assert isinstance(found, {"mlp": MLPReadout, "attention": AttentionReadout}[name])
    check_same(found, *rest, tolerance)


def perturbed(cv):
    """The CV with gains and biases of its LayerNorms that are not those that they start with."""
    generator = torch.Generator().manual_seed(4)
    for module in cv.mixer.modules():
        if isinstance(module, torch.nn.LayerNorm):
            for parameter in (module.weight, module.bias):
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return cv


@pytest.mark.parametrize("mixer", MIXED)
def test_what_is_not_finite_stays_so(mixer):
    found, _, x, v = both_readouts(random_cv(FRAME.topology, mixer=mixer), "single")
    x[1, 3] = np.nan
    assert np.isnan(found(x, v)[0]).all()


@pytest.mark.parametrize("mixer", MIXED)
def test_threads_do_not_disturb_each_other(mixer):
    found, _, x, v = both_readouts(random_cv(FRAME.topology, mixer=mixer))
    weights = np.array([0.3, -1.2])

    def read(scale):
        psi, vjp = found(scale * x, v)
        return [psi, *vjp(weights)]

    scales = np.linspace(0.5, 2.0, 200)
    with ThreadPoolExecutor(4) as pool:
        for together, alone in zip(pool.map(read, scales), map(read, scales), strict=True):
            for part, expected in zip(together, alone, strict=True):
                np.testing.assert_array_equal(part, expected)


def test_other_cvs_are_read_out_by_autograd():
    for options in ({"mixer": "message-passing"}, *({"mixer": m, "mixer_settings": {"chirality": True}} for m in MIXED)):
        assert isinstance(both_readouts(random_cv(FRAME.topology, **options))[0], TorchReadout)


def test_kernels_are_for_the_compiled_engine():
    cv = random_cv(FRAME.topology, mixer="mlp")
    assert isinstance(cv.bind(FRAME.topology, "single", "eager")._readout, TorchReadout)
    bound = cv.bind(FRAME.topology, "single", "numba")
    assert isinstance(bound._readout, MLPReadout)
    bound.warm_up(lambda: None)
    assert not bound._readout.needs_compiling


@pytest.mark.parametrize("kind", ["float32", "float64"])
def test_gelu(kind):
    """Against torch's in double precision (in single it cancels at negative x), and the slope against autograd."""

    @numba.njit
    def fill(x, values, slopes):
        for k in range(0, x.shape[0], 16):
            store(values, k, gelu(load16(x, k)))
            store(slopes, k, gelu_slope(load16(x, k)))

    x = torch.cat([torch.linspace(-12, 12, 2000), torch.tensor([0.0, -0.0, 1e-30, -1e-30, 40, -40, 300, -300])])
    x = torch.cat([x, torch.zeros(8)]).to(getattr(torch, kind)).requires_grad_(True)
    values, slopes = np.empty((2, len(x)), kind)
    fill(x.detach().numpy(), values, slopes)
    x = x.detach().double().requires_grad_(True)
    expected = torch.nn.functional.gelu(x)
    (slope,) = torch.autograd.grad(expected.sum(), x)
    tolerance = 3e-7 if kind == "float32" else 1e-14
    np.testing.assert_allclose(values, expected.detach().numpy(), atol=tolerance, rtol=tolerance)
    np.testing.assert_allclose(slopes, slope.numpy(), atol=tolerance)


@pytest.mark.parametrize("model", ["smooth-equivariant-transformer", "visnet"])
def test_atoms_in_several_windows(model):
    """Positions and gradients are those of atoms; the kernels share what depends on a distance only between the windows."""
    from molecules import random_encoder

    cv = random_cv(FRAME.topology, random_encoder(model), window="sequence")
    pos = 10.0 * FRAME.xyz[0, cv.bind(FRAME.topology, "double", "eager").atoms].astype(np.float64)
    weights = np.array([0.3, -1.2])
    results = {}
    for engine in ("eager", "numba"):
        bound = cv.bind(FRAME.topology, "double", engine)
        assert len(bound.tokenizer.windows.rows) > len(bound.atoms)
        psi, vjp = bound.value_and_vjp(pos)
        results[engine] = psi, vjp(weights)
        at = torch.from_numpy(pos).requires_grad_(True)
        (gradient,) = torch.autograd.grad(bound.single(at), at, torch.from_numpy(weights))
        np.testing.assert_allclose(gradient.numpy(), results[engine][1], atol=1e-9 * np.abs(results[engine][1]).max())
    np.testing.assert_allclose(results["numba"][0], results["eager"][0], atol=1e-6 * np.abs(results["eager"][0]).max())
    error = np.linalg.norm(results["numba"][1] - results["eager"][1]) / np.linalg.norm(results["eager"][1])
    assert error < 2e-5
