"""Safetensors files with a header of ours in JSON, and the detection of damaged ones."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from torchmdnet_ext.files import PathLike

CHECKSUM = "checksum"  # name in a header of the checksum of everything else in the file
# what reading a damaged file raises; a dtype that this torch or numpy lacks is an AttributeError, KeyError or TypeError
_DAMAGE = (SafetensorError, OSError, ValueError, AttributeError, KeyError, TypeError, RecursionError)


class DamagedFile(ValueError):
    """A file that cannot be read as a safetensors file; the message is the reason, as a part of a sentence."""


def with_checksum(header: Mapping[str, Any], tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Convert a header to types of JSON and add the checksum of itself and of the tensors."""
    header = json.loads(json.dumps(header))
    return {**header, CHECKSUM: _checksum(header, tensors)}


def read_tensor_file(path: PathLike, name: str, framework: str = "pt") -> tuple[dict[str, Any] | None, dict[str, Any]]:
    """Read (header, tensors) of a safetensors file.

    Parameters
    ----------
    name : str
        Name of the header in the metadata of the file. If it is missing or not a dictionary, the header is None.
    framework : {"pt", "numpy"}

    Raises
    ------
    FileNotFoundError, DamagedFile
    """
    try:
        with safe_open(path, framework=framework) as file:
            header = json.loads((file.metadata() or {}).get(name, "null"))
            tensors = {key: file.get_tensor(key) for key in file.keys()}
    except FileNotFoundError:
        raise
    except _DAMAGE as error:
        raise DamagedFile(f"{error or type(error).__name__}") from error
    return header if isinstance(header, dict) else None, tensors


def read_arrays(path: PathLike, name: str, version: int, what: str, remedy: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read (header, arrays) of a file that was written `with_checksum`, with its `format` and `version` in the header.

    Parameters
    ----------
    name : str
        Of the header, and its `format`.
    version : int
        The one that is read.
    what, remedy : str
        For errors, such as "store of labelled molecules" and "`geomgnn supervised` makes one".

    Raises
    ------
    ValueError
        If there is no such file, or it is damaged, of another kind or of another version.
    """
    try:
        header, arrays = read_tensor_file(path, name, "numpy")
    except FileNotFoundError:
        raise ValueError(f"There is no {what} {path}. Check the path; {remedy}.") from None
    except DamagedFile as error:
        raise ValueError(
            f"{path} cannot be read ({error}): it is damaged, or no {what}. Copy it again; {remedy}."
        ) from error
    if header is None or header.get("format") != name:
        raise ValueError(f"{path} is a safetensors file, but no {what}. Give another file; {remedy}.")
    if header.get("version") != version:
        raise ValueError(f"{path} has version {header.get('version')} and this code reads {version}. Update openmm-geomgnn.")
    if not is_as_written(header, arrays):
        raise ValueError(f"{path} was changed or damaged after it was written. Copy it again; {remedy}.")
    return header, arrays


def read_tensor_bytes(data: bytes, name: str) -> tuple[dict[str, Any] | None, dict[str, Any]]:
    """Read (header, tensors) from the bytes of a safetensors file, as `read_tensor_file` does from the file.

    Raises
    ------
    DamagedFile
    """
    from safetensors.torch import load

    try:
        tensors = load(data)
        length = int.from_bytes(data[:8], "little")
        header = json.loads(json.loads(data[8 : 8 + length]).get("__metadata__", {}).get(name, "null"))
    except _DAMAGE as error:
        raise DamagedFile(f"{error or type(error).__name__}") from error
    return header if isinstance(header, dict) else None, tensors


def is_as_written(header: Mapping[str, Any], tensors: Mapping[str, Any]) -> bool:
    """Whether header and tensors are those that `with_checksum` was given."""
    return header.get(CHECKSUM) == _checksum(header, tensors)


def _checksum(header: Mapping[str, Any], tensors: Mapping[str, Any]) -> str:
    described = {key: value for key, value in header.items() if key != CHECKSUM}
    digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        array = tensor if isinstance(tensor, np.ndarray) else tensor.detach().cpu().numpy()
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:32]
