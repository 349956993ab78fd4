"""What every token mixer shares: settings, invariant features, their standardisation, checks of the input."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from openmm_geomgnn.errors import GeomGNNError

from .checks import check_seed, lookup, positive_int
from .features import invariants
from .pooling import POOLS
from .standardise import Standardiser, VectorScale

_STATISTICS_FRAMES = 4096  # that the statistics take in at once
_LAST = ("pool", "readout", "seed")  # in the settings that a CV file has


@dataclass(frozen=True, kw_only=True)
class MixerSettings:
    """Settings of every mixer.

    A mixer has a subclass with fields of its own, all of which have defaults, and checks them in `__post_init__`.

    Attributes
    ----------
    chirality : bool
        Whether mirror images differ.

    Raises
    ------
    GeomGNNError
        If a value does not fit whatever the tokens are; the message begins with the name of the setting.
    """

    chirality: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.chirality, bool):
            raise GeomGNNError(f"chirality must be true or false but was {self.chirality!r}.")

    def as_dict(self) -> dict[str, object]:
        """The settings by name, in the order of CV files: those of all mixers, the mixer's own, those of its read-out."""
        return dict(sorted(asdict(self).items(), key=lambda item: item[0] in _LAST))


@dataclass(frozen=True, kw_only=True)
class LearnedSettings(MixerSettings):
    """Settings of every mixer that has weights.

    Attributes
    ----------
    out_features : int
        Length of chi.
    pool : str
        "flatten", "mean", "sum" or "attention" over the tokens. "flatten" keeps which token is which; the others suit many
        like tokens.
    readout : int
        Width of the read-out's hidden layer.
    seed : int
        Seed of the initial weights; torch's own generator is not touched.
    """

    out_features: int = 6
    pool: str = "flatten"
    readout: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        positive_int("out_features", self.out_features)
        lookup("pool", self.pool, POOLS)
        positive_int("readout", self.readout)
        check_seed(self.seed)


class Mixer(nn.Module):
    """Residue tokens -> the functions chi that the Koopman projection combines.

    chi does not change under rotation or translation of the molecule, nor under reflection unless `chirality` is on, and
    it is a smooth function of the tokens, so the forces of a bias on it are continuous. What a mixer knows is the tokens,
    their order and which of them exist; no coordinates.

    Parameters
    ----------
    n_tokens
        Tokens per frame, R; None for any number of them, which needs a `pool` other than "flatten" and knows no residue
        by its place.
    hidden_channels
        Channels per token, H.
    settings
        With `chirality` the mixer also takes in `pseudoscalars` of the vectors, which tell mirror images apart.

    Attributes
    ----------
    name : str
        By which the mixer is chosen; of the class.
    settings_class : type
        Of the class: the dataclass of its settings.
    out_features : int
        Length of chi.
    settings : dict
        JSON-able; ``make_mixer(**settings)`` followed by ``load_state_dict`` gives the same mixer.

    Raises
    ------
    GeomGNNError
        If the settings do not fit these tokens.
    """

    name: ClassVar[str]
    settings_class: ClassVar[type[MixerSettings]] = MixerSettings
    out_features: int

    def __init__(self, n_tokens: int | None, hidden_channels: int, settings: MixerSettings):
        super().__init__()
        self.n_tokens = None if n_tokens is None else positive_int("n_tokens", n_tokens)
        self.hidden_channels = positive_int("hidden_channels", hidden_channels)
        self.chirality = settings.chirality
        if self.chirality and hidden_channels < 3:
            raise GeomGNNError(f"chirality needs three vector channels or more, but the tokens have {hidden_channels}.")
        self.settings: dict[str, Any] = {
            "name": self.name,
            "n_tokens": n_tokens,
            "hidden_channels": hidden_channels,
            **settings.as_dict(),
        }
        self.standardise: Standardiser | None = None
        self.scale: VectorScale | None = None

    @property
    def n_features(self) -> int:
        """Invariant features per token: 2H, with chirality 3H."""
        return (3 if self.chirality else 2) * self.hidden_channels

    @property
    def has_statistics(self) -> bool:
        """Whether the standardisation is set (always so for a mixer that has none)."""
        return self.standardise is None or bool(self.standardise.fitted)

    def set_statistics(self, tokens: Any, mask: Any = None) -> None:
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
            raise GeomGNNError(
                "The mixer's statistics are set already, and changing them would move a trained CV: "
                "make a new mixer with make_mixer(**mixer.settings)."
            )
        single = not isinstance(tokens, (list, tuple))
        arrays = [torch.as_tensor(t) for t in ([tokens] if single else tokens)]
        masks = [None] * len(arrays) if mask is None else [torch.as_tensor(m) for m in ([mask] if single else mask)]
        if len(masks) != len(arrays):
            raise GeomGNNError(f"There are {len(arrays)} token arrays but {len(masks)} masks: give one mask for each.")
        for array, m in zip(arrays, masks, strict=True):
            self._check(array, m)
        if sum(len(array) for array in arrays) == 0:
            raise GeomGNNError("The mixer's statistics need at least one frame of tokens, but there are none.")

        def chunks() -> Iterator[tuple[Tensor, Tensor | None]]:
            for array, m in zip(arrays, masks, strict=True):
                for start in range(0, len(array), _STATISTICS_FRAMES):
                    part = array[start : start + _STATISTICS_FRAMES].detach().cpu().double()
                    present = None if m is None else m[start : start + _STATISTICS_FRAMES].cpu()
                    if present is not None:
                        part = part.masked_fill(~present[..., None, None], 0.0)
                    yield invariants(part, self.chirality), present

        self.standardise.fit(chunks)
        if self.scale is not None:
            self.scale.fit(chunks)

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """Evaluate chi (F, out_features) from tokens (F, R, 4, H).

        `mask` (F, R) bool is true where a token exists; what stands in the other places has no influence, not even NaN.

        Raises
        ------
        GeomGNNError
            If shapes or dtypes do not fit the mixer, or a frame has no token at all.
        """
        self._check(tokens, mask)
        if self.standardise is not None and tokens.dtype != self.standardise.mean.dtype:
            raise GeomGNNError(
                f"The tokens are {tokens.dtype} but the mixer is {self.standardise.mean.dtype}: "
                "convert one of them, e.g. mixer.double()."
            )
        if mask is not None:
            if not bool(mask.any(1).all()):
                raise GeomGNNError("A frame has no token at all: its mask is false everywhere. Leave such frames out.")
            tokens = tokens.masked_fill(~mask[..., None, None], 0.0)
        features, vectors = invariants(tokens, self.chirality), tokens[:, :, 1:]
        if self.standardise is not None:
            features = self.standardise(features)
        if mask is not None:
            features = features.masked_fill(~mask[..., None], 0.0)
        if self.scale is not None:
            vectors = self.scale(vectors)
        return self.mix(features, vectors, mask)

    def mix(self, features: Tensor, vectors: Tensor, mask: Tensor | None) -> Tensor:
        """Evaluate chi (F, out_features) from standardised features (F, R, n_features) and vectors (F, R, 3, H).

        The vectors are scaled if the mixer has a `scale`. Both are zero where the mask (F, R) is false.
        """
        raise NotImplementedError

    def _check(self, tokens: Tensor, mask: Tensor | None) -> None:
        count, channels = self.n_tokens, self.hidden_channels
        fits = tokens.ndim == 4 and tuple(tokens.shape[2:]) == (4, channels) and tokens.shape[1] > 0
        if not fits or (count is not None and tokens.shape[1] != count):
            raise GeomGNNError(
                f"The mixer was made for tokens of shape (frames, {count or 'any'}, 4, {channels}) "
                f"but got {tuple(tokens.shape)}: pass the tokens of the same selection and encoder."
            )
        if mask is not None and (mask.dtype != torch.bool or tuple(mask.shape) != tuple(tokens.shape[:2])):
            raise GeomGNNError(
                f"The mask must be bool of shape {tuple(tokens.shape[:2])} but was {mask.dtype} of "
                f"shape {tuple(mask.shape)}."
            )


class LearnedMixer(Mixer):
    """A mixer with weights, on standardised features. Parameters and attributes are those of `Mixer`.

    Examples
    --------
    >>> from dataclasses import dataclass
    >>> import torch
    >>> from openmm_geomgnn.cv.mixers import LearnedMixer, LearnedSettings, Readout, initialisation, positive_int
    >>> @dataclass(frozen=True, kw_only=True)
    ... class GatedSettings(LearnedSettings):
    ...     width: int = 32
    ...     def __post_init__(self):
    ...         super().__post_init__()
    ...         positive_int("width", self.width)
    >>> class GatedMixer(LearnedMixer):
    ...     name, settings_class = "gated", GatedSettings
    ...     def __init__(self, n_tokens, hidden_channels, settings):
    ...         super().__init__(n_tokens, hidden_channels, settings)
    ...         with initialisation(settings.seed):
    ...             self.gate = torch.nn.Linear(self.n_features, settings.width)
    ...             self.value = torch.nn.Linear(self.n_features, settings.width)
    ...             self.readout = Readout(n_tokens, settings.width, settings.pool, settings.readout, self.out_features)
    ...     def mix(self, features, vectors, mask):
    ...         return self.readout(torch.sigmoid(self.gate(features)) * self.value(features), mask)
    >>> mixer = GatedMixer(3, 64, GatedSettings(width=16))
    >>> mixer.set_statistics(torch.randn(100, 3, 4, 64))
    >>> mixer(torch.randn(5, 3, 4, 64)).shape
    torch.Size([5, 6])
    """

    settings_class: ClassVar[type[LearnedSettings]] = LearnedSettings

    def __init__(self, n_tokens: int | None, hidden_channels: int, settings: LearnedSettings):
        super().__init__(n_tokens, hidden_channels, settings)
        self.out_features = settings.out_features
        self.standardise = Standardiser(n_tokens, self.n_features)
