"""A protocol from beginning to end: unbiased runs, a CV, biased runs, free energies, a report. Each step resumes."""

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import mdtraj
import numpy as np

from openmm_geomgnn.aliases import PathLike
from openmm_geomgnn.cli.choose import chosen_cv
from openmm_geomgnn.cli.fitting import describe, fit_settings, fit_with_progress
from openmm_geomgnn.cli.molecule import walker_spec
from openmm_geomgnn.cli.names import COMPARISON, CV_FILE, TOPOLOGY, UNBIASED
from openmm_geomgnn.cli.preflight import Plan, examine
from openmm_geomgnn.cli.progress import bar, echo
from openmm_geomgnn.cli.provenance import MADE_FROM, check_given, current_cv, made_from
from openmm_geomgnn.cli.report import check_analysis, report
from openmm_geomgnn.cli.results import comparison_frame
from openmm_geomgnn.cli.run_folder import add_wall_time, first_structure, has_biased_steps, prepare_output_folder, settle
from openmm_geomgnn.cli.settings.protocol import Protocol
from openmm_geomgnn.cli.student import student_or_network
from openmm_geomgnn.cv.kernel_widths import is_too_stiff, kernel_widths, narrowest_width
from openmm_geomgnn.cv.network import CollectiveVariable
from openmm_geomgnn.cv.verdict import GRADES, in_words
from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.files import atomic_write, sha256
from openmm_geomgnn.formatting import format_values
from openmm_geomgnn.locks import set_aside
from openmm_geomgnn.representation.selection import as_topology
from openmm_geomgnn.sampling.opes import OPES
from openmm_geomgnn.sampling.outputs import read_dcd, trajectory_path
from openmm_geomgnn.sampling.runner import Runner
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
        settle(protocol)
        try:
            if given is not None:
                _copy_given(protocol)
            elif cv is None:
                cv = _fit(protocol, _unbiased(protocol), beginning.record)
            Unfinished(protocol.output / CV_FILE).remove()
            for line in describe(cv):
                echo(line)
            check_verdict(cv, protocol)
            bias = make_bias(cv, protocol)
            echo(_description(bias))
            _biased(protocol, bias)
            _comparison(protocol)
        finally:
            seconds = add_wall_time(protocol.output, time.perf_counter() - began)
        return report(protocol, seconds)


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
        record = made_from(settings, runs, protocol.cv.student, protocol.cv.auto)
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
        bias = make_bias(cv, protocol)
        if has_biased_steps(protocol.output) and (protocol.output / CV_FILE).exists():
            _runner(protocol, bias).check()
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
    settings, specs = protocol.unbiased, _training_specs(protocol)
    with bar("Unbiased runs") as update:
        runs = run_unbiased(
            specs,
            settings.length,
            protocol.output / UNBIASED,
            processes=protocol.run.walkers,
            checkpoint_interval=protocol.run.checkpoint_interval,
            progress=lambda p: update(p.time, p.length, f"{p.temperature:.0f} K"),
        )
    topology = as_topology(protocol.output / TOPOLOGY)
    return [run.trajectory(topology) for run in runs]


def check_verdict(cv: Any, protocol: Protocol) -> None:
    """Raise a GeomGNNError if the verdict on a CV is worse than the protocol accepts."""
    verdict = cv.training_information.get("verdict")
    if verdict is not None and GRADES.index(verdict["grade"]) > GRADES.index(protocol.run.accept.replace("-", " ")):
        raise GeomGNNError(
            f"The CV is {in_words(verdict)}. To bias it nevertheless, set run.accept: {verdict['grade'].replace(' ', '-')}."
        )


def _fit(protocol: Protocol, trajectories: Any, record: Mapping[str, Any] | None) -> Any:
    """Fit the CV and write it with the record of what it was made from; an existing one is moved aside."""
    path = protocol.output / CV_FILE
    section = chosen_cv(protocol, trajectories, trajectories[0].topology)
    settings = fit_settings(section, protocol.unbiased.frame_interval, protocol.seed)
    cv = fit_with_progress(trajectories, trajectories[0].topology, settings, Unfinished(path))
    cv.training_information[MADE_FROM] = record
    if protocol.cv.student:
        cv = student_or_network(protocol, cv, trajectories)
        cv.training_information[MADE_FROM] = record
    if path.exists():
        set_aside(path)
    cv.save(path)
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


def kernel_width(cv: Any, protocol: Protocol) -> dict[str, Any]:
    """Widths of the bias's kernels, where the protocol leaves them open: {"sigma": ..., "sigma_min": ...}.

    Raises
    ------
    GeomGNNError
        If the narrowest stable kernel is much wider than a basin: the bias could not build up.
    """
    facts, bias, step = cv.training_information, protocol.bias, protocol.schedule.bias_step
    spread = np.array(facts["in_basin_spread"])
    narrowest = narrowest_width(facts["rate_300K_per_ps"], step, protocol.system.temperature)
    if bias.sigma is None and bias.sigma_min is None and is_too_stiff(narrowest, spread).any():
        raise GeomGNNError(
            f"The CV is too stiff to bias: at {1000 * step:g} fs between evaluations (run.every times system.timestep) the "
            f"narrowest kernel that does not heat the system is {format_values(narrowest)} wide, but the CV fluctuates by "
            f"only {format_values(spread)} within a basin. Evaluate the bias more often (run.every: 1), fit a softer CV (a "
            "longer cv.softening, or gradient_penalty with a vampnet), or set bias.sigma yourself."
        )
    return kernel_widths(spread, narrowest, bias.sigma, bias.sigma_min, adaptive=bias.adaptive_stride is not None)


def make_bias(cv: Any, protocol: Protocol) -> Any:
    """The bias of a protocol on a CV, which says how wide the kernels of OPES are.

    Raises GeomGNNError if the CV is too stiff, see `kernel_width`.
    """
    return protocol.make_bias(**(kernel_width(cv, protocol) if protocol.bias.method == "opes" else {}))


def _description(bias: Any) -> str:
    if isinstance(bias, OPES):
        return f"OPES: barrier {bias.barrier:g} kJ/mol, sigma {format_values(bias.sigma)}, biasfactor {bias.biasfactor:.3g}"
    return f"Bias: {bias}"


def _biased(protocol: Protocol, bias: Any) -> None:
    _compile(protocol, _biased_spec(protocol, 0))
    with bar("Biased run") as update:
        _runner(
            protocol,
            bias,
            lambda p: update(p.time, p.length, f"{p.temperature:.0f} K, {p.diagnostics.get('nker', 0):.0f} kernels"),
        ).run()


def _biased_spec(protocol: Protocol, index: int) -> WalkerSpec:
    schedule = protocol.schedule
    return walker_spec(
        protocol,
        index,
        cv_path=str(protocol.output / CV_FILE),
        every=protocol.run.every,
        colvar_interval=schedule.colvar_interval,
        frame_interval=schedule.frame_interval,
    )


def _runner(protocol: Protocol, bias: Any, progress: Callable[..., None] | None = None) -> Runner:
    schedule = protocol.schedule
    return Runner(
        [_biased_spec(protocol, index) for index in range(protocol.run.walkers)],
        bias,
        protocol.output,
        schedule.length * schedule.bias_step,
        checkpoint_interval=schedule.checkpoint_interval * schedule.bias_step,
        progress=progress,
    )


def _compile(protocol: Protocol, spec: WalkerSpec) -> None:
    """Compile the network's kernels before the walkers start, all of which would do so at once."""
    path: Any = spec.cv_path
    bound = CollectiveVariable.load(path).bind(protocol.output / TOPOLOGY, spec.precision, spec.engine)
    bound.warm_up(lambda: echo("Compiling kernels for this network (once, about 20 s) ..."))


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
