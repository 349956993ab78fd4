"""Merging of the parts that tasks leave into shards."""

import re
from collections import Counter
from pathlib import Path

import numpy as np

from openmm_geomgnn.errors import GeomGNNError
from torchmdnet_ext.datasets.conformer_store import UNFINISHED, Shard, write_shard

_NUMBER = re.compile(r"-\d{5}\.safetensors")


def shard_files(folder: Path, label: str) -> list[Path]:
    """Files in a folder whose names are those of shards of a source."""
    found = sorted(folder.glob(f"{label}-*.safetensors"))
    return [path for path in found if _NUMBER.fullmatch(path.name.removeprefix(label))]


class Merger:
    """Merges parts, in the order of their tasks, into the shards of one source, and knows the shards that exist.

    The end of a shard depends only on the sizes of its parts, so a shard that was lost is made again as it was.
    """

    def __init__(self, folder: Path, label: str, n_tasks: int, shard_size: int) -> None:
        self.folder, self.label, self.n_tasks, self.shard_size = folder, label, n_tasks, shard_size
        shards = [shard for shard in map(_opened, shard_files(folder, label)) if shard]
        self._shards = {shard.header["first_task"]: shard for shard in shards}
        covered = {
            task for first, shard in self._shards.items() for task in range(first, first + len(shard.header["task_counts"]))
        }
        parts = {task: _opened(self.part(task)) for task in range(n_tasks) if task not in covered}
        self.missing = [task for task, part in parts.items() if part is None]
        # in what is there at the beginning
        self.conformers = sum(one.conformers for one in (*shards, *filter(None, parts.values())))
        self._number = self._next = 0
        self._waiting: list[Shard] = []
        self._atoms = 0

    def part(self, task: int) -> Path:
        """The file for the conformers of a task."""
        return self.folder / UNFINISHED / f"{self.label}-{task:07d}.safetensors"

    def _shard(self, number: int) -> Path:
        return self.folder / f"{self.label}-{number:05d}.safetensors"

    def advance(self) -> None:
        """Write the shards whose parts are all finished."""
        while self._next < self.n_tasks:
            there = None if self._waiting else self._shards.get(self._next)
            if there and there.path == self._shard(self._number):
                self._next += len(there.header["task_counts"])
                self._number += 1
                continue
            part = _opened(self.part(self._next))
            if part is None:
                break
            self._waiting.append(part)
            self._next += 1
            self._atoms += part.atoms
            if self._atoms >= self.shard_size or self._next == self.n_tasks:
                self._write()

    def _write(self) -> None:
        arrays = [part.arrays for part in self._waiting]
        joined = {name: np.concatenate([one[name] for one in arrays]) for name in ("z", "pos", "source")}
        sizes = np.concatenate([np.diff(one["ptr"]) for one in arrays])
        joined["ptr"] = np.concatenate([[0], np.cumsum(sizes)])
        skipped: Counter[str] = Counter()
        for part in self._waiting:
            skipped.update(part.header["skipped"])
        write_shard(
            self._shard(self._number),
            joined,
            [self.label],
            how="geomgnn data build",
            first_task=self._next - len(self._waiting),
            task_counts=[part.conformers for part in self._waiting],
            skipped=dict(sorted(skipped.items())),
        )
        for part in self._waiting:
            part.path.unlink()
        self._number += 1
        self._waiting, self._atoms = [], 0

    def finished(self) -> list[Shard]:
        """The shards, once all tasks are done. Raises GeomGNNError if existing files are not consecutive."""
        if self._next < self.n_tasks:
            raise GeomGNNError(
                f"The shards of {self.label} in {self.folder} do not follow one another: task {self._next} is in none. "
                "Were files renamed? Start again with --overwrite."
            )
        return [Shard.open(self._shard(number)) for number in range(self._number)]


def _opened(path: Path) -> Shard | None:
    """Open a shard; None if the file is missing or damaged, for instance by a crash of the machine, and has to be remade."""
    try:
        return Shard.open(path)
    except ValueError:
        return None
