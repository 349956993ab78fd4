"""`geomgnn compute`: the values of a collective variable along trajectories, as a COLVAR file."""

from collections.abc import Callable
from typing import Any

import numpy as np

from openmm_geomgnn.aliases import PathLike
from openmm_geomgnn.cli.progress import bar, echo
from openmm_geomgnn.cli.settings.compute import Compute
from openmm_geomgnn.cv.base import Bound
from openmm_geomgnn.cv.network import CollectiveVariable
from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.files import atomic_write
from openmm_geomgnn.representation.selection import as_topology
from openmm_geomgnn.representation.trajectory_files import TrajectoryFile
from openmm_geomgnn.representation.trajectory_times import frame_interval
from openmm_geomgnn.sampling.colvar import ColvarWriter


def run_compute(settings: Compute) -> np.ndarray:
    """Write the COLVAR that a `Compute` describes; nothing is written before all trajectories have been read.

    Returns the rows (n, 1 + d) of the time in ps and the components; for several trajectories they are (n, 2 + d), with the
    number of the trajectory, counted from 0, in between: it is the column `walker`, as in a run.
    """
    topology = as_topology(settings.topology)
    bound: Bound = CollectiveVariable.load(settings.cv).bind(topology)
    several = len(settings.trajectories) > 1
    # all of them before any is computed, so that a wrong one is reported at once
    lengths = []
    for path in settings.trajectories:
        with TrajectoryFile(path, topology, settings.allow_truncated) as file:
            _times(file, settings)
            lengths.append(len(range(0, len(file), settings.stride)))
    parts: list[np.ndarray] = []
    with bar("Computing", "frames") as update:
        for number, path in enumerate(settings.trajectories):
            done = sum(map(len, parts))

            def advance(n: int, done: int = done) -> None:
                update(done + n, sum(lengths))

            times, values = _values(bound, path, topology, settings, advance)
            parts.append(np.column_stack([times, *[np.full(len(times), number)] * several, values]))
    rows = np.concatenate(parts)
    fields = ["time", *["walker"] * several, *(f"cv.{k}" for k in range(1, bound.dimension + 1))]
    with atomic_write(settings.output) as temporary, ColvarWriter(temporary, fields) as colvar:
        colvar.write(rows)
    for number, (path, length) in enumerate(zip(settings.trajectories, lengths, strict=True)):
        echo(f"{f'walker {number}: ' * several}{length} frames of {path}")
    for k, name in enumerate(fields[-bound.dimension :]):
        column = rows[:, len(fields) - bound.dimension + k]
        echo(f"{name}: {column.min():.4g} to {column.max():.4g}, mean {column.mean():.4g}")
    echo(f"written to {settings.output}")
    return rows


def _values(
    bound: Bound, path: PathLike, topology: Any, settings: Compute, progress: Callable[[int], None]
) -> tuple[np.ndarray, np.ndarray]:
    """Compute times (F,) in ps and values (F, d) of every stride-th frame of a trajectory file, read in bounded parts."""
    values = []
    with TrajectoryFile(path, topology, settings.allow_truncated) as file:
        times = _times(file, settings)
        for piece in file.blocks(0, len(file), settings.stride):
            try:
                values.append(bound.compute(piece))
            except GeomGNNError as error:
                raise GeomGNNError(f"{path}: {error}") from error
            progress(sum(map(len, values)))
    return times, np.concatenate(values)


def _times(file: TrajectoryFile, settings: Compute) -> np.ndarray:
    """Times (F,) of every stride-th frame in ps: those in the file, or counted from the first frame at 0."""
    if not len(file):
        raise GeomGNNError(f"The trajectory {file.path} has no frames. Leave it out.")
    given: Any = settings.frame_interval
    times = file.times()
    if times is None:
        times = given * np.arange(len(file))
    elif given is not None:
        frame_interval(file.path.name, times, given)  # raises an error if they contradict the settings
    return times[:: settings.stride]
