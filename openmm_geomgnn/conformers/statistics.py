"""Statistics of a store of conformers: numbers of conformers and atoms, elements and sizes, by source and in total."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from torchmdnet_ext.datasets.conformer_store import Shard


class Statistics:
    """Counts of some conformers, added up shard by shard."""

    def __init__(self) -> None:
        self.elements = np.zeros(256, dtype=np.int64)
        self.sizes = np.zeros(1, dtype=np.int64)
        self.skipped: Counter[str] = Counter()

    def add(self, z: np.ndarray, sizes: np.ndarray, skipped: Mapping[str, int] | None = None) -> None:
        """Count conformers: z (A,) uint8 of all their atoms, sizes (M,) in atoms; skipped: numbers by reason."""
        self.elements += np.bincount(z, minlength=256)
        counts = np.bincount(sizes, minlength=len(self.sizes))
        counts[: len(self.sizes)] += self.sizes
        self.sizes = counts
        self.skipped.update(skipped or {})

    def as_dict(self) -> dict[str, Any]:
        """For JSON: conformers, atoms, elements {symbol: atoms}, sizes (min, mean, max, histogram), skipped."""
        from openmm.app.element import Element

        conformers, atoms = int(self.sizes.sum()), int(self.elements.sum())
        present = np.flatnonzero(self.sizes)
        numbers = np.flatnonzero(self.elements).tolist()
        return {
            "conformers": conformers,
            "atoms": atoms,
            "elements": {Element.getByAtomicNumber(z).symbol: int(self.elements[z]) for z in numbers},
            "sizes": {
                "min": int(present[0]) if conformers else None,
                "mean": round(atoms / conformers, 3) if conformers else None,
                "max": int(present[-1]) if conformers else None,
                "histogram": {str(size): int(self.sizes[size]) for size in present},
            },
            "skipped": dict(sorted(self.skipped.items())),
        }


def summarise(shards: Iterable[Shard]) -> dict[str, Any]:
    """Summarise the statistics of `torchmdnet_ext` shards, in total and for each source under "sources"."""
    total = Statistics()
    by_source: dict[str, Statistics] = {}
    for shard in shards:
        arrays = shard.arrays
        sizes = np.diff(arrays["ptr"])
        skipped = shard.header.get("skipped")  # counted if a shard has only one source
        total.add(arrays["z"], sizes, skipped)
        for k, name in enumerate(shard.sources):
            own = arrays["source"] == k
            by_source.setdefault(name, Statistics()).add(arrays["z"][np.repeat(own, sizes)], sizes[own], skipped)
    return {**total.as_dict(), "sources": {name: statistics.as_dict() for name, statistics in by_source.items()}}
