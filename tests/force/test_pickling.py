"""What of ours is pickled, in XML of OpenMM above all: under names that stay, and restored or refused, never by a crash."""

import copy
import pickle
import pickletools
import re

import mdtraj
import numpy as np
import openmm
import pytest
import torch
from force_systems import BIAS, PDB, POSITIONS, energy_and_forces, make_context, make_system
from molecules import random_cv

from openmm_geomgnn import GeomGNNCV, pickling
from openmm_geomgnn.cv.network import CollectiveVariable
from openmm_geomgnn.cv.students.coordinates import InternalCoordinates
from openmm_geomgnn.cv.students.cv import StudentCV, named_atoms
from openmm_geomgnn.cv.students.network import StudentNetwork
from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.force.backends import python_force, python_torch_force
from openmm_geomgnn.representation.selection import residue_table, select_atoms
from openmm_geomgnn.sampling import OPES

TOPOLOGY = mdtraj.Topology.from_openmm(PDB.topology)


def random_student():
    atoms = select_atoms(TOPOLOGY)
    coordinates = InternalCoordinates([[0, 1, 2, 3]], [[0, 4], [1, 5]])
    torch.manual_seed(1)
    network = StudentNetwork(len(coordinates), 4, 2)
    return StudentCV(network, coordinates, named_atoms(TOPOLOGY, atoms), residue_table(TOPOLOGY, atoms))


KINDS = {
    "network": lambda: random_cv(TOPOLOGY, scale=0.2),
    "windows": lambda: random_cv(TOPOLOGY, scale=0.2, window="sequence"),
    "student": random_student,
}


def modules_named(data):
    """The modules of ours that a pickle names."""
    strings = {argument for _, argument, _ in pickletools.genops(data) if isinstance(argument, str)}
    return {text for text in strings if re.match(r"(openmm_geomgnn|torchmdnet_ext)\b", text)}


def pickles_in(xml):
    return [bytes.fromhex(text) for text in re.findall(r'function="([0-9a-f]+)"', xml)]


@pytest.fixture(scope="module", params=KINDS)
def cv(request):
    return KINDS[request.param]()


@pytest.mark.parametrize("saved", [True, False], ids=["of a file", "in memory"])
class TestForces:
    def biased(self, cv, saved, folder):
        """A System with a bias and a component as forces; the handle of the bias."""
        if saved:
            cv.save(folder / "x.cv")
            cv = folder / "x.cv"
        system = make_system()
        handle = GeomGNNCV(cv, PDB.topology, engine="eager").addToSystem(system, BIAS)
        system.addForce(GeomGNNCV(cv, PDB.topology, 1, engine="eager"))
        return system, handle

    def test_name_one_module_of_ours(self, cv, saved, tmp_path):
        system, handle = self.biased(cv, saved, tmp_path)
        found = pickles_in(openmm.XmlSerializer.serialize(system))
        assert len(found) == 2
        for kind in (python_force, python_torch_force):
            found.append(pickle.dumps(kind.Callback(handle._evaluation)))
        for data in found:
            assert modules_named(data) == {pickling.__name__}

    def test_evaluate_to_the_same_numbers_again(self, cv, saved, tmp_path):
        system, _ = self.biased(cv, saved, tmp_path)
        expected, expected_forces = energy_and_forces(make_context(system))
        again = openmm.XmlSerializer.deserialize(openmm.XmlSerializer.serialize(system))
        for each in (again, copy.deepcopy(again)):
            energy, forces = energy_and_forces(make_context(each))
            assert energy == expected
            np.testing.assert_array_equal(forces, expected_forces)


def test_every_class_is_pickled_by_its_name(cv):
    handle = GeomGNNCV(cv, PDB.topology, engine="eager").addToSystem(make_system(), OPES(barrier=30, pace=10))
    data = pickle.dumps([kind.Callback(handle._evaluation) for kind in (python_force, python_torch_force)])
    strings = {argument for _, argument, _ in pickletools.genops(data) if isinstance(argument, str)}
    assert pickling.CLASSES.keys() <= strings


def test_a_cv_in_bytes_is_the_one_in_its_file(cv, tmp_path):
    cv.save(tmp_path / "x.cv")
    data = cv.to_bytes()
    assert data == (tmp_path / "x.cv").read_bytes()
    again = CollectiveVariable.from_bytes(data)
    assert type(again) is type(cv) and again.content_hash() == cv.content_hash()
    pos = torch.tensor(POSITIONS[None])
    np.testing.assert_array_equal(again.bind(TOPOLOGY).compute(pos), cv.bind(TOPOLOGY).compute(pos))
    with pytest.raises(GeomGNNError, match="The copy cannot be read as a collective variable"):
        CollectiveVariable.from_bytes(data[: len(data) // 2], "The copy")
    with pytest.raises(GeomGNNError, match="The copy was changed or damaged"):
        CollectiveVariable.from_bytes(data[:-1] + bytes([data[-1] ^ 1]), "The copy")


def test_xml_from_when_names_were_introduced_is_still_read(repository):
    """A bias in its initial state, on a CV in memory."""
    (data,) = pickles_in((repository / "tests/data/xml/bias.xml").read_text(encoding="utf-8"))
    evaluation = pickle.loads(data).evaluation  # not by OpenMM, which crashes if this fails
    assert evaluation.bias == BIAS
    s, energy, forces = evaluation.evaluate(POSITIONS[evaluation.source.molecule.atoms], None, 0)
    np.testing.assert_allclose(s, [0.68950834, 0.04246244], rtol=1e-6)
    assert energy == -30.0 and not forces.any()


class Subclass(OPES):
    pass


def test_a_subclass_is_pickled_by_its_module():
    again = pickle.loads(pickle.dumps(Subclass(barrier=30, pace=10)))
    assert type(again) is Subclass and again == Subclass(barrier=30, pace=10)


def test_a_class_is_where_the_table_says():
    with pytest.raises(TypeError, match="test_pickling:Subclass is pickled as 'OPES', but CLASSES has"):
        pickling.pickled_as("OPES")(Subclass)


class TestOfAnotherVersion:
    """OpenMM crashes if an exception is raised while it reads XML, so the first evaluation raises it."""

    @pytest.mark.parametrize("name", ["PythonForce callback", "evaluation", "source", "molecule", "OPES"])
    def test_a_kind_it_does_not_know(self, cv_file, monkeypatch, name):
        system = make_system()
        GeomGNNCV(cv_file, PDB.topology, engine="eager").addToSystem(system, BIAS)
        xml = openmm.XmlSerializer.serialize(system)
        monkeypatch.delitem(pickling.CLASSES, name)
        context = make_context(openmm.XmlSerializer.deserialize(xml))
        message = f"another version of openmm-geomgnn: its {name} cannot be restored here .*GeomGNNCV"
        with pytest.raises(openmm.OpenMMException, match=message):
            context.getState(getEnergy=True)

    def test_it_can_be_copied(self):
        unreadable = pickling.restore("a kind of tomorrow", {})
        for each in (copy.deepcopy(unreadable), pickle.loads(pickle.dumps(unreadable))):
            with pytest.raises(GeomGNNError, match="its a kind of tomorrow cannot be restored"):
                each.bind()
