"""Students: their coordinates, their kernels, their file, and what their value does not depend on."""

import json
import os
import subprocess
import sys

import mdtraj
import numpy as np
import pytest
import torch
from molecules import ALA2, BOXES, peptide, random_cv, rotation, with_water, wrapped
from safetensors import safe_open
from safetensors.torch import save_file
from student_cases import BONDS, FRAME, HEAVY, PAIRS, TORSIONS, frames, student

from openmm_geomgnn.cv import file as cv_file
from openmm_geomgnn.cv.network import CollectiveVariable
from openmm_geomgnn.cv.students.coordinates import (
    COLLINEAR,
    InternalCoordinates,
    nearest_pairs,
    proper_torsions,
    rotatable_bonds,
)
from openmm_geomgnn.cv.students.cv import StudentCV, named_atoms
from openmm_geomgnn.cv.students.network import StudentNetwork
from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.representation.selection import residue_table, select_atoms
from openmm_geomgnn.testing import CVSuite

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cv():
    return student()


@pytest.fixture(scope="module", params=["numba", "eager"])
def bound(cv, request):
    if request.param == "numba":
        pytest.importorskip("numba")
    return cv.bind(FRAME.topology, engine=request.param)


class TestPhysics(CVSuite):
    mirror_images = "different"

    def make(self):
        return student()

    def structure(self):
        return FRAME


class TestCoordinates:
    coordinates = InternalCoordinates(TORSIONS, PAIRS)
    trajectory = mdtraj.Trajectory(frames(20, spread=0.03), FRAME.topology)
    pos = torch.tensor(10.0 * trajectory.xyz[:, HEAVY].astype(np.float64))

    def test_torsions_are_those_of_mdtraj(self):
        values = self.coordinates(self.pos).numpy()
        cosines, sines = np.split(values[:, : 2 * len(TORSIONS)], 2, axis=1)
        expected = mdtraj.compute_dihedrals(self.trajectory, HEAVY[TORSIONS], opt=False)
        difference = np.arctan2(sines, cosines) - expected
        assert np.abs((difference + np.pi) % (2 * np.pi) - np.pi).max() < 1e-4
        # only near a straight angle are they less than those of the angle
        assert np.median(1.0 - np.hypot(cosines, sines)) < 0.005 and np.hypot(cosines, sines).max() <= 1.0

    def test_distances_are_those_of_mdtraj(self):
        expected = 10.0 * mdtraj.compute_distances(self.trajectory, HEAVY[PAIRS], opt=False)
        np.testing.assert_allclose(self.coordinates(self.pos)[:, 2 * len(TORSIONS) :], expected, atol=1e-4)

    def test_all_chains_of_three_bonds_once(self):
        """Heavy atoms of alanine dipeptide: 2 about each amide bond (two of them), 2 about N-CA, 4 about CA-C."""
        names = [FRAME.topology.atom(int(index)).name for index in HEAVY]
        middles = sorted("-".join(sorted((names[b], names[c]))) for _, b, c, _ in TORSIONS)
        assert middles == ["C-CA"] * 4 + ["C-N"] * 4 + ["CA-N"] * 2
        assert all(len(set(row)) == 4 for row in TORSIONS.tolist())
        ring = [(0, 1), (1, 2), (2, 0)]
        assert len(proper_torsions(ring, 3)) == 0  # the ends of the chain are one atom
        assert len(proper_torsions([], 5)) == 0

    def test_gradients(self):
        inputs, *local = self.coordinates.with_gradients(self.pos)
        shape = len(inputs), 2, inputs.shape[1]
        weights = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        pos = self.pos.clone().requires_grad_(True)
        found = self.coordinates.gradient(weights, *local, len(HEAVY))
        for row in range(2):
            (expected,) = torch.autograd.grad((self.coordinates(pos) * weights[:, row]).sum(), pos)
            assert (found[:, row] - expected).abs().max() < 1e-12 * expected.abs().max()

    def test_smooth_where_atoms_lie_on_a_line_or_coincide(self):
        """Through a straight angle nothing jumps, and gradients stay bounded."""
        line = torch.tensor([[0.0, 1.5, 0.0], [0, 0, 0], [1.5, 0, 0], [3.0, 0, 0]], dtype=torch.float64)
        coordinates = InternalCoordinates([[0, 1, 2, 3]], [[2, 3]])
        heights = torch.linspace(-0.3, 0.3, 4001, dtype=torch.float64)
        pos = line.repeat(len(heights), 1, 1)
        pos[:, 3, 1] = heights
        pos.requires_grad_(True)
        values = coordinates(pos)
        (gradient,) = torch.autograd.grad(values[:, :2].sum(), pos)
        assert values[2000, :2].abs().max() < 1e-12 and torch.isfinite(gradient).all()
        assert gradient.abs().max() < 2 * 1.5 / COLLINEAR**0.5 and values.diff(dim=0).abs().max() < 0.01
        touching = torch.zeros(1, 4, 3, dtype=torch.float64, requires_grad=True)
        (gradient,) = torch.autograd.grad(coordinates(touching).sum(), touching)
        assert torch.isfinite(gradient).all()

    def test_which_distances(self):
        pos = 10 * frames(4)[:, HEAVY]
        few = nearest_pairs(pos, BONDS, PAIRS, 25)
        ends = {(a, c) for a, _, c, _ in TORSIONS.tolist()} | {(b, d) for _, b, _, d in TORSIONS.tolist()}
        assert {tuple(sorted(pair)) for pair in {*BONDS, *ends}} <= set(map(tuple, few.tolist()))
        assert len(few) == 25 and few.tolist() == sorted(few.tolist())
        np.testing.assert_array_equal(nearest_pairs(pos, BONDS, PAIRS, 1000), PAIRS)
        assert len(nearest_pairs(pos, BONDS, PAIRS, 0)) == 0

    def test_rotatable_bonds(self):
        turning = rotatable_bonds(BONDS, len(HEAVY))
        assert len(turning) == 4  # two amides, phi, psi
        for a, b, rows in turning:
            assert a not in rows and b not in rows and len(rows) <= len(HEAVY) // 2
        hexagon = [(k, (k + 1) % 6) for k in range(6)]
        assert rotatable_bonds(hexagon, 6) == []


class TestValue:
    def test_gradient_is_that_of_finite_differences(self, bound):
        pos = 10 * frames(1, seed=4)[0, HEAVY]
        weights = np.array([0.7, -1.3])
        psi, vjp = bound.value_and_vjp(pos)
        bound.value_and_vjp(pos + 0.3)  # another evaluation in between
        found = vjp(weights)
        assert psi.shape == (2,) and found.shape == pos.shape and psi.dtype == found.dtype == np.float64
        expected, h = np.zeros(pos.shape), 1e-4
        for index in np.ndindex(pos.shape):
            shift = np.zeros(pos.shape)
            shift[index] = h
            values = [weights @ bound.value_and_vjp(pos + k * shift)[0] for k in (-2, -1, 1, 2)]
            expected[index] = np.dot([1, -8, 8, -1], values) / (12 * h)
        assert np.abs(found - expected).max() < 1e-6 * np.abs(expected).max()
        np.testing.assert_allclose(vjp(2 * weights), 2 * found, rtol=1e-12)

    def test_all_ways_to_the_value_agree(self, bound):
        xyz = frames()
        expected = bound.compute(xyz)
        pos = torch.tensor(10 * xyz[:, HEAVY], requires_grad=True)
        np.testing.assert_allclose(bound(pos).detach(), expected, rtol=1e-12)
        for frame, psi in zip(pos, expected, strict=True):
            np.testing.assert_allclose(bound.single(frame).detach(), psi, rtol=1e-12)
            found, vjp = bound.value_and_vjp(frame.detach().numpy())
            np.testing.assert_allclose(found, psi, rtol=1e-12)
            (gradient,) = torch.autograd.grad(bound.single(frame)[0], frame)
            np.testing.assert_allclose(vjp(np.array([1.0, 0.0])), gradient, atol=1e-13)
        done = []
        np.testing.assert_array_equal(bound.compute_whole(10 * torch.tensor(xyz[:, HEAVY]), done.append), expected)
        assert sum(done) == len(xyz) and bound.dimension == 2 and expected.dtype == np.float64

    def test_moved_and_turned(self, bound):
        xyz = frames()
        turned = (xyz - xyz.mean()) @ rotation(5).T + [3.0, -40.0, 7.0]
        np.testing.assert_allclose(bound.compute(turned), bound.compute(xyz), atol=1e-10)

    def test_mirror_images_are_told_apart(self, bound):
        """Sines of torsions are odd, whatever the teacher was."""
        xyz = frames()
        assert np.abs(bound.compute(xyz @ rotation(6, proper=False).T) - bound.compute(xyz)).min() > 1e-3
        coordinates = bound.coordinates(torch.tensor(xyz[:, HEAVY]))
        mirrored = bound.coordinates(torch.tensor(-xyz[:, HEAVY]))
        count = len(TORSIONS)
        torch.testing.assert_close(mirrored[:, count : 2 * count], -coordinates[:, count : 2 * count])
        torch.testing.assert_close(mirrored[:, :count], coordinates[:, :count])

    @pytest.mark.parametrize("box", BOXES.values(), ids=BOXES)
    def test_cut_by_a_periodic_box(self, bound, box):
        xyz = frames(4)
        torn = mdtraj.Trajectory(np.array([wrapped(frame + [0.1, 0.2, 0.3], box) for frame in xyz]), FRAME.topology)
        torn.unitcell_vectors = np.tile(box, (len(xyz), 1, 1))
        np.testing.assert_allclose(bound.compute(torn), bound.compute(xyz), atol=1e-4)

    def test_bounded_however_far_from_the_data(self, cv, bound):
        far = np.random.default_rng(1).normal(size=(50, 22, 3)) * np.logspace(-3, 4, 50)[:, None, None]
        found = bound.compute(far)
        assert np.isfinite(found).all() and (np.abs(found) <= cv.network.largest.numpy()).all()
        largest = max(np.abs(bound.value_and_vjp(10 * pos[HEAVY])[1](np.ones(2))).max() for pos in far[-10:])
        assert largest < 1e-2

    def test_unfinished_numbers_are_seen(self, bound):
        pos = 10 * frames(1)[0, HEAVY]
        pos[3, 1] = np.nan
        assert np.isnan(bound.value_and_vjp(pos)[0]).all()


def test_compiling_is_announced(cv, tmp_path):
    """Once: afterwards the kernels are in a folder, or in this process."""
    pytest.importorskip("numba")
    said = []
    for _ in range(2):
        code = (
            "import sys; from openmm_geomgnn.cv.network import CollectiveVariable\n"
            "bound = CollectiveVariable.load(sys.argv[1]).bind(sys.argv[2])\n"
            "bound.warm_up(lambda: print('compiling'))\n"
            "bound.warm_up(lambda: print('again'))"
        )
        cv.save(tmp_path / "student.cv")
        environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "cache")}
        done = subprocess.run(
            [sys.executable, "-c", code, tmp_path / "student.cv", ALA2], env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        said.append(done.stdout.split())
    assert said == [["compiling"], []]


class TestFile:
    def test_round_trip(self, cv, tmp_path):
        cv.save(tmp_path / "student.cv")
        again = CollectiveVariable.load(tmp_path / "student.cv")
        assert isinstance(again, StudentCV) and again.dimension == 2 and again.lagtime == 5.0
        assert again.training_information == {"note": "random"} and again.atoms == cv.atoms
        for engine in ("auto", "eager"):
            found = [other.bind(FRAME.topology, engine=engine).compute(frames()) for other in (cv, again)]
            np.testing.assert_array_equal(*found)
        assert again.content_hash() == cv.content_hash()
        again.network.skip.weight[0, 0] += 1e-9
        assert again.content_hash() != cv.content_hash()

    def test_nothing_is_pickled(self, cv, tmp_path, monkeypatch):
        cv.save(tmp_path / "student.cv")
        monkeypatch.setattr("pickle.load", None)
        monkeypatch.setattr(torch, "load", None)
        CollectiveVariable.load(tmp_path / "student.cv")

    @pytest.mark.parametrize(
        "change",
        [
            lambda metadata, tensors: tensors["coordinates.torsions"][0, 0].add_(1),
            lambda metadata, tensors: tensors["network.mean"].add_(1e-6),
            lambda metadata, tensors: metadata["atoms"][0].__setitem__(1, "CB"),
            lambda metadata, tensors: metadata.update(kind="network"),
        ],
        ids=["torsion", "mean", "atom", "kind"],
    )
    def test_changed_file_is_an_error(self, cv, tmp_path, change):
        cv.save(tmp_path / "student.cv")
        metadata, tensors = content(tmp_path / "student.cv")
        change(metadata, tensors)
        save_file(tensors, tmp_path / "changed.cv", metadata={"cv": json.dumps(metadata)})
        with pytest.raises(GeomGNNError, match="changed or damaged after it was written"):
            CollectiveVariable.load(tmp_path / "changed.cv")

    def test_files_of_version_2_are_read(self, tmp_path):
        """Before students there was one kind of CV."""
        cv = random_cv(FRAME.topology, lagtime=3.0)
        cv.save(tmp_path / "new.cv")
        metadata, tensors = content(tmp_path / "new.cv")
        assert metadata["version"] == cv_file.VERSION and metadata.pop("kind") == "network"
        metadata["version"] = 2
        del metadata["checksum"]
        metadata["content_hash"] = cv_file.content_hash(tensors, metadata)
        save_file(tensors, tmp_path / "old.cv", metadata={"cv": json.dumps(metadata)})
        old = CollectiveVariable.load(tmp_path / "old.cv")
        assert isinstance(old, CollectiveVariable) and old.lagtime == 3.0
        found = [other.bind(FRAME.topology, engine="eager").compute(frames()) for other in (old, cv)]
        np.testing.assert_array_equal(*found)


def content(path):
    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()["cv"]), {name: file.get_tensor(name) for name in file.keys()}


class TestMolecule:
    @pytest.mark.parametrize("before", [False, True], ids=["after", "before"])
    def test_solvent_does_not_matter(self, cv, before):
        topology, _ = with_water(FRAME.topology, FRAME.xyz[0], before)
        bound = cv.bind(topology)
        found = bound.compute(np.array([with_water(FRAME.topology, xyz, before)[1] for xyz in frames()]))
        np.testing.assert_allclose(found, cv.bind(ALA2).compute(frames()), rtol=1e-12)
        again = cv.bind(bound.molecule)  # as a force does that was read from XML
        assert again.atoms.tolist() == bound.atoms.tolist()

    def test_order_of_atoms_in_a_residue_does_not_matter(self, cv):
        order = [5, 4, 0, 1, 2, 3, 12, 10, 8, 6, 7, 9, 11, 13, 14, 15, 21, 18, 16, 17, 19, 20]
        topology = mdtraj.Topology()
        chain = topology.add_chain()
        for residue in FRAME.topology.residues:
            new = topology.add_residue(residue.name, chain)
            for k in (k for k in order if FRAME.topology.atom(k).residue is residue):
                topology.add_atom(FRAME.topology.atom(k).name, FRAME.topology.atom(k).element, new)
        found = cv.bind(topology).compute(frames()[:, order])
        np.testing.assert_allclose(found, cv.bind(FRAME.topology).compute(frames()), rtol=1e-12)

    def test_another_residue_is_refused(self, cv):
        topology = FRAME.topology.copy()
        topology.residue(1).name = "SER"
        with pytest.raises(GeomGNNError, match="residue 2 of the selection was ALA of chain 1 .* and is SER"):
            cv.bind(topology)

    def test_other_names_are_refused(self, cv):
        topology = FRAME.topology.copy()
        topology.atom(HEAVY[4]).name = "CX"
        with pytest.raises(GeomGNNError, match="Residue 2 of the selection, ALA, has no atom CA here: .*N, CX"):
            cv.bind(topology)
        topology.atom(HEAVY[4]).name = "N"
        with pytest.raises(GeomGNNError, match="Residue 2 of the selection has several atoms of the name N"):
            cv.bind(topology)

    def test_wrong_settings_are_refused(self, cv):
        for settings, message in [
            ({"precision": "half"}, "must be 'single' or 'double', but was 'half'"),
            ({"engine": "nimba"}, "Unknown engine 'nimba'.*Did you mean 'numba'"),
        ]:
            with pytest.raises(GeomGNNError, match=message):
                cv.bind(FRAME.topology, **settings)

    def test_chains_of_a_complex_stay_together(self):
        """What the box tears apart is joined where the teacher's windows were near each other."""
        topology = peptide([1, 2], [1, 2])
        atoms = select_atoms(topology)
        xyz = (
            np.random.default_rng(2).normal(size=(topology.n_atoms, 3)) * 0.05 + np.arange(topology.n_atoms)[:, None] * 0.02
        )
        coordinates = InternalCoordinates([], [[0, 15]])
        torch.manual_seed(0)
        cv = StudentCV(
            StudentNetwork(1, 4, 1), coordinates, named_atoms(topology, atoms), residue_table(topology, atoms), near=[[4, 8]]
        )
        bound, box = cv.bind(topology), np.diag([2.0, 2.0, 2.0])
        torn = mdtraj.Trajectory(wrapped(xyz + 1.9, box)[None], topology)
        torn.unitcell_vectors = box[None]
        np.testing.assert_allclose(bound.compute(torn), bound.compute(xyz), atol=1e-4)
