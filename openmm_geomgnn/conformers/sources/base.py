"""Common parts of all sources of conformers: the interface, checks of settings, random draws, file names."""

import glob
import importlib.util
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

import numpy as np

from openmm_geomgnn.aliases import PathLike
from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.units import did_you_mean

MODULES = {  # package as pip knows it -> the modules that it provides
    "rdkit": ("rdkit",),
    "qm9pack": ("qm9pack",),
    "PeptideBuilder": ("PeptideBuilder", "Bio"),
    "h5py": ("h5py",),
    "biotite": ("biotite",),
}
Conformer: TypeAlias = tuple[np.ndarray, np.ndarray]  # z (N,) and pos (N, 3) in angstrom
GLOB = frozenset("*?[")
# reasons for leaving out a conformer that several sources share
NOT_FINITE = "has coordinates that are not finite"
NO_ELEMENT = "has atoms that are no element"


@dataclass(frozen=True)
class Source(ABC):
    """A source of conformers; a subclass is a dataclass whose fields are its settings, the keys of its YAML block.

    The work is divided into independent tasks: lists of numbers and names, which JSON can hold, each of which takes seconds
    to about a minute. The same settings, files, task and seed give the same conformers, whatever the process and the order.
    """

    # the `source:` key in YAML, and the label of these conformers in a store
    name: ClassVar[str]
    # the settings that are paths
    paths: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def check(self) -> None:
        """Raise a GeomGNNError for wrong settings, missing files and missing packages, before any work is done."""

    @abstractmethod
    def tasks(self, seed: int) -> list[list[Any]]:
        """List the units of work, in the order in which a file is read fastest."""

    @abstractmethod
    def conformers(self, task: list[Any], seed: int, skipped: Counter | None = None) -> Iterator[Conformer]:
        """Yield the conformers of one task: atomic numbers z (N,) int and coordinates pos (N, 3) in angstrom.

        Molecules without conformers are left out; `skipped`, if given, counts them by reason.
        """

    def relative_to(self, folder: PathLike) -> "Source":
        """Return the same source with paths relative to `folder`, such as the folder of the settings file."""

        def located(value: Any) -> Any:
            if value is None:
                return None
            if isinstance(value, (list, tuple)):
                return [located(part) for part in value]
            return str(Path(folder) / Path(value).expanduser())

        return replace(self, **{key: located(getattr(self, key)) for key in self.paths})

    def input_files(self) -> list[str]:
        """List the files and folders that the settings name, including those that match patterns."""
        found = []
        for key in self.paths:
            value = getattr(self, key)
            for one in [value] if isinstance(value, (str, Path)) else value or ():
                path = str(Path(one).expanduser())
                found += [path, *glob.glob(path, recursive=True)]
        return found


def skip(skipped: Counter[str] | None, reason: str, number: int = 1) -> None:
    """Count molecules that are left out."""
    if skipped is not None and number:
        skipped[reason] += number


def require(source: Source, *packages: str) -> None:
    """Raise a GeomGNNError unless the optional packages that a source needs are installed."""
    for package in packages:
        if any(importlib.util.find_spec(module) is None for module in MODULES[package]):
            raise GeomGNNError(
                f"The conformer source `{source.name}` needs the package {package}, which is not installed: "
                'pip install "openmm-geomgnn[data]".'
            )


def check_count(source: Source, *keys: str, optional: tuple[str, ...] = (), least: int = 1) -> None:
    """Raise GeomGNNError unless the settings `keys` are whole numbers of at least `least` (or None, if in `optional`)."""
    for key in (*keys, *optional):
        value = getattr(source, key)
        if value is None and key in optional:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            left_out = " or be left out" if key in optional else ""
            raise GeomGNNError(
                f"{key} of the conformer source `{source.name}` is {value!r}, but it must be a whole number of at "
                f"least {least}{left_out}."
            )


def check_choice(source: Source, key: str, choices: Collection[str]) -> None:
    """Raise a GeomGNNError unless the setting `key` is one of `choices`."""
    value = getattr(source, key)
    if value not in choices:
        raise GeomGNNError(
            f"{key} of the conformer source `{source.name}` is {value!r}, but it must be one of "
            f"{', '.join(choices)}.{did_you_mean(value, choices)}"
        )


def find_files(source: Source, key: str = "file") -> list[str]:
    """Find the files that a setting names: a path, a pattern such as `runs/*.xtc`, or a list of those; patterns are sorted.

    Raises GeomGNNError if nothing is named, a file is missing or a pattern has no match.
    """
    value = getattr(source, key)
    named = [value] if isinstance(value, (str, Path)) else value
    if not named or not isinstance(named, Iterable) or not all(isinstance(one, (str, Path)) for one in named):
        raise GeomGNNError(
            f"{key} of the conformer source `{source.name}` is {value!r}, but it must be a path, a pattern such as "
            "data/*.sdf, or a list of those."
        )
    found = []
    for one in map(str, named):
        path = Path(one).expanduser()
        matches = [str(path)] if path.is_file() else []
        if not matches and GLOB & set(one):
            matches = sorted(match for match in glob.glob(str(path), recursive=True) if Path(match).is_file())
        if not matches:
            what = "matches no file" if GLOB & set(one) else "is not a file"
            raise GeomGNNError(
                f"{key} of the conformer source `{source.name}` names {one}, which {what}. Check the path; a relative "
                f"one is taken from {Path.cwd()} or from the folder of the file of settings."
            )
        found += matches
    return found


def draw(total: int, number: int | None, seed: int, skip: int = 0) -> np.ndarray:
    """Draw `number` of the indices 0 to total - 1 at random, sorted; all of them if number is None or larger.

    The seed puts all indices into a random order, and the draw begins after the first `skip` of them: a smaller draw is part
    of a larger one, and a draw that skips `number` has no index in common with a draw of `number`.
    """
    if skip == 0 and (number is None or number >= total):
        return np.arange(total)
    order = np.random.default_rng([seed, 9]).permutation(total)
    return np.sort(order[skip : None if number is None else skip + number])


def molecule_seed(seed: int, index: int) -> int:
    """A seed in [0, 2^31) for one molecule."""
    return int(np.random.SeedSequence([seed, index]).generate_state(1)[0] >> 1)
