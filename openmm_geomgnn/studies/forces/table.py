"""Tables of a study: a row for each network, and errors over seeds on each set of test frames beside those from scratch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from openmm_geomgnn.studies.forces.evaluate import Errors
from openmm_geomgnn.studies.forces.plan import Network
from openmm_geomgnn.studies.training.folder import Result
from openmm_geomgnn.studies.training.seeds import over_seeds
from openmm_geomgnn.studies.training.ways import BASELINE

UNITS = {"energy": "meV", "relative_energy": "meV", "energy_per_atom": "meV/atom", "forces": "meV/angstrom"}
KINDS = tuple(UNITS)


@dataclass(frozen=True)
class Row:
    """A network, how its training ended, and its errors by the set of the test frames."""

    network: Network
    result: Result
    errors: Mapping[str, Errors] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """All of it, as JSON and CSV hold it."""
        network = self.network
        found = {f"{kind} of {name}": getattr(one, kind) for name, one in self.errors.items() for kind in KINDS}
        return {
            "network": network.name, "split": network.split, "frames": network.size, "encoder": network.encoder,
            "way": network.way, "seed": network.seed, **found, **asdict(self.result),
        }  # fmt: skip


@dataclass(frozen=True)
class Summary:
    """Errors on one set of test frames of the networks that differ in nothing but their seed.

    Attributes
    ----------
    split : str
    size : int
        Training frames.
    encoder, way, tested : str
        `tested` is the set of the test frames.
    kind, unit : str
        What the errors are of: a key of `UNITS`.
    seeds : int
    mean : float
    spread : float or None
        Standard deviation over the seeds.
    gain : float or None
        Part of the error from scratch that is saved, over the seeds that both have.
    converged : int
        Of these networks.
    """

    split: str
    size: int
    encoder: str
    way: str
    tested: str
    kind: str
    unit: str
    seeds: int
    mean: float
    spread: float | None
    gain: float | None
    converged: int


def summarise(rows: Sequence[Row]) -> list[Summary]:
    """Average over seeds, in the order in which networks and sets come first."""
    groups: dict[tuple[str, int, str, str], list[Row]] = {}
    for row in rows:
        if row.errors:
            one = row.network
            groups.setdefault((one.split, one.size, one.encoder, one.way), []).append(row)
    summaries = []
    for (split, size, encoder, way), found in groups.items():
        scratch = [] if way == BASELINE else groups.get((split, size, encoder, BASELINE), [])
        for tested in found[0].errors:
            for kind in KINDS:
                mean, spread, gain = over_seeds(_by_seed(found, tested, kind), _by_seed(scratch, tested, kind))
                converged = sum(row.result.converged for row in found)
                numbers = len(found), mean, spread, gain, converged
                summaries.append(Summary(split, size, encoder, way, tested, kind, UNITS[kind], *numbers))
    return summaries


def _by_seed(rows: Sequence[Row], tested: str, kind: str) -> dict[int, float]:
    return {row.network.seed: getattr(row.errors[tested], kind) for row in rows}
