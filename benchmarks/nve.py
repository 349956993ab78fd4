"""Energy conservation without a thermostat: how much a bias on a learned CV adds to the drift of the unbiased molecule.

    python benchmarks/nve.py                                   # chignolin, where PeptideBuilder is installed
    python benchmarks/nve.py --chignolin FILE.pdb              # with hydrogens
    python benchmarks/nve.py --ala2 --engines numba eager      # alanine dipeptide; also plain PyTorch in double precision

amber14 and OBC2 implicit solvent, bonds to hydrogen constrained (to 1e-8), no heavy hydrogens, velocity-shifted leapfrog.
The CV is the encoder et-64 on heavy atoms (chignolin: one window for each residue and its neighbours) with a linear
projection of random weights. The bias is a spring as stiff as the spread of the CV, or OPES with kernels where the molecule
is, frozen. From each start of a thermostatted run the molecule goes on without a bias and with it, each with the same
positions and velocities. The drift is the slope of the total energy against time; its error is that of the mean over the
starts; the fluctuation is the standard deviation about that line. One thread.

The force of OPES itself jumps where its kernels end, and each crossing of that rim gains or costs some tenths of a kJ/mol,
whatever the CV: narrow kernels (--width 1) show it. The last column is the share of the time beyond the kernels.
"""

import argparse
import itertools
import os
from importlib import resources

os.environ.setdefault("OMP_NUM_THREADS", "1")

import mdtraj
import numpy as np
import openmm
import torch
from embedding import chignolin
from md import random_cv
from openmm import unit

from openmm_geomgnn import GeomGNNCV
from openmm_geomgnn.force.integrators import make_integrator
from openmm_geomgnn.sampling.opes.method import OPES
from openmm_geomgnn.sampling.systems import SystemSettings, build_system, choose_platform, degrees_of_freedom
from openmm_geomgnn.units import BOLTZMANN

TEMPERATURE, BARRIER, N_KERNELS = 300.0, 30.0, 20
BIASES = ("spring", "opes")
ENGINES = {"numba": "single", "eager": "double"}  # and the precision of the network
KJ = unit.kilojoule_per_mole


class Spring:
    """V = 0.5*kT*((s - centre)/sigma)^2."""

    def __init__(self, centre, sigma):
        self.centre, self.sigma = centre, sigma

    def initial_state(self, dimension=None, n_walkers=1):
        return None

    def bias(self, state, s):
        x = (s - self.centre) / self.sigma
        return 0.5 * BOLTZMANN * TEMPERATURE * float(x @ x), BOLTZMANN * TEMPERATURE * x / self.sigma


def frozen_opes(values, sigma):
    """OPES with a given sigma, and its state with kernels at `values` (n, 1)."""
    bias = OPES(barrier=BARRIER, pace=500, temperature=TEMPERATURE, sigma=sigma)
    state = bias.initial_state(1)
    for value in values:
        state = bias.update(state, value)
    return bias, state


def make_context(topology, platform, integrator, force=None, bias=None, state=None):
    system = build_system(topology, SystemSettings(hydrogen_mass=None))
    for k, other in enumerate(system.getForces()):  # a removed centre-of-mass motion is removed energy
        if isinstance(other, openmm.CMMotionRemover):
            system.removeForce(k)
            break
    handle = None
    if force is not None:
        handle = force.addToSystem(system, bias)
        handle.setBiasState(state)
    integrator.setConstraintTolerance(1e-8)
    context = openmm.Context(system, integrator, *choose_platform(platform))
    return context, handle


def equilibrated(topology, positions, platform, picoseconds, starts):
    """Positions and velocities of as many starts, and positions (N_KERNELS, N, 3) in nm of the second half of the run."""
    context, _ = make_context(topology, platform, make_integrator(TEMPERATURE, 5.0, 0.002, seed=3))
    context.setPositions(positions)
    openmm.LocalEnergyMinimizer.minimize(context, maxIterations=200)
    context.setVelocitiesToTemperature(TEMPERATURE, 4)
    integrator, steps = context.getIntegrator(), round(picoseconds / 0.002)
    integrator.step(steps // 2)
    frames, states = [], []
    for _ in range(N_KERNELS):
        integrator.step(steps // 2 // N_KERNELS)
        states.append(context.getState(getPositions=True, getVelocities=True))
        frames.append(states[-1].getPositions(asNumpy=True).value_in_unit(unit.nanometer))
    chosen = np.linspace(0, N_KERNELS - 1, starts).round().astype(int)
    return [states[k] for k in chosen], np.array(frames)


def stiffness(force, topology, frames, sigma):
    """sqrt(kT * sum_i |ds/dx_i|^2 / m_i) / sigma in 1/ps, the largest of some frames: how fast the bias can change."""
    masses = np.array([atom.element.mass.value_in_unit(unit.dalton) for atom in topology.atoms()])[force.atoms]
    slopes = [force.bound.value_and_vjp(10.0 * frame[force.atoms])[1](np.ones(1)) for frame in frames]
    return np.sqrt(BOLTZMANN * TEMPERATURE * max(((10.0 * g) ** 2 / masses[:, None]).sum() for g in slopes)) / sigma


def run(context, handle, start, steps, stride):
    """Total energy and bias (n,) in kJ/mol every `stride` steps, after a tenth of the steps."""
    context.setPositions(start.getPositions())
    context.setVelocities(start.getVelocities())
    integrator, totals, biases = context.getIntegrator(), [], []
    integrator.step(steps // 10)
    for _ in range(steps // stride):
        integrator.step(stride)
        state = context.getState(getEnergy=True)
        totals.append((state.getPotentialEnergy() + state.getKineticEnergy()).value_in_unit(KJ))
        biases.append(0.0 if handle is None else handle.last[1])
    return np.array(totals), np.array(biases)


def line(energies, interval):
    """Slope in kJ/mol/ps and standard deviation about the line, of energies `interval` ps apart."""
    time = interval * np.arange(len(energies))
    slope, offset = np.polyfit(time, energies, 1)
    return slope, np.std(energies - offset - slope * time)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chignolin", help="structure file with hydrogens; without it PeptideBuilder makes a helix")
    parser.add_argument("--ala2", action="store_true", help="alanine dipeptide, on the Reference platform, instead")
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=["numba"])
    parser.add_argument("--biases", nargs="+", choices=BIASES, default=BIASES)
    parser.add_argument("--width", type=float, default=3.0, help="of the kernels, in spreads of the CV")
    parser.add_argument("--timesteps", nargs="+", type=float, default=[1.0, 2.0], help="femtoseconds")
    parser.add_argument("--starts", type=int, default=6)
    parser.add_argument("--length", type=float, default=3.0, help="picoseconds from each start")
    parser.add_argument("--equilibration", type=float, default=10.0, help="picoseconds")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.ala2:
        structure = mdtraj.load(str(resources.files("openmm_geomgnn") / "data" / "ala2-c7eq.pdb"))
        window, platform = "all", "Reference"
    else:
        structure = mdtraj.load(arguments.chignolin) if arguments.chignolin else chignolin()
        window, platform = "sequence", "CPU"
    topology = structure.topology.to_openmm()
    starts, frames = equilibrated(topology, structure.xyz[0], platform, arguments.equilibration, arguments.starts)

    cv = random_cv(structure, window)
    forces = {engine: GeomGNNCV(cv, topology, engine=engine, precision=ENGINES[engine]) for engine in arguments.engines}
    force = next(iter(forces.values()))
    values = force.compute(frames)
    sigma = float(values.std())
    biases = {"spring": (Spring(values.mean() + sigma, sigma), None), "opes": frozen_opes(values, arguments.width * sigma)}
    print(
        f"{structure.n_atoms} atoms, {platform}; spread of the CV {sigma:.3g}, its stiffness "
        f"{0.001 * stiffness(force, topology, frames, sigma):.2f} per fs"
    )
    print("drift and its error in kJ/mol/ns per degree of freedom; fluctuation and range of the bias V in kJ/mol")
    print(
        f"{'fs':>4s} {'bias':22s}{'drift':>10s}{'error':>10s}{'|drift|':>10s}{'fluctuation':>13s}{'range of V':>14s}"
        f"{'beyond':>10s}"
    )
    for timestep in arguments.timesteps:
        runs = {"none": make_context(topology, platform, openmm.VerletIntegrator(0.001 * timestep))}
        for name, (engine, force) in itertools.product(arguments.biases, forces.items()):
            integrator = openmm.VerletIntegrator(0.001 * timestep)
            label = f"{name}, {engine} {ENGINES[engine]}"
            runs[label] = make_context(topology, platform, integrator, force, *biases[name])
        stride = max(1, round(10 / timestep))
        steps = round(1000 * arguments.length / timestep)
        for label, (context, handle) in runs.items():
            freedom = degrees_of_freedom(context.getSystem())
            found, biased = [], []
            for start in starts:
                totals, energies = run(context, handle, start, steps, stride)
                found.append(line(totals, 0.001 * timestep * stride))
                biased.append(energies)
            slopes, fluctuations = np.array(found).T
            slopes *= 1000 / freedom
            error = slopes.std(ddof=1) / np.sqrt(len(slopes)) if len(slopes) > 1 else np.nan
            print(
                f"{timestep:4g} {label:22s}{slopes.mean():10.3f}{error:10.3f}{np.abs(slopes).mean():10.3f}"
                f"{fluctuations.mean():13.4f}{np.ptp(biased, axis=1).mean():14.1f}"
                f"{np.mean(np.array(biased) < -BARRIER + 1e-9):10.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
