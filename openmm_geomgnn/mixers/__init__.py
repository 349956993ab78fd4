"""Token mixers: residue tokens -> the functions chi of the Koopman model."""

import inspect

from ..errors import GeomGNNError
from .attention import AttentionMixer
from .base import Mixer, invariants, suggest
from .mlp import MLPMixer
from .none import NoMixer

MIXERS: dict[str, type[Mixer]] = {mixer.name: mixer for mixer in (NoMixer, MLPMixer, AttentionMixer)}


def make_mixer(name: str, n_tokens: int, hidden_channels: int, **settings: object) -> Mixer:
    """The mixer called `name` for tokens (F, n_tokens, 4, hidden_channels); ``make_mixer(**mixer.settings)`` rebuilds
    one.

    Raises
    ------
    GeomGNNError
        If the name or a setting is unknown (with the nearest known one), or a setting's value does not fit.
    """
    if name not in MIXERS:
        raise GeomGNNError(suggest("The mixer", name, MIXERS))
    known = set(inspect.signature(MIXERS[name].__init__).parameters) - {"self", "n_tokens", "hidden_channels"}
    for setting in settings:
        if setting not in known:
            raise GeomGNNError(suggest(f"The setting of mixer {name!r}", setting, known))
    return MIXERS[name](n_tokens, hidden_channels, **settings)


__all__ = ["MIXERS", "AttentionMixer", "MLPMixer", "Mixer", "NoMixer", "invariants", "make_mixer"]
