"""The file of a collective variable: tensors and JSON in one safetensors file, its versions, and what it is checked for."""

import hashlib
import json

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.files import atomic_write

FORMAT = "openmm-geomgnn collective variable"
VERSION = 4
RADIUS_BEFORE_2 = 0.45  # nm; that of all windows by space then


def _windows_in_the_file(metadata):
    """Version 2 holds the windows themselves; before, they followed from the topology that the CV was used on."""
    return {**metadata, "version": 2, "radius": RADIUS_BEFORE_2, "neighbours": None}


def _kind_in_the_file(metadata):
    """Version 3 knows students; before, every CV was a network."""
    return {**metadata, "version": 3, "kind": "network"}


def _scores_that_chose_the_epoch(metadata):
    """Version 4 calls held out what had no say; before, a VAMPnet's was the best score of the data that chose the epoch."""
    training = dict(metadata["training"])
    mixer = training["teacher"]["mixer"] if "teacher" in training else metadata["mixer"]["name"]
    if mixer != "none" and "vamp2_held_out" in training:
        training["vamp2_validation"] = training.pop("vamp2_held_out")
    return {**metadata, "version": 4, "training": training}


# metadata of version k -> metadata of version k + 1; a step for every change of the format
MIGRATIONS = {1: _windows_in_the_file, 2: _kind_in_the_file, 3: _scores_that_chose_the_epoch}


class SavedCV(nn.Module):
    """What every kind of collective variable can do: be written to a file that says what is in it.

    A kind has `_tensors()`, a dict, and `_metadata()`, a dict that JSON can hold, with "kind" and "training" in it.
    """

    def content_hash(self):
        """Hash of all that has a say in the CV's value; it is in the file, too."""
        return content_hash(*self._content())

    def save(self, path):
        """Write everything to one safetensors file; it appears under its name only when it is complete."""
        tensors, metadata = self._content()
        metadata["content_hash"] = content_hash(tensors, metadata)
        with atomic_write(path) as temporary:
            save_file(tensors, temporary, metadata={"cv": json.dumps(metadata)})

    def _content(self):
        tensors = {name: tensor.detach().contiguous() for name, tensor in self._tensors().items()}
        return tensors, {"format": FORMAT, "version": VERSION, **self._metadata()}


def content_hash(tensors, metadata):
    """Hash of the tensors and of the metadata that has a say in the CV's value."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].cpu().numpy().tobytes())
    described = {name: value for name, value in metadata.items() if name not in ("training", "content_hash", "version")}
    digest.update(json.dumps(described, sort_keys=True).encode())
    return digest.hexdigest()[:32]


def read(path):
    """(metadata, tensors) of a file that `SavedCV.save` wrote, in this or an older version.

    Raises
    ------
    GeomGNNError
        If the file is missing, truncated, changed, of another kind or of a version this one cannot read.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = json.loads((file.metadata() or {}).get("cv", "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except FileNotFoundError as error:
        raise GeomGNNError(
            f"There is no collective variable file {path}. Check the path, or make it with `geomgnn fit`."
        ) from error
    except (SafetensorError, json.JSONDecodeError, OSError) as error:
        raise GeomGNNError(
            f"{path} cannot be read as a collective variable ({error}): it is truncated or of another kind. Copy it again "
            "from where it was made, or fit it again."
        ) from error
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
        raise GeomGNNError(
            f"{path} is a safetensors file, but not a collective variable of openmm-geomgnn. Give the file that "
            "`geomgnn fit` or `geomgnn run` wrote."
        )
    if metadata["version"] > VERSION:
        raise GeomGNNError(
            f"{path} has version {metadata['version']} of the format and this code reads up to version {VERSION}. Update "
            "openmm-geomgnn."
        )
    if metadata["content_hash"] != content_hash(tensors, metadata):
        raise GeomGNNError(
            f"{path} was changed or damaged after it was written: its content does not have the hash that it states. Copy "
            "it again from where it was made, or fit it again."
        )
    while metadata["version"] < VERSION:
        metadata = MIGRATIONS[metadata["version"]](metadata)
    return metadata, tensors


def parts(tensors, names):
    """Tensors by the part of the CV that they belong to: {"encoder": {"embedding.weight": ...}, ...}."""
    found = {name: {} for name in names}
    for name, tensor in tensors.items():
        part, _, rest = name.partition(".")
        found[part][rest] = tensor
    return found
