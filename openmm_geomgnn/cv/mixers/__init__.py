"""Token mixers: residue tokens -> the functions chi of the Koopman model."""

from collections.abc import Iterable
from dataclasses import fields

from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.plugins import find, known_names
from openmm_geomgnn.units import did_you_mean

from .attention import AttentionMixer, AttentionSettings
from .base import LearnedMixer, LearnedSettings, Mixer, MixerSettings
from .checks import initialisation, multiple_of_heads, positive_int
from .equivariant_attention import EquivariantAttentionMixer, EquivariantAttentionSettings
from .features import invariants
from .message_passing import MessagePassingMixer, MessagePassingSettings
from .mlp import MLPMixer, MLPSettings
from .none import NoMixer, NoMixerSettings
from .pooling import Readout
from .token_merging import TokenMergingMixer, TokenMergingSettings

MIXERS: dict[str, type[Mixer]] = {
    mixer.name: mixer
    for mixer in (NoMixer, MLPMixer, AttentionMixer, EquivariantAttentionMixer, MessagePassingMixer, TokenMergingMixer)
}


def get_mixer(name: str) -> type[Mixer]:
    """The class of the mixer called `name`: one of `MIXERS`, or of an installed package (see `plugins`).

    Raises
    ------
    PluginError
        If there is no such mixer (the message has the nearest known one), or its package cannot be used.

    Examples
    --------
    >>> from openmm_geomgnn.cv.mixers import get_mixer
    >>> get_mixer("mlp")
    <class 'openmm_geomgnn.cv.mixers.mlp.MLPMixer'>
    """
    return find("mixer", name, MIXERS, lambda mixer: _problem(name, mixer))


def mixer_names() -> list[str]:
    """Names of all mixers: those of `MIXERS`, then those of installed packages."""
    return known_names("mixer", MIXERS)


def mixer_settings(name: str) -> set[str]:
    """Names of the settings of the mixer called `name`.

    Raises
    ------
    GeomGNNError
        If there is no such mixer; the message has the nearest known one.
    """
    return {entry.name for entry in fields(get_mixer(name).settings_class)}


def make_mixer(name: str, n_tokens: int | None, hidden_channels: int, **settings: object) -> Mixer:
    """Make the mixer called `name` for tokens (F, n_tokens, 4, hidden_channels).

    ``make_mixer(**mixer.settings)`` makes the same mixer again, but for its weights. For n_tokens None see `Mixer`.

    Raises
    ------
    GeomGNNError
        If the name or a setting is unknown (with the nearest known one), or a setting's value does not fit.

    Examples
    --------
    >>> import torch
    >>> from openmm_geomgnn.cv.mixers import make_mixer
    >>> tokens = torch.randn(50, 3, 4, 64)  # frames, tokens, a scalar and a vector, channels
    >>> mixer = make_mixer("mlp", n_tokens=3, hidden_channels=64, width=32)
    >>> mixer.out_features, mixer.settings["pool"]
    (6, 'flatten')
    >>> mixer.set_statistics(tokens)
    >>> mixer(tokens).shape
    torch.Size([50, 6])
    """
    return get_mixer(name)(n_tokens, hidden_channels, check_settings(name, settings))


def check_settings(name: str, settings: dict) -> MixerSettings:
    """The settings of the mixer called `name`, checked as far as they can be without its tokens.

    Raises
    ------
    GeomGNNError
        As `make_mixer`; the message begins with the setting's name.
    """
    _check_names(name, settings)
    return get_mixer(name).settings_class(**settings)


def _check_names(name: str, settings: Iterable[str]) -> None:
    known = sorted(mixer_settings(name))
    for setting in settings:
        if setting not in known:
            raise GeomGNNError(
                f"{setting} is no setting of mixer {name!r}.{did_you_mean(setting, known)} Known: {', '.join(known)}."
            )


def _problem(name: str, mixer: object) -> str | None:
    """What is wrong with the mixer of another package."""
    if not (isinstance(mixer, type) and issubclass(mixer, Mixer)):
        return "it is not a subclass of openmm_geomgnn.cv.mixers.Mixer"
    if getattr(mixer, "name", None) != name:
        return f"its class has the name {getattr(mixer, 'name', None)!r}, by which a CV file would not find it again"
    if not issubclass(mixer.settings_class, MixerSettings):
        return "its settings_class is not a subclass of openmm_geomgnn.cv.mixers.MixerSettings"
    return None


__all__ = [
    "MIXERS",
    "AttentionMixer",
    "AttentionSettings",
    "EquivariantAttentionMixer",
    "EquivariantAttentionSettings",
    "LearnedMixer",
    "LearnedSettings",
    "MLPMixer",
    "MLPSettings",
    "MessagePassingMixer",
    "MessagePassingSettings",
    "Mixer",
    "MixerSettings",
    "NoMixer",
    "NoMixerSettings",
    "Readout",
    "TokenMergingMixer",
    "TokenMergingSettings",
    "check_settings",
    "get_mixer",
    "initialisation",
    "invariants",
    "make_mixer",
    "mixer_names",
    "mixer_settings",
    "multiple_of_heads",
    "positive_int",
]
