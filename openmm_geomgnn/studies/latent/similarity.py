"""Centred kernel alignment (CKA): how alike two representations of the same frames are, whatever their axes.

Kornblith, Norouzi, Lee & Hinton, ICML 2019 (arXiv 1905.00414). With linear kernels it does not change under rotations and
a common scale of the features, but under any other linear map. The plain estimate is above 0 for independent features, the
more so the fewer frames there are; the debiased one has the unbiased estimate of HSIC of Song et al., J. Mach. Learn. Res.
13, 1393 (2012), in the U-centred form of Szekely & Rizzo, J. Multivar. Anal. 117, 193 (2013).
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from openmm_geomgnn.errors import GeomGNNError

FEWEST = 4  # frames of the debiased estimate
ZERO = 1e-10  # relative norm below which a Gram matrix is that of constant features in float32


def centred_gram(features: npt.ArrayLike, debiased: bool = True) -> np.ndarray:
    """The Gram matrix of features, centred and of unit Frobenius norm; CKA is the sum of the products of two of them.

    Parameters
    ----------
    features : (F, n) array
    debiased : bool
        U-centred, with a diagonal of 0, instead of doubly centred.

    Returns
    -------
    (F, F) ndarray
        nan where the features are constant.

    Raises
    ------
    GeomGNNError
        If there are too few frames.
    """
    x = np.asarray(features, dtype=np.float64)
    frames = len(x)
    if x.ndim != 2 or frames < FEWEST:
        raise GeomGNNError(
            f"CKA compares features (frames, channels) of {FEWEST} frames or more, but their shape is {x.shape}. Use more "
            "frames."
        )
    size = np.square(x).sum()
    x = x - x.mean(axis=0)
    gram = x @ x.T
    if debiased:
        np.fill_diagonal(gram, 0.0)
        rows = gram.sum(axis=0) / (frames - 2)
        gram += rows.sum() / (frames - 1) - rows[:, None] - rows
        np.fill_diagonal(gram, 0.0)
    norm = float(np.linalg.norm(gram))
    return gram / norm if norm > ZERO * size else np.full_like(gram, np.nan)


def linear_cka(first: npt.ArrayLike, second: npt.ArrayLike, debiased: bool = True) -> float:
    """CKA of two representations (F, n) and (F, m) of the same F frames.

    Parameters
    ----------
    first, second : (F, n) and (F, m) arrays
    debiased : bool
        By the unbiased estimate, whose expectation for independent features is about 0 and which may be below.

    Returns
    -------
    float
        1 for features that are the same but for rotation, shift and scale; nan where one is constant.

    Raises
    ------
    GeomGNNError
        If there are too few frames, or they are not as many.

    Examples
    --------
    >>> import numpy as np
    >>> from openmm_geomgnn.studies.latent.similarity import linear_cka
    >>> x = np.random.default_rng(0).normal(size=(50, 3))
    >>> round(linear_cka(x, 2 * x[:, ::-1]), 6)
    1.0
    """
    grams = [centred_gram(part, debiased) for part in (first, second)]
    if grams[0].shape != grams[1].shape:
        raise GeomGNNError(
            f"CKA compares features of the same frames, but there are {len(grams[0])} and {len(grams[1])} of them."
        )
    return float(np.vdot(grams[0], grams[1]))


def cka_matrix(representations: Sequence[npt.ArrayLike], debiased: bool = True) -> np.ndarray:
    """CKA of each of K representations (F, n_k) with each other: (K, K) ndarray; arguments and errors as of `linear_cka`."""
    grams = np.stack([centred_gram(part, debiased).ravel() for part in representations])
    return grams @ grams.T
