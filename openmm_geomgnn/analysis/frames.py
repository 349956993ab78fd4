"""Matching of columns, rows and frames of a biased run, and the time from which on they count."""

import re
from collections.abc import Sequence

import numpy as np

from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.sampling.colvar import column


def check_times(times: np.ndarray, walker: int) -> None:
    """Raise a GeomGNNError if a walker, given by its number, has fewer than two rows or its times run backwards."""
    if len(times) < 2:
        raise GeomGNNError(f"Walker {walker} has {len(times)} rows in the COLVAR data, too few to analyse. Run longer.")
    back = np.flatnonzero(np.diff(times) <= 0)
    if len(back):
        raise GeomGNNError(
            f"The time of walker {walker} goes from {times[back[0]]:g} to {times[back[0] + 1]:g} ps: rows were "
            "written twice, as after a restart, or walkers share a number. Remove the rows that were run again."
        )


def find_cv_fields(colvar: dict[str, np.ndarray]) -> list[str]:
    """The names of the CV components, cv.1, cv.2, ... in this order."""
    fields = [name for name in colvar if re.fullmatch(r"cv\.\d+", name)]
    return sorted(fields, key=lambda name: int(name.split(".")[1]))


def total_bias(walkers: Sequence[dict[str, np.ndarray]], bias_fields: str | Sequence[str] | None = None) -> list[np.ndarray]:
    """Sum the acting biases, a list of (T,) in kJ/mol. bias_fields: their columns; by default all named *.bias."""
    if bias_fields is None:
        fields = [name for name in walkers[0] if name.endswith(".bias")]
    else:
        fields = [bias_fields] if isinstance(bias_fields, str) else list(bias_fields)
    if not fields:
        raise GeomGNNError(
            f"No column is named *.bias among {' '.join(walkers[0])}, so the frames have no weights. Name the columns "
            "that hold the bias energy in kJ/mol as bias_fields."
        )
    return [np.sum([column(walker, name) for name in fields], axis=0) for walker in walkers]


def last_value(walkers: Sequence[dict[str, np.ndarray]], suffix: str) -> float:
    """The largest of the walkers' last values in the column named *SUFFIX; nan if there is no such column."""
    names = [name for name in walkers[0] if name.endswith(suffix)]
    return max(float(walker[names[0]][-1]) for walker in walkers) if names else float("nan")


def row_interval(times: Sequence[np.ndarray]) -> float:
    """The usual time between rows in ps, over all walkers. times: list of (T,)."""
    return float(np.median(np.concatenate([np.diff(walker) for walker in times])))


def start_time(times: np.ndarray) -> float:
    """Time in ps at which a walker began: 0 if its first row is at most one interval later, else one interval before it."""
    interval = row_interval([times])
    return 0.0 if times[0] <= 1.5 * interval else float(times[0]) - interval


def transient(lengths: Sequence[float], discard: float, discard_ps: float | None) -> float:
    """Compute the time in ps that free energies leave out at the start of every walker. lengths: ps of each walker."""
    if discard_ps is not None:
        if not 0 <= discard_ps < max(lengths):
            raise GeomGNNError(f"discard_ps must be from 0 to the run's {max(lengths):g} ps, but it is {discard_ps}.")
        return float(discard_ps)
    if not 0 <= discard < 1:
        raise GeomGNNError(
            f"discard is the share of the run to leave out, from 0 to below 1, but it is {discard}. Give a time in ps "
            "as discard_ps."
        )
    return float(discard) * max(lengths)


def frame_rows(row_times: np.ndarray, times: np.ndarray, walker: int) -> np.ndarray:
    """Find the index (T,) of the row at the time of each frame.

    Raises GeomGNNError if a frame has no row within 1 % of the spacing of the rows.
    """
    after = np.clip(np.searchsorted(row_times, times), 1, len(row_times) - 1)
    nearest = np.where(times - row_times[after - 1] < row_times[after] - times, after - 1, after)
    # trajectory formats keep times in float32
    tolerance = 0.01 * row_interval([row_times]) + 1e-6 * np.abs(times)
    missing = np.flatnonzero(~(np.abs(row_times[nearest] - times) <= tolerance))
    if len(missing):
        raise GeomGNNError(
            f"{len(missing)} of {len(times)} frames of walker {walker} have no COLVAR row at their time, the first one at "
            f"{times[missing[0]]:g} ps, so they have no weight. Check that trajectory and COLVAR belong to the same run, "
            "that neither was cut, and that times are in ps."
        )
    return nearest


def spread(values: Sequence[np.ndarray], masks: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Put the values of the chosen frames back among all frames, with -inf elsewhere: list of (T,)."""
    full = [np.full(len(mask), -np.inf) for mask in masks]
    for array, value, mask in zip(full, values, masks, strict=True):
        array[mask] = value
    return full
