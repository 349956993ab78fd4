"""How well a slow function tells two basins apart under a bias that drives it."""

from collections.abc import Sequence

import numpy as np

PERCENTILES = (1, 99)


def basin_gap(values: Sequence[np.ndarray], upper: Sequence[bool] | None = None) -> float | None:
    """The empty part of the way between two basins, over biased frames of walkers that never left theirs.

    (1st percentile of the upper basin - 99th of the lower) / distance of their medians: near 1 where a bias on the function
    moves the walkers out of neither basin, 0 where the ends of the basins touch, and negative where a bias takes them to the
    same values, although no walker crosses: such a function is fooled.

    Parameters
    ----------
    values : list of (F,) array
        A function along each walker, in units of any length and sign.
    upper : list of bool, optional
        Which of two basins each walker is in. By default those whose mean is above the middle between the lowest mean and
        the highest are in the upper one.

    Returns
    -------
    float or None
        None where there are not two basins with frames.

    Examples
    --------
    >>> import numpy as np
    >>> from openmm_geomgnn.koopman import basin_gap
    >>> rng = np.random.default_rng(0)
    >>> apart = [rng.normal(-1, 0.05, 1000), rng.normal(1, 0.05, 1000)]
    >>> round(basin_gap(apart), 1)
    0.9
    >>> basin_gap(apart[:1]) is None
    True
    """
    values = [np.asarray(one, np.float64) for one in values]
    if upper is None:
        means = [one.mean() for one in values if len(one)]
        middle = 0.5 * (min(means) + max(means)) if means else 0.0
        upper = [bool(len(one) and one.mean() > middle) for one in values]
    sides = [[one for one, above in zip(values, upper, strict=True) if bool(above) == side] for side in (False, True)]
    if not all(any(map(len, side)) for side in sides):
        return None
    low, high = (np.concatenate(side) for side in sides)
    if np.median(low) > np.median(high):
        low, high = -low, -high
    distance = float(np.median(high) - np.median(low))
    if distance <= 0:
        return None
    return float((np.percentile(high, PERCENTILES[0]) - np.percentile(low, PERCENTILES[1])) / distance)
