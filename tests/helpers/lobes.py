"""A small lobe, and data of a model with a known slow process, for trainings of VAMPnets."""

from functools import cache

import numpy as np
from deeptime.data import sqrt_model

from openmm_geomgnn.cv.mixers import make_mixer


def as_tokens(x):
    """(T, n) features as the scalars of one token (T, 1, 4, n), float32."""
    tokens = np.zeros((len(x), 1, 4, x.shape[1]), dtype=np.float32)
    tokens[:, 0, 0] = x
    return tokens


@cache
def sqrt_data(n=10_000, seed=2):
    np.random.seed(seed)  # deeptime draws the first state from numpy's own generator, whatever its seed
    states, x = sqrt_model(n, seed=seed)
    return states, as_tokens(x)


def lobe(channels=2, out_features=2, **settings):
    return make_mixer("mlp", 1, channels, **{"width": 24, "readout": 24, "out_features": out_features, **settings})
