"""The study of a latent space: probes, similarities and projections of several networks along the same trajectories."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import torch

from openmm_geomgnn.cv.fit_data import embed_positions, even_frames
from openmm_geomgnn.representation.featurization import Featurization
from openmm_geomgnn.studies.latent.networks import POOLED, REPRESENTATIONS, Network, layer_features, representations
from openmm_geomgnn.studies.latent.observables import Observable
from openmm_geomgnn.studies.latent.probes import Fold, make_folds, of_frames, probe
from openmm_geomgnn.studies.latent.projections import Projection, principal_components, umap_projection
from openmm_geomgnn.studies.latent.similarity import cka_matrix
from openmm_geomgnn.unfinished import Unfinished

# called with what is done, how much of it, and its whole
Progress: TypeAlias = Callable[[str, int, int], None]
PCA, UMAP = "pca", "umap"


@dataclass(frozen=True)
class LatentSettings:
    """What is done, and how.

    Attributes
    ----------
    folds : int
        Of the probes.
    gap : float
        ps between frames that are fitted to and frames that are held out.
    frame_interval : float
        ps
    projections : tuple of str
        "pca", "umap".
    neighbours, min_distance
        As of `projections.umap_projection`.
    umap_frames : int
        At most so many frames, evenly spread, are projected by UMAP.
    cka_frames : int
        At most so many frames are compared, evenly spread.
    layers : bool
        Whether layers are compared and probed as well.
    layer_frames : int
        On at most so many frames, evenly spread.
    seed : int
    """

    folds: int = 4
    gap: float = 5.0
    frame_interval: float = 1.0
    projections: tuple[str, ...] = (PCA, UMAP)
    neighbours: int = 15
    min_distance: float = 0.1
    umap_frames: int = 10000
    cka_frames: int = 500
    layers: bool = True
    layer_frames: int = 1000
    seed: int = 1

    @property
    def gap_frames(self) -> int:
        """The gap in frames, at least one."""
        return max(1, math.ceil(self.gap / self.frame_interval - 1e-3))


@dataclass(frozen=True, eq=False)
class Similarity:
    """CKA (K, K) of K representations with names."""

    names: tuple[str, ...]
    values: np.ndarray


@dataclass(eq=False)
class LatentSpace:
    """What a study found.

    Attributes
    ----------
    networks : list of Network
    observables : list of Observable
    lengths : list of int
        Frames of each trajectory.
    r2 : dict
        By (name of a network, representation): (observables, folds) R2, see `probes.probe`.
    cka : dict
        `Similarity` of the networks, by representation.
    layer_cka : Similarity or None
        Of the pooled features of all layers of all encoders and of the first network with random weights.
    layer_r2 : dict
        By (name of a network, representation, layer): R2 as in `r2`, for the networks whose layers are known.
    projections : dict
        By (name of a network, representation, "pca" or "umap").
    """

    networks: list[Network]
    observables: list[Observable]
    lengths: list[int]
    r2: dict[tuple[str, str], np.ndarray] = field(default_factory=dict)
    cka: dict[str, Similarity] = field(default_factory=dict)
    layer_cka: Similarity | None = None
    layer_r2: dict[tuple[str, str, str], np.ndarray] = field(default_factory=dict)
    projections: dict[tuple[str, str, str], Projection] = field(default_factory=dict)

    @property
    def trained(self) -> list[Network]:
        """The networks that were trained."""
        return [one for one in self.networks if not one.is_random]

    @property
    def untrained(self) -> list[Network]:
        """The networks with random weights."""
        return [one for one in self.networks if one.is_random]

    @property
    def shown(self) -> list[Network]:
        """The networks that are projected and whose layers are compared: the trained ones and one with random weights."""
        return [*self.trained, *self.untrained[:1]]


def study_latent_space(
    networks: Sequence[Network],
    featurization: Featurization,
    positions: Sequence[torch.Tensor],
    observables: Sequence[Observable],
    settings: LatentSettings,
    progress: Progress | None = None,
    unfinished: Callable[[int], Unfinished] | None = None,
) -> LatentSpace:
    """Embed trajectories with every network, and compare what the networks make of them.

    Parameters
    ----------
    networks : list of Network
    featurization : Featurization
        Of the windows, whatever its encoder.
    positions : list of (F, n, 3) tensors
        Whole molecules in angstrom, of each trajectory.
    observables : list of Observable
        Along all trajectories together.
    settings : LatentSettings
    progress : callable, optional
        Called as progress(what, done, total).
    unfinished : callable, optional
        From the number of a network to an `Unfinished`, where its tokens are kept.

    Raises
    ------
    GeomGNNError
        If the trajectories are too short, before anything is embedded.
    """
    progress = progress or (lambda what, done, total: None)
    lengths = [len(part) for part in positions]
    folds = make_folds(lengths, settings.folds, settings.gap_frames)
    space = LatentSpace(list(networks), list(observables), lengths)
    rows = _rows(lengths, settings.cka_frames)
    looked_at = of_frames(folds, _rows(lengths, settings.layer_frames)) if settings.layers else []
    kept: dict[str, list[np.ndarray]] = {name: [] for name in REPRESENTATIONS}
    for number, network in enumerate(networks):
        part = Unfinished() if unfinished is None else unfinished(number)
        for name, features in _features(network, featurization, positions, progress, part).items():
            _probe(space, network, name, features, folds, progress)
            _project(space, network, name, features, settings, progress)
            kept[name].append(features[rows])
    names = tuple(network.name for network in networks)
    space.cka = {name: Similarity(names, cka_matrix(parts)) for name, parts in kept.items()}
    if settings.layers:
        space.layer_cka = _compare_layers(space, featurization, positions, settings, looked_at, progress)
    return space


def _rows(lengths: Sequence[int], number: int) -> np.ndarray:
    """Numbers among the frames of all parts together of at most `number`, evenly spread."""
    starts = np.cumsum([0, *lengths])
    return np.concatenate([part.numpy() + start for part, start in zip(even_frames(lengths, number), starts, strict=False)])


def _features(
    network: Network, featurization: Featurization, positions: Sequence[Any], progress: Progress, unfinished: Unfinished
) -> dict[str, np.ndarray]:
    tokenizer = featurization.tokenizer_of(network.encoder)
    what = f"Embedding, {network.name}"
    tokens = embed_positions(tokenizer, positions, lambda stage, done, total: progress(what, done, total), unfinished)
    return representations(tokens)


def _probe(
    space: LatentSpace, network: Network, name: str, features: np.ndarray, folds: Sequence[Fold], progress: Progress
) -> None:
    what = f"Probes, {network.name}, {name}"
    targets = [one.target for one in space.observables]
    space.r2[network.name, name] = probe(features, targets, folds, lambda done, total: progress(what, done, total))


def _project(
    space: LatentSpace, network: Network, name: str, features: np.ndarray, settings: LatentSettings, progress: Progress
) -> None:
    if network not in space.shown:
        return
    what = f"Projections, {network.name}, {name}"
    for done, way in enumerate(settings.projections, start=1):
        if way == PCA:
            found = principal_components(features)
        else:
            options = settings.neighbours, settings.min_distance, settings.seed, settings.umap_frames
            found = umap_projection(features, *options)
        space.projections[network.name, name, way] = found
        progress(what, done, len(settings.projections))


def _compare_layers(
    space: LatentSpace,
    featurization: Featurization,
    positions: Sequence[torch.Tensor],
    settings: LatentSettings,
    folds: Sequence[Fold],
    progress: Progress,
) -> Similarity | None:
    """Probe all layers of all networks, and compare those of the shown ones by CKA.

    Of the CKA layers that are the same in all frames are left out; it is None where no layers are known.
    """
    frames, rows = even_frames(space.lengths, settings.layer_frames), _rows(space.lengths, settings.layer_frames)
    compared = _rows([len(rows)], settings.cka_frames)
    targets = [one.target[rows] for one in space.observables]
    names, features = [], []
    for done, network in enumerate(space.networks, start=1):
        layers = list(layer_features(network, featurization, positions, frames))
        for layer, found in layers:
            if network in space.shown:
                names.append(f"{network.name}, {layer}")
                features.append(found[POOLED][compared])
            if len(layers) > 1:  # otherwise it is the output alone
                r2 = {(network.name, name, layer): probe(values, targets, folds) for name, values in found.items()}
                space.layer_r2.update(r2)
        progress("Layers", done, len(space.networks))
    values = cka_matrix(features)
    varying = np.isfinite(np.diag(values))
    if varying.sum() <= len(space.shown):  # outputs alone
        return None
    chosen = tuple(name for name, there in zip(names, varying, strict=True) if there)
    return Similarity(chosen, values[np.ix_(varying, varying)])
