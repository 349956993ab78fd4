"""UMAP, which compiles for half a minute before it begins."""

import numpy as np
import pytest

from openmm_geomgnn.studies.latent.projections import umap_projection

pytest.importorskip("umap")


@pytest.mark.slow
def test_umap_keeps_clusters_apart():
    centres = 20 * np.random.default_rng(1).normal(size=(3, 10))
    x = np.repeat(centres, 30, axis=0) + np.random.default_rng(2).normal(size=(90, 10))
    found = umap_projection(x, neighbours=10).coordinates
    np.testing.assert_array_equal(found, umap_projection(x, neighbours=10).coordinates)
    middles = found.reshape(3, 30, 2).mean(axis=1)
    inside = np.linalg.norm(found.reshape(3, 30, 2) - middles[:, None], axis=2).max()
    apart = min(np.linalg.norm(middles[a] - middles[b]) for a, b in ((0, 1), (0, 2), (1, 2)))
    assert apart > 2 * inside
