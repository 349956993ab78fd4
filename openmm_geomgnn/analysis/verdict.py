"""What the numbers of a biased run are worth: whether its free energy has converged, why not, and what to try.

All limits of what is good enough are here; `notes` has what its reader should know besides.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from openmm_geomgnn.analysis.division import FOUND
from openmm_geomgnn.analysis.notes import heating
from openmm_geomgnn.formatting import count_of
from openmm_geomgnn.units import BOLTZMANN

FEWEST_CROSSINGS = 10  # after the discarded start; with fewer, the populations of two states are a matter of luck
LARGEST_ERROR = 1.0  # kT, of the free-energy difference
LARGEST_DRIFT = 4.0  # errors, between the two halves of the data: each has about 1.4 of the error of the whole
LARGEST_HEATING = 0.02  # of the temperature
FOOLED = 0.2  # changes of the states per crossing of the CV, below which it is something else that the CV follows
_REFIT = (
    "fit it again with the frames of this run (trajectories: [..., {run: ...}] of `geomgnn fit`), which show it what it "
    "must not follow"
)
_LONGER = "Run longer (run.length)"
SHORTEST = 0.1  # ns of all walkers, for a judgement of the temperature


class Reason(NamedTuple):
    """Why a run has not converged, and what to try; two sentences without their full stops."""

    problem: str
    advice: str


@dataclass(frozen=True)
class RunVerdict:
    """Whether a run has converged.

    Attributes
    ----------
    converged : bool or None
        None where it cannot be judged, for want of states.
    reasons : tuple of Reason
        What speaks against it.
    """

    converged: bool | None
    reasons: tuple[Reason, ...] = ()

    def in_words(self) -> str:
        """One paragraph."""
        if self.converged:
            return "converged: it crossed often, and the halves of the data agree"
        grade = "not judged" if self.converged is None else "not converged"
        problems = "; ".join(reason.problem for reason in self.reasons)
        every = list(dict.fromkeys(reason.advice for reason in self.reasons))
        advice = ". ".join(one for one in every if not any(other != one and other.startswith(one) for other in every))
        return f"{grade}: {problems}. {advice}"


def judge_run(
    summary: Mapping[str, Any], missing: str = "", cv_verdict: Mapping[str, Any] | None = None, components: int = 1
) -> RunVerdict:
    """Judge a biased run by the summary of `pipeline.analyse_biased_run`.

    A run has converged if it crossed between its states at least FEWEST_CROSSINGS times after the start that is left out,
    its free-energy difference has an error of at most LARGEST_ERROR kT, as have those along the torsions that the CV was
    learned for, the two halves of the data agree within LARGEST_DRIFT errors, and the bias did not heat it. The states are
    those of the variable with cores, or those that were found. They should not be along the CV: its crossings alone may be
    of something that the CV was fooled by.

    Parameters
    ----------
    summary : dict
    missing : str, optional
        What of the run is not done yet.
    cv_verdict : dict, optional
        That on its CV, see `cv.verdict.judge`.
    components : int, optional
        Of the CV.
    """
    reasons = [*_progress(missing), *_heat(summary, components)]
    if cv_verdict is not None and cv_verdict["grade"] == "not usable":
        reasons.append(Reason("its CV is not usable", "Look at the verdict on the CV"))
    if summary["crossing_variable"] == "none":
        reasons.append(
            Reason(
                "no states are known, so it is not known whether it crossed between any",
                "Give analysis.cores along a torsion or another variable that tells the states apart",
            )
        )
        return RunVerdict(None if len(reasons) == 1 else False, tuple(reasons))
    reasons += [*_crossings(summary), *_fooled(summary), *_difference(summary), *_slow_torsions(summary)]
    return RunVerdict(not reasons, tuple(reasons))


def _progress(missing: str) -> Iterator[Reason]:
    if missing:
        yield Reason(f"it is not finished: {missing}", "Go on with it by `geomgnn run`")


def _heat(summary: Mapping[str, Any], components: int) -> Iterator[Reason]:
    if is_hot(summary):
        mean, target = summary["mean_temperature_K"], summary["target_temperature_K"]
        if mean < target:
            yield Reason(
                f"its mean temperature is {mean:.0f} K at a target of {target:.0f} K, too cold for its populations",
                "Run longer (run.length), and look for what takes heat out if it stays cold",
            )
            return
        filling = f", as a bias on {components} components does while it fills" if components > 1 else ""
        yield Reason(
            f"its mean temperature is {mean:.0f} K at a target of {target:.0f} K{filling}, and heat fakes crossings",
            "Evaluate the bias more often (run.every), use wider kernels (bias.sigma) or a softer CV (cv.softening)"
            + (", deposit less often (bias.pace) or run longer (run.length)" if components > 1 else ""),
        )


def _crossings(summary: Mapping[str, Any]) -> Iterator[Reason]:
    along, count, used = summary["crossing_variable"], summary["crossings"], summary["crossings_used"]
    found = along == FOUND
    if found and len(summary["states"]) == 1:
        yield Reason(
            "one state was found, and there is no free energy between states in that",
            "Give a structure of another state as well (system.structures), run longer, or raise bias.barrier; where you "
            "know states that no torsion tells apart, give analysis.cores",
        )
    elif count == 0:
        moved = summary.get("cv_crossings", math.nan)
        neither = ", and neither did the CV between its ends" if moved == 0 else ""
        yield Reason(
            f"it never crossed between its states{'' if found else f' along {along}'}{neither}",
            # where it is known that the CV covered its range, `_fooled` says what to do about that
            (f"If the CV covered its range all the same, it is fooled: {_REFIT}. " if math.isnan(moved) else "")
            + "Look at the barrier, which may be higher than bias.barrier",
        )
    elif used < FEWEST_CROSSINGS:
        where = "between its states" if found else f"along {along}"
        yield Reason(
            f"it crossed {count_of(used, 'time')} {where} after the start that is left out, and {FEWEST_CROSSINGS} are the "
            "least that populations can be judged by",
            _LONGER,
        )


def _fooled(summary: Mapping[str, Any]) -> Iterator[Reason]:
    moved, changes = summary.get("cv_crossings", math.nan), summary.get("state_changes", math.nan)
    if moved >= FEWEST_CROSSINGS and changes < FOOLED * moved:
        states = "never changed" if changes == 0 else f"changed {count_of(changes, 'time')}"
        yield Reason(
            f"the CV moved between its ends {moved:.0f} times while the states {states}: it is fooled",
            _REFIT[0].upper() + _REFIT[1:],
        )


def _difference(summary: Mapping[str, Any]) -> Iterator[Reason]:
    kT = BOLTZMANN * summary["target_temperature_K"]
    error, value = summary["delta_F_error"], summary["delta_F_kJ_per_mol"]
    if summary["crossings"] == 0:
        return
    if not (math.isfinite(value) and math.isfinite(error)):
        yield Reason("its free-energy difference has no error bar", _LONGER)
        return
    if error > LARGEST_ERROR * kT:
        yield Reason(
            f"the error of its free-energy difference is {error:.1f} kJ/mol, more than {LARGEST_ERROR:g} kT",
            _LONGER,
        )
    first, second = summary["delta_F_first_half"], summary["delta_F_second_half"]
    if not (math.isfinite(first) and math.isfinite(second)):
        yield Reason("one half of the data does not have both of its states", _LONGER)
    elif not abs(first - second) <= LARGEST_DRIFT * error:
        yield Reason(
            f"its free-energy difference is {first:.1f} kJ/mol in the first half of the data and {second:.1f} in the second",
            "Run longer (run.length), or discard more of the start (analysis.discard)",
        )


def _slow_torsions(summary: Mapping[str, Any]) -> Iterator[Reason]:
    """The torsions that the CV was learned for: their free energies may be worse known than that between the states."""
    limit = LARGEST_ERROR * BOLTZMANN * summary["target_temperature_K"]
    poor = [one for one in summary.get("slow_torsion_delta_F", []) if one["error"] > limit]
    if poor:
        several = "errors of the free energies" if len(poor) > 1 else "error of the free energy"
        named = ", ".join(f"{one['torsion']} ({one['error']:.1f} kJ/mol)" for one in poor)
        yield Reason(
            f"the {several} along {named} {'are' if len(poor) > 1 else 'is'} more than {LARGEST_ERROR:g} kT", _LONGER
        )


def is_hot(summary: Mapping[str, Any]) -> bool:
    """Whether the mean temperature is further from the target than the bias may heat, and known well enough."""
    return abs(heating(summary, SHORTEST)) > LARGEST_HEATING  # of less it is the chance of a few fluctuations


def sentences(verdict: RunVerdict) -> Sequence[str]:
    """The verdict as notes of a report, of which those that begin with "Warning" need attention."""
    words = f"{verdict.in_words()}."
    return [f"the run has {words}" if verdict.converged else f"Warning: {words}"]
