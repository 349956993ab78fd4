"""Checks, before anything runs, that a protocol can be run to its end."""

import shutil
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import mdtraj
import numpy as np
import openmm
import torch

from openmm_geomgnn.cli.results import comparison_frame
from openmm_geomgnn.cli.settings.protocol import Protocol
from openmm_geomgnn.cv.fit import check_data, make_cv, make_fit_mixer
from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.force.geomgnncv import GeomGNNCV
from openmm_geomgnn.force.integrators import make_integrator
from openmm_geomgnn.processes import cores
from openmm_geomgnn.representation.encoder import Encoder
from openmm_geomgnn.representation.featurization import Featurization
from openmm_geomgnn.representation.selection import as_topology
from openmm_geomgnn.sampling.geometry import check_geometry
from openmm_geomgnn.sampling.plan import prepare, whole_steps
from openmm_geomgnn.sampling.relaxation import check_energy
from openmm_geomgnn.sampling.systems import choices_made, load_structure
from openmm_geomgnn.sampling.walker import platform_of
from openmm_geomgnn.sampling.walker_spec import WalkerSpec

_TREMBLE = 0.1  # angstrom, noise that makes several frames of one, for statistics
REPORT_BYTES = 2_000_000
_MOST_LAGS = 1000  # up to which a sufficient length of the unbiased runs is searched for


@dataclass(frozen=True, eq=False)
class Plan:
    """The parts of a run.

    specs : specs of the training runs, one from each structure, with the system and the platform resolved.
    topology : openmm.app.Topology. starts : positions (N, 3) in nm of each structure.
    cv : the given CV, or an untrained one of the same kind and size. force : its GeomGNNCV.
    settings : FitSettings; None if the CV is given.
    """

    protocol: Protocol
    specs: list[WalkerSpec]
    topology: Any
    starts: list[np.ndarray]
    cv: Any
    force: Any
    settings: Any


def examine(protocol: Protocol, specs: Sequence[WalkerSpec], settings: Any, given: Any) -> Plan:
    """Make all parts of a run except its data; returns a Plan.

    Parameters
    ----------
    protocol : Protocol
    specs : list of WalkerSpec
        Specs of the training runs.
    settings : FitSettings or None
        Settings of the CV to be fitted.
    given : CollectiveVariable, StudentCV or None
        The CV to be used, instead of a fitted one.

    Raises
    ------
    GeomGNNError
        If structures do not fit their topology, OpenMM's platform or the CV's engine cannot be used, the molecule, windows,
        encoder and mixer do not fit together, the data will not suffice for the fit, or the disk will not hold the results.
        Doubts about the structures are a UserWarning.
    """
    prepared, topology, _ = prepare(specs)
    starts = []
    for path in protocol.system.structures:
        starts.append(load_structure(path)[1])
        for remark in (*choices_made(path), *check_geometry(topology, starts[-1], str(path))):
            warnings.warn(remark, UserWarning, stacklevel=2)
    system = _check_dynamics(protocol, prepared, starts)
    if settings is not None:
        _check_frames(protocol, settings)
    cv = _untrained(settings, topology, starts) if given is None else given
    force = GeomGNNCV(cv, topology, engine=protocol.run.engine, failures=None)
    force.addToSystem(system)
    plan = Plan(protocol, prepared, topology, starts, cv, force, settings)
    _check_disk(plan)
    return plan


def _check_dynamics(protocol: Protocol, specs: Sequence[WalkerSpec], starts: list[np.ndarray]) -> openmm.System:
    """Evaluate the energy of each start in a Context; returns the System."""
    spec = specs[0]
    system = openmm.XmlSerializer.deserialize(spec.system)
    platform, properties = platform_of(spec, system.getNumParticles())
    integrator = make_integrator(spec.temperature, spec.friction, spec.timestep)
    try:
        context = openmm.Context(system, integrator, platform, properties)
        for one, positions in zip(specs, starts, strict=True):
            context.setPositions(positions)
            check_energy(context, one, "at its start")
    except openmm.OpenMMException as error:
        raise GeomGNNError(
            f"OpenMM's platform {platform.getName()} cannot simulate this system: {error}. Choose another with "
            "system.platform; `geomgnn doctor` says which ones work here."
        ) from error
    if platform.getName() == "CPU" and 1 < spec.threads > cores() // protocol.run.walkers:
        warnings.warn(
            f"{protocol.run.walkers} walkers of {spec.threads} threads (run.threads) do not fit on {cores()} cores: threads "
            "that wait for a core make all of them slow.",
            UserWarning,
            stacklevel=3,
        )
    return system


def _check_frames(protocol: Protocol, settings: Any) -> None:
    """Check that the unbiased runs will be long enough for the fit; if not, say which length would be."""
    interval, runs = settings.frame_interval, len(protocol.system.structures)
    n_frames = training_frames(protocol)
    try:
        check_data([n_frames] * runs, settings)
    except GeomGNNError as error:
        enough = _enough_frames(n_frames, runs, settings)
        advice = f" With {runs} of these runs, {enough * interval:g} ps would do." if enough else ""
        raise GeomGNNError(
            f"unbiased.length is {protocol.unbiased.length:g} ps, too little for the fit at a lag time (cv.lag) of "
            f"{settings.lagtime:g} ps: {error}{advice}"
        ) from error


def training_frames(protocol: Protocol) -> int:
    """Count the frames that each of the unbiased runs will have."""
    timestep = protocol.system.timestep
    return whole_steps(protocol.unbiased.length, timestep) // protocol.md_steps(protocol.unbiased.frame_interval)


def _enough_frames(n_frames: int, runs: int, settings: Any) -> int | None:
    lag = settings.lag_frames()
    for lags in count(n_frames // lag + 1):
        try:
            check_data([lags * lag] * runs, settings)
        except GeomGNNError:
            if lags > _MOST_LAGS:
                return None
        else:
            return lags * lag
    return None


def _untrained(settings: Any, topology: Any, starts: list[np.ndarray]) -> Any:
    """Make a CV with random weights like the one that will be fitted."""
    box = topology.getPeriodicBoxVectors()
    topology = as_topology(topology)
    first = mdtraj.Trajectory(np.array(starts), topology)
    if box is not None:
        first.unitcell_vectors = np.tile(box.value_in_unit(openmm.unit.nanometer), (len(starts), 1, 1))
    encoder = Encoder.load(settings.encoder)
    featurization = Featurization(topology, settings.tokens, encoder, structure=lambda: first)
    mixer = make_fit_mixer(settings, featurization)
    if mixer.out_features < settings.n_components:
        raise GeomGNNError(
            f"cv.components is {settings.n_components}, but the mixer {settings.mixer} of {featurization.windows.n_tokens} "
            f"residues has {mixer.out_features} outputs. Ask for fewer components."
        )
    if not mixer.has_statistics:
        pos = featurization.molecule.positions(first)
        noise = torch.randn((4, *pos.shape[1:]), generator=torch.Generator().manual_seed(settings.seed), dtype=pos.dtype)
        mixer.set_statistics(featurization.tokenizer.embed(pos[0] + _TREMBLE * noise))
    projection = np.full((mixer.out_features, settings.n_components), 1 / mixer.out_features)
    koopman = np.zeros(mixer.out_features), projection, np.full(settings.n_components, 0.5)
    return make_cv(settings, featurization, mixer, koopman)


# ---------------------------------------------------------------------------------------------------------------- disk


def disk_bytes(plan: Plan) -> int:
    """Estimate the size of the results of a run in bytes."""
    protocol, schedule = plan.protocol, plan.protocol.schedule
    atoms, periodic = len(plan.starts[0]), plan.topology.getPeriodicBoxVectors() is not None
    frame = 12 * atoms + 24 + 56 * periodic  # of a DCD file
    walkers = protocol.run.walkers
    frames = walkers * schedule.length // schedule.frame_interval
    if plan.settings is not None:
        frames += len(plan.specs) * training_frames(protocol)
    frames += round(protocol.comparison_length / (comparison_frame(protocol) * protocol.system.timestep))
    rows = walkers * (schedule.length // schedule.colvar_interval + schedule.length // schedule.pace)
    row = 14 * (2 * plan.cv.dimension + 8)  # of COLVAR and KERNELS
    network = sum(tensor.numel() * tensor.element_size() for tensor in plan.cv.state_dict().values())
    checkpoint = 200 * atoms * (walkers + 1)
    return frame * frames + row * rows + network + checkpoint + REPORT_BYTES


def _check_disk(plan: Plan) -> None:
    folder = plan.protocol.output
    while not folder.is_dir():
        folder = folder.parent
    free, needed = shutil.disk_usage(folder).free, disk_bytes(plan)
    if needed > free:
        raise GeomGNNError(
            f"The results will take about {needed / 1e9:.3g} GB, but {free / 1e9:.3g} GB are free in {folder}. Make room, "
            "choose another output, or save fewer frames (run.frame_interval, unbiased.frame_interval)."
        )
