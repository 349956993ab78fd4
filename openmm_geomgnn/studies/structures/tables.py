"""Accuracies over seeds, and what tokens change."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from openmm_geomgnn.cv.score_rows import RANDOM
from openmm_geomgnn.studies.structures.study import NO_TOKENS


@dataclass(frozen=True)
class AccuracyRow:
    """A network that was trained, or was not.

    Attributes
    ----------
    network, tokens, seed
        As in `study.Training`.
    accuracy : dict of float
        By the part that was tested on; empty where the training failed.
    best_loss : float or None
        Of validation, cross entropy.
    epochs : int
    wall_seconds : float
    problem : str
    confusion : dict of lists
        By part, how many structures of each class (rows) are given which (columns); empty where the classes are many.
    """

    network: str
    tokens: str
    seed: int
    accuracy: dict[str, float] = field(default_factory=dict)
    best_loss: float | None = None
    epochs: int = 0
    wall_seconds: float = 0.0
    problem: str = ""
    confusion: dict[str, list[list[int]]] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """What files hold of it."""
        return asdict(self)


@dataclass(frozen=True)
class Accuracy:
    """Of a network with one kind of tokens on one part: its accuracies (seeds,), their mean and its standard error.

    The error is None where there is but one seed.
    """

    network: str
    tokens: str
    part: str
    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Over seeds."""
        return float(np.mean(self.values))

    @property
    def error(self) -> float | None:
        """Standard error of the mean."""
        return _standard_error(self.values)


def summarise(rows: Sequence[AccuracyRow]) -> list[Accuracy]:
    """Accuracies over seeds, in the order of the rows; without what failed in all of them."""
    found: dict[tuple[str, str, str], list[float]] = {}
    for row in rows:
        for part, value in row.accuracy.items():
            found.setdefault((row.network, row.tokens, part), []).append(value)
    return [Accuracy(*key, tuple(values)) for key, values in found.items()]


def mean_and_error(values: Sequence[float]) -> str:
    """Percent, with the standard error of the mean over seeds where there are two or more."""
    if not len(values):
        return ""
    mean, error = f"{100 * np.mean(values):.1f}", _standard_error(values)
    return mean if error is None else f"{mean} +- {100 * error:.1f}"


def _standard_error(values: Sequence[float]) -> float | None:
    """That of the mean; None of a single value."""
    return float(np.std(values, ddof=1) / len(values) ** 0.5) if len(values) > 1 else None


def accuracy_table(rows: Sequence[AccuracyRow], chances: Mapping[str, float]) -> list[list[str]]:
    """The accuracy in percent of each network with each kind of tokens, by the part that was tested on."""
    table = [["network", "tokens", *chances, "seeds"]]
    for network, tokens in dict.fromkeys((row.network, row.tokens) for row in rows):
        own = [row for row in rows if (row.network, row.tokens) == (network, tokens) and row.accuracy]
        cells = [mean_and_error([row.accuracy[part] for row in own]) for part in chances]
        table.append([network, tokens, *cells, str(len(own))])
    table.append(["commonest class", "", *(f"{100 * value:.1f}" for value in chances.values()), ""])
    return table


def notes(rows: Sequence[AccuracyRow], encoder: str, parts: Sequence[str]) -> Iterator[str]:
    """What tokens change, in paired differences over seeds, and which trainings failed."""
    by_key = {(row.network, row.tokens, row.seed): row.accuracy for row in rows if row.accuracy}
    for network in dict.fromkeys(row.network for row in rows):
        for other, said in ((NO_TOKENS, "no tokens"), (RANDOM, "tokens of random weights")):
            seeds = [s for n, t, s in by_key if (n, t) == (network, encoder) and (network, other, s) in by_key]
            for part in parts if seeds else ():
                gain = [by_key[network, encoder, s][part] - by_key[network, other, s][part] for s in seeds]
                yield f"{network}, {part}: tokens of {encoder} against {said}, {mean_and_error(gain)} percent points."
    for row in rows:
        if row.problem:
            yield f"Warning: {row.network} with tokens: {row.tokens}, seed {row.seed}, failed: {row.problem}"
