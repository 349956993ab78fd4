"""Held-out VAMP scores: contiguous blocks of frames, never pairs across a cut."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from ..errors import GeomGNNError
from .covariance import check_lag, check_lengths, covariances
from .vamp import EPSILON, subspace_score


class Segment(NamedTuple):
    """Frames start..stop of one trajectory."""

    trajectory: int
    start: int
    stop: int

    def take(self, arrays: Sequence):
        """The segment's frames out of one array for each trajectory."""
        return arrays[self.trajectory][self.start : self.stop]


def hold_out(lengths: Sequence[int], lag: int, fraction: float, blocks: int = 4,
             seed: int = 0) -> tuple[list[Segment], list[Segment]]:
    """Split trajectories into training and validation segments, each longer than the lag.

    Every trajectory that is long enough gives up to `blocks` contiguous blocks at random places, `fraction` of its
    frames together, so every run (and every basin with a run of its own) is in both sets. Of the trajectories too
    short for that (a block needs 2 lags), whole ones are held out. Pairs exist within a segment only, so none
    straddles a cut.

    Parameters
    ----------
    lengths
        Frames of each trajectory.
    lag
        In frames.
    fraction
        Between 0 (no validation) and 1, exclusive.

    Raises
    ------
    GeomGNNError
        If the data are too short to hold out a part and keep one.
    """
    check_lag(lag)
    check_lengths(lengths, lag)
    if not 0 <= fraction < 1:
        raise GeomGNNError(f"The validation fraction must be at least 0 and less than 1 but was {fraction!r}.")
    if fraction == 0:
        return [Segment(k, 0, n) for k, n in enumerate(lengths)], []
    rng = np.random.default_rng(seed)
    training: list[Segment] = []
    validation: list[Segment] = []
    short = []
    for k, length in enumerate(lengths):
        held = round(fraction * length)
        if held < 2 * lag:
            short.append(k)
            continue
        count = max(1, min(blocks, held // (4 * lag)))
        edges = np.linspace(0, length, count + 1).astype(int).tolist()
        end = 0
        for low, high in zip(edges[:-1], edges[1:], strict=True):
            size = min(held // count, high - low)
            start = int(rng.integers(low, high - size + 1))
            training.append(Segment(k, end, start))
            validation.append(Segment(k, start, start + size))
            end = start + size
        training.append(Segment(k, end, length))
    held_short = set(rng.permutation(short)[: round(fraction * len(short))].tolist())
    for k in short:
        (validation if k in held_short else training).append(Segment(k, 0, lengths[k]))
    training = [s for s in training if s.stop - s.start > lag]
    validation = [s for s in validation if s.stop - s.start > lag]
    if not training or not validation:
        raise GeomGNNError(f"The trajectories ({sum(lengths)} frames in {len(lengths)}, longest {max(lengths)}) are "
                           f"too short to hold out a fraction of {fraction:g} at a lag of {lag} frames: a held-out "
                           "block needs two lags. Use more data, a shorter lag, another fraction, or a validation "
                           "fraction of 0.")
    return training, validation


def held_out_score(model, trajs, lag: int, r: float = 2, reversible: bool = True, weights=None) -> float:
    """VAMP-r score on `trajs` of the functions of a fitted model, which the data had no part in fitting.

    The space that psi spans is scored: its covariances over `trajs`, 1 + |C00^-1/2 C0t Ctt^-1/2|_r^r, with nothing
    refitted but the metric of the m functions themselves. (McGibbon & Pande, J. Chem. Phys. 142, 124105, 2015.)

    Parameters
    ----------
    model
        Something with ``transform(array (T, ...)) -> psi (T, m)`` (a KoopmanModel, a VAMPNetResult), or such a
        function.
    trajs
        One array for each held-out trajectory.
    """
    transform = getattr(model, "transform", model)
    return subspace_score(covariances([transform(x) for x in trajs], lag, weights, reversible), r, EPSILON)


def cross_validate(fit: Callable, trajs, lag: int, folds: int = 5, r: float = 2, reversible: bool = True, weights=None,
                   blocks: int = 4) -> np.ndarray:
    """Held-out VAMP-r score of each fold, (folds,).

    Every trajectory is cut into ``folds * blocks`` contiguous blocks (fewer where a block would be shorter than 4
    lags), dealt to the folds in turn; trajectories too short for a block of 2 lags in each fold go to one fold whole.
    For each fold, `fit` sees the rest, as separate trajectories, and its model is scored on the fold.

    Parameters
    ----------
    fit
        ``fit(training) -> model``, with `training` a list of arrays, and ``fit(training, weights=...)`` when weights
        are given; the model as in `held_out_score`. For instance ``lambda x: fit_linear(x, lag, dim=2)``.
    trajs
        One array (T, ...) for each trajectory: features or tokens, whatever `fit` takes.
    """
    check_lag(lag)
    trajs = list(trajs) if isinstance(trajs, (list, tuple)) else [trajs]
    if weights is not None and not isinstance(weights, (list, tuple)):
        weights = [weights]
    lengths = [len(x) for x in trajs]
    check_folds(lengths, lag, folds, blocks)
    scores = []
    for training, validation in _folds(lengths, lag, folds, blocks):
        take = [s.take(trajs) for s in training]
        model = fit(take) if weights is None else fit(take, weights=[s.take(weights) for s in training])
        held_weights = None if weights is None else [s.take(weights) for s in validation]
        scores.append(held_out_score(model, [s.take(trajs) for s in validation], lag, r, reversible, held_weights))
    return np.array(scores)


def check_folds(lengths: Sequence[int], lag: int, folds: int, blocks: int = 4) -> None:
    """GeomGNNError where trajectories of these lengths, in frames, are too short for `cross_validate`; it needs no data."""
    check_lengths(lengths, lag)
    if folds < 2:
        raise GeomGNNError(f"Cross-validation needs at least 2 folds but folds was {folds!r}.")
    if not all(training and validation for training, validation in _folds(lengths, lag, folds, blocks)):
        raise GeomGNNError(f"The trajectories ({sum(lengths)} frames in {len(lengths)}) are too short for {folds} folds, in "
                           f"which a CV is scored on data it was not fitted to, at a lag of {lag} frames: a fold needs "
                           "blocks of two lags. Use a shorter lag, or more or longer trajectories.")


def _folds(lengths, lag, folds, blocks):
    """(training, validation) segments of each fold."""
    owners: list[list[tuple[int, Segment]]] = []  # for each trajectory, its blocks in order, each with its fold
    n_short = 0
    for k, length in enumerate(lengths):
        count = min(folds * blocks, length // (4 * lag))
        count = max(count - count % folds, folds)
        if length // count < 2 * lag:
            owners.append([(n_short % folds, Segment(k, 0, length))])
            n_short += 1
            continue
        edges = np.linspace(0, length, count + 1).astype(int).tolist()
        owners.append([(i % folds, Segment(k, edges[i], edges[i + 1])) for i in range(count)])
    for fold in range(folds):
        training, validation = [], []
        for row in owners:
            start = None
            for owner, segment in row:
                if owner == fold:
                    validation.append(segment)
                    start = None
                elif start is None:
                    start = segment.start
                    training.append(segment)
                else:  # neighbouring training blocks are one run
                    training[-1] = training[-1]._replace(stop=segment.stop)
        yield [s for s in training if s.stop - s.start > lag], validation
