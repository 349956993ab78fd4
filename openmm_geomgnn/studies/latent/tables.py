"""What is said of a latent space: tables, notes, and everything as JSON and as columns of numbers."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from openmm_geomgnn.cv.score_rows import RANDOM
from openmm_geomgnn.formatting import count_of
from openmm_geomgnn.studies.latent.networks import REPRESENTATIONS
from openmm_geomgnn.studies.latent.projections import FOR_UMAP
from openmm_geomgnn.studies.latent.study import UMAP, LatentSpace, Similarity

FORMAT, VERSION = "openmm-geomgnn latent space", 1


class Comparison(NamedTuple):
    """How the probes of a trained network compare with those of random weights, over all observables.

    Attributes
    ----------
    network, representation : str
    r2, r2_error : float
        Mean over observables and folds, and its standard error over folds.
    random : tuple of float
        The same mean for each seed.
    difference, difference_error : float
        From the mean of the seeds, and its standard error over the same folds.
    better, worse, observables : int
        Observables whose R2, a mean over folds, is above that of all seeds, below that of all, and their number.
    """

    network: str
    representation: str
    r2: float
    r2_error: float
    random: tuple[float, ...]
    difference: float
    difference_error: float
    better: int
    worse: int
    observables: int

    def in_words(self) -> str:
        """A sentence."""
        low, high = min(self.random), max(self.random)
        spread = f"{low:.3f} to {high:.3f}" if len(self.random) > 1 else f"{low:.3f}"
        seeds = count_of(len(self.random), "network")
        return (
            f"{self.network}, {self.representation}: mean R2 {self.r2:.3f} ± {self.r2_error:.3f}, {spread} with random "
            f"weights ({seeds}); the difference from their mean is {self.difference:+.3f} ± {self.difference_error:.3f} "
            f"over folds. Of {count_of(self.observables, 'observable')} {self.better} are read better than from every "
            f"network with random weights, {self.worse} worse than from every one."
        )


def standard_error(values: np.ndarray) -> np.ndarray:
    """The standard error of the mean over the last axis."""
    return np.nanstd(values, axis=-1, ddof=1) / np.sqrt(values.shape[-1])


def compare(space: LatentSpace) -> list[Comparison]:
    """The `Comparison` of each trained network and representation; an empty list without networks of random weights."""
    found = []
    for representation in REPRESENTATIONS:
        random = np.array([space.r2[one.name, representation] for one in space.untrained])
        if not len(random):
            continue
        known = np.isfinite(random).all(axis=(0, 2))  # an observable may not vary in a fold
        for network in space.trained:
            r2 = space.r2[network.name, representation]
            seeds, mean = random[:, known].mean(axis=2), r2[known].mean(axis=1)
            by_fold, difference = r2[known].mean(axis=0), (r2[known] - random[:, known].mean(axis=0)).mean(axis=0)
            found.append(
                Comparison(
                    *(network.name, representation, float(by_fold.mean()), float(standard_error(by_fold))),
                    tuple(seeds.mean(axis=1).tolist()),
                    *(float(difference.mean()), float(standard_error(difference))),
                    *(int((mean > seeds.max(axis=0)).sum()), int((mean < seeds.min(axis=0)).sum()), int(known.sum())),
                )
            )
    return found


def kinds(space: LatentSpace) -> dict[str, list[int]]:
    """Numbers of the observables of each kind, in the order of the observables."""
    found: dict[str, list[int]] = {}
    for number, one in enumerate(space.observables):
        found.setdefault(one.kind, []).append(number)
    return found


def kind_means(space: LatentSpace, network: str, representation: str) -> np.ndarray:
    """R2 of each kind of observable in each fold, (kinds, folds), means over the observables of the kind."""
    r2 = space.r2[network, representation]
    return np.array([np.nanmean(r2[numbers], axis=0) for numbers in kinds(space).values()])


def frame_notes(space: LatentSpace) -> Iterator[str]:
    """How UMAP found its coordinates, where there are some."""
    umap = [found.coordinates for (_, _, way), found in space.projections.items() if way == UMAP]
    if umap:
        frames, all_of_them = int(np.isfinite(umap[0][:, 0]).sum()), len(umap[0])
        which = f"all {frames} frames" if frames == all_of_them else f"{frames} of {all_of_them} frames, evenly spread"
        yield f"UMAP: of {which}, from up to {FOR_UMAP} principal components of the features; exact nearest neighbours."


def probe_tables(space: LatentSpace) -> Iterator[tuple[str, list[list[str]]]]:
    """(title, rows) for each representation: a row for each kind of observable, a column for each trained network."""
    for representation in REPRESENTATIONS:
        head = ["observable", "how many", *(one.name for one in space.trained)]
        columns = [_with_errors(kind_means(space, one.name, representation)) for one in space.trained]
        if space.untrained:
            means = np.array([kind_means(space, one.name, representation).mean(axis=1) for one in space.untrained])
            head.append(f"{RANDOM}, {count_of(len(means), 'seed')}")
            ranges = zip(means.mean(axis=0), means.min(axis=0), means.max(axis=0), strict=True)
            columns.append([f"{mean:.3f} ({low:.3f} to {high:.3f})" for mean, low, high in ranges])
        names = [[name, str(len(numbers))] for name, numbers in kinds(space).items()]
        rows = [[*name, *cells] for name, *cells in zip(names, *columns, strict=True)]
        yield f"Linear probes of {representation} features: R2 in frames held out", [head, *rows]


def _with_errors(means: np.ndarray) -> list[str]:
    pairs = zip(means.mean(axis=1), standard_error(means), strict=True)
    return [f"{mean:.3f} ± {error:.3f}" for mean, error in pairs]


def similarity_tables(space: LatentSpace) -> Iterator[tuple[str, list[list[str]]]]:
    """(title, rows) of the CKA of networks, for each representation."""
    for name, found in space.cka.items():
        rows = [[one, *(f"{value:.3f}" for value in row)] for one, row in zip(found.names, found.values, strict=True)]
        yield f"CKA of {name} features", [["", *found.names], *rows]


def as_json(space: LatentSpace) -> dict[str, Any]:
    """Everything but the values along frames, as plain numbers."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "frames": space.lengths,
        "networks": [{"name": one.name, "random_weights": one.is_random} for one in space.networks],
        "observables": [{"name": one.name, "kind": one.kind, "unit": one.unit} for one in space.observables],
        "probes": [
            {"network": network, "representation": name, "observable": one.name, "kind": one.kind, "r2_by_fold": list(row)}
            for (network, name), r2 in space.r2.items()
            for one, row in zip(space.observables, r2, strict=True)
        ],
        "comparison_with_random_weights": [one._asdict() for one in compare(space)],
        "cka": {name: _similarity(found) for name, found in space.cka.items()},
        "cka_of_layers": None if space.layer_cka is None else _similarity(space.layer_cka),
        "projections": [
            {"network": network, "representation": name, "way": way, "explained_variance": list(found.explained)}
            for (network, name, way), found in space.projections.items()
        ],
    }


def _similarity(found: Similarity) -> dict[str, Any]:
    return {"names": list(found.names), "values": found.values.tolist()}


def columns(space: LatentSpace, intervals: Sequence[float]) -> tuple[list[str], np.ndarray]:
    """Names and values (F, columns) along all frames: trajectory, time in ps, observables (angles in rad), projections.

    intervals: ps between the frames of each trajectory.
    """
    times = [interval * np.arange(length) for interval, length in zip(intervals, space.lengths, strict=True)]
    names = ["trajectory", "time (ps)"]
    values = [np.repeat(np.arange(len(times)), space.lengths), np.concatenate(times)]
    for one in space.observables:
        names.append(f"{one.name} ({one.unit})" if one.unit else one.name)
        values.append(one.values)
    for (network, name, way), found in space.projections.items():
        for k, column in enumerate(found.coordinates.T, start=1):
            names.append(f"{network}, {name}, {way} {k}")
            values.append(column)
    return names, np.column_stack(values)
