"""What an analysis starts from: the data of a biased run, and the variables whose free energies it tells."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from openmm_geomgnn.analysis.frames import (
    check_times,
    find_cv_fields,
    frame_rows,
    row_interval,
    start_time,
    total_bias,
)
from openmm_geomgnn.analysis.intervals import TURN
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
        Of a variable on a circle; 2*pi marks an angle, which is shown in degrees.
    unit : str, optional
        Of a variable on a line, as it is written at an axis.
    biased : bool, optional
        Whether it is a component of the biased CV, with a value in every row of COLVAR. Other variables have one for
        every frame of the trajectory.
    cores : tuple of two (low, high), optional
        The cores of the states A and B between which crossings are counted; on a circle also across its end, as
        (2.6, -2.6).
    dividing : sequence of float, optional
        Points between the cores that divide A from B, one on a line and two on a circle; by default where F is highest.
    unbiased : list of (T,), optional
        The variable in runs without a bias, to compare the crossings with.

    Raises
    ------
    GeomGNNError
        If an array has the wrong shape, or values on a circle are not finite or exceed its period.
    """

    name: str
    values: list
    period: float | None = None
    unit: str = ""
    biased: bool = False
    cores: tuple | None = None
    dividing: tuple | None = None
    unbiased: list | None = None

    def __post_init__(self):
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
    def is_angle(self):
        return self.period == TURN

    @property
    def is_periodic(self):
        return self.period is not None

    def edges(self, n_bins):
        """Bin edges over one period; on a line the number of bins, as the range is that of the data."""
        return np.linspace(-self.period / 2, self.period / 2, n_bins + 1) if self.is_periodic else n_bins

    def turned(self, values):
        """Values, a list of (T,), with the period scaled to 2*pi; on a line as they are."""
        return [run * (TURN / self.period) for run in values] if self.is_periodic else values


@dataclass(frozen=True, eq=False)
class BiasedRun:
    """The data of a biased run, as its files hold them.

    Attributes
    ----------
    colvar : dict
        Columns as `read_colvar` gives them: time (ps), walker (optional), cv.1 ..., NAME.bias (kJ/mol), and, where
        present, NAME.rct, NAME.nker, NAME.neff and temperature (K).
    temperature : float
        Target, K.
    frame_times : list of (T,), optional
        Time in ps of every frame of the trajectories, each of which must have a row; by default every row has a frame.
    bias_fields : str or list of str, optional
        Columns summed in the weights, by default all *.bias.
    degrees_of_freedom : int, optional
        Kinetic ones. A frame is hot above T*(1 + 3*sqrt(2/n)), three standard deviations of the kinetic temperature, and
        above 1.5*T where n is not known.
    unbiased_frame_time : float, optional
        Time in ps between frames of the runs without a bias.
    wall_seconds : float, optional
        How long the run took.

    Raises
    ------
    GeomGNNError
        If the temperature makes no sense, columns are missing, a walker has fewer than two rows, or times run backwards.
    """

    colvar: dict
    temperature: float
    frame_times: list | None = None
    bias_fields: str | list | None = None
    degrees_of_freedom: int | None = None
    unbiased_frame_time: float = 1.0
    wall_seconds: float = float("nan")

    def __post_init__(self):
        if not (np.isfinite(self.temperature) and self.temperature > 0):
            raise GeomGNNError(f"The target temperature must be a positive number of K, but it is {self.temperature}.")
        times = [column(walker, "time") for walker in self.walkers]
        for number, walker in enumerate(times):
            check_times(walker, number)
        frames = times if self.frame_times is None else self.frame_times
        object.__setattr__(self, "frame_times", [np.asarray(t, dtype=np.float64) for t in frames])

    @cached_property
    def walkers(self):
        """The columns of every walker, a list of dict."""
        return split_walkers(self.colvar)

    @cached_property
    def cv_fields(self):
        """The names of the CV's components, cv.1, cv.2, ..."""
        return find_cv_fields(self.colvar)

    @cached_property
    def row_times(self):
        """ps, list of (T,)."""
        return [walker["time"] for walker in self.walkers]

    @cached_property
    def lengths(self):
        """Simulated ps of every walker."""
        return [times[-1] - start_time(times) for times in self.row_times]

    @cached_property
    def bias(self):
        """The acting biases added up, kJ/mol in every row, list of (T,)."""
        return total_bias(self.walkers, self.bias_fields)

    @cached_property
    def hot_threshold(self):
        """K above which a single frame is hot."""
        n = self.degrees_of_freedom
        return float((1.5 if n is None else 1 + 3 * np.sqrt(2 / n)) * self.temperature)

    def in_frames(self, n_rows):
        """How many frames take as long as a number of rows."""
        return n_rows * row_interval(self.row_times) / row_interval(self.frame_times)

    @cached_property
    def _frame_rows(self):
        pairs = zip(self.row_times, self.frame_times, strict=True)
        return [frame_rows(rows, times, number) for number, (rows, times) in enumerate(pairs)]

    def component(self, name, **settings):
        """A column of COLVAR as a `Variable` that is biased. settings: its cores and so on.

        Raises GeomGNNError where there is no such column.
        """
        return Variable(name, [column(walker, name) for walker in self.walkers], biased=True, **settings)

    def components(self):
        """All components of the CV, a list of `Variable`."""
        return [self.component(name) for name in self.cv_fields]

    def at_frames(self, values):
        """Of values in every row the ones at the times of the frames, list of (T,).

        Raises GeomGNNError where a frame has no row.
        """
        return [run[rows] for run, rows in zip(values, self._frame_rows, strict=True)]

    def after(self, start, times):
        """Which times, a list of (T,), are more than `start` ps after the beginning of their walker."""
        return [t - start_time(rows) > start for rows, t in zip(self.row_times, times, strict=True)]

    def check_belongs(self, variable):
        """Raise a GeomGNNError unless a variable has a value for every frame, or every row where it is biased."""
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
