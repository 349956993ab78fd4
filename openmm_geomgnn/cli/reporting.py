"""The results in a protocol's folder: what can be analysed, and the report."""

import numpy as np

from openmm_geomgnn.analysis.figures import standard_figures, standard_tables
from openmm_geomgnn.analysis.pipeline import analyse_biased_run
from openmm_geomgnn.analysis.report import write_report, write_summary
from openmm_geomgnn.cli.folder import COMPARISON, CV_FILE, TOPOLOGY
from openmm_geomgnn.cli.molecule import check_torsions, kinetic_degrees, phi_psi
from openmm_geomgnn.cv import CollectiveVariable
from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.sampling.colvar import read_colvar
from openmm_geomgnn.sampling.outputs import read_dcd, trajectory_path
from openmm_geomgnn.selection import as_topology

_COMPARISON_FRAME = 1.0  # ps between frames of the unbiased runs that crossings are compared with
_FEWEST_FRAMES = 2  # of each walker


def comparison_frame(protocol):
    """MD steps between the frames of the unbiased runs that crossings are compared with."""
    return max(1, protocol.md_steps(_COMPARISON_FRAME))


def comparison_runs(folder):
    """The trajectories of these runs: a list of paths."""
    return sorted((folder / COMPARISON).glob("trajectory.*.dcd"))


def check_analysis(protocol):
    """Raise a GeomGNNError, before any work is done, about results that could not be analysed."""
    analysis_variable(protocol)
    check_torsions(protocol)
    schedule = protocol.schedule
    if schedule.length < _FEWEST_FRAMES * schedule.frame_interval:
        raise GeomGNNError(
            f"run.length is {protocol.run.length:g} ps, too short for {_FEWEST_FRAMES} frames, one every "
            f"{protocol.run.frame_interval:g} ps (run.frame_interval), which the report needs."
        )


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
    """Analyse the results in a protocol's folder, write summary.json and report.html, and return the summary.

    seconds: that the run took, for the summary. Raises GeomGNNError when the run is not complete.
    """
    folder, schedule = protocol.output, protocol.schedule
    missing = [name for name in (CV_FILE, "COLVAR") if not (folder / name).exists()]
    if missing:
        raise GeomGNNError(f"There is no {missing[0]} in {folder}: the run is not done. Go on with it by `geomgnn run`.")
    cv = CollectiveVariable.load(folder / CV_FILE)
    colvar = read_colvar(folder / "COLVAR")
    topology = as_topology(folder / TOPOLOGY)
    biased = [_frames(trajectory_path(folder, k), topology) for k in range(protocol.run.walkers)]
    unbiased = [_frames(path, topology) for path in comparison_runs(folder)]
    interval = schedule.frame_interval * schedule.bias_step
    analysis = analyse_biased_run(
        colvar,
        temperature=protocol.system.temperature,
        frame_times=[np.arange(1, len(run) + 1) * interval for run in biased],
        unbiased_frame_time=comparison_frame(protocol) * protocol.system.timestep,
        cores=None if protocol.analysis.cores is None else (protocol.analysis.cores.a, protocol.analysis.cores.b),
        discard=protocol.analysis.discard,
        degrees_of_freedom=kinetic_degrees(protocol),
        wall_seconds=seconds,
        seed=protocol.seed,
        **_variables(protocol, cv, biased, unbiased),
    )
    facts = cv.training_information
    summary = {
        **analysis.summary,
        "cv_vamp2": facts["vamp2_training"],
        "cv_vamp2_held_out": facts.get("vamp2_held_out"),
        "cv_timescales_ps": facts["timescales_ps"],
        "cv_in_basin_spread": facts["in_basin_spread"],
        "cv_rate_300K_per_ps": facts["rate_300K_per_ps"],
    }
    write_summary(folder / "summary.json", summary)
    title = f"{folder.name}: {', '.join(path.stem for path in protocol.system.structures)}"
    write_report(
        folder / "report.html", title, summary, standard_figures(analysis), analysis.notes, standard_tables(analysis)
    )
    return summary


def _frames(path, topology):
    return read_dcd(path).trajectory(topology)


def _variables(protocol, cv, biased, unbiased):
    """What crossings are counted along, as arguments of `analyse_biased_run`."""
    variable = analysis_variable(protocol)
    if variable == "phi":
        torsions = protocol.analysis.torsions
        return {
            "phi_psi": [phi_psi(run, torsions) for run in biased],
            "unbiased_phi_psi": [phi_psi(run, torsions) for run in unbiased] or None,
        }
    if not unbiased:
        return {"cv_field": variable}
    component = int(variable[3:]) - 1
    bound = cv.bind(unbiased[0].topology, engine="eager")
    return {"cv_field": variable, "unbiased_cv": [bound.compute(run)[:, component] for run in unbiased]}
