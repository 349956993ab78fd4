"""The folder of a store, and the settings with which the store was, or is being, made."""

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from openmm_geomgnn.aliases import PathLike
from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.files import atomic_write
from openmm_geomgnn.locks import is_empty, locked, set_aside
from torchmdnet_ext.datasets.conformer_store import INDEX_NAME, UNFINISHED, read_index

SPLITS_NAME = "splits.npz"
_SETTINGS = "settings.json"


@contextmanager
def prepare_output_folder(
    folder: Path, settings: Mapping[str, Any], overwrite: bool = False, inputs: Iterable[PathLike] = ()
) -> Iterator[None]:
    """Reserve a folder for one build: it is new, empty, or holds the unfinished work of a build with the same settings.

    overwrite: move the results of an earlier build aside, whatever its settings. inputs: files that the new build needs,
    which must not be moved.

    Raises GeomGNNError if the folder holds anything else, another process is building there, or inputs would be moved.
    """
    with ExitStack() as stack:
        stack.enter_context(locked(folder))
        noted = _noted(folder)
        if noted is None and not is_empty(folder):
            raise GeomGNNError(f"{folder} is not empty and was not made by `geomgnn data build`. Choose another output.")
        if noted is not None and overwrite:
            set_aside(folder, inputs)
            stack.enter_context(locked(folder))
        elif noted is not None:
            _check_unchanged(folder, noted["settings"], settings)
        yield


def index_of(folder: Path) -> dict[str, Any]:
    """Read the index of the store in `folder`. Raises GeomGNNError if there is none, or it cannot be read."""
    try:
        return read_index(folder)
    except ValueError as error:
        raise GeomGNNError(str(error)) from error


def note_tasks(folder: Path, settings: Mapping[str, Any], tasks: Mapping[str, str]) -> None:
    """Record the settings and tasks of a build. tasks: {label: fingerprint of its tasks}.

    Raises GeomGNNError if the folder was begun with other tasks: with the same settings, files must have changed.
    """
    noted = _noted(folder)
    changed = [label for label in tasks if noted is not None and noted["tasks"].get(label) != tasks[label]]
    if changed:
        raise GeomGNNError(
            f"The files of {', '.join(changed)} have changed since {folder} was begun. Restore them, choose another output, "
            "or start again with --overwrite."
        )
    with atomic_write(folder / UNFINISHED / _SETTINGS) as temporary:
        temporary.write_text(json.dumps({"settings": settings, "tasks": tasks}, indent=1) + "\n", encoding="utf-8")


def _noted(folder: Path) -> dict[str, Any] | None:
    """Settings and tasks of a finished or unfinished store, or None."""
    if (folder / INDEX_NAME).is_file():
        return index_of(folder)
    unfinished = folder / UNFINISHED / _SETTINGS
    if not unfinished.is_file():
        return None
    try:
        noted = json.loads(unfinished.read_bytes())
        _identity(noted["settings"]), dict(noted["tasks"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise GeomGNNError(
            f"{unfinished} was changed or damaged after it was written, so it is not known with which settings {folder} was "
            "begun. Choose another output, or remove the folder."
        ) from error
    return noted


def _check_unchanged(folder: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    old, new = _identity(old), _identity(new)
    if old["sources"] != new["sources"]:
        differences = [f"sources are {', '.join(old['sources'])} there and {', '.join(new['sources'])} here"]
    else:
        keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
        differences = [f"{key} is {json.dumps(old.get(key))} there and {json.dumps(new.get(key))} here" for key in keys]
    if differences:
        raise GeomGNNError(
            f"{folder} holds conformers made with other settings: {'; '.join(differences)}. Choose another output, go on "
            "with the old settings, or start again with --overwrite."
        )


def _identity(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that the shards depend on, by dotted keys. Splits may change at any time."""
    flat = {key: settings[key] for key in ("seed", "shard_size")}
    flat["sources"] = [source["label"] for source in settings["sources"]]
    for source in settings["sources"]:
        flat.update({f"{source['label']}.{key}": value for key, value in source.items() if key != "label"})
    return flat
