"""Rounds of learning: fit a CV to all that is known, bias it for a while, and fit again with what the bias did."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from openmm_geomgnn.analysis.verdict import FEWEST_CROSSINGS
from openmm_geomgnn.cli.biasing import NotBiasable, decide_every, in_one_line, kernel_width, make_bias, run_biased
from openmm_geomgnn.cli.candidates import CHOSEN, cv_to_bias, learned_cv
from openmm_geomgnn.cli.fitting import describe
from openmm_geomgnn.cli.further import look_further
from openmm_geomgnn.cli.learning_data import LearningData
from openmm_geomgnn.cli.names import ROUNDS
from openmm_geomgnn.cli.progress import echo
from openmm_geomgnn.cli.provenance import current_cv, write_cv
from openmm_geomgnn.cli.report import report
from openmm_geomgnn.cli.round_notes import least_crossings_per_ns, write_rounds
from openmm_geomgnn.cli.run_folder import as_begun, has_biased_steps, prepare_output_folder, settle
from openmm_geomgnn.cli.settings.protocol import Protocol
from openmm_geomgnn.cli.starts import starting_from
from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.koopman import align

SAME_CV = 0.9  # overlap of the CVs of two rounds from which on they are the same
_OVERLAP_FRAMES = 2000  # at which they are compared
# figures of a round's summary that tell what it was worth
_FIGURES = (
    *("biased_ns", "crossings", "crossings_per_ns", "slow_torsion_crossings_per_ns", "cv_crossings", "state_changes"),
    *("delta_F_kJ_per_mol", "delta_F_error", "delta_F_definition", "mean_temperature_K", "converged", "verdict"),
)


def learn_in_rounds(
    protocol: Protocol, data: LearningData, starts: Sequence[Path], record: Mapping[str, Any]
) -> tuple[Any, list[Path]]:
    """The CV for the biased run of a protocol: that of the round which crossed most often between its states.

    A round that was stopped goes on where it was.

    Parameters
    ----------
    protocol : Protocol
    data : LearningData
        What is known before the first round.
    starts : list of Path
        Structures from which the walkers start in turn.
    record : dict
        What CVs are made from, see `provenance.made_from`.

    Returns
    -------
    cv : CollectiveVariable or StudentCV
    starts : list of Path
        With seeds of what was explored along CVs.

    Raises
    ------
    GeomGNNError
        If the first CV cannot be biased, or a simulation fails.
    """
    section: Any = protocol.rounds
    rounds: list[dict[str, Any]] = []
    cvs: list[Any] = []
    widths = 0.0
    for number in range(1, section.number + 1):
        echo(f"Round {number} of at most {section.number}")
        one = as_begun(_protocol_of(protocol, number, starts))
        time_to_come = protocol.run.walkers * protocol.run.length
        try:
            with prepare_output_folder(one):
                settle(one)
                cv = _round_cv(one, data, {**record, "round": number}, time_to_come, widths, cvs, rounds)
                if _is_known(cv, rounds):
                    rounds[-1]["overlap_with_refit"] = cv.training_information["overlap"]
                    write_rounds(protocol.output, rounds)
                    break
                one = decide_every(one, cv)
                bias = make_bias(cv, one)
        except NotBiasable as error:
            if not rounds:
                raise
            echo(f"No further CV can be biased: {error}")
            break
        rounds.append(_bias(one, number, cv, bias))
        cvs.append(cv)
        widths = _wider(widths, cv, one) if "failed" in rounds[-1] else widths
        write_rounds(protocol.output, rounds)
        data = data.with_run(one.output) if rounds[-1]["biased_ns"] else data
        if number < section.number and "failed" not in rounds[-1] and not _crosses(rounds[-1]):
            data, starts, noted = look_further(one, cv.dimension, bias, data, starts)
            rounds[-1] |= noted
            write_rounds(protocol.output, rounds)
    if all("failed" in one for one in rounds):
        raise NotBiasable(f"No round came to its end. The last one: {rounds[-1]['failed']}")
    best = best_round(rounds)
    echo(f"The CV of round {best + 1} is taken for the biased run.")
    for number, noted in enumerate(rounds):
        noted["taken"] = number == best
    write_rounds(protocol.output, rounds)
    return cvs[best], list(starts)


def best_round(rounds: Sequence[Mapping[str, Any]]) -> int:
    """The round, from 0, that drove its slowest torsion, or without one its states, most often; of equals the latest."""
    return max(range(len(rounds)), key=lambda k: (_driven(rounds[k]), k))


def _driven(facts: Mapping[str, Any]) -> float:
    """The `least_crossings_per_ns` of a round; -1 if it failed."""
    return -1.0 if "failed" in facts else least_crossings_per_ns(facts)


def overlap_of(new: Any, old: Any, data: LearningData) -> float:
    """The share of the variance of an old CV that the new one reproduces, over all that is known."""
    stride = data.stride(_OVERLAP_FRAMES)
    frames = [one[::stride] for one in data.trajectories]
    values = [
        np.concatenate([bound.compute(one) for one in frames])
        for bound in (cv.bind(data.topology, engine="auto") for cv in (new, old))
    ]
    return align(values[0], values[1], np.linspace(0.9, 0.8, new.dimension)).overlap


def _is_known(cv: Any, rounds: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a CV is that of the round before, which crossed often enough: then there is no more to learn."""
    overlap = cv.training_information.get("overlap")
    return bool(rounds) and overlap is not None and overlap >= SAME_CV and _crosses(rounds[-1])


def _crosses(facts: Mapping[str, Any]) -> bool:
    """Whether a round crossed often enough for its CV to be good."""
    return _driven(facts) * (facts.get("biased_ns") or 0.0) >= FEWEST_CROSSINGS / 2


def _protocol_of(protocol: Protocol, number: int, starts: Sequence[Path]) -> Protocol:
    """The protocol of a round: in a folder of its own, with noise of its own, as long as rounds are."""
    section: Any = protocol.rounds
    changes = {
        "output": protocol.output / ROUNDS / str(number),
        "seed": (protocol.seed + 7919 * number) % 2**31,
        "run": protocol.run.model_copy(update={"length": section.length}),
        "unbiased": protocol.unbiased.model_copy(update={"comparison_length": 0.0}),
    }
    return starting_from(protocol.model_copy(update=changes), starts)


def _round_cv(
    protocol: Protocol,
    data: LearningData,
    record: Mapping[str, Any],
    time_to_come: float,
    width: float,
    cvs: Sequence[Any],
    rounds: Sequence[Mapping[str, Any]],
) -> Any:
    """The CV of a round, from its file if it is there already.

    width: of the kernels of its bias, at least. cvs, rounds: of the rounds before. A CV that is known has no student.
    """
    cv = current_cv(protocol, record)
    if cv is None:
        before = cvs[0].training_information.get(CHOSEN) if cvs else None
        cv = learned_cv(protocol, data, time_to_come, before)
        facts = cv.training_information
        facts["least_kernel_width"] = max(width, facts.get("least_kernel_width", 0.0))
        if cvs:
            facts["overlap"] = overlap_of(cv, cvs[-1], data)
        if not _is_known(cv, rounds):
            cv = cv_to_bias(protocol, cv, data)
        write_cv(protocol, cv, record)
    for line in describe(cv):
        echo(line)
    if cvs:
        echo(f"It overlaps by {cv.training_information['overlap']:.2f} with that of the round before.")
    return cv


def _summary(protocol: Protocol, failed: str) -> dict[str, Any]:
    """The figures of a round, whose report is written; none of one that failed before there was anything to read."""
    nothing: dict[str, Any] = {"biased_ns": 0.0}
    if not has_biased_steps(protocol.output):
        return nothing
    try:
        return report(protocol)
    except GeomGNNError as error:
        if not failed:
            raise
        echo(f"There is no report on it: {error}")
        return nothing


def _wider(width: float, cv: Any, protocol: Protocol) -> float:
    """The least width of kernels after a round that failed: twice that of its own."""
    if protocol.bias.method != "opes":
        return width
    return 2 * float(np.max(kernel_width(cv, protocol).get("sigma", width)))


def _bias(protocol: Protocol, number: int, cv: Any, bias: Any) -> dict[str, Any]:
    """Bias the CV of a round in its folder; returns what is noted of the round."""
    with prepare_output_folder(protocol):
        echo(in_one_line(bias))
        failed = ""
        try:
            run_biased(protocol, bias, f"Round {number}")
        except GeomGNNError as error:
            failed = str(error)
            echo(f"Round {number} ended early: {failed}")
        summary = _summary(protocol, failed)
    learned = cv.training_information
    noted = {name: summary[name] for name in _FIGURES if name in summary}
    states = [{name: one[name] for name in ("name", "population", "error")} for one in summary.get("states", [])]
    for state in states:
        echo(f"  {100 * state['population']:5.1f} %  {state['name']}")
    rates = ", ".join(f"{name} {rate:.3g}" for name, rate in noted.get("slow_torsion_crossings_per_ns", {}).items())
    crossed = f"; per ns {rates}" if rates else ""
    echo(f"Round {number}: {noted.get('crossings')} crossings between its states in {noted['biased_ns']:.3g} ns{crossed}")
    return {
        "round": number,
        "folder": f"{ROUNDS}/{number}",
        **({"failed": failed} if failed else {}),
        "overlap": learned.get("overlap"),
        "slow_torsions": [one["name"] for one in learned.get("slow_torsions", [])],
        "candidates": learned.get("candidates", []),
        **noted,
        "states": states,
    }
