"""Tables of held-out scores of CVs: of each window every trajectory is embedded once, whatever is asked of it."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import mdtraj
import numpy as np
import numpy.typing as npt

from openmm_geomgnn.aliases import TopologyLike
from openmm_geomgnn.cv.fit_data import features_of, featurize, lengths_of, read_positions
from openmm_geomgnn.cv.fit_settings import FitSettings
from openmm_geomgnn.cv.reweighting import Weighting, weighting
from openmm_geomgnn.cv.score_features import NO_WINDOW, NetworkFeatures, TorsionFeatures
from openmm_geomgnn.cv.score_rows import RANDOM, Case, Scored, ScoreGrid, ScoreRow, Split, score_cases
from openmm_geomgnn.cv.score_vampnets import score_vampnet
from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.koopman import Segment, basins, folds_of_blocks, folds_of_runs, linear_basis
from openmm_geomgnn.koopman.vamp import project
from openmm_geomgnn.representation.featurization import Featurization, SelectedAtoms
from openmm_geomgnn.representation.selection import as_topology
from openmm_geomgnn.representation.store import Embeddings
from openmm_geomgnn.unfinished import Unfinished

RUNS_PER_FOLD = 3  # from which on runs are held out whole
SEQUENCE_FROM = 4  # residues, from which on windows by sequence are tried as well
# called with what is scored, the stage of that, what of it is done, and its whole
GroupProgress: TypeAlias = Callable[[str, str, float, float], None]


@dataclass(frozen=True)
class ScoreSettings:
    """What is scored, and how.

    Attributes
    ----------
    grid : ScoreGrid
    windows : tuple of str, optional
        By default "all", and "sequence" for molecules of SEQUENCE_FROM residues or more; of a store its own.
    folds : int
    hold_out : {"auto", "runs", "blocks"}
        Whether whole trajectories are held out or blocks of all of them; auto takes runs where there are RUNS_PER_FOLD for
        each fold.
    gap : float, optional
        ps between a block that is held out and what is fitted to; a lag time by default and at least.
    training : dict
        Arguments of `koopman.train_vampnet`, for mixers.
    workers : int
        Processes in which these are trained.
    """

    grid: ScoreGrid = field(default_factory=ScoreGrid)
    windows: tuple[str, ...] | None = None
    folds: int = 4
    hold_out: str = "auto"
    gap: float | None = None
    training: dict[str, Any] = field(default_factory=dict)
    workers: int = 1


def score_cvs(
    trajectories: Sequence[mdtraj.Trajectory] | Embeddings,
    topology: TopologyLike,
    settings: FitSettings,
    scoring: ScoreSettings,
    progress: GroupProgress | None = None,
    *,
    known: Iterable[ScoreRow] = (),
    keep: Callable[[list[ScoreRow]], None] | None = None,
    unfinished: Callable[[str], Unfinished] | None = None,
    biases: Sequence[npt.ArrayLike | None] | None = None,
    frame_intervals: Sequence[float] | None = None,
) -> list[ScoreRow]:
    """Score CVs of one molecule on data they were not fitted to.

    Random weights of the same encoder and torsions are scored as well, to be compared with.

    Parameters
    ----------
    trajectories, topology, biases, frame_intervals
        As of `fit.fit_cv`.
    settings : FitSettings
        Of which the grid replaces pca, softening and n_components, and `scoring` the window.
    scoring : ScoreSettings
    progress : callable, optional
        Called as progress(what, stage, done, total).
    known : list of ScoreRow, optional
        Rows of the same data and settings, which are not computed again.
    keep : callable, optional
        Called with all rows whenever there are more.
    unfinished : callable, optional
        From a window to an `Unfinished`, where the tokens of the encoder are kept.

    Returns
    -------
    list of ScoreRow

    Raises
    ------
    GeomGNNError
        If settings are wrong or the data do not suffice.
    """
    progress = progress or (lambda what, stage, done, total: None)
    topology = as_topology(topology)
    lengths = lengths_of(trajectories)
    weights = weighting(lengths, settings, biases, frame_intervals)
    cases = _cases(scoring.grid, settings)
    rows = {(row.features, row.window, row.case): row for row in known}
    split: Split | None = None
    for number, window in enumerate(_windows(trajectories, topology, settings, scoring)):
        spec = replace(settings.tokens, window=window)
        featurization = featurize(trajectories, topology, replace(settings, tokens=spec))
        torsions = TorsionFeatures(featurization)
        kept = Unfinished() if unfinished is None else unfinished(window)
        sources: list[NetworkFeatures | TorsionFeatures] = [
            *([torsions] if number == 0 and torsions.coordinates is not None else []),
            NetworkFeatures(featurization.encoder.name, featurization, settings, kept, trajectories),
            NetworkFeatures(RANDOM, _with_random_weights(featurization, settings.seed), settings, Unfinished()),
        ]
        missing = [(one, [c for c in one.cases(cases) if (one.name, one.window, c) not in rows]) for one in sources]
        if not any(wanted for _, wanted in missing):
            continue
        positions = read_positions(trajectories, featurization)
        split = split or make_split(torsions.arrays(positions), lengths, weights, settings, scoring)
        for source, wanted in missing:
            for found in _score(source, wanted, positions, split, weights, scoring, progress):
                rows |= {(row.features, row.window, row.case): row for row in found}
                if keep is not None:
                    keep(list(rows.values()))
    return list(rows.values())


def make_split(
    slow_features: Sequence[np.ndarray],
    lengths: Sequence[int],
    weights: Weighting,
    settings: FitSettings,
    scoring: ScoreSettings,
) -> Split:
    """What is held out, and which biased trajectories stayed in one basin: along the slowest function of `slow_features`.

    slow_features: (F, n) of each trajectory, which are not those that are scored; an empty list where there are none.

    Raises
    ------
    GeomGNNError
        If the data are too few for so many folds.
    """
    lags = [math.ceil(settings.lagtime / interval - 1e-3) for interval in weights.intervals]
    lag, folds = settings.lag_frames(), scoring.folds
    slow: list[np.ndarray] = []
    if slow_features:
        basis = linear_basis(slow_features, lag, None, settings.reversible, pairs=weights.pairs)
        slow = [basis.reduce(x) @ basis.solve(1).projection[:, 0] for x in slow_features]
    if scoring.hold_out == "runs" or (scoring.hold_out == "auto" and len(lengths) >= RUNS_PER_FOLD * folds):
        order = np.argsort([part.mean() for part in slow], kind="stable").tolist() if slow else None
        parts = list(folds_of_runs(lengths, folds, order))
    else:
        gaps = [max(k, math.ceil((scoring.gap or 0.0) / t)) for k, t in zip(lags, weights.intervals, strict=True)]
        parts = list(folds_of_blocks(lengths, lags, folds, gaps=gaps))
    if not all(_has_pairs(segments, lags) for part in parts for segments in part):
        raise GeomGNNError(
            f"The trajectories ({sum(lengths)} frames in {len(lengths)}) are too short or too few for {folds} folds, in "
            f"which a CV is scored on data it was not fitted to, at a lag of {settings.lagtime:g} ps. Use fewer folds, a "
            "shorter lag, or more or longer trajectories."
        )
    sides = basins(slow, lags) if slow and weights.any_biased else []
    stayed = {k: side for k, side in enumerate(sides) if side is not None and weights.biased[k]}
    return Split(lag, weights.pairs, parts, stayed, settings.reversible)


def _has_pairs(segments: Sequence[Segment], lags: Sequence[int]) -> bool:
    return any(s.stop - s.start > lags[s.trajectory] for s in segments)


def _cases(grid: ScoreGrid, settings: FitSettings) -> list[Case]:
    """The cases of a grid; without softening where the estimator is not reversible, which has none."""
    cases = grid.cases() if settings.reversible else replace(grid, softening=(0.0,)).cases()
    if not cases:
        raise GeomGNNError(
            f"There is nothing to score: no number of principal components ({grid.pca}) suffices for {grid.components} "
            "components of the CV. Raise pca."
        )
    return cases


def _windows(trajectories: Any, topology: mdtraj.Topology, settings: FitSettings, scoring: ScoreSettings) -> tuple[str, ...]:
    if isinstance(trajectories, Embeddings):
        return (trajectories.spec.window,)
    if scoring.windows is not None:
        return scoring.windows
    residues = len(SelectedAtoms.find(topology, settings.tokens.selection).table)
    return ("all", "sequence") if residues >= SEQUENCE_FROM else ("all",)


def _with_random_weights(featurization: Featurization, seed: int) -> Featurization:
    """The same windows of the same atoms with an encoder that was never trained."""
    f = featurization
    same = SelectedAtoms(f.topology, f.atoms, f.table, f.molecule)
    return Featurization(same, f.spec, f.encoder.with_random_weights(seed))


def _score(
    source: NetworkFeatures | TorsionFeatures,
    cases: Sequence[Case],
    positions: Sequence[Any],
    split: Split,
    weights: Weighting,
    scoring: ScoreSettings,
    progress: GroupProgress,
) -> Iterator[list[ScoreRow]]:
    """Yield rows of some cases of one kind of features: all linear ones, then one VAMPnet after the other."""
    what = source.name if source.window == NO_WINDOW else f"{source.name}, window {source.window}"

    def stage(name: str, done: float, total: float) -> None:
        progress(what, name, done, total)

    def folds(done: int, total: int) -> None:
        stage("folds", done, total)

    figures: dict[str, Any] = {"frame_interval": weights.intervals, "biased": weights.biased}
    figures["progress"] = lambda done, total: stage("stiffness", done, total)
    linear = [case for case in cases if case.is_linear]
    if linear:
        features = source.features(positions, linear, stage)
        scored = score_cases(features, linear, split, folds)
        if scored:
            mean, projection = scored[0].model.mean, np.concatenate([one.model.projection for one in scored], axis=1)
            values = [project(x, mean, projection) for x in features.arrays]
            found = source.stiffness(mean, projection, positions, values=values, **figures)
            ends = np.cumsum([one.case.components for one in scored]).tolist()
            pairs = zip(scored, ends, strict=True)
            yield [_row(source, one, found, slice(end - one.case.components, end)) for one, end in pairs]
    for case in cases:
        if not case.is_linear and isinstance(source, NetworkFeatures):
            tokens = source.tokens(positions, stage)
            mixer = source.untrained(case.mixer)
            net = score_vampnet(mixer, tokens, case, split, scoring.training, scoring.workers, folds)
            mean, projection = net.model.mean, net.model.projection
            values = [project(x, mean, projection) for x in features_of(net.mixer, tokens)]
            found = source.stiffness(mean, projection, positions, mixer=net.mixer, values=values, **figures)
            yield [_row(source, net, found, slice(None))]


def _row(source: NetworkFeatures | TorsionFeatures, scored: Scored, figures: dict[str, Any], columns: slice) -> ScoreRow:
    held_out = scored.held_out
    return ScoreRow(
        source.name,
        source.window,
        *scored.case,
        scored.pca_components,
        1.0 + float(np.square(scored.model.singular_values).sum()),
        float(held_out.mean()),
        float(held_out.std(ddof=1) / np.sqrt(len(held_out))),
        tuple(held_out.tolist()),
        scored.gap,
        tuple(figures["rate_300K_per_ps"][columns]),
        tuple(figures["in_basin_spread"][columns]),
    )
