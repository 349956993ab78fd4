"""`GeomGNNCV` in periodic boxes: molecules cut by the box, and several chains."""

import copy
import itertools

import mdtraj
import numpy as np
import openmm
import pytest
from force_systems import BIAS, CELLS, NM, PDB, POSITIONS, energy_and_forces, make_context, make_system, value
from molecules import BOXES, peptide, random_cv, wrapped

from openmm_geomgnn import GeomGNNCV
from openmm_geomgnn.representation.periodic import minimum_image

# a molecule at the centre of the box, over its six faces, twelve edges and eight corners
WAYS = list(itertools.product((0.5, 0.0, 1.0), repeat=3))


class TestMinimumImage:
    @pytest.mark.parametrize("cell", CELLS)
    def test_is_the_shortest(self, cell):
        """Not that of the brick that the diagonal of the box spans, which differ in an oblique box."""
        box = CELLS[cell]
        deltas = np.random.default_rng(0).uniform(-5, 5, size=(20, 30, 3))
        many = np.array(list(itertools.product(range(-6, 7), repeat=3))) @ box
        nearby = deltas - np.round(deltas @ np.linalg.inv(box)) @ box
        shortest = np.linalg.norm(nearby[..., None, :] + many, axis=-1).min(axis=-1)
        found = minimum_image(deltas, box)
        np.testing.assert_allclose(np.linalg.norm(found, axis=-1), shortest, rtol=1e-12)
        multiples = (deltas - found) @ np.linalg.inv(box)
        np.testing.assert_allclose(multiples, np.round(multiples), atol=1e-12)
        np.testing.assert_array_equal(minimum_image(deltas, np.tile(box, (20, 1, 1))), found)  # a box for each frame


class TestCut:
    @pytest.mark.parametrize(("engine", "precision", "tolerance"), [("eager", "double", 1e-12), ("numba", "single", 1e-5)])
    @pytest.mark.parametrize("cell", CELLS)
    def test_in_all_ways(self, cv_file, cell, engine, precision, tolerance):
        """Value and forces are the same to rounding, whichever atoms are at which side of the box."""
        box = CELLS[cell]
        system = make_system(box=box)
        force = GeomGNNCV(cv_file, PDB.topology, precision=precision, engine=engine)
        handle = force.addToSystem(system, BIAS)
        handle.setBiasState(BIAS.update(handle.getBiasState(), force.compute(POSITIONS)[0] + 0.1))
        context = make_context(system)
        expected, expected_forces = energy_and_forces(context, groups={31})
        expected_s, largest = handle.last[0], np.abs(expected_forces).max()
        rng = np.random.default_rng(5)
        centred = POSITIONS - POSITIONS.mean(axis=0)
        for way in WAYS:
            places = wrapped(centred + np.array(way) @ box, box)
            torn = np.ptp(places[force.atoms] @ np.linalg.inv(box), axis=0) > 0.5
            assert (torn == (np.array(way) != 0.5)).all()
            for positions in (places, places + rng.integers(-2, 3, size=(22, 3)) @ box):
                energy, forces = energy_and_forces(context, positions, groups={31})
                np.testing.assert_allclose(handle.last[0], expected_s, rtol=0, atol=tolerance * np.abs(expected_s).max())
                assert energy == pytest.approx(expected, rel=tolerance)
                np.testing.assert_allclose(forces, expected_forces, rtol=0, atol=10 * tolerance * largest)

    @pytest.mark.parametrize("precision", ["single", "double"])
    def test_far_from_the_origin(self, cv_file, precision):
        """A molecule that has left its first box long ago: nothing is lost in single precision."""
        system = make_system(box=CELLS["cubic"])
        handle = GeomGNNCV(cv_file, PDB.topology, precision=precision, engine="eager").addToSystem(system)
        context = make_context(system)
        expected = handle.getValue(context)[0]
        context.setPositions(POSITIONS + [4000.0, -2000.0, 600.0])
        np.testing.assert_allclose(handle.getValue(context)[0], expected, rtol=1e-6 if precision == "single" else 1e-9)

    @pytest.mark.parametrize("cell", CELLS)
    def test_chains_in_different_images(self, tmp_path, cell):
        """A dimer, joined at its contact: wherever its chains and atoms are, it is the same dimer."""
        box = 1.5 * CELLS[cell]
        topology = peptide([1, 2, 3], [1, 2, 3])
        centres = np.array([[0.0, 0, 0], [0.45, 0, 0], [0.9, 0, 0], [0.9, 0.4, 0], [1.3, 0.5, 0], [1.3, 0.9, 0.2]])
        whole = np.repeat(centres, 5, axis=0) + np.random.default_rng(1).uniform(-0.1, 0.1, size=(30, 3))
        reference = mdtraj.Trajectory(whole[None], topology)
        heavy = reference.atom_slice(topology.select("not element H"))
        path = tmp_path / "dimer.cv"
        random_cv(topology, window="space", reference=heavy, scale=0.2).save(path)
        system = make_system(topology.to_openmm(), box)
        force = GeomGNNCV(path, topology, precision="double", engine="eager")
        handle = force.addToSystem(system, BIAS)
        handle.setBiasState(BIAS.update(handle.getBiasState(), force.compute(whole)[0] + 0.1))
        context = make_context(system, whole)
        expected, expected_forces = energy_and_forces(context, groups={31})
        expected_s = handle.last[0]
        np.testing.assert_allclose(expected_s, force.compute(whole)[0], rtol=1e-12)
        for way in WAYS:
            moved = whole - whole.mean(axis=0) + np.array(way) @ box
            by_chain = moved + np.repeat([[0, 0, 0], [1, -1, 2]], 15, axis=0) @ box
            for positions in (wrapped(moved, box), by_chain):
                energy, forces = energy_and_forces(context, positions, groups={31})
                np.testing.assert_allclose(handle.last[0], expected_s, rtol=0, atol=1e-12 * np.abs(expected_s).max())
                assert energy == pytest.approx(expected, rel=1e-12)
                np.testing.assert_allclose(forces, expected_forces, rtol=0, atol=1e-11 * np.abs(expected_forces).max())


class TestBoxes:
    def test_box_that_changes_during_a_run(self, cv_file):
        """As under a barostat: the box of the Context counts, not that of the System."""
        system = make_system(box=BOXES["orthorhombic"])
        handle = GeomGNNCV(cv_file, PDB.topology, precision="double").addToSystem(system)
        context = make_context(system)
        expected = handle.getValue(context)[0]
        context.setPeriodicBoxVectors(*BOXES["triclinic"])
        context.setPositions(wrapped(POSITIONS, BOXES["triclinic"]))
        np.testing.assert_allclose(handle.getValue(context)[0], expected, rtol=1e-9)

    def test_periodic_is_decided_by_the_topology_or_by_hand(self, cv_file):
        topology = copy.deepcopy(PDB.topology)
        topology.setPeriodicBoxVectors(BOXES["orthorhombic"] * NM)
        assert GeomGNNCV(cv_file, topology).usesPeriodicBoundaryConditions()
        assert not GeomGNNCV(cv_file, topology, periodic=False).usesPeriodicBoundaryConditions()
        assert GeomGNNCV(cv_file, PDB.topology, periodic=True).usesPeriodicBoundaryConditions()

    def test_in_a_custom_cv_force(self, cv_file):
        topology = copy.deepcopy(PDB.topology)
        topology.setPeriodicBoxVectors(BOXES["triclinic"] * NM)
        force = openmm.CustomCVForce("q")
        force.addCollectiveVariable("q", GeomGNNCV(cv_file, topology, precision="double", engine="eager"))
        system = make_system(box=BOXES["triclinic"])
        system.addForce(force)
        context = make_context(system, wrapped(POSITIONS - POSITIONS.mean(axis=0), BOXES["triclinic"]))
        expected = value(cv_file, precision="double", engine="eager")[0]
        assert force.getCollectiveVariableValues(context)[0] == pytest.approx(expected, rel=1e-9)
        assert energy_and_forces(context)[0] == pytest.approx(expected, rel=1e-9)
