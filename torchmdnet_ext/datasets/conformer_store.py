"""Conformers on disk: a store is one shard, or a folder of shards with an index.

Denoising pre-training needs only elements and coordinates, so a shard, a safetensors file, holds nothing else:

| tensor | type | what |
|---|---|---|
| `z` | uint8 (A,) | atomic numbers of all conformers, one after the other |
| `pos` | int16 or int32 (A, 3) | coordinates in units of 0.001 angstrom, each conformer centred at its centroid |
| `ptr` | int64 (M + 1,) | conformer i is the atoms `ptr[i]:ptr[i + 1]` |
| `source` | uint8 (M,) | where conformer i comes from: index into the names in the header |

The header (safetensors metadata, JSON) holds the format's name and version, the unit, the names of the sources and how
the file was made. The rounding, at most 0.0005 angstrom, is 80 times smaller than the smallest noise in use (0.04).
Coordinates are int16 (version 1) unless an atom is more than 32.767 angstrom from its centroid: then those of the whole
shard are int32 (version 2).

The index of a folder, `index.json`, names its shards with their sizes and sources, so that a store is opened without
reading any of them; `geomgnn data build` writes it last. A shard is mapped into memory when one of its conformers is
first accessed.
"""

import json
import math
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from torchmdnet_ext.files import PathLike, write_whole
from torchmdnet_ext.tensor_files import CHECKSUM, is_as_written

FORMAT = "conformers"
UNIT = 0.001  # angstrom
VERSIONS = {"I16": 1, "I32": 2}  # type of pos -> version of the shard
TENSORS = {"z": ("U8",), "pos": tuple(VERSIONS), "ptr": ("I64",), "source": ("U8",)}
TYPES = {"U8": np.uint8, "I16": np.int16, "I32": np.int32, "I64": np.int64}
STORE_NAME = "conformers.safetensors"  # of a store that is one shard
INDEX_NAME = "index.json"
INDEX_FORMAT = "conformer store"
INDEX_VERSION = 1
UNFINISHED = ".build"  # in a folder in which `geomgnn data build` has not finished
HOW_TO_MAKE = "`geomgnn data build protocols/build-conformers.yaml` makes one"
_MAX_HEADER = 100_000_000  # bytes, as in safetensors
_MAX_SOURCES = 256
_HEAVIEST = 118  # atomic number
# entries of an index, and of its line about a shard, that are needed to read a store
_INDEX = {"settings": dict, "sources": dict, "shards": list, "conformers": int, "atoms": int, "sizes": dict}
_SHARD = {"file": str, "bytes": int, "sha256": str, "sources": list, "conformers": int, "atoms": int}
_CHANGED = "{} was changed or damaged after it was written. Restore it, or make the store again in another folder."


# --------------------------------------------------------------------------------------------------------------- writing


def _to_units(z: np.ndarray, pos: np.ndarray, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Check one conformer; return its z as uint8 and its centred coordinates in units of 0.001 angstrom as int32."""
    z, pos = np.asarray(z), np.asarray(pos, dtype=np.float64)
    if z.ndim != 1 or len(z) == 0 or pos.shape != (len(z), 3):
        raise ValueError(
            f"{name} has elements of shape {z.shape} and coordinates of shape {pos.shape}. "
            "A conformer is z (N,) and pos (N, 3) with at least one atom: pass the two in that form."
        )
    if z.min() < 1 or z.max() > _HEAVIEST:
        raise ValueError(f"{name} has atomic numbers {z.min()} to {z.max()}; give elements as numbers from 1 to 118.")
    if not np.isfinite(pos).all():
        raise ValueError(f"{name} has coordinates that are not finite: leave it out, or repair the run it comes from.")
    units = np.rint((pos - pos.mean(axis=0)) / UNIT)
    limit = np.iinfo(np.int32).max
    if np.abs(units).max() > limit:
        raise ValueError(
            f"{name} has an atom {np.abs(units).max() * UNIT:.6g} angstrom from its centre along one axis and a store "
            f"holds up to {limit * UNIT:.0f}. Check that the coordinates are in angstrom, or leave this conformer out."
        )
    return z.astype(np.uint8), units.astype(np.int32)


def pack(
    conformers: Iterable[tuple[np.ndarray, np.ndarray, str]], malformed: Callable[[], object] | None = None
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Pack conformers, an iterable of (z, pos in angstrom, source), into the tensors of a shard and names of sources.

    Raises a ValueError that names the conformer if one is malformed; `malformed`, if given, is called instead, and the
    conformer is left out.
    """
    zs, positions, sources = [], [], []
    names: dict[str, int] = {}
    for i, (z, pos, source) in enumerate(conformers):
        try:
            z, units = _to_units(z, pos, f"Conformer {i} (source {source!r})")
        except ValueError:
            if malformed is None:
                raise
            malformed()
            continue
        zs.append(z)
        positions.append(units)
        sources.append(names.setdefault(str(source), len(names)))
    if len(names) > _MAX_SOURCES:
        raise ValueError(
            f"The conformers name {len(names)} sources and a store holds {_MAX_SOURCES}: name a source by data set."
        )
    pos = np.concatenate([np.zeros((0, 3), np.int32), *positions])
    arrays = {
        "z": np.concatenate([np.zeros(0, np.uint8), *zs]),
        "pos": pos.astype(np.int16) if np.abs(pos).max(initial=0) <= np.iinfo(np.int16).max else pos,
        "ptr": np.cumsum([0, *map(len, zs)], dtype=np.int64),
        "source": np.array(sources, dtype=np.uint8),
    }
    return arrays, list(names)


def write_shard(path: PathLike, arrays: dict[str, np.ndarray], sources: Sequence[str], **header: Any) -> None:
    """Write the tensors of a shard; the file appears under its name only when it is complete."""
    version = VERSIONS["I16" if arrays["pos"].dtype == np.int16 else "I32"]
    header = {"format": FORMAT, "version": version, "unit": "0.001 angstrom", "sources": list(sources), **header}
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # not save_file, which makes the file readable by its owner only
    write_whole(path, save(arrays, metadata={FORMAT: json.dumps(header)}))


def write_conformers(path: PathLike, conformers: Iterable[tuple[np.ndarray, np.ndarray, str]], how: str = "") -> int:
    """Write conformers to a store that is one file; it appears under its name only when it is complete.

    Parameters
    ----------
    path : path
        The file to write, `.safetensors`. Missing folders are made.
    conformers : iterable of (z, pos, source)
        z (N,) atomic numbers, pos (N, 3) in angstrom, source the name of where it comes from ("qm9", ...).
    how : str
        One line in the header on how the conformers were made.

    Returns
    -------
    int
        The number of conformers written.

    Raises
    ------
    ValueError
        If a conformer is malformed or does not fit the store (the message names it), or if there is none.
    """
    arrays, sources = pack(conformers)
    if not len(arrays["source"]):
        raise ValueError(f"There are no conformers to write to {path}: pass at least one (z, pos, source).")
    write_shard(Path(path).expanduser(), arrays, sources, how=how)
    return len(arrays["source"])


# --------------------------------------------------------------------------------------------------------------- reading


@dataclass(eq=False)
class Shard:
    """One file of conformers. Its sizes are known when it is opened; its tensors are mapped at first use.

    Attributes: `path`; `sources`, the names to which its `source` tensor refers; `conformers` and `atoms`, their numbers.
    """

    path: Path
    sources: list[str]
    conformers: int
    atoms: int
    header: dict[str, Any] = field(default_factory=dict)  # empty until the file is read, if an index gave the rest
    _arrays: dict[str, np.ndarray] | None = field(default=None, repr=False)

    @classmethod
    def open(cls, path: PathLike) -> "Shard":
        """Open a shard that is in no index. Raises ValueError if the file is missing, truncated or not a shard."""
        path = Path(path)
        header, places = _read_header(path)
        return cls(path, header["sources"], places["source"][2][0], places["z"][2][0], header)

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """The tensors by name, read-only numpy arrays mapped from the file."""
        if self._arrays is None:
            self._arrays = self._map()
        return self._arrays

    def _map(self) -> dict[str, np.ndarray]:
        import torch  # not above: processes that only write shards start faster without it

        self.header, places = _read_header(self.path)
        size = self.path.stat().st_size
        # unlike np.memmap this keeps no file descriptor; many shards would exhaust those of the process
        content = torch.from_file(str(self.path), shared=False, size=size, dtype=torch.uint8).numpy()
        content.flags.writeable = False
        arrays = {
            name: content[start:stop].view(TYPES[kind]).reshape(shape)
            for name, (kind, (start, stop), shape) in places.items()
        }
        ptr, source = arrays["ptr"], arrays["source"]
        if (
            arrays["z"].shape != (self.atoms,)
            or arrays["pos"].shape != (self.atoms, 3)
            or source.shape != (self.conformers,)
            or ptr.shape != (self.conformers + 1,)
            or self.header["sources"] != self.sources
            or ptr[0] != 0
            or ptr[-1] != self.atoms
            or (np.diff(ptr) < 1).any()
            or source.max(initial=0) >= max(1, len(self.sources))
            or (self.atoms and not 1 <= arrays["z"].min() <= arrays["z"].max() <= _HEAVIEST)
        ):
            raise _misfit(self.path)
        return arrays

    def __getstate__(self) -> dict[str, Any]:
        # a mapping belongs to its process
        return {**self.__dict__, "_arrays": None}


def _read_header(path: Path) -> tuple[dict[str, Any], dict[str, tuple]]:
    """Read our header and {tensor: (type, byte range in the file, shape)} of a shard."""
    if not path.is_file():
        raise ValueError(f"There is no conformer file {path}. Check the path; {HOW_TO_MAKE}.")
    size = path.stat().st_size
    try:
        with open(path, "rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > min(_MAX_HEADER, size - 8):
                raise ValueError("its header is longer than the file")
            described = json.loads(file.read(length))
            metadata = described.pop("__metadata__", {})
            start = 8 + length
            places = {
                name: (entry["dtype"], tuple(start + end for end in entry["data_offsets"]), tuple(entry["shape"]))
                for name, entry in described.items()
            }
            named = metadata.get(FORMAT)
        if max((stop for _, (_, stop), _ in places.values()), default=start) != size:
            raise ValueError("its tensors are not as long as its header says")
    except (struct.error, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"{path} cannot be read as a safetensors file ({error}): it is truncated, or not a conformer file. "
            f"Copy it again or make it again; {HOW_TO_MAKE}."
        ) from error
    header = _json_dictionary(named)
    ours = set(places) == set(TENSORS) and all(places[name][0] in kinds for name, kinds in TENSORS.items())
    if not ours or header is None or header.get("format") != FORMAT:
        raise ValueError(
            f"{path} is a safetensors file but not a store of conformers: it holds {', '.join(places) or 'nothing'}, "
            f"and a store holds {', '.join(TENSORS)} and a header. Give another file; {HOW_TO_MAKE}."
        )
    if header.get("version") not in VERSIONS.values():
        raise ValueError(
            f"{path} has version {header.get('version')!r} of the conformer format and this code reads versions "
            f"{', '.join(map(str, VERSIONS.values()))}. Update openmm-geomgnn, or make the file again; {HOW_TO_MAKE}."
        )
    named = isinstance(header.get("sources"), list) and all(isinstance(name, str) for name in header["sources"])
    if not named or not all(_fits(*place, 2 if name == "pos" else 1) for name, place in places.items()):
        raise _misfit(path)
    return header, places


def _fits(kind: str, place: tuple[int, int], shape: Sequence[int], dimensions: int) -> bool:
    """Whether a tensor of this shape fills its byte range."""
    whole = len(place) == 2 and all(type(number) is int and number >= 0 for number in (*place, *shape))
    return whole and len(shape) == dimensions and math.prod(shape) * np.dtype(TYPES[kind]).itemsize == place[1] - place[0]


def _misfit(path: PathLike) -> ValueError:
    return ValueError(f"The tensors of {path} do not fit one another: the file is damaged. {HOW_TO_MAKE}.")


def _json_dictionary(text: str | bytes) -> dict[str, Any] | None:
    """Parse JSON text, or its bytes, into a dictionary; None if it is not one."""
    try:
        value = json.loads(text or "null")
    except (ValueError, TypeError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def is_store_folder(path: PathLike) -> bool:
    """Whether `path` is a folder of shards, finished or not."""
    return (Path(path) / INDEX_NAME).is_file() or (Path(path) / UNFINISHED).is_dir()


def read_index(folder: PathLike) -> dict[str, Any]:
    """Read the index of a folder of shards, a dictionary.

    Raises ValueError if it cannot be read or there is none; the message says if the store is unfinished.
    """
    path = Path(folder) / INDEX_NAME
    if not path.is_file():
        if (Path(folder) / UNFINISHED).is_dir():
            raise ValueError(
                f"The conformer store {folder} is not finished: the same `geomgnn data build` again continues it."
            )
        raise ValueError(f"There is no conformer store in {folder}: it holds no {INDEX_NAME}. {HOW_TO_MAKE}.")
    index = _json_dictionary(path.read_bytes())
    if index is None or index.get("format") != INDEX_FORMAT:
        raise ValueError(f"{path} is not the index of a conformer store. Give another folder; {HOW_TO_MAKE}.")
    if index.get("version") != INDEX_VERSION:
        raise ValueError(
            f"{path} has version {index.get('version')!r} of the index of conformer stores and this code reads version "
            f"{INDEX_VERSION}. Update openmm-geomgnn, or make the store again."
        )
    intact = is_as_written(index, {}) if CHECKSUM in index else True  # older ones have none
    shards: Any = index.get("shards")
    if not intact or not all(isinstance(index.get(name), kind) for name, kind in _INDEX.items()):
        raise ValueError(_CHANGED.format(path))
    if not all(isinstance(shard, dict) and all(type(shard.get(n)) is k for n, k in _SHARD.items()) for shard in shards):
        raise ValueError(_CHANGED.format(path))
    return index


def open_store(path: PathLike) -> tuple[list[Shard], str]:
    """Open a store, a file or a folder with an index: (list of Shard, how they were made).

    Raises a ValueError that names the file if one is missing or has the wrong size.
    """
    path = Path(path)
    if not path.is_dir():
        shard = Shard.open(path)
        return [shard], str(shard.header.get("how", ""))
    index = read_index(path)
    shards = []
    for entry in index["shards"]:
        file = path / entry["file"]
        size = file.stat().st_size if file.is_file() else None
        if size != entry["bytes"]:
            problem = "is missing" if size is None else f"has {size} bytes instead of {entry['bytes']}"
            raise ValueError(
                f"The shard {file} of the conformer store {problem}. Copy it again, or remove it and repeat the "
                "`geomgnn data build` that made the store: it makes what is missing."
            )
        shards.append(Shard(file, entry["sources"], entry["conformers"], entry["atoms"]))
    return shards, json.dumps(index["settings"])
