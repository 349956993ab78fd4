"""Intermediate results of a long computation, kept next to its output, from which it continues when started again."""

import hashlib
import json
import shutil
import time
from pathlib import Path

import numpy as np

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

    def __init__(self, output=None, seconds=1.0):
        self.folder = None if output is None else Path(f"{output}.partial")
        self._seconds = seconds
        self._last = None

    def load(self, name, made_from):
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

    def save(self, name, made_from, content):
        """Keep a part: dictionaries and lists of tensors and of what JSON can hold."""
        if self.folder is None:
            return
        from safetensors.torch import save_file

        tensors = {}
        header = {"made_from": made_from, "content": _parted(content, tensors)}
        with atomic_write(self.folder / f"{name}.safetensors") as temporary:
            save_file(tensors, temporary, metadata={_HEADER: json.dumps(with_checksum(header, tensors))})

    def save_now_and_then(self, name, made_from, content):
        """Keep a part that replaces the one before, unless that is young; `content` is a function without arguments."""
        now = time.monotonic()
        if self.folder is not None and (self._last is None or now - self._last >= self._seconds):
            self.save(name, made_from, content())
            self._last = time.monotonic()

    def remove(self):
        """Remove all parts: the result is done."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)


def fingerprint(*parts):
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


def _parted(content, tensors):
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


def _joined(content, tensors):
    if not isinstance(content, dict):
        return content
    (kind,) = content
    if kind == "tensor":
        return tensors[content[kind]]
    if kind == "items":
        return {key: _joined(value, tensors) for key, value in content[kind]}
    return [_joined(value, tensors) for value in content[kind]]
