"""Settings of a small network of every architecture, the networks with random weights, and a molecule for them."""

import numpy as np
import torch

from openmm_geomgnn.testing.numerics import as_if_trained
from torchmdnet_ext import registration
from torchmdnet_ext.heads.noise import EquivariantNoise

COMMON = {
    "embedding_dimension": 8,
    "num_layers": 2,
    "num_rbf": 4,
    "max_z": 20,
    "cutoff_lower": 0.0,
    "cutoff_upper": 5.0,
    "rbf_type": "expnorm",
    "trainable_rbf": False,
    "activation": "silu",
    "smooth_cutoff": True,
    "envelope_width": 0.8,
}
SETTINGS = {
    "visnet": {
        **COMMON,
        "model": "visnet",
        "num_heads": 2,
        "lmax": 2,
        "vecnorm_type": "max_min",
        "trainable_vecnorm": True,
        "vertex": False,
    },
    "smooth-equivariant-transformer": {
        **COMMON,
        "model": "smooth-equivariant-transformer",
        "num_heads": 2,
        "attn_activation": "silu",
        "distance_influence": "both",
        "neighbor_embedding": True,
        "vector_cutoff": False,
    },
    "smooth-tensornet": {**COMMON, "model": "smooth-tensornet", "equivariance_invariance_group": "O(3)"},
}
Z = np.array([6, 1, 8, 1, 7])
POS = np.random.default_rng(1).normal(size=(3, 5, 3)) * 2


def make_network(model, seed=3):
    torch.manual_seed(seed)
    return registration.representation_model({"precision": 32, **SETTINGS[model]})


def make_head(seed=4):
    torch.manual_seed(seed)
    return as_if_trained(EquivariantNoise(COMMON["embedding_dimension"]))


def same(tensors, module):
    """Whether tensors by name are those of a module."""
    expected = module.state_dict()
    return tensors.keys() == expected.keys() and all(torch.equal(tensors[name], expected[name]) for name in tensors)
