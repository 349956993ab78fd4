"""What a collective variable does to its slow functions before they are biased: even out their steepness, bound them."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from openmm_geomgnn.errors import GeomGNNError

# frames at each end of the data that may lie outside the range: few enough that a state seen ten times is inside
STRAY_FRAMES = 5
STRAY_SHARE = 0.005  # or this share of the frames, where that is fewer
_NEWTON_STEPS = 60  # at most, each of which at least halves the interval


class OutputMap(nn.Module):
    """A smooth monotone map of each component: CV = bound(even(psi)).

    The even map has a positive slope on equidistant knots, between which it is interpolated monotonically (PCHIP); its
    value is the exact integral, a quartic in each interval. The bound is the identity on [low, high] and beyond it
    saturates: above, s = high + width*tanh((x - high)/width). Both have continuous second derivatives.

    Parameters
    ----------
    low, high : (d,) array
        Range of the data; infinite for a component without a bound.
    width : (d,) array
        By how much the CV can leave the range on each side.
    first, last : (d,) array, optional
        The first and the last knot of the even map, which leaves both where they are.
    slopes : (d, K) array, optional
        The slope of the even map at the knots, up to a factor, which follows from the ends; K = 0 is no even map.

    Examples
    --------
    >>> import numpy as np
    >>> from openmm_geomgnn.cv.output_map import OutputMap
    >>> bounded = OutputMap([-1.0], [1.0], [0.3])
    >>> bounded.compute(np.array([[0.5], [1.0], [1.2], [40.0]])).round(3).tolist()
    [[0.5], [1.0], [1.175], [1.3]]
    """

    low: torch.Tensor
    high: torch.Tensor
    width: torch.Tensor
    first: torch.Tensor
    last: torch.Tensor
    slopes: torch.Tensor
    polynomials: torch.Tensor
    rows: torch.Tensor

    def __init__(
        self,
        low: npt.ArrayLike,
        high: npt.ArrayLike,
        width: npt.ArrayLike,
        first: npt.ArrayLike | None = None,
        last: npt.ArrayLike | None = None,
        slopes: npt.ArrayLike | None = None,
    ) -> None:
        super().__init__()
        d = len(np.asarray(low))
        given = {
            **{"low": low, "high": high, "width": width},
            **{"first": np.zeros(d) if first is None else first, "last": np.ones(d) if last is None else last},
            "slopes": np.zeros((d, 0)) if slopes is None else slopes,
        }
        arrays = {name: np.array(value, dtype=np.float64) for name, value in given.items()}
        _check(arrays, d)
        polynomials = _polynomials(arrays["first"], arrays["last"], arrays["slopes"])
        for name, array in arrays.items():
            self.register_buffer(name, torch.from_numpy(array))
        intervals = max(arrays["slopes"].shape[1] - 1, 0)
        self.register_buffer("polynomials", torch.from_numpy(polynomials.reshape(d * intervals, 6)), persistent=False)
        self.register_buffer("rows", intervals * torch.arange(d), persistent=False)
        # numbers for a single frame: a tensor, and an array, takes longer to make than to use
        self._limits = list(zip(*(arrays[name].tolist() for name in ("low", "high", "width")), strict=True))
        self._ends = list(zip(arrays["first"].tolist(), arrays["last"].tolist(), strict=True))
        self._rows: list[list[list[float]]] = polynomials.tolist()
        self._identity = not (self.is_even or self.is_bounded)  # once, since a simulation asks at every step

    @classmethod
    def identity(cls, dimension: int) -> "OutputMap":
        """The map that changes nothing, of `dimension` components."""
        everywhere = np.full(dimension, np.inf)
        return cls(-everywhere, everywhere, np.ones(dimension))

    @classmethod
    def bounded(cls, low: npt.ArrayLike, high: npt.ArrayLike, margin: float = 0.15) -> "OutputMap":
        """The identity on [low, high], (d,) each, that saturates beyond at `margin` times the length of the range.

        A component whose range is a point has no bound.
        """
        check_margin(margin)
        low, high = np.array(low, dtype=np.float64), np.array(high, dtype=np.float64)
        point = ~(high > low)
        width = np.where(point, 1.0, margin * (high - low))
        return cls(np.where(point, -np.inf, low), np.where(point, np.inf, high), width)

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, torch.Tensor], dimension: int) -> "OutputMap":
        """The map of the tensors in a CV file, the identity where there are none.

        Raises
        ------
        ValueError, TypeError
            If they are not those of a map of so many components.
        """
        if not tensors:
            return cls.identity(dimension)
        found = cls(**{name: tensor.numpy() for name, tensor in tensors.items()})
        if found.dimension != dimension:
            raise ValueError(f"its output map has {found.dimension} components for {dimension}.")
        return found

    def tensors(self) -> dict[str, torch.Tensor]:
        """What a CV file holds of it: nothing of the identity."""
        return {} if self.is_identity else dict(self.state_dict())

    @property
    def dimension(self) -> int:
        """Number of components, d."""
        return len(self._limits)

    @property
    def is_even(self) -> bool:
        """Whether there is an even map."""
        return self.slopes.shape[1] > 0

    @property
    def is_bounded(self) -> bool:
        """Whether any component is bounded."""
        return any(math.isfinite(low) for low, _, _ in self._limits)

    @property
    def is_identity(self) -> bool:
        """Whether it changes nothing."""
        return self._identity

    @property
    def limits(self) -> np.ndarray:
        """(d, 2) what the CV tends to on either side, infinite without a bound."""
        return np.array([[low - width, high + width] for low, high, width in self._limits])

    # ------------------------------------------------------------------------------------------------------ many frames

    def forward(self, psi: torch.Tensor) -> torch.Tensor:
        """Map psi (..., d), float64, component by component; differentiable."""
        return psi if self.is_identity else self._value_and_slope(psi)[0]

    def compute(self, psi: npt.ArrayLike) -> np.ndarray:
        """Map psi (..., d)."""
        return self(torch.as_tensor(np.asarray(psi, dtype=np.float64), device=self.low.device)).cpu().numpy()

    def slope(self, psi: npt.ArrayLike) -> np.ndarray:
        """The derivative of each component of the CV with respect to that of psi, at psi (..., d)."""
        given = torch.as_tensor(np.asarray(psi, dtype=np.float64), device=self.low.device)
        return self._value_and_slope(given)[1].cpu().numpy()

    def _value_and_slope(self, psi: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x, slope = self._even(psi) if self.is_even else (psi, torch.ones_like(psi))
        inside = torch.clamp(x, self.low, self.high)
        saturation = torch.tanh((x - inside) / self.width)
        return inside + self.width * saturation, slope * (1 - saturation * saturation)

    def _even(self, psi: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        intervals = self.slopes.shape[1] - 1
        inside = torch.clamp(psi, self.first, self.last)
        at = (inside - self.first) * (intervals / (self.last - self.first))
        number = torch.clamp(torch.floor(at.detach()), 0, intervals - 1)
        u = at - number
        value, a, b, c, d, step = self.polynomials[number.long() + self.rows].unbind(-1)
        value = value + step * u * (a + u * (b / 2 + u * (c / 3 + u * (d / 4))))
        slope = a + u * (b + u * (c + u * d))
        # u does not move beyond the ends, where the slope is that at the end
        return value + slope.detach() * (psi - inside), slope

    # ------------------------------------------------------------------------------------------------------ a single one

    def value_and_slope(self, psi: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Value and derivative, (d,) each, of the CV at psi (d,), with no tensors."""
        found = [self._scalar(k, x) for k, x in enumerate(psi.tolist())]
        return np.array([value for value, _ in found]), np.array([slope for _, slope in found])

    def _scalar(self, component: int, x: float) -> tuple[float, float]:
        slope = 1.0
        if self._rows[component]:
            x, slope = self._even_scalar(component, x)
        low, high, width = self._limits[component]
        if x < low or x > high:
            end = low if x < low else high
            saturation = math.tanh((x - end) / width)
            return end + width * saturation, slope * (1 - saturation * saturation)
        return x, slope

    def _even_scalar(self, component: int, x: float) -> tuple[float, float]:
        if not math.isfinite(x):
            return x, 1.0
        (first, last), rows = self._ends[component], self._rows[component]
        inside = min(max(x, first), last)
        at = (inside - first) * (len(rows) / (last - first))
        number = min(max(math.floor(at), 0), len(rows) - 1)
        u = at - number
        value, a, b, c, d, step = rows[number]
        slope = a + u * (b + u * (c + u * d))
        return value + step * u * (a + u * (b / 2 + u * (c / 3 + u * (d / 4)))) + slope * (x - inside), slope

    # -------------------------------------------------------------------------------------------------------------- back

    def inverse(self, values: npt.ArrayLike, component: int = 0) -> np.ndarray:
        """The psi at which a component of the CV has these values, to rounding; an array of the same shape.

        Raises
        ------
        GeomGNNError
            If a value is not between the `limits` of the component.
        """
        values = np.asarray(values, dtype=np.float64)
        below, above = self.limits[component]
        if not ((values > below) & (values < above)).all():
            raise GeomGNNError(
                f"Component {component + 1} of the CV lies between {below:g} and {above:g}, so only values between them can "
                "be taken back."
            )
        low, high, width = self._limits[component]
        inside = np.clip(values, low, high)
        x = inside + width * np.arctanh((values - inside) / width)
        return self._even_inverse(x, component) if self.is_even else x

    def _even_inverse(self, values: np.ndarray, component: int) -> np.ndarray:
        rows = np.array(self._rows[component])
        first, last = self._ends[component]
        inside = np.clip(values, first, last)  # the even map leaves its ends where they are
        number = np.clip(np.searchsorted(rows[:, 0], inside, side="right") - 1, 0, len(rows) - 1)
        start, a, b, c, d, step = np.moveaxis(rows[number], -1, 0)
        left, right = np.zeros(values.shape), np.ones(values.shape)
        u = np.full(values.shape, 0.5)
        for _ in range(_NEWTON_STEPS):  # Newton's step, or bisection where that leaves the interval
            error = start + step * u * (a + u * (b / 2 + u * (c / 3 + u * (d / 4)))) - inside
            left, right = np.where(error < 0, u, left), np.where(error > 0, u, right)
            better = u - error / (step * (a + u * (b + u * (c + u * d))))
            new = np.where((better >= left) & (better <= right), better, (left + right) / 2)
            if np.array_equal(new, u):
                break
            u = new
        psi = first + (number + u) * (last - first) / len(rows)
        ends = np.where(values < first, rows[0, 1], rows[-1, 1:5].sum())
        return psi + (values - inside) / ends

    def transform_free_energy(
        self, values: npt.ArrayLike, free_energy: npt.ArrayLike, kT: float, component: int = 0
    ) -> tuple[np.ndarray, np.ndarray]:
        """The free energy along psi, from that along a component of the CV.

        A free energy is minus kT times the logarithm of a density, and a density changes with the variable:
        F(psi) = F(s) - kT ln(ds/dpsi). Along the CV itself, as histograms of the CV give it, nothing has to be corrected.

        Parameters
        ----------
        values, free_energy : (N,) array
            Values of the CV, within its `limits`, and the free energy there, in the unit of `kT`.
        kT : float
        component : int, optional

        Returns
        -------
        psi, free_energy : (N,) ndarray
            The constant is kept: populations between two points are the same along psi and along the CV.
        """
        psi = self.inverse(values, component)
        at = np.zeros((*psi.shape, self.dimension))
        at[..., component] = psi
        return psi, np.asarray(free_energy, dtype=np.float64) - kT * np.log(self.slope(at)[..., component])


def check_margin(margin: float) -> None:
    """Raise a GeomGNNError unless a margin is a positive number."""
    if not (math.isfinite(margin) and margin > 0):
        raise GeomGNNError(
            f"margin is {margin}, but must be a positive share of the CV's range, such as 0.15: a CV that cannot leave its "
            "range at all has no slope there. To have no bound, set bounded: false."
        )


def range_of(values: Sequence[npt.ArrayLike]) -> tuple[np.ndarray, np.ndarray]:
    """The range (low, high), (d,) each, of a CV's values (F, d) in trajectories, up to a few stray frames at each end.

    At each end STRAY_SHARE of the frames, at most STRAY_FRAMES, may lie outside.
    """
    together = np.sort(np.concatenate([np.asarray(part, dtype=np.float64) for part in values]), axis=0)
    stray = min(STRAY_FRAMES, int(STRAY_SHARE * len(together)))
    return together[stray], together[len(together) - 1 - stray]


def _check(arrays: Mapping[str, np.ndarray], d: int) -> None:
    shapes = {name: array.shape for name, array in arrays.items() if name != "slopes"}
    if any(shape != (d,) for shape in shapes.values()) or arrays["slopes"].ndim != 2 or len(arrays["slopes"]) != d:
        raise ValueError(f"its output map has arrays of the shapes {shapes} and slopes of {arrays['slopes'].shape}.")
    low, high, width = arrays["low"], arrays["high"], arrays["width"]
    if not ((high > low).all() and (width > 0).all() and np.isfinite(width).all()):
        raise ValueError("its output map has a range that is empty, or no width beyond it.")
    if not (arrays["last"] > arrays["first"]).all() or arrays["slopes"].shape[1] == 1:
        raise ValueError("its output map has fewer than two knots.")
    if not ((arrays["slopes"] > 0) & np.isfinite(arrays["slopes"])).all():
        raise ValueError("its output map is not monotone.")


def _polynomials(first: np.ndarray, last: np.ndarray, slopes: np.ndarray) -> np.ndarray:
    """The even map by intervals, (d, K - 1, 6): its value at the start, its slope as a cubic in 0 <= u <= 1, the step.

    Slopes are scaled such that the map leaves its ends where they are.
    """
    d, knots = slopes.shape
    if knots == 0:
        return np.zeros((d, 0, 6))
    from scipy.interpolate import PchipInterpolator  # here, since a walker needs it never and would wait for its import

    rows = []
    for start, end, given in zip(first, last, slopes, strict=True):
        step = (end - start) / (knots - 1)
        cubic = PchipInterpolator(np.arange(knots), given).c[::-1]  # (4, K - 1), constant first
        areas = step * (cubic / np.arange(1, 5)[:, None]).sum(axis=0)
        factor = (end - start) / areas.sum()
        values = start + factor * np.concatenate([[0.0], np.cumsum(areas)[:-1]])
        rows.append(np.column_stack([values, *(factor * cubic), np.full(knots - 1, step)]))
    return np.array(rows)
