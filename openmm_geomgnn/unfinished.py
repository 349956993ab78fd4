"""Intermediate results of a long computation, kept next to its output, from which it continues when started again."""

import hashlib
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from openmm_geomgnn.aliases import PathLike
from openmm_geomgnn.files import atomic_write
from torchmdnet_ext.tensor_files import DamagedFile, is_as_written, read_tensor_file, with_checksum

_HEADER = "unfinished"


class Unfinished:
    """Parts of an unfinished result, each in a safetensors file of its own under `OUTPUT.partial`.

    A part has the fingerprint of everything from which it was made. Parts that were made from something else, or are
    damaged, are ignored.

    Parameters
    ----------
    output : path, optional
        Path of the result. Without it nothing is kept and nothing is found.
    seconds : float
        Shortest time between two versions of a part in `save_now_and_then`.
    """

    def __init__(self, output: PathLike | None = None, seconds: float = 1.0) -> None:
        self.folder = None if output is None else Path(f"{output}.partial")
        self._seconds = seconds
        self._last: float | None = None

    def load(self, name: str, made_from: str) -> Any:
        """The content of a part, as it was given to `save`; None where there is none for this fingerprint."""
        if self.folder is None:
            return None
        try:
            header, tensors = read_tensor_file(self.folder / f"{name}.safetensors", _HEADER)
        except (FileNotFoundError, DamagedFile):
            return None
        if header is None or header.get("made_from") != made_from or not is_as_written(header, tensors):
            return None
        return _joined(header["content"], tensors)

    def save(self, name: str, made_from: str, content: Any) -> None:
        """Keep a part: dictionaries and lists of tensors and of what JSON can hold."""
        if self.folder is None:
            return
        from safetensors.torch import save_file

        tensors: dict[str, Any] = {}
        header = {"made_from": made_from, "content": _parted(content, tensors)}
        with atomic_write(self.folder / f"{name}.safetensors") as temporary:
            save_file(tensors, temporary, metadata={_HEADER: json.dumps(with_checksum(header, tensors))})

    def save_now_and_then(self, name: str, made_from: str, content: Callable[[], Any]) -> None:
        """Keep a part that replaces the one before, unless that is young; `content` is a function without arguments."""
        now = time.monotonic()
        if self.folder is not None and (self._last is None or now - self._last >= self._seconds):
            self.save(name, made_from, content())
            self._last = time.monotonic()

    def remove(self) -> None:
        """Remove all parts: the result is done."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)


def fingerprint(*parts: Any) -> str:
    """Hash of arrays, tensors, and of what JSON can hold."""
    digest = hashlib.sha256()
    for part in parts:
        if hasattr(part, "detach"):
            part = part.detach().cpu().numpy()
        if isinstance(part, np.ndarray):
            digest.update(f"{part.dtype} {part.shape}".encode())
            digest.update(np.ascontiguousarray(part).data)
        else:
            digest.update(json.dumps(part, sort_keys=True, default=str).encode())
    return digest.hexdigest()[:32]


def _parted(content: Any, tensors: dict[str, Any]) -> Any:
    """Content as JSON holds it, with its tensors put into a dictionary. Keys of dictionaries need not be strings."""
    if hasattr(content, "detach"):
        name = f"{len(tensors):06d}"
        tensors[name] = content.detach().cpu().clone().contiguous()
        return {"tensor": name}
    if isinstance(content, dict):
        return {"items": [[key, _parted(value, tensors)] for key, value in content.items()]}
    if isinstance(content, (list, tuple)):
        return {"list": [_parted(value, tensors) for value in content]}
    return content


def _joined(content: Any, tensors: dict[str, Any]) -> Any:
    if not isinstance(content, dict):
        return content
    (kind,) = content
    if kind == "tensor":
        return tensors[content[kind]]
    if kind == "items":
        return {key: _joined(value, tensors) for key, value in content[kind]}
    return [_joined(value, tensors) for value in content[kind]]
