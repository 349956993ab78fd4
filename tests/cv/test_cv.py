"""The collective variable: its file, the molecules it accepts, and what its value does not depend on."""

import json

import mdtraj
import numpy as np
import pytest
import torch
from cv_files import changed
from mdtraj.core import element
from molecules import ALA2, BOXES, CUTOFF, TRANSFORMER, ala2, random_cv, random_encoder, with_water, wrapped
from openmm import app, unit
from safetensors import safe_open
from safetensors.torch import save_file

from openmm_geomgnn.cv import file as cv_file
from openmm_geomgnn.cv.network import CollectiveVariable
from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.testing import CVSuite
from openmm_geomgnn.testing.numerics import relative

FRAME = ala2()
# encoder, mixer and window of the CVs that all tests of the value run with
KINDS = {
    "transformer": (TRANSFORMER, "none", "all"),
    "visnet": ("visnet", "mlp", "all"),
    "windows": (TRANSFORMER, "attention", "sequence"),
}
PRECISIONS = {"single": 1e-5, "double": 1e-10}


def frames(n=6, seed=0, spread=0.02):
    """Deformed conformations (n, 22, 3) in nm."""
    noise = np.random.default_rng(seed).normal(size=(n, 22, 3))
    return FRAME.xyz[0].astype(np.float64) + spread * noise


def make(kind, topology=FRAME.topology, **options):
    model, mixer, window = KINDS[kind]
    return random_cv(topology, random_encoder(model), mixer=mixer, window=window, **options)


@pytest.fixture(scope="module", params=KINDS)
def cv(request):
    return make(request.param)


@pytest.fixture(scope="module")
def bound(cv):
    return {precision: cv.bind(FRAME.topology, precision, "eager") for precision in PRECISIONS}


@pytest.fixture
def written(cv, tmp_path):
    cv.save(tmp_path / "ala2.cv")
    return tmp_path / "ala2.cv"


def positions(n=4):
    """Deformed conformations (n, 10, 3) in angstrom of the heavy atoms."""
    return 10 * torch.from_numpy(frames(n)[:, [0, 4, 5, 6, 8, 10, 11, 12, 16, 18]])


class TestFile:
    def test_round_trip_gives_the_same_numbers(self, cv, bound, written):
        again = CollectiveVariable.load(written)
        for precision in PRECISIONS:
            found = again.bind(FRAME.topology, precision, "eager").compute(frames())
            np.testing.assert_array_equal(found, bound[precision].compute(frames()))
        np.testing.assert_array_equal(again.singular_values, cv.singular_values)

    def test_round_trip_keeps_the_settings(self, tmp_path):
        training = {"scores": [1.5, None], "frames": [10], "timescales_ps": [None, 3.5]}
        options = {"selection": "protein and name CA C N", "window": "sequence", "context": 2, "pooling": "mean"}
        cv = random_cv(FRAME.topology, dimension=3, mixer="mlp", lagtime=12.5, training=training, **options)
        cv.save(tmp_path / "a.cv")
        again = CollectiveVariable.load(tmp_path / "a.cv")
        for name in ("spec", "selection", "lagtime", "molecule", "dimension"):
            assert getattr(again, name) == getattr(cv, name)
        assert again.training_information == training and again.encoder.training_information == {"seed": 5}
        assert again.mixer.settings == cv.mixer.settings and again.encoder.name == "random"
        assert [file.name for file in tmp_path.iterdir()] == ["a.cv"]  # nothing temporary is left behind

    def test_nothing_is_pickled(self, written, monkeypatch):
        monkeypatch.setattr("pickle.Unpickler", None)
        monkeypatch.setattr("pickle.load", None)
        monkeypatch.setattr(torch, "load", None)
        CollectiveVariable.load(written)

    def test_hash_is_of_what_decides_the_value(self, written):
        def content_hash(path):
            with safe_open(path, framework="pt") as file:
                return json.loads(file.metadata()["cv"])["content_hash"]

        again = CollectiveVariable.load(written)
        again.training_information["note"] = "anything"
        again.save(written.with_name("same.cv"))
        again.projection[0, 0] += 1e-12
        again.save(written.with_name("other.cv"))
        assert content_hash(written) == content_hash(written.with_name("same.cv"))
        assert content_hash(written) != content_hash(written.with_name("other.cv"))

    @pytest.mark.parametrize(
        "change",
        [
            lambda metadata, tensors: tensors["koopman.mean"].add_(1e-9),
            lambda metadata, tensors: next(t for n, t in tensors.items() if n.startswith("encoder.")).add_(1e-6),
            lambda metadata, tensors: tensors.pop("koopman.singular_values"),
            lambda metadata, tensors: metadata.update(pooling="mean"),
            lambda metadata, tensors: metadata["encoder"]["settings"].update(cutoff_upper=6.0),
            lambda metadata, tensors: metadata["molecule"][0].__setitem__(1, "GLY"),
            lambda metadata, tensors: metadata["training"].update(rate_300K_per_ps=[0.1]),
            lambda metadata, tensors: metadata.pop("version"),
            lambda metadata, tensors: metadata.update(version=1),
            lambda metadata, tensors: metadata.pop("content_hash"),
            lambda metadata, tensors: metadata.pop("kind"),
            lambda metadata, tensors: tensors.update({"koopman.mean": tensors["koopman.mean"].view(torch.int64)}),
        ],
        ids=[
            *("mean", "encoder", "missing", "pooling", "cutoff", "molecule", "training", "version", "older", "hash", "kind"),
            "type",
        ],
    )
    def test_changed_file_is_an_error(self, written, change):
        with pytest.raises(GeomGNNError, match="changed or damaged after it was written"):
            CollectiveVariable.load(changed(written, change))

    @pytest.mark.parametrize(
        ("change", "part"),
        [
            (lambda metadata: metadata.pop("version"), "of which version it is, but None"),
            (lambda metadata: metadata.update(version="3"), "of which version it is, but '3'"),
            (lambda metadata: metadata.pop("content_hash"), "the hash that it states"),
            (lambda metadata: metadata.pop("kind"), "does not say the kind of the CV"),
            (lambda metadata: metadata.update(kind="oracle"), "kind 'oracle', and this code knows network, student"),
            (lambda metadata: metadata.update(kind=[]), r"the kind of the CV is \[\] in it"),
            (lambda metadata: metadata.update(kind="student"), "does not say the atoms of the CV"),
            (lambda metadata: metadata.pop("training"), "does not say the training of the CV"),
            (lambda metadata: metadata["training"].update(timescales_ps="long"), "timescales_ps is 'long'"),
            (lambda metadata: metadata.update(lag_time_ps="5 ps"), "lag_time_ps of the CV is '5 ps'"),
            (lambda metadata: metadata.update(mixer={"name": "mlp"}), "does not hold a usable collective variable"),
            (lambda metadata: metadata.update(encoder={}), "does not hold a usable collective variable"),
        ],
    )
    def test_files_that_another_program_wrote_are_errors(self, written, change, part):
        """Of a version without checksum, with the hash of what is in it."""

        def rewrite(metadata, tensors):
            metadata["version"] = 3
            metadata.pop("checksum", None)
            change(metadata)
            if "content_hash" in metadata:
                metadata["content_hash"] = cv_file.content_hash(tensors, metadata)

        with pytest.raises(GeomGNNError, match=part) as error:
            CollectiveVariable.load(changed(written, rewrite))
        assert "\n" not in str(error.value)

    @pytest.mark.parametrize("length", [0, 6, 300, -100])
    def test_truncated_file_is_an_error(self, written, length):
        written.write_bytes(written.read_bytes()[:length])
        with pytest.raises(GeomGNNError, match="truncated or of another kind"):
            CollectiveVariable.load(written)

    def test_other_files_are_errors(self, written, tmp_path):
        with pytest.raises(GeomGNNError, match="no collective variable file .*missing.cv.*geomgnn fit"):
            CollectiveVariable.load(tmp_path / "missing.cv")
        with pytest.raises(GeomGNNError, match="cannot be read as a collective variable"):
            CollectiveVariable.load(tmp_path)
        with pytest.raises(GeomGNNError, match="version 7 of the format and this code reads up to version 6"):
            CollectiveVariable.load(changed(written, lambda metadata, tensors: metadata.update(version=7)))
        save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors")
        with pytest.raises(GeomGNNError, match="not a collective variable"):
            CollectiveVariable.load(tmp_path / "a.safetensors")


class TestMolecule:
    cv = make("transformer")
    expected = cv.bind(FRAME.topology, engine="eager").compute(frames())

    def check(self, topology, xyz):
        np.testing.assert_allclose(self.cv.bind(topology, engine="eager").compute(xyz), self.expected, atol=1e-5)

    def test_topologies_of_openmm_mdtraj_and_a_file(self):
        for topology in (FRAME.topology, app.PDBFile(str(ALA2)).topology, ALA2):
            self.check(topology, frames())

    @pytest.mark.parametrize("before", [False, True], ids=["after", "before"])
    def test_solvent_and_ions_do_not_matter(self, before):
        topology, _ = with_water(FRAME.topology, FRAME.xyz[0], before)
        self.check(topology, np.array([with_water(FRAME.topology, xyz, before)[1] for xyz in frames()]))

    def test_order_and_names_of_atoms_within_a_residue_do_not_matter(self):
        order = [5, 4, 0, 1, 2, 3, 12, 10, 8, 6, 7, 9, 11, 13, 14, 15, 21, 18, 16, 17, 19, 20]
        topology = mdtraj.Topology()
        chain = topology.add_chain()
        for residue in FRAME.topology.residues:
            new = topology.add_residue(residue.name, chain)
            for k in (k for k in order if FRAME.topology.atom(k).residue is residue):
                topology.add_atom(f"X{k}", FRAME.topology.atom(k).element, new)
        self.check(topology, frames()[:, order])

    @pytest.mark.parametrize(("old", "new"), [("HIS", "HID"), ("HIE", "HSD"), ("HIP", "HIS"), ("CYS", "CYX")])
    def test_protonation_states_have_many_names(self, old, new):
        topologies = [FRAME.topology.copy() for _ in range(2)]
        for topology, name in zip(topologies, (old, new), strict=True):
            topology.residue(1).name = name
        bound = make("transformer", topologies[0]).bind(topologies[1], engine="eager")
        assert len(bound.atoms) == 10

    def test_another_residue_is_an_error_that_names_it(self):
        topology = FRAME.topology.copy()
        topology.residue(1).name = "SER"
        with pytest.raises(GeomGNNError, match="residue 2 of the selection was ALA of chain 1 .* and is SER .*geomgnn fit"):
            self.cv.bind(topology)

    def test_missing_atoms_are_an_error_that_names_the_residue(self):
        atoms = [atom.index for atom in FRAME.topology.atoms if atom.name != "CB"]
        message = r"residue 2 .* was ALA of chain 1 with atoms C3N1O1 there and is ALA of chain 1 with atoms C2N1O1 here"
        with pytest.raises(GeomGNNError, match=message):
            self.cv.bind(FRAME.topology.subset(atoms))

    def test_missing_and_further_residues_are_errors(self):
        with pytest.raises(GeomGNNError, match="the selection has 2 residues here and had 3 there"):
            self.cv.bind(FRAME.topology.subset(range(16)))
        topology = FRAME.topology.copy()
        topology.add_atom("C", element.carbon, topology.add_residue("ACE", topology.add_chain()))
        with pytest.raises(GeomGNNError, match="the selection has 4 residues here and had 3 there"):
            self.cv.bind(topology)

    def test_wrong_precision_and_engine_are_errors(self):
        with pytest.raises(GeomGNNError, match="must be 'single' or 'double', but was 'half'"):
            self.cv.bind(FRAME.topology, "half")
        with pytest.raises(GeomGNNError, match="Unknown engine 'gpu'; the choices are auto, eager, numba, cuda"):
            self.cv.bind(FRAME.topology, engine="gpu")
        with pytest.raises(GeomGNNError, match="numba engine cannot be used: .* engine: auto or engine: eager"):
            random_cv(FRAME.topology, random_encoder(attn_activation="tanh")).bind(FRAME.topology, engine="numba")


class TestInput:
    bound = TestMolecule.cv.bind(FRAME.topology, engine="eager")
    expected = TestMolecule.expected

    def test_everything_that_holds_positions(self):
        xyz = frames()
        trajectory = mdtraj.Trajectory(xyz, FRAME.topology)
        for positions in (xyz, xyz.tolist(), xyz * unit.nanometer, xyz * 10 * unit.angstrom, trajectory):
            np.testing.assert_allclose(self.bound.compute(positions), self.expected, atol=1e-5)
        np.testing.assert_allclose(self.bound.compute(xyz[2]), self.expected[2:3], atol=1e-5)
        assert self.expected.dtype == np.float64 and self.expected.shape == (6, 2)

    @pytest.mark.parametrize("kind", BOXES)
    def test_a_trajectory_cut_by_its_box(self, kind):
        box, xyz = BOXES[kind], frames()
        cut = np.array([wrapped(frame, box) for frame in xyz])
        assert np.ptp(cut, axis=1).max() > 2.0
        trajectory = mdtraj.Trajectory(cut, FRAME.topology)
        trajectory.unitcell_vectors = np.tile(box, (len(xyz), 1, 1))
        np.testing.assert_allclose(self.bound.compute(trajectory), self.expected, atol=1e-4)

    def test_many_frames_are_each_alone(self, monkeypatch):
        monkeypatch.setattr("openmm_geomgnn.representation.encoder.CHUNK_PAIRS", 100)
        np.testing.assert_allclose(self.bound.compute(frames()), self.expected, atol=1e-5)

    @pytest.mark.parametrize(
        ("positions", "message"),
        [
            (np.zeros((5, 21, 3)), r"\(5, 21, 3\) do not fit this topology of 22 atoms"),
            (np.zeros((22,)), r"shape \(22,\)"),
            (np.where(np.arange(6)[:, None, None] == 4, np.nan, frames()), "1 of 6 frames .* the first is frame 4"),
        ],
    )
    def test_wrong_positions_are_errors(self, positions, message):
        with pytest.raises(GeomGNNError, match=message):
            self.bound.compute(positions)

    def test_atoms_that_are_not_selected_may_be_anything(self):
        xyz = frames()
        xyz[:, 1] = np.nan  # a hydrogen
        np.testing.assert_allclose(self.bound.compute(xyz), self.expected, atol=1e-5)


class TestValue(CVSuite):
    mirror_images = "alike"
    cutoff = CUTOFF

    @pytest.fixture(scope="class", params=KINDS)
    def cv(self, request):
        return make(request.param)

    def structure(self):
        return FRAME

    @pytest.mark.parametrize("precision", PRECISIONS)
    def test_invariant_under_permutation_of_equal_atoms(self, precision):
        cv = random_cv(FRAME.topology, selection="protein", window="sequence")
        bound, xyz = cv.bind(FRAME.topology, precision, "eager"), frames()
        order = np.arange(22)
        order[[1, 2, 3, 13, 14, 15, 19, 20, 21]] = [3, 1, 2, 14, 13, 15, 20, 21, 19]
        expected = bound.compute(xyz)
        assert np.abs(bound.compute(xyz[:, order]) - expected).max() < PRECISIONS[precision] * np.abs(expected).max()

    def test_single_is_differentiable(self, bound):
        pos = positions(1)[0].requires_grad_(True)
        assert torch.autograd.gradcheck(bound["double"].single, pos, eps=1e-6, atol=1e-7, rtol=1e-6)


@pytest.mark.slow
def test_engines_agree():
    """The compiled and the plain engine, with the encoder that ships."""
    pytest.importorskip("numba")
    from openmm_geomgnn import Encoder

    cv = random_cv(FRAME.topology, Encoder.load("et-64"), window="sequence", mixer="mlp")
    engines = [cv.bind(FRAME.topology, engine=engine) for engine in ("numba", "eager", "auto")]
    assert [bound.engine_name for bound in engines] == ["numba", "eager", "numba"]
    for pos in positions():
        found = []
        for bound in engines:
            pos = pos.detach().requires_grad_(True)
            psi = bound.single(pos)
            found.append((psi, torch.autograd.grad(psi[0], pos)[0]))
        for psi, gradient in found[::2]:
            assert relative(psi, found[1][0]) < 1e-5 and relative(gradient, found[1][1]) < 1e-4


@pytest.mark.parametrize("window", ["all", "sequence"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_vector_jacobian_product_of_the_engines(precision, window):
    """What a force asks for is what autograd gives; in double precision, all that differs is the table of radial filters."""
    pytest.importorskip("numba")
    from openmm_geomgnn import Encoder

    cv = random_cv(FRAME.topology, Encoder.load("et-64"), window=window, mixer="mlp")
    assert cv.bind(FRAME.topology, "double").engine_name == "eager"  # whose filters are exact
    exact = cv.bind(FRAME.topology, "double", "eager")
    values, slopes = {"single": (1e-5, 1e-4), "double": (1e-6, 2e-5)}[precision]
    rng = np.random.default_rng(7)
    for engine in ("eager", "numba"):
        bound = cv.bind(FRAME.topology, precision, engine)
        assert bound.engine_name == engine
        for pos in positions():
            pos, weights = pos.detach().requires_grad_(True), rng.normal(size=cv.dimension)
            expected = exact.single(pos)
            (gradient,) = torch.autograd.grad(expected, pos, torch.from_numpy(weights))
            found, vjp = bound.value_and_vjp(pos.detach().numpy())
            bound.value_and_vjp(pos.detach().numpy() + 0.1)  # another evaluation in between
            product = vjp(weights)
            assert found.dtype == product.dtype == np.float64 and product.shape == tuple(pos.shape)
            assert relative(torch.from_numpy(found), expected) < values
            assert relative(torch.from_numpy(product), gradient) < slopes
            psi = bound.single(pos)
            (gradient,) = torch.autograd.grad(psi, pos, torch.from_numpy(weights))
            # the mixer by kernels or by torch
            assert relative(torch.from_numpy(found), psi.detach()) < 1e-6
            assert relative(torch.from_numpy(product), gradient) < (5e-6 if precision == "single" else 1e-6)
