"""Whether the times of a trajectory's frames are those of one continuous trajectory."""

from collections.abc import Mapping

import numpy as np

from openmm_geomgnn.errors import GeomGNNError


def common_frame_interval(times: Mapping[str, np.ndarray | None], given: float | None = None) -> float:
    """The time between the frames of trajectories that agree on it, ps.

    Parameters
    ----------
    times : dict
        (F,) array or None, see `frame_interval`, by the name of the trajectory.
    given : float, optional
        What a user says it is.

    Raises
    ------
    GeomGNNError
        If a trajectory is not continuous, or they do not agree with each other or with what is given.
    """
    intervals = {name: frame_interval(name, values, given) for name, values in times.items()}
    if max(intervals.values()) - min(intervals.values()) > 1e-3 * max(intervals.values()):
        listed = ", ".join(f"{name} {value:g} ps" for name, value in intervals.items())
        raise GeomGNNError(f"The trajectories have different times between frames ({listed}). Fit those that agree.")
    # files hold times in float32
    return round(next(iter(intervals.values())), 4)


def frame_interval(name: str, times: np.ndarray | None, given: float | None = None) -> float:
    """The time between the frames of one continuous trajectory, ps.

    Parameters
    ----------
    name : str
        Of the trajectory, for errors.
    times : (F,) array, or None
        Times that the file holds; None, NaN, or all the same where it does not.
    given : float, optional
        What a user says it is.

    Raises
    ------
    GeomGNNError
        If times jump, contradict what is given, or are not known while nothing is given.
    """
    if times is None or np.isnan(times).any() or (len(times) > 1 and np.ptp(times) == 0):
        if given is None:
            raise GeomGNNError(
                f"The times of the frames of {name} are not known: give frame_interval, the time between two frames."
            )
        return given
    steps = np.diff(times)
    if len(steps) == 0:
        if given is None:
            raise GeomGNNError(f"{name} has one frame, so the time between its frames is not known. Leave it out.")
        return given
    usual = float(np.median(steps))
    # files hold times in float32: of a long trajectory they are coarse
    rounding = 1e-4 + 2 * float(np.spacing(np.float32(np.abs(times).max())))
    odd = np.flatnonzero((np.abs(steps - usual) > 1e-3 * abs(usual) + rounding) | (steps <= 0))
    if len(odd):
        k = int(odd[0])
        others = f" and so do {len(odd) - 1} others" if len(odd) > 1 else ""
        raise GeomGNNError(
            f"The times in {name} are not evenly spaced: frame {k} is at {times[k]:g} ps and frame {k + 1} at "
            f"{times[k + 1]:g} ps, where frames are {usual:g} ps apart{others}. A trajectory must be continuous: split the "
            f"file after frame {k}, or leave out the frames that do not belong (`gmx trjconv`, `mdconvert`)."
        )
    if given is not None and abs(given - usual) > 1e-3 * given + rounding:
        raise GeomGNNError(
            f"frame_interval says that frames are {given:g} ps apart, but in {name} they are {usual:g} ps apart. Leave out "
            "frame_interval. If it is the times in the file that are wrong, convert it to a format without times "
            "(mdconvert -o a.dcd)."
        )
    # the mean is known better than each step
    return given if given is not None else float((times[-1] - times[0]) / len(steps))
