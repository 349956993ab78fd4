"""`GeomGNNCV` on every platform of OpenMM that is to be had here, in the precisions of platform and network.

Platforms are chosen by their names: with PoCL (OpenCL on a CPU) OpenMM would take OpenCL by default.
"""

from functools import partial

import mdtraj
import numpy as np
import openmm
import pytest
from force_systems import (
    BIAS,
    CELLS,
    PDB,
    POSITIONS,
    energy_and_forces,
    make_context,
    make_system,
    value,
    water_system,
)
from molecules import BOXES, wrapped
from phi_runs import Spring

from openmm_geomgnn import GeomGNNCV
from openmm_geomgnn.errors import GeomGNNError

of_cv = partial(GeomGNNCV, engine="eager")  # which compiles nothing
PRESENT = [openmm.Platform.getPlatform(k).getName() for k in range(openmm.Platform.getNumPlatforms())]
# what a platform is asked for, and the relative error of energies and forces that is left to it
KINDS = {
    "Reference": [({}, 1e-12)],
    "CPU": [({"Threads": "1"}, 1e-5)],
    **{name: [({"Precision": p}, 1e-5) for p in ("single", "mixed", "double")] for name in ("OpenCL", "CUDA", "HIP")},
}
CASES = [
    pytest.param(
        name,
        properties,
        tolerance,
        id="-".join([name, *properties.values()]),
        marks=pytest.mark.skipif(name not in PRESENT, reason=f"OpenMM has no platform {name} here"),
    )
    for name, kinds in KINDS.items()
    for properties, tolerance in kinds
]
every_platform = pytest.mark.parametrize(("platform", "properties", "tolerance"), CASES)


def agree(found, expected, tolerance):
    (energy, forces), (expected_energy, expected_forces) = found, expected
    assert energy == pytest.approx(expected_energy, rel=tolerance, abs=tolerance)
    np.testing.assert_allclose(forces, expected_forces, rtol=0, atol=tolerance * np.abs(expected_forces).max())


@pytest.mark.parametrize("precision", ["single", "double"])
@every_platform
class TestBothPrecisions:
    """Of the network, whatever that of the platform is."""

    def biased(self, cv_file, precision, box=None):
        system = make_system(box=box)
        force = of_cv(cv_file, PDB.topology, precision=precision)
        handle = force.addToSystem(system, BIAS)
        handle.setBiasState(BIAS.update(handle.getBiasState(), force.compute(POSITIONS)[0] + 0.1))
        system.addForce(of_cv(cv_file, PDB.topology, 1, precision=precision, periodic=box is not None))
        return system, handle

    def test_energies_and_forces(self, cv_file, precision, platform, properties, tolerance):
        for box in (None, BOXES["triclinic"]):
            system, handle = self.biased(cv_file, precision, box)
            positions = POSITIONS if box is None else wrapped(POSITIONS - POSITIONS.mean(axis=0), box)
            expected = energy_and_forces(make_context(system, positions))
            expected_s = handle.last[0]
            found = energy_and_forces(make_context(system, positions, None, platform, **properties))
            # a network in single precision sees other last digits of the positions
            agree(found, expected, max(tolerance, 1e-4 if precision == "single" and tolerance > 1e-9 else 0))
            np.testing.assert_allclose(handle.last[0], expected_s, rtol=max(tolerance, 1e-5))

    def test_dynamics(self, cv_file, precision, platform, properties, tolerance):
        """What forces are computed with are the positions that are reported."""
        system, handle = self.biased(cv_file, precision)
        for a, b in mdtraj.Topology.from_openmm(PDB.topology).bonds:
            if a.element.symbol != "H" and b.element.symbol != "H":
                system.addConstraint(a.index, b.index, np.linalg.norm(POSITIONS[a.index] - POSITIONS[b.index]))
        integrator = openmm.LangevinMiddleIntegrator(300, 1.0, 0.0005)
        integrator.setRandomNumberSeed(1)
        context = make_context(system, POSITIONS, integrator, platform, **properties)
        context.setVelocitiesToTemperature(100, 1)
        integrator.step(20)
        s, energy = handle.getValue(context)
        positions = context.getState(getPositions=True).getPositions(asNumpy=True)
        np.testing.assert_allclose(s, value(cv_file, positions, precision=precision, engine="eager"), rtol=1e-4)
        assert energy == pytest.approx(BIAS.bias(handle.getBiasState(), s)[0], rel=1e-9)
        assert np.abs(s - value(cv_file, engine="eager")).max() > 1e-3


@every_platform
class TestPeriodic:
    @pytest.mark.parametrize("cell", CELLS)
    def test_a_cut_molecule_is_the_same(self, cv_file, cell, platform, properties, tolerance):
        """Platforms on a GPU keep positions in single precision in the box, wrapped atom by atom."""
        box = CELLS[cell]
        system = make_system(box=box)
        force = of_cv(cv_file, PDB.topology, precision="double", periodic=True)
        handle = force.addToSystem(system, BIAS)
        handle.setBiasState(BIAS.update(handle.getBiasState(), force.compute(POSITIONS)[0] + 0.1))
        expected = energy_and_forces(make_context(system), groups={31})
        context = make_context(system, POSITIONS, None, platform, **properties)
        rng = np.random.default_rng(5)
        centred = POSITIONS - POSITIONS.mean(axis=0)
        for way in ((0.5, 0.5, 0.5), (0.0, 0.5, 0.5), (0.5, 1.0, 0.0), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0)):
            cut = wrapped(centred + np.array(way) @ box, box)
            for positions in (cut, cut + rng.integers(-2, 3, size=(22, 3)) @ box):
                agree(energy_and_forces(context, positions, groups={31}), expected, max(10 * tolerance, 1e-10))

    @pytest.mark.slow
    def test_in_water(self, cv_file, platform, properties, tolerance):
        """Hundreds of steps, in which a platform reorders and wraps its atoms, from a molecule at a corner of the box."""
        system, topology, positions = water_system()
        force = of_cv(cv_file, topology)
        handle = force.addToSystem(system, BIAS)
        handle.setBiasState(BIAS.update(handle.getBiasState(), force.compute(positions)[0] + 0.1))
        positions = positions - positions[:22].mean(axis=0)  # not wrapped by atom: OpenMM's bonds do not see the box
        integrator = openmm.LangevinMiddleIntegrator(300, 1.0, 0.001)
        integrator.setRandomNumberSeed(1)
        context = make_context(system, positions, integrator, platform, **properties)
        context.setVelocitiesToTemperature(300, 1)
        integrator.step(20 if platform == "Reference" else 260)
        s, energy = handle.getValue(context)
        state = context.getState(getPositions=True)
        frame = mdtraj.Trajectory(state.getPositions(asNumpy=True)._value[None], mdtraj.Topology.from_openmm(topology))
        frame.unitcell_vectors = state.getPeriodicBoxVectors(asNumpy=True)._value[None]
        np.testing.assert_allclose(s, force.compute(frame)[0], atol=1e-4)
        assert energy == pytest.approx(BIAS.bias(handle.getBiasState(), s)[0], rel=1e-9) and handle.error is None


@every_platform
class TestOthers:
    def test_custom_cv_force_and_copies(self, cv_file, platform, properties, tolerance):
        expected = value(cv_file, precision="double", engine="eager")
        system = make_system()
        force = openmm.CustomCVForce("q*p")
        for component, name in enumerate("qp"):
            force.addCollectiveVariable(name, of_cv(cv_file, PDB.topology, component, precision="double"))
        system.addForce(force)
        again = openmm.XmlSerializer.deserialize(openmm.XmlSerializer.serialize(system))
        context = make_context(again, POSITIONS, None, platform, **properties)
        energy, _ = energy_and_forces(context)
        assert energy == pytest.approx(expected.prod(), rel=1e-5)
        np.testing.assert_allclose(again.getForce(0).getCollectiveVariableValues(context), expected, rtol=1e-5)

    def test_failures_stop_it(self, cv_file, platform, properties, tolerance, tmp_path):
        """Some platforms would go on with a force that is not a number."""
        system = make_system()
        bias = Spring(stiffness=np.nan)
        handle = of_cv(cv_file, PDB.topology, failures=tmp_path).addToSystem(system, bias)
        context = make_context(system, POSITIONS, None, platform, **properties)
        with pytest.raises(openmm.OpenMMException, match="The bias is not finite at step 0"):
            context.getIntegrator().step(1)
        assert isinstance(handle.error, GeomGNNError)
        assert mdtraj.load(str(tmp_path / "geomgnn-failure-step-0.pdb")).n_atoms == 10

    def test_checkpoint(self, cv_file, platform, properties, tolerance):
        system = make_system()
        handle = of_cv(cv_file, PDB.topology).addToSystem(system, BIAS)
        context = make_context(system, POSITIONS, None, platform, **properties)
        context.setVelocitiesToTemperature(100, 1)
        context.getIntegrator().step(3)
        expected, saved = handle.getValue(context), context.createCheckpoint()
        context.getIntegrator().step(20)
        assert np.abs(handle.getValue(context)[0] - expected[0]).max() > 1e-3
        context.loadCheckpoint(saved)
        found = handle.getValue(context)
        np.testing.assert_allclose(found[0], expected[0], rtol=1e-6)
        assert found[1] == pytest.approx(expected[1], rel=1e-6)
