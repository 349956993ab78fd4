"""From tokens to a frozen Koopman model: linear estimators and VAMPnets, with their scores on data held out."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, NamedTuple, cast

import numpy as np
import torch

from openmm_geomgnn.aliases import StageProgress
from openmm_geomgnn.cv.fit_data import TrainingFrames, even_frames, evenly, features_of, frame_counter
from openmm_geomgnn.cv.fit_settings import FitSettings
from openmm_geomgnn.cv.mixers.base import Mixer
from openmm_geomgnn.cv.stiffness import atomic_masses
from openmm_geomgnn.koopman import KoopmanModel, Segment, cross_validate, fit_linear, train_vampnet
from openmm_geomgnn.koopman.covariance import PairsLike
from openmm_geomgnn.representation.featurization import Featurization
from openmm_geomgnn.unfinished import Unfinished, fingerprint
from openmm_geomgnn.units import BOLTZMANN, NM_TO_ANGSTROM

FOLDS = 4  # of the cross-validation of a linear CV
RATE_FRAMES = 500  # at which the velocity of the features is sampled, for the softening


class Estimate(NamedTuple):
    """What an estimator makes of the training data: the trained mixer, the Koopman model of its outputs, and scores."""

    mixer: Mixer
    model: KoopmanModel
    scores: dict[str, Any]


def estimate_linear(
    mixer: Mixer, frames: TrainingFrames, lag: int, settings: FitSettings, progress: StageProgress, unfinished: Unfinished
) -> Estimate:
    """Principal components and TICA or VAMP of the features, with the softening of `koopman.fit_linear`."""
    rates = None
    if settings.softening:
        rates = feature_rates(frames.featurization, mixer, frames.positions, settings, progress)
    return softened_linear(mixer, frames.tokens, rates, lag, settings, frames.pairs)


def feature_rates(
    featurization: Featurization,
    mixer: Mixer,
    positions: Sequence[Any],
    settings: FitSettings,
    progress: StageProgress | None = None,
) -> np.ndarray:
    """(K, n) time derivatives per ps of the features at 300 K: at up to RATE_FRAMES frames, along drawn velocities.

    Central differences in double precision, which need no derivative of the features with respect to each atom.
    """
    frames = evenly(positions, RATE_FRAMES)
    noise = torch.randn(frames.shape, generator=torch.Generator().manual_seed(settings.seed), dtype=torch.float64)
    masses = atomic_masses(featurization.topology, featurization.atoms)
    velocities = noise * torch.sqrt(BOLTZMANN * 300.0 / masses)[:, None] * NM_TO_ANGSTROM
    double = featurization.tokenizer_of(featurization.encoder.in_precision(torch.float64))
    step = 1e-4  # ps
    advance = frame_counter(progress or (lambda *where: None), "rates", 2 * len(frames))
    with torch.no_grad():
        after, before = (mixer(double.embed(frames + sign * step * velocities, advance)) for sign in (1, -1))
    return ((after - before) / (2 * step)).numpy()


def softened_linear(
    mixer: Mixer,
    tokens: Sequence[Any],
    rates: np.ndarray | None,
    lag: int,
    settings: FitSettings,
    pairs: PairsLike = None,
) -> Estimate:
    """The `Estimate` of a linear CV; rates (K, n): those of `feature_rates`, or None."""
    features = features_of(mixer, tokens)
    where = even_frames([len(part) for part in features], RATE_FRAMES)  # the frames that `rates` were taken at

    def fit(training: Sequence[Any], rates: np.ndarray | None = rates, pairs: PairsLike = pairs) -> KoopmanModel:
        return fit_linear(
            training,
            lag,
            settings.n_components,
            settings.pca,
            settings.reversible,
            rates=rates,
            softening=settings.softening,
            pairs=pairs,
        )

    def training_rates(segments: Sequence[Segment]) -> dict[str, Any]:
        return {} if rates is None else {"rates": rates_within(rates, where, segments)}

    model = fit(features)
    folds = cross_validate(
        fit, features, lag, folds=FOLDS, reversible=settings.reversible, options=training_rates, pairs=pairs
    )
    scores = {
        "vamp2_training": 1.0 + float(np.sum(np.square(model.singular_values))),
        "vamp2_held_out": float(np.mean(folds)),
        "vamp2_held_out_std": float(np.std(folds, ddof=1)),
        "vamp2_held_out_error": float(np.std(folds, ddof=1) / np.sqrt(len(folds))),
        "pca": settings.pca,
        "softening_ps": settings.softening,
    }
    return Estimate(mixer, model, scores)


def rates_within(rates: np.ndarray, where: Sequence[torch.Tensor], segments: Sequence[Segment]) -> np.ndarray:
    """The rates at frames of these segments only: what is scored has no part in the softening either.

    where: numbers of the frames of each trajectory that `rates` (K, n) were taken at.
    """
    inside = [torch.zeros(len(frames), dtype=torch.bool) for frames in where]
    for s in segments:
        inside[s.trajectory] |= (where[s.trajectory] >= s.start) & (where[s.trajectory] < s.stop)
    return rates[torch.cat(inside).numpy()]


def estimate_vampnet(
    mixer: Mixer, frames: TrainingFrames, lag: int, settings: FitSettings, progress: StageProgress, unfinished: Unfinished
) -> Estimate:
    """A mixer trained by `koopman.train_vampnet`."""
    tokens, pairs = frames.tokens, frames.pairs

    def report(epoch: int, epochs: int, train_score: float, validation_score: float | None) -> None:
        progress("train", epoch + 1, epochs)

    name, made_from = "vampnet", fingerprint(*tokens, *mixer.state_dict().values(), asdict(settings), *_flat(pairs))
    result = train_vampnet(
        mixer,
        tokens,
        lag,
        settings.n_components,
        reversible=settings.reversible,
        seed=settings.seed,
        pairs=pairs,
        progress=report,
        resume=unfinished.load(name, made_from),
        keep=lambda state: unfinished.save_now_and_then(name, made_from, state),
        **settings.training,
    )
    scores = {
        "vamp2_training": 1.0 + float(np.sum(np.square(result.model.singular_values))),
        "vamp2_validation": _best(result.history),
        "vamp2_held_out": result.test_score,
        "vamp2_held_out_error": result.test_error,
        "history": {name: [None if x is None else float(x) for x in row] for name, row in result.history.items()},
        "best_epoch": int(result.best_epoch),
    }
    return Estimate(cast(Mixer, result.lobe), result.model, scores)


def _flat(pairs: PairsLike) -> list[np.ndarray]:
    return [] if pairs is None else [array for one in pairs for array in one]


def _best(history: dict[str, list[float]]) -> float | None:
    """The score that chose the epoch: no measure of how good the CV is, for being the best of many."""
    validation = [value for value in history["validation"] if value is not None]
    return float(max(validation)) if validation else None
