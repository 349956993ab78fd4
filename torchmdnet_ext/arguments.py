"""Checks of arguments that users write by hand; misspelt names are refused with a suggestion."""

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any


def did_you_mean(word: object, known: Iterable[str]) -> str:
    """Ask " Did you mean 'x'?" with the known word nearest to `word`; "" if none is near."""
    known = list(known)
    lowered = {name.lower(): name for name in reversed(known)}
    if str(word).lower() in lowered:
        return f" Did you mean '{lowered[str(word).lower()]}'?"
    near = get_close_matches(str(word).lower(), lowered, n=1, cutoff=0.5)
    return f" Did you mean '{lowered[near[0]]}'?" if near else ""


def dataset_arguments(kind: type, given: Any) -> dict[str, Any]:
    """Convert `given`, the dataset_arg of a dataset class, to a dictionary of arguments that the class knows.

    It may be None, a dictionary, or the text of one from the command line.

    Raises ValueError if it is anything else, or names an argument that does not exist.
    """
    import inspect

    import yaml  # TorchMD-Net's own

    if isinstance(given, str):
        try:
            given = yaml.safe_load(given)
        except yaml.YAMLError as error:
            raise ValueError(f"dataset_arg is {given!r}, which cannot be read as a dictionary: write '{{a: 1}}'.") from error
    given = {} if given is None else given
    if not isinstance(given, dict):
        raise ValueError(f"dataset_arg is {given!r}, but must be a dictionary of arguments of {kind.__name__}.")
    parameters = list(inspect.signature(kind).parameters.values())[1:]  # the first is the root
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        known = [parameter.name for parameter in parameters]
        for name in given:
            if name not in known:
                raise ValueError(
                    f"dataset_arg has '{name}', which {kind.__name__} does not know: its arguments are {', '.join(known)}."
                    + did_you_mean(name, known)
                )
    return given
