"""Entry point of the group `torch.backends`: called at the end of every `import torch`.

Standard library only, a few microseconds, and it must never raise: it only asks Python to call us back when one of
TorchMD-Net's modules that we extend has been imported.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from importlib.abc import Loader
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

# module of TorchMD-Net -> module of torchmdnet_ext and its function that extends it
HOOKS = {
    "torchmdnet.models.model": ("registration", "extend_models"),
    "torchmdnet.datasets": ("registration", "extend_datasets"),
    "torchmdnet.data": ("registration", "extend_data_module"),
    "torchmdnet.module": ("transfer", "extend_training"),
    "torchmdnet.scripts.train": ("registration", "extend_arguments"),
}


def _extend(module: ModuleType) -> None:
    """Call our extension of a module of TorchMD-Net; a failure is a warning, never an error."""
    try:
        where, function = HOOKS[module.__name__]
        getattr(importlib.import_module(f"torchmdnet_ext.{where}"), function)(module)
    except Exception as error:
        warnings.warn(
            f"openmm-geomgnn could not extend {module.__name__} ({type(error).__name__}: {error}); TorchMD-Net works as "
            "without it. Reinstall openmm-geomgnn or see which versions of TorchMD-Net it was tested with.",
            stacklevel=2,
        )


class _Loader(importlib.abc.Loader):
    """Runs a module with its own loader, then extends it."""

    def __init__(self, loader: Loader) -> None:
        self.loader = loader

    def __getattr__(self, name: str) -> Any:  # is_package, get_source, ... of the real loader
        return getattr(self.loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.loader.exec_module(module)
        # later inspection of the module (inspect, runpy, importlib.reload) sees it as if we were absent
        module.__loader__ = self.loader
        if module.__spec__ is not None:
            module.__spec__.loader = self.loader
        _extend(module)


class _Finder(importlib.abc.MetaPathFinder):
    """Finds nothing itself; wraps the loader of the modules we extend."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name not in HOOKS:
            return None
        for finder in sys.meta_path:
            if isinstance(finder, _Finder) or not hasattr(finder, "find_spec"):
                continue
            spec = finder.find_spec(name, path, target)
            if spec is not None:
                if spec.loader is not None and hasattr(spec.loader, "exec_module"):
                    spec.loader = _Loader(spec.loader)
                return spec
        return None


class _WatchedSpec(importlib.machinery.ModuleSpec):
    """Spec of a module whose import began before `import torch`: tells us when that import is complete.

    `python -c "import torchmdnet.models.model"` imports torch, and so reaches us, from the middle of that module. The import
    system sets `_initializing` to False when a module is done.
    """

    @property
    def _initializing(self) -> bool:
        return self.__dict__.get("_initializing", False)

    @_initializing.setter
    def _initializing(self, value: bool) -> None:
        self.__dict__["_initializing"] = value
        if not value:
            self.__class__ = importlib.machinery.ModuleSpec  # type: ignore[assignment]
            if self.name in sys.modules:  # absent if its import failed
                _extend(sys.modules[self.name])


def register() -> None:
    """Extend TorchMD-Net's modules: those already imported now, the others when their import is complete."""
    try:
        if any(isinstance(finder, _Finder) for finder in sys.meta_path):
            return
        sys.meta_path.insert(0, _Finder())
        for name in HOOKS:
            module = sys.modules.get(name)
            if module is None:
                continue
            spec = getattr(module, "__spec__", None)
            if getattr(spec, "_initializing", False):
                spec.__class__ = _WatchedSpec
            else:
                _extend(module)
    except Exception as error:
        warnings.warn(f"openmm-geomgnn could not register itself with TorchMD-Net: {error}", stacklevel=2)
