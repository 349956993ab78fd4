"""What every token mixer shares: invariant features, their standardisation, checks of the input, settings."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..errors import GeomGNNError
from ..units import did_you_mean

# |v| is sqrt(v.v + eps^2): smooth at v = 0, where the bare norm has a kink. 1e-3 bounds its curvature by 1000 and is
# below the vector norms that pre-trained networks produce (0.003 to 10).
NORM_EPSILON = 1e-3

# A feature whose spread is below this share of its own size and of the widest feature is noise of float32 arithmetic;
# dividing by the floor instead of by the spread keeps it small.
STD_FLOOR = 1e-5


def invariants(tokens: Tensor) -> Tensor:
    """Scalars and vector norms of tokens (..., 4, H) as one feature row (..., 2H): [x, sqrt(v.v + NORM_EPSILON^2)].

    Both halves keep their value under rotations and reflections of the vectors, so mirror images look alike.
    """
    scalars, vectors = tokens[..., 0, :], tokens[..., 1:, :]
    norms = torch.sqrt(vectors.square().sum(-2) + NORM_EPSILON**2)
    return torch.cat([scalars, norms], dim=-1)


def suggest(what: str, name: object, options: Iterable[str]) -> str:
    """The text of an error about an unknown name, with the nearest known one."""
    options = sorted(options)
    return f"{what} {name!r} is unknown.{did_you_mean(name, options)} Known: {', '.join(options) or 'none'}."


def positive_int(name: str, value: object) -> int:
    """`value` as an int; GeomGNNError unless it is a whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise GeomGNNError(f"{name} must be a whole number of at least 1 but was {value!r}.")
    return value


@contextmanager
def initialisation(seed: int) -> Iterator[None]:
    """Weights drawn inside depend on `seed` only; torch's process-wide generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


class Standardiser(nn.Module):
    """Shift and scale of each feature of each token, set once from the training data and saved with the weights.

    Per token, because residues differ from one another far more than one residue fluctuates.
    """

    def __init__(self, n_tokens: int, n_features: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(n_tokens, n_features))
        self.register_buffer("std", torch.ones(n_tokens, n_features))
        self.register_buffer("fitted", torch.zeros((), dtype=torch.bool))

    def forward(self, features: Tensor) -> Tensor:
        return (features - self.mean) / self.std

    def fit(self, chunks: Callable[[], Iterator[tuple[Tensor, Tensor | None]]]) -> None:
        """Set mean and std from features (F, R, n) with masks (F, R) or None; `chunks` is iterated twice."""
        count = torch.zeros(self.mean.shape[0], 1, dtype=torch.float64)
        total = torch.zeros(self.mean.shape, dtype=torch.float64)
        for features, mask in chunks():
            present = torch.ones(features.shape[:2], dtype=torch.float64) if mask is None else mask.double()
            count += present.sum(0)[:, None]
            total += (features * present[..., None]).sum(0)
        seen = count > 0
        count = count.clamp(min=1.0)
        mean = total / count
        square = torch.zeros_like(mean)
        for features, mask in chunks():
            deviation = (features - mean).square()
            square += (deviation if mask is None else deviation * mask[..., None]).sum(0)
        std = torch.sqrt(square / count)
        floor = STD_FLOOR * (mean.abs() + std.max())
        std = torch.where(seen, torch.maximum(std, floor), 1.0)
        std[std == 0] = 1.0
        if not (torch.isfinite(mean).all() and torch.isfinite(std).all()):
            raise GeomGNNError("The tokens for the mixer's statistics are not finite: remove the frames with NaN or "
                               "inf.")
        self.mean.copy_(mean)
        self.std.copy_(std)
        self.fitted.fill_(True)


class Mixer(nn.Module):
    """Residue tokens -> the functions chi that the Koopman projection combines.

    A mixer sees tokens through `invariants` only, so chi does not change under rotation, translation or reflection,
    and it is a smooth function of the tokens, so the forces of a bias on it are continuous.

    Parameters
    ----------
    n_tokens
        Tokens per frame, R.
    hidden_channels
        Channels per token, H.

    Attributes
    ----------
    out_features : int
        Length of chi.
    settings : dict
        JSON-able; ``make_mixer(**settings)`` followed by ``load_state_dict`` gives the same mixer.
    """

    name: ClassVar[str]
    out_features: int

    def __init__(self, n_tokens: int, hidden_channels: int, **settings: object):
        super().__init__()
        self.n_tokens = positive_int("n_tokens", n_tokens)
        self.hidden_channels = positive_int("hidden_channels", hidden_channels)
        self.settings = {"name": self.name, "n_tokens": n_tokens, "hidden_channels": hidden_channels, **settings}
        self.standardise: Standardiser | None = None

    @property
    def n_features(self) -> int:
        """Invariant features per token, 2H."""
        return 2 * self.hidden_channels

    @property
    def has_statistics(self) -> bool:
        """Whether the standardisation is set (always so for a mixer that has none)."""
        return self.standardise is None or bool(self.standardise.fitted)

    def set_statistics(self, tokens, mask=None) -> None:
        """Set mean and std of the input features from the training data. Done once: a CV must not move afterwards.

        Parameters
        ----------
        tokens
            (F, R, 4, H) tensor or array, or a list of them.
        mask
            (F, R) bool, true where the token exists, or a list of them; None when all exist.

        Raises
        ------
        GeomGNNError
            If the statistics are set already, or shapes do not fit, or tokens are not finite.
        """
        if self.standardise is None:
            return
        if self.has_statistics:
            raise GeomGNNError("The mixer's statistics are set already, and changing them would move a trained CV: "
                               "make a new mixer with make_mixer(**mixer.settings).")
        single = not isinstance(tokens, (list, tuple))
        arrays = [torch.as_tensor(t) for t in ([tokens] if single else tokens)]
        masks = [None] * len(arrays) if mask is None else [torch.as_tensor(m) for m in ([mask] if single else mask)]
        if len(masks) != len(arrays):
            raise GeomGNNError(f"There are {len(arrays)} token arrays but {len(masks)} masks: give one mask for "
                               "each.")
        for array, m in zip(arrays, masks, strict=True):
            self._check(array, m)
        if sum(len(array) for array in arrays) == 0:
            raise GeomGNNError("The mixer's statistics need at least one frame of tokens, but there are none.")

        def chunks(frames: int = 4096) -> Iterator[tuple[Tensor, Tensor | None]]:
            for array, m in zip(arrays, masks, strict=True):
                for start in range(0, len(array), frames):
                    part = array[start : start + frames].detach().cpu().double()
                    present = None if m is None else m[start : start + frames].cpu()
                    if present is not None:
                        part = part.masked_fill(~present[..., None, None], 0.0)
                    yield invariants(part), present

        self.standardise.fit(chunks)

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """chi (F, out_features) of tokens (F, R, 4, H).

        mask (F, R) bool is true where a token exists; what stands in the other places has no influence, not even NaN.

        Raises
        ------
        GeomGNNError
            If shapes or dtypes do not fit the mixer, or a frame has no token at all.
        """
        self._check(tokens, mask)
        if self.standardise is not None and tokens.dtype != self.standardise.mean.dtype:
            raise GeomGNNError(f"The tokens are {tokens.dtype} but the mixer is {self.standardise.mean.dtype}: "
                               "convert one of them, e.g. mixer.double().")
        if mask is not None:
            if not bool(mask.any(1).all()):
                raise GeomGNNError("A frame has no token at all: its mask is false everywhere. Leave such frames "
                                   "out.")
            tokens = tokens.masked_fill(~mask[..., None, None], 0.0)
        features = invariants(tokens)
        if self.standardise is not None:
            features = self.standardise(features)
        if mask is not None:
            features = features.masked_fill(~mask[..., None], 0.0)
        return self.mix(features, mask)

    def mix(self, features: Tensor, mask: Tensor | None) -> Tensor:
        """chi (F, out_features) of standardised features (F, R, 2H), zero where the mask is false."""
        raise NotImplementedError

    def _check(self, tokens: Tensor, mask: Tensor | None) -> None:
        expected = (self.n_tokens, 4, self.hidden_channels)
        if tokens.ndim != 4 or tuple(tokens.shape[1:]) != expected:
            raise GeomGNNError(f"The mixer was made for tokens of shape (frames, {expected[0]}, 4, {expected[2]}) "
                               f"but got {tuple(tokens.shape)}: pass the tokens of the same selection and encoder.")
        if mask is not None and (mask.dtype != torch.bool or tuple(mask.shape) != tuple(tokens.shape[:2])):
            raise GeomGNNError(f"The mask must be bool of shape {tuple(tokens.shape[:2])} but was {mask.dtype} of "
                               f"shape {tuple(mask.shape)}.")


def pool_flatten(rows: Tensor, mask: Tensor | None) -> Tensor:
    """(F, R, n) -> (F, R*n); absent tokens are zeros."""
    if mask is not None:
        rows = rows.masked_fill(~mask[..., None], 0.0)
    return rows.flatten(1)


def pool_mean(rows: Tensor, mask: Tensor | None) -> Tensor:
    """(F, R, n) -> (F, n): the mean over the tokens that exist."""
    if mask is None:
        return rows.mean(1)
    return rows.masked_fill(~mask[..., None], 0.0).sum(1) / mask.sum(1, keepdim=True)


POOLS = {"flatten": pool_flatten, "mean": pool_mean}


class Readout(nn.Module):
    """Pool the tokens of a frame, then a two-layer perceptron to chi. Linear at the end: chi is not a probability."""

    def __init__(self, n_tokens: int, width: int, pool: str, hidden: int, out_features: int):
        super().__init__()
        if pool not in POOLS:
            raise GeomGNNError(suggest("The mixer's pool", pool, POOLS))
        self.pool = POOLS[pool]
        self.network = nn.Sequential(nn.Linear(width * (n_tokens if pool == "flatten" else 1), hidden), nn.SiLU(),
                                     nn.Linear(hidden, out_features))

    def forward(self, rows: Tensor, mask: Tensor | None) -> Tensor:
        return self.network(self.pool(rows, mask))
