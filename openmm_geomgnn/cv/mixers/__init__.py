"""Token mixers: residue tokens -> the functions chi of the Koopman model."""

import inspect
from collections.abc import Iterable

from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.units import did_you_mean

from .attention import AttentionMixer
from .base import Mixer
from .checks import lookup
from .equivariant_attention import EquivariantAttentionMixer
from .features import invariants
from .message_passing import MessagePassingMixer
from .mlp import MLPMixer
from .none import NoMixer
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
    mixer = lookup("mixer", name, MIXERS)
    return set(inspect.signature(mixer.__init__).parameters) - {"self", "n_tokens", "hidden_channels"}


def make_mixer(name: str, n_tokens: int | None, hidden_channels: int, **settings: object) -> Mixer:
    """The mixer called `name` for tokens (F, n_tokens, 4, hidden_channels); ``make_mixer(**mixer.settings)`` rebuilds
    one. For n_tokens None see `Mixer`.

    Raises
    ------
    GeomGNNError
        If the name or a setting is unknown (with the nearest known one), or a setting's value does not fit.
    """
    _check_names(name, settings)
    return MIXERS[name](n_tokens, hidden_channels, **settings)


def check_settings(name: str, settings: dict) -> None:
    """Raise the GeomGNNError of `make_mixer` that settings give whatever the tokens; it begins with the setting's name."""
    _check_names(name, settings)
    make_mixer(name, 1, 64, **settings)


def _check_names(name: str, settings: Iterable[str]) -> None:
    known = sorted(mixer_settings(name))
    for setting in settings:
        if setting not in known:
            raise GeomGNNError(
                f"{setting} is no setting of mixer {name!r}.{did_you_mean(setting, known)} Known: {', '.join(known)}."
            )


__all__ = [
    "MIXERS",
    "AttentionMixer",
    "EquivariantAttentionMixer",
    "MLPMixer",
    "MessagePassingMixer",
    "Mixer",
    "NoMixer",
    "TokenMergingMixer",
    "check_settings",
    "invariants",
    "make_mixer",
    "mixer_settings",
]
