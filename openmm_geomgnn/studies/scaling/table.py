"""The table of a sweep: a row for each network, also for those that failed, and the laws that are fitted to the rows."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.files import atomic_write
from openmm_geomgnn.studies.scaling.fits import Comparison, fit_laws
from openmm_geomgnn.studies.scaling.sweep import Network
from openmm_geomgnn.studies.training.folder import Result

LOSSES = {"first_epoch_loss": "after the first epoch", "best_loss": "converged"}
SIZES = {"depth": "parameters", "width": "parameters", "data": "conformers"}  # axes that have a law, and of what
COLUMNS = (
    "network", "model", "axes", "parameters", "conformers", "samples", "status", "first_epoch_loss", "best_loss",
    "best_epoch", "epochs", "converged", "wall_seconds", "reason",
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """A network and how its training ended; `samples` is how many conformers it has seen, each once an epoch."""

    network: Network
    result: Result

    @property
    def samples(self) -> int:
        """Conformers seen."""
        return self.network.conformers * self.result.epochs

    @property
    def trained(self) -> bool:
        """Whether it has losses."""
        return self.result.status == "trained"

    def as_dict(self) -> dict[str, Any]:
        """All of it, as JSON holds it."""
        network, result = self.network, asdict(self.result)
        found = {"network": network.name, "model": network.model, "axes": network.axes, "parameters": network.parameters}
        found |= {"conformers": network.conformers, "samples": self.samples, **result}
        return {name: found[name] for name in COLUMNS}


@dataclass(frozen=True)
class AxisLaw:
    """Laws of one loss of an architecture along an axis; `comparison` is None where `words` says why nothing was fitted."""

    model: str
    axis: str
    loss: str
    size: str
    comparison: Comparison | None
    words: str

    def as_dict(self) -> dict[str, Any]:
        """All of it, as JSON holds it."""
        names = "model", "axis", "loss", "size", "words"
        found: dict[str, Any] = {name: getattr(self, name) for name in names} | {"laws": []}
        if self.comparison is not None:
            found |= {"preferred": self.comparison.preferred, "weights": self.comparison.weights}
            for fit in self.comparison.fits:
                entry = asdict(fit)
                law = entry.pop("law")
                found["laws"].append({"law": law["name"], "formula": law["formula"], **entry})
        return found


def models_of(rows: Sequence[Row]) -> list[str]:
    """The architectures of a sweep, in their order."""
    return list(dict.fromkeys(row.network.model for row in rows))


def points(rows: Sequence[Row], model: str, axis: str, loss: str) -> tuple[list[float], list[float]]:
    """Sizes and losses of the trained networks of an architecture on an axis."""
    chosen = [row for row in rows if row.trained and row.network.model == model and axis in row.network.axes]
    sizes = [row.network.parameters if SIZES[axis] == "parameters" else row.network.conformers for row in chosen]
    return [float(size or 0) for size in sizes], [float(getattr(row.result, loss)) for row in chosen]


def fit_axes(rows: Sequence[Row]) -> list[AxisLaw]:
    """Fit the laws of every axis that has one, for both losses and every architecture."""
    found = []
    for loss, (axis, size), model in product(LOSSES, SIZES.items(), models_of(rows)):
        sizes, values = points(rows, model, axis, loss)
        if not sizes:
            continue
        try:
            comparison = fit_laws(sizes, values)
            found.append(AxisLaw(model, axis, loss, size, comparison, comparison.words))
        except GeomGNNError as error:
            found.append(AxisLaw(model, axis, loss, size, None, str(error)))
    return found


def write_table(path: Path, rows: Sequence[Row]) -> None:
    """Write the rows as CSV."""
    with atomic_write(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for row in rows:
            entry = row.as_dict()
            axes = " ".join(
                f"{axis}={value:g}" if not isinstance(value, str) else f"{axis}={value}"
                for axis, value in entry["axes"].items()
            )
            writer.writerow({**entry, "axes": axes})
