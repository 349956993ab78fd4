"""What linear probes read after each layer of networks: tables, a sentence for each network, everything as JSON."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from openmm_geomgnn.cv.score_rows import RANDOM
from openmm_geomgnn.formatting import count_of
from openmm_geomgnn.studies.latent.networks import REPRESENTATIONS, Network
from openmm_geomgnn.studies.latent.study import LatentSpace
from openmm_geomgnn.studies.latent.tables import standard_error


def layers_of(space: LatentSpace, network: str) -> list[str]:
    """Names of the layers of a network that were probed, from the first on; none where they are not known."""
    return list(dict.fromkeys(layer for name, _, layer in space.layer_r2 if name == network))


def probed(space: LatentSpace, networks: Sequence[Network]) -> list[Network]:
    """Those of the networks whose layers were probed."""
    return [one for one in networks if layers_of(space, one.name)]


def layer_means(space: LatentSpace, network: str, representation: str, numbers: list[int] | None = None) -> np.ndarray:
    """R2 after each layer in each fold, (layers, folds), means over the observables with these numbers, or all."""
    chosen = slice(None) if numbers is None else numbers
    layers = layers_of(space, network)
    return np.array([np.nanmean(space.layer_r2[network, representation, layer][chosen], axis=0) for layer in layers])


def layer_tables(space: LatentSpace) -> Iterator[tuple[str, list[list[str]]]]:
    """(title, rows) for each representation: a row for each layer, a column for each trained network."""
    if not space.layer_r2:
        return
    every = max((layers_of(space, one.name) for one in space.networks), key=len)
    trained, untrained = probed(space, space.trained), probed(space, space.untrained)
    for representation in REPRESENTATIONS:
        columns = [dict.fromkeys(every, "") for _ in trained]
        for cells, network in zip(columns, trained, strict=True):
            means = layer_means(space, network.name, representation)
            for layer, row in zip(layers_of(space, network.name), means, strict=True):
                cells[layer] = f"{row.mean():.3f} ± {standard_error(row):.3f}"
        head = ["layer", *(one.name for one in trained)]
        random = [layer_means(space, one.name, representation).mean(axis=1) for one in untrained]
        if random:
            head.append(f"{RANDOM}, {count_of(len(random), 'seed')}")
            known = layers_of(space, untrained[0].name)
            said = {layer: _range(np.array(seeds)) for layer, seeds in zip(known, zip(*random, strict=True), strict=True)}
            columns.append({layer: said.get(layer, "") for layer in every})
        rows = [[layer, *(cells[layer] for cells in columns)] for layer in every]
        title = f"Linear probes of {representation} features by layer: R2 in frames held out, mean over all observables"
        yield title, [head, *rows]


def layer_notes(space: LatentSpace) -> Iterator[str]:
    """For each trained network and representation the layer from which most is read, and what its output loses."""
    for network in probed(space, space.trained):
        layers = layers_of(space, network.name)
        for representation in REPRESENTATIONS:
            by_fold = layer_means(space, network.name, representation)
            best = int(by_fold.mean(axis=1).argmax())
            head = f"{network.name}, {representation}, by layer: most is read after "
            numbers = f"{layers[best]}, mean R2 {by_fold[best].mean():.3f} ± {standard_error(by_fold[best]):.3f}"
            if best == len(layers) - 1:
                yield f"{head}the last, {numbers}."
                continue
            loss = by_fold[-1] - by_fold[best]
            yield f"{head}{numbers}; the output is {loss.mean():+.3f} ± {standard_error(loss):.3f} from it over folds."


def layers_as_json(space: LatentSpace) -> list[dict[str, Any]]:
    """R2 of every observable after every layer, in each fold."""
    return [
        {"network": network, "representation": name, "layer": layer, "observable": one.name, "r2_by_fold": list(row)}
        for (network, name, layer), r2 in space.layer_r2.items()
        for one, row in zip(space.observables, r2, strict=True)
    ]


def _range(seeds: np.ndarray) -> str:
    return f"{seeds.mean():.3f} ({seeds.min():.3f} to {seeds.max():.3f})"
