"""`geomgnn fit`: fit a collective variable to existing trajectories."""

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from openmm_geomgnn.cli.biased_runs import BiasedTrajectory, read_biased
from openmm_geomgnn.cli.choose import SCORING, choose_settings
from openmm_geomgnn.cli.first_frames import load_trajectories
from openmm_geomgnn.cli.fitting import describe, fit_settings, fit_with_progress
from openmm_geomgnn.cli.progress import echo
from openmm_geomgnn.cli.run_folder import input_files
from openmm_geomgnn.cli.settings.protocol import Fit
from openmm_geomgnn.cv.fit import FitSettings
from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.formatting import count_of
from openmm_geomgnn.locks import locked
from openmm_geomgnn.representation.selection import as_topology
from openmm_geomgnn.representation.store import Embeddings
from openmm_geomgnn.representation.trajectory_files import holds_times
from openmm_geomgnn.representation.trajectory_times import common_frame_interval
from openmm_geomgnn.unfinished import Unfinished


def run_fit(fit: Fit) -> Any:
    """Fit the CV that a `Fit` describes, write it and return it; an interrupted fit continues.

    Raises GeomGNNError if data or settings do not suffice, the output is one of the inputs, or another process makes it.
    """
    if os.path.realpath(fit.output) in map(os.path.realpath, input_files(fit)):
        raise GeomGNNError(f"output is {fit.output}, which the fit itself needs. Give the CV a file of its own.")
    for folder in (entry.run for entry in fit.biased if entry.run is not None):
        if Path(os.path.realpath(folder)) in Path(os.path.realpath(fit.output)).parents:
            raise GeomGNNError(
                f"output is {fit.output}, in the folder of the run {folder.name}, which must stay as it is. Put the CV "
                "elsewhere."
            )
    with locked(fit.output, folder=False):
        return _fit(fit)


def _fit(fit: Fit) -> Any:
    data = read_data(fit)
    settings = data.settings
    if fit.cv.auto:
        folder, step = Path(f"{fit.output}.scores"), SCORING.bias_step
        chosen = choose_settings(fit.cv, settings, data.trajectories, data.topology, folder, fit.output, step, **data.biased)
        tokens = replace(settings.tokens, window=chosen.window)
        settings = replace(settings, pca=chosen.pca, softening=chosen.softening, tokens=tokens)
    unfinished = Unfinished(fit.output)
    cv = fit_with_progress(data.trajectories, data.topology, settings, unfinished, **data.biased)
    cv.save(fit.output)
    unfinished.remove()
    for line in describe(cv):
        echo(line)
    echo(f"written to {fit.output}")
    return cv


@dataclass(frozen=True, eq=False)
class FitData:
    """What a fit is made from: the first arguments of `cv.fit.fit_cv`; biased: its `biases` and `frame_intervals`."""

    trajectories: Any
    topology: Any
    settings: FitSettings
    biased: dict[str, Any]


def read_data(fit: Fit) -> FitData:
    """Read the trajectories of a `Fit` and say what there is.

    Raises GeomGNNError if a file cannot be read, or data and settings do not fit together.
    """
    topology = as_topology(fit.topology)
    biased = read_biased(fit.biased, topology, fit.cv.selection)
    if fit.embeddings is None:
        files = fit.trajectories or ()
        trajectories: Any = load_trajectories(files, topology, fit.cv.selection, fit.stride, fit.allow_truncated)
        lengths = [len(trajectory) for trajectory in trajectories]
        pairs = zip(files, trajectories, strict=True)
        times = {path.name: part.time if holds_times(path) else None for path, part in pairs}
    else:
        trajectories = Embeddings.open(fit.embeddings)
        lengths = trajectories.lengths
        times = {entry["name"]: trajectories.times(k) for k, entry in enumerate(trajectories.trajectories)}
    if lengths or not biased:
        interval = common_frame_interval(times, None if fit.frame_interval is None else fit.frame_interval * fit.stride)
        echo(f"{sum(lengths)} frames, {interval:g} ps apart, in {count_of(len(lengths), 'trajectory', 'trajectories')}")
    else:
        interval = biased[0].frame_interval
    settings = _with_biased(fit_settings(fit.cv, interval, fit.seed), fit, biased)
    settings.lag_frames()  # raises an error unless it is a whole number of them
    if fit.embeddings is not None:
        settings = _with_stored(settings, trajectories, fit.cv.model_fields_set)
    more: dict[str, Any] = {}
    if biased:
        trajectories = [*trajectories, *(one.trajectory for one in biased)]
        more["biases"] = [*([None] * len(lengths)), *(one.bias for one in biased)]
        more["frame_intervals"] = [*([interval] * len(lengths)), *(one.frame_interval for one in biased)]
    return FitData(trajectories, topology, settings, more)


def _with_biased(settings: FitSettings, fit: Fit, biased: list[BiasedTrajectory]) -> FitSettings:
    """Say what biased simulations there are; returns the FitSettings with their temperature and reweighting."""
    for one in biased:
        echo(f"{len(one.trajectory)} frames under a bias, {one.frame_interval:g} ps apart: {one.name}")
    temperatures = {round(one.temperature, 6) for one in biased}
    if len(temperatures) > 1:
        raise GeomGNNError(
            f"The biased simulations ran at {' and '.join(f'{value:g}' for value in sorted(temperatures))} K: their frames "
            "cannot be weighted together. Fit to those of one temperature."
        )
    return replace(settings, reweighting=fit.reweighting, temperature=biased[0].temperature if biased else 300.0)


def _with_stored(settings: FitSettings, store: Embeddings, given: Iterable[str]) -> FitSettings:
    """Make FitSettings with the encoder and tokens of a store, except for those given in the settings file."""
    stored = {name: value for name, value in store.spec.to_metadata().items() if name not in given}
    encoder = settings.encoder if "encoder" in given else store.encoder_source
    return replace(settings, encoder=encoder, tokens=replace(settings.tokens, **stored))
