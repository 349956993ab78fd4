"""Frames of trajectory files by number, of any format that mdtraj reads and of files larger than memory."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.files import Closing
from openmm_geomgnn.representation.formats import check_format, reason
from openmm_geomgnn.representation.trajectory_bytes import Extent, extent, times_at
from openmm_geomgnn.representation.trajectory_heads import check_heads, check_streams
from torchmdnet_ext.quiet import without_lines

if TYPE_CHECKING:
    import mdtraj
    import numpy as np

    from openmm_geomgnn.aliases import PathLike

WITH_TIMES = (".xtc", ".trr", ".h5")  # formats that always hold the times of their frames
# formats that hold the topology of their atoms
WITH_TOPOLOGY = (".pdb", ".gro", ".cif", ".mmcif", ".pdbx", ".mol2", ".h5", ".lh5", ".hdf5", ".gsd", ".hoomdxml", ".arc")
BLOCK_BYTES = 64 << 20  # of the coordinates of all atoms, read at a time
_DCD_LINES = ("dcdplugin)", " frames of size (")  # what mdtraj's reader of DCD files says
_SAMPLES, _SAMPLE_BYTES = 16, 64 << 10  # of a file, in fingerprints of stores of version 1


class TrajectoryFile(Closing):
    """A trajectory file whose frames can be read in any order. Use it as a context manager.

    XTC, TRR, DCD, NetCDF, HDF5 and XYZ files are read where the frames are; the formats without random access in mdtraj
    (PDB, GRO, LAMMPS and other text) are read once as a whole and must fit in memory.

    Parameters
    ----------
    path : path
    topology : mdtraj.Topology
        Of all atoms in the file. Files that hold a topology of their own are read with that one.
    allow_truncated : bool
        Take the whole frames of a file that ends too early, with a warning.

    Attributes
    ----------
    truncated : bool
        Whether the file ends too early.

    Raises
    ------
    GeomGNNError
        If the file cannot be read, is damaged, does not have the atoms of the topology, or ends too early.
    """

    def __init__(self, path: PathLike, topology: mdtraj.Topology, allow_truncated: bool = False) -> None:
        self.path = Path(path)
        self.topology = topology
        self.truncated = False
        self._handle: Any = None
        self._whole: Any = None
        self._frames = 0
        check_format(self.path)
        try:
            with _explained(self.path, topology):
                check_heads(self.path)
                self._open()
                found = None if self._handle is None else extent(self.path, self._handle, topology.n_atoms)
            if found is not None and found.truncated:
                self._cut(found, allow_truncated)
        except BaseException:
            self.close()
            raise

    def _cut(self, found: Extent, allow_truncated: bool) -> None:
        claimed = f" of the {found.claimed} that its header counts" if (found.claimed or 0) > found.whole else ""
        part = " and a part of another" if found.rest else ""
        what = f"The trajectory {self.path} ends too early: it holds {found.whole} whole frames{claimed}{part}."
        if not allow_truncated or found.whole == 0:
            advice = "" if found.whole == 0 else ", or take the whole frames with --allow-truncated (allow_truncated: true)"
            raise GeomGNNError(f"{what} Copy it again from where it was made{advice}.")
        warnings.warn(f"{what} They are used; what is missing is not.", UserWarning, stacklevel=3)
        self._frames, self.truncated = min(self._frames, found.whole), True

    def _open(self) -> None:
        import mdtraj

        with without_lines(_DCD_LINES, 1):
            try:
                self._handle = mdtraj.open(str(self.path))
                self._frames = len(self._handle)
                self._handle.seek(0)
                return
            except (AttributeError, NotImplementedError, TypeError):  # it has no length or no seek, or wants to know more
                self.close()
            except OSError:  # a format that mdtraj can only load, unless it has opened the file
                if self._handle is not None or not self.path.is_file():
                    raise
            # some hold the topology, which says what their atoms are: with another one mdtraj would not look at it
            own = self.path.name.lower().removesuffix(".gz").endswith(WITH_TOPOLOGY)
            self._whole = mdtraj.load(str(self.path), **({} if own else {"top": self.topology}))
            self._frames = len(self._whole)

    def __len__(self) -> int:
        return self._frames

    def blocks(self, start: int, stop: int, stride: int = 1, finite: bool = True) -> Iterator[mdtraj.Trajectory]:
        """Yield mdtraj.Trajectory pieces, a bounded amount of memory each, with the frames range(start, stop, stride).

        finite : bool
            Refuse frames with coordinates that are not finite numbers.

        Raises
        ------
        GeomGNNError
            If the file is damaged there or has other atoms.
        """
        import numpy as np

        frames = range(start, stop, stride)
        size = max(1, BLOCK_BYTES // (12 * max(1, self.topology.n_atoms)))
        for first in range(0, len(frames), size):
            numbers = frames[first : first + size]
            with _explained(self.path, self.topology):
                piece = self._read(numbers)
            if len(piece) != len(numbers):
                raise GeomGNNError(
                    f"{self.path.name} ends before frame {numbers[-1]}, although it is said to have {len(self)} frames: it "
                    "is truncated or damaged. Copy it again from where it was made."
                )
            if finite and not np.isfinite(piece.xyz).all():
                bad = numbers[int(np.flatnonzero(~np.isfinite(piece.xyz).all(axis=(1, 2)))[0])]
                raise GeomGNNError(
                    f"Frame {bad} of {self.path.name} has coordinates that are not finite numbers: the file is damaged, or "
                    "the simulation failed there. Copy it again from where it was made, or leave those frames out."
                )
            yield piece

    def _read(self, numbers: range) -> mdtraj.Trajectory:
        if self._whole is not None:
            return self._whole[numbers.start : numbers.stop : numbers.step]
        if self.path.suffix.lower() == ".xtc":
            offsets = self._handle.offsets[numbers.start : numbers.stop : numbers.step]
            check_streams(self.path, offsets, numbers.start, numbers.step)
        if len(numbers) > 1 and numbers.step > 1 and ".xyz" in self.path.suffixes:
            # after the last frame of a call mdtraj skips step - 1 more, and fails if the file breaks off in one of them
            return self._read_from(numbers[:-1]).join(self._read_from(numbers[-1:]), check_topology=False)
        return self._read_from(numbers)

    def _read_from(self, numbers: range) -> mdtraj.Trajectory:
        self._handle.seek(numbers.start)
        arguments = {"n_frames": len(numbers), "stride": numbers.step if len(numbers) > 1 and numbers.step > 1 else None}
        if hasattr(self._handle, "topology"):  # a format that holds it
            return self._handle.read_as_traj(**arguments)
        return self._handle.read_as_traj(self.topology, **arguments)

    def times(self) -> np.ndarray | None:
        """(F,) float64 times of all frames in ps, without reading them, where the format always holds them; else None."""
        if self._handle is None or not holds_times(self.path):
            return None
        with _explained(self.path, self.topology):
            if self.path.suffix.lower() == ".h5":
                times = self._handle.root.time[:].astype(float)
            else:
                times = times_at(self.path, self._handle.offsets)
        return times[: len(self)]

    def close(self) -> None:
        """Close the file. Safe to call twice."""
        if self._handle is not None:
            self._handle.close()
        self._handle = self._whole = None


def holds_times(path: PathLike) -> bool:
    """Whether the format of a trajectory file always holds the times of its frames, as its name ends."""
    return Path(path).suffix.lower() in WITH_TIMES


def load_trajectory(
    path: PathLike, topology: mdtraj.Topology, stride: int = 1, allow_truncated: bool = False
) -> mdtraj.Trajectory:
    """Every stride-th frame of a trajectory file as one mdtraj.Trajectory.

    The other arguments, and the errors, are those of `TrajectoryFile`.
    """
    import mdtraj

    with TrajectoryFile(path, topology, allow_truncated) as file:
        pieces = list(file.blocks(0, len(file), stride))
    if not pieces:
        raise GeomGNNError(f"The trajectory {path} has no frames. Leave it out.")
    return pieces[0] if len(pieces) == 1 else mdtraj.join(pieces, check_topology=False)


@contextmanager
def _explained(path: PathLike, topology: mdtraj.Topology) -> Iterator[None]:
    """What mdtraj raises over a file, as a GeomGNNError."""
    try:
        yield
    except GeomGNNError:
        raise
    except Exception as error:  # mdtraj's readers raise whatever they trip over
        raise GeomGNNError(
            f"The trajectory {path} cannot be read with a topology of {topology.n_atoms} atoms ({reason(error)}). Check "
            "that the file is complete and that both have the same atoms."
        ) from error


def fingerprint(path: PathLike) -> dict[str, Any]:
    """Size, time of the last change, and the hash of all bytes of a file: {"size", "mtime_ns", "sha256"}."""
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {**_stamp(path), "sha256": digest[:32]}


def _stamp(path: PathLike) -> dict[str, int]:
    status = os.stat(path)
    return {"size": status.st_size, "mtime_ns": status.st_mtime_ns}


def has_stamp(path: PathLike, known: Mapping[str, Any]) -> bool:
    """Whether a file has the size and time of a fingerprint, so that it need not be read again."""
    return _stamp(path) == {name: known.get(name) for name in ("size", "mtime_ns")}


def has_content(path: PathLike, known: Mapping[str, Any], now: Mapping[str, Any] | None = None) -> bool:
    """Whether a file has the content of a fingerprint; `now` is its own, where it is known already."""
    if os.path.getsize(path) != known["size"]:
        return False
    return (_sampled(path) if known.get("sampled") else (now or fingerprint(path))["sha256"]) == known["sha256"]


def _sampled(path: PathLike) -> str:
    """The hash of 16 blocks of a file, which is all that stores of version 1 have."""
    size, digest = os.path.getsize(path), hashlib.sha256()
    with open(path, "rb") as file:
        if size <= _SAMPLES * _SAMPLE_BYTES:
            digest.update(file.read())
        else:
            for k in range(_SAMPLES):
                file.seek(k * (size - _SAMPLE_BYTES) // (_SAMPLES - 1))
                digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()[:32]
