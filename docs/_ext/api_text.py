"""MyST text of a part of the API: a table of the names where they are many, and the description of each."""

import importlib
import inspect


def api(arguments):
    """`MODULE NAME NAME ...`: classes, functions and data of a module."""
    module, *names = arguments.split()
    found = importlib.import_module(module)
    lines = ["```{eval-rst}", f".. currentmodule:: {module}"]
    if len(names) > 2:  # a table of contents
        lines += ["", ".. autosummary::", "   :nosignatures:", "", *(f"   {name}" for name in names)]
    for name in names:
        lines += ["", f".. {_directive(getattr(found, name))}:: {name}"]
    return "\n".join([*lines, "```"])


def _directive(found):
    if inspect.isclass(found):
        return "autoexception" if issubclass(found, Exception) else "autoclass"
    return "autofunction" if callable(found) else "autodata"
