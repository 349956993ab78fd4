"""The file of a collective variable: tensors and JSON in one safetensors file, its versions, and what it is checked for."""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from numbers import Real
from typing import Any, TypeAlias

import torch
from safetensors.torch import save as save_bytes
from safetensors.torch import save_file
from torch import nn

from openmm_geomgnn.aliases import PathLike, TopologyLike
from openmm_geomgnn.cv.base import Bound
from openmm_geomgnn.cv.output_map import OutputMap
from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.files import atomic_write
from openmm_geomgnn.representation.periodic import SelectedMolecule
from openmm_geomgnn.representation.selection import ResidueTable
from torchmdnet_ext.tensor_files import (
    CHECKSUM,
    DamagedFile,
    is_as_written,
    read_tensor_bytes,
    read_tensor_file,
    with_checksum,
)

FORMAT = "openmm-geomgnn collective variable"
VERSION = 6
RADIUS_BEFORE_2 = 0.45  # nm; that of all windows by space then
# of version 4 only the first files have none; in files of later versions nothing can change unseen, training included
LAST_WITHOUT_CHECKSUM = 4
# metadata and tensors
CVContent: TypeAlias = tuple[dict[str, Any], dict[str, torch.Tensor]]
# what stands in the file of every kind, and of which type it is; each kind has more, see `check_fields`
FIELDS = {"kind": str, "selection": (str, type(None)), "lag_time_ps": Real, "molecule": list, "training": dict}
# figures of the training information that others compute with: a number, or one for each component, None where there is none
FIGURES = ("vamp2_training", "vamp2_held_out", "timescales_ps", "in_basin_spread", "rate_300K_per_ps")


def _windows_in_the_file(metadata: dict[str, Any]) -> dict[str, Any]:
    """Version 2 holds the windows themselves; before, they followed from the topology that the CV was used on."""
    return {**metadata, "version": 2, "radius": RADIUS_BEFORE_2, "neighbours": None}


def _kind_in_the_file(metadata: dict[str, Any]) -> dict[str, Any]:
    """Version 3 knows students; before, every CV was a network."""
    return {**metadata, "version": 3, "kind": "network"}


def _scores_that_chose_the_epoch(metadata: dict[str, Any]) -> dict[str, Any]:
    """Version 4 calls held out what had no say; before, a VAMPnet's was the best score of the data that chose the epoch."""
    metadata = {**metadata, "version": 4}
    training = metadata.get("training")
    if isinstance(training, dict) and "vamp2_held_out" in training and _has_a_trained_mixer(metadata, training):
        score = training["vamp2_held_out"]
        others = {name: value for name, value in training.items() if name != "vamp2_held_out"}
        metadata["training"] = {**others, "vamp2_validation": score}
    return metadata


def _bonds_in_the_file(metadata: dict[str, Any]) -> dict[str, Any]:
    """Version 5 has bonds and stereocentres in `molecule`; in older files only residue names and elements are compared."""
    return {**metadata, "version": 5}


def _output_map_in_the_file(metadata: dict[str, Any]) -> dict[str, Any]:
    """Version 6 can hold tensors of an output map; before, every CV was its slow functions themselves."""
    return {**metadata, "version": 6}


def _has_a_trained_mixer(metadata: dict[str, Any], training: dict[str, Any]) -> bool:
    """Whether a CV, or the teacher of a student, is a VAMPnet."""
    teacher = training.get("teacher")
    mixer = teacher.get("mixer") if isinstance(teacher, dict) else metadata.get("mixer")
    return (mixer.get("name") if isinstance(mixer, dict) else mixer) != "none"


# metadata of version k -> metadata of version k + 1; a step for every change of the format
MIGRATIONS = {
    1: _windows_in_the_file,
    2: _kind_in_the_file,
    3: _scores_that_chose_the_epoch,
    4: _bonds_in_the_file,
    5: _output_map_in_the_file,
}


class SavedCV(nn.Module):
    """What every kind of collective variable can do: be written to a file that says what is in it.

    A kind has `_tensors()`, a dict, and `_metadata()`, a dict that JSON can hold, with "kind" and "training" in it.
    """

    selection: Any
    molecule: ResidueTable
    lagtime: float
    output: OutputMap
    training_information: dict[str, Any]

    @property
    def dimension(self) -> int:
        """Number of components, d."""
        raise NotImplementedError

    def bind(
        self,
        topology: TopologyLike | SelectedMolecule,
        precision: str = "single",
        engine: str = "auto",
        device: str | torch.device | None = None,
    ) -> Bound:
        """The CV on a given topology, ready to be evaluated."""
        raise NotImplementedError

    def _metadata(self) -> dict[str, Any]:
        raise NotImplementedError

    def _tensors(self) -> dict[str, torch.Tensor]:
        raise NotImplementedError

    def content_hash(self) -> str:
        """Hash of all that has a say in the CV's value; it is in the file, too."""
        return content_hash(*self._content())

    def save(self, path: PathLike) -> None:
        """Write everything to one safetensors file; it appears under its name only when it is complete."""
        tensors, header = self._file_content()
        with atomic_write(path) as temporary:
            save_file(tensors, temporary, metadata=header)

    def to_bytes(self) -> bytes:
        """The content of the file that `save` writes; `CollectiveVariable.from_bytes` reads it back."""
        tensors, header = self._file_content()
        return save_bytes(tensors, metadata=header)

    def _file_content(self) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
        tensors, metadata = self._content()
        metadata["content_hash"] = content_hash(tensors, metadata)
        return tensors, {"cv": json.dumps(with_checksum(metadata, tensors))}

    def _content(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        tensors = {name: tensor.detach().contiguous() for name, tensor in self._tensors().items()}
        return tensors, {"format": FORMAT, "version": VERSION, **self._metadata()}


# what has no say in the value
_FREE = ("training", "content_hash", "version", CHECKSUM)


def content_hash(tensors: Mapping[str, torch.Tensor], metadata: dict[str, Any]) -> str:
    """Hash of the tensors and of the metadata that has a say in the CV's value."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].cpu().numpy().tobytes())
    described = {name: value for name, value in metadata.items() if name not in _FREE}
    digest.update(json.dumps(described, sort_keys=True).encode())
    return digest.hexdigest()[:32]


def read(path: PathLike) -> CVContent:
    """(metadata, tensors) of a file that `SavedCV.save` wrote, in this or an older version.

    Raises
    ------
    GeomGNNError
        If the file is missing, truncated, changed, of another kind or of a version this one cannot read.
    """
    return _checked(path, lambda: read_tensor_file(path, "cv"))


def read_bytes(data: bytes, label: str) -> CVContent:
    """(metadata, tensors) of what `SavedCV.to_bytes` returned; `label` says in messages where it comes from.

    Raises
    ------
    GeomGNNError
        As `read` does.
    """
    return _checked(label, lambda: read_tensor_bytes(data, "cv"))


def _checked(path: PathLike, read_content: Callable[[], tuple[Any, Any]]) -> CVContent:
    """(metadata, tensors) in the present version of the format, checked for damage."""
    try:
        metadata, tensors = read_content()
    except FileNotFoundError as error:
        raise GeomGNNError(
            f"There is no collective variable file {path}. Check the path, or make it with `geomgnn fit`."
        ) from error
    except DamagedFile as error:
        raise GeomGNNError(
            f"{path} cannot be read as a collective variable ({error}): it is truncated or of another kind. Copy it again "
            "from where it was made, or fit it again."
        ) from error
    if metadata is None or metadata.get("format") != FORMAT:
        raise GeomGNNError(
            f"{path} is a safetensors file, but not a collective variable of openmm-geomgnn. Give the file that "
            "`geomgnn fit` or `geomgnn run` wrote."
        )
    version = metadata.get("version")
    if type(version) is int and version > VERSION:
        raise GeomGNNError(
            f"{path} has version {version} of the format and this code reads up to version {VERSION}. Update openmm-geomgnn."
        )
    if type(version) is not int or version < 1:
        raise _changed(path, f"it does not say of which version it is, but {version!r}")
    if (CHECKSUM in metadata or version > LAST_WITHOUT_CHECKSUM) and not is_as_written(metadata, tensors):
        raise _changed(path, "its content does not have the checksum that it states")
    if metadata.get("content_hash") != content_hash(tensors, metadata):
        raise _changed(path, "its content does not have the hash that it states")
    try:
        while metadata["version"] < VERSION:
            metadata = MIGRATIONS[metadata["version"]](metadata)
    except (KeyError, TypeError, AttributeError) as error:
        missing = f"what files of version {version} have is missing in it, or of another kind ({error})"
        raise _changed(path, missing) from error
    check_fields(path, metadata, FIELDS)
    for name in FIGURES:
        _check_figure(path, name, metadata["training"].get(name))
    return metadata, tensors


def check_fields(path: PathLike, metadata: dict[str, Any], fields: Mapping[str, Any]) -> None:
    """Raise a GeomGNNError unless all `fields`, {name: type}, are in the metadata of a file."""
    for name, kind in fields.items():
        if name not in metadata:
            raise _changed(path, f"it does not say the {name} of the CV")
        if not isinstance(metadata[name], kind) or isinstance(metadata[name], bool):
            raise _changed(path, f"the {name} of the CV is {metadata[name]!r} in it")


def _check_figure(path: PathLike, name: str, value: Any) -> None:
    values = value if isinstance(value, list) else [value]
    if not all(number is None or (isinstance(number, Real) and not isinstance(number, bool)) for number in values):
        raise _changed(path, f"{name} is {value!r} in its training information")


def _changed(path: PathLike, how: str) -> GeomGNNError:
    return GeomGNNError(
        f"{path} was changed or damaged after it was written: {how}. Copy it again from where it was made, or fit it again."
    )


def parts(tensors: Mapping[str, torch.Tensor], names: Iterable[str]) -> dict[str, dict[str, torch.Tensor]]:
    """Tensors by the part of the CV that they belong to: {"encoder": {"embedding.weight": ...}, ...}."""
    found: dict[str, dict[str, torch.Tensor]] = {name: {} for name in names}
    for name, tensor in tensors.items():
        part, _, rest = name.partition(".")
        found[part][rest] = tensor
    return found
