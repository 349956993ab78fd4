"""Formats of files: what must be installed to read one, and what is said when reading fails."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from openmm_geomgnn.aliases import PathLike
from openmm_geomgnn.errors import GeomGNNError

_PACKAGES = {".h5": "tables", ".hdf5": "tables", ".lh5": "tables", ".gsd": "gsd"}  # format -> what mdtraj reads it with


def check_format(path: PathLike) -> None:
    """Raise a GeomGNNError where mdtraj lacks the package that reads a file; mdtraj itself prints a page about it."""
    package = _PACKAGES.get(Path(path).suffix.lower())
    if package and find_spec(package) is None:
        raise GeomGNNError(
            f"Reading {path} takes a package that is not installed: `pip install {package}`, or convert the file to another "
            "format with mdconvert, which comes with mdtraj."
        )


def reason(error: BaseException) -> str:
    """What an error of somebody else says, as the end of a sentence."""
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__


def import_zarr() -> Any:
    """The package zarr; a GeomGNNError says how to install it."""
    try:
        import zarr
    except ImportError as error:
        raise GeomGNNError(
            'Embeddings on disk take the package zarr, which is not installed: pip install "openmm-geomgnn[embed]".'
        ) from error
    return zarr
