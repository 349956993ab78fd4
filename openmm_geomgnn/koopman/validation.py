"""Held-out VAMP scores on contiguous blocks of frames that are at least a lag time away from the training data."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..errors import GeomGNNError
from .covariance import Pairs, PairsLike, Weights, as_list, check_lagtime, check_lengths, covariances
from .vamp import EPSILON, subspace_score


class Segment(NamedTuple):
    """Frames start to stop (exclusive) of one trajectory."""

    trajectory: int
    start: int
    stop: int

    def take(self, arrays: Sequence[Any]) -> Any:
        """Take the segment's frames from `arrays`, one for each trajectory."""
        return arrays[self.trajectory][self.start : self.stop]

    def take_pairs(self, pairs: Sequence[Pairs]) -> Pairs:
        """Take the pairs of which both frames are in the segment, from those of each trajectory; numbered from its start."""
        first, second, weights = pairs[self.trajectory]
        inside = (np.minimum(first, second) >= self.start) & (np.maximum(first, second) < self.stop)
        return Pairs(first[inside] - self.start, second[inside] - self.start, weights[inside])


def hold_out(
    lengths: Sequence[int], lagtime: int, fraction: float | Sequence[float], blocks: int = 4, seed: int = 0
) -> tuple[list[Segment], ...]:
    """Split trajectories into training segments and one or several held-out parts, each segment longer than the lag time.

    Every trajectory that is long enough contributes up to `blocks` contiguous blocks at random places to each part, so every
    run (and every basin with a run of its own) is in all of them. Shorter trajectories are held out whole. Pairs are formed
    within a segment only, so none straddles a cut, and at least a lag time is left out around each held-out block, because
    frames closer than that are correlated.

    Parameters
    ----------
    lengths
        Frames of each trajectory.
    lagtime
        In frames.
    fraction
        Fraction of the frames for each part: between 0 (none) and 1, exclusive. A block needs two lag times, and may take up
        to twice its share of a short trajectory for that.

    Returns
    -------
    training, *held_out
        A list of segments for each part.

    Raises
    ------
    GeomGNNError
        If the data are too short to hold out these parts and keep one.
    """
    check_lagtime(lagtime)
    check_lengths(lengths, lagtime)
    fractions = tuple(fraction) if isinstance(fraction, (list, tuple)) else (fraction,)
    for one in fractions:
        if not 0 <= one < 1:
            raise GeomGNNError(f"The validation fraction must be at least 0 and less than 1 but was {one!r}.")
    if sum(fractions) >= 1:
        raise GeomGNNError(
            f"The fractions {fractions} that are held out leave nothing to train on: they must sum to less than 1."
        )
    parts = hold_out_blocks(lengths, fractions, lagtime, 2 * lagtime, blocks, seed)
    parts = [[s for s in part if s.stop - s.start > lagtime] for part in parts]
    if not all(part for part, wanted in zip(parts, (1, *fractions), strict=True) if wanted):
        wanted = " and ".join(f"{one:g}" for one in fractions if one)
        raise GeomGNNError(
            f"The trajectories ({sum(lengths)} frames in {len(lengths)}, longest {max(lengths)}) are "
            f"too short to hold out a fraction of {wanted} at a lag of {lagtime} frames: a held-out "
            "block needs two lags, and a lag on either side. Use more data, a shorter lag, other "
            "fractions, or fractions of 0."
        )
    return tuple(parts)


def hold_out_blocks(
    lengths: Sequence[int], fractions: Sequence[float], gap: int, shortest: int, blocks: int = 4, seed: int = 0
) -> list[list[Segment]]:
    """Choose segments [training, *held out] as `hold_out` does, for any gap and shortest block, in frames."""
    rng = np.random.default_rng(seed)
    parts: list[list[Segment]] = [[] for _ in (0, *fractions)]
    short = []
    for k, length in enumerate(lengths):
        shares = [round(fraction * length) for fraction in fractions]
        sizes = {part: max(share, shortest) for part, share in enumerate(shares, start=1) if fractions[part - 1]}
        needed = sum(sizes.values()) + 2 * gap * len(sizes) + shortest
        if not sizes:
            parts[0].append(Segment(k, 0, length))
        elif needed > length or any(size > 2 * shares[part - 1] for part, size in sizes.items()):
            short.append(k)
        else:
            count = max(1, min(blocks, min(sizes.values()) // max(1, 2 * shortest)))
            while count > 1 and length // count < sum(sizes.values()) // count + gap * len(sizes):
                count -= 1
            held = _place(length, {part: size // count for part, size in sizes.items()}, count, gap, rng)
            end = 0
            for part, start, stop in held:
                parts[0].append(Segment(k, end, start - gap))
                parts[part].append(Segment(k, start, stop))
                end = stop + gap
            parts[0].append(Segment(k, end, length))
    order, first = rng.permutation(short).tolist(), 0
    for part, fraction in enumerate(fractions, start=1):
        last = first + round(fraction * len(short))
        parts[part] += [Segment(k, 0, lengths[k]) for k in sorted(order[first:last])]
        first = last
    parts[0] += [Segment(k, 0, lengths[k]) for k in sorted(order[first:])]
    parts[0] = [segment for segment in parts[0] if segment.stop > segment.start]
    return parts


def _place(length: int, sizes: dict[int, int], count: int, gap: int, rng: np.random.Generator) -> list[tuple[int, int, int]]:
    """Place a block of each part at random in each of `count` stretches of a trajectory: (part, start, stop)."""
    edges = np.linspace(0, length, count + 1).astype(int).tolist()
    held = []
    for low, high in zip(edges[:-1], edges[1:], strict=True):
        free = high - low - sum(sizes.values()) - gap * len(sizes)  # each block is followed by a gap
        before = np.sort(rng.integers(0, free + 1, len(sizes))).tolist()
        start = low
        for part, skipped in zip(rng.permutation(list(sizes)).tolist(), before, strict=True):
            held.append((part, start + skipped, start + skipped + sizes[part]))
            start += sizes[part] + gap
    return held


def held_out_score(
    model: Any,
    trajs: Sequence[Any],
    lagtime: int,
    r: float = 2,
    reversible: bool = True,
    weights: Weights | None = None,
    pairs: PairsLike = None,
) -> float:
    """Compute the VAMP-r score of a fitted model's functions on `trajs`, which the fit has not seen.

    The score 1 + |C00^-1/2 C0t Ctt^-1/2|_r^r is that of the space that psi spans, with its covariances over `trajs`; only
    the metric of the m functions is refitted. (McGibbon & Pande, J. Chem. Phys. 142, 124105, 2015.)

    Parameters
    ----------
    model
        An object with ``transform(array (T, ...)) -> psi (T, m)`` (a KoopmanModel, a VAMPNetResult), or such a function.
    trajs
        One array for each held-out trajectory.
    """
    transform = getattr(model, "transform", model)
    return subspace_score(covariances([transform(x) for x in trajs], lagtime, weights, reversible, pairs), r, EPSILON)


def cross_validate(
    fit: Callable[..., Any],
    trajs: Any,
    lagtime: int,
    folds: int = 5,
    r: float = 2,
    reversible: bool = True,
    weights: Weights | None = None,
    blocks: int = 4,
    options: Callable[[list[Segment]], dict] | None = None,
    pairs: PairsLike = None,
) -> np.ndarray:
    """Compute the held-out VAMP-r score of each fold, (folds,).

    Every trajectory is cut into ``folds * blocks`` contiguous blocks (fewer if a block would be shorter than 4 lag times),
    which are dealt to the folds in turn; a trajectory too short for a block of 2 lag times in each fold goes to one fold
    whole. For each fold, `fit` sees the rest as separate trajectories, without frames closer than a lag time to the fold,
    and its model is scored on the fold.

    Parameters
    ----------
    fit
        ``fit(training) -> model``, with `training` a list of arrays, and ``fit(training, weights=...)`` when weights
        are given; the model as in `held_out_score`. For instance ``lambda x: fit_linear(x, lagtime, n_components=2)``.
    trajs
        One array (T, ...) for each trajectory: features or tokens, as `fit` takes them.
    options
        Function from the training segments of a fold to further keyword arguments of `fit`, such as measurements at their
        frames.
    pairs
        `Pairs` for each trajectory; `fit` then gets those of its training data as `pairs=`.

    Examples
    --------
    >>> import numpy as np
    >>> from openmm_geomgnn.koopman import cross_validate, fit_linear
    >>> noise = np.random.default_rng(0).normal(size=(2000, 4))
    >>> scores = cross_validate(lambda training: fit_linear(training, 5, 1), noise, 5)
    >>> scores.shape, bool(scores.max() < 1.05)  # a constant scores 1
    ((5,), True)
    """
    check_lagtime(lagtime)
    trajs = as_list(trajs)
    frame_weights = None if weights is None else as_list(weights)
    lengths = [len(x) for x in trajs]
    check_folds(lengths, lagtime if pairs is None else 1, folds, blocks)  # pairs know the lag of each trajectory
    scores = []
    for training, validation in folds_of_blocks(lengths, [lagtime] * len(lengths), folds, blocks):
        more = {} if options is None else options(training)
        if frame_weights is not None:
            more["weights"] = [s.take(frame_weights) for s in training]
        if pairs is not None:
            more["pairs"] = [s.take_pairs(pairs) for s in training]
        model = fit([s.take(trajs) for s in training], **more)
        held_weights = None if frame_weights is None else [s.take(frame_weights) for s in validation]
        held_pairs = None if pairs is None else [s.take_pairs(pairs) for s in validation]
        held_out = [s.take(trajs) for s in validation]
        scores.append(held_out_score(model, held_out, lagtime, r, reversible, held_weights, held_pairs))
    return np.array(scores)


def check_folds(lengths: Sequence[int], lagtime: int, folds: int, blocks: int = 4) -> None:
    """Raise a GeomGNNError if trajectories of these lengths, in frames, are too short for `cross_validate`."""
    check_lengths(lengths, lagtime)
    if folds < 2:
        raise GeomGNNError(f"Cross-validation needs at least 2 folds but folds was {folds!r}.")
    split = folds_of_blocks(lengths, [lagtime] * len(lengths), folds, blocks)
    if not all(training and validation for training, validation in split):
        raise GeomGNNError(
            f"The trajectories ({sum(lengths)} frames in {len(lengths)}) are too short for {folds} folds, in "
            f"which a CV is scored on data it was not fitted to, at a lag of {lagtime} frames: a fold needs "
            "blocks of two lags, a lag away from the rest. Use a shorter lag, or more or longer "
            "trajectories."
        )


def folds_of_blocks(
    lengths: Sequence[int], lagtimes: Sequence[int], folds: int, blocks: int = 4, gaps: Sequence[int] | None = None
) -> Iterator[tuple[list[Segment], list[Segment]]]:
    """Yield (training, held out) segments of each fold, as `cross_validate` has them.

    Parameters
    ----------
    lengths, lagtimes
        Frames of each trajectory, and the lag time in its frames.
    gaps
        Frames of each trajectory that are left out between training and held-out segments; its lag time by default.
    """
    gaps = lagtimes if gaps is None else gaps
    owners: list[list[tuple[int, Segment]]] = []  # for each trajectory, its blocks in order, each with its fold
    n_short = 0
    for k, (length, lagtime) in enumerate(zip(lengths, lagtimes, strict=True)):
        count = min(folds * blocks, length // (4 * lagtime))
        count = max(count - count % folds, folds)
        if length // count < 2 * lagtime:
            owners.append([(n_short % folds, Segment(k, 0, length))])
            n_short += 1
            continue
        edges = np.linspace(0, length, count + 1).astype(int).tolist()
        owners.append([(i % folds, Segment(k, edges[i], edges[i + 1])) for i in range(count)])
    for fold in range(folds):
        training: list[Segment] = []
        validation: list[Segment] = []
        for row, gap in zip(owners, gaps, strict=True):
            after_validation, open_run = False, False
            for owner, segment in row:
                if owner == fold:
                    validation.append(segment)
                    if open_run:
                        training[-1] = training[-1]._replace(stop=training[-1].stop - gap)
                    after_validation, open_run = True, False
                elif open_run:  # neighbouring training blocks are one run
                    training[-1] = training[-1]._replace(stop=segment.stop)
                else:
                    training.append(segment._replace(start=segment.start + gap * after_validation))
                    open_run = True
        yield [s for s in training if s.stop - s.start > lagtimes[s.trajectory]], validation


def folds_of_runs(
    lengths: Sequence[int], folds: int, order: Sequence[int] | None = None
) -> Iterator[tuple[list[Segment], list[Segment]]]:
    """Yield (training, held out) segments of each fold, which are whole trajectories, dealt to the folds in turn.

    order: numbers of the trajectories in the order in which they are dealt, as given by default. Sorted by where they are
    along a slow motion, every fold has some of everywhere.
    """
    whole = [Segment(k, 0, length) for k, length in enumerate(lengths)]
    dealt = list(range(len(lengths))) if order is None else list(order)
    for fold in range(folds):
        held = set(dealt[fold::folds])
        yield [s for s in whole if s.trajectory not in held], [s for s in whole if s.trajectory in held]
