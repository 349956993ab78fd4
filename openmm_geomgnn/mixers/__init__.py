"""Token mixers: residue tokens -> the functions chi of the Koopman model."""

import inspect

from ..errors import GeomGNNError
from .attention import AttentionMixer
from .base import Mixer
from .equivariant_attention import EquivariantAttentionMixer
from .features import invariants
from .message_passing import MessagePassingMixer
from .mlp import MLPMixer
from .none import NoMixer
from .settings import suggest
from .token_merging import TokenMergingMixer

MIXERS: dict[str, type[Mixer]] = {
    mixer.name: mixer
    for mixer in (NoMixer, MLPMixer, AttentionMixer, EquivariantAttentionMixer, MessagePassingMixer, TokenMergingMixer)
}


def mixer_settings(name: str) -> set[str]:
    """Names of the settings of the mixer called `name`.

    Raises
    ------
    GeomGNNError
        If there is no such mixer; the message has the nearest known one.
    """
    if name not in MIXERS:
        raise GeomGNNError(suggest("The mixer", name, MIXERS))
    return set(inspect.signature(MIXERS[name].__init__).parameters) - {"self", "n_tokens", "hidden_channels"}


def make_mixer(name: str, n_tokens: int | None, hidden_channels: int, **settings: object) -> Mixer:
    """The mixer called `name` for tokens (F, n_tokens, 4, hidden_channels); ``make_mixer(**mixer.settings)`` rebuilds
    one. For n_tokens None see `Mixer`.

    Raises
    ------
    GeomGNNError
        If the name or a setting is unknown (with the nearest known one), or a setting's value does not fit.
    """
    known = mixer_settings(name)
    for setting in settings:
        if setting not in known:
            raise GeomGNNError(suggest(f"The setting of mixer {name!r}", setting, known))
    return MIXERS[name](n_tokens, hidden_channels, **settings)


__all__ = ["MIXERS", "AttentionMixer", "EquivariantAttentionMixer", "MLPMixer", "MessagePassingMixer", "Mixer", "NoMixer",
           "TokenMergingMixer", "invariants", "make_mixer", "mixer_settings"]
