"""The dataset that TorchMD-Net's trainer reads from stores of conformers."""

import bisect
import functools
import importlib.util
import itertools
import operator
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import Data

from torchmdnet_ext.arguments import did_you_mean
from torchmdnet_ext.datasets import splits
from torchmdnet_ext.datasets.conformer_store import (
    HOW_TO_MAKE,
    STORE_NAME,
    UNIT,
    Shard,
    is_store_folder,
    open_store,
    write_conformers,
)
from torchmdnet_ext.files import PathLike

__all__ = ["Conformers", "shipped_file", "write_conformers"]
DEFAULT_ROOT = "~/data"  # the trainer's default


def shipped_file() -> Path:
    """The path of the small store that comes with openmm-geomgnn (found without importing the package)."""
    spec = importlib.util.find_spec("openmm_geomgnn")
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(
            "The package openmm_geomgnn, which carries the default conformer file, is not installed: "
            "`pip install openmm-geomgnn`, or name a conformer file in dataset_arg (file: ...)."
        )
    return Path(spec.submodule_search_locations[0]) / "data" / STORE_NAME


class Conformers(torch.utils.data.Dataset):
    """Conformers for denoising: `dataset[i]` is a `Data` with `z` int64 (N,) and `pos` float32 (N, 3) in angstrom.

    In a TorchMD-Net configuration: `dataset: Conformers`, with the settings below in `dataset_arg`. Data are read when they
    are accessed, so a store may be larger than the memory.

    Parameters
    ----------
    root : path, optional
        TorchMD-Net's `dataset_root`: a store (a file, or a folder that `geomgnn data build` made), or a folder with
        `conformers.safetensors` in it. Without one, or with the trainer's default `~/data` if that has no store in it, this
        is the small store that comes with openmm-geomgnn.
    file : path or list of paths, optional
        A store, or several whose conformers follow one another; it takes precedence over `root`.
    sources : list of str, optional
        Use only conformers of these sources. Indices then count only these, so a store's `splits.npz` does not fit:
        `geomgnn data splits` writes one that does.

    Attributes
    ----------
    sources : list of str
        The names of all sources in the stores.

    Raises
    ------
    ValueError
        If a file is missing, truncated or not a store, or a setting is out of range. Damage within a shard is found, and
        the shard named, when it is first read.

    Examples
    --------
    >>> from torchmdnet_ext.datasets.conformers import Conformers
    >>> conformers = Conformers()  # those that ship with openmm-geomgnn
    >>> conformers.sources, len(conformers)
    (['qm9', 'peptide'], 11000)
    >>> conformers[0]
    Data(pos=[8, 3], z=[8])
    >>> len(Conformers(sources=["peptide"]))
    5000
    """

    def __init__(
        self,
        root: PathLike | None = None,
        file: PathLike | Sequence[PathLike] | None = None,
        sources: Sequence[str] | str | None = None,
    ) -> None:
        self.files = self._locate(root, file)
        opened = [open_store(file) for file in self.files]
        self.how = "; ".join(how for _, how in opened)
        self.shards = [shard for shards, _ in opened for shard in shards]
        self.sources = list(dict.fromkeys(name for shard in self.shards for name in shard.sources))
        # for each shard, the conformers that are used: None for all
        self._chosen: list[np.ndarray | None] = [None] * len(self.shards)
        if sources is not None:
            self._choose([sources] if isinstance(sources, str) else list(sources))
        counts = (
            shard.conformers if chosen is None else len(chosen)
            for shard, chosen in zip(self.shards, self._chosen, strict=True)
        )
        self._starts = list(itertools.accumulate(counts, initial=0))

    @staticmethod
    def _locate(root: PathLike | None, file: PathLike | Sequence[PathLike] | None) -> list[Path]:
        if file is not None and not isinstance(file, (str, os.PathLike)):
            if not file:
                raise ValueError("file is an empty list: give a conformer store, or several.")
            return [Path(one).expanduser() for one in file]
        if file is not None:
            return [Path(file).expanduser()]
        if root is None:
            return [shipped_file()]
        folder = Path(root).expanduser()
        if folder.suffix == ".safetensors" or folder.is_file() or is_store_folder(folder):
            return [folder]
        if (folder / STORE_NAME).is_file():
            return [folder / STORE_NAME]
        if str(root) == DEFAULT_ROOT:
            return [shipped_file()]
        # a mistyped path must not turn into the shipped conformers behind the user's back
        what = "holds no store" if folder.is_dir() else "does not exist"
        raise ValueError(
            f"dataset_root is {root}, which {what}: give a store of conformers ({HOW_TO_MAKE}), or leave dataset_root out "
            "(null) for those that ship with openmm-geomgnn."
        )

    def _choose(self, wanted: Any) -> None:
        for name in wanted:
            if name not in self.sources:
                raise ValueError(
                    f"sources names '{name}', and {self._named()} has conformers from {', '.join(self.sources)}."
                    + did_you_mean(name, self.sources)
                )
        for i, shard in enumerate(self.shards):
            numbers = [k for k, name in enumerate(shard.sources) if name in wanted]
            if not numbers:
                self._chosen[i] = np.zeros(0, np.int32)
            elif len(numbers) < len(shard.sources):
                self._chosen[i] = np.flatnonzero(np.isin(shard.arrays["source"], numbers)).astype(np.int32)

    def _named(self) -> str:
        return " + ".join(map(str, self.files))

    @property
    def file(self) -> Path:
        """The path of the store, the first of several."""
        return self.files[0]

    @property
    def source(self) -> Tensor:
        """(len,) uint8, the source of each conformer as an index into `sources`."""
        parts = [np.zeros(0, np.uint8)]
        for shard, chosen in zip(self.shards, self._chosen, strict=True):
            numbers = np.array([self.sources.index(name) for name in shard.sources], dtype=np.uint8)
            part = numbers[shard.arrays["source"]]
            parts.append(part if chosen is None else part[chosen])
        return torch.from_numpy(np.concatenate(parts))

    def _compositions(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield for each shard z of the conformers that are used, concatenated, and where each begins and ends."""
        for shard, chosen in zip(self.shards, self._chosen, strict=True):
            z, ptr = shard.arrays["z"], shard.arrays["ptr"]
            if chosen is not None:
                sizes = np.diff(ptr)[chosen]
                ends = np.cumsum(sizes)
                z = z[np.repeat(ptr[:-1][chosen] - ends + sizes, sizes) + np.arange(sizes.sum())]
                ptr = np.concatenate([[0], ends])
            yield z, ptr

    def molecules(self) -> np.ndarray:
        """Number the molecule of each conformer, see `splits.molecules`; uint64 (len,)."""
        parts = [splits.molecules(z, ptr) for z, ptr in self._compositions()]
        return np.concatenate([np.zeros(0, np.uint64), *parts])

    def elements(self, least: int = 1) -> np.ndarray:
        """The atomic numbers that `least` conformers or more have, ascending."""
        return np.flatnonzero(self._with_element >= least)

    @functools.cached_property
    def _with_element(self) -> np.ndarray:
        """How many conformers have each element, (256,)."""
        numbers = np.zeros(256, dtype=np.int64)
        for z, ptr in self._compositions():
            has = np.zeros((len(ptr) - 1, 256), dtype=bool)
            has[np.repeat(np.arange(len(has)), np.diff(ptr)), z] = True
            numbers += has.sum(axis=0)
        return numbers

    def __len__(self) -> int:
        return self._starts[-1]

    def _find(self, index: int) -> tuple[Shard, int]:
        """Find the shard of a conformer, and its number there."""
        i = operator.index(index)
        if i < 0:
            i += len(self)
        if not 0 <= i < len(self):
            raise IndexError(f"Conformer {index} was asked for and {self._named()} has {len(self)}.")
        k = bisect.bisect_right(self._starts, i) - 1
        chosen, place = self._chosen[k], i - self._starts[k]
        return self.shards[k], place if chosen is None else int(chosen[place])

    def source_of(self, index: int) -> str:
        """The name of the source of one conformer."""
        shard, place = self._find(index)
        return shard.sources[shard.arrays["source"][place]]

    def gather(self, indices: Sequence[int]) -> tuple[Tensor, Tensor, list[int]]:
        """Read several conformers at once: z int64 (A,) and pos float32 (A, 3) of one after the other, and their sizes."""
        zs, positions = [np.zeros(0, np.uint8)], [np.zeros((0, 3), np.int16)]
        for index in indices:
            shard, place = self._find(index)
            arrays = shard.arrays
            start, stop = arrays["ptr"][place : place + 2]
            zs.append(arrays["z"][start:stop])
            positions.append(arrays["pos"][start:stop])
        z = np.concatenate(zs, dtype=np.int64)
        pos = np.concatenate(positions, dtype=np.float32) * np.float32(UNIT)
        return torch.from_numpy(z), torch.from_numpy(pos), [len(one) for one in zs[1:]]

    def __getitems__(self, indices: Sequence[int]) -> list[Data]:
        """Return `[self[i] for i in indices]`, in a fraction of the time; PyTorch's loaders ask for batches like this."""
        z, pos, sizes = self.gather(indices)
        return [Data(z=one, pos=own) for one, own in zip(z.split(sizes), pos.split(sizes), strict=True)]

    def __getitem__(self, index: int) -> Data:
        z, pos, _ = self.gather([index])
        return Data(z=z, pos=pos)

    def __repr__(self) -> str:
        return f"Conformers({len(self)} from {self._named()})"
