"""The growing files of a run, which can be cut back to a checkpoint: COLVAR, KERNELS and one DCD trajectory per walker."""

import json
import os
import struct
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
from openmm import Vec3, app, unit
from openmm.app import DCDFile

from openmm_geomgnn.aliases import PathLike
from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.files import Closing, sync_folder
from openmm_geomgnn.sampling.colvar import ColvarWriter, check_rows, truncate_colvar
from openmm_geomgnn.units import NM_TO_ANGSTROM

if TYPE_CHECKING:
    import mdtraj

    from openmm_geomgnn.sampling.walker import WalkerReport

_DCD_HEADER = 92  # bytes of the first record, with its two length marks
_DCD_DATE, _DCD_COMMENT = 180, 80  # the comment with the date, and its length
_DCD_COUNT, _DCD_LAST_STEP, _DCD_BOX = 8, 20, 48  # where the number of frames, the last step and the box flag are


@dataclass(frozen=True)
class Written:
    """How much of each file belongs to a checkpoint: rows of COLVAR and KERNELS, and frames of each walker."""

    rows: int = 0
    kernels: int = 0
    frames: int = 0


class Outputs(Closing):
    """The output files of a run in one folder.

    folder: folder of the run. topology: openmm.app.Topology of the trajectories. fields: the columns of COLVAR.
    kernel_fields: the columns of KERNELS, or None for a run that deposits no kernels. n_walkers: the number of
    trajectories. step: the outer step in ps. frame_interval: outer steps between frames; 0 for no trajectories. written:
    the extent of the files according to a checkpoint, to which they are cut back; by default new files are begun.

    Raises GeomGNNError if a file is shorter than the checkpoint says, or is of another kind.
    """

    def __init__(
        self,
        folder: PathLike,
        topology: app.Topology,
        fields: Sequence[str],
        kernel_fields: Sequence[str] | None,
        n_walkers: int,
        step: float,
        frame_interval: int,
        written: Written | None = None,
    ) -> None:
        folder = Path(folder)
        written = written or Written()
        self._rows, self._kernels, self._frames = written.rows, written.kernels, written.frames
        self.colvar = folder / "COLVAR"
        self.kernels = folder / "KERNELS" if kernel_fields else None
        self.trajectories = [trajectory_path(folder, walker) for walker in range(n_walkers if frame_interval else 0)]
        with ExitStack() as stack:
            self._colvar = stack.enter_context(_table(self.colvar, fields, written.rows))
            self._kernel_log: ColvarWriter | None = None
            if kernel_fields:
                self._kernel_log = stack.enter_context(_table(folder / "KERNELS", kernel_fields, written.kernels))
            self._dcd = [
                stack.enter_context(TrajectoryWriter(path, topology, step, frame_interval, written.frames))
                for path in self.trajectories
            ]
            self._stack = stack.pop_all()

    @property
    def written(self) -> Written:
        """The extent of what has been written so far, for a checkpoint."""
        return Written(self._rows, self._kernels, self._frames)

    def write(self, rows: np.ndarray, kernels: np.ndarray | None, reports: "Sequence[WalkerReport]") -> None:
        """Append a block: rows (n, n_fields), kernels (k, n_kernel_fields) or None, and the frames of the reports."""
        if len(rows):
            self._colvar.write(rows)
            self._rows += len(rows)
        if kernels is not None and len(kernels):
            cast(ColvarWriter, self._kernel_log).write(kernels)
            self._kernels += len(kernels)
        for dcd, report in zip(self._dcd, reports, strict=bool(self._dcd)):
            dcd.write(report.frames, report.boxes)
        if self._dcd:
            self._frames += len(reports[0].frames)

    def sync(self) -> None:
        """Wait until everything written is on the disk, so that a checkpoint may rely on it."""
        for file in (self._colvar, self._kernel_log, *self._dcd):
            if file is not None:
                file.sync()
        sync_folder(self.colvar.parent)

    def close(self) -> None:
        """Close all files."""
        self._stack.close()


def trajectory_path(folder: PathLike, walker: int) -> Path:
    """The trajectory of a walker in the folder of its run."""
    return Path(folder) / f"trajectory.{walker}.dcd"


def cut_back(folder: PathLike, written: Written) -> None:
    """Cut the files of a run back to their extent in a checkpoint; files that are not longer are left alone."""
    folder = Path(folder)
    for name, rows in (("COLVAR", written.rows), ("KERNELS", written.kernels)):
        if (folder / name).exists():
            truncate_colvar(folder / name, rows=rows)
    for path in folder.glob("trajectory.*.dcd"):
        truncate_dcd(path, written.frames)


def _table(path: PathLike, fields: Sequence[str], rows: int) -> ColvarWriter:
    if rows:
        truncate_colvar(path, rows=rows)
    return ColvarWriter(path, fields, append=rows > 0)


class TrajectoryWriter(Closing):
    """Appends frames to a DCD file.

    path: the file. topology: openmm.app.Topology, with a box if the system is periodic. step: ps. interval: steps between
    frames. frames: the number of frames to keep of an existing file; 0 begins a new one.
    """

    def __init__(self, path: PathLike, topology: app.Topology, step: float, interval: int, frames: int = 0) -> None:
        if frames:
            truncate_dcd(path, frames)
        self._file = Path(path).open("r+b" if frames else "w+b")
        self._dcd = DCDFile(self._file, topology, step, firstStep=interval, interval=interval, append=frames > 0)
        if not frames:
            # the same frames make the same file
            self._file.seek(_DCD_DATE)
            self._file.write(b"by openmm-geomgnn".ljust(_DCD_COMMENT))
            self._file.seek(0, os.SEEK_END)

    def write(self, frames: np.ndarray, boxes: np.ndarray | None = None) -> None:
        """Append frames (n, N, 3) in nm with their boxes (n, 3, 3) in nm, or None."""
        for i, frame in enumerate(frames):
            self._dcd.writeModel(frame, periodicBoxVectors=None if boxes is None else _quantity(boxes[i]))

    def sync(self) -> None:
        """Wait until everything written is on the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _quantity(box: np.ndarray) -> unit.Quantity:
    return [Vec3(*row) for row in box.tolist()] * unit.nanometer


@dataclass(frozen=True, eq=False)
class Frames:
    """Frames of a trajectory.

    xyz: (n, N, 3) float32 in nm, with molecules as wrapped by the box. boxes: (n, 3, 3) in nm, vectors as rows, or None if
    the system is not periodic.
    """

    xyz: np.ndarray
    boxes: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.xyz)

    def trajectory(self, topology: "mdtraj.Topology", times: np.ndarray | None = None) -> "mdtraj.Trajectory":
        """Make an mdtraj.Trajectory with boxes. topology: mdtraj.Topology. times: (n,) in ps."""
        import mdtraj

        trajectory = mdtraj.Trajectory(self.xyz, topology, time=times)
        if self.boxes is not None:
            trajectory.unitcell_vectors = self.boxes
        return trajectory


def read_dcd(path: PathLike, count: int | None = None) -> Frames:
    """Read the `Frames` of a DCD file that OpenMM wrote.

    Parameters
    ----------
    path : path
    count : int, optional
        Number of frames to read, from a file that may be growing; by default as many as its header says.

    Raises
    ------
    GeomGNNError
        If it is not such a file, or has fewer frames.
    """
    with _open_dcd(path) as file:
        layout = _layout(file, path)
        record = np.dtype([("mark", "<i4"), ("x", "<f4", layout.n_atoms), ("end", "<i4")])
        box = [("mark", "<i4"), ("cell", "<f8", 6), ("end", "<i4")] if layout.box else []
        frames = np.fromfile(file, np.dtype([("box", box), ("xyz", record, 3)]), -1 if count is None else count)
        over = os.fstat(file.fileno()).st_size - file.tell()
    if count is not None and len(frames) < count:
        raise GeomGNNError(
            f"{path} holds {len(frames)} whole frames of the {count} that the run has written: it was cut or damaged. "
            "Restore it, or start again."
        )
    if count is None and (len(frames) != layout.n_frames or over):
        raise GeomGNNError(
            f"The header of {path} counts {layout.n_frames} frames, but the file holds {len(frames)}"
            f"{' and a part of another' if over else ''}: it was cut or damaged. Restore it, or start again."
        )
    axes = frames["xyz"]
    if len(frames) and not all((axes[mark] == 4 * layout.n_atoms).all() for mark in ("mark", "end")):
        bad = np.flatnonzero(~((axes["mark"] == 4 * layout.n_atoms) & (axes["end"] == 4 * layout.n_atoms)).all(axis=1))
        raise GeomGNNError(f"{path} is damaged from frame {bad[0]} on. Restore it, or start again.")
    # a copy in the usual order: the file holds all x, then all y, then all z
    xyz = np.ascontiguousarray(axes["x"].transpose(0, 2, 1)) / np.float32(NM_TO_ANGSTROM)
    return Frames(xyz, _box_vectors(frames["box"]["cell"]) if layout.box else None)


def read_description(path: Path, trajectory: Path) -> dict[str, Any]:
    """Read the JSON file that says how a complete trajectory was made.

    Raises GeomGNNError if it is damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise GeomGNNError(
            f"{path} cannot be read ({error}): it is damaged. Remove it, and {trajectory.name} will be made again."
        ) from error


def _box_vectors(cells: np.ndarray) -> np.ndarray:
    """Compute box vectors (n, 3, 3) in nm from OpenMM's a, cos(gamma), b, cos(beta), cos(alpha), c in angstrom."""
    a, cos_gamma, b, cos_beta, cos_alpha, c = cells.T
    boxes = np.zeros((len(cells), 3, 3))
    sin_gamma = np.sqrt(1.0 - cos_gamma**2)
    boxes[:, 0, 0] = a
    boxes[:, 1, 0], boxes[:, 1, 1] = b * cos_gamma, b * sin_gamma
    boxes[:, 2, 0], boxes[:, 2, 1] = c * cos_beta, c * (cos_alpha - cos_beta * cos_gamma) / sin_gamma
    boxes[:, 2, 2] = np.sqrt(c**2 - boxes[:, 2, 0] ** 2 - boxes[:, 2, 1] ** 2)
    return boxes / NM_TO_ANGSTROM


def truncate_dcd(path: PathLike, frames: int) -> None:
    """Cut a DCD file that OpenMM wrote back to its first `frames` frames.

    Raises GeomGNNError if it has fewer, or is not such a file.
    """
    with _open_dcd(path, "r+b") as file:
        layout = _layout(file, path)
        size = _size(file, path, layout, frames)
        if file.seek(0, os.SEEK_END) == size and layout.n_frames == frames:
            return
        file.truncate(size)
        file.seek(_DCD_COUNT)
        file.write(struct.pack("<i", frames))
        file.seek(_DCD_LAST_STEP)
        file.write(struct.pack("<i", layout.first + (frames - 1) * layout.interval))


def check_outputs(folder: PathLike, written: Written, n_walkers: int) -> None:
    """Raise a GeomGNNError if a file of a run holds less than a checkpoint expects, before any of them is cut back.

    folder: folder of the run. written: a `Written`. n_walkers: the number of walkers that write trajectories.
    """
    for name, rows in (("COLVAR", written.rows), ("KERNELS", written.kernels)):
        if rows:
            check_rows(Path(folder) / name, rows)
    for walker in range(n_walkers if written.frames else 0):
        check_frames(trajectory_path(folder, walker), written.frames)


def check_frames(path: PathLike, frames: int) -> None:
    """Raise a GeomGNNError if a DCD file holds fewer frames than a checkpoint expects."""
    with _open_dcd(path) as file:
        _size(file, path, _layout(file, path), frames)


def _size(file: IO[bytes], path: PathLike, layout: "_Layout", frames: int) -> int:
    """Compute the length in bytes of a DCD file with this many frames. Raises GeomGNNError if it is shorter."""
    size = layout.start + frames * layout.frame
    if file.seek(0, os.SEEK_END) < size:
        raise GeomGNNError(
            f"{path} is shorter than the {frames} frames that the checkpoint counts: it was cut, or belongs to another run. "
            "Restore it, or start a new run in another folder."
        )
    return size


class _Layout(NamedTuple):
    """Layout of a DCD file: bytes before the first frame, of a frame and of its box; the frames that its header counts."""

    start: int
    frame: int
    box: int
    n_frames: int
    n_atoms: int
    first: int
    interval: int


def _open_dcd(path: PathLike, mode: str = "rb") -> IO[bytes]:
    try:
        return Path(path).open(mode)
    except OSError as error:
        raise GeomGNNError(f"Cannot open the trajectory {path}: {error.strerror}. Restore it, or start again.") from error


def _layout(file: IO[bytes], path: PathLike) -> _Layout:
    """Read the header; the file is left at its first frame."""
    head = file.read(_DCD_HEADER)
    damaged = GeomGNNError(f"{path} is not a DCD trajectory: it was damaged or replaced. Restore it, or start again.")
    if len(head) < _DCD_HEADER or head[4:8] != b"CORD" or struct.unpack_from("<i", head)[0] != 84:
        raise damaged
    n_frames, first, interval = struct.unpack_from("<iii", head, _DCD_COUNT)
    box = 56 if struct.unpack_from("<i", head, _DCD_BOX)[0] == 1 else 0
    try:
        (comments,) = struct.unpack("<i", file.read(4))
        file.seek(comments + 8, os.SEEK_CUR)
        (n_atoms,) = struct.unpack("<i", file.read(4))
        start = file.seek(4, os.SEEK_CUR)
    except (struct.error, OSError, ValueError) as error:  # it ends there, or points before its beginning
        raise damaged from error
    size = os.fstat(file.fileno()).st_size
    if comments < 0 or n_frames < 0 or n_atoms < 1 or start > size or (n_frames and 12 * n_atoms > size):
        raise damaged
    return _Layout(start, box + 3 * (8 + 4 * n_atoms), box, n_frames, n_atoms, first, interval)
