"""Tables of a study: a row for each network, and mean absolute errors over seeds beside those from scratch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from openmm_geomgnn.studies.supervised.plan import Network
from openmm_geomgnn.studies.training.folder import Result
from openmm_geomgnn.studies.training.seeds import over_seeds
from openmm_geomgnn.studies.training.ways import BASELINE

_LOSSES = ("first_epoch_loss", "best_loss")  # of validation, in the square of the target's unit


@dataclass(frozen=True)
class Row:
    """A network, how its training ended, and its error on the test molecules in the unit that tables have."""

    network: Network
    result: Result
    mae: float | None

    def as_dict(self) -> dict[str, Any]:
        """All of it, as JSON and CSV hold it."""
        network, result = self.network, asdict(self.result)
        for name in _LOSSES:
            del result[name]
        return {
            "network": network.name, "target": network.target.name, "split": network.split, "molecules": network.size,
            "encoder": network.encoder, "way": network.way, "seed": network.seed, "mae": self.mae,
            "unit": network.target.shown, **result,
        }  # fmt: skip


@dataclass(frozen=True)
class Summary:
    """Errors of the networks that differ in nothing but their seed.

    `mean` and `spread`, the standard deviation over `seeds` networks (None for one), are in `unit`; `gain` is the part of
    the error of networks from scratch that is saved, over the seeds that both have, None without these.
    """

    target: str
    split: str
    size: int
    encoder: str
    way: str
    unit: str
    seeds: int
    mean: float
    spread: float | None
    gain: float | None
    converged: int


def summarise(rows: Sequence[Row]) -> list[Summary]:
    """Average over seeds, in the order in which the networks come first."""
    groups: dict[tuple[str, str, int, str, str], list[Row]] = {}
    for row in rows:
        if row.mae is not None:
            one = row.network
            groups.setdefault((one.target.symbol, one.split, one.size, one.encoder, one.way), []).append(row)
    errors = {key: {row.network.seed: float(row.mae or 0.0) for row in found} for key, found in groups.items()}
    summaries = []
    for key, found in groups.items():
        target, split, size, encoder, way = key
        scratch = {} if way == BASELINE else errors.get((target, split, size, encoder, BASELINE), {})
        mean, spread, gain = over_seeds(errors[key], scratch)
        converged = sum(row.result.converged for row in found)
        numbers = len(found), mean, spread, gain, converged
        summaries.append(Summary(target, split, size, encoder, way, found[0].network.target.shown, *numbers))
    return summaries
