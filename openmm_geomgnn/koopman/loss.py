"""VAMP-2 as a loss: traces and Cholesky solves, so its gradient is finite where singular values coincide."""

import torch
from torch import Tensor

from ..errors import GeomGNNError

_BROKEN = (
    "The covariance of the network's outputs over a batch is not finite and positive: the outputs diverged or "
    "do not vary. Take a lower learning rate, a larger batch or a larger ridge, and look at the tokens."
)


def vamp2(
    chi_0: Tensor, chi_t: Tensor, weights: Tensor | None = None, reversible: bool = True, ridge: float = 1e-6
) -> Tensor:
    """Compute the VAMP-2 score 1 + tr(C00^-1 C0t Ctt^-1 Ct0) of a batch of pairs in float64; it is differentiable.

    Parameters
    ----------
    chi_0, chi_t
        (B, k) first and second frames of the pairs; any floating dtype.
    weights
        (B,) non-negative, on any scale.
    reversible
        Count each pair in both directions, as `covariances` does.
    ridge
        Added to the diagonals of C00 and Ctt, times their mean diagonal element. It keeps the solves stable when outputs
        are linearly dependent, and the score independent of the scale of chi.

    Raises
    ------
    GeomGNNError
        If the covariances are not finite or not positive definite (outputs constant over the batch, or diverged).

    Wu & Noé, J. Nonlinear Sci. 30, 23 (2020); Mardt et al., Nat. Commun. 9, 5 (2018).
    """
    chi_0, chi_t = chi_0.double(), chi_t.double()
    w = torch.full((len(chi_0),), 1.0 / len(chi_0), dtype=torch.float64, device=chi_0.device)
    if weights is not None:
        w = weights.double() / weights.double().sum()
    mean_0, mean_t = w @ chi_0, w @ chi_t
    if reversible:
        mean_0 = mean_t = 0.5 * (mean_0 + mean_t)
    chi_0, chi_t = chi_0 - mean_0, chi_t - mean_t
    if not chi_0.square().sum() > 1e-24 * len(chi_0) * mean_0.square().sum():
        raise GeomGNNError(_BROKEN)
    weighted_0 = chi_0 * w[:, None]
    c00, c0t, ctt = weighted_0.T @ chi_0, weighted_0.T @ chi_t, (chi_t * w[:, None]).T @ chi_t
    if reversible:
        lower = _cholesky(0.5 * (c00 + ctt), ridge)
        c0t, lower_t = 0.5 * (c0t + c0t.T), lower
    else:
        lower, lower_t = _cholesky(c00, ridge), _cholesky(ctt, ridge)
    half = torch.linalg.solve_triangular(lower, c0t, upper=False)
    correlation = torch.linalg.solve_triangular(lower_t, half.T, upper=False)
    return 1.0 + correlation.square().sum()


def whitened_probe(chi: Tensor, weights: Tensor | None, ridge: float, generator: torch.Generator) -> Tensor:
    """Draw random rows u (B, k) with covariance C^-1, differentiable by chi.

    The expectation of |d(u.chi)|^2 is the sum of |d psi_i|^2 over the whitened outputs psi. Since u is differentiable,
    shrinking chi does not lower it.
    """
    chi = chi.double()
    w = torch.full((len(chi),), 1.0, dtype=torch.float64, device=chi.device) if weights is None else weights.double()
    w = w / w.sum()
    chi = chi - w @ chi
    lower = _cholesky((chi * w[:, None]).T @ chi, ridge)
    normal = torch.randn(chi.shape, dtype=torch.float64, generator=generator).to(chi.device)
    return torch.linalg.solve_triangular(lower.T, normal.T, upper=True).T


def _cholesky(covariance: Tensor, ridge: float) -> Tensor:
    k = len(covariance)
    shift = ridge * covariance.diagonal().mean()
    identity = torch.eye(k, dtype=covariance.dtype, device=covariance.device)
    lower, failed = torch.linalg.cholesky_ex(covariance + shift * identity)
    if failed.item() or not torch.isfinite(covariance).all():
        raise GeomGNNError(_BROKEN)
    return lower
