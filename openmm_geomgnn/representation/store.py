"""Residue tokens of whole trajectories on disk: a Zarr store that parallel writers fill and that is read lazily."""

import json
import warnings
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from openmm_geomgnn.aliases import PathLike
from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.formatting import format_setting
from openmm_geomgnn.locks import is_empty
from openmm_geomgnn.representation.formats import import_zarr, reason
from openmm_geomgnn.representation.selection import ResidueTable, bonds_of, check_same_molecule
from openmm_geomgnn.representation.spec import TokenSpec

if TYPE_CHECKING:
    from openmm_geomgnn.representation.encoder import Encoder

FORMAT = "openmm-geomgnn embeddings"
VERSION = 2
DTYPES = ("float32", "float16")
CHUNK_BYTES = 4 << 20  # of tokens in one chunk: seconds to write on one core, and read at once by whoever needs a frame
# what the settings of every store have, a line in the list of trajectories, and the number of dimensions of each array
_SETTINGS = {"dtype": str, "molecule": list, "atoms": list, "topology": str, "encoder_source": str}
_ENTRY = {"name": str, "path": str, "size": int, "sha256": str, "frames": int}
_DIMENSIONS = {"tokens": 4, "positions": 3, "times": 1, "checksums": 1}
_PENDING = -1  # in place of a chunk's checksum: it was not written, or not to its end


def _sampled_fingerprints(trajectories: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Version 2 has fingerprints of all bytes; before, they were of 16 blocks of each file, and there was no time."""
    return [{**entry, "mtime_ns": None, "sampled": True} for entry in trajectories]


# list of trajectories of version k -> that of version k + 1; written when something is added to the store
MIGRATIONS = {1: _sampled_fingerprints}


class Embeddings:
    """The tokens of trajectories of one molecule; use `Embeddings.open`.

    Every trajectory file has the arrays `tokens` (F, R, 4, H): scalars and vectors of each residue, `positions` (F, n, 3):
    the selected atoms in nm, whole, `times` (F,) in ps, NaN where they are not known, and `checksums`: one for each chunk
    of frames, written after the chunk itself. A chunk without its checksum does not count.

    Attributes
    ----------
    path : Path
    settings : dict
        What all trajectories have in common: the encoder (name, source, content hash, settings), selection, windows and
        pooling, the topology file, the residue table (`selection.residue_table`), names of the atoms, stride, frame_interval
        (ps, of the files) and dtype.
    trajectories : list of dict
        For each its name, path, size, mtime_ns and sha256 (`trajectory_files.fingerprint`), number of embedded frames, and
        `truncated` where the file ends too early.

    Examples
    --------
    >>> from importlib.resources import files
    >>> import mdtraj
    >>> from openmm_geomgnn.representation.embed_trajectories import embed_trajectories
    >>> topology = str(files("openmm_geomgnn.data") / "ala2-c7eq.pdb")
    >>> mdtraj.load(topology).save("one-frame.xtc")
    >>> _ = embed_trajectories(topology, ["one-frame.xtc"], "one-frame.zarr", workers=1)
    >>> store = Embeddings.open("one-frame.zarr")
    >>> len(store), store.lengths, store.spec.window
    (1, [1], 'all')
    >>> store.tokens(0)[:10].shape
    (1, 3, 4, 64)
    """

    def __init__(self, group: Any, path: PathLike) -> None:
        self._group = group
        self._arrays: dict[tuple[int, str], Any] = {}
        self.path = Path(path)
        attributes = group.attrs.asdict()
        self.settings = attributes["settings"]
        self.trajectories = attributes["trajectories"]

    # ------------------------------------------------------------------------------------------------------------ reading

    @classmethod
    def open(cls, path: PathLike, writable: bool = False) -> "Embeddings":
        """The store in a folder.

        Raises
        ------
        GeomGNNError
            If there is none, or it is of another kind or a newer version.
        """
        zarr = import_zarr()
        path = Path(path)
        if not path.is_dir():
            raise GeomGNNError(f"There is no store of embeddings {path}. Check the path, or make it with `geomgnn embed`.")
        try:
            group = zarr.open_group(path, mode="r+" if writable else "r", zarr_format=3)
        except Exception as error:  # Zarr raises whatever its reading of damaged metadata trips over
            raise GeomGNNError(
                f"The folder {path} is not a Zarr store ({reason(error)}). Give the folder that `geomgnn embed` wrote."
            ) from error
        attributes = group.attrs.asdict()
        if attributes.get("format") != FORMAT:
            raise GeomGNNError(f"{path} is a Zarr store, but not one of `geomgnn embed`. Give the folder that it wrote.")
        version = attributes.get("version")
        if type(version) is not int or not 1 <= version <= VERSION:
            raise GeomGNNError(
                f"{path} has version {version} of the format and this code reads up to version {VERSION}. Update "
                "openmm-geomgnn, or embed the trajectories again."
            )
        _check_attributes(path, attributes)
        store = cls(group, path)
        for step in range(version, VERSION):
            store.trajectories = MIGRATIONS[step](store.trajectories)
        return store

    def __len__(self) -> int:
        return len(self.trajectories)

    @property
    def lengths(self) -> list[int]:
        """Embedded frames of each trajectory."""
        return [entry["frames"] for entry in self.trajectories]

    def tokens(self, k: int) -> Any:
        """Tokens of trajectory k: a Zarr array (F, R, 4, H), of which slicing reads only the chunks it needs."""
        return self._array(k, "tokens")

    def positions(self, k: int) -> Any:
        """Positions of the selected atoms: a Zarr array (F, n, 3) in nm, whole molecules."""
        return self._array(k, "positions")

    def times(self, k: int) -> np.ndarray:
        """Times of the frames (F,) in ps; NaN where they are not known."""
        return self._all(k, "times")

    def _array(self, k: int, name: str) -> Any:
        if (k, name) not in self._arrays:  # opening one takes as long as reading a chunk
            self._arrays[k, name] = self._opened(k, name)
        return self._arrays[k, name]

    def _opened(self, k: int, name: str) -> Any:
        try:
            array = self._group[f"{k}/{name}"]
            shape = array.shape
        except Exception as error:  # as above
            raise self._damaged(k, f"{name} cannot be opened: {reason(error)}") from error
        frames = self.lengths[k]
        rows = -(-frames // self.tokens(k).chunks[0]) if name == "checksums" else frames
        if len(shape) != _DIMENSIONS[name] or shape[0] != rows:
            raise self._damaged(k, f"{name} has shape {shape} for {frames} frames")
        return array

    def _all(self, k: int, name: str) -> np.ndarray:
        try:
            return self._array(k, name)[:]
        except GeomGNNError:
            raise
        except Exception as error:  # what a codec raises over damaged bytes
            raise self._damaged(k, f"{name} cannot be read: {reason(error)}") from error

    def _damaged(self, k: int, how: str) -> GeomGNNError:
        return GeomGNNError(
            f"The embeddings of {self.trajectories[k]['name']} in {self.path} were changed or damaged after they were "
            f"written ({how}). Restore the store, or move it away and embed the trajectories again."
        )

    @property
    def spec(self) -> TokenSpec:
        """The TokenSpec that the tokens were made by."""
        return TokenSpec.from_metadata(self.settings)

    @property
    def encoder_source(self) -> str:
        """The encoder that the tokens were made by, as `Encoder.load` takes it."""
        return self.settings["encoder_source"]

    def chunks(self, k: int) -> list[range]:
        """The range of frames of each chunk of trajectory k."""
        frames, size = self.lengths[k], self.tokens(k).chunks[0]
        return [range(start, min(start + size, frames)) for start in range(0, frames, size)]

    def missing(self, k: int) -> list[int]:
        """Numbers of the chunks of trajectory k that are not there yet."""
        return np.flatnonzero(self._all(k, "checksums") == _PENDING).tolist()

    def check_molecule(self, table: ResidueTable, atoms: Sequence[str]) -> None:
        """Raise a GeomGNNError unless a residue table and names of atoms are those of the store."""
        check_same_molecule(self.settings["molecule"], table, f"the store {self.path.name}")
        if None in bonds_of(self.settings["molecule"]):
            warnings.warn(
                f"The store {self.path.name} is of an older version, which says nothing of bonds: that this is its molecule "
                "is seen by the names of residues and atoms only.",
                UserWarning,
                stacklevel=4,
            )
        if self.settings["atoms"] != atoms:
            raise GeomGNNError(
                f"The atoms of the topology are not in the order of those in {self.path}. Use the topology that it was made "
                f"with, {self.settings['topology']}."
            )

    def check_made_with(self, spec: TokenSpec, encoder: "Encoder", source: str) -> None:
        """Raise a GeomGNNError that names what differs, unless the tokens are those of a spec and an encoder.

        Parameters
        ----------
        spec : TokenSpec
            Its neighbours do not matter.
        encoder : Encoder
        source : str
            Where the encoder comes from, for the message.
        """
        there, here = self.spec.to_metadata(), spec.to_metadata()
        differing = [
            f"{name} {format_setting(there[name])} there, {format_setting(here[name])} here"
            for name in spec.differences(self.spec)
        ]
        if any(self.settings[name] != value for name, value in encoder_identity(encoder).items()):
            name, content = self.settings["encoder"], self.settings["encoder_hash"]
            differing.append(f"encoder {name} with hash {content} there, {source} here")
        if differing:
            raise GeomGNNError(
                f"{self.path} was made with other settings than the fit has: {'; '.join(differing)}. Leave these settings "
                "out of the fit, and it takes those of the store; or embed the trajectories with them."
            )

    def check(self, content: bool = False) -> None:
        """Raise a GeomGNNError unless every frame is there; with `content`, also read all and compare with the checksums."""
        for k, entry in enumerate(self.trajectories):
            missing, chunks = self.missing(k), self.chunks(k)
            if missing:
                frames = sum(len(chunks[c]) for c in missing)
                raise GeomGNNError(
                    f"{frames} of {entry['frames']} frames of {entry['name']} are not in {self.path} yet, the first is "
                    f"frame {chunks[missing[0]].start}. Run the same `geomgnn embed` again: it goes on where it stopped."
                )
            if content:
                self._check_content(k, entry, chunks)

    def _check_content(self, k: int, entry: dict[str, Any], chunks: Sequence[range]) -> None:
        checksums = self._all(k, "checksums")
        for number, frames in enumerate(chunks):
            try:
                parts = [self._array(k, name)[frames.start : frames.stop] for name in ("tokens", "positions", "times")]
                intact = _checksum(*parts) == checksums[number]
            except GeomGNNError:
                raise
            except Exception:  # what a codec raises over damaged bytes
                intact = False
            if not intact:
                raise GeomGNNError(
                    f"Frames {frames.start} to {frames.stop - 1} of {entry['name']} in {self.path} were changed or damaged "
                    "after they were written. Restore the store, or move it away and embed the trajectories again."
                )

    # ------------------------------------------------------------------------------------------------------------ writing

    @classmethod
    def create(cls, path: PathLike, settings: Mapping[str, Any]) -> "Embeddings":
        """A new store without trajectories.

        Raises
        ------
        GeomGNNError
            If something is there already.
        """
        zarr = import_zarr()
        path = Path(path)
        if path.exists() and (not path.is_dir() or not is_empty(path)):
            raise GeomGNNError(f"{path} exists already. Choose another output, or remove it.")
        path.parent.mkdir(parents=True, exist_ok=True)
        # through JSON, so that what was just made and what is read later are equal
        settings = json.loads(json.dumps(settings))
        attributes = {"format": FORMAT, "version": VERSION, "settings": settings, "trajectories": []}
        zarr.create_group(path, zarr_format=3, attributes={**attributes, "settings_checksum": _checksum_of(settings)})
        return cls.open(path, writable=True)

    def add(self, entry: dict[str, Any], tokens_shape: tuple[int, int, int], n_atoms: int, chunk: int | None = None) -> None:
        """Make room for one more trajectory.

        Parameters
        ----------
        entry : dict
            Its line in `trajectories`.
        tokens_shape : (R, 4, H)
        n_atoms : int
            Selected ones, n.
        chunk : int, optional
            Frames in a chunk; by default as many as make CHUNK_BYTES.
        """
        frames, dtype = entry["frames"], np.dtype(self.settings["dtype"])
        chunk = chunk or max(1, CHUNK_BYTES // (int(np.prod(tokens_shape)) * dtype.itemsize))
        chunk = max(1, min(chunk, frames))
        k = len(self.trajectories)
        # a group that was not entered in the list is what a killed process left
        group = self._group.create_group(str(k), overwrite=True)
        nan = float("nan")
        for name, shape, kind in (
            ("tokens", tuple(tokens_shape), dtype),
            ("positions", (n_atoms, 3), np.float32),
            ("times", (), np.float64),
        ):
            group.create_array(name, shape=(frames, *shape), chunks=(chunk, *shape), dtype=kind, fill_value=nan)
        group.create_array("checksums", shape=(-(-frames // chunk),), chunks=(1,), dtype=np.int64, fill_value=_PENDING)
        self._write_list([*self.trajectories, entry])

    def update(self, k: int, **facts: Any) -> None:
        """Note what is new of the file of trajectory k: another path, or fingerprint."""
        entry = {name: value for name, value in {**self.trajectories[k], **facts}.items() if name != "sampled"}
        self._write_list([entry if i == k else e for i, e in enumerate(self.trajectories)])

    def _write_list(self, trajectories: list[dict[str, Any]]) -> None:
        self._group.update_attributes({"trajectories": trajectories, "version": VERSION})
        self.trajectories = trajectories

    def write(self, k: int, number: int, tokens: np.ndarray, positions: np.ndarray, times: np.ndarray) -> None:
        """Write chunk `number` of trajectory k; safe beside writers of other chunks.

        Parameters
        ----------
        tokens : (C, R, 4, H) array
        positions : (C, n, 3) array
            nm.
        times : (C,) array
            ps.

        Raises
        ------
        GeomGNNError
            If tokens are not finite, or too large for the store's dtype.
        """
        frames = self.chunks(k)[number]
        dtype = np.dtype(self.settings["dtype"])
        self._check_range(tokens, dtype, frames, self.trajectories[k]["name"])
        parts = {
            "tokens": np.ascontiguousarray(tokens, dtype=dtype),
            "positions": np.ascontiguousarray(positions, dtype=np.float32),
            "times": np.ascontiguousarray(times, dtype=np.float64),
        }
        for name, part in parts.items():
            self._array(k, name)[frames.start : frames.stop] = part
        # last: it says that the rest is there
        self._array(k, "checksums")[number] = _checksum(*parts.values())

    @staticmethod
    def _check_range(tokens: np.ndarray, dtype: np.dtype, frames: range, name: str) -> None:
        largest = np.abs(tokens).max()
        if not np.isfinite(largest):
            bad = np.flatnonzero(~np.isfinite(tokens).all(axis=(1, 2, 3)))[0]
            raise GeomGNNError(
                f"The tokens of frame {frames[bad]} of {name} are not finite: look at that frame (coincident atoms, broken "
                "coordinates) and leave it out."
            )
        if largest > np.finfo(dtype).max:
            raise GeomGNNError(
                f"The tokens of {name} reach {largest:.4g}, beyond the largest {dtype} of {float(np.finfo(dtype).max):g}. "
                "Use --dtype float32."
            )


def encoder_identity(encoder: "Encoder") -> dict[str, Any]:
    """What makes encoders the same, whatever their names: {"encoder_hash", "encoder_settings"}, as JSON has them."""
    return {"encoder_hash": encoder.content_hash(), "encoder_settings": json.loads(json.dumps(encoder.settings))}


def _check_attributes(path: PathLike, attributes: dict[str, Any]) -> None:
    """Raise a GeomGNNError unless settings are as they were written, and the list of trajectories is one."""
    settings: Any = attributes.get("settings")
    trajectories: Any = attributes.get("trajectories")
    intact = isinstance(settings, dict) and all(
        isinstance(settings.get(name, ...), kind) for name, kind in _SETTINGS.items()
    )
    if intact and "settings_checksum" in attributes:  # older stores have none
        intact = attributes["settings_checksum"] == _checksum_of(settings)
    intact = intact and settings["dtype"] in DTYPES and isinstance(trajectories, list)
    for entry in trajectories if intact else ():
        intact = intact and isinstance(entry, dict)
        intact = intact and all(type(entry.get(name)) is kind for name, kind in _ENTRY.items()) and entry["frames"] > 0
    if not intact:
        raise GeomGNNError(
            f"{path} was changed or damaged after it was written: its settings or its list of trajectories are not those of "
            "`geomgnn embed`. Restore it, or move it away and embed the trajectories again."
        )


def _checksum_of(settings: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(settings, sort_keys=True).encode())


def _checksum(*parts: Any) -> int:
    value = 0
    for part in parts:
        value = zlib.crc32(np.ascontiguousarray(part).data.cast("B"), value)
    return value
