"""`cv: auto`: the settings of a CV chosen by score, before it is fitted."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import mdtraj

from openmm_geomgnn.aliases import TopologyLike
from openmm_geomgnn.cli.fitting import fit_settings
from openmm_geomgnn.cli.names import CV_FILE
from openmm_geomgnn.cli.progress import echo
from openmm_geomgnn.cli.scoring import choices_of, conclude, scores_in
from openmm_geomgnn.cli.settings.protocol import Protocol
from openmm_geomgnn.cli.settings.scoring import ScoreSection
from openmm_geomgnn.cli.settings.sections import CVSection
from openmm_geomgnn.cv.fit_settings import FitSettings
from openmm_geomgnn.unfinished import Unfinished

SCORING = ScoreSection.model_validate({})  # what is tried


def chosen_cv(
    protocol: Protocol,
    trajectories: Sequence[mdtraj.Trajectory],
    topology: TopologyLike,
    biases: Sequence[Any] | None = None,
    frame_intervals: Sequence[float] | None = None,
    output: Path | None = None,
) -> CVSection:
    """The CV section of a protocol, in which `auto` has become what scores best on these data.

    A choice that was made for the same data is read, and one that was stopped goes on.

    Parameters
    ----------
    protocol : Protocol
    trajectories, topology, biases, frame_intervals
        As of `cv.fit.fit_cv`.
    output : Path, optional
        Of the CV that is to be fitted; in its folder are the scores, and beside it the tokens, for the fit. By default that
        of the run.

    Returns
    -------
    CVSection
        With `auto` off; the section itself where it is off already.

    Raises
    ------
    GeomGNNError
        If the data do not suffice.
    """
    section = protocol.cv
    if not section.auto:
        return section
    settings = fit_settings(section, protocol.unbiased.frame_interval, protocol.seed)
    settings = replace(settings, temperature=protocol.system.temperature)
    given = {"biases": biases, "frame_intervals": frame_intervals}
    biased = {name: value for name, value in given.items() if value is not None}
    path = protocol.output / CV_FILE if output is None else output
    step = protocol.schedule.bias_step
    return choose_settings(section, settings, trajectories, topology, path.parent, path, step, **biased)


def choose_settings(
    section: CVSection,
    settings: FitSettings,
    trajectories: Any,
    topology: TopologyLike,
    folder: Path,
    output: Path,
    step: float | None,
    **biased: Any,
) -> CVSection:
    """As `chosen_cv`, from FitSettings.

    folder: of the scores. output: of the CV. step: ps between evaluations of the bias to come.
    """
    echo("The settings of the CV are chosen by score (cv: auto).")
    windows = None if section.window == "all" else (section.window,)
    scoring = replace(SCORING.settings(section), windows=windows)
    parts: dict[str, Unfinished] = {}

    def kept(window: str) -> Unfinished:
        return parts.setdefault(window, Unfinished(f"{output}.{window}"))

    rows, made_from = scores_in(folder, trajectories, topology, settings, scoring, kept, **biased)
    (chosen,) = conclude(folder, rows, made_from, section, choices_of(rows, scoring, step, settings.temperature))
    _leave_tokens(parts, chosen.window, Unfinished(output))
    return chosen


def _leave_tokens(parts: dict[str, Unfinished], window: str, fit: Unfinished) -> None:
    """Leave the tokens of the chosen window to the fit, and remove the others."""
    mine = parts.get(window)
    if mine is not None and mine.folder is not None and fit.folder is not None and mine.folder.is_dir():
        fit.remove()
        mine.folder.rename(fit.folder)
    for part in parts.values():
        part.remove()
