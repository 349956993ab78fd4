"""Import of openmm-torch and its kernels; only for compatible versions, see `versions.refusal`."""

import logging
from pathlib import Path
from typing import Any


def _not_of_simtk(record: logging.LogRecord) -> bool:
    """Filter out the message that a module has moved, which concerns the authors of openmm-torch."""
    return "simtk.openmm" not in record.getMessage()


def load() -> Any:
    """Import the module `openmmtorch` with its kernels.

    If OpenMM was imported before PyTorch, it could not load openmm-torch's plug-ins, which need PyTorch's libraries, and a
    Context would lack their kernels. They are loaded here.

    Raises
    ------
    ImportError
        If openmm-torch or one of its libraries is missing.
    """
    import openmm
    import torch  # noqa: F401  (its libraries)

    logging.getLogger().addFilter(_not_of_simtk)
    try:
        import openmmtorch
    finally:
        logging.getLogger().removeFilter(_not_of_simtk)
    if not openmm.Platform.getPlatformByName("Reference").supportsKernels(["CalcTorchForce"]):
        for plugin in sorted((Path(openmm.version.openmm_library_path) / "plugins").glob("*OpenMMTorch*")):
            try:
                openmm.Platform.loadPluginLibrary(str(plugin))
            except openmm.OpenMMException:
                pass  # a plug-in for a platform that this OpenMM lacks
    return openmmtorch


def why_not(kind: str) -> str | None:
    """Say why openmm-torch's force of this name cannot be used here; None if it can."""
    try:
        module = load()
    except ImportError as error:
        return (
            f"openmm-torch is installed but cannot be imported ({error}). Install it again, or build it again, with the "
            "PyTorch and the OpenMM that are there now."
        )
    return None if hasattr(module, kind) else f"The openmm-torch that is installed has no {kind}. Install it again."
