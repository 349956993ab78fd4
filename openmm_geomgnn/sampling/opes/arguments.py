"""Checks of the arguments of biases: each function returns one as the bias uses it, or raises a GeomGNNError."""

import math
import operator
import warnings
from typing import Any, TypeAlias

import numpy as np

from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.units import BOLTZMANN, quantity

# for each CV component None or (low, high)
Periods: TypeAlias = tuple[tuple[float, float] | None, ...]


def read_number(value: Any, name: str, unit: str | None = None, zero: bool = False, infinite: bool = False) -> float:
    """Read a float > 0 (or >= 0) from a number or, if a unit is named, anything that `units.quantity` reads."""
    if unit is None and hasattr(value, "value_in_unit"):
        raise GeomGNNError(f"{name} is {value}: give a bare number (widths are in the units of the CV).")
    if unit is not None and (hasattr(value, "value_in_unit") or isinstance(value, str)):
        value = quantity(value, unit, name)
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        raise GeomGNNError(f"{name} is {value!r}, which is not a number.") from error
    if not (number >= 0 if zero else number > 0) or (math.isinf(number) and not infinite):
        raise GeomGNNError(f"{name} is {number:g} but must be finite and {'at least' if zero else 'greater than'} 0.")
    return number


def read_count(value: Any, name: str, zero: bool = False) -> int:
    """Read an int >= 1 from a whole number; zero: it may be 0."""
    if hasattr(value, "value_in_unit"):
        raise GeomGNNError(f"{name} is {value}, but it is a bare count: divide a time by the time step.")
    try:
        number = operator.index(int(value) if isinstance(value, float) and value.is_integer() else value)
    except TypeError as error:
        raise GeomGNNError(f"{name} is {value!r} but must be a whole number, at least 1.") from error
    if number < (0 if zero else 1):
        raise GeomGNNError(f"{name} is {number} but must be at least {0 if zero else 1}.")
    return number


def read_widths(value: Any, name: str) -> float | tuple[float, ...] | None:
    """Read None, a positive float for all CV components, or a tuple of one per component."""
    if value is None:
        return None
    if hasattr(value, "value_in_unit") or isinstance(value, str) or np.ndim(value) == 0:
        return read_number(value, name)
    widths = tuple(read_number(width, name) for width in value)
    if not widths:
        raise GeomGNNError(f"{name} is empty: give a number, or one per CV component.")
    return widths


def read_biasfactor(value: Any, barrier: float, temperature: float, explore: bool, adaptive: bool) -> float:
    """Read the biasfactor as a float > 1, by default barrier/kT; infinite for a flat target.

    barrier: kJ/mol. temperature: K. explore: whether OPES_EXPLORE is meant. adaptive: whether sigma is measured.
    """
    ratio = barrier / (BOLTZMANN * temperature)
    too_low = (
        f"A barrier of {barrier:g} kJ/mol is only {ratio:.3g} kT at {temperature:g} K: is your barrier "
        "too low, or not in kJ/mol?"
    )
    if value is None:
        if ratio <= 1:
            raise GeomGNNError(f"The biasfactor, barrier/kT = {ratio:.3g}, must be greater than 1. {too_low}")
        return ratio
    gamma = read_number(value, "biasfactor", infinite=True)
    if gamma <= 1:
        advice = f"leave it out to use barrier/kT = {ratio:.3g}." if ratio > 1 else f"leave it out. {too_low}"
        raise GeomGNNError(f"biasfactor is {gamma:g} but must be greater than 1 (1 is unbiased): {advice}")
    if math.isinf(gamma) and explore:
        raise GeomGNNError(
            "biasfactor = inf is not possible with explore=True, whose target needs a finite one: leave it out, or "
            "use explore=False for a flat target."
        )
    if math.isinf(gamma) and adaptive:
        raise GeomGNNError(
            "biasfactor = inf (a flat target) needs a given sigma, because an adaptive one is scaled by the "
            "biasfactor: give sigma, about the spread of the CV inside a basin, or a finite biasfactor."
        )
    if 100 < gamma < math.inf and gamma > 2 * ratio:
        consequence = (
            "with explore=True it widens every kernel by its square root and makes the weights overflow. Leave it out."
            if explore
            else "the target is flat in all but name. Leave it out, or say biasfactor=inf for a flat target."
        )
        warn(f"biasfactor = {gamma:g} is far above barrier/kT = {ratio:.3g}: {consequence}", depth=1)
    return gamma


def read_periods(periods: Any) -> Periods | None:
    """Read None, or a tuple with None or (low, high) for each CV component."""
    if periods is None:
        return None
    advice = "give one entry per CV component, None or (low, high), as in [(-math.pi, math.pi)] for one torsion."
    try:
        checked: Any = tuple(None if period is None else tuple(map(float, period)) for period in periods)
    except (TypeError, ValueError) as error:
        raise GeomGNNError(f"periods is {periods!r}: {advice}") from error
    for period in checked:
        if period is not None and not (len(period) == 2 and -math.inf < period[0] < period[1] < math.inf):
            raise GeomGNNError(f"The period {period} is not two finite numbers, low below high: {advice}")
    if not checked:
        raise GeomGNNError(f"periods is empty: {advice}")
    return checked


def box_of(periods: Periods | None) -> tuple[np.ndarray, np.ndarray] | tuple[None, None]:
    """Convert periods to (lows (d,), lengths (d,)), 0 for components that are not periodic; (None, None) if none is."""
    if periods is None or not any(periods):
        return None, None
    lows, highs = np.array([period or (0.0, 0.0) for period in periods]).T
    return lows, highs - lows


def common_dimension(**settings: object) -> int | None:
    """Find the number of CV components on which settings with an entry per component (tuples) agree; None without any."""
    lengths = {name: len(value) for name, value in settings.items() if isinstance(value, tuple)}
    if len(set(lengths.values())) > 1:
        listing = ", ".join(f"{name} has {length}" for name, length in lengths.items())
        raise GeomGNNError(f"The parameters disagree on the number of CV components: {listing}. Give one each.")
    return next(iter(lengths.values()), None)


def read_energies(energy: Any, n_walkers: int) -> np.ndarray:
    """Read the energy of other biases as an ndarray () or (n_walkers,), kJ/mol."""
    energy = np.asarray(energy, dtype=np.float64)
    if energy.shape not in ((), (n_walkers,)) or not np.isfinite(energy).all():
        raise GeomGNNError(
            f"other_bias is {energy.tolist()}: give a finite energy in kJ/mol, or one for each of {n_walkers} walkers."
        )
    return energy


def check_values(s: np.ndarray, caller: str) -> None:
    """Raise a GeomGNNError unless the CV values s are a finite (F, d) ndarray; caller: the method that got them."""
    if s.ndim != 2 or not s.size:
        raise GeomGNNError(f"{caller} got CV values of shape {s.shape}: give (d,), or for update (n_walkers, d).")
    if not np.isfinite(s).all():
        walker = int(np.flatnonzero(~np.isfinite(s).all(axis=1))[0])
        raise GeomGNNError(
            f"The CV value {s[walker].tolist()}{f' of walker {walker}' if len(s) > 1 else ''} is not finite, so it "
            "cannot enter the bias: the simulation or the network failed before this point. Look at the last frames, and "
            "try a smaller time step or a softer CV."
        )


def warn(message: str, depth: int = 0) -> None:
    """Give a UserWarning at the line that made a bias. depth: calls between this one and the bias's __post_init__."""
    # up through __post_init__ and the generated __init__
    warnings.warn(message, UserWarning, stacklevel=4 + depth)
