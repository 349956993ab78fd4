"""`geomgnn run --check`: whether a run is possible, what it would do and how long it would take; nothing is written."""

import shutil
from collections.abc import Iterator
from typing import Any

import openmm

from openmm_geomgnn.aliases import PathLike
from openmm_geomgnn.cli.estimates import stage_seconds
from openmm_geomgnn.cli.preflight import Plan, disk_bytes, training_frames
from openmm_geomgnn.cli.progress import echo
from openmm_geomgnn.cli.run import check_folder, examined
from openmm_geomgnn.cli.run_folder import input_files
from openmm_geomgnn.cli.settings.protocol import Protocol
from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.formatting import count_of, duration
from openmm_geomgnn.locks import check_outside
from openmm_geomgnn.processes import cores
from openmm_geomgnn.sampling.systems import degrees_of_freedom

_NAMES = {"unbiased": "unbiased runs", "fit": "fit", "biased": "biased run", "comparison": "comparison"}


def check_run(protocol: Protocol, overwrite: bool = False, source: PathLike | None = None) -> None:
    """Check a protocol and print what it amounts to; arguments and errors are those of `run.run_protocol`."""
    beginning = examined(protocol)
    if overwrite:
        check_outside(protocol.output, input_files(protocol, source))
    else:
        check_folder(protocol, beginning)
    for line in describe(beginning.plan):
        echo(line)
    echo(f"time           {_time(beginning.plan)}")
    echo("Nothing was run, and nothing was written.")


def describe(plan: Plan) -> Iterator[str]:
    """Yield lines that describe the parts of a run."""
    protocol, bound = plan.protocol, plan.force.bound
    names = [residue.name for residue in plan.topology.residues()]
    shown = " ".join(names[:8]) + (" ..." if len(names) > 8 else "")
    paths = ", ".join(path.name for path in protocol.system.structures)
    yield f"structures     {paths}: {len(plan.starts[0])} atoms, {len(names)} residues ({shown})"
    spec = plan.specs[0]
    system = openmm.XmlSerializer.deserialize(spec.system)
    threads = f" with {count_of(spec.threads, 'thread')}" if spec.platform == "CPU" else ""
    box = "periodic" if system.usesPeriodicBoundaryConditions() else "not periodic"
    yield (
        f"system         {' + '.join(protocol.system.forcefield)}, {box}, {degrees_of_freedom(system)} degrees of freedom, "
        f"platform {spec.platform}{threads}"
    )
    residues = len(plan.cv.molecule)
    yield f"CV             {len(bound.atoms)} atoms of {residues} residues, {_network(plan)}, engine {bound.engine_name}"
    if plan.settings is not None:
        runs, lag = count_of(len(plan.specs), "run"), plan.settings.lag_frames()
        yield f"training data  {runs} of {training_frames(protocol)} frames, a lag of {lag} frames"
    if protocol.explore is not None:
        ways = "auto" if protocol.explore.ways == "auto" else ", ".join(protocol.explore.ways)
        yield (
            f"exploration    {ways}, {protocol.explore.length:g} ps each; runs of {protocol.seeds.length:g} ps from up to "
            f"{count_of(protocol.seeds.number, 'seed')}"
        )
    if protocol.rounds is not None:
        yield f"rounds         up to {protocol.rounds.number}, of {protocol.rounds.length:g} ps for each walker"
    schedule = protocol.schedule
    often = "as rarely as the CV allows" if protocol.run.every == "auto" else f"every {protocol.every} steps"
    yield (
        f"biased run     {count_of(protocol.run.walkers, 'walker')} of {schedule.length * schedule.bias_step:g} ps, a "
        f"kernel each {schedule.pace * schedule.bias_step:g} ps, the bias {often}"
    )
    folder = protocol.output
    while not folder.is_dir():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    yield f"disk           about {_size(disk_bytes(plan))} in {protocol.output}, where {_size(free)} are free"


def _network(plan: Plan) -> str:
    if plan.settings is None:
        given: Any = plan.protocol.cv.file
        return f"as in {given.name}"
    windows = plan.force.bound.tokenizer.windows
    graphs = "one graph" if windows.n_graphs == 1 else f"{windows.n_graphs} windows"
    return f"{graphs} of {len(windows.pairs[0])} pairs, encoder {plan.cv.encoder.name}"


def _time(plan: Plan) -> str:
    try:
        stages = stage_seconds(plan, lambda: echo("Compiling kernels for this network (once, about 20 s) ..."))
    except GeomGNNError as error:
        return f"not known, as the first steps failed: {error}"
    parts = ", ".join(f"{_NAMES.get(name, name)} {duration(seconds)}" for name, seconds in stages.items())
    training = " and the training" if plan.settings is not None and plan.settings.estimator == "vampnet" else ""
    walkers = f"{count_of(plan.protocol.run.walkers, 'walker')} on {count_of(cores(), 'core')}"
    return f"about {duration(sum(stages.values()))}{training} from the beginning, with {walkers}: {parts}"


def _size(number: float) -> str:
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number / 1e3:.0f} kB"
