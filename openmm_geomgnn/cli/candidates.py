"""CVs fitted to everything that is known so far, and the one of them that a bias can drive."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from openmm_geomgnn.analysis.driving import drive_margin
from openmm_geomgnn.analysis.progress import SlowTorsion, progress_targets, side_targets, slow_torsions
from openmm_geomgnn.cli.biasing import NotBiasable, check_verdict, make_bias
from openmm_geomgnn.cli.choose import chosen_cv
from openmm_geomgnn.cli.fitting import fit_settings, fit_with_progress
from openmm_geomgnn.cli.learning_data import LearningData
from openmm_geomgnn.cli.names import CV_FILE
from openmm_geomgnn.cli.progress import echo
from openmm_geomgnn.cli.settings.protocol import Protocol
from openmm_geomgnn.cli.settings.sections import CVSection
from openmm_geomgnn.cli.student import student_or_network
from openmm_geomgnn.cv.kernel_widths import kernel_widening
from openmm_geomgnn.unfinished import Unfinished

# drive margin below which a bias may well pay for what looks like crossing: a CV of 1.5 was fooled on Ace-Pro-Nme
DRIVEN = 2.0
_MARGIN_FRAMES = 3000  # that drive margins are computed from
CHOSEN = "chosen_by_score"  # the settings of the linear CV, in the training information
_SCORED = ("window", "mixer", "estimator", "pca", "softening")
# what a student's file says as well
_NOTES = ("slow_torsions", "drive_margin", "candidates", "overlap", "least_kernel_width", CHOSEN)


class Candidate(NamedTuple):
    """A CV, and how well a bias can drive it.

    Attributes
    ----------
    cv : CollectiveVariable
    margins : list of float
        The `drive_margin` of each slow torsion; nan where there are no frames to tell.
    fault : str
        Why it cannot be biased; "" if it can.
    """

    cv: Any
    margins: list[float]
    fault: str

    @property
    def margin(self) -> float:
        """The smallest of the margins that are known; nan where none is."""
        known = [one for one in self.margins if math.isfinite(one)]
        return min(known) if known else math.nan

    @property
    def estimator(self) -> str:
        """How it was fitted."""
        return self.cv.training_information["estimator"]

    @property
    def name(self) -> str:
        """How it was fitted, and to what, if not to windows of the whole molecule."""
        window = self.cv.spec.window
        return self.estimator if window == "all" else f"{self.estimator}, window {window}"

    def in_words(self) -> str:
        """One line."""
        margin = "not known" if math.isnan(self.margin) else f"{self.margin:.2g}"
        return f"{self.name}: drive margin {margin}" + (f", but {self.fault}" if self.fault else "")


def learned_cv(
    protocol: Protocol, data: LearningData, time_to_come: float, chosen_before: Mapping[str, Any] | None = None
) -> Any:
    """Fit the CV of a protocol to data, in the protocol's folder; returns a CollectiveVariable.

    With `cv: auto` a linear CV and the progress of slow torsions are fitted, and the one with the larger drive margin is
    taken. Where both leave a doubt, the progress is fitted to windows along the sequence as well.

    time_to_come: ps of the biased run that it is for, of all walkers; what crosses by itself in that is not slow.
    chosen_before: the settings of the linear CV that an earlier round chose by score, which are not chosen anew.

    Raises
    ------
    GeomGNNError
        If the data do not suffice; a NotBiasable if no CV can be biased.
    """
    names, torsions = data.torsions()
    slow = slow_torsions(torsions, data.frame_intervals, names, unbiased=data.unbiased, time_to_come=time_to_come)
    targets = _Targets.of(slow, torsions)
    if slow:
        echo(f"Torsions that are slow: {', '.join(one.name for one in slow)}")
    unfinished = Unfinished(protocol.output / CV_FILE)

    def fitted(section: CVSection) -> Candidate:
        cv = _fit(protocol, section, data, targets, unfinished)
        candidate = _candidate(protocol, cv, data, slow, torsions)
        if slow:
            echo(candidate.in_words())
        return candidate

    sections = _sections(protocol, data, slow, targets, chosen_before)
    candidates = [fitted(section) for section in sections]
    doubtful = all(one.margin < DRIVEN for one in candidates)
    if protocol.cv.auto and slow and doubtful and sections[-1].window == "all":
        candidates.append(fitted(sections[-1].model_copy(update={"window": "sequence"})))
    unfinished.remove()
    chosen = choose_candidate(candidates)
    if chosen.margin < DRIVEN:
        echo(f"A drive margin below {DRIVEN:g} is a doubt: what looks like crossing may cost a bias less than crossing.")
    chosen.cv.training_information |= {
        "slow_torsions": [one.as_json() for one in slow],
        "drive_margin": [None if math.isnan(one) else one for one in chosen.margins],
        "candidates": [one.in_words() for one in candidates],
    }
    if protocol.cv.auto:
        chosen.cv.training_information[CHOSEN] = {name: getattr(sections[0], name) for name in _SCORED}
    return chosen.cv


class _Targets(NamedTuple):
    """What a CV of progress is to follow: names, values (F, m) in every frame of each trajectory, and of how many torsions.

    progress: how many of the names are of progress; the others are sides.
    """

    names: list[str]
    values: list[np.ndarray]
    progress: int
    torsions: int

    @classmethod
    def of(cls, slow: Sequence[SlowTorsion], torsions: Sequence[np.ndarray]) -> "_Targets":
        """Those of slow torsions."""
        names, progress = progress_targets(slow, torsions)
        side_names, sides = side_targets(slow, torsions)
        values = [np.hstack(pair) for pair in zip(progress, sides, strict=True)]
        return cls([*names, *side_names], values, len(names), len(slow))


def _fit(protocol: Protocol, section: CVSection, data: LearningData, targets: _Targets, unfinished: Unfinished) -> Any:
    settings = fit_settings(section, protocol.unbiased.frame_interval, protocol.seed)
    given = data.fit_arguments()
    if section.estimator == "progress":
        given |= {"targets": targets.values, "target_names": targets.names}
    cv = fit_with_progress(data.trajectories, data.topology, settings, unfinished, **given)
    if section.estimator == "progress" and targets.torsions == 1:  # its components are a line, around a circle
        cv.training_information["kernel_widening"] = kernel_widening(1)
    return cv


def cv_to_bias(protocol: Protocol, cv: Any, data: LearningData) -> Any:
    """The student of a CV that was learned, with what is noted of it; the CV itself where no student is wanted, or good."""
    if not protocol.makes_a_student:
        return cv
    student = student_or_network(protocol, cv, data.trajectories)
    student.training_information |= {name: value for name, value in cv.training_information.items() if name in _NOTES}
    return student


def _sections(
    protocol: Protocol,
    data: LearningData,
    slow: Sequence[SlowTorsion],
    targets: _Targets,
    chosen_before: Mapping[str, Any] | None,
) -> list[CVSection]:
    """The settings of the CVs that are fitted."""
    section = protocol.cv
    progress = section.model_copy(update={"auto": False, "estimator": "progress", "components": len(targets.names)})
    if section.estimator == "progress":
        if not slow:
            raise NotBiasable(
                "No torsion was found that is slow and has several wells, so there is no progress to learn (cv.estimator: "
                "progress). Look for other states longer (explore.length), give a structure of another one, or use cv: auto."
            )
        return [progress]
    if not section.auto:
        return [section]
    several = section.model_copy(update={"components": max(section.components, targets.progress)})
    if chosen_before is None:
        given = data.fit_arguments()
        wanted = protocol.model_copy(update={"cv": several})
        linear = chosen_cv(wanted, data.trajectories, data.topology, output=protocol.output / CV_FILE, **given)
    else:
        linear = several.model_copy(update={"auto": False, **chosen_before})
    return [linear, progress] if slow else [linear]


def _candidate(
    protocol: Protocol, cv: Any, data: LearningData, slow: Sequence[SlowTorsion], torsions: Sequence[np.ndarray]
) -> Candidate:
    stride = data.stride(_MARGIN_FRAMES)
    margins: list[float] = []
    if slow:
        bound = cv.bind(data.topology, engine=protocol.run.engine)
        values = [bound.compute(one[::stride]) for one in data.trajectories]
        seen = [one[::stride] for one in torsions]
        margins = drive_margin(values, slow, seen, protocol.bias.barrier, protocol.system.temperature).tolist()
    try:
        check_verdict(cv, protocol)
        make_bias(cv, protocol)
    except NotBiasable as error:
        return Candidate(cv, margins, str(error))
    return Candidate(cv, margins, "")


def choose_candidate(candidates: Sequence[Candidate]) -> Candidate:
    """The one with the largest drive margin, of those that can be biased; where none is known, the one of progress.

    Raises NotBiasable if none can.
    """
    fit = [one for one in candidates if not one.fault]
    if not fit:
        raise NotBiasable(candidates[0].fault)
    return max(fit, key=lambda one: (-math.inf if math.isnan(one.margin) else one.margin, one.estimator == "progress"))
