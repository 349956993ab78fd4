"""What depth does to encoders: over-smoothing and under-reaching on given structures, beside random weights."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from openmm_geomgnn.representation.encoder import Encoder
from openmm_geomgnn.studies.diagnostics import Reach, Smoothing, over_smoothing, under_reaching

DISTANCE_BIN = 2.0  # angstrom
# a rank that has fallen by this share since its largest, and neighbours this much more alike than any two atoms
FALLEN, ALIKE = 0.2, 0.5
SHORT = 0.05  # what is felt two messages away, as a share of one message away


@dataclass(frozen=True, eq=False)
class Conformation:
    """One conformation of a molecule: z (N,) atomic numbers, pos (N, 3) in angstrom."""

    name: str
    z: np.ndarray
    pos: np.ndarray


@dataclass(frozen=True, eq=False)
class Depth:
    """What was measured of one encoder on one conformation.

    Attributes
    ----------
    encoder, conformation : str
    smoothing : Smoothing
    reach : Reach
    random_smoothing, random_reach : list
        Of networks of the same settings with random weights, one for each seed.
    """

    encoder: str
    conformation: str
    smoothing: Smoothing
    reach: Reach
    random_smoothing: tuple[Smoothing, ...] = ()
    random_reach: tuple[Reach, ...] = ()

    def hops(self) -> dict[int, tuple[float, np.ndarray]]:
        """At each number of messages the Jacobian of the encoder, and those of random weights (seeds,)."""
        random = [reach.by_hops() for reach in self.random_reach]
        return {hop: (value, np.array([one[hop] for one in random])) for hop, value in self.reach.by_hops().items()}

    def distances(self) -> dict[tuple[float, float], tuple[float, np.ndarray]]:
        """The same for pairs of atoms whose distance lies between two ends, angstrom."""
        bins = (self.reach.distance // DISTANCE_BIN).astype(int)
        found = {}
        for one in np.unique(bins):
            own, *random = (_rms(reach.jacobian[bins == one]) for reach in (self.reach, *self.random_reach))
            found[float(one * DISTANCE_BIN), float((one + 1) * DISTANCE_BIN)] = own, np.array(random)
        return found

    def over_smoothing_in_words(self) -> str:
        """Whether features become alike from layer to layer."""
        rank, energy = self.smoothing.rank, self.smoothing.energy
        head = f"{self.encoder} on {self.conformation}:"
        numbers = f"effective rank {_series(rank)}, energy {_series(energy)}, from the embedding to the last layer"
        if rank[-1] < (1 - FALLEN) * rank.max() or energy[-1] < ALIKE:
            return f"Warning: {head} features become alike in its last layers ({numbers}). Fewer layers may do as well."
        return f"{head} features do not become alike ({numbers}; {self._beside_random()})."

    def _beside_random(self) -> str:
        if not self.random_smoothing:
            return "no random weights to compare with"
        last = np.array([one.rank[-1] for one in self.random_smoothing])
        return f"with random weights the rank ends at {last.mean():.3g} +- {last.std(ddof=len(last) > 1):.1g}"

    def under_reaching_in_words(self) -> str:
        """How much is felt beyond one message."""
        hops, head = self.hops(), f"{self.encoder} on {self.conformation}:"
        if 2 not in hops or not hops[1][0]:
            return f"{head} all atoms are neighbours, so nothing can be said of what is further. Give a larger molecule."
        share = hops[2][0] / hops[1][0]
        text = f"what is two messages away counts {share:.2g} of what is one message away"
        if len(hops[2][1]):
            random = float(np.mean(hops[2][1] / hops[1][1]))
            text += f" (with random weights {random:.1g})"
        if share < SHORT:
            return f"Warning: {head} {text}: it hardly sees beyond its cutoff, whatever its layers could carry."
        return f"{head} {text}."


def measure_depth(
    encoders: Sequence[Encoder],
    conformations: Sequence[Conformation],
    random_weights: int = 3,
    draws: int = 8,
    seed: int = 1,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Iterator[Depth]:
    """Measure every encoder on every conformation, and networks of its settings with random weights.

    Parameters
    ----------
    encoders : list of Encoder
    conformations : list of Conformation
    random_weights : int
        Networks for each encoder, of seeds that count up from `seed`.
    draws : int
        As of `under_reaching`.

    Raises
    ------
    GeomGNNError
        If the layers of a network cannot be told, or a molecule has elements that it does not know.
    """
    done, total = 0, len(encoders) * len(conformations)
    for encoder in encoders:
        untrained = [encoder.with_random_weights(seed + k).to(encoder.dtype) for k in range(random_weights)]
        for one in conformations:
            smoothing = [over_smoothing(network, one.z, one.pos) for network in (encoder, *untrained)]
            reach = [under_reaching(network, one.z, one.pos, draws, seed) for network in (encoder, *untrained)]
            yield Depth(encoder.name, one.name, smoothing[0], reach[0], tuple(smoothing[1:]), tuple(reach[1:]))
            done += 1
            progress(done, total)


def layer_rows(found: Sequence[Depth]) -> list[dict[str, Any]]:
    """A row for each encoder, conformation and layer, 0 being the embedding; of random weights mean and deviation."""
    rows = []
    for one in found:
        for layer in range(len(one.smoothing.energy)):
            row = {"encoder": one.encoder, "conformation": one.conformation, "layer": layer}
            for name in ("energy", "rank"):
                random = np.array([getattr(other, name)[layer] for other in one.random_smoothing])
                row |= {name: float(getattr(one.smoothing, name)[layer]), **_spread(f"random_{name}", random)}
            rows.append(row)
    return rows


def reach_rows(found: Sequence[Depth]) -> list[dict[str, Any]]:
    """A row for each encoder, conformation and number of messages, then for each range of distances."""
    rows = []
    for one in found:
        head = {"encoder": one.encoder, "conformation": one.conformation}
        for hop, (value, random) in one.hops().items():
            rows.append({**head, "messages": hop, "jacobian": value, **_spread("random_jacobian", random)})
        for (low, high), (value, random) in one.distances().items():
            place = {"from_angstrom": low, "to_angstrom": high}
            rows.append({**head, **place, "jacobian": value, **_spread("random_jacobian", random)})
    return rows


def _spread(name: str, values: np.ndarray) -> Mapping[str, float]:
    if not len(values):
        return {}
    return {name: float(values.mean()), f"{name}_deviation": float(values.std(ddof=1)) if len(values) > 1 else float("nan")}


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt((values**2).mean()))


def _series(values: np.ndarray) -> str:
    return ", ".join(f"{value:.3g}" for value in values)
