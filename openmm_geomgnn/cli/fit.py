"""`geomgnn fit`: a collective variable from trajectories that exist."""

import os
from dataclasses import replace

import mdtraj
import numpy as np

from openmm_geomgnn.cli.config import lag_in_frames
from openmm_geomgnn.cli.folder import input_files
from openmm_geomgnn.cli.progress import say
from openmm_geomgnn.cli.workflow import describe, fit_settings, fit_with_progress
from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.formats import check_format, reason
from openmm_geomgnn.locks import locked
from openmm_geomgnn.selection import as_topology
from openmm_geomgnn.store import Embeddings
from torchmdnet_ext.quiet import without_lines


def run_fit(fit):
    """Fit the CV that a `Fit` describes and write it; returns it.

    Raises GeomGNNError when data or settings do not suffice, the output is one of the inputs, or another process makes it.
    """
    if os.path.realpath(fit.output) in map(os.path.realpath, input_files(fit)):
        raise GeomGNNError(f"output is {fit.output}, which the fit itself needs. Give the CV a file of its own.")
    with locked(fit.output, folder=False):
        return _fit(fit)


def _fit(fit):
    topology = as_topology(fit.topology)
    if fit.embeddings is None:
        trajectories = [load_trajectory(path, fit.topology, topology, fit.stride) for path in fit.trajectories]
        lengths = [len(trajectory) for trajectory in trajectories]
        times = [(path.name, part.time) for path, part in zip(fit.trajectories, trajectories, strict=True)]
    else:
        trajectories = Embeddings.open(fit.embeddings)
        lengths = trajectories.lengths
        times = [(entry["name"], trajectories.times(k)) for k, entry in enumerate(trajectories.trajectories)]
    interval = _frame_interval(fit, times)
    lag_in_frames(fit.cv.lag, interval)
    say(f"{sum(lengths)} frames, {interval:g} ps apart, in {len(lengths)} trajectories")
    settings = fit_settings(fit.cv, interval, fit.seed)
    if fit.embeddings is not None:
        stored = {name: value for name, value in trajectories.token_settings.items() if name not in fit.cv.model_fields_set}
        settings = replace(settings, **stored)
    cv = fit_with_progress(trajectories, topology, settings)
    cv.save(fit.output)
    for line in describe(cv):
        say(line)
    say(f"written to {fit.output}")
    return cv


def load_trajectory(path, topology_path, topology, stride):
    """Every stride-th frame of a trajectory file, whose atoms are those of `topology`, read from `topology_path`.

    Raises GeomGNNError when the file cannot be read or has other atoms.
    """
    check_format(path)
    try:
        with without_lines("dcdplugin)", 1):
            return mdtraj.load(str(path), top=topology, stride=stride)
    except Exception as error:  # mdtraj's readers raise whatever they trip over
        raise GeomGNNError(
            f"The trajectory {path} cannot be read with the topology {topology_path.name} ({reason(error)}). Check that "
            "the file is complete and that both have the same atoms."
        ) from error


def _frame_interval(fit, times):
    """Picoseconds between the frames that are used, from the settings, or from `times`: (name, (F,) array) of each file."""
    if fit.frame_interval is not None:
        return fit.frame_interval * fit.stride
    intervals = {}
    for name, values in times:
        if np.isnan(values).any():
            raise GeomGNNError(
                f"{fit.embeddings} does not know the times of the frames of {name}: give frame_interval, the time between "
                "two frames in the store."
            )
        steps = np.diff(values)
        if len(steps) == 0 or not steps.min() > 0 or np.ptp(steps) > 1e-3 * steps.max() + 1e-4:
            raise GeomGNNError(
                f"The times of the frames in {name} are not evenly spaced, so the lag time has no meaning there. Give "
                "frame_interval, or split the file where times jump."
            )
        intervals[name] = float(np.median(steps))
    if max(intervals.values()) - min(intervals.values()) > 1e-3 * max(intervals.values()):
        listed = ", ".join(f"{name} {value:g} ps" for name, value in intervals.items())
        raise GeomGNNError(f"The trajectories have different times between frames ({listed}). Fit those that agree.")
    # files hold times in float32
    return round(next(iter(intervals.values())), 4)
