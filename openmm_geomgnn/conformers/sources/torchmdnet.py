"""The data sets that TorchMD-Net can read, by the names of their classes."""

import functools
import inspect
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from openmm_geomgnn.conformers.sources.base import Conformer, Source, check_count
from openmm_geomgnn.conformers.sources.records import draw_from, share_out
from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.units import did_you_mean

CONFORMERS_PER_TASK = 20_000


@dataclass(frozen=True)
class TorchMDNet(Source):
    """A data set of TorchMD-Net: SPICE, ANI1X, MD17, MD22, MDCATH, QM9, ... or a class registered with it.

    TorchMD-Net downloads and converts some of them into `root`, when the tasks are made. Coordinates are in angstrom.

    Attributes
    ----------
    dataset : str
        The name of a class in torchmdnet.datasets.
    root : path
        The folder of its files; omitted for classes without one, such as HDF5 and Custom.
    arguments : mapping
        Further arguments of the class, such as `molecules: ethanol` for MD17. Paths are relative to the working directory.
    number : int
        Conformers to draw at random, by default all.
    """

    name: ClassVar[str] = "torchmdnet"
    paths: ClassVar[tuple[str, ...]] = ("root",)

    dataset: str
    root: str | None = None
    arguments: dict = field(default_factory=dict)
    number: int | None = None

    def input_files(self) -> list[str]:
        """Return the files and folders that the settings name."""
        given = [value for value in self.arguments.values() if isinstance(value, str) and Path(value).exists()]
        return super().input_files() + given

    def check(self) -> None:
        """Raise GeomGNNError for wrong settings, missing files and missing packages."""
        check_count(self, optional=("number",))
        if not isinstance(self.arguments, dict):
            raise GeomGNNError(
                f"arguments of the conformer source `torchmdnet` is {self.arguments!r}, but it must be a mapping of "
                "names to values."
            )
        taken = inspect.signature(dataset_class(self.dataset)).parameters
        required = [key for key, parameter in taken.items() if parameter.default is parameter.empty]
        given = self._arguments()
        for key in given:
            if key not in taken and not any(p.kind is p.VAR_KEYWORD for p in taken.values()):
                raise GeomGNNError(
                    f"The data set {self.dataset} of TorchMD-Net takes no {key}.{did_you_mean(key, taken)} It takes "
                    f"{', '.join(taken)}."
                )
        missing = [
            key for key in required if key not in given and taken[key].kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
        ]
        if missing:
            raise GeomGNNError(
                f"The data set {self.dataset} of TorchMD-Net needs {', '.join(missing)}: give root, and the others as "
                "`arguments`."
            )

    def tasks(self, seed: int) -> list[list[Any]]:
        """Cut the work into tasks."""
        number = len(opened(self.dataset, json.dumps(self._arguments(), sort_keys=True)))
        bounds = np.arange(number + 1)
        drawn = draw_from([bounds[:-1]], self.number, seed)
        tasks = share_out([bounds], drawn, CONFORMERS_PER_TASK, CONFORMERS_PER_TASK)
        return [[[first, stop, chosen] for _, first, stop, chosen in task] for task in tasks]

    def conformers(self, task: list[Any], seed: int, skipped: Counter[str] | None = None) -> Iterator[Conformer]:
        """Yield (z, pos in angstrom) of the conformers of one task."""
        data = opened(self.dataset, json.dumps(self._arguments(), sort_keys=True))
        for first, stop, chosen in task:
            for i in range(first, stop) if chosen is None else (first + k for k in chosen):
                sample = data[i]
                yield sample.z.numpy().reshape(-1).astype(np.int64), sample.pos.numpy().astype(np.float64)

    def _arguments(self) -> dict[str, Any]:
        return {**({} if self.root is None else {"root": str(Path(self.root).expanduser())}), **self.arguments}


def dataset_class(name: str) -> Callable[..., Any]:
    """Return the class of TorchMD-Net with that name. Raises GeomGNNError if there is none."""
    import torchmdnet.datasets

    known = torchmdnet.datasets.__all__
    if name not in known:
        raise GeomGNNError(
            f"TorchMD-Net has no data set {name!r}.{did_you_mean(name, known)} It has {', '.join(sorted(known))}."
        )
    return getattr(torchmdnet.datasets, name)


@functools.lru_cache(maxsize=1)
def opened(name: str, arguments: str) -> Any:
    """The data set, opened once in each process."""
    try:
        return dataset_class(name)(**json.loads(arguments))
    except (AssertionError, AttributeError, KeyError, OSError, RuntimeError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise GeomGNNError(
            f"TorchMD-Net cannot open its data set {name} with {arguments}: {reason}. Check root and "
            "`arguments`; a data set that has to be downloaded needs a connection."
        ) from error
