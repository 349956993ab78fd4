"""`GeomGNNCV` in copies of a System: XML, deepcopy, several forces, several Contexts."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import mdtraj
import numpy as np
import openmm
import pytest
from force_systems import BIAS, PDB, POSITIONS, energy_and_forces, in_water, make_context, make_system, value
from molecules import peptide, random_cv, random_encoder, with_water, wrapped
from openmm import app

from openmm_geomgnn import Encoder, GeomGNNCV
from openmm_geomgnn.cv.network import CollectiveVariable
from openmm_geomgnn.representation.periodic import MoleculeUnwrapper, SelectedMolecule, selected_part
from openmm_geomgnn.representation.selection import check_same_molecule, residue_table, select_atoms
from openmm_geomgnn.representation.windows import neighbours_by_number

SYSTEMS = ["vacuum", "water"]
BOX = np.diag([3.0, 3.0, 3.0])


def both_biases(cv_file, kind="vacuum", **options):
    """A System with a bias on all components and a force of one of them, its positions, and the handle of the bias."""
    topology, positions, box = PDB.topology, POSITIONS, None
    if kind == "water":
        _, topology, positions = in_water()
        box = 2.0 * np.eye(3)
        positions = wrapped(positions - positions[:22].mean(axis=0), box)  # the solute is cut
    system = make_system(topology, box)
    handle = GeomGNNCV(cv_file, topology, **options).addToSystem(system, BIAS)
    system.addForce(GeomGNNCV(cv_file, topology, 1, **options))
    return system, positions, handle


def read_back(xml):
    return openmm.XmlSerializer.deserialize(xml)


class TestCopies:
    @pytest.fixture(scope="class")
    def large(self, tmp_path_factory):
        """A CV with the encoder that ships."""
        path = tmp_path_factory.mktemp("large") / "ala2.cv"
        random_cv(mdtraj.Topology.from_openmm(PDB.topology), Encoder.load("et-64"), scale=0.2).save(path)
        return path

    def test_do_not_hold_the_network(self, large):
        system, positions, handle = both_biases(large, engine="eager")
        expected, expected_forces = energy_and_forces(make_context(system, positions))
        handle.setBiasState(BIAS.update(handle.getBiasState(), handle.last[0]))  # copies start again
        xml = openmm.XmlSerializer.serialize(system)
        assert len(xml) < os.path.getsize(large) / 50
        for again in (read_back(xml), copy.deepcopy(system)):
            energy, forces = energy_and_forces(make_context(again, positions))
            assert energy == pytest.approx(expected, rel=1e-9)
            np.testing.assert_allclose(forces, expected_forces, rtol=1e-6, atol=1e-6)

    @pytest.mark.parametrize("kind", SYSTEMS)
    def test_and_their_copies_evaluate_the_same(self, cv_file, kind):
        system, positions, _ = both_biases(cv_file, kind, precision="double", engine="eager")
        expected, expected_forces = energy_and_forces(make_context(system, positions))
        xml = openmm.XmlSerializer.serialize(system)
        for again in (read_back(xml), copy.deepcopy(system), copy.deepcopy(read_back(xml))):
            assert again.usesPeriodicBoundaryConditions() == (kind == "water")
            energy, forces = energy_and_forces(make_context(again, positions))
            assert energy == pytest.approx(expected, rel=1e-12)
            np.testing.assert_allclose(forces, expected_forces, rtol=0, atol=1e-12 * np.abs(expected_forces).max())
        assert len(openmm.XmlSerializer.serialize(read_back(xml))) == pytest.approx(len(xml), rel=0.01)

    def test_water_does_not_make_them_larger(self, cv_file):
        """A system of 30,000 atoms: its topology stays out."""
        forces = {}
        for n_waters in (0, 10_000):
            topology = copy.deepcopy(PDB.topology)
            chain = topology.addChain()
            for _ in range(n_waters):
                residue = topology.addResidue("HOH", chain)
                for name, symbol in (("O", "O"), ("H1", "H"), ("H2", "H")):
                    topology.addAtom(name, app.element.get_by_symbol(symbol), residue)
            forces[n_waters] = openmm.XmlSerializer.serialize(GeomGNNCV(cv_file, topology, engine="eager"))
        sizes = [len(xml) for xml in forces.values()]
        assert max(sizes) < 10_000 and abs(sizes[0] - sizes[1]) < 50

    @pytest.mark.slow
    def test_in_another_process(self, cv_file, tmp_path):
        system, positions, _ = both_biases(cv_file, "water", precision="double", engine="eager")
        (tmp_path / "system.xml").write_text(openmm.XmlSerializer.serialize(system))
        np.save(tmp_path / "positions.npy", positions)
        code = (
            "import json, numpy, openmm\n"
            "system = openmm.XmlSerializer.deserialize(open('system.xml').read())\n"
            "platform = openmm.Platform.getPlatformByName('Reference')\n"
            "context = openmm.Context(system, openmm.VerletIntegrator(0.001), platform)\n"
            "context.setPositions(numpy.load('positions.npy'))\n"
            "print(json.dumps(context.getState(getEnergy=True).getPotentialEnergy()._value))\n"
        )
        done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        expected, _ = energy_and_forces(make_context(system, positions))
        assert json.loads(done.stdout.splitlines()[-1]) == pytest.approx(expected, rel=1e-12)

    def test_of_a_dimer_are_joined_where_it_was(self, tmp_path):
        """Contacts come from windows, not from the topology alone."""
        topology = peptide([1, 2, 3], [1])
        centres = np.repeat([[0, 0, 0], [0.9, 0, 0], [1.8, 0, 0], [2.2, 0, 0]], 5, axis=0)
        whole = centres + np.random.default_rng(1).uniform(-0.05, 0.05, size=(20, 3))
        topology, everything = with_water(topology, whole)
        atoms = select_atoms(topology)
        reference = mdtraj.Trajectory(whole[None], topology.subset(np.arange(20))).atom_slice(atoms)
        path = tmp_path / "dimer.cv"
        random_cv(topology, window="space", reference=reference, scale=0.2).save(path)
        force = GeomGNNCV(path, topology, precision="double", engine="eager", periodic=True)
        expected = force.compute(everything)[0, 0]
        again = read_back(openmm.XmlSerializer.serialize(force))
        system = make_system(topology.to_openmm(), BOX)
        system.addForce(again)
        context = make_context(system, wrapped(everything + [1.0, 0.2, 2.9], BOX))
        assert energy_and_forces(context)[0] == pytest.approx(expected, rel=1e-12)
        unjoined = MoleculeUnwrapper(topology, atoms)(wrapped(everything, BOX)[atoms], BOX)
        assert not np.allclose(unjoined - unjoined[0], everything[atoms] - everything[atoms[0]])

    @pytest.mark.parametrize("change", ["overwritten", "missing"])
    def test_a_file_that_changed_is_noticed(self, cv_file, tmp_path, change):
        """At the first evaluation: OpenMM would crash if reading XML failed."""
        path = tmp_path / "ala2.cv"
        path.write_bytes(cv_file.read_bytes())
        xml = openmm.XmlSerializer.serialize(both_biases(path, engine="eager")[0])
        path.unlink()
        if change == "overwritten":
            random_cv(mdtraj.Topology.from_openmm(PDB.topology), random_encoder(seed=9)).save(path)
        context = make_context(read_back(xml))
        message = {"overwritten": "not the file this force was made with", "missing": "no collective variable file"}[change]
        with pytest.raises(openmm.OpenMMException, match=message):
            context.getState(getEnergy=True)

    def test_a_cv_without_a_file_is_copied_whole(self, cv_file):
        system = make_system()
        system.addForce(GeomGNNCV(CollectiveVariable.load(cv_file), PDB.topology, engine="eager"))
        expected = energy_and_forces(make_context(system))[0]
        assert energy_and_forces(make_context(copy.deepcopy(system)))[0] == pytest.approx(expected, rel=1e-9)

    def test_keep_where_frames_of_failures_go(self, cv_file, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        system = make_system()
        system.addForce(GeomGNNCV(cv_file, PDB.topology, engine="eager", failures="failures"))
        context = make_context(read_back(openmm.XmlSerializer.serialize(system)), np.full((22, 3), np.nan))
        with pytest.raises(openmm.OpenMMException, match="not finite"):
            context.getState(getEnergy=True)
        assert [path.name for path in (tmp_path / "failures").glob("*.pdb")] == ["geomgnn-failure-step-0.pdb"]


class TestMany:
    @pytest.mark.parametrize("kind", SYSTEMS)
    def test_contexts_of_one_system(self, cv_file, kind):
        system, positions, handle = both_biases(cv_file, kind, precision="double", engine="eager")
        contexts = [make_context(system, positions) for _ in range(3)]
        rng = np.random.default_rng(0)
        frames = [positions + 0.01 * rng.normal(size=positions.shape) for _ in contexts]
        for context, frame in zip(contexts, frames, strict=True):
            context.setPositions(frame)
        values = [handle.getValue(context)[0] for context in contexts]
        for context, found in zip(reversed(contexts), reversed(values), strict=True):
            np.testing.assert_allclose(handle.getValue(context)[0], found, rtol=1e-14)
        assert np.ptp(values, axis=0).min() > 1e-3
        state = BIAS.update(handle.getBiasState(), values[0])
        before = energy_and_forces(contexts[2])[0]
        handle.setBiasState(state)  # of all of them
        assert energy_and_forces(contexts[2])[0] > before

    def test_forces_of_one_file_in_one_system(self, cv_file):
        expected = value(cv_file, precision="double", engine="eager")
        system = make_system()
        made = [GeomGNNCV(cv_file, PDB.topology, k, precision="double", engine="eager") for k in (0, 1, 0)]
        for group, force in enumerate(made, start=1):
            force.setForceGroup(group)
            system.addForce(force)
        handles = [made[0].addToSystem(system, BIAS), made[1].addToSystem(system, BIAS)]
        pulled = openmm.CustomCVForce("3*q*p")
        for name, component in (("q", 0), ("p", 1)):
            pulled.addCollectiveVariable(
                name, GeomGNNCV(cv_file, PDB.topology, component, precision="double", engine="eager")
            )
        pulled.setForceGroup(4)
        system.addForce(pulled)
        assert {handle.forceGroup for handle in handles} == {31, 30}
        handles[1].setBiasState(BIAS.update(handles[1].getBiasState(), expected))
        for again in (system, copy.deepcopy(system)):
            context = make_context(again)
            energies = [energy_and_forces(context, groups={group})[0] for group in (1, 2, 3, 4)]
            np.testing.assert_allclose(energies, [*expected[[0, 1, 0]], 3 * expected.prod()], rtol=1e-9)
        context = make_context(system)
        assert handles[1].getValue(context)[1] > handles[0].getValue(context)[1]


class TestWhatIsPickled:
    def test_the_part_of_a_topology_has_all_that_a_cv_asks_for(self):
        """Of chains with gaps, insertion codes, residues without selected atoms, water before and after."""
        topology, _ = with_water(peptide([1, 2, 3, 52, 52, 53, 60], [5, 6], [7]), np.zeros((50, 3)), before=True)
        atoms = select_atoms(topology, "protein and name CA N O and not resSeq 2 and not (resSeq 52 and name N)")
        atoms = np.setdiff1d(atoms, [a.index for a in topology.residue(8).atoms])  # the second residue of number 52
        part, rows = selected_part(topology, atoms), np.arange(len(atoms))
        assert [str(atom) for atom in part.atoms] == [str(topology.atom(k)) for k in atoms]
        check_same_molecule(residue_table(topology, atoms), residue_table(part, rows))
        for context in (1, 2, 5):
            assert neighbours_by_number(part, rows, context) == neighbours_by_number(topology, atoms, context)
        chains = [[part.atom(k).residue.chain.index for k in rows], [topology.atom(k).residue.chain.index for k in atoms]]
        assert np.unique(chains[0], return_inverse=True)[1].tolist() == np.unique(chains[1], return_inverse=True)[1].tolist()
        bonds = {(a.index, b.index) for a, b in topology.subset(atoms).bonds}
        assert {(a.index, b.index) for a, b in part.bonds} == bonds and bonds

    @pytest.mark.parametrize("window", ["all", "sequence"])
    def test_a_cv_is_bound_to_it_alone(self, window):
        topology, xyz = with_water(peptide([1, 2, 3]), 0.3 * np.random.default_rng(0).normal(size=(15, 3)), before=True)
        cv = random_cv(topology, window=window)
        if window == "sequence":
            cv.spec = cv.spec.resolved(None)  # as in files of version 1
        bound = cv.bind(topology, "double", "eager")
        again = cv.bind(bound.molecule, "double", "eager")
        assert again.atoms.tolist() == bound.atoms.tolist() and again.molecule.n_atoms_total == topology.n_atoms
        np.testing.assert_array_equal(again.compute(xyz), bound.compute(xyz))

    def test_nothing_else(self, cv_file):
        state = GeomGNNCV(cv_file, PDB.topology)._evaluation.__getstate__()
        assert state.keys() == {"source", "component", "bias", "periodic", "failures"}
        source = vars(state["source"])
        assert source["cv"] is None and isinstance(source["molecule"], SelectedMolecule)
        assert all(isinstance(part, str | Path) for part in source.values() if part not in (None, source["molecule"]))
