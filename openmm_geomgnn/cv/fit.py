"""From trajectories to a collective variable: featurize, estimate, freeze, judge."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import mdtraj
import numpy as np
import numpy.typing as npt

from openmm_geomgnn.aliases import StageProgress, TopologyLike
from openmm_geomgnn.cv.estimators import FOLDS, estimate_linear, estimate_vampnet
from openmm_geomgnn.cv.fit_data import Features, TrainingFrames, featurize, lengths_of, read_frames
from openmm_geomgnn.cv.fit_settings import FitSettings
from openmm_geomgnn.cv.kernel_widths import kernel_widening
from openmm_geomgnn.cv.mixers import make_mixer
from openmm_geomgnn.cv.mixers.base import Mixer
from openmm_geomgnn.cv.network import CollectiveVariable
from openmm_geomgnn.cv.output_map import OutputMap, check_margin, range_of
from openmm_geomgnn.cv.progress import check_targets, estimate_progress
from openmm_geomgnn.cv.reweighting import Weighting, weighting
from openmm_geomgnn.cv.rules import check_parts
from openmm_geomgnn.cv.stiffness import atomic_masses, even_slopes, rates_along, stiffness
from openmm_geomgnn.cv.verdict import ORDER_ONLY, estimate_note, judge, timescale_notes
from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.koopman import check_folds, hold_out, timescales, transitions
from openmm_geomgnn.koopman.vampnet_settings import TEST_FRACTION, VALIDATION_FRACTION
from openmm_geomgnn.representation.featurization import Featurization
from openmm_geomgnn.representation.selection import as_topology
from openmm_geomgnn.representation.store import Embeddings
from openmm_geomgnn.unfinished import Unfinished
from openmm_geomgnn.units import did_you_mean

ESTIMATORS = {"linear": estimate_linear, "vampnet": estimate_vampnet, "progress": estimate_progress}
EVEN_FRAMES = 1000  # at which the steepness is taken for an even map


def fit_cv(
    trajectories: Sequence[mdtraj.Trajectory] | Embeddings,
    topology: TopologyLike,
    settings: FitSettings,
    progress: StageProgress | None = None,
    unfinished: Unfinished | None = None,
    biases: Sequence[npt.ArrayLike | None] | None = None,
    frame_intervals: Sequence[float] | None = None,
    targets: Sequence[npt.ArrayLike] | None = None,
    target_names: Sequence[str] | None = None,
) -> CollectiveVariable:
    """Fit a collective variable to trajectories of one molecule.

    Parameters
    ----------
    trajectories : list of mdtraj.Trajectory, or store.Embeddings
        Each a continuous piece of simulation. They are never stitched together. From a store, tokens are read instead of
        computed; encoder and tokens must then be those of the store.
    topology : openmm.app.Topology, mdtraj.Topology or path
    settings : FitSettings
    progress : callable, optional
        Called as progress(stage, done, total).
    unfinished : unfinished.Unfinished, optional
        Where tokens and the state of a VAMPnet's training are kept. A fit that was stopped goes on from what is there, and
        ends as it would have without a break.
    biases : list of (F,) array or None, optional
        kJ/mol that acted on every frame of each trajectory, None where there was no bias; comparable between runs, see
        `koopman.normalised_biases`. How these frames count says `settings.reweighting`.
    frame_intervals : list of float, optional
        ps between the frames of each trajectory, where they differ; all are `settings.frame_interval` by default.
    targets : list of (F, m) array, optional
        What the components of a CV with estimator "progress" are to follow, in every frame of each trajectory.
    target_names : list of str, optional
        Of the m targets.

    Returns
    -------
    CollectiveVariable
        Its `training_information` holds scores, the figures of `stiffness`, `timescales_ps` (None where a component has
        none, and `timescale_notes` why), the `transitions` of each component between its extremes in the data and the
        `frames_between` these, and the `verdict` of `verdict.judge`.

    Raises
    ------
    GeomGNNError
        If settings are wrong or the data do not suffice; before the embedding where it can be known by then.

    Examples
    --------
    >>> from importlib.resources import files
    >>> import mdtraj
    >>> structure = mdtraj.load(files("openmm_geomgnn.data") / "ala2-c7eq.pdb")
    >>> import numpy as np
    >>> noise = 0.01 * np.random.default_rng(0).normal(size=(100, structure.n_atoms, 3))
    >>> trajectory = mdtraj.Trajectory(structure.xyz + noise, structure.topology)  # in place of a simulation
    >>> from openmm_geomgnn.cv import FitSettings, fit_cv
    >>> settings = FitSettings(lagtime=0.2, frame_interval=0.1, softening=0.0)
    >>> cv = fit_cv([trajectory], structure.topology, settings)
    >>> cv.dimension
    1
    >>> cv.training_information["verdict"]["grade"]  # noise has no slow motion
    'not usable'
    """
    progress = progress or (lambda stage, done, total: None)
    unfinished = unfinished or Unfinished()
    _check_estimator(settings)
    if not trajectories:
        raise GeomGNNError("There are no trajectories to fit to: give one or more.")
    lengths = lengths_of(trajectories)
    wanted = check_targets(lengths, settings, targets, target_names)
    if wanted is not None and isinstance(trajectories, Embeddings):
        raise GeomGNNError("estimator: progress does not read a store of embeddings. Give it the trajectories.")
    weights = weighting(lengths, settings, biases, frame_intervals)
    # as many frames of the same time between them
    alike = [round(n * one / settings.frame_interval) for n, one in zip(lengths, weights.intervals, strict=True)]
    lag = check_data(alike, settings)
    topology = as_topology(topology)
    featurization = featurize(trajectories, topology, settings)
    mixer = make_fit_mixer(settings, featurization)
    frames = read_frames(trajectories, featurization, settings.estimator == "vampnet", progress, unfinished)
    frames = replace(frames, pairs=weights.pairs, targets=wanted, biased=weights.biased, intervals=weights.intervals)
    estimate = ESTIMATORS[settings.estimator](mixer, frames, lag, settings, progress, unfinished)
    model = estimate.model
    information = {
        **estimate.scores,
        "estimator": settings.estimator,
        "reversible": settings.reversible,
        "singular_values": [float(value) for value in model.singular_values],
        "dropped_directions": int(model.dropped),
        "frames": lengths,
        "frame_interval_ps": settings.frame_interval,
        "seed": settings.seed,
    }
    if wanted is not None:
        information["targets"] = list(target_names or (f"target {k + 1}" for k in range(settings.n_components)))
    untrained = featurization.encoder.untrained_elements(featurization.windows.z)
    if untrained:
        information["untrained_elements"] = untrained
    if weights.any_biased:
        information |= {"reweighting": settings.reweighting, "biased": weights.biased}
        if settings.reweighting != "none":
            information["effective_pairs"] = weights.effective_pairs
    koopman = model.mean, model.projection, model.singular_values
    cv = make_cv(settings, featurization, estimate.mixer, koopman, information)
    psi = _psi(cv, frames)
    cv.output = _output_map(cv, frames, topology, psi, settings)
    _judge(cv, frames, topology, lag, settings, psi, weights, progress)
    return cv


def make_fit_mixer(settings: FitSettings, featurization: Featurization) -> Mixer:
    """The mixer of FitSettings for the tokens of a Featurization, untrained."""
    n_tokens, _, channels = featurization.token_shape
    return make_mixer(settings.mixer, n_tokens, channels, **settings.mixer_settings)


def make_cv(
    settings: FitSettings,
    featurization: Featurization,
    mixer: Mixer,
    koopman: tuple[np.ndarray, np.ndarray, np.ndarray],
    training: dict[str, Any] | None = None,
) -> CollectiveVariable:
    """The CollectiveVariable of FitSettings; koopman: mean, projection and singular values."""
    return CollectiveVariable(
        featurization.encoder,
        mixer,
        *koopman,
        featurization.table,
        spec=featurization.spec,
        lagtime=settings.lagtime,
        training=training,
    )


def _check_estimator(settings: FitSettings) -> None:
    if settings.estimator not in ESTIMATORS:
        raise GeomGNNError(
            f"Unknown estimator '{settings.estimator}'; the choices are {', '.join(ESTIMATORS)}."
            f"{did_you_mean(settings.estimator, ESTIMATORS)}"
        )
    check_margin(settings.margin)
    names = ("estimator", "mixer", "n_components", "pca", "softening", "reversible")
    check_parts(**{name: getattr(settings, name) for name in names})


def _psi(cv: CollectiveVariable, frames: TrainingFrames) -> list[np.ndarray]:
    """The slow functions (F, d) along each trajectory, before the output map."""
    features = [Features(cv.mixer, tokens) for tokens in frames.tokens]
    return [np.concatenate([cv.project(chi).numpy() for chi in part.pieces()]) for part in features]


def _output_map(
    cv: CollectiveVariable, frames: TrainingFrames, topology: TopologyLike, psi: Sequence[np.ndarray], settings: FitSettings
) -> OutputMap:
    """The OutputMap of a CV, by the range of its slow functions and by how steep they are along it."""
    low, high = range_of(psi)
    bounds = OutputMap.bounded(low, high, settings.margin) if settings.bounded else OutputMap.identity(cv.dimension)
    if not settings.even:
        return bounds
    bound = cv.bind(topology, engine="eager")
    masses = atomic_masses(as_topology(topology), bound.atoms)
    there, rates = rates_along(bound, masses, frames.positions, psi, EVEN_FRAMES)
    slopes = [even_slopes(*columns) for columns in zip(there.T, rates.T, low, high, strict=True)]
    return OutputMap(bounds.low, bounds.high, bounds.width, low, high, slopes)


def _judge(
    cv: CollectiveVariable,
    frames: TrainingFrames,
    topology: TopologyLike,
    lag: int,
    settings: FitSettings,
    psi: Sequence[np.ndarray],
    weights: Weighting,
    progress: StageProgress,
) -> None:
    """Add to a CV's training information what its values along the training data, and its gradients there, say of it."""
    facts = cv.training_information
    facts |= _slow_motions(psi, lag, cv.singular_values.numpy(), settings, weights)
    facts |= stiffness(
        cv,
        topology,
        frames.positions,
        weights.intervals,
        [cv.output.compute(part) for part in psi],
        lambda done, total: progress("stiffness", done, total),
        biased=weights.biased,
    )
    facts["kernel_widening"] = kernel_widening(cv.dimension)
    facts["verdict"] = judge(facts)


def _slow_motions(
    psi: Sequence[np.ndarray], lag: int, singular_values: np.ndarray, settings: FitSettings, weights: Weighting
) -> dict[str, Any]:
    """Timescales in ps, where the data show any; transitions between the extremes of the components; frames between."""
    found = transitions(psi, lag, singular_values)
    separates = found.separates_runs & (not weights.any_biased)  # under a bias the averages of runs say nothing
    known, notes = timescale_notes(timescales(singular_values, settings.lagtime), settings.lagtime, separates)
    if weights.any_biased and settings.reweighting == "rescaled-time":
        notes = [note or estimate_note(value) for value, note in zip(known, notes, strict=True)]
    elif weights.any_biased:
        known, notes = [None] * len(known), [note or ORDER_ONLY for note in notes]
    return {
        "timescales_ps": known,
        "timescale_notes": notes,
        "transitions": found.counts.tolist(),
        "frames_between": found.between.tolist(),
    }


def check_data(lengths: Sequence[int], settings: FitSettings) -> int:
    """The lag time in frames, if trajectories of these lengths, in frames, suffice for a fit with these FitSettings.

    Raises
    ------
    GeomGNNError
        If they do not, or the lag time is not a whole number of frames.
    """
    lag = settings.lag_frames()
    if settings.estimator in ("linear", "progress"):
        check_folds(lengths, lag, FOLDS)
    else:
        defaults = {"validation_fraction": VALIDATION_FRACTION, "test_fraction": TEST_FRACTION}
        hold_out(lengths, lag, [settings.training.get(name, value) for name, value in defaults.items()], seed=settings.seed)
    return lag
