"""A protocol from beginning to end: unbiased runs, a CV, biased runs, free energies, a report. Each step resumes."""

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import mdtraj

from openmm_geomgnn.aliases import PathLike
from openmm_geomgnn.cli.biasing import (
    NotBiasable,
    biased_runner,
    check_verdict,
    decide_every,
    in_one_line,
    make_bias,
    run_biased,
    with_every,
)
from openmm_geomgnn.cli.candidates import cv_to_bias, learned_cv
from openmm_geomgnn.cli.choose import chosen_cv
from openmm_geomgnn.cli.fitting import describe, fit_settings, fit_with_progress
from openmm_geomgnn.cli.learning_data import LearningData, spread_starts
from openmm_geomgnn.cli.molecule import walker_spec
from openmm_geomgnn.cli.names import COMPARISON, CV_FILE, UNBIASED
from openmm_geomgnn.cli.preflight import Plan, examine
from openmm_geomgnn.cli.progress import bar, echo
from openmm_geomgnn.cli.provenance import MADE_FROM, check_given, current_cv, learned_from, made_from, write_cv
from openmm_geomgnn.cli.report import check_analysis, report, report_nothing
from openmm_geomgnn.cli.results import comparison_frame
from openmm_geomgnn.cli.rounds import learn_in_rounds
from openmm_geomgnn.cli.run_folder import (
    as_begun,
    count_wall_time,
    first_structure,
    has_biased_steps,
    prepare_output_folder,
    settle,
    wall_time,
)
from openmm_geomgnn.cli.settings.protocol import Protocol
from openmm_geomgnn.cli.starts import explore_molecule, seed_structures, with_starts, write_starts
from openmm_geomgnn.cli.student import student_or_network
from openmm_geomgnn.cli.unbiased_runs import runs_from_seeds, training_runs
from openmm_geomgnn.cv.network import CollectiveVariable
from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.files import atomic_write, sha256
from openmm_geomgnn.locks import set_aside
from openmm_geomgnn.sampling.outputs import read_dcd, trajectory_path
from openmm_geomgnn.sampling.unbiased import begun_length, check_made, fingerprints, run_unbiased
from openmm_geomgnn.sampling.walker_spec import WalkerSpec
from openmm_geomgnn.unfinished import Unfinished

# index of the first unbiased run to compare crossings with: its seed is not that of a training run
FIRST_COMPARISON = 1000
# figures of a CV file without which it cannot be biased and reported on
NEEDED_TO_BIAS = ("rate_300K_per_ps", "in_basin_spread", "vamp2_training", "timescales_ps")


def run_protocol(protocol: Protocol, overwrite: bool = False, source: PathLike | None = None) -> dict[str, Any]:
    """Run a protocol in its output folder, continuing from existing results; returns the summary (dict).

    Nothing in the folder changes before everything has been checked that can be checked in advance.

    Parameters
    ----------
    protocol : Protocol
    overwrite : bool
        Move the results of an earlier protocol in the folder aside.
    source : path, optional
        The protocol's own file, which must not be moved aside.

    Raises
    ------
    GeomGNNError
        If the folder holds the results of another protocol, another process is working in it, or a step fails.
    """
    began = time.perf_counter()
    beginning = examined(protocol)
    given = beginning.given
    with prepare_output_folder(protocol, overwrite, source):
        cv = _check_claimed(protocol, beginning)
        protocol = as_begun(protocol)
        settle(protocol)
        with count_wall_time(protocol.output, began):
            if given is not None:
                _copy_given(protocol)
            elif cv is None:
                try:
                    cv = _learn(protocol, beginning.record)
                except NotBiasable as error:
                    if not protocol.learns_from_a_bias:
                        raise
                    return report_nothing(protocol, str(error))
            Unfinished(protocol.output / CV_FILE).remove()
            for line in describe(cv):
                echo(line)
            check_verdict(cv, protocol)
            protocol = decide_every(protocol, cv)
            bias = make_bias(cv, protocol)
            echo(in_one_line(bias))
            started = with_starts(protocol)
            run_biased(started, bias)
            _comparison(started)
        return report(protocol, wall_time(protocol.output))


@dataclass(frozen=True, eq=False)
class Beginning:
    """Everything that is known before anything runs.

    plan : the plan of `preflight.examine`. runs : fingerprints of the training runs. given : the CV that the protocol names,
    or None. record : what a fitted CV will be made from.
    """

    plan: Plan
    runs: list[dict[str, Any]]
    given: Any
    record: dict[str, Any] | None


def examined(protocol: Protocol) -> "Beginning":
    """Check everything about a protocol in advance, except the state of its folder; returns a `Beginning`.

    Raises GeomGNNError if it cannot be run to its end.
    """
    check_analysis(protocol)
    topology, _ = first_structure(protocol)
    specs = _training_specs(protocol)
    runs = fingerprints(specs, protocol.unbiased.length)
    given = record = settings = None
    if protocol.cv.file is None:
        settings = fit_settings(protocol.cv, protocol.unbiased.frame_interval, protocol.seed)
        record = made_from(settings, runs, protocol.makes_a_student, protocol.cv.auto, learned_from(protocol))
    else:
        given = _given(protocol, topology)
        make_bias(given, protocol)
    return Beginning(examine(protocol, specs, settings, given), runs, given, record)


def check_folder(protocol: Protocol, beginning: Beginning) -> None:
    """Raise a GeomGNNError if the protocol could not continue in its folder; nothing changes there."""
    with prepare_output_folder(protocol):
        _check_claimed(protocol, beginning)


def _check_claimed(protocol: Protocol, beginning: Beginning) -> Any:
    """Get the given or existing CV with which the run in the folder can continue; None if it has yet to be fitted."""
    check_made(_training_specs(protocol), beginning.runs, protocol.output / UNBIASED)
    if beginning.given is None:
        cv = current_cv(protocol, beginning.record)
    else:
        cv = beginning.given
        check_given(protocol)
    if cv is not None:
        check_verdict(cv, protocol)
        protocol = with_every(protocol, cv)
        bias = make_bias(cv, protocol)
        if has_biased_steps(protocol.output) and (protocol.output / CV_FILE).exists():
            biased_runner(with_starts(protocol), bias).check()
    return cv


def _training_specs(protocol: Protocol) -> list[WalkerSpec]:
    """Make the specs of the unbiased runs for the fit, one from each structure."""
    frame = protocol.md_steps(protocol.unbiased.frame_interval)
    return [
        walker_spec(protocol, index, frame_interval=frame, colvar_interval=frame)
        for index in range(len(protocol.system.structures))
    ]


def _unbiased(protocol: Protocol) -> list[mdtraj.Trajectory]:
    """Run the unbiased training runs; returns one mdtraj trajectory from each structure."""
    return training_runs(protocol, _training_specs(protocol), protocol.unbiased.length, "Unbiased runs")


def _learn(protocol: Protocol, record: Mapping[str, Any] | None) -> Any:
    """Learn the CV and write it with the record of what it was made from; an existing one is moved aside."""
    explored = explore_molecule(protocol)
    seeds = seed_structures(protocol, explored)
    runs = [*_unbiased(protocol), *runs_from_seeds(protocol, seeds)]
    if not protocol.learns_from_a_bias:
        return _fit(protocol, runs, record)
    data = LearningData.of_runs(runs, protocol.unbiased.frame_interval, protocol.cv.lag).with_explored(explored)
    structures = [*protocol.system.structures, *seeds]
    starts = [structures[k] for k in spread_starts(data, len(structures))]
    if protocol.rounds is None:
        cv = cv_to_bias(protocol, learned_cv(protocol, data, protocol.run.walkers * protocol.run.length), data)
    else:
        cv, starts = learn_in_rounds(protocol, data, starts, record or {})
    write_starts(protocol, starts)
    write_cv(protocol, cv, record)
    return cv


def _fit(protocol: Protocol, trajectories: Any, record: Mapping[str, Any] | None) -> Any:
    """Fit the CV to unbiased runs and write it, as `_learn` does."""
    path = protocol.output / CV_FILE
    section = chosen_cv(protocol, trajectories, trajectories[0].topology)
    settings = fit_settings(section, protocol.unbiased.frame_interval, protocol.seed)
    cv = fit_with_progress(trajectories, trajectories[0].topology, settings, Unfinished(path))
    cv.training_information[MADE_FROM] = record
    if protocol.makes_a_student:
        cv = student_or_network(protocol, cv, trajectories)
    write_cv(protocol, cv, record)
    return cv


def _given(protocol: Protocol, topology: Any) -> Any:
    """Load the CV that the protocol names, and check that it fits the molecule and can be biased."""
    source: Any = protocol.cv.file
    cv = CollectiveVariable.load(source)
    if cv.dimension != protocol.cv.components:
        raise GeomGNNError(
            f"The CV in {source} has {cv.dimension} components, but cv.components is {protocol.cv.components}: set "
            f"cv.components to {cv.dimension}."
        )
    missing = [name for name in NEEDED_TO_BIAS if name not in cv.training_information]
    if missing:
        raise GeomGNNError(
            f"{source} does not say the {' and '.join(missing)} of its CV, which the bias and the report are made with. Use "
            "a file that `geomgnn fit`, `geomgnn run` or `geomgnn distill` wrote."
        )
    check_verdict(cv, protocol)
    cv.bind(topology, engine="eager")
    return cv


def _copy_given(protocol: Protocol) -> None:
    """Copy the CV that the protocol names into its folder, so that later changes of the file do not affect the run."""
    path = protocol.output / CV_FILE
    source: Any = protocol.cv.file
    if path.exists() and sha256(path) == sha256(source):
        return
    if path.exists():
        set_aside(path)
    with atomic_write(path) as temporary:
        shutil.copyfile(source, temporary)


def _comparison(protocol: Protocol) -> None:
    """Run unbiased runs for the crossings; if runs were prolonged, further ones make up for the difference."""
    folder, walkers, frame = protocol.output / COMPARISON, protocol.run.walkers, comparison_frame(protocol)
    step = frame * protocol.system.timestep
    missing, first = protocol.comparison_length / walkers, FIRST_COMPARISON
    while missing >= step * (1 - 1e-6):
        indices = range(first, first + walkers)
        if not all(trajectory_path(folder, index).exists() for index in indices):
            # runs that were stopped get the length with which they were begun, whatever is requested now
            begun = [length for index in indices if (length := begun_length(folder, index)) is not None]
            _compare(protocol, indices, frame, begun[0] if begun else missing)
        missing -= len(read_dcd(trajectory_path(folder, first))) * step
        first += walkers


def _compare(protocol: Protocol, indices: Sequence[int], frame: int, length: float) -> None:
    structures = protocol.system.structures
    specs = [
        walker_spec(protocol, index, structure=structures[k % len(structures)], frame_interval=frame, colvar_interval=frame)
        for k, index in enumerate(indices)
    ]
    with bar("Unbiased comparison") as update:
        run_unbiased(
            specs,
            length,
            protocol.output / COMPARISON,
            processes=len(specs),
            checkpoint_interval=protocol.run.checkpoint_interval,
            progress=lambda p: update(p.time, p.length, f"{p.temperature:.0f} K"),
        )
