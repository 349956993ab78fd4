"""From the rows of all tokens to chi: pool them, then a small network."""

import torch
from torch import Tensor, nn

from openmm_geomgnn.errors import GeomGNNError

from .checks import lookup


def without_absent(rows: Tensor, mask: Tensor | None) -> Tensor:
    """Rows (F, R, n), zero where the mask (F, R) is false."""
    return rows if mask is None else rows.masked_fill(~mask[..., None], 0.0)


class Pool(nn.Module):
    """From rows (F, R, n) of all tokens to one row for each frame, of length `width`."""

    def __init__(self, n_tokens: int | None, width: int):
        super().__init__()
        self.width = width

    def forward(self, rows: Tensor, mask: Tensor | None) -> Tensor:
        """Pool rows (F, R, n), of which those exist where the mask (F, R) is true; None when all do."""
        raise NotImplementedError


class FlattenPool(Pool):
    """(F, R, n) -> (F, R*n), which keeps which token is which; absent tokens are zeros."""

    def __init__(self, n_tokens: int | None, width: int):
        if n_tokens is None:
            raise GeomGNNError(
                "pool: flatten is for a fixed number of tokens, but n_tokens is None: use pool: mean, sum or attention."
            )
        super().__init__(n_tokens, n_tokens * width)

    def forward(self, rows: Tensor, mask: Tensor | None) -> Tensor:
        """See `Pool`."""
        return without_absent(rows, mask).flatten(1)


class SumPool(Pool):
    """(F, R, n) -> (F, n): the sum over the tokens that exist, which grows with their number."""

    def forward(self, rows: Tensor, mask: Tensor | None) -> Tensor:
        """See `Pool`."""
        return without_absent(rows, mask).sum(1)


class MeanPool(SumPool):
    """(F, R, n) -> (F, n): the mean over the tokens that exist."""

    def forward(self, rows: Tensor, mask: Tensor | None) -> Tensor:
        """See `Pool`."""
        total = super().forward(rows, mask)
        return total / (rows.shape[1] if mask is None else mask.sum(1, keepdim=True))


class AttentionPool(Pool):
    """(F, R, n) -> (F, n): a mean with learned weights, a softmax over the tokens that exist.

    Ilse, Tomczak & Welling 2018, arXiv 1802.04712.
    """

    def __init__(self, n_tokens: int | None, width: int):
        super().__init__(n_tokens, width)
        self.score = nn.Linear(width, 1)

    def forward(self, rows: Tensor, mask: Tensor | None) -> Tensor:
        """See `Pool`."""
        scores = self.score(rows)
        if mask is not None:
            scores = scores.masked_fill(~mask[..., None], float("-inf"))
        return (torch.softmax(scores, dim=1) * without_absent(rows, mask)).sum(1)


POOLS: dict[str, type[Pool]] = {
    "flatten": FlattenPool,
    "mean": MeanPool,
    "sum": SumPool,
    "attention": AttentionPool,
}


def make_pool(name: str, n_tokens: int | None, width: int) -> Pool:
    """The pool called `name` for rows (F, n_tokens, width); its `width` is that of what it returns.

    Raises
    ------
    GeomGNNError
        If there is no such pool, or it needs a fixed number of tokens and n_tokens is None.
    """
    return lookup("pool", name, POOLS)(n_tokens, width)


class Readout(nn.Module):
    """Pool the tokens of a frame, then a two-layer perceptron to chi. Linear at the end: chi is not a probability.

    Parameters
    ----------
    n_tokens, width
        R and n of the rows (F, R, n); R is None where it is not fixed.
    pool, hidden, out_features
        The pool's name, the width of the hidden layer and the length of chi, as in `LearnedSettings`.
    """

    def __init__(self, n_tokens: int | None, width: int, pool: str, hidden: int, out_features: int):
        super().__init__()
        self.pool = make_pool(pool, n_tokens, width)
        self.network = nn.Sequential(nn.Linear(self.pool.width, hidden), nn.SiLU(), nn.Linear(hidden, out_features))

    def forward(self, rows: Tensor, mask: Tensor | None) -> Tensor:
        """Evaluate chi (F, out_features) from rows (F, R, n), of which those exist where the mask (F, R) is true."""
        return self.network(self.pool(rows, mask))
