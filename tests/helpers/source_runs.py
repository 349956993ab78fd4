"""Running sources of conformers in tests, and comparing what they give."""

from collections import Counter

import numpy as np


def run(source, seed=1):
    """All conformers of a source, and how many were left out by reason."""
    source.check()
    skipped = Counter()
    return [found for task in source.tasks(seed) for found in source.conformers(task, seed, skipped)], skipped


def assert_same(found, expected, atol=1e-4):
    """Two lists of conformers (z, pos) agree, the coordinates to `atol` angstrom."""
    assert len(found) == len(expected), (len(found), len(expected))
    for (z, pos), (z0, pos0) in zip(found, expected, strict=True):
        assert (z.dtype, pos.dtype) == (np.int64, np.float64), (z.dtype, pos.dtype)
        np.testing.assert_array_equal(z, z0)
        np.testing.assert_allclose(pos, pos0, rtol=0, atol=atol)
