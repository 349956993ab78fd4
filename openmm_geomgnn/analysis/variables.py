"""The input of an analysis: the data of a biased run, and the variables along which it is analysed."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from openmm_geomgnn.analysis.frames import (
    check_times,
    find_cv_fields,
    frame_rows,
    row_interval,
    start_time,
    total_bias,
)
from openmm_geomgnn.analysis.intervals import TURN, Interval
from openmm_geomgnn.analysis.resampling import as_walkers
from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.sampling.colvar import column, split_walkers


@dataclass(frozen=True, eq=False)
class Variable:
    """A quantity along which a run is analysed: a component of its CV, a torsion, a distance.

    Attributes
    ----------
    name : str
    values : list of (T,)
        One series per walker; angles in radians. One array (T,) is a single walker.
    period : float, optional
        Period of a variable on a circle; 2*pi marks an angle, which is shown in degrees.
    unit : str, optional
        Unit of a variable on a line, as written at an axis.
    biased : bool, optional
        Whether it is a component of the biased CV, with a value in every row of COLVAR. Other variables have one for
        every frame of the trajectory.
    cores : tuple of two (low, high), optional
        The cores of the states A and B between which crossings are counted; on a circle a core may extend across its end,
        such as (2.6, -2.6).
    dividing : sequence of float, optional
        Points between the cores that separate A from B, one on a line and two on a circle; by default where F is highest.
    unbiased : list of (T,), optional
        The variable in runs without a bias, to compare the crossings with.

    Raises
    ------
    GeomGNNError
        If an array has the wrong shape, or values on a circle are not finite or exceed its period.
    """

    name: str
    values: Any
    period: float | None = None
    unit: str = ""
    biased: bool = False
    cores: tuple[Interval, Interval] | None = None
    dividing: Sequence[float] | None = None
    unbiased: Any = None

    def __post_init__(self) -> None:
        values = as_walkers(self.values, self.name)
        object.__setattr__(self, "values", values)
        if self.unbiased is not None:
            object.__setattr__(self, "unbiased", as_walkers(self.unbiased, f"{self.name} without bias"))
        if self.period is not None:
            largest = float(np.max(np.abs(np.concatenate(values))))
            if not largest <= self.period:
                unit = "in radians, not degrees" if self.is_angle else f"within its period of {self.period:g}"
                raise GeomGNNError(f"{self.name} reaches {largest:.4g}: it must be finite and {unit}.")

    @property
    def is_angle(self) -> bool:
        """Whether the period is 2*pi."""
        return self.period == TURN

    @property
    def is_periodic(self) -> bool:
        """Whether the variable is on a circle."""
        return self.period is not None

    def edges(self, n_bins: int) -> np.ndarray | int:
        """Bin edges over one period; on a line the number of bins, since the range follows from the data."""
        return np.linspace(-self.period / 2, self.period / 2, n_bins + 1) if self.period is not None else n_bins

    def turned(self, values: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        """Scale the period of values, a list of (T,), to 2*pi; on a line they are unchanged."""
        return [run * (TURN / self.period) for run in values] if self.period is not None else values


@dataclass(frozen=True, eq=False)
class BiasedRun:
    """The data of a biased run, as its files hold them.

    Attributes
    ----------
    colvar : dict
        Columns as `read_colvar` returns them: time (ps), walker (optional), cv.1 ..., NAME.bias (kJ/mol), and, if present,
        NAME.rct, NAME.nker, NAME.neff and temperature (K).
    temperature : float
        Target temperature, K.
    frame_times : list of (T,), optional
        Time in ps of every frame of the trajectories, each of which must have a row; by default every row has a frame.
    bias_fields : str or list of str, optional
        Columns summed in the weights, by default all whose names end in ``.bias``.
    degrees_of_freedom : int, optional
        Number n of kinetic degrees of freedom. A frame is hot above T*(1 + 3*sqrt(2/n)), three standard deviations of the
        kinetic temperature, or above 1.5*T if n is unknown.
    unbiased_frame_time : float, optional
        Time in ps between frames of the runs without a bias.
    wall_seconds : float, optional
        Wall-clock time of the run, seconds.

    Raises
    ------
    GeomGNNError
        If the temperature is not valid, columns are missing, a walker has fewer than two rows, or times run backwards.
    """

    colvar: dict[str, np.ndarray]
    temperature: float
    frame_times: Any = None
    bias_fields: str | Sequence[str] | None = None
    degrees_of_freedom: int | None = None
    unbiased_frame_time: float = 1.0
    wall_seconds: float = float("nan")

    def __post_init__(self) -> None:
        if not (np.isfinite(self.temperature) and self.temperature > 0):
            raise GeomGNNError(f"The target temperature must be a positive number of K, but it is {self.temperature}.")
        times = [column(walker, "time") for walker in self.walkers]
        for number, walker in enumerate(times):
            check_times(walker, number)
        frames = times if self.frame_times is None else self.frame_times
        object.__setattr__(self, "frame_times", [np.asarray(t, dtype=np.float64) for t in frames])

    @cached_property
    def walkers(self) -> list[dict[str, np.ndarray]]:
        """The columns of every walker, a list of dict."""
        return split_walkers(self.colvar)

    @cached_property
    def cv_fields(self) -> list[str]:
        """The names of the CV's components, cv.1, cv.2, ..."""
        return find_cv_fields(self.colvar)

    @cached_property
    def row_times(self) -> list[np.ndarray]:
        """Times of the rows in ps, a list of (T,)."""
        return [walker["time"] for walker in self.walkers]

    @cached_property
    def lengths(self) -> list[float]:
        """Simulated ps of every walker."""
        return [times[-1] - start_time(times) for times in self.row_times]

    @cached_property
    def bias(self) -> list[np.ndarray]:
        """Sum of the acting biases in every row, kJ/mol, a list of (T,)."""
        return total_bias(self.walkers, self.bias_fields)

    @cached_property
    def hot_threshold(self) -> float:
        """Temperature in K above which a single frame is hot."""
        n = self.degrees_of_freedom
        return float((1.5 if n is None else 1 + 3 * np.sqrt(2 / n)) * self.temperature)

    def in_frames(self, n_rows: float) -> float:
        """Number of frames that span the same time as a number of rows."""
        return n_rows * row_interval(self.row_times) / row_interval(self.frame_times)

    @cached_property
    def _frame_rows(self) -> list[np.ndarray]:
        pairs = zip(self.row_times, self.frame_times, strict=True)
        return [frame_rows(rows, times, number) for number, (rows, times) in enumerate(pairs)]

    def component(self, name: str, **settings: Any) -> Variable:
        """Make a biased `Variable` of a column of COLVAR. settings: further attributes, such as its cores.

        Raises GeomGNNError if there is no such column.
        """
        return Variable(name, [column(walker, name) for walker in self.walkers], biased=True, **settings)

    def components(self) -> list[Variable]:
        """All components of the CV, a list of `Variable`."""
        return [self.component(name) for name in self.cv_fields]

    def at_frames(self, values: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Select the values at the times of the frames from values in every row, a list of (T,).

        Raises GeomGNNError if a frame has no row.
        """
        return [run[rows] for run, rows in zip(values, self._frame_rows, strict=True)]

    def after(self, start: float, times: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Whether times, a list of (T,), are more than `start` ps after the beginning of their walker."""
        return [t - start_time(rows) > start for rows, t in zip(self.row_times, times, strict=True)]

    def check_belongs(self, variable: Variable) -> None:
        """Raise a GeomGNNError unless a variable has a value for every frame or, if it is biased, for every row."""
        times, name = self.row_times if variable.biased else self.frame_times, variable.name
        lengths = [len(run) for run in variable.values]
        if len(lengths) != len(self.walkers):
            raise GeomGNNError(
                f"There are values of {name} for {len(lengths)} walkers and COLVAR rows of {len(self.walkers)}. Give one "
                "per walker."
            )
        if lengths != [len(t) for t in times] or min(lengths) < 2:
            raise GeomGNNError(
                f"The walkers have {lengths} values of {name} and {[len(t) for t in times]} times. "
                "Give the time in ps of every frame as frame_times, and at least two frames per walker."
            )
