"""`geomgnn distill`: make a student of a collective variable, and report its quality and cost."""

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any

from openmm_geomgnn.cli.first_frames import load_trajectories
from openmm_geomgnn.cli.progress import echo, progress_bars
from openmm_geomgnn.cli.settings.distill import Distill
from openmm_geomgnn.cv.distillation import DistillSettings, benchmark_evaluation, distill
from openmm_geomgnn.cv.network import CollectiveVariable
from openmm_geomgnn.cv.verdict import GOOD_GRADIENT, GOOD_R2, GOOD_TURNING, in_words, turning_errors
from openmm_geomgnn.formatting import format_values
from openmm_geomgnn.locks import locked
from openmm_geomgnn.representation.selection import as_topology
from openmm_geomgnn.unfinished import Unfinished
from openmm_geomgnn.units import NM_TO_ANGSTROM

STAGES = {
    "labels": ("Asking the teacher", "conformations"),
    "train": ("Training", "epochs"),
    "stiffness": ("Stiffness", "frames"),
}
WHERE = {
    "held_out": "frames held out",
    "displaced": "these, atoms displaced",
    "turned": "these, turned about bonds",
}


def run_distill(settings: Distill) -> Any:
    """Make and write the student that a `Distill` describes; returns it.

    Raises GeomGNNError if inputs do not fit together, or another process is making the same file.
    """
    with locked(settings.output, folder=False):
        return _distill(settings)


def _distill(settings: Distill) -> Any:
    cv: Any = CollectiveVariable.load(settings.cv)
    topology = as_topology(settings.topology)
    trajectories = load_trajectories(
        settings.trajectories, topology, cv.selection, settings.stride, settings.allow_truncated
    )
    chosen = {field.name: getattr(settings, field.name) for field in fields(DistillSettings)}
    chosen["displacement"] *= NM_TO_ANGSTROM
    echo(f"teacher {settings.cv.name}; {sum(map(len, trajectories))} frames in {len(trajectories)} trajectories")
    unfinished = Unfinished(settings.output)
    with progress_bars(STAGES) as progress:
        student = distill(cv, topology, trajectories, DistillSettings(**chosen), progress, unfinished)
    cost = benchmark_evaluation(cv, student, topology, trajectories[0])
    student.training_information["distillation"]["cost_ms"] = cost
    student.save(settings.output)
    unfinished.remove()
    for line in (*table(student), *remarks(student, cost)):
        echo(line)
    _warn(student.training_information["distillation"])
    echo(f"verdict: {in_words(student.training_information['verdict'])}")
    echo(f"written to {settings.output}")
    return student


def table(student: Any) -> Iterator[str]:
    """Yield lines with the errors of the student, by component and kind of conformation."""
    found = student.training_information["distillation"]
    yield f"{'':<28}{'component':>10}{'R2':>12}{'RMSE':>12}{'gradient error':>16}{'along turns':>14}"
    for name in filter(found.get, WHERE):
        figures = [found[name][figure] for figure in ("r2", "rmse", "gradient_error")]
        turning = [f"{100 * one:.3g} %" for one in found[name].get("turning_error", ())]
        rows = zip(*figures, turning or [""] * len(figures[0]), strict=True)
        for number, (r2, rmse, gradient, along) in enumerate(rows, start=1):
            label = WHERE[name] if number == 1 else ""
            yield f"{label:<28}{f'cv.{number}':>10}{r2:>12.5f}{rmse:>12.4g}{100 * gradient:>14.3g} %{along:>14}".rstrip()


def remarks(student: Any, cost: Mapping[str, Any]) -> Iterator[str]:
    """Yield lines on cost, stiffness and range."""
    facts = student.training_information
    compiled = "" if cost["compiled"] is None else f", compiled {_time(cost['compiled'])}"
    times = f"{cost['eager'] / cost['student']:.0f} times cheaper"
    if compiled:
        times += f", {cost['compiled'] / cost['student']:.0f} times than compiled"
    teacher = f"teacher {_time(cost['eager'])} in plain PyTorch{compiled}"
    yield f"value and gradient: {teacher}; student {_time(cost['student'])}: {times}"
    before = facts["teacher"]["rate_300K_per_ps"]
    known = "" if before is None else f" (teacher {format_values(before)})"
    yield f"stiffness {format_values(facts['rate_300K_per_ps'])} per ps{known}"
    ranges = "; ".join(f"{low:.3g} to {high:.3g}" for low, high in facts["range"])
    yield f"range {ranges}; wherever it is asked, |s| stays below {format_values(facts['distillation']['largest'])}"


def _warn(found: Mapping[str, Any]) -> None:
    """Warn if the student is poor, and say what to do."""
    advice = (
        "Give frames from more of the places that the simulation will visit (biased runs serve as well), more labels, or a "
        "wider student (hidden), and look whether the teacher has gradients worth learning: a very stiff CV has not"
    )
    for name in filter(found.get, WHERE):
        worst = min(found[name]["r2"])
        if worst < GOOD_R2:
            warnings.warn(
                f"The student is poor on {WHERE[name]}: R2 is {worst:.3f}, below {GOOD_R2}. Reweighting from a bias on it "
                f"is still exact, but its CV is not quite the teacher's. {advice}.",
                UserWarning,
                stacklevel=2,
            )
            return
    turning = max(turning_errors(found))
    steepest = max(found["held_out"]["gradient_error"])
    where = "of the teacher's" if steepest > GOOD_GRADIENT else "along turns about bonds, by which a bias crosses"
    if steepest > GOOD_GRADIENT or turning > GOOD_TURNING:
        off = steepest if steepest > GOOD_GRADIENT else turning
        warnings.warn(f"The student's gradient is off by {100 * off:.0f} % {where}. {advice}.", UserWarning, stacklevel=2)


def _time(milliseconds: float) -> str:
    return f"{milliseconds:.3g} ms" if milliseconds >= 0.1 else f"{1000 * milliseconds:.3g} us"
