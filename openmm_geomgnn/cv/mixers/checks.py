"""Checks of the mixers' settings, and weights that depend on a seed only."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.units import did_you_mean

T = TypeVar("T")


def lookup(what: str, name: object, options: dict[str, T]) -> T:
    """The option called `name`; GeomGNNError, with the nearest known one, where there is none."""
    if not isinstance(name, str) or name not in options:
        raise GeomGNNError(
            f"{what} {name!r} is unknown.{did_you_mean(str(name), options)} Known: {', '.join(sorted(options))}."
        )
    return options[name]


def positive_int(name: str, value: object) -> int:
    """`value` as an int; GeomGNNError unless it is a whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise GeomGNNError(f"{name} must be a whole number of at least 1 but was {value!r}.")
    return value


def multiple_of_heads(name: str, value: object, heads: object) -> int:
    """`value` as an int; GeomGNNError unless it is a positive multiple of `heads`."""
    number = positive_int(name, value)
    if number % positive_int("heads", heads):
        raise GeomGNNError(f"{name} must be a multiple of heads but {name} is {value} and heads is {heads}.")
    return number


def check_seed(seed: object) -> None:
    """Raise a GeomGNNError unless `seed` is a whole number from 0 to 2^63 - 1."""
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise GeomGNNError(f"seed must be a whole number from 0 to 2^63 - 1 but was {seed!r}.")


@contextmanager
def initialisation(seed: int) -> Iterator[None]:
    """Weights drawn inside depend on `seed` only; torch's process-wide generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield
