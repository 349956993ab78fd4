"""Two coordinates for many features: principal components, and UMAP of these."""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from sklearn.decomposition import PCA

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


def umap_projection(features: npt.ArrayLike, neighbours: int = 15, min_distance: float = 0.1, seed: int = 1) -> Projection:
    """UMAP (McInnes, Healy & Melville 2018, arXiv 1802.03426) of the first FOR_UMAP principal components.

    Parameters
    ----------
    features : (F, n) array
    neighbours, min_distance
        `n_neighbors` and `min_dist` of `umap.UMAP`.
    seed : int
        The same seed gives the same coordinates on the same machine.

    Raises
    ------
    GeomGNNError
        If umap-learn is not installed, or there are fewer frames than neighbours.
    """
    x = principal_components(features, FOR_UMAP).coordinates
    if len(x) <= neighbours + 1:
        raise GeomGNNError(
            f"UMAP with {neighbours} neighbours needs more than {neighbours + 1} frames, but there are {len(x)}. Use more "
            "frames or fewer neighbours."
        )
    umap = _umap()
    model = umap.UMAP(n_neighbors=neighbours, min_dist=min_distance, random_state=seed, n_jobs=1, n_components=COMPONENTS)
    return Projection(np.asarray(model.fit_transform(x), dtype=np.float64))


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
