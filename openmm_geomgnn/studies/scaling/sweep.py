"""The networks of a sweep: each is the base with another value along one axis, as settings of TorchMD-Net's trainer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import numpy as np

from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.studies.training import trainer
from openmm_geomgnn.studies.training.trainer import TrainingData

AXES = ("depth", "width", "aspect", "cutoff", "data", "source")
SETTINGS = {"depth": "num_layers", "width": "embedding_dimension", "cutoff": "cutoff_upper"}
_NESTED = 23  # with the seed of the base, that of the order in which conformers join the training set
_WIDEST = 8192


@dataclass(frozen=True)
class Aspect:
    """Networks of about as many parameters: the width is chosen for each depth.

    Attributes
    ----------
    depths : tuple of int
    parameters : int
        Their number.
    tolerance : float
        Largest relative deviation from it.
    multiple : int
        Widths are multiples of it.
    """

    depths: tuple[int, ...]
    parameters: int
    tolerance: float = 0.05
    multiple: int = 8


@dataclass(frozen=True)
class Axes:
    """The values along each axis; those of `source` are groups of names."""

    depth: tuple[int, ...] = ()
    width: tuple[int, ...] = ()
    aspect: Aspect | None = None
    cutoff: tuple[float, ...] = ()
    data: tuple[int, ...] = ()
    source: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True)
class Network:
    """One training.

    Attributes
    ----------
    name : str
        Of its folder.
    model : str
        Its architecture, as `torchmd-train` names it.
    axes : dict
        Axis -> value there; a network may lie on several.
    settings : dict
        Of `torchmd-train`, without `log_dir` and `splits`.
    split : str
        Name of its training set.
    conformers : int
        Their number in it.
    parameters : int or None
    reason : str
        Why it cannot be built, or "".
    """

    name: str
    model: str
    axes: dict[str, float | str]
    settings: dict[str, Any]
    split: str
    conformers: int
    parameters: int | None = None
    reason: str = ""


@dataclass(frozen=True)
class Sweep:
    """Networks, and the conformers that the training sets which they name hold (indices in ascending order)."""

    networks: list[Network]
    splits: dict[str, np.ndarray]
    data: TrainingData


@dataclass
class _Splits:
    """Training sets of the conformers that are not held out; those of one group of sources are nested."""

    data: TrainingData
    seed: int
    found: dict[str, np.ndarray] = field(default_factory=dict)

    def available(self, sources: Sequence[str]) -> np.ndarray:
        """Training conformers of these sources, of all if there are none, in the order in which they join the set."""
        train = self.data.train
        if sources:
            numbers = [list(self.data.sources).index(name) for name in sources]
            train = train[np.isin(self.data.source[train], numbers)]
        return np.random.default_rng([self.seed, _NESTED]).permutation(np.sort(train))

    def take(self, sources: Sequence[str], number: int | None) -> tuple[str, int]:
        """The name of a training set of so many conformers, and their number."""
        order = self.available(sources)
        chosen = np.sort(order[:number])
        name = "+".join([f"data{len(chosen)}", *sources])
        self.found[name] = chosen
        return name, len(chosen)


def plan(
    base: Mapping[str, Any], axes: Axes, seeds: Sequence[int], models: Mapping[str, Mapping[str, Any]] | None = None
) -> Sweep:
    """Make the networks of all axes; one that lies on several axes is there once.

    Parameters
    ----------
    base : dict
        Settings of `torchmd-train`.
    axes : Axes
    seeds : sequence of int
        Of weights, noise and order of the conformers; each network is trained with each. What is held out, and the order in
        which conformers join the training set, have the seed of the base.
    models : dict, optional
        Architectures, each with settings that replace those of the base; all axes are gone along with each. By default only
        that of the base.

    Raises
    ------
    GeomGNNError
        If the trainer does not know a setting, the data cannot be read, or a value of an axis cannot be had. A network that
        cannot be built is no error: its `reason` says why.
    """
    full = trainer.complete(base)
    if full["num_nodes"] != 1:
        raise GeomGNNError("A network of a sweep is trained on one node: set num_nodes to 1.")
    data = trainer.read_data(base)
    splits = _Splits(data, int(full["seed"]))
    _check_data(axes, data)
    settings = {"save_interval": 1, **base}
    found: dict[str, Network] = {}
    for model, own in (models or {"": {}}).items():
        chosen = {**settings, **own, **({"model": model} if model else {})}
        for axis, value, changes, sources, number in _points(chosen, axes, splits):
            split, conformers = splits.take(sources, number)
            for seed in seeds:
                network = _named({**chosen, **changes, "seed": int(seed)}, full, split, conformers, model)
                known = found.setdefault(network.name, network)
                found[network.name] = replace(known, axes={**known.axes, axis: value})
    return Sweep([_counted(network) for network in found.values()], splits.found, data)


def _points(settings: Mapping[str, Any], axes: Axes, splits: _Splits) -> Any:
    """Yield (axis, value, changes of settings, sources, number of conformers)."""
    for axis, name in SETTINGS.items():
        for value in getattr(axes, axis):
            yield axis, value, {name: value}, (), None
    if axes.aspect is not None:
        for depth, width in widths(settings, axes.aspect).items():
            yield "aspect", width / depth, {"num_layers": depth, "embedding_dimension": width}, (), None
    for number in axes.data:
        yield "data", number, {}, (), number
    # as many of each source, so that the source is what differs
    number = min((len(splits.available(group)) for group in axes.source), default=0)
    for group in axes.source:
        yield "source", " + ".join(group), {}, group, number


def widths(settings: Mapping[str, Any], aspect: Aspect) -> dict[int, int]:
    """The width for each depth, with which a network comes nearest to the number of parameters.

    Raises GeomGNNError if it cannot be built, or is not within the tolerance.
    """
    found = {}
    for depth in aspect.depths:

        @cache
        def count(steps: int, depth: int = depth) -> int:
            changed = {"num_layers": depth, "embedding_dimension": steps * aspect.multiple}
            try:
                return trainer.count_parameters({**settings, **changed})
            except GeomGNNError as error:
                raise GeomGNNError(f"A network of depth {depth} and width {steps * aspect.multiple}: {error}.") from error

        steps = _nearest(count, aspect.parameters, _WIDEST // aspect.multiple)
        deviation = count(steps) / aspect.parameters - 1
        if abs(deviation) > aspect.tolerance:
            raise GeomGNNError(
                f"With {depth} layers, width {steps * aspect.multiple} comes nearest to {aspect.parameters} parameters, but "
                f"has {count(steps)}, {100 * deviation:+.1f} %. Choose another number, or raise aspect.tolerance."
            )
        found[depth] = steps * aspect.multiple
    return found


def _nearest(count: Callable[[int], int], target: int, largest: int) -> int:
    """The argument from 1 on whose count, which grows with it, is nearest to the target."""
    high = 1
    while count(high) < target and high < largest:
        high = min(2 * high, largest)
    low = max(1, high // 2)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if count(middle) < target else (low, middle)
    return min((low, high), key=lambda steps: abs(count(steps) - target))


def _check_data(axes: Axes, data: TrainingData) -> None:
    for number in axes.data:
        if number > len(data.train):
            raise GeomGNNError(
                f"axes.data asks for {number} conformers, but {len(data.train)} are there to train on. Give smaller "
                "numbers, or hold out less (val_size, test_size of the base)."
            )
    for name in (name for group in axes.source for name in group):
        if name not in data.sources:
            known = ", ".join(data.sources) or "none: only a store of conformers has them"
            raise GeomGNNError(f"axes.source names '{name}', but the sources of the data are {known}.")
    if not len(data.val):
        raise GeomGNNError("Nothing is held out for validation, and there would be no loss to compare. Set val_size.")


def _named(settings: dict[str, Any], full: Mapping[str, Any], split: str, conformers: int, model: str) -> Network:
    """A network; its name says the architecture where the sweep names several."""
    depth, width, cutoff = (settings.get(name, full[name]) for name in SETTINGS.values())
    parts = [model, f"layers{depth}", f"width{width}", f"cutoff{cutoff:g}", split, f"seed{settings['seed']}"]
    return Network("-".join(filter(None, parts)), settings.get("model", full["model"]), {}, settings, split, conformers)


def _counted(network: Network) -> Network:
    """With its number of parameters, or the reason why it cannot be built."""
    try:
        return replace(network, parameters=trainer.count_parameters(network.settings))
    except GeomGNNError as error:
        return replace(network, reason=str(error))
