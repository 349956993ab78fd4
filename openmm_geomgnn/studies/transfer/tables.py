"""What the rows of a study of transfer say together: means over molecules, and differences with their errors."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import t as student_t

from openmm_geomgnn.cv.score_rows import RANDOM, TORSIONS
from openmm_geomgnn.formatting import count_of
from openmm_geomgnn.studies.transfer.scoring import (
    FITTED,
    LINEAR,
    NOTHING,
    TRANSFERRED,
    UNTRAINED,
    ZERO_SHOT,
    TransferRow,
)

METHODS = (LINEAR, FITTED, TRANSFERRED, ZERO_SHOT, UNTRAINED)
Scores = dict[str, float]  # by molecule


class Condition(NamedTuple):
    """What all features are compared in: method, mixer, data in ps (None is all, 0 nothing), number of components."""

    method: str
    mixer: str
    data: float | None
    components: int

    @property
    def label(self) -> str:
        """The method, with its mixer."""
        return self.method if self.mixer == "none" else f"{self.method} {self.mixer}"


@dataclass(frozen=True)
class Difference:
    """A mean over molecules of paired differences.

    Attributes
    ----------
    mean, error : float
        The error is the standard error over molecules; NaN for one.
    better, worse, molecules : int
        Molecules where the difference is positive, negative (of random weights: from every network), and all.
    """

    mean: float
    error: float
    better: int
    worse: int
    molecules: int

    def __str__(self) -> str:
        return f"{self.mean:+.3f} ± {self.error:.3f}"

    @property
    def is_clear(self) -> bool:
        """Whether zero is outside the interval of 95 % by Student's t, for molecules are few."""
        return bool(self.molecules > 1 and abs(self.mean) > student_t.ppf(0.975, self.molecules - 1) * self.error)


@dataclass(frozen=True)
class Comparison:
    """A condition: the mean score of an encoder's features, and how it differs from others.

    Attributes
    ----------
    condition : Condition
    features : str
    score : float
        Mean over molecules, folds and seeds.
    random : tuple of float
        That of each network with random weights.
    pretraining : Difference or None
        From random weights in the same condition.
    from_torsions, from_linear : Difference or None
        From torsions, and from the linear CV of the same features, fitted to the same amount of the molecule (zero-shot: to
        all of it).
    """

    condition: Condition
    features: str
    score: float
    random: tuple[float, ...]
    pretraining: Difference | None
    from_torsions: Difference | None
    from_linear: Difference | None


def compare(rows: Sequence[TransferRow]) -> list[Comparison]:
    """The comparisons of all conditions and features, but for random weights and torsions themselves."""
    usable = [row for row in rows if row.problem is None]
    names = dict.fromkeys(row.key.features for row in usable)
    trained = [name for name in names if name != TORSIONS and not name.startswith(RANDOM)]
    untrained = [name for name in names if name.startswith(RANDOM)]
    found = []
    for condition in conditions(usable):
        random = [by_molecule(usable, name, condition) for name in untrained]
        linear = condition._replace(method=LINEAR, mixer="none", data=_fitted(condition.data))
        torsions = by_molecule(usable, TORSIONS, linear)
        for name in trained:
            mine = by_molecule(usable, name, condition)
            if not mine:
                continue
            found.append(
                Comparison(
                    condition,
                    name,
                    float(np.mean(list(mine.values()))),
                    tuple(float(np.mean(list(one.values()))) for one in random if one),
                    _difference(mine, random),
                    _difference(mine, [torsions]),
                    None if condition == linear else _difference(mine, [by_molecule(usable, name, linear)]),
                )
            )
    return found


def conditions(rows: Sequence[TransferRow]) -> list[Condition]:
    """All conditions of rows: by components, then method, then data."""
    found = {Condition(row.key.method, row.key.mixer, row.key.data, row.key.components) for row in rows}
    return sorted(found, key=lambda c: (c.components, METHODS.index(c.method), c.mixer, c.data is None, c.data or 0.0))


def by_molecule(rows: Sequence[TransferRow], features: str, condition: Condition) -> Scores:
    """The score of each molecule in a condition: mean over folds and seeds."""
    found: dict[str, list[float]] = {}
    for row in rows:
        key = row.key
        if key.features == features and (key.method, key.mixer, key.data, key.components) == condition:
            found.setdefault(key.molecule, []).append(row.score)
    return {name: float(np.mean(values)) for name, values in found.items()}


def mean_of(many: Sequence[Scores]) -> Scores:
    """The mean of the molecules that all have."""
    names = set.intersection(*map(set, many)) if many else set()
    return {name: float(np.mean([one[name] for one in many])) for name in sorted(names)}


def _fitted(data: float | None) -> float | None:
    return None if data == NOTHING else data


def _difference(mine: Scores, others: Sequence[Scores]) -> Difference | None:
    """From the mean of others, over the molecules that all have; None where there are none."""
    mean = mean_of(others)
    names = [name for name in mine if name in mean]
    if not names:
        return None
    values = np.array([mine[name] - mean[name] for name in names])
    error = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else float("nan")
    better = sum(mine[name] > max(one[name] for one in others) for name in names)
    worse = sum(mine[name] < min(one[name] for one in others) for name in names)
    return Difference(float(values.mean()), float(error), better, worse, len(names))


# ----------------------------------------------------------------------------------------------------- what people read


def data_text(data: float | None) -> str:
    """How much of the molecule was fitted to, in words."""
    return "all" if data is None else "nothing" if data == NOTHING else f"{data / 1000:g} ns"


def comparison_table(comparisons: Sequence[Comparison]) -> list[list[str]]:
    """The comparisons as rows of text, the first the head."""
    rows = [["components", "CV", "fitted to", "features", "VAMP-2", "random", "pre-training", "- torsions", "- linear"]]
    for one in comparisons:
        random = f"{np.mean(one.random):.3f} ({min(one.random):.3f} to {max(one.random):.3f})" if one.random else ""
        cells = ["" if found is None else str(found) for found in (one.pretraining, one.from_torsions, one.from_linear)]
        condition = one.condition
        what = [str(condition.components), condition.label, data_text(condition.data), one.features]
        rows.append([*what, f"{one.score:.3f}", random, *cells])
    return rows


def molecule_table(rows: Sequence[TransferRow], components: int) -> list[list[str]]:
    """Scores of each molecule by trained encoders and torsions, with as many components; the first row is the head."""
    usable = [row for row in rows if row.problem is None and row.key.components == components]
    molecules = list(dict.fromkeys(row.key.molecule for row in rows))
    names = [name for name in dict.fromkeys(row.key.features for row in usable) if not name.startswith(RANDOM)]
    table = [["CV", "fitted to", "features", *molecules]]
    for condition in conditions(usable):
        for name in names:
            scores = by_molecule(usable, name, condition)
            if scores:
                cells = [f"{scores[one]:.3f}" if one in scores else "" for one in molecules]
                table.append([condition.label, data_text(condition.data), name, *cells])
    return table


def notes(rows: Sequence[TransferRow], comparisons: Sequence[Comparison]) -> Iterator[str]:
    """Sentences: where pre-training and transfer make a clear difference, and what failed."""
    subjects: list[tuple[str, Callable[[Comparison], Difference | None]]] = [
        ("Pre-training", lambda one: one.pretraining),
        ("Transfer (against the linear CV)", lambda one: one.from_linear if _carried(one) else None),
    ]
    for subject, pick in subjects:
        tested = [(one, difference) for one in comparisons if (difference := pick(one)) is not None]
        for word, sign in (("helps", 1), ("hurts", -1)):
            clear = [f"{_where(one)} ({d})" for one, d in tested if d.is_clear and np.sign(d.mean) == sign]
            if clear:
                yield f"{subject} {word} in {len(clear)} of {count_of(len(tested), 'comparison')}: {'; '.join(clear)}."
        if tested and not any(d.is_clear for _, d in tested):
            yield f"{subject}: no difference outside an interval of 95 % in {count_of(len(tested), 'comparison')}."
    problems: dict[str, int] = {}
    for row in rows:
        if row.problem is not None:
            problems[row.problem] = problems.get(row.problem, 0) + 1
    for problem, count in problems.items():
        yield f"Warning: {count_of(count, 'row')} could not be scored: {problem}"


def _carried(one: Comparison) -> bool:
    return one.condition.method in (TRANSFERRED, ZERO_SHOT)


def _where(one: Comparison) -> str:
    condition = one.condition
    return f"{one.features}, {condition.label}, {count_of(condition.components, 'component')}, {data_text(condition.data)}"


def as_json(comparisons: Sequence[Comparison]) -> dict[str, Any]:
    """All comparisons as JSON holds them."""
    entries = []
    for one in comparisons:
        entry = asdict(one)
        entries.append({**one.condition._asdict(), **{name: entry[name] for name in entry if name != "condition"}})
    return {"comparisons": entries}
