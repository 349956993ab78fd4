"""A store of molecular conformers in one safetensors file, and the dataset TorchMD-Net's trainer reads from it.

Denoising pre-training needs nothing but elements and coordinates, so that is all a store holds:

| tensor | type | what |
|---|---|---|
| `z` | uint8 (A,) | atomic numbers of all conformers, one after the other |
| `pos` | int16 (A, 3) | coordinates in units of 0.001 angstrom, each conformer centred at its centroid |
| `ptr` | int64 (M + 1,) | conformer i is the atoms `ptr[i]:ptr[i + 1]` |
| `source` | uint8 (M,) | where conformer i comes from: index into the names in the header |

The header (safetensors metadata, JSON) holds the format's name and version, the unit, the names of the sources and how
the file was made. The rounding, at most 0.0005 angstrom, is 80 times smaller than the smallest noise in use (0.04).
"""

import importlib.util
import json
import operator
import os
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from torch_geometric.data import Data

FORMAT = "conformers"
VERSION = 1
UNIT = 0.001  # angstrom
STORE_NAME = "conformers.safetensors"
HOW_TO_MAKE = f"`python -m openmm_geomgnn.data.make_conformers {STORE_NAME}` makes one"
TENSORS = {"z": torch.uint8, "pos": torch.int16, "ptr": torch.int64, "source": torch.uint8}


def _to_units(z, pos, name):
    """Check one conformer; return its z as uint8 and its centred coordinates as int16."""
    z, pos = np.asarray(z), np.asarray(pos, dtype=np.float64)
    if z.ndim != 1 or len(z) == 0 or pos.shape != (len(z), 3):
        raise ValueError(
            f"{name} has elements of shape {z.shape} and coordinates of shape {pos.shape}. "
            "A conformer is z (N,) and pos (N, 3) with at least one atom: pass the two in that form."
        )
    if z.min() < 1 or z.max() > 118:
        raise ValueError(f"{name} has atomic numbers {z.min()} to {z.max()}; give elements as numbers from 1 to 118.")
    if not np.isfinite(pos).all():
        raise ValueError(f"{name} has coordinates that are not finite: leave it out, or repair the run it comes from.")
    units = np.rint((pos - pos.mean(axis=0)) / UNIT)
    limit = np.iinfo(np.int16).max
    if np.abs(units).max() > limit:
        raise ValueError(
            f"{name} has an atom {np.abs(units).max() * UNIT:.1f} angstrom from its centre along one axis and the "
            f"store holds up to {limit * UNIT:.3f}. Check that the coordinates are in angstrom and that the molecule "
            "is whole (not wrapped by periodic boundaries), or leave this conformer out."
        )
    return z.astype(np.uint8), units.astype(np.int16)


def write_conformers(path, conformers, how=""):
    """Write conformers to a store; the file appears under its name only when it is complete.

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
    zs, positions, sources, names = [], [], [], {}
    for i, (z, pos, source) in enumerate(conformers):
        z, units = _to_units(z, pos, f"Conformer {i} (source {source!r})")
        zs.append(z)
        positions.append(units)
        sources.append(names.setdefault(str(source), len(names)))
    if not zs:
        raise ValueError(f"There are no conformers to write to {path}: pass at least one (z, pos, source).")
    if len(names) > 256:
        raise ValueError(f"The conformers name {len(names)} sources and a store holds 256: name a source by data set.")
    header = {"format": FORMAT, "version": VERSION, "unit": "0.001 angstrom", "sources": list(names), "how": how}
    path = Path(path).expanduser()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    arrays = {
        "z": np.concatenate(zs),
        "pos": np.concatenate(positions),
        "ptr": np.cumsum([0, *map(len, zs)], dtype=np.int64),
        "source": np.array(sources, dtype=np.uint8),
    }
    try:
        # not save_file, which makes the file readable by its owner only
        temporary.write_bytes(save(arrays, metadata={FORMAT: json.dumps(header)}))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return len(zs)


def read_conformers(path):
    """Read a store: (dictionary of its tensors, header dictionary).

    Raises
    ------
    ValueError
        If the file is missing, truncated, not a store of conformers, or of a version this one cannot read.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"There is no conformer file {path}. Check the path; {HOW_TO_MAKE}.")
    try:
        with safe_open(path, framework="pt") as store:
            header = (store.metadata() or {}).get(FORMAT)
            tensors = {name: store.get_tensor(name) for name in store.keys()}
    except SafetensorError as error:
        raise ValueError(
            f"{path} cannot be read as a safetensors file ({error}): it is truncated, or not a conformer file. "
            f"Copy it again or make it anew; {HOW_TO_MAKE}."
        ) from error
    try:
        header = json.loads(header or "null")
    except json.JSONDecodeError:
        header = None
    if not isinstance(header, dict) or {name: tensor.dtype for name, tensor in tensors.items()} != TENSORS:
        raise ValueError(
            f"{path} is a safetensors file but not a store of conformers: it holds {', '.join(tensors) or 'nothing'}, "
            f"and a store holds {', '.join(TENSORS)} and a header. Give another file; {HOW_TO_MAKE}."
        )
    if header.get("version") != VERSION:
        raise ValueError(
            f"{path} has version {header.get('version')!r} of the conformer format and this code reads version "
            f"{VERSION}. Update openmm-geomgnn, or make the file anew; {HOW_TO_MAKE}."
        )
    ptr = tensors["ptr"]
    atoms, conformers = len(tensors["z"]), len(tensors["source"])
    if (
        tensors["pos"].shape != (atoms, 3)
        or ptr.shape != (conformers + 1,)
        or ptr[0] != 0
        or ptr[-1] != atoms
        or (ptr.diff() < 1).any()
    ):
        raise ValueError(f"The tensors of {path} do not fit one another: the file is damaged. {HOW_TO_MAKE}.")
    return tensors, header


def shipped_file():
    """The path of the small store that comes with openmm-geomgnn (found without importing the package)."""
    spec = importlib.util.find_spec("openmm_geomgnn")
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(
            "The package openmm_geomgnn, which carries the default conformer file, is not installed: "
            "`pip install openmm-geomgnn`, or name a conformer file in dataset_arg (file: ...)."
        )
    return Path(spec.submodule_search_locations[0]) / "data" / STORE_NAME


def _uniform(index):
    """A fixed pseudo-random number in [0, 1) for each int64 index (the finaliser of SplitMix64)."""
    with np.errstate(over="ignore"):
        x = np.asarray(index).astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x = x ^ (x >> np.uint64(31))
    return (x >> np.uint64(11)) / 2.0**53


class Conformers(torch.utils.data.Dataset):
    """Conformers for denoising: `dataset[i]` is a `Data` with `z` int64 (N,) and `pos` float32 (N, 3) in angstrom.

    In a TorchMD-Net configuration: `dataset: Conformers`, with the settings below in `dataset_arg`.

    Parameters
    ----------
    root : path, optional
        TorchMD-Net's `dataset_root`: a store, or a folder with `conformers.safetensors` in it. Any other folder,
        such as the trainer's default `~/data`, means the small store that comes with openmm-geomgnn.
    file : path, optional
        A store; it goes before `root`.
    heavy_atoms : float
        Share of the conformers, 0 to 1, that appear without their hydrogens, for collective variables that see heavy
        atoms only. Which ones is fixed by the index, the same in every process. A conformer that would be left with
        fewer than two atoms keeps its hydrogens.

    Raises
    ------
    ValueError
        If the file is missing, truncated or not a store, or if `heavy_atoms` is not a share.
    """

    def __init__(self, root=None, file=None, heavy_atoms=0.0):
        if not 0 <= heavy_atoms <= 1:
            raise ValueError(
                f"heavy_atoms was {heavy_atoms}; it is the share of conformers without hydrogens: give 0 to 1."
            )
        self.file = self._locate(root, file)
        tensors, header = read_conformers(self.file)
        self.sources = header["sources"]
        self.source = tensors["source"]
        self.how = header["how"]
        self.heavy_atoms = float(heavy_atoms)
        z, pos, ptr = tensors["z"], tensors["pos"], tensors["ptr"].numpy()
        heavy = z.numpy() > 1
        n_heavy = np.add.reduceat(heavy, ptr[:-1], dtype=np.int64)
        stripped = (_uniform(np.arange(len(n_heavy))) < heavy_atoms) & (n_heavy >= 2)
        keep = heavy | ~np.repeat(stripped, np.diff(ptr))
        # done once for all: the trainer asks for each conformer many times
        self._z, self._pos = z[torch.from_numpy(keep)], pos[torch.from_numpy(keep)]
        self._ptr = np.concatenate([[0], np.cumsum(keep)])[ptr].tolist()

    @staticmethod
    def _locate(root, file):
        if file is not None:
            return Path(file).expanduser()
        if root is None:
            return shipped_file()
        root = Path(root).expanduser()
        # a missing file must not turn into the shipped one behind the user's back; a folder without a store may
        if root.suffix == ".safetensors" or root.is_file():
            return root
        return root / STORE_NAME if (root / STORE_NAME).is_file() else shipped_file()

    def __len__(self):
        return len(self._ptr) - 1

    def __getitem__(self, index):
        i = operator.index(index)
        if i < 0:
            i += len(self)
        if not 0 <= i < len(self):
            raise IndexError(f"Conformer {index} was asked for and {self.file} has {len(self)}.")
        atoms = slice(self._ptr[i], self._ptr[i + 1])
        return Data(z=self._z[atoms].long(), pos=self._pos[atoms].float() * UNIT)

    def __repr__(self):
        return f"Conformers({len(self)} from {self.file})"
