"""What the figures of a fitted collective variable mean: whether it is worth a biased simulation, and why."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from openmm_geomgnn.cv.kernel_widths import basin_widths, is_too_stiff, narrowest_width
from openmm_geomgnn.formatting import count_of

# a grade and why
Reason: TypeAlias = tuple[str, str]
# "grade" and "reasons"
Verdict: TypeAlias = dict[str, Any]

GRADES = ("usable", "weak", "not usable")
SEPARATES = "separates runs; no timescale"
ORDER_ONLY = "from biased frames; an order, no timescale"
_ESTIMATE = "; an estimate, from biased frames in rescaled time"
# A constant scores 1, and a component adds its squared autocorrelation at the lag. With less than this on held-out data, an
# autocorrelation of 0.22, nothing slow was learned.
LEAST_ABOVE_CONSTANT = 0.05
# share of what the training data score above a constant that held-out data must reach
OVERFITTED = 0.5
# transitions below which a rate is known to no better than about half of it
FEW_TRANSITIONS = 5
# frames between the basins of the training data, below which nobody knows what a CV does there
FEW_BETWEEN = 5
# effective pairs of weighted frames, below which noise of the weights is all that is learned
FEW_PAIRS = 500
STIFF_STEP = 0.002  # ps; a CV that is too stiff even when the bias is evaluated this often is only weakly usable
GOOD_R2, LEAST_R2 = 0.98, 0.5  # of a student
# An R2 is of the spread of the frames. Where these lie in basins that a component does not tell apart, this is the
# fluctuation within a basin, which a bias does not resolve: no kernel is narrower, and an error of this share of it is lost.
FINE_ERROR = 0.25
# relative errors of a student's gradient: all of it, and that of the change along turns about bonds, by which a bias crosses
GOOD_GRADIENT, GOOD_TURNING = 0.5, 0.3
FOLLOWED = 0.9  # R2 of a CV that is to follow a target


def timescale_notes(
    timescales: Iterable[float], lagtime: float, separates_runs: Iterable[bool]
) -> tuple[list[float | None], list[str]]:
    """(timescales, notes), for each component: picoseconds or None, and why there is none or "".

    Parameters
    ----------
    timescales : sequence of float
        -lag/ln(singular value), ps.
    separates_runs : sequence of bool
        As `koopman.transitions` found.
    """
    known, notes = [], []
    for value, separates in zip(timescales, separates_runs, strict=True):
        unresolved = value < lagtime
        known.append(None if unresolved or separates else float(value))
        notes.append(f"unresolved, below the lag of {lagtime:g} ps" if unresolved else SEPARATES if separates else "")
    return known, notes


def estimate_note(timescale: float | None) -> str:
    """The note on a timescale in ps that comes from biased frames in rescaled time; "" where there is none."""
    return "" if timescale is None else f"about {timescale:.2g} ps{_ESTIMATE}"


def judge(facts: Mapping[str, Any]) -> Verdict:
    """The verdict on a fitted CV: {"grade": one of GRADES, "reasons": sentences}, by its `training_information`."""
    return _verdict(
        [*_scores(facts), *_weights(facts), *_timescales(facts), *_between(facts), *_stiffness(facts), *_elements(facts)]
    )


def judge_student(facts: Mapping[str, Any], found: Mapping[str, Any]) -> Verdict:
    """The verdict on a student: that on its teacher, whose `facts` are known, and how well it reproduces it.

    found: the errors on "held_out" frames, and on these "turned" about bonds, as `distillation.distill` notes them.
    """
    teacher = facts.get("verdict")
    reasons = [(teacher["grade"], _of_the_teacher(reason)) for reason in teacher["reasons"]] if teacher else []
    r2 = found["held_out"]["r2"]
    if missed(found["held_out"], GOOD_R2, basin_widths(facts)):
        grade = "not usable" if min(r2) < LEAST_R2 else "weak"
        reasons.append((grade, f"it reproduces its teacher with an R2 of {min(r2):.3f} on held-out frames only"))
    turning = max(turning_errors(found))
    gradient = max(found["held_out"].get("gradient_error", [0.0]))
    if turning > GOOD_TURNING:
        reasons.append(
            ("weak", f"its change along turns about bonds, by which a bias crosses, is off by {100 * turning:.0f} %")
        )
    if gradient > GOOD_GRADIENT:
        of = "mostly along bonds and angles" if turning <= GOOD_TURNING else "as a whole"
        reasons.append(("usable", f"its gradient is off by {100 * gradient:.0f} %, {of}"))
    return _verdict(reasons)


def turning_errors(found: Mapping[str, Any]) -> list[float]:
    """Relative errors (d,) of a student's change along turns about bonds, on frames turned; [0] where nothing turns.

    found: as of `judge_student`; files of before say nothing of it.
    """
    return found.get("turned", {}).get("turning_error", [0.0])


def missed(found: Mapping[str, Sequence[float]], least: float, widths: npt.ArrayLike) -> list[int]:
    """The components, from 0, that a student does not reproduce.

    Their R2 is below `least`, and their error is more than FINE_ERROR of a bias's kernels.

    Parameters
    ----------
    found : dict
        `r2` and `rmse` of each component on some frames.
    least : float
    widths : (d,) array
        As of `kernel_widths.basin_widths`.
    """
    r2 = found["r2"]
    fine = [FINE_ERROR * width for width in np.asarray(widths)] or [0.0] * len(r2)
    return [k for k, one in enumerate(r2) if not (one >= least or found["rmse"][k] <= fine[k])]


def _of_the_teacher(reason: str) -> str:
    if reason.startswith("it "):
        return f"its teacher {reason[3:]}"
    return f"its teacher's {reason}" if reason.startswith("cv.") else f"for its teacher, {reason}"


def in_words(verdict: Mapping[str, Any]) -> str:
    """One line: the grade and the reasons."""
    return ": ".join([verdict["grade"], *filter(None, ["; ".join(verdict["reasons"])])])


def _verdict(reasons: Sequence[Reason]) -> Verdict:
    worst = max((GRADES.index(grade) for grade, _ in reasons), default=0)
    ordered = sorted(reasons, key=lambda reason: -GRADES.index(reason[0]))
    return {"grade": GRADES[worst], "reasons": [text for _, text in ordered]}


def _scores(facts: Mapping[str, Any]) -> Iterator[Reason]:
    """(grade, reason) pairs by the VAMP-2 scores; a constant scores 1."""
    if "r2_held_out" in facts:
        yield from _followed(facts)
        return
    held_out, training = facts.get("vamp2_held_out"), facts["vamp2_training"]
    if held_out is None:
        yield "weak", "there is no held-out score, so over-fitting would not be seen"
        return
    error = facts.get("vamp2_held_out_error") or 0.0
    score = f"the held-out VAMP-2 score is {held_out:.3f} +- {error:.3f}"
    if held_out - 1 < LEAST_ABOVE_CONSTANT:
        yield (
            "not usable",
            (
                f"{score}, hardly more than a constant's 1 ({training:.3f} in training): it learned nothing slow that other "
                "data show as well. Use more data, fewer principal components or a smaller network"
            ),
        )
    elif held_out - 1 < 2 * error:
        yield "weak", f"{score}, within two errors of a constant's 1: the data are too few, or show a slow event once"
    elif held_out - 1 < OVERFITTED * (training - 1):
        yield "weak", f"{score} and {training:.3f} in training: it is over-fitted. Use more data or a smaller pca"


def _elements(facts: Mapping[str, Any]) -> Iterator[Reason]:
    """(grade, reason) pairs by what the encoder was trained on."""
    if facts.get("untrained_elements"):
        yield (
            "weak",
            (
                f"its encoder was not trained on {', '.join(facts['untrained_elements'])}, so that it sees these atoms no "
                "better than random weights do"
            ),
        )


def _followed(facts: Mapping[str, Any]) -> Iterator[Reason]:
    """(grade, reason) pairs by how well a CV follows its targets in data that were held out."""
    for number, r2 in enumerate(facts["r2_held_out"], start=1):
        name = f"cv.{number}" if len(facts["r2_held_out"]) > 1 else "it"
        if r2 < FOLLOWED:
            yield (
                "not usable" if r2 < LEAST_R2 else "weak",
                (
                    f"{name} follows its target with an R2 of {r2:.2f} in data held out, so much else moves it. Explore "
                    "longer (explore.length), or use a larger encoder"
                ),
            )


def _weights(facts: Mapping[str, Any]) -> Iterator[Reason]:
    """(grade, reason) pairs by how many pairs of frames the weights of biased data leave."""
    effective = facts.get("effective_pairs")
    if effective is not None and effective < FEW_PAIRS:
        yield (
            "weak",
            (
                f"the weights of its biased frames leave an effective {effective:.0f} pairs of frames, so a few of them "
                "made it. Use longer runs, or reweighting: none"
            ),
        )


def _timescales(facts: Mapping[str, Any]) -> Iterator[Reason]:
    """(grade, reason) pairs by what the data show of the slow motions."""
    notes, counts = facts["timescale_notes"], facts["transitions"]
    for number, (note, count) in enumerate(zip(notes, counts, strict=True), start=1):
        name = f"cv.{number}" if len(notes) > 1 else "it"
        if note == SEPARATES:
            yield (
                "weak",
                (
                    f"{name} separates runs: no trajectory crosses between its extremes, so it has no timescale, and a "
                    "barrier cannot be told from a difference between runs"
                    if count == 0
                    else f"{name} separates runs: their averages are further apart than its relaxation explains, so it has "
                    "no timescale"
                ),
            )
        elif note.endswith(_ESTIMATE):
            yield "usable", f"{name} was fitted to biased frames in rescaled time, so its timescale is an estimate"
        elif note == ORDER_ONLY:
            yield "usable", f"{name} was fitted to biased frames, so its singular value is an order, not a timescale"
        elif note and "r2_held_out" in facts:
            yield (
                "weak",
                f"{name} relaxes within the lag in the runs without a bias, so these say nothing of its slow motion",
            )
        elif note:
            advice = "; nothing slow was found. Use a shorter lag or more data" if number == 1 else ""
            yield "not usable" if number == 1 else "weak", f"{name} relaxes within the lag{advice}"
        elif count < FEW_TRANSITIONS:
            yield (
                "weak",
                (
                    f"{name} has {count_of(count, 'transition')} between its extremes in the data, so its timescale "
                    "is a guess"
                ),
            )


def _between(facts: Mapping[str, Any]) -> Iterator[Reason]:
    """(grade, reason) pairs by the training data between the basins; files of before lack the count."""
    counts = facts.get("frames_between", ())
    for number, (count, note) in enumerate(zip(counts, facts["timescale_notes"], strict=False), start=1):
        if count >= FEW_BETWEEN or note.startswith("unresolved"):
            continue
        name = f" of cv.{number}" if len(counts) > 1 else ""
        lie = "no frame lies" if count == 0 else "1 frame lies" if count == 1 else f"{count} frames lie"
        yield (
            "weak",
            (
                f"{lie} between the basins{name}, so what it does there is a guess. If it moves without the states, fit it "
                "again with the frames of the biased run"
            ),
        )


def _stiffness(facts: Mapping[str, Any]) -> Iterator[Reason]:
    """(grade, reason) pairs by how hard it pulls."""
    widths = basin_widths(facts)
    for number, (rate, basin) in enumerate(zip(facts["rate_300K_per_ps"], widths, strict=True), start=1):
        width = narrowest_width(rate, STIFF_STEP)
        if is_too_stiff(width, basin):
            name = f"cv.{number}" if len(widths) > 1 else "it"
            yield (
                "weak",
                (
                    f"{name} is stiff: even evaluated at every step of 2 fs it needs kernels {width:.3g} wide, and "
                    f"kernels as wide as a basin have {basin:.3g}. Use a longer softening, or a gradient_penalty"
                ),
            )
