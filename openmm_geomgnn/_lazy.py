"""Names of a package that are imported when they are first used: an import of a part does not bring the whole."""

import importlib
from collections.abc import Callable, Mapping
from typing import Any


def lazy(package: str, homes: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """(`__getattr__`, `__dir__`, `__all__`) of a package whose names live in other modules.

    Parameters
    ----------
    package : str
        Its `__name__`.
    homes : dict
        The module of each name.
    """

    def __getattr__(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module '{package}' has no attribute '{name}'")
        return getattr(importlib.import_module(homes[name]), name)

    return __getattr__, lambda: sorted(homes), sorted(homes)
