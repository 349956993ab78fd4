"""What commands that train many networks share: files of settings and of splits, which are never replaced by others."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from openmm_geomgnn.cli.progress import bar
from openmm_geomgnn.cli.settings.trainings import Trainings
from openmm_geomgnn.cli.settings.yaml_text import read_yaml, write_yaml
from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.files import atomic_write
from openmm_geomgnn.studies.training.folder import CONFIGURATION, TRAINING, Result, load_result
from openmm_geomgnn.studies.training.parallel import train_networks

NETWORKS, SPLITS = "networks", "splits"
START = 15.0  # s that a trainer needs before its first step
_FILES = ("dataset_root", "file", "splits")


def absolute(value: Any, key: str = "") -> Any:
    """Settings of `torchmd-train` with absolute paths of the files and folders that are there."""
    if isinstance(value, dict):
        return {name: absolute(entry, name) for name, entry in value.items()}
    if isinstance(value, list):
        return [absolute(entry, key) for entry in value]
    if key in _FILES and isinstance(value, str) and Path(value).expanduser().exists():
        return str(Path(value).expanduser().absolute())
    return value


def write_split(path: Path, arrays: Mapping[str, Any]) -> None:
    """Write the indices of a split, unless they are there.

    Raises GeomGNNError if others are there.
    """
    if not path.exists():
        with atomic_write(path) as temporary:
            np.savez(temporary, **arrays)
    elif not _same_split(path, arrays):
        raise GeomGNNError(f"{path} holds other conformers: the data have changed. Give another output.")


def _same_split(path: Path, expected: Mapping[str, Any]) -> bool:
    try:
        with np.load(path) as file:
            return all(np.array_equal(file[name], values) for name, values in expected.items())
    except Exception:  # NumPy and zipfile raise all kinds of exceptions
        return False


def write_configuration(folder: Path, settings: Mapping[str, Any], split: Path, what: str = "sweep") -> None:
    """Write the settings of one network; where its output and its split are may have changed, nothing else.

    Raises GeomGNNError if other settings are there.
    """
    places = {"log_dir": str(folder / TRAINING), "splits": str(split)}
    path = folder / CONFIGURATION
    if path.exists():
        before = read_yaml(path)[0]
        other = {k for k in before.keys() | settings.keys() if before.get(k) != settings.get(k)} - places.keys()
        if other:
            raise GeomGNNError(
                f"{path} is of a {what} with other settings ({', '.join(sorted(other))}). Give another output, or move "
                "that one away."
            )
    with atomic_write(path) as temporary:
        temporary.write_text(write_yaml({**settings, **places}), encoding="utf-8")


def result_so_far(folder: Path, reason: str = "") -> Result:
    """The result of a folder; with a reason why its network cannot be built, that."""
    if reason:
        return Result("failed", reason)
    return load_result(folder) or Result("ended", "it was not trained yet")


def train_open(settings: Trainings, folders: Mapping[str, Path], results: dict[str, Result]) -> Iterator[str]:
    """Train the networks that have no result yet, and yield the name of each when its result is in `results`."""
    open_ = [folder for name, folder in folders.items() if results[name].status == "ended"]
    done = len(folders) - len(open_)
    with bar("Training", "networks") as update:
        update(done, len(folders))
        for folder, result in train_networks(open_, settings.workers, settings.threads_of_each(), settings.scheduler):
            results[folder.name], done = result, done + 1
            update(done, len(folders))
            yield folder.name
