"""What must hold over many steps: energy without a thermostat is conserved, and memory does not grow."""

import subprocess
import sys

import numpy as np
import openmm
import pytest
from biases import deposit
from force_systems import PDB, POSITIONS, make_context
from openmm import unit

from openmm_geomgnn import GeomGNNCV
from openmm_geomgnn.sampling.opes.method import OPES
from openmm_geomgnn.sampling.systems import SystemSettings, build_system, degrees_of_freedom

pytestmark = pytest.mark.slow

BIAS = OPES(barrier=30, pace=10, sigma=0.2)
TIMESTEP = 0.0005  # ps


class Scaled:
    """Kernels around `here`, and forces that are not those of their energy unless `scale` is 1."""

    def __init__(self, here, scale):
        self.state, self.scale = deposit(BIAS, [here, here + [0.1, -0.1], here - [0.3, 0.0]]), scale

    def initial_state(self, dimension=None, n_walkers=1):
        return self.state

    def bias(self, state, s):
        energy, slope = BIAS.bias(state, s)
        return energy, self.scale * slope


class TestEnergy:
    """Alanine dipeptide in implicit solvent without a thermostat, in double precision."""

    def run(self, force=None, bias=None):
        """Drift in kJ/mol/ns per degree of freedom, fluctuation about it in kJ/mol, by how much the bias changed."""
        system = build_system(PDB.topology, SystemSettings(hydrogen_mass=None))
        (remover,) = [k for k, other in enumerate(system.getForces()) if isinstance(other, openmm.CMMotionRemover)]
        system.removeForce(remover)  # it takes energy
        handle = None if force is None else force.addToSystem(system, bias)
        integrator = openmm.VerletIntegrator(TIMESTEP)
        integrator.setConstraintTolerance(1e-9)
        context = make_context(system, integrator=integrator)
        context.setVelocitiesToTemperature(300, 2)
        energies, biases = [], []
        for _ in range(50):
            integrator.step(10)
            state = context.getState(getEnergy=True)
            total = state.getPotentialEnergy() + state.getKineticEnergy()
            energies.append(total.value_in_unit(unit.kilojoule_per_mole))
            biases.append(0.0 if handle is None else handle.last[1])
        time = 10 * TIMESTEP * np.arange(len(energies))
        slope, offset = np.polyfit(time, energies, 1)
        fluctuation = np.std(energies - offset - slope * time)
        return abs(slope) * 1000 / degrees_of_freedom(system), fluctuation, np.ptp(biases)

    def test_drifts_no_more_with_a_bias_than_without(self, cv_file):
        force = GeomGNNCV(cv_file, PDB.topology, precision="double", engine="eager")
        here = force.compute(POSITIONS)[0]
        drift, fluctuation, _ = self.run()
        biased, biased_fluctuation, change = self.run(force, Scaled(here, 1.0))
        assert change > 5
        assert biased < 1.5 * drift + 0.1 and biased_fluctuation < 1.5 * fluctuation
        wrong, _, _ = self.run(force, Scaled(here, 1.02))
        assert wrong > 5 * (1.5 * drift + 0.1)


@pytest.mark.parametrize("engine, steps", [("numba", 5_000), ("eager", 600)])
def test_memory_does_not_grow(engine, steps, cv_file, repository):
    """In a process of its own: what others allocated and freed would hide it."""
    if engine == "numba":
        pytest.importorskip("numba")
    pytest.importorskip("psutil")
    command = [sys.executable, repository / "benchmarks" / "memory.py", "--cv", cv_file, "--engine", engine]
    done = subprocess.run([*map(str, command), "--steps", str(steps)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert f"engine {engine}" in done.stdout
    assert float(done.stdout.split("first fifth: ")[1].split()[0]) < 2, done.stdout
