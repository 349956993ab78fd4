"""`geomgnn fit`: a collective variable from trajectories that exist."""

import mdtraj
import numpy as np

from openmm_geomgnn.cli.config import lag_in_frames
from openmm_geomgnn.cli.progress import say
from openmm_geomgnn.cli.workflow import describe, fit_settings, fit_with_progress
from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.windows import as_topology
from torchmdnet_ext.quiet import without_lines


def run_fit(fit):
    """Fit the CV that a `Fit` describes and write it; returns it."""
    topology = as_topology(fit.topology)
    trajectories = [_load(path, fit.topology, topology, fit.stride) for path in fit.trajectories]
    interval = _frame_interval(fit, trajectories)
    lag_in_frames(fit.cv.lag, interval)
    frames = sum(len(trajectory) for trajectory in trajectories)
    say(f"{frames} frames, {interval:g} ps apart, in {len(trajectories)} trajectories")
    cv = fit_with_progress(trajectories, topology, fit_settings(fit.cv, interval, fit.seed))
    cv.save(fit.output)
    say(describe(cv))
    say(f"written to {fit.output}")
    return cv


def _load(path, topology_path, topology, stride):
    try:
        with without_lines("dcdplugin)", 1):
            return mdtraj.load(str(path), top=topology, stride=stride)
    except (OSError, ValueError, RuntimeError, TypeError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise GeomGNNError(
            f"The trajectory {path} cannot be read with the topology {topology_path.name} ({reason}). Check that the file "
            "is complete and that both have the same atoms."
        ) from error


def _frame_interval(fit, trajectories):
    """Picoseconds between the frames that are used, from the settings or from the files."""
    if fit.frame_interval is not None:
        return fit.frame_interval * fit.stride
    intervals = {}
    for path, trajectory in zip(fit.trajectories, trajectories, strict=True):
        steps = np.diff(trajectory.time)
        if len(steps) == 0 or not steps.min() > 0 or np.ptp(steps) > 1e-3 * steps.max() + 1e-4:
            raise GeomGNNError(
                f"The times of the frames in {path.name} are not evenly spaced, so the lag time has no meaning there. Give "
                "frame_interval, or split the file where times jump."
            )
        intervals[path.name] = float(np.median(steps))
    if max(intervals.values()) - min(intervals.values()) > 1e-3 * max(intervals.values()):
        listed = ", ".join(f"{name} {value:g} ps" for name, value in intervals.items())
        raise GeomGNNError(f"The trajectories have different times between frames ({listed}). Fit those that agree.")
    # files hold times in float32
    return round(next(iter(intervals.values())), 4)
