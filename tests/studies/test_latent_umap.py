"""UMAP, which compiles for half a minute before it begins."""

import numpy as np
import pytest

from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.studies.latent.projections import fitted_umap, umap_projection

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


@pytest.mark.slow
def test_the_graph_is_that_of_umap_itself():
    import umap

    x = np.random.default_rng(4).normal(size=(200, 6)) + 100
    found = fitted_umap(x, 8, 0.1, 3)
    own = umap.UMAP(n_neighbors=8, min_dist=0.1, random_state=3, n_jobs=1).fit(x)
    np.testing.assert_allclose(found.graph_.toarray(), own.graph_.toarray(), atol=1e-4)


@pytest.mark.slow
def test_some_of_the_frames():
    x = np.random.default_rng(5).normal(size=(120, 6))
    found = umap_projection(x, neighbours=8, most=60).coordinates
    there = np.isfinite(found).all(axis=1)
    assert there.sum() == 60 and there[[0, -1]].all() and np.diff(np.flatnonzero(there)).max() <= 3
    with pytest.raises(GeomGNNError, match="but there are 9"):
        umap_projection(x, neighbours=8, most=9)
