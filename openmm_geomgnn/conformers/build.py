"""Make a store of conformers from sources: in parallel, resumable, with the same bytes however it was made.

The sources divide their work into tasks. Each task is done by one of several processes and leaves a part in the folder
`.build`; the parts, in the order of the tasks, become the shards of the store. Finished parts are kept when the work is
stopped. The index is written last: a folder without one is not a store yet.
"""

import hashlib
import json
import re
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from openmm_geomgnn.aliases import PathLike
from openmm_geomgnn.conformers.folder import SPLITS_NAME, index_of, note_tasks, prepare_output_folder
from openmm_geomgnn.conformers.merging import Merger
from openmm_geomgnn.conformers.sources.base import Source
from openmm_geomgnn.conformers.splits import NAMES, Splits, hold_out, molecules
from openmm_geomgnn.conformers.statistics import summarise
from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.files import atomic_write, sha256
from openmm_geomgnn.jobs import run_jobs
from openmm_geomgnn.processes import cores, parent_is_gone
from torchmdnet_ext.datasets.conformer_store import (
    INDEX_FORMAT,
    INDEX_NAME,
    INDEX_VERSION,
    UNFINISHED,
    Shard,
    pack,
    write_shard,
)
from torchmdnet_ext.tensor_files import with_checksum

SHARD_SIZE = 5_000_000  # atoms, 35 MB
MALFORMED = "malformed: no atoms, unknown elements, or coordinates that are not finite"
_LABEL = re.compile(r"[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True)
class LabelledSource:
    """A source, and the name of its conformers in the store. Raises GeomGNNError if files cannot have that name."""

    source: Source
    label: str

    def __post_init__(self) -> None:
        if not isinstance(self.label, str) or not _LABEL.fullmatch(self.label):
            raise GeomGNNError(f"label is {self.label!r}, but it names files: use letters, digits, '_', '-' and '.'.")

    def settings(self) -> dict[str, Any]:
        """Return the settings as JSON holds them."""
        # converted as by JSON, so that settings read from a file compare equal
        return json.loads(json.dumps({"source": self.source.name, "label": self.label, **asdict(self.source)}))


@dataclass(frozen=True)
class Build:
    """The plan of a store: its folder, its sources (LabelledSource) in order, and its settings.

    shard_size: the number of atoms in a shard, which ends with the task that reaches it.

    Raises GeomGNNError if there are no sources, or two have the same label.
    """

    folder: Path
    sources: tuple
    seed: int = 1
    shard_size: int = SHARD_SIZE
    splits: Splits = field(default_factory=Splits)

    def __post_init__(self) -> None:
        labels = Counter(source.label for source in self.sources)
        if not labels:
            raise GeomGNNError("There are no sources to take conformers from: name at least one.")
        label, number = labels.most_common(1)[0]
        if number > 1:
            raise GeomGNNError(f"{number} sources have the label '{label}': give each a label of its own.")

    def settings(self) -> dict[str, Any]:
        """Return the settings as JSON holds them."""
        return {
            "seed": self.seed,
            "shard_size": self.shard_size,
            "splits": asdict(self.splits),
            "sources": [source.settings() for source in self.sources],
        }


def build(
    plan: Build,
    processes: int | None = None,
    overwrite: bool = False,
    progress: Callable[..., None] = lambda done, total, note="": None,
    settings_file: PathLike | None = None,
) -> dict[str, Any]:
    """Make the store that a `Build` describes, or continue an unfinished one. Returns its index, a dictionary.

    Parameters
    ----------
    plan : Build
    processes : int, optional
        Number of processes; by default one per core. The store does not depend on it.
    overwrite : bool
        Move the results of an earlier build in the folder aside, whatever its settings (see `locks.set_aside`).
    progress : callable
        Called with the number of finished tasks, the number of all tasks, and a note.
    settings_file : path, optional
        The file from which the plan was read, which must not be moved aside.

    Raises
    ------
    GeomGNNError
        Before any work if a source's settings, files or packages are wrong, or the folder holds anything else; later if a
        task fails, or no source gives any conformer. Finished parts are kept.
    """
    for labelled in plan.sources:
        labelled.source.check()
    inputs = [] if settings_file is None else [settings_file]
    inputs += [path for labelled in plan.sources for path in labelled.source.input_files()]
    if overwrite:
        _tasks(plan)  # all files can be read, before anything is moved
    with prepare_output_folder(plan.folder, plan.settings(), overwrite, inputs):
        if (plan.folder / INDEX_NAME).is_file():
            index = index_of(plan.folder)
            if index["settings"] == plan.settings() and not damaged_shards(plan.folder, index):
                return index
        tasks = _tasks(plan)
        fingerprints = {label: _fingerprint(own) for label, own in tasks.items()}
        note_tasks(plan.folder, plan.settings(), fingerprints)
        for left in plan.folder.glob(".*.part"):
            left.unlink()  # left by a build that was killed while it wrote
        shards = _make_shards(plan, tasks, processes or cores(), progress)
        return _finish(plan, shards, fingerprints)


def _tasks(plan: Build) -> dict[str, list[Any]]:
    return {labelled.label: labelled.source.tasks(plan.seed) for labelled in plan.sources}


def _fingerprint(tasks: list[Any]) -> str:
    return hashlib.sha256(json.dumps(tasks).encode()).hexdigest()[:16]


def damaged_shards(folder: PathLike, index: Mapping[str, Any], thorough: bool = False) -> list[str]:
    """Names of shards that are missing or whose length (thorough: content) differs from the index."""

    def damaged(entry: Mapping[str, Any]) -> bool:
        """Make the error of a file that cannot be read."""
        path = Path(folder) / entry["file"]
        if not path.is_file() or path.stat().st_size != entry["bytes"]:
            return True
        return thorough and sha256(path, 64) != entry["sha256"]

    return [entry["file"] for entry in index["shards"] if damaged(entry)]


# ------------------------------------------------------------------------------------------------------------------ tasks


def _make_shards(plan: Build, tasks: Mapping[str, list[Any]], processes: int, progress: Callable[..., None]) -> list[Shard]:
    """Do the tasks, {label: list}, that have not been done yet. Returns all shards, in order."""
    mergers = {label: Merger(plan.folder, label, len(own), plan.shard_size) for label, own in tasks.items()}
    jobs = [
        (mergers[labelled.label].part(number), labelled, number, tasks[labelled.label][number], plan.seed)
        for labelled in plan.sources
        for number in mergers[labelled.label].missing
    ]
    total = sum(map(len, tasks.values()))
    done, made = total - len(jobs), sum(merger.conformers for merger in mergers.values())
    for merger in mergers.values():
        merger.advance()
    progress(done, total, f"{made} conformers")
    with closing(run_jobs(_make_part, jobs, processes, _describe)) as results:
        for (_, labelled, *_), conformers in results:
            mergers[labelled.label].advance()
            done, made = done + 1, made + conformers
            progress(done, total, f"{made} conformers")
    return [shard for merger in mergers.values() for shard in merger.finished()]


def _make_part(path: Path, labelled: LabelledSource, number: int, task: list[Any], seed: int) -> int:
    """Do one task: write its conformers to the file `path`. Returns their number."""
    skipped: Counter[str] = Counter()
    found = labelled.source.conformers(task, seed, skipped)
    arrays, _ = pack(((z, pos, labelled.label) for z, pos in found), malformed=lambda: skipped.update([MALFORMED]))
    # a process that outlives the command must not write into a folder that may belong to another one by now
    if not parent_is_gone():
        write_shard(path, arrays, [labelled.label], skipped=dict(skipped))
    return len(arrays["source"])


def _describe(job: tuple) -> str:
    _, labelled, number, task, _ = job
    shown = json.dumps(task)
    return f"Task {number} of {labelled.label}, {shown if len(shown) < 100 else shown[:97] + '...'},"


# ------------------------------------------------------------------------------------------------------- splits and index


def _finish(plan: Build, shards: list[Shard], fingerprints: Mapping[str, str]) -> dict[str, Any]:
    """Write the splits and then the index, whose presence means that the store is complete."""
    statistics = summarise(shards)
    if not statistics["conformers"]:
        reasons = "; ".join(f"{number} x {reason}" for reason, number in statistics["skipped"].items())
        raise GeomGNNError(
            f"The sources gave no conformers{f' ({reasons})' if reasons else ''}. Check their settings and files, and start "
            "again with --overwrite."
        )
    _write_splits(plan, shards, statistics["sources"])
    entries: list[dict[str, Any]] = [
        {
            "file": shard.path.name,
            "bytes": shard.path.stat().st_size,
            "sha256": sha256(shard.path, 64),
            "sources": shard.sources,
            "conformers": shard.conformers,
            "atoms": shard.atoms,
        }
        for shard in shards
    ]
    index = {
        "format": INDEX_FORMAT,
        "version": INDEX_VERSION,
        "hash": hashlib.sha256("".join(entry["sha256"] for entry in entries).encode()).hexdigest()[:16],
        "settings": plan.settings(),
        "tasks": fingerprints,
        **statistics,
        "shards": entries,
    }
    index = with_checksum(index, {})
    with atomic_write(plan.folder / INDEX_NAME) as temporary:
        temporary.write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    shutil.rmtree(plan.folder / UNFINISHED)
    return index


def _write_splits(plan: Build, shards: list[Shard], statistics: dict[str, Any]) -> None:
    """Write idx_train, idx_val and idx_test, the `splits` of TorchMD-Net's trainer; add their sizes to `statistics`."""
    found: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    for shard in shards:
        (label,) = shard.sources
        counts = shard.header["task_counts"]
        tasks = np.repeat(np.arange(len(counts)) + shard.header["first_task"], counts)
        found.setdefault(label, []).append((molecules(shard.arrays["z"], shard.arrays["ptr"]), tasks))
    groups = {
        label: (np.concatenate([one for one, _ in own]), np.concatenate([tasks for _, tasks in own]))
        for label, own in found.items()
    }
    parts, by = hold_out(groups, plan.splits, plan.seed)
    for label, part in zip(groups, parts, strict=True):
        counts = np.bincount(part, minlength=len(NAMES)).tolist()
        statistics[label]["splits"] = {**dict(zip(NAMES, counts, strict=True)), "by": by[label]}
    whole = np.concatenate(parts)
    indices: dict[str, Any] = {f"idx_{name}": np.flatnonzero(whole == number) for number, name in enumerate(NAMES)}
    with atomic_write(plan.folder / SPLITS_NAME) as temporary:
        np.savez(temporary, **indices)
