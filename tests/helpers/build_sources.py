"""Sources of conformers for tests, in a module that a new process imports quickly."""

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from openmm_geomgnn.conformers.build import Build, LabelledSource
from openmm_geomgnn.conformers.sources.base import Source, skip
from openmm_geomgnn.errors import GeomGNNError

PER_TASK = 20


@dataclass(frozen=True)
class Gas(Source):
    """Random molecules; every seventh is left out. In task 3, what `trouble` says happens while a file `armed` exists."""

    name: ClassVar[str] = "gas"
    paths: ClassVar[tuple[str, ...]] = ("armed",)

    number: int = 200
    atoms: int = 12
    wait: float = 0.0
    trouble: str = ""
    armed: str | None = None

    def check(self):
        if self.number < 1:
            raise GeomGNNError(f"number of the conformer source `gas` is {self.number}, but it must be at least 1.")

    def tasks(self, seed):
        return [[start, min(start + PER_TASK, self.number)] for start in range(0, self.number, PER_TASK)]

    def conformers(self, task, seed, skipped=None):
        start, stop = task
        if start == 3 * PER_TASK and self.armed and Path(self.armed).exists():
            TROUBLES[self.trouble]()
        time.sleep(self.wait)
        for i in range(start, stop):
            if i % 7 == 6:
                skip(skipped, "every seventh")
                continue
            rng = np.random.default_rng([seed, i])
            z = rng.choice([1, 6, 8], size=rng.integers(3, self.atoms))
            yield z, rng.normal(scale=3.0, size=(len(z), 3))


@dataclass(frozen=True)
class Walk(Source):
    """A long trajectory of one molecule, one of whose frames is broken."""

    name: ClassVar[str] = "walk"
    pieces: int = 10

    def check(self):
        pass

    def tasks(self, seed):
        return list(range(self.pieces))

    def conformers(self, task, seed, skipped=None):
        rng = np.random.default_rng([seed, task])
        for i in range(10):
            yield [6, 8, 1], rng.normal(size=(3, 3)) * (np.nan if (task, i) == (2, 5) else 1.0)


def _raise():
    raise RuntimeError("the molecule fell apart")


TROUBLES = {"raise": _raise, "die": lambda: os.kill(os.getpid(), signal.SIGKILL)}


def plan(folder, source=None, **settings):
    return Build(Path(folder), (LabelledSource(source or Gas(), "gas"),), **{"shard_size": 300, **settings})
