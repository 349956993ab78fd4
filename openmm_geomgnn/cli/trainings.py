"""What commands that train many networks share: files of settings and of splits, which are never replaced by others."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from openmm_geomgnn.cli.progress import bar
from openmm_geomgnn.cli.settings.trainings import Trainings
from openmm_geomgnn.cli.settings.yaml_text import read_yaml, write_yaml
from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.files import atomic_write
from openmm_geomgnn.formatting import count_of
from openmm_geomgnn.studies.training.folder import CONFIGURATION, TRAINING, Result, load_result
from openmm_geomgnn.studies.training.parallel import train_networks

NETWORKS, SPLITS = "networks", "splits"
START = 15.0  # s that a trainer needs before its first step
_FILES = ("dataset_root", "file", "splits")


class Planned(Protocol):
    """A network of a study, the name of its split, and its settings without that and without `log_dir`."""

    @property
    def name(self) -> str:
        """Of its folder."""

    @property
    def split_name(self) -> str:
        """Of the file of its split."""

    @property
    def settings(self) -> dict[str, Any]:
        """Of `torchmd-train`."""


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


def prepare(
    output: Path, networks: Iterable[Planned], splits: Mapping[str, Mapping[str, Any]]
) -> tuple[dict[str, Path], dict[str, Path]]:
    """Write splits and settings of the networks of a study; returns folders of networks and files of splits by name.

    Raises GeomGNNError if settings of a network, or a split, are there that differ.
    """
    files = {name: output / SPLITS / f"{name}.npz" for name in splits}
    for name, parts in splits.items():
        write_split(files[name], parts)
    folders = {}
    for network in networks:
        folders[network.name] = output / NETWORKS / network.name
        write_configuration(folders[network.name], network.settings, files[network.split_name], "study")
    return folders, files


def warnings_about(results: Mapping[str, Result], single_seed: bool) -> list[str]:
    """What there is to warn of: networks that failed or were still learning, and errors of a single seed."""
    notes = [f"Warning: {name} failed: {result.reason}" for name, result in results.items() if result.status != "trained"]
    falling = sum(result.status == "trained" and not result.converged for result in results.values())
    if falling:
        notes.append(
            f"Warning: the validation loss of {count_of(falling, 'network')} was still falling at the end (by more than 1 % "
            "in the last fifth of the epochs): longer training would give smaller errors, and may change the order."
        )
    if single_seed:
        notes.append("Warning: errors of a single seed have no error bar; differences between them may be chance.")
    return notes


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
