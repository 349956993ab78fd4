"""Two coordinates for many features: principal components, and UMAP of these."""

import warnings
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors

from openmm_geomgnn.errors import GeomGNNError

COMPONENTS = 2
FOR_UMAP = 50  # principal components


class Projection(NamedTuple):
    """Coordinates (F, 2) of all frames; of principal components the share of the variance that each explains."""

    coordinates: np.ndarray
    explained: tuple[float, ...] = ()


def principal_components(features: npt.ArrayLike, number: int = COMPONENTS) -> Projection:
    """Project features (F, n), which are centred but not scaled, on as many principal components, or all where fewer are."""
    x = np.asarray(features, dtype=np.float64)
    model = PCA(min(number, *x.shape), svd_solver="full" if x.shape[1] < 100 else "covariance_eigh")
    return Projection(model.fit_transform(x), tuple(model.explained_variance_ratio_.tolist()))


def umap_projection(
    features: npt.ArrayLike, neighbours: int = 15, min_distance: float = 0.1, seed: int = 1, most: int | None = None
) -> Projection:
    """UMAP (McInnes, Healy & Melville 2018, arXiv 1802.03426) of the first FOR_UMAP principal components.

    The neighbours are found exactly, by scikit-learn: of fewer than 4096 frames umap-learn itself computes all distances in
    a loop of Python, and of more it compiles an approximate search for half a minute.

    Parameters
    ----------
    features : (F, n) array
    neighbours, min_distance
        `n_neighbors` and `min_dist` of `umap.UMAP`.
    seed : int
        The same seed gives the same coordinates on the same machine.
    most : int, optional
        At most so many frames, evenly spread, are projected; coordinates of the others are nan. All by default.

    Raises
    ------
    GeomGNNError
        If umap-learn is not installed, or there are fewer frames than neighbours.
    """
    components = principal_components(features, FOR_UMAP).coordinates
    rows = np.arange(len(components))
    if most is not None and most < len(rows):
        rows = np.linspace(0, len(components) - 1, most).astype(int)
    x = components[rows]
    if len(x) <= neighbours + 1:
        raise GeomGNNError(
            f"UMAP with {neighbours} neighbours needs more than {neighbours + 1} frames, but there are {len(x)}. Use more "
            "frames or fewer neighbours."
        )
    found = np.full((len(components), COMPONENTS), np.nan)
    found[rows] = fitted_umap(x, neighbours, min_distance, seed).embedding_
    return Projection(found)


def fitted_umap(x: np.ndarray, neighbours: int, min_distance: float, seed: int) -> Any:
    """A `umap.UMAP` that was fitted to x (F, n) with its exact neighbours."""
    umap = _umap()
    # each frame is its own first neighbour, at exactly 0: the smallest distance above 0 is to UMAP that to the nearest other
    others = NearestNeighbors(n_neighbors=neighbours - 1).fit(x).kneighbors()
    distances, indices = np.insert(others[0], 0, 0.0, axis=1), np.insert(others[1], 0, np.arange(len(x)), axis=1)
    model = umap.UMAP(
        n_neighbors=neighbours,
        min_dist=min_distance,
        random_state=seed,
        n_jobs=1,
        n_components=COMPONENTS,
        precomputed_knn=(indices.astype(np.int32), distances.astype(np.float32), None),
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "precomputed_knn")  # of new data, of which there are none
        return model.fit(x)


def check_umap() -> None:
    """Raise a GeomGNNError if umap-learn is not installed, without importing it, which takes seconds."""
    from importlib.util import find_spec

    if find_spec("umap") is None:
        raise _missing()


def _umap() -> Any:
    try:
        import umap
    except ImportError as error:
        raise _missing() from error
    return umap


def _missing() -> GeomGNNError:
    return GeomGNNError(
        'UMAP takes umap-learn, which is not installed: pip install "openmm-geomgnn[project]", or set projections: pca.'
    )
