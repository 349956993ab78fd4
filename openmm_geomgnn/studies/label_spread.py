"""What labels from many levels of theory say together: their spread, and what of it models of one level do not see."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from openmm_geomgnn.studies.label_molecules import PROPERTIES, LabelledMolecule
from openmm_geomgnn.studies.label_noise import LabelGrid, LabelRow
from openmm_geomgnn.studies.quantum import QM9_BASIS, QM9_FUNCTIONAL

DIGITS = 6  # of numbers in the summary


@dataclass(frozen=True)
class Spread:
    """Some values of one property: how many, mean, standard deviation (n - 1 in the denominator), smallest and largest."""

    number: int
    mean: float
    std: float
    smallest: float
    largest: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread | None":
        """The spread of values; None for fewer than two."""
        if len(values) < 2:
            return None
        array = np.array(values)
        return cls(len(array), *(float(one) for one in (array.mean(), array.std(ddof=1), array.min(), array.max())))

    def as_dict(self) -> dict[str, Any]:
        """The spread with its range, as JSON holds it."""
        return {
            "number": self.number,
            "mean": round(self.mean, DIGITS),
            "std": round(self.std, DIGITS),
            "min": round(self.smallest, DIGITS),
            "max": round(self.largest, DIGITS),
            "range": round(self.largest - self.smallest, DIGITS),
        }


def values_of(rows: Sequence[LabelRow], molecule: str, name: str) -> dict[tuple[str, str], float]:
    """{(functional, basis): value} of one property of one molecule, in the order of the rows, without what failed."""
    own = (row for row in rows if row.molecule == molecule and row.result.problem is None)
    return {(row.functional, row.basis): getattr(row.result, name) for row in own}


def largest_basis(rows: Sequence[LabelRow], molecule: str) -> str | None:
    """The basis with most functions in which a molecule was computed; None where every calculation failed."""
    sizes = {row.basis: row.result.functions or 0 for row in rows if row.molecule == molecule and row.result.problem is None}
    return max(sizes, key=lambda basis: sizes[basis]) if sizes else None


def spread_beyond_shifts(values: Mapping[str, Mapping[tuple[str, str], float]]) -> float | None:
    """The standard deviation that is left when each level of theory may be off by a constant of its own.

    Of the values x of molecule m at level k that is x - mean over m - mean over k + mean of all, with (M - 1)(K - 1) degrees
    of freedom. A network that learns from one level does not see that level's constant; this is what it cannot know.

    Parameters
    ----------
    values : {molecule: {level: value}}

    Returns
    -------
    float or None
        None for fewer than two molecules, or two levels at which all of them were computed.
    """
    common = set.intersection(*(set(own) for own in values.values())) if values else set()
    if len(values) < 2 or len(common) < 2:
        return None
    table = np.array([[own[level] for level in sorted(common)] for own in values.values()])
    rest = table - table.mean(axis=0) - table.mean(axis=1, keepdims=True) + table.mean()
    freedom = (table.shape[0] - 1) * (table.shape[1] - 1)
    return float(np.sqrt((rest**2).sum() / freedom))


def summarise_labels(
    rows: Sequence[LabelRow], grid: LabelGrid, properties: Sequence[str], model_mae: Mapping[str, float]
) -> dict[str, Any]:
    """What the rows say, as JSON holds it: for each property, for each molecule, and beside models' errors on the gap.

    Parameters
    ----------
    rows : sequence of LabelRow
    grid : LabelGrid
        Of which they are.
    properties : sequence of str
        Among `PROPERTIES`.
    model_mae : {name: mean absolute error on the gap in eV}

    Returns
    -------
    dict
    """
    failed = [row for row in rows if row.result.problem is not None]
    summary: dict[str, Any] = {"calculations": len(rows), "failed": len(failed), "properties": {}}
    for name in properties:
        values = {one.name: values_of(rows, one.name, name) for one in grid.molecules}
        rest = spread_beyond_shifts(values)
        summary["properties"][name] = {
            "unit": PROPERTIES[name],
            "beyond_shifts": None if rest is None else round(rest, DIGITS),
            "molecules": {one.name: _molecule_summary(rows, one, name, grid) for one in grid.molecules},
        }
    summary["models"] = {model: _model_summary(rows, grid, mae) for model, mae in model_mae.items()}
    return summary


def _molecule_summary(rows: Sequence[LabelRow], molecule: LabelledMolecule, name: str, grid: LabelGrid) -> dict[str, Any]:
    values = values_of(rows, molecule.name, name)
    largest = largest_basis(rows, molecule.name)
    in_largest = [value for (_, basis), value in values.items() if basis == largest]
    summary: dict[str, Any] = {
        "all": _as_dict(Spread.of(list(values.values()))),
        "largest_basis": largest,
        "functionals_in_largest_basis": _as_dict(Spread.of(in_largest)),
        "bases_for_each_functional": {
            functional: _as_dict(Spread.of([value for (one, _), value in values.items() if one == functional]))
            for functional in grid.functionals
        },
    }
    published = molecule.published.get(name)
    if published is not None:
        differences = np.array([value - published for value in values.values()])
        own = next((value for level, value in values.items() if _is_of_qm9(level)), None)
        summary["published"] = published
        summary["ours_at_the_published_level"] = own
        summary["mean_difference_to_published"] = _rounded(differences.mean() if len(differences) else None)
        summary["mean_absolute_difference_to_published"] = _rounded(np.abs(differences).mean() if len(differences) else None)
    return summary


def _model_summary(rows: Sequence[LabelRow], grid: LabelGrid, mae: float) -> dict[str, Any]:
    """A model's error on the gap beside the spread of each molecule, and how many other levels lie within the error."""
    summary: dict[str, Any] = {"mae": mae, "std_over_mae": {}, "within_mae_of_published": {}}
    for molecule in grid.molecules:
        values = values_of(rows, molecule.name, "gap")
        spread = Spread.of(list(values.values()))
        summary["std_over_mae"][molecule.name] = None if spread is None else round(spread.std / mae, 2)
        if "gap" in molecule.published:
            others = [value for level, value in values.items() if not _is_of_qm9(level)]
            within = sum(abs(value - molecule.published["gap"]) <= mae for value in others)
            summary["within_mae_of_published"][molecule.name] = f"{within} of {len(others)}"
    return summary


def _is_of_qm9(level: tuple[str, str]) -> bool:
    functional, basis = level
    return functional.lower() == QM9_FUNCTIONAL and basis.lower() == QM9_BASIS.lower()


def _as_dict(spread: Spread | None) -> dict[str, Any] | None:
    return None if spread is None else spread.as_dict()


def _rounded(number: Any) -> float | None:
    return None if number is None else round(float(number), DIGITS)
