"""Labels from many levels of theory as Markdown tables."""

from collections.abc import Iterable, Sequence
from typing import Any

from openmm_geomgnn.studies.label_molecules import PROPERTIES, LabelledMolecule
from openmm_geomgnn.studies.label_noise import LabelGrid, LabelRow
from openmm_geomgnn.studies.label_spread import values_of

ABSENT = "-"


def label_tables(rows: Sequence[LabelRow], grid: LabelGrid, summary: dict[str, Any]) -> str:
    """Markdown of all tables: values for each molecule and property, their spread, models' errors, what failed."""
    parts = []
    for name, entry in summary["properties"].items():
        for molecule in grid.molecules:
            parts += [
                f"{_heading(name)} of {molecule.title}{_published(molecule, name)}",
                _values(rows, grid, molecule, name),
            ]
        parts += [f"Spread of {_heading(name)}", _spreads(grid, entry)]
        if entry["beyond_shifts"] is not None:
            parts.append(
                "Standard deviation that is left when every level of theory may be off by a constant: "
                f"{entry['beyond_shifts']:.3f} {entry['unit']}."
            )
    if summary["models"]:
        parts += [
            "Mean absolute errors of models on the gap, beside the standard deviation",
            _models(grid, summary["models"]),
        ]
    failed = [row for row in rows if row.result.problem is not None]
    if failed:
        lines = [(row.molecule, row.functional, row.basis, row.result.problem) for row in failed]
        parts += ["Calculations that failed", _table(("molecule", "functional", "basis", "why"), lines)]
    return "\n\n".join(parts) + "\n"


def _heading(name: str) -> str:
    return f"{name if name in ('gap', 'dipole') else name.upper()} ({PROPERTIES[name]})"


def _published(molecule: LabelledMolecule, name: str) -> str:
    value = molecule.published.get(name)
    return "" if value is None else f", published: {value:.3f}"


def _values(rows: Sequence[LabelRow], grid: LabelGrid, molecule: LabelledMolecule, name: str) -> str:
    values = values_of(rows, molecule.name, name)
    lines = [
        (functional, *(_number(values.get((functional, basis))) for basis in grid.bases)) for functional in grid.functionals
    ]
    return _table(("", *grid.bases), lines)


def _spreads(grid: LabelGrid, entry: dict[str, Any]) -> str:
    lines = []
    for molecule in grid.molecules:
        own = entry["molecules"][molecule.name]
        per_functional = [one["std"] for one in own["bases_for_each_functional"].values() if one]
        bases = f"{min(per_functional):.3f} to {max(per_functional):.3f}" if per_functional else ABSENT
        cells = [_pick(own["all"], "std"), _pick(own["all"], "range"), _pick(own["functionals_in_largest_basis"], "std")]
        cells += [own["largest_basis"] or ABSENT, bases]
        published = [own.get(key) for key in ("published", "ours_at_the_published_level")]
        cells += [*map(_number, published), _number(own.get("mean_absolute_difference_to_published"))]
        lines.append((molecule.title, *cells))
    head = ("molecule", "std", "range", "std over functionals", "in basis", "std over bases, least to most", "published")
    return _table((*head, "ours at that level", "mean absolute difference to published"), lines)


def _models(grid: LabelGrid, models: dict[str, Any]) -> str:
    lines = []
    for name, model in models.items():
        for molecule in grid.molecules:
            ratio = model["std_over_mae"][molecule.name]
            within = model["within_mae_of_published"].get(molecule.name, ABSENT)
            lines.append((name, f"{model['mae']:g}", molecule.title, ABSENT if ratio is None else f"{ratio:.3g}", within))
    return _table(("model", "error (eV)", "molecule", "std / error", "other levels within the error of the label"), lines)


def _pick(spread: dict[str, Any] | None, key: str) -> str:
    return _number(None if spread is None else spread[key])


def _number(value: float | None) -> str:
    return ABSENT if value is None else f"{value:.3f}"


def _table(head: Sequence[str], lines: Iterable[Sequence[Any]]) -> str:
    """A Markdown table, its columns aligned."""
    cells = [tuple(map(str, line)) for line in (head, *lines)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    rule = tuple("-" * width for width in widths)
    padded = (
        " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        for line in (cells[0], rule, *cells[1:])
    )
    return "\n".join(f"| {line} |" for line in padded)
