"""Checks of the mixers' settings, and weights that depend on a seed only."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch

from ..errors import GeomGNNError
from ..units import did_you_mean


def suggest(what: str, name: object, options: Iterable[str]) -> str:
    """The text of an error about an unknown name, with the nearest known one."""
    options = sorted(options)
    return f"{what} {name!r} is unknown.{did_you_mean(str(name), options)} Known: {', '.join(options) or 'none'}."


def positive_int(name: str, value: object) -> int:
    """`value` as an int; GeomGNNError unless it is a whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise GeomGNNError(f"{name} must be a whole number of at least 1 but was {value!r}.")
    return value


def multiple_of_heads(name: str, value: object, heads: object) -> int:
    """`value` as an int; GeomGNNError unless it is a positive multiple of `heads`."""
    if positive_int(name, value) % positive_int("heads", heads):
        raise GeomGNNError(f"{name} must be a multiple of heads but {name} is {value} and heads is {heads}.")
    return value


@contextmanager
def initialisation(seed: int) -> Iterator[None]:
    """Weights drawn inside depend on `seed` only; torch's process-wide generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield
