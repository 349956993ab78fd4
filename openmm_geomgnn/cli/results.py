"""The results in the folder of a run, read, counted and matched before they are analysed."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mdtraj
import numpy as np

from openmm_geomgnn.aliases import PathLike
from openmm_geomgnn.cli.names import COMPARISON, CV_FILE, TOPOLOGY
from openmm_geomgnn.cli.settings.protocol import Protocol
from openmm_geomgnn.cv.network import CollectiveVariable
from openmm_geomgnn.cv.students.cv import StudentCV
from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.representation.selection import as_topology
from openmm_geomgnn.sampling.checkpoint import find_checkpoint, load_checkpoint
from openmm_geomgnn.sampling.colvar import column, read_colvar
from openmm_geomgnn.sampling.outputs import read_dcd, trajectory_path

_COMPARISON_FRAME = 1.0  # ps between frames of the unbiased runs that crossings are compared with
_COMPARED_FRAMES = 16  # of each walker, whose CV is computed and compared with COLVAR
_CV_TOLERANCE = 0.05  # of the CV's standard deviation: its rounding errors are below, the motion from row to row is above


@dataclass(frozen=True, eq=False)
class Results:
    """The consistent results of a run.

    cv: the CollectiveVariable. colvar: the columns of COLVAR. biased: mdtraj trajectories, one per walker, at frame_times,
    a list of (T,) in ps. unbiased: trajectories for comparison, comparison_step ps between frames. done, planned: ps of each
    walker. compared, to_compare: ps of all unbiased runs.
    """

    cv: CollectiveVariable | StudentCV
    colvar: dict
    biased: list
    frame_times: list
    unbiased: list
    comparison_step: float
    done: float
    planned: float
    compared: float
    to_compare: float

    @property
    def complete(self) -> bool:
        """Whether the run is finished."""
        return not self.missing

    @property
    def missing(self) -> str:
        """The unfinished parts of the run in words; "" if it is complete."""
        parts = []
        if self.done < self.planned * (1 - 1e-9):
            parts.append(f"{self.done:g} of {self.planned:g} ps of each biased walker are done")
        if self.compared < self.to_compare * (1 - 1e-9):
            parts.append(f"{self.compared:g} of {self.to_compare:g} ps of the unbiased comparison are done")
        return " and ".join(parts)


def comparison_frame(protocol: Protocol) -> int:
    """MD steps between frames of the unbiased runs with which crossings are compared."""
    return max(1, protocol.md_steps(_COMPARISON_FRAME))


def comparison_runs(folder: Path) -> list[Path]:
    """Paths of the trajectories of these runs."""
    return sorted((folder / COMPARISON).glob("trajectory.*.dcd"))


def read_results(protocol: Protocol) -> Results:
    """Read the `Results` in a protocol's folder, of a finished or an unfinished run.

    An unfinished run is read up to its last checkpoint. Raises GeomGNNError if there are no results yet, or files do not
    belong together: COLVAR or a trajectory is truncated, rows are missing or have other times, or the CV of a frame differs
    from the one in its row.
    """
    folder, schedule = protocol.output, protocol.schedule
    missing = [name for name in (CV_FILE, "COLVAR") if not (folder / name).exists()]
    if missing:
        raise GeomGNNError(f"There is no {missing[0]} in {folder}: the run is not done. Go on with it by `geomgnn run`.")
    cv, topology = CollectiveVariable.load(folder / CV_FILE), as_topology(folder / TOPOLOGY)
    colvar, step, n_frames = _rows(protocol)
    biased = [_frames(trajectory_path(folder, k), topology, n_frames) for k in range(protocol.run.walkers)]
    times = np.arange(1, n_frames + 1) * schedule.frame_interval * schedule.bias_step
    _check_cv(cv, colvar, biased, schedule.frame_interval // schedule.colvar_interval, times)
    unbiased = [_frames(path, topology) for path in comparison_runs(folder)]
    frame = comparison_frame(protocol) * protocol.system.timestep
    # what is left of a frame at the end of each run is not written
    short = protocol.comparison_length - frame * sum(len(run) for run in unbiased)
    return Results(
        cv=cv,
        colvar=colvar,
        biased=biased,
        frame_times=[times] * len(biased),
        unbiased=unbiased,
        comparison_step=frame,
        done=step * schedule.bias_step,
        planned=schedule.length * schedule.bias_step,
        compared=protocol.comparison_length - (0.0 if short < frame * protocol.run.walkers else short),
        to_compare=protocol.comparison_length,
    )


def _rows(protocol: Protocol) -> tuple[dict[str, np.ndarray], int, int]:
    """Read the columns of COLVAR, the number of outer steps, and the number of frames of each walker by then."""
    folder, schedule, walkers = protocol.output, protocol.schedule, protocol.run.walkers
    checkpoint = find_checkpoint(folder)
    counted = None if checkpoint is None else load_checkpoint(checkpoint)
    with warnings.catch_warnings():
        # a run that is active may have written half a line; missing rows are counted below
        warnings.simplefilter("ignore")
        colvar = read_colvar(folder / "COLVAR")
    n_rows = there = len(column(colvar, "time", folder / "COLVAR"))
    if counted is not None:
        n_rows = counted.written.rows
    if there < n_rows:
        raise GeomGNNError(
            f"{folder / 'COLVAR'} has {there} whole rows, but the run has written {n_rows}: the file was cut. Restore it, "
            "or run the protocol again in another folder."
        )
    if n_rows < 2 * walkers:
        raise GeomGNNError(f"The run in {folder} has written {n_rows} rows of COLVAR so far, too few for a report.")
    colvar = {name: values[:n_rows] for name, values in colvar.items()}
    _check_times(colvar, folder / "COLVAR", walkers, schedule.colvar_interval * schedule.bias_step)
    if counted is not None:
        return colvar, counted.step, counted.written.frames
    step = n_rows // walkers * schedule.colvar_interval
    # a run ends with a row, or before the next one is due
    done = schedule.length if 0 < schedule.length - step < schedule.colvar_interval else step
    return colvar, done, step // schedule.frame_interval


def _check_times(colvar: Mapping[str, np.ndarray], path: PathLike, walkers: int, interval: float) -> None:
    """Raise a GeomGNNError unless every walker has exactly one row at each multiple of the interval."""
    expected = np.repeat(np.arange(1, len(colvar["time"]) // walkers + 2) * interval, walkers)[: len(colvar["time"])]
    numbers = np.arange(len(expected)) % walkers
    wrong = ~np.isclose(colvar["time"], expected, rtol=1e-6, atol=1e-9) | (colvar.get("walker", numbers) != numbers)
    if not wrong.any() and len(expected) % walkers == 0:
        return
    row = int(np.argmax(wrong)) if wrong.any() else len(expected) - 1
    walker = colvar["walker"][row] if "walker" in colvar else 0
    raise GeomGNNError(
        f"Row {row + 1} of {path} is of walker {walker:g} at {colvar['time'][row]:g} ps, where walker {numbers[row]} at "
        f"{expected[row]:g} ps is due, of {walkers} walkers: rows are missing, or written twice, or not of this protocol. "
        "Restore the file, or run the protocol again in another folder."
    )


def _frames(path: PathLike, topology: Any, n_frames: int | None = None) -> mdtraj.Trajectory:
    """Read the first n_frames of a trajectory; by default as many as its header counts."""
    frames = read_dcd(path, n_frames)
    if frames.xyz.shape[1] != topology.n_atoms:
        raise GeomGNNError(
            f"{path} has {frames.xyz.shape[1]} atoms and {TOPOLOGY} {topology.n_atoms}: one of them belongs to something "
            "else. Restore it, or run the protocol again in another folder."
        )
    bad = np.flatnonzero(~np.isfinite(frames.xyz).all(axis=(1, 2)))
    if len(bad):
        raise GeomGNNError(f"Frame {bad[0] + 1} of {path} is not finite: the file is damaged. Restore it.")
    return frames.trajectory(topology)


def _check_cv(
    cv: Any, colvar: Mapping[str, np.ndarray], biased: Sequence[mdtraj.Trajectory], rows_per_frame: int, times: Any
) -> None:
    """Raise a GeomGNNError unless the CV of some frames of each walker agrees with their rows."""
    if len(times) == 0:
        return
    names = [f"cv.{k + 1}" for k in range(cv.dimension)]
    written = np.stack([column(colvar, name) for name in names], axis=1).reshape(-1, len(biased), len(names))
    picked = np.unique(np.linspace(0, len(times) - 1, _COMPARED_FRAMES).round().astype(int))
    rows = (picked + 1) * rows_per_frame - 1
    tolerance = _CV_TOLERANCE * written.reshape(-1, len(names)).std(axis=0) + 1e-3
    bound = cv.bind(biased[0].topology, engine="eager")
    for number, run in enumerate(biased):
        off = np.abs(bound.compute(run[picked]) - written[rows, number]) - tolerance
        worst, component = np.unravel_index(np.argmax(off), off.shape)
        if not off[worst, component] <= 0:
            raise GeomGNNError(
                f"Frame {picked[worst] + 1} of trajectory.{number}.dcd, at {times[picked[worst]]:g} ps, does not belong to "
                f"its row of COLVAR: {names[component]} is {written[rows[worst], number, component]:.4g} there, which is "
                f"not what the CV in {CV_FILE} is for its coordinates. One of the three files is damaged or of another run: "
                "restore it, or run the protocol again in another folder."
            )
