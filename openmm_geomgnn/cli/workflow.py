"""A protocol from beginning to end: unbiased runs, a CV, biased runs, free energies, a report. Each step resumes."""

import json
import math
import shutil
import time
from contextlib import ExitStack
from dataclasses import replace

import mdtraj
import numpy as np

from openmm_geomgnn.analysis.figures import standard_figures, standard_tables
from openmm_geomgnn.analysis.pipeline import analyse_biased_run
from openmm_geomgnn.analysis.report import write_report, write_summary
from openmm_geomgnn.cli.config import dump, load_protocol
from openmm_geomgnn.cli.progress import bar, say
from openmm_geomgnn.cv import CollectiveVariable
from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.files import atomic_write
from openmm_geomgnn.fitting import FitSettings, fit_cv
from openmm_geomgnn.sampling.colvar import read_colvar
from openmm_geomgnn.sampling.runner import Runner
from openmm_geomgnn.sampling.systems import SystemSettings, build_system, degrees_of_freedom, load_structure
from openmm_geomgnn.sampling.unbiased import run_unbiased
from openmm_geomgnn.sampling.walker import WalkerSpec

PROTOCOL = "protocol.yaml"
CV_FILE = "cv.safetensors"
WALL_TIME = "wall_time.json"
COMPARISON_FRAME = 1.0  # ps between frames of the unbiased runs that crossings are compared with
FIRST_COMPARISON = 1000  # index of the first of those runs: their seeds are not those of the training runs
# stage of a fit -> description and unit of its progress bar
STAGES = {"embed": ("Embedding", "frames"), "train": ("Training", "epochs"), "stiffness": ("Stiffness", "")}
# radians per outer step; runs at 0.5 stayed at their temperature, runs at 0.7 warmed up, runs at 1 boiled
LARGEST_PHASE = 0.5
# a kernel this much wider than the fluctuations within a basin merges with every other one: the bias cannot build up
WIDEST_KERNEL = 2.0


def run_protocol(protocol, overwrite=False):
    """Run a protocol in its output folder, going on with what is there already; returns the summary (dict).

    Parameters
    ----------
    protocol : Protocol
    overwrite : bool
        Remove what an earlier protocol has left in the folder.

    Raises
    ------
    GeomGNNError
        If the folder holds the results of another protocol, or a step fails.
    """
    began = time.perf_counter()
    folder = protocol.output
    _claim(folder, protocol, overwrite)
    analysis_variable(protocol)  # before any work, what the analysis cannot do
    trajectories = _unbiased(protocol)
    cv = _fit(protocol, trajectories)
    bias = protocol.opes(**kernel_width(cv, protocol))
    say(f"OPES: barrier {bias.barrier:g} kJ/mol, sigma {_shown(bias.sigma)}, biasfactor {bias.biasfactor:.3g}")
    _biased(protocol, bias)
    _comparison(protocol)
    seconds = _add_wall_time(folder, time.perf_counter() - began)
    return report(protocol, seconds)


def _claim(folder, protocol, overwrite):
    """Make the folder ours: it is empty, or holds this very protocol's results (a longer or re-analysed one is fine)."""
    settled = folder / PROTOCOL
    if overwrite and settled.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if settled.exists():
        old = load_protocol(settled)
        changed = sorted(name for name, value in _identity(protocol).items() if value != _identity(old)[name])
        if changed:
            raise GeomGNNError(
                f"{folder} holds the results of another protocol: {', '.join(changed)} differ. Choose another output, go "
                f"on with the old settings ({settled}), or start anew with --overwrite."
            )
    elif any(folder.iterdir()):
        raise GeomGNNError(f"{folder} is not empty and was not made by `geomgnn run`. Choose another output.")
    with atomic_write(settled) as temporary:
        temporary.write_text(dump(protocol))
    with atomic_write(folder / "topology.pdb") as temporary:
        temporary.write_bytes(protocol.system.structures[0].read_bytes())


def _identity(protocol):
    """What must not change when a protocol goes on in the same folder."""
    data = protocol.model_dump(mode="json")
    for free in ("output", "analysis"):
        data.pop(free)
    for free in ("length", "checkpoint_interval"):
        data["run"].pop(free)
    flat = {}
    for section, content in data.items():
        inner = content if isinstance(content, dict) else {}
        flat.update({f"{section}.{key}": value for key, value in inner.items()} or {section: content})
    return flat


def _spec(protocol, **changes):
    system = protocol.system
    settings = SystemSettings(
        forcefield=tuple(system.forcefield),
        constraints=system.constraints,
        hydrogen_mass=system.hydrogen_mass,
        nonbonded_cutoff=system.nonbonded_cutoff,
        periodic=system.periodic,
    )
    spec = WalkerSpec(
        structure=system.structures[0],
        system=settings,
        temperature=system.temperature,
        friction=system.friction,
        timestep=system.timestep,
        platform=system.platform,
        seed=protocol.seed,
        equilibration=protocol.unbiased.equilibration,
        engine=protocol.run.engine,
    )
    return replace(spec, **changes)


def _structure(protocol, index):
    structures = protocol.system.structures
    return structures[index % len(structures)]


def _unbiased(protocol):
    """The training data: one mdtraj trajectory from each structure."""
    settings = protocol.unbiased
    frame = protocol.md_steps(settings.frame_interval)
    specs = [
        _spec(protocol, structure=path, index=index, frame_interval=frame, colvar_interval=frame)
        for index, path in enumerate(protocol.system.structures)
    ]
    with bar("Unbiased runs") as update:
        runs = run_unbiased(
            specs,
            settings.length,
            protocol.output / "unbiased",
            processes=protocol.run.walkers,
            progress=lambda p: update(p.time, p.length, f"{p.temperature:.0f} K"),
        )
    topology = mdtraj.load_topology(str(protocol.output / "topology.pdb"))
    return [mdtraj.Trajectory(run.frames, topology, time=run.times) for run in runs]


def fit_settings(section, frame_interval, seed):
    """`FitSettings` of a CV section; `frame_interval` in ps."""
    training = section.training.model_dump()
    training["lr"] = training.pop("learning_rate")
    return FitSettings(
        lag_time=section.lag,
        frame_interval=frame_interval,
        encoder=str(section.encoder),
        selection=section.selection,
        window=section.window,
        context=section.context,
        mixer=section.mixer,
        mixer_settings=dict(section.mixer_settings),
        estimator=section.estimator,
        components=section.components,
        pca=section.pca,
        softening=section.softening if section.reversible else 0.0,
        reversible=section.reversible,
        training=training if section.estimator == "vampnet" else {},
        seed=seed,
    )


def fit_with_progress(trajectories, topology, settings):
    """`fit_cv` with progress bars."""
    with ExitStack() as stack:
        updates = {}

        def progress(stage, done, total):
            if stage not in updates:
                stack.close()  # the bar of the stage before is finished
                updates[stage] = stack.enter_context(bar(*STAGES[stage]))
            updates[stage](done, total)

        return fit_cv(trajectories, topology, settings, progress)


def describe(cv):
    """One line on the quality of a fitted CV."""
    facts = cv.training_information
    held_out = facts.get("vamp2_held_out")
    timescales = ", ".join(f"{value:.3g}" for value in facts["timescales_ps"])
    score = "" if held_out is None else f", held out {held_out:.3f}"
    return (
        f"CV: VAMP-2 {facts['vamp2_training']:.3f}{score}; timescales {timescales} ps at a lag of {cv.lag_time:g} ps; "
        f"spread in a basin {_shown(facts['in_basin_spread'])}; stiffness {_shown(facts['rate_300K_per_ps'])} per ps"
    )


def _fit(protocol, trajectories):
    path = protocol.output / CV_FILE
    if path.exists():
        cv = CollectiveVariable.load(path)
    else:
        settings = fit_settings(protocol.cv, protocol.unbiased.frame_interval, protocol.seed)
        cv = fit_with_progress(trajectories, trajectories[0].topology, settings)
        cv.save(path)
    say(describe(cv))
    return cv


def kernel_width(cv, protocol):
    """Widths of the bias's kernels, where the protocol leaves them open: {"sigma": ..., "sigma_min": ...}.

    The width is the CV's fluctuation within a basin, but no less than what the integrator can follow: a kernel of width
    sigma drives motions of angular frequency rate/sigma, whose phase must not advance by more than LARGEST_PHASE in a step.

    Raises
    ------
    GeomGNNError
        If the narrowest stable kernel is much wider than a basin: the bias could not build up.
    """
    facts, bias = cv.training_information, protocol.bias
    step = protocol.schedule.bias_step
    thermal = np.sqrt(protocol.system.temperature / 300.0)
    floor = np.array(facts["rate_300K_per_ps"]) * thermal * step / LARGEST_PHASE
    spread = np.array(facts["in_basin_spread"])
    too_stiff = floor > WIDEST_KERNEL * spread
    if bias.sigma is None and bias.sigma_min is None and too_stiff.any():
        raise GeomGNNError(
            f"The CV is too stiff to bias: at {1000 * step:g} fs between evaluations (run.every times system.timestep) the "
            f"narrowest kernel that does not heat the system is {_shown(floor)} wide, but the CV fluctuates by only "
            f"{_shown(spread)} within a basin. Evaluate the bias more often (run.every: 1), fit a softer CV (a longer "
            "cv.softening, or gradient_penalty with a vampnet), or set bias.sigma yourself."
        )
    widths = {}
    if bias.sigma is None:
        widths["sigma"] = tuple(float(x) for x in np.maximum(spread, floor))
    if bias.sigma_min is None:
        given = np.array(widths.get("sigma", bias.sigma), dtype=float)
        widths["sigma_min"] = tuple(float(x) for x in np.minimum(floor, given) * np.ones(len(floor)))
    return widths


def _biased(protocol, bias):
    schedule = protocol.schedule
    specs = [
        _spec(
            protocol,
            structure=_structure(protocol, index),
            index=index,
            cv_path=str(protocol.output / CV_FILE),
            every=protocol.run.every,
            colvar_interval=schedule.colvar_interval,
            frame_interval=schedule.frame_interval,
        )
        for index in range(protocol.run.walkers)
    ]
    with bar("Biased run") as update:
        Runner(
            specs,
            bias,
            protocol.output,
            schedule.length * schedule.bias_step,
            checkpoint_interval=schedule.checkpoint_interval * schedule.bias_step,
            progress=lambda p: update(
                p.time, p.length, f"{p.temperature:.0f} K, {p.diagnostics.get('nker', 0):.0f} kernels"
            ),
        ).run()


def _comparison(protocol):
    """Unbiased runs of the same length in all, for the crossings."""
    total = protocol.unbiased.comparison_length
    if total == 0:
        return
    walkers = protocol.run.walkers
    frame = max(1, protocol.md_steps(COMPARISON_FRAME))
    specs = [
        _spec(
            protocol,
            structure=_structure(protocol, index),
            index=FIRST_COMPARISON + index,
            frame_interval=frame,
            colvar_interval=frame,
        )
        for index in range(walkers)
    ]
    length = protocol.run.length if total is None else total / walkers
    with bar("Unbiased comparison") as update:
        run_unbiased(
            specs,
            length,
            protocol.output / "comparison",
            processes=walkers,
            progress=lambda p: update(p.time, p.length, f"{p.temperature:.0f} K"),
        )


def _add_wall_time(folder, seconds):
    """Add to the seconds that all sessions of a run have taken; returns the sum."""
    before = wall_time(folder)
    seconds += 0.0 if math.isnan(before) else before
    with atomic_write(folder / WALL_TIME) as temporary:
        temporary.write_text(json.dumps({"seconds": seconds}) + "\n")
    return seconds


def wall_time(folder):
    """Seconds that all sessions of a run have taken; nan where it is not known."""
    path = folder / WALL_TIME
    return json.loads(path.read_text())["seconds"] if path.exists() else math.nan


def analysis_variable(protocol):
    """"phi" where torsions phi and psi are analysed, otherwise the CV component of the cores.

    Raises
    ------
    GeomGNNError
        If the cores are along a torsion other than phi.
    """
    analysis = protocol.analysis
    along = analysis.cores.along if analysis.cores else "cv.1"
    torsions = {"phi", "psi"} <= set(analysis.torsions)
    if along.startswith("cv."):
        return "phi" if torsions and analysis.cores is None else along
    if along != "phi" or not torsions:
        raise GeomGNNError(
            f"analysis.cores are along {along}, but crossings are counted along phi (with phi and psi under "
            "analysis.torsions) or along a component of the CV, cv.1."
        )
    return "phi"


def report(protocol, seconds=float("nan")):
    """Analyse the results in a protocol's folder, write summary.json and report.html, and return the summary."""
    folder, schedule = protocol.output, protocol.schedule
    topology = mdtraj.load_topology(str(folder / "topology.pdb"))
    variable = analysis_variable(protocol)
    cores = None if protocol.analysis.cores is None else (protocol.analysis.cores.a, protocol.analysis.cores.b)
    biased = [_dcd(folder / f"trajectory.{k}.dcd", topology) for k in range(protocol.run.walkers)]
    unbiased = [_dcd(path, topology) for path in sorted((folder / "comparison").glob("trajectory.*.dcd"))]
    cv = CollectiveVariable.load(folder / CV_FILE)
    if variable == "phi":
        torsions = protocol.analysis.torsions
        data = {
            "phi_psi": [phi_psi(run, torsions) for run in biased],
            "unbiased_phi_psi": [phi_psi(run, torsions) for run in unbiased] or None,
        }
    else:
        component = int(variable[3:]) - 1
        bound = cv.bind(topology)
        data = {
            "cv_field": variable,
            "unbiased_cv": [bound.compute(run)[:, component] for run in unbiased] or None,
        }
    interval = schedule.frame_interval * schedule.bias_step
    analysis = analyse_biased_run(
        read_colvar(folder / "COLVAR"),
        temperature=protocol.system.temperature,
        frame_times=[np.arange(1, len(run) + 1) * interval for run in biased],
        unbiased_frame_time=max(1, protocol.md_steps(COMPARISON_FRAME)) * protocol.system.timestep,
        cores=cores,
        discard=protocol.analysis.discard,
        degrees_of_freedom=_degrees_of_freedom(protocol),
        wall_seconds=seconds,
        seed=protocol.seed,
        **data,
    )
    summary = dict(analysis.summary)
    facts = cv.training_information
    summary["cv_vamp2"] = facts["vamp2_training"]
    summary["cv_vamp2_held_out"] = facts.get("vamp2_held_out")
    summary["cv_timescales_ps"] = facts["timescales_ps"]
    summary["cv_in_basin_spread"] = facts["in_basin_spread"]
    summary["cv_rate_300K_per_ps"] = facts["rate_300K_per_ps"]
    write_summary(folder / "summary.json", summary)
    title = f"{folder.name}: {', '.join(path.stem for path in protocol.system.structures)}"
    write_report(
        folder / "report.html", title, summary, standard_figures(analysis), analysis.notes, standard_tables(analysis)
    )
    return summary


def _dcd(path, topology):
    return mdtraj.load_dcd(str(path), top=topology)


def _degrees_of_freedom(protocol):
    spec = _spec(protocol)
    topology, _ = load_structure(spec.structure)
    return degrees_of_freedom(build_system(topology, spec.system))


def phi_psi(trajectory, torsions):
    """(T, 2) phi and psi in radians; `torsions` says for each "auto" or its four atoms."""
    return np.column_stack([_torsion(trajectory, name, torsions[name]) for name in ("phi", "psi")])


def _torsion(trajectory, name, atoms):
    if atoms == "auto":
        indices, values = getattr(mdtraj, f"compute_{name}")(trajectory)
        if len(indices) == 0:
            raise GeomGNNError(f"The molecule has no torsion {name} that could be found: name its four atoms.")
        return values[:, 0]
    if not isinstance(atoms[0], int):
        names = {str(atom): atom.index for atom in trajectory.topology.atoms}
        missing = [atom for atom in atoms if atom not in names]
        if missing:
            raise GeomGNNError(f"The torsion {name} names {missing[0]}, which the molecule does not have.")
        atoms = [names[atom] for atom in atoms]
    return mdtraj.compute_dihedrals(trajectory, [list(atoms)])[:, 0]


def _shown(values):
    return ", ".join(f"{value:.3g}" for value in np.atleast_1d(values))
