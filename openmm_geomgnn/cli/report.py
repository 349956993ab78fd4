"""The report of a run: checks of its analysis, and the way from the results to summary.json and report.html."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from openmm_geomgnn.analysis.crossings import PHI_CORE_A, PHI_CORE_B, PHI_DIVIDING
from openmm_geomgnn.analysis.figures import standard_figures, standard_tables
from openmm_geomgnn.analysis.intervals import TURN
from openmm_geomgnn.analysis.pipeline import Analysis, analyse_biased_run
from openmm_geomgnn.analysis.progress import SlowTorsion, well_crossings, well_differences
from openmm_geomgnn.analysis.report import report_page, write_summary
from openmm_geomgnn.analysis.torsions import compute_torsion
from openmm_geomgnn.analysis.variables import BiasedRun, Variable
from openmm_geomgnn.analysis.verdict import judge_run, sentences
from openmm_geomgnn.cli.headline import slow_tables
from openmm_geomgnn.cli.molecule import check_torsions, kinetic_degrees
from openmm_geomgnn.cli.results import Results, read_results
from openmm_geomgnn.cli.round_notes import read_rounds, round_figures, round_tables, seed_tables
from openmm_geomgnn.cli.settings.protocol import Protocol
from openmm_geomgnn.cli.state_examples import example_names, write_examples
from openmm_geomgnn.cv.verdict import GRADES, in_words, turning_errors
from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.files import atomic_write
from openmm_geomgnn.representation.rotatable import rotatable_torsions
from openmm_geomgnn.units import BOLTZMANN

_FEWEST_FRAMES = 2  # of each walker, for torsions
_RAMACHANDRAN = ("phi", "psi")
_ALANINE_DIPEPTIDE = ("ACE", "ALA", "NME")


def check_analysis(protocol: Protocol) -> None:
    """Raise a GeomGNNError, before any work is done, if the results could not be analysed."""
    check_torsions(protocol)
    schedule = protocol.schedule
    if protocol.analysis.torsions and schedule.length < _FEWEST_FRAMES * schedule.frame_interval:
        raise GeomGNNError(
            f"run.length is {protocol.run.length:g} ps, too short for {_FEWEST_FRAMES} frames, one every "
            f"{protocol.run.frame_interval:g} ps (run.frame_interval), which the report of analysis.torsions needs."
        )


def report(protocol: Protocol, seconds: float = float("nan")) -> dict[str, Any]:
    """Analyse the results in a protocol's folder, write summary.json and report.html, and return the summary.

    An unfinished run is reported as far as it is, which the summary's `complete` indicates. Nothing is written before
    everything has been read, checked and computed.

    seconds: the time that the run took, for the summary. Raises GeomGNNError if there are no results yet, or files in the
    folder are damaged or do not belong together.
    """
    folder, results = protocol.output, read_results(protocol)
    analysis, summary = analyse(protocol, results, seconds)
    title, notes = f"{folder.name}: {', '.join(path.stem for path in protocol.system.structures)}", analysis.notes
    if not results.complete:
        title += f" (partial: {results.done:g} of {results.planned:g} ps)"
        notes = [f"Warning: this report is partial: {results.missing}. Go on with the run by `geomgnn run`.", *notes]
    rounds = read_rounds(folder)
    if rounds:
        summary["rounds"] = rounds
    tables = [
        *standard_tables(analysis),
        *slow_tables(summary),
        *round_tables(rounds),
        *seed_tables(folder),
        _cv_table(results.cv),
    ]
    page = report_page(title, summary, [*standard_figures(analysis), *round_figures(rounds)], notes, tables)
    write_examples(folder, analysis.found, results.biased)
    write_summary(folder / "summary.json", summary)
    with atomic_write(folder / "report.html") as temporary:
        temporary.write_text(page, encoding="utf-8")
    return summary


def report_nothing(protocol: Protocol, why: str) -> dict[str, Any]:
    """Write summary.json and report.html of a run that learned no CV that can be biased; returns the summary."""
    folder, rounds = protocol.output, read_rounds(protocol.output)
    verdict = f"not converged: no CV was learned that can be biased. {why}"
    summary = {"complete": False, "missing": "the biased run", "converged": False, "verdict": verdict}
    summary |= {"rounds": rounds} if rounds else {}
    page = report_page(folder.name, summary, round_figures(rounds), [f"Warning: {verdict}"], round_tables(rounds))
    write_summary(folder / "summary.json", summary)
    with atomic_write(folder / "report.html") as temporary:
        temporary.write_text(page, encoding="utf-8")
    return summary


def analyse(protocol: Protocol, results: Results, seconds: float = float("nan")) -> tuple[Any, dict[str, Any]]:
    """Compute (Analysis, summary) of a run's `Results`; the summary includes the run's progress and the CV's quality."""
    torsions, notes = dict(protocol.analysis.torsions), []
    if torsions and min(len(run) for run in results.biased) < _FEWEST_FRAMES:
        torsions = {}
        notes = ["Warning: there are fewer than two frames of each walker yet, too few for torsions."]
    every_torsion = _all_torsions(protocol, results)
    run = BiasedRun(
        results.colvar,
        protocol.system.temperature,
        frame_times=results.frame_times if torsions or every_torsion else None,
        degrees_of_freedom=kinetic_degrees(protocol),
        unbiased_frame_time=results.comparison_step,
        wall_seconds=seconds,
    )
    analysis = analyse_biased_run(
        run,
        _variables(protocol, results, run, torsions),
        maps=[_RAMACHANDRAN] if set(_RAMACHANDRAN) <= set(torsions) else [],
        discard=protocol.analysis.discard,
        torsions=every_torsion,
        cv_range=_training_range(results.cv),
        settling=protocol.settling(results.done),
        seed=protocol.seed,
    )
    for state, example in zip(analysis.summary.get("states", []), example_names(analysis.found), strict=True):
        state["example"] = example
    if protocol.bias.method == "opes" and results.done < protocol.bias.ramp:
        notes.append(
            f"Warning: after {results.done:g} ps the bias does not act to its full depth yet: it sets in over "
            f"{protocol.bias.ramp:g} ps (bias.ramp)."
        )
    analysis.notes = [*notes, *analysis.notes, *_cv_notes(results.cv)]
    values = None if every_torsion is None else every_torsion[1]
    analysis.summary |= _slow_torsions(results, analysis, values)
    cv_verdict = results.cv.training_information.get("verdict")
    verdict = judge_run(analysis.summary, results.missing, cv_verdict, results.cv.dimension)
    analysis.notes = [*sentences(verdict), *analysis.notes]
    progress: dict[str, Any] = {"complete": results.complete, "done_ps": results.done, "planned_ps": results.planned}
    progress["every"] = protocol.every
    if not results.complete:
        progress["missing"] = results.missing
    judged = {"converged": verdict.converged, "verdict": verdict.in_words()}
    return analysis, {**progress, **judged, **analysis.summary, **cv_summary(results.cv)}


def _all_torsions(protocol: Protocol, results: Results) -> tuple[Sequence[str], list[np.ndarray]] | None:
    """Names and values of all torsions in every frame, in which states are found; None where they are given, or too few."""
    if _crossings(protocol.analysis, results)[0] is not None or min(len(run) for run in results.biased) < _FEWEST_FRAMES:
        return None
    if not results.biased[0].topology.n_bonds:  # of beads, for example
        return None
    torsions = rotatable_torsions(results.biased[0].topology)
    return torsions.names, [torsions.compute(walker) for walker in results.biased]


def _slow_torsions(results: Results, analysis: Analysis, values: list[np.ndarray] | None) -> dict[str, Any]:
    """How often torsions that the CV was learned for crossed between their wells per ns, and F between these; {} without.

    values: of all torsions in every frame, where they were computed before.
    """
    slow = [SlowTorsion.from_json(one) for one in results.cv.training_information.get("slow_torsions", [])]
    if not slow:
        return {}
    if values is None:
        torsions = rotatable_torsions(results.biased[0].topology)
        values = [torsions.compute(walker) for walker in results.biased]
    time = 1e-3 * results.done * len(results.biased)
    rates = {one.name: count / time for one, count in zip(slow, well_crossings(slow, values), strict=True)}
    found: dict[str, Any] = {"slow_torsion_crossings_per_ns": rates}
    frames = analysis.frames
    if frames is None:
        return found
    kept, logw, kT = frames.select(values), frames.select(frames.logw), BOLTZMANN * analysis.run.temperature
    found["slow_torsion_delta_F"] = [
        {"torsion": one.name, "from_deg": math.degrees(first), "to_deg": math.degrees(other), **difference._asdict()}
        for one in slow
        for first, other, difference in well_differences(one, kept, logw, kT)
    ]
    return found


def _training_range(cv: Any) -> tuple[float, float] | None:
    """The range of a CV's first component in its training data, where its file says it."""
    low, high = float(cv.output.low[0]), float(cv.output.high[0])
    return (low, high) if np.isfinite([low, high]).all() else None


def cv_summary(cv: Any) -> dict[str, Any]:
    """Scores of a CV for summary.json. A student has its own scores, and its teacher's under "teacher"."""
    facts = cv.training_information
    own = {"cv_rate_300K_per_ps": facts.get("rate_300K_per_ps")}
    # the spread within a basin takes frames at even times, which a distillation need not have
    learned = {
        "vamp2": facts.get("vamp2_training"),
        "vamp2_held_out": facts.get("vamp2_held_out"),
        "timescales_ps": facts.get("timescales_ps"),
        "timescale_notes": facts.get("timescale_notes"),
        "transitions": facts.get("transitions"),
        "in_basin_spread": facts.get("in_basin_spread"),
    }
    if "verdict" in facts:
        own["cv_verdict"] = in_words(facts["verdict"])
    if "distillation" not in facts:
        return {f"cv_{name}": value for name, value in learned.items()} | own
    held_out, turning = facts["distillation"]["held_out"], turning_errors(facts["distillation"])
    own |= {"cv_r2_of_teacher": held_out["r2"], "cv_gradient_error": held_out["gradient_error"]}
    own |= {"cv_turning_error": turning} if any(turning) else {}
    return own | {f"teacher_{name}": value for name, value in learned.items()}


def _cv_notes(cv: Any) -> list[str]:
    verdict = cv.training_information.get("verdict")
    if verdict is None:  # files before version 4 lack them
        return []
    prefix = "" if verdict["grade"] == GRADES[0] else "Warning: "
    return [f"{prefix}verdict on the CV: {in_words(verdict)}."]


def _cv_table(cv: Any) -> tuple[str, list]:
    """Make (title, rows) with timescales of the components, or why there are none, and the transitions behind them."""
    facts, n = cv.training_information, cv.dimension
    timescales = facts.get("timescales_ps") or [None] * n
    notes, counts = facts.get("timescale_notes") or [""] * n, facts.get("transitions") or ["not counted"] * n
    rows = [["component", "timescale", "transitions in the training data"]]
    for k in range(n):
        known = "not known" if timescales[k] is None else f"{timescales[k]:.3g} ps"
        rows.append([f"cv.{k + 1}", notes[k] or known, counts[k]])
    return "Collective variable" + (", by its teacher" if "distillation" in facts else ""), rows


def _variables(protocol: Protocol, results: Results, run: BiasedRun, torsions: Any) -> list[Variable]:
    """Make a list of `Variable`: the torsions, and the variable along which crossings are counted."""
    along, states = _crossings(protocol.analysis, results)
    variables = []
    for name, atoms in torsions.items():
        values = [compute_torsion(walker, name, atoms) for walker in results.biased]
        if name == along:
            unbiased = [compute_torsion(walker, name, atoms) for walker in results.unbiased] or None
            variables.append(Variable(name, values, TURN, unbiased=unbiased, **states))
        else:
            variables.append(Variable(name, values, TURN))
    if along is not None and along not in protocol.analysis.torsions:
        unbiased = None
        if results.unbiased:
            bound = results.cv.bind(results.unbiased[0].topology, engine="eager")
            component = run.cv_fields.index(along)
            unbiased = [bound.compute(walker)[:, component] for walker in results.unbiased]
        variables.append(run.component(along, unbiased=unbiased, **states))
    return variables


def _crossings(analysis: Any, results: Results) -> tuple[str | None, Any]:
    """Name the variable along which crossings are counted, or None, and the cores of its states as settings of a `Variable`.

    The default cores are those of alanine dipeptide, if it is that and the torsions of its map are named.
    """
    if analysis.cores:
        return analysis.cores.along, {"cores": (analysis.cores.a, analysis.cores.b)}
    residues = tuple(residue.name for residue in results.biased[0].topology.residues if not residue.is_water)
    if residues == _ALANINE_DIPEPTIDE and set(_RAMACHANDRAN) <= set(analysis.torsions):
        return "phi", {"cores": (PHI_CORE_A, PHI_CORE_B), "dividing": PHI_DIVIDING}
    return None, {}
