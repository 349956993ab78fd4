"""Shift and scale of what a mixer sees, set once from the training data and saved with the weights."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from openmm_geomgnn.errors import GeomGNNError

# A feature whose spread is below this share of its own size and of the widest feature is noise of float32 arithmetic;
# dividing by the floor instead of by the spread keeps it small.
STD_FLOOR = 1e-5

# iterates over features (F, R, n) with masks (F, R) or None
Chunks = Callable[[], Iterator[tuple[Tensor, Tensor | None]]]


class Standardiser(nn.Module):
    """Shift and scale of each feature of each token, set once from the training data and saved with the weights.

    Per token, because residues differ from one another far more than one residue fluctuates; the same for all tokens
    where their number is not fixed (n_tokens is None).
    """

    mean: Tensor
    std: Tensor
    fitted: Tensor

    def __init__(self, n_tokens: int | None, n_features: int):
        super().__init__()
        self.shared = n_tokens is None
        rows = 1 if n_tokens is None else n_tokens
        self.register_buffer("mean", torch.zeros(rows, n_features))
        self.register_buffer("std", torch.ones(rows, n_features))
        self.register_buffer("fitted", torch.zeros((), dtype=torch.bool))

    def forward(self, features: Tensor) -> Tensor:
        """Features (F, R, n), shifted and scaled."""
        return (features - self.mean) / self.std

    def fit(self, chunks: Chunks) -> None:
        """Set mean and std from features (F, R, n) with masks (F, R) or None; `chunks` is iterated twice."""
        count = torch.zeros(self.mean.shape[0], 1, dtype=torch.float64)
        total = torch.zeros(self.mean.shape, dtype=torch.float64)
        for features, present in self._rows(chunks):
            count += present.sum(0)[:, None]
            total += (features * present[..., None]).sum(0)
        seen = count > 0
        count = count.clamp(min=1.0)
        mean = total / count
        square = torch.zeros_like(mean)
        for features, present in self._rows(chunks):
            square += ((features - mean).square() * present[..., None]).sum(0)
        std = torch.sqrt(square / count)
        floor = STD_FLOOR * (mean.abs() + std.max())
        std = torch.where(seen, torch.maximum(std, floor), 1.0)
        std[std == 0] = 1.0
        if not (torch.isfinite(mean).all() and torch.isfinite(std).all()):
            raise GeomGNNError("The tokens for the mixer's statistics are not finite: remove the frames with NaN or inf.")
        self.mean.copy_(mean)
        self.std.copy_(std)
        self.fitted.fill_(True)

    def _rows(self, chunks: Chunks) -> Iterator[tuple[Tensor, Tensor]]:
        for features, mask in chunks():
            present = torch.ones(features.shape[:2], dtype=torch.float64) if mask is None else mask.double()
            if self.shared:
                features, present = features.flatten(0, 1)[:, None], present.flatten()[:, None]
            yield features, present


class VectorScale(nn.Module):
    """Division of each vector channel by its root mean square over the training data.

    No shift, which would prefer a direction. One number for a channel of all tokens, so that vectors of different
    residues can be compared, and one that is short stays short instead of having its noise magnified.
    """

    rms: Tensor

    def __init__(self, channels: int):
        super().__init__()
        self.register_buffer("rms", torch.ones(channels))

    def forward(self, vectors: Tensor) -> Tensor:
        """Vectors (F, R, 3, H), scaled."""
        return vectors / self.rms

    def fit(self, chunks: Chunks) -> None:
        """Set the scale from features [x, |v|, ...] (F, R, n) with masks (F, R) or None."""
        channels = len(self.rms)
        count, total = 0.0, torch.zeros(channels, dtype=torch.float64)
        for features, mask in chunks():
            square = features[..., channels : 2 * channels].square()
            total += (square if mask is None else square * mask[..., None]).sum((0, 1))
            count += float(features.shape[0] * features.shape[1] if mask is None else mask.sum())
        if count:
            self.rms.copy_(torch.sqrt(total / count))
