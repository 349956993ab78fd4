"""The read-out of a linear CV by hand against autograd, and atoms that stand in several windows of a compiled network."""

import numpy as np
import pytest
import torch
from molecules import ala2, random_cv

from openmm_geomgnn.readout import LinearReadout, TorchReadout

FRAME = ala2()


def features(windows, hidden):
    generator = torch.Generator().manual_seed(1)
    count = len(windows.rows)
    shapes = (count, hidden), (count, 3, hidden)
    return tuple(torch.randn(shape, generator=generator, dtype=torch.float64).numpy() for shape in shapes)


@pytest.mark.parametrize("pool", ["flatten", "sum", "mean"])
@pytest.mark.parametrize("pooling", ["sum", "mean"])
@pytest.mark.parametrize("window", ["all", "sequence"])
def test_linear_readout_is_that_of_autograd(window, pooling, pool):
    cv = random_cv(FRAME.topology, window=window, pooling=pooling, mixer_settings={"pool": pool})
    bound = cv.bind(FRAME.topology, "double", "eager")
    assert isinstance(bound._readout, LinearReadout)
    x, v = features(bound.tokenizer.windows, bound.tokenizer.encoder.hidden_channels)
    weights = np.random.default_rng(2).normal(size=bound.dimension)
    psi, vjp = bound._readout(x, v)
    expected, expected_vjp = TorchReadout(bound.tokenizer, bound._project)(x, v)
    np.testing.assert_allclose(psi, expected, rtol=1e-12)
    for found, reference in zip(vjp(weights), expected_vjp(weights), strict=True):
        np.testing.assert_allclose(found, reference, rtol=1e-10, atol=1e-14)


def test_other_cvs_are_read_out_by_autograd():
    for options in ({"mixer": "mlp"}, {"mixer_settings": {"chirality": True}}):
        bound = random_cv(FRAME.topology, **options).bind(FRAME.topology, "single", "eager")
        assert isinstance(bound._readout, TorchReadout)


@pytest.mark.parametrize("model", ["smooth-equivariant-transformer", "visnet"])
def test_atoms_in_several_windows(model):
    """Positions and gradients are those of atoms; the kernels share what depends on a distance only between the windows."""
    pytest.importorskip("numba")
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
