"""Smoothing of what is drawn over bins."""

from typing import Any, Literal

import numpy as np


def smoothed(values: np.ndarray, periodic: Any) -> np.ndarray:
    """Average every bin with its visited neighbours (1-2-1 along each axis); nan where most of them are nan.

    periodic: whether the neighbours of the first bin along each axis include the last one.
    """
    visited = np.isfinite(values).astype(np.float64)
    total = np.where(visited > 0, values, 0.0)
    for axis, is_periodic in enumerate(periodic):
        mode: Literal["wrap", "constant"] = "wrap" if is_periodic else "constant"
        total, visited = (_binomial(array, axis, mode) for array in (total, visited))
    with np.errstate(invalid="ignore"):
        return np.where(visited > 0.4, total / visited, np.nan)


def _binomial(array: np.ndarray, axis: int, mode: Literal["wrap", "constant"]) -> np.ndarray:
    width = [(1, 1) if a == axis else (0, 0) for a in (0, 1)]
    padded = np.moveaxis(np.pad(array, width, mode=mode), axis, 0)
    return np.moveaxis((padded[:-2] + 2 * padded[1:-1] + padded[2:]) / 4, 0, axis)
