"""Errors of networks that differ in nothing but their seed."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np


def over_seeds(errors: Mapping[int, float], baseline: Mapping[int, float]) -> tuple[float, float | None, float | None]:
    """Mean over seeds, standard deviation (None for one seed), and the part of the baseline's error that is saved.

    The last is over the seeds that both have, None without these. errors, baseline: {seed: error}.
    """
    values = np.array(list(errors.values()))
    common = [seed for seed in errors if seed in baseline]
    saved = 1 - sum(errors[seed] for seed in common) / sum(baseline[seed] for seed in common) if common else None
    return float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else None, saved
