"""Estimates of how long a run will take, from a few real steps on its platform."""

import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import openmm
import torch

from openmm_geomgnn.cli.preflight import Plan, training_frames
from openmm_geomgnn.cv.estimators import RATE_FRAMES
from openmm_geomgnn.cv.stiffness import GRADIENT_FRAMES, stiffness
from openmm_geomgnn.force.geomgnncv import GeomGNNCV
from openmm_geomgnn.force.integrators import make_integrator
from openmm_geomgnn.processes import cores
from openmm_geomgnn.representation.encoder import Encoder
from openmm_geomgnn.representation.tokens import Tokenizer
from openmm_geomgnn.sampling.walker import Walker, platform_of
from openmm_geomgnn.sampling.walker_spec import WalkerSpec

_MEASURED = 0.5  # seconds, at least
_MINIMISATION = 100  # iterations: without overlaps a few steps can be done
AUTO_FITS = 4  # what scores and the fit cost together, in fits
EXPLORED = 3  # pieces from each structure, about
_GPUS = ("CUDA", "HIP", "OpenCL")


def stage_seconds(plan: Plan, announce: Callable[[], None] = lambda: None) -> dict[str, float]:
    """Estimate the seconds of each stage of a run, without minimisation, analysis and the training of a VAMPnet.

    plan : preflight.Plan. announce : called before kernels are compiled, which takes long.

    Raises GeomGNNError if the first steps fail.
    """
    protocol, run = plan.protocol, plan.protocol.run
    timestep, walkers = protocol.system.timestep, run.walkers
    step, biased_step = _step_seconds(plan, announce)
    runs, found = len(plan.specs), {}
    if plan.settings is not None:
        together = min(runs, walkers)
        steps = (protocol.unbiased.length + protocol.unbiased.equilibration) / timestep
        found["unbiased"] = math.ceil(runs / walkers) * steps * step * _slowed(plan, together)
        found["fit"] = _fit_seconds(plan) * (AUTO_FITS if protocol.cv.auto else 1)
    if protocol.explore is not None:
        seconds = protocol.explore.length / timestep * step
        found["exploration"] = EXPLORED * len(protocol.system.structures) / walkers * seconds * _slowed(plan, walkers)
        steps = (protocol.seeds.length + protocol.unbiased.equilibration) / timestep
        found["runs from seeds"] = math.ceil(protocol.seeds.number / walkers) * steps * step * _slowed(plan, walkers)
    if protocol.rounds is not None:
        further = protocol.explore.length if protocol.explore is not None and protocol.explore.along_cv else 0.0
        outer = (protocol.rounds.length + further) / protocol.schedule.bias_step * biased_step
        found["rounds"] = protocol.rounds.number * (outer * _slowed(plan, walkers) + found["fit"])
    equilibration = protocol.unbiased.equilibration / timestep * step
    biased = protocol.schedule.length * biased_step + equilibration
    comparison = protocol.comparison_length / walkers / timestep * step
    found["biased"] = biased * _slowed(plan, walkers)
    if comparison:
        found["comparison"] = (comparison + equilibration) * _slowed(plan, walkers)
    return found


def _slowed(plan: Plan, walkers: int) -> float:
    """Factor by which walkers in parallel are slower than a single one, since they share cores and GPUs."""
    spec = plan.specs[0]
    if spec.platform in _GPUS:
        return walkers
    return max(1.0, walkers / max(1, cores() // (spec.threads if spec.platform == "CPU" else 1)))


def _step_seconds(plan: Plan, announce: Callable[[], None]) -> tuple[float, float]:
    """Measure the seconds of a time step without a bias and of an outer step with one."""
    plain = replace(plan.specs[0], minimise=False, equilibration=0.0, positions=_without_overlaps(plan))

    def make_cv(topology: Any) -> GeomGNNCV:
        return GeomGNNCV(plan.cv, topology, engine=plan.protocol.run.engine, failures=None)

    feather: Any = _Feather()  # a walker needs less than the whole interface of a bias
    biased = replace(plain, make_cv=make_cv, bias=feather, every=plan.protocol.every)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the process of a walker
    try:
        plan.force.bound.warm_up(announce)
        return _walker_seconds(plain), _walker_seconds(biased)
    finally:
        torch.set_num_threads(threads)


def _walker_seconds(spec: WalkerSpec) -> float:
    walker = Walker(spec)
    walker.start()
    walker.advance(None, 2)
    return _seconds(lambda n: walker.advance(None, n))


def _seconds(work: Callable[[int], object]) -> float:
    """Measure the seconds of one unit of work(n), with n large enough to be timed."""
    n = 1
    while True:
        began = time.perf_counter()
        work(n)
        spent = time.perf_counter() - began
        if spent >= _MEASURED:
            return spent / n
        n *= 2 if spent > 0.1 * _MEASURED else 8


def _without_overlaps(plan: Plan) -> np.ndarray:
    """Minimise the first start until steps are possible."""
    spec = plan.specs[0]
    system = openmm.XmlSerializer.deserialize(spec.system)
    platform = platform_of(spec, system.getNumParticles())
    context = openmm.Context(system, make_integrator(spec.temperature, spec.friction, spec.timestep), *platform)
    context.setPositions(plan.starts[0])
    openmm.LocalEnergyMinimizer.minimize(context, maxIterations=_MINIMISATION)
    return context.getState(getPositions=True).getPositions(asNumpy=True)._value


class _Feather:
    """A bias that is evaluated like any other but exerts no force."""

    adaptive = False

    def initial_state(self, dimension: int | None = None, n_walkers: int = 1) -> Any:
        return None

    def bias(self, state: Any, s: np.ndarray) -> tuple[float, np.ndarray]:
        return 0.0, np.full(len(s), 1e-9)


def _fit_seconds(plan: Plan) -> float:
    """Estimate the seconds of embedding, thermal motion and stiffness, where networks need double precision or gradients."""
    settings, bound = plan.settings, plan.force.bound
    pos = bound.molecule.positions(plan.starts[0])
    batch = pos.repeat(min(bound.frames_per_pass, 64), 1, 1)
    tokenizer = Tokenizer(plan.cv.encoder, bound.tokenizer.windows, settings.tokens.pooling)
    tokenizer.embed(batch)  # compiles
    frames = len(plan.specs) * training_frames(plan.protocol)
    seconds = frames * _seconds(lambda n: [tokenizer.embed(batch) for _ in range(n)]) / len(batch)
    few = pos.repeat(4, 1, 1)
    if settings.estimator != "vampnet" and settings.softening:
        double = Tokenizer(Encoder.load(settings.encoder, torch.float64), bound.tokenizer.windows, settings.tokens.pooling)
        each = _seconds(lambda n: [double.embed(few) for _ in range(n)]) / len(few)
        seconds += 2 * min(RATE_FRAMES, frames) * each
    arguments = plan.cv, plan.topology, [few], settings.frame_interval
    each = _seconds(lambda n: [stiffness(*arguments) for _ in range(n)]) / len(few)
    return seconds + min(GRADIENT_FRAMES, frames) * each
