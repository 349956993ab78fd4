"""Trajectories of biased simulations with the bias of every frame, to fit a CV to."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mdtraj
import numpy as np

from openmm_geomgnn.analysis.frames import check_times, frame_rows, row_interval, total_bias, transient
from openmm_geomgnn.cli.first_frames import load_trajectories
from openmm_geomgnn.cli.names import PROTOCOL
from openmm_geomgnn.cli.results import read_results
from openmm_geomgnn.cli.settings.biased import BiasedRuns
from openmm_geomgnn.cli.settings.yaml_files import load_protocol
from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.koopman import normalised_biases
from openmm_geomgnn.representation.trajectory_files import holds_times
from openmm_geomgnn.representation.trajectory_times import common_frame_interval
from openmm_geomgnn.sampling.colvar import column, read_colvar, split_walkers
from openmm_geomgnn.units import BOLTZMANN

_KCAL = 4.184
_DISCARDED = 0.1  # of a simulation of which no report says how much to leave out


@dataclass(frozen=True, eq=False)
class BiasedTrajectory:
    """One walker, or one file, of a biased simulation.

    Attributes
    ----------
    name : str
    trajectory : mdtraj.Trajectory
    bias : (F,) ndarray
        kJ/mol that acted on every frame.
    frame_interval : float
        ps.
    temperature : float
        K.
    """

    name: str
    trajectory: mdtraj.Trajectory
    bias: np.ndarray
    frame_interval: float
    temperature: float


def read_biased(entries: Sequence[BiasedRuns], topology: Any, selection: str | None = None) -> list[BiasedTrajectory]:
    """Read biased simulations; the biases of each entry, whose walkers share one bias, are made comparable with others.

    Parameters
    ----------
    entries : list of BiasedRuns
    topology : mdtraj.Topology
        Of the molecule that is fitted to.
    selection : str, optional
        The atoms whose first frames are checked.

    Raises
    ------
    GeomGNNError
        If a file is missing or damaged, a frame has no row in COLVAR, or a run is of another molecule.
    """
    found = []
    for entry in entries:
        walkers = _of_a_run(entry, topology) if entry.run is not None else _of_files(entry, topology, selection)
        biases = normalised_biases([one.bias for one in walkers], BOLTZMANN * walkers[0].temperature)
        found += [replace(one, bias=bias) for one, bias in zip(walkers, biases, strict=True)]
    return found


def _of_a_run(entry: BiasedRuns, topology: Any) -> list[BiasedTrajectory]:
    folder: Any = entry.run
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # said when it was begun
        protocol = load_protocol(folder / PROTOCOL)
    protocol = protocol.model_copy(update={"output": folder})  # it may have been moved
    results = read_results(protocol)
    if results.biased[0].n_atoms != topology.n_atoms:
        raise GeomGNNError(
            f"The run in {folder} is of {results.biased[0].n_atoms} atoms, but topology has {topology.n_atoms}: they are "
            "not the same system."
        )
    walkers = split_walkers(results.colvar)
    bias = total_bias(walkers)
    discard = entry.discard
    if discard is None:
        discard = max(protocol.settling(results.done), transient([results.done], protocol.analysis.discard, None))
    schedule = protocol.schedule
    found = []
    for number, (frames, run) in enumerate(zip(results.frame_times, results.biased, strict=True)):
        rows = frame_rows(walkers[number]["time"], frames, number)
        name = f"{folder.name}, walker {number}"
        interval = schedule.frame_interval * schedule.bias_step
        found.append(_kept(name, run, frames, bias[number][rows], interval, protocol.system.temperature, discard))
    return found


def _of_files(entry: BiasedRuns, topology: Any, selection: str | None) -> list[BiasedTrajectory]:
    files: Any = entry.files
    colvars = [read_colvar(path) for path in entry.colvar or ()]
    trajectories = load_trajectories(files, topology, selection)
    walkers = [split_walkers(colvar) for colvar in colvars]
    rows = [walker for one in walkers for walker in one]
    for path, one in zip(entry.colvar or (), walkers, strict=True):
        for number, walker in enumerate(one):
            column(walker, "time", path)
            check_times(walker["time"], number)
    if len(rows) == 1 < len(files):
        timeless = [path for path in files if not holds_times(path)]
        if timeless:
            raise GeomGNNError(
                f"There are {len(files)} trajectories for the rows of one walker, and {Path(timeless[0]).name} may not hold "
                "the times of its frames, so it is not known which rows are its own. Join the pieces of the walker first "
                "(mdconvert -o joined.dcd), or convert them to XTC with their times."
            )
        rows = rows * len(files)
    if len(rows) != len(files):
        raise GeomGNNError(
            f"{(entry.colvar or ('COLVAR',))[0]} has rows of {len(rows)} walkers, but there are {len(files)} trajectories: "
            "give one of each."
        )
    found = []
    for number, (path, trajectory, colvar) in enumerate(zip(files, trajectories, rows, strict=True)):
        times, interval = _times(entry, path, trajectory)
        bias = total_bias([colvar], entry.bias)[0] * (_KCAL if entry.energy_unit == "kcal/mol" else 1.0)
        # what goes on after the last row, or before the first, has no bias
        margin = 0.5 * row_interval([colvar["time"]])
        there = (times >= colvar["time"][0] - margin) & (times <= colvar["time"][-1] + margin)
        if not there.any():
            raise GeomGNNError(
                f"The frames of {path} are from {times[0]:g} to {times[-1]:g} ps, but COLVAR has rows from "
                f"{colvar['time'][0]:g} to {colvar['time'][-1]:g} ps: they do not belong together, or start says "
                "the wrong time."
            )
        chosen = np.flatnonzero(there)
        at = frame_rows(colvar["time"], times[chosen], number)
        discard = _DISCARDED * float(times[chosen][-1] - times[chosen][0]) if entry.discard is None else entry.discard
        temperature = 300.0 if entry.temperature is None else entry.temperature
        found.append(_kept(Path(path).name, trajectory[chosen], times[chosen], bias[at], interval, temperature, discard))
    return found


def _times(entry: BiasedRuns, path: Any, trajectory: mdtraj.Trajectory) -> tuple[np.ndarray, float]:
    """Times of the frames and the time between them, ps."""
    if holds_times(path):
        times = trajectory.time.astype(np.float64)
        return times, common_frame_interval({Path(path).name: times}, entry.frame_interval)
    if entry.frame_interval is None:
        raise GeomGNNError(
            f"{Path(path).name} may not hold the times of its frames: give frame_interval, and start, the time of the first "
            "frame, if that is not one frame_interval."
        )
    start = entry.frame_interval if entry.start is None else entry.start
    return start + entry.frame_interval * np.arange(len(trajectory)), entry.frame_interval


def _kept(
    name: str,
    trajectory: mdtraj.Trajectory,
    times: np.ndarray,
    bias: np.ndarray,
    interval: float,
    temperature: float,
    discard: float,
) -> BiasedTrajectory:
    """The frames later than `discard` ps after the first."""
    kept = np.flatnonzero(times - times[0] >= discard - 1e-6)
    if len(kept) < 2:
        raise GeomGNNError(
            f"Only {len(kept)} frames of {name} are later than the first {discard:g} ps, which are left out. Discard less."
        )
    return BiasedTrajectory(name, trajectory[kept], bias[kept], interval, temperature)
