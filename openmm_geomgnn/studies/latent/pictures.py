"""Pictures of a latent space, as matplotlib Figures."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from openmm_geomgnn.analysis.canvas import colour_bar, finish, new_figure, value_map
from openmm_geomgnn.analysis.plots import GREY, WALKER_COLOURS
from openmm_geomgnn.cv.score_rows import RANDOM
from openmm_geomgnn.studies.latent.layers import layer_means, layers_of, probed
from openmm_geomgnn.studies.latent.networks import REPRESENTATIONS
from openmm_geomgnn.studies.latent.observables import CONTACTS, RADIUS_OF_GYRATION, RMSD, Observable
from openmm_geomgnn.studies.latent.study import LatentSpace, Similarity
from openmm_geomgnn.studies.latent.tables import kind_means, kinds, standard_error

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_TITLES = {"pca": "Principal components", "umap": "UMAP"}
_LOWEST = -0.25  # R2 below is drawn at the edge
_MOST_NUMBERS = 12  # rows of a map up to which its values are written into it


def probe_figure(space: LatentSpace) -> Figure:
    """Plot R2 of each kind of observable: trained networks with standard errors over folds, random weights as grey dots."""
    names = list(kinds(space))
    figure, axes = new_figure(1, len(REPRESENTATIONS), (10.4, 1.5 + 0.38 * len(names)), sharey=True, sharex=True)
    places = np.arange(len(names))[::-1]
    for axis, representation in zip(axes, REPRESENTATIONS, strict=True):
        for number, network in enumerate(space.untrained):
            means = kind_means(space, network.name, representation).mean(axis=1)
            label = RANDOM if number == 0 else None
            axis.plot(means.clip(_LOWEST), places, "o", ms=6, mfc="none", mec=GREY, mew=1.2, label=label)
        for number, network in enumerate(space.trained):
            found = kind_means(space, network.name, representation)
            colour, shift = WALKER_COLOURS[number % len(WALKER_COLOURS)], 0.16 * (number - (len(space.trained) - 1) / 2)
            means, errors = found.mean(axis=1).clip(_LOWEST), standard_error(found)
            axis.errorbar(means, places + shift, xerr=errors, fmt="o", ms=6, color=colour, capsize=3, label=network.name)
        axis.axvline(0, color=GREY, lw=1)
        axis.set_xlim(_LOWEST - 0.03, 1.03)
        axis.set_xlabel("R2 in frames held out")
        axis.set_title(representation, fontsize=11)
    axes[0].set_yticks(places, [f"{name} ({len(numbers)})" for name, numbers in kinds(space).items()])
    axes[-1].legend(frameon=False, fontsize=10, loc="best")
    return finish(figure)


def layer_figure(space: LatentSpace) -> Figure:
    """Plot R2 after each layer, means over all observables; trained networks with standard errors over folds."""
    figure, axes = new_figure(1, len(REPRESENTATIONS), (10.4, 3.6), sharey=True)
    for axis, representation in zip(axes, REPRESENTATIONS, strict=True):
        for number, network in enumerate(probed(space, space.untrained)):
            means = layer_means(space, network.name, representation).mean(axis=1)
            axis.plot(
                range(len(means)), means.clip(_LOWEST), "o-", ms=4, lw=1, color=GREY, label=RANDOM if not number else None
            )
        for number, network in enumerate(probed(space, space.trained)):
            found = layer_means(space, network.name, representation)
            means, errors = found.mean(axis=1).clip(_LOWEST), standard_error(found)
            colour = WALKER_COLOURS[number % len(WALKER_COLOURS)]
            axis.errorbar(range(len(means)), means, errors, fmt="o-", ms=5, color=colour, capsize=3, label=network.name)
        axis.set_xticks(range(max(len(layers_of(space, one.name)) for one in space.networks)))
        axis.set_xlabel("layer (0: the embedding)")
        axis.set_title(representation, fontsize=11)
    axes[0].set_ylabel("R2 in frames held out")
    axes[-1].legend(frameon=False, fontsize=10, loc="best")
    return finish(figure)


def similarity_figure(similarity: Similarity, title: str = "") -> Figure:
    """Plot CKA as a map."""
    number = len(similarity.names)
    size = 3.2 + 0.27 * max(number, 8)
    figure, (axes,) = new_figure(1, 1, (size + 0.8, size - 0.4))
    written = ".2f" if number <= _MOST_NUMBERS else ""
    mesh = value_map(axes, similarity.values, similarity.names, similarity.names, (0, 1), written)
    axes.tick_params(axis="x", labelrotation=90)
    axes.set_title(title, fontsize=11)
    colour_bar(figure, mesh, axes, "CKA")
    return finish(figure, grid=False)


def chosen_observables(space: LatentSpace, most: int = 4) -> list[Observable]:
    """Those by which frames are coloured: the phi and psi, or other torsions, that vary most; then contacts, RMSD, size."""
    by_kind = {name: [space.observables[k] for k in numbers] for name, numbers in kinds(space).items()}
    torsions = [max(by_kind[name], key=lambda one: one.spread) for name in ("phi", "psi", "torsion") if name in by_kind]
    others = [by_kind[name][0] for name in (CONTACTS, RMSD, RADIUS_OF_GYRATION) if name in by_kind]
    return [*torsions[:2], *others, *torsions[2:], *space.observables][:most]


def projection_figure(space: LatentSpace, representation: str, way: str) -> Figure:
    """Plot frames in two coordinates: a row for each network, a column for each observable that colours them."""
    chosen, networks = chosen_observables(space), space.shown
    size = 0.8 + 2.9 * len(chosen), 0.6 + 2.5 * len(networks)
    figure, axes = new_figure(len(networks), len(chosen), size)
    order = np.random.default_rng(0).permutation(sum(space.lengths))  # no trajectory lies on top of the others
    for row, network in enumerate(networks):
        x, y = space.projections[network.name, representation, way].coordinates[:, :2].T
        for column, observable in enumerate(chosen):
            axis = axes[row * len(chosen) + column]
            values = np.degrees(observable.values) if observable.is_angle else observable.values
            colours = {"cmap": "twilight", "vmin": -180, "vmax": 180} if observable.is_angle else {"cmap": "viridis"}
            mesh = axis.scatter(x[order], y[order], c=values[order], s=4, lw=0, rasterized=True, **colours)
            axis.set_xticks([])
            axis.set_yticks([])
            if column == 0:
                axis.set_ylabel(network.name)
            if row == 0:
                axis.set_title(observable.name, fontsize=11)
            unit = "degrees" if observable.is_angle else observable.unit or "number"
            colour_bar(figure, mesh, axis, unit if column == len(chosen) - 1 or not observable.is_angle else "")
    return finish(figure, grid=False)


def standard_figures(space: LatentSpace) -> Iterator[tuple[str, str, str, Figure]]:
    """All pictures: (name of its file, title, caption, Figure)."""
    yield (
        "probes.png",
        "Linear probes",
        "How much of each observable a ridge regression reads from the features, in blocks of time that it has not seen; "
        "means over the observables of a kind, whose number is in brackets. Bars are standard errors over folds, grey "
        "circles networks with random weights: only what lies beyond all of them is due to training.",
        probe_figure(space),
    )
    if space.layer_r2:
        yield (
            "probes-layers.png",
            "Linear probes by layer",
            "The same after each layer, means over all observables; the last layer is the output, the first the embedding, "
            "of which nothing can be read where it holds the elements alone. Grey: networks with random weights.",
            layer_figure(space),
        )
    for name, found in space.cka.items():
        yield (
            f"cka-{name}.png",
            f"How alike the networks are, {name} features",
            "Debiased linear CKA: 1 for features that are the same but for a rotation, about 0 for independent ones.",
            similarity_figure(found),
        )
    if space.layer_cka is not None:
        yield (
            "cka-layers.png",
            "How alike the layers are",
            "Debiased linear CKA of pooled features after each layer. Bright blocks are layers that change little.",
            similarity_figure(space.layer_cka),
        )
    for representation, way in dict.fromkeys((name, way) for _, name, way in space.projections):
        yield (
            f"{way}-{representation}.png",
            f"{_TITLES[way]} of {representation} features",
            "Every frame as a dot in two coordinates, a row for each network. Colours that are in order show that an "
            "observable is among what varies most, not how well it can be read: that the probes tell.",
            projection_figure(space, representation, way),
        )
