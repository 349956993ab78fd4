"""Windows in a CV's file: what they were made by is not needed where it is used, and files of version 1 stay the same."""

import json
from dataclasses import replace

import mdtraj
import numpy as np
import pytest
from molecules import ALA2, ala2, peptide, random_cv, wrapped
from safetensors import safe_open
from safetensors.torch import save_file

from openmm_geomgnn.cv import file as cv_file
from openmm_geomgnn.cv.fit import FitSettings, fit_cv
from openmm_geomgnn.cv.network import CollectiveVariable
from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.representation.selection import residue_table, select_atoms
from openmm_geomgnn.representation.spec import TokenSpec


def of_version_1(path):
    """The file as version 1 would have written it."""
    with safe_open(path, framework="pt") as file:
        metadata = json.loads(file.metadata()["cv"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    for name in ("radius", "neighbours", "content_hash", "checksum"):
        del metadata[name]
    metadata["version"] = 1
    metadata["content_hash"] = cv_file.content_hash(tensors, metadata)
    old = path.with_name("old.cv")
    save_file(tensors, old, metadata={"cv": json.dumps(metadata)})
    return old


def frames(topology, n=5, seed=0):
    """(n, atoms, 3) in nm: chains of residues along lines, disturbed."""
    rng = np.random.default_rng(seed)
    centres = np.array([[0.35 * atom.residue.index, 0.4 * (atom.residue.index % 2), 0] for atom in topology.atoms])
    return centres + rng.normal(size=(n, topology.n_atoms, 3)) * 0.1


@pytest.mark.parametrize("window", ["all", "sequence"])
def test_files_of_version_1_give_the_same_values(tmp_path, window):
    for topology in (ala2().topology, peptide([1, 2, 3, 4], [5, 6])):
        cv = random_cv(topology, window=window, context=2)
        cv.save(tmp_path / "new.cv")
        again = CollectiveVariable.load(of_version_1(tmp_path / "new.cv"))
        assert again.spec.neighbours is None and again.spec.window == window
        xyz = frames(topology)
        expected = cv.bind(topology, engine="eager").compute(xyz)
        np.testing.assert_array_equal(again.bind(topology, engine="eager").compute(xyz), expected)


def test_files_of_version_1_go_by_residue_numbers(tmp_path):
    topology = peptide([1, 2, 3, 4])
    topology.residue(2).resSeq, topology.residue(3).resSeq = 9, 10  # bonded, but numbered with a gap
    cv = random_cv(topology, window="sequence")
    assert cv.spec.neighbours == [[0, 1], [0, 1, 2], [1, 2, 3], [2, 3]]
    cv.save(tmp_path / "new.cv")
    old = CollectiveVariable.load(of_version_1(tmp_path / "new.cv")).bind(topology, engine="eager")
    assert np.bincount(old.tokenizer.windows.graph).tolist() == [8, 8, 8, 8]


def test_bonds_are_not_needed_where_a_cv_is_used(tmp_path):
    topology = peptide([1, 2, 3, 4])
    topology.add_bond(topology.residue(3).atom("C"), topology.residue(0).atom("N"))
    cv = random_cv(topology, window="sequence")
    expected = cv.bind(topology, engine="eager").compute(frames(topology))
    cv.save(tmp_path / "ring.cv")
    bare = peptide([1, 2, 3, 4])
    bare._bonds = []
    again = CollectiveVariable.load(tmp_path / "ring.cv")
    np.testing.assert_array_equal(again.bind(bare, engine="eager").compute(frames(topology)), expected)
    assert again.spec.neighbours == [[0, 1, 3], [0, 1, 2], [1, 2, 3], [0, 2, 3]]


def test_a_reference_is_not_needed_where_a_cv_is_used(tmp_path):
    topology = peptide([1, 2, 3], [1, 2])
    xyz, atoms = frames(topology), select_atoms(topology)
    reference = mdtraj.Trajectory(xyz[0], topology).atom_slice(atoms)
    cv = random_cv(topology, window="space", radius=0.45, reference=reference)
    assert cv.spec.neighbours[0] != list(range(5)) and max(map(len, cv.spec.neighbours)) > 1
    cv.save(tmp_path / "space.cv")
    again = CollectiveVariable.load(tmp_path / "space.cv")
    assert again.spec == cv.spec and (cv.spec.window, cv.spec.radius) == ("space", 0.45)
    expected = cv.bind(topology, engine="eager").compute(xyz)
    np.testing.assert_array_equal(again.bind(topology, engine="eager").compute(xyz), expected)
    # chains that the box has torn apart: their windows say which residues are near
    box = np.diag([4.0, 4.0, 4.0])
    torn = mdtraj.Trajectory(np.array([wrapped(frame + [1.0, 3.9, 2.0], box) for frame in xyz]), topology)
    torn.unitcell_vectors = np.tile(box, (len(xyz), 1, 1))
    np.testing.assert_allclose(again.bind(topology, engine="eager").compute(torn), expected, atol=1e-4)
    with pytest.raises(GeomGNNError, match="not that of the CV file"):
        again.bind(peptide([1, 2, 3], [1]))


class TestFit:
    topology = ala2().topology
    rng = np.random.default_rng(3)
    xyz = ala2().xyz[0] + np.cumsum(rng.normal(size=(300, 22, 3)), axis=0) * 2e-3 + rng.normal(size=(300, 22, 3)) * 0.005
    trajectory = mdtraj.Trajectory(xyz, topology)
    settings = FitSettings(1.0, 1.0, pca=5, softening=0.0, tokens=TokenSpec(window="space", radius=0.2))

    def with_reference(self, path):
        return replace(self.settings, tokens=replace(self.settings.tokens, reference=str(path)))

    @pytest.mark.slow
    def test_the_first_frame_is_the_reference(self):
        cv = fit_cv([self.trajectory], self.topology, self.settings)
        assert cv.spec.neighbours == [[0, 1], [0, 1, 2], [1, 2]] and (cv.spec.window, cv.spec.radius) == ("space", 0.2)
        assert np.isfinite(cv.bind(self.topology).compute(self.xyz)).all()

    @pytest.mark.slow
    def test_a_structure_may_be_the_reference(self, tmp_path):
        far = mdtraj.Trajectory(self.xyz[:1].copy(), self.topology)
        far.xyz[0, 16:] += 1.0  # NME is carried away
        far.save_pdb(str(tmp_path / "far.pdb"))
        cv = fit_cv([self.trajectory], self.topology, self.with_reference(tmp_path / "far.pdb"))
        assert cv.spec.neighbours == [[0, 1], [0, 1], [2]]
        with pytest.raises(GeomGNNError, match="There is no topology file .*none.pdb"):
            fit_cv([self.trajectory], self.topology, self.with_reference(tmp_path / "none.pdb"))

    def test_wrong_topologies_are_errors(self):
        with pytest.raises(GeomGNNError, match="it has 0 ALA instead of 1"):
            fit_cv([self.trajectory.atom_slice([0, 1, 2])], ALA2, self.settings)


def test_table_of_a_complex_is_of_what_the_network_sees():
    topology = peptide([1, 2], [1])
    topology.residue(2).name = "LIG"
    atoms = select_atoms(topology, "(protein or resname LIG) and not element H")
    counts = {"N": 1, "C": 2, "O": 1}
    table = [row[:3] for row in residue_table(topology, atoms)]
    assert table == [[0, "GLY", counts], [0, "GLY", counts], [1, "LIG", counts]]
