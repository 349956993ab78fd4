"""Batches, gradients and comparisons of networks that are compiled for training with the same in plain PyTorch."""

import copy

import pytest
import torch

from openmm_geomgnn.testing.numerics import molecule, randn, relative


def batch(sizes=(20, 1, 17, 2, 22), dtype=torch.float64):
    """Molecules; in the first, one atom is out of reach and two are at the same place."""
    parts = [molecule(n, seed=n) for n in sizes]
    parts[0][1][4] += 40.0
    parts[0][1][7] = parts[0][1][9]
    z, pos = torch.cat([z for z, _ in parts]), torch.cat([pos for _, pos in parts])
    return z, pos.to(dtype), torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))


def scalar(x, v):
    return (x * randn(*x.shape, seed=3).to(x)).sum() + (v * randn(*v.shape, seed=4).to(v)).sum()


def gradients(network, z, pos, graphs, **options):
    """Features, and the gradients of a scalar of them with respect to all parameters."""
    x, v, *_ = network(z, pos, graphs, **options)
    energy = scalar(x, v)
    names, parameters = zip(*((name, p) for name, p in network.named_parameters() if p.requires_grad), strict=True)
    return {"x": x, "v": v, **dict(zip(names, torch.autograd.grad(energy, parameters), strict=True))}


def plain(network):
    network = copy.deepcopy(network)
    network.compiled = False
    return network


def largest_difference(found, expected):
    assert found.keys() == expected.keys()
    return max(relative(found[name], expected[name]) for name in found if bool(expected[name].any()))


def check_by_differences(network, h=1e-5):
    """The gradient by each parameter, along a random direction, against central differences of the scalar."""
    arguments = batch((10, 1, 8))
    found, largest = gradients(network, *arguments), 0.0
    for k, (name, parameter) in enumerate(network.named_parameters()):
        direction, values = randn(*parameter.shape, seed=k).to(parameter), []
        with torch.no_grad():
            for step in (h, -2 * h):
                parameter += step * direction
                values.append(float(scalar(*network(*arguments)[:2])))
            parameter += h * direction
        slope = float((found[name] * direction).sum())
        assert slope == pytest.approx((values[0] - values[1]) / (2 * h), rel=1e-5, abs=1e-6), name
        largest = max(largest, abs(slope))
    assert largest > 1.0
