"""From a topology to windows and tokens, and molecules cut by the periodic box."""

import itertools

import mdtraj
import numpy as np
import pytest
import torch
from mdtraj.core import element
from molecules import ALA2, BOXES, ala2, random_encoder, wrapped
from openmm import app

from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.tokens import Tokenizer
from openmm_geomgnn.whole import MoleculeMaker, SelectedMolecule
from openmm_geomgnn.windows import as_topology, check_same_molecule, make_windows, residue_table, select_atoms


def peptide(*chains):
    """A topology of glycines: one list of residue numbers per chain, bonded within a chain where numbers follow."""
    topology = mdtraj.Topology()
    for numbers in chains:
        chain, last, previous = topology.add_chain(), None, None
        for number in numbers:
            residue = topology.add_residue("GLY", chain, resSeq=number)
            atoms = [
                topology.add_atom(name, element.get_by_symbol(symbol), residue)
                for name, symbol in (("N", "N"), ("H", "H"), ("CA", "C"), ("C", "C"), ("O", "O"))
            ]
            for a, b in ((0, 1), (0, 2), (2, 3), (3, 4)):
                topology.add_bond(atoms[a], atoms[b])
            if last is not None and number - previous in (0, 1):
                topology.add_bond(last, atoms[0])
            last, previous = atoms[3], number
    return topology


def members(windows):
    """Residue numbers (of 4 heavy atoms each) in every window."""
    return [sorted(set((windows.rows[windows.graph == k] // 4).tolist())) for k in range(windows.n_graphs)]


class TestSelection:
    def test_of_openmm_mdtraj_and_a_file_is_the_same(self):
        expected = ala2().topology
        for source in (ALA2, str(ALA2), app.PDBFile(str(ALA2)).topology, ala2()):
            topology = as_topology(source)
            atoms = select_atoms(topology)
            assert atoms.tolist() == [0, 4, 5, 6, 8, 10, 11, 12, 16, 18]
            assert residue_table(topology, atoms) == residue_table(expected, atoms)
        assert residue_table(expected, atoms) == [
            [0, "ACE", {"C": 2, "O": 1}],
            [0, "ALA", {"N": 1, "C": 3, "O": 1}],
            [0, "NME", {"N": 1, "C": 1}],
        ]

    @pytest.mark.parametrize("name", ["HID", "HIE", "HIP", "HSD", "CYX", "ASH", "GLH", "LYN", "NMA", "NH2", "NHE"])
    def test_takes_in_every_name_of_a_residue(self, name):
        topology = peptide([1, 2, 3])
        topology.residue(1).name = name
        assert len(select_atoms(topology)) == 12
        assert select_atoms(topology, "protein and name CA").tolist() == [2, 7, 12]
        assert len(select_atoms(topology, f"protein and not resname {name}")) == 10

    def test_sources_that_are_no_topology_are_errors(self, tmp_path):
        with pytest.raises(GeomGNNError, match="no topology file .*missing.pdb"):
            as_topology(tmp_path / "missing.pdb")
        (tmp_path / "notes.xyz.txt").write_text("none")
        with pytest.raises(GeomGNNError, match="cannot be read from"):
            as_topology(tmp_path / "notes.xyz.txt")
        with pytest.raises(GeomGNNError, match="not a ndarray"):
            as_topology(np.zeros(3))

    @pytest.mark.parametrize(
        ("selection", "message"),
        [
            ("resname TIP9", "matches none of the 22 atoms.*ACE, ALA, NME"),
            ("name CA and (", r"'name CA and \(' is not valid.*mdtraj's language"),
        ],
    )
    def test_wrong_selections_are_errors(self, selection, message):
        with pytest.raises(GeomGNNError, match=message):
            select_atoms(ala2().topology, selection)

    def test_virtual_sites_are_errors(self):
        topology = peptide([1])
        topology.add_atom("M", element.virtual, topology.residue(0))
        assert len(select_atoms(topology, "element C N O")) == 4
        with pytest.raises(GeomGNNError, match="virtual sites such as GLY1-M"):
            select_atoms(topology, "all")

    def test_molecules_that_differ_are_errors(self):
        table = residue_table(peptide([1, 2]), np.arange(10))
        check_same_molecule(table, [[0, "GLY", {"O": 1, "C": 2, "N": 1, "H": 1}]] * 2)  # the order of atoms does not matter
        with pytest.raises(GeomGNNError, match="residue 2 of the selection was GLY of chain 1 .* is GLY of chain 2"):
            check_same_molecule(table, residue_table(peptide([1], [2]), np.arange(10)))
        with pytest.raises(GeomGNNError, match="has 3 residues here and had 2 there"):
            check_same_molecule(table, residue_table(peptide([1, 2, 3]), np.arange(15)))
        with pytest.raises(GeomGNNError, match=r"residue 1 .* was GLY of chain 1 with atoms C2H1N1O1 there .* atoms C2N1O1"):
            check_same_molecule(table, residue_table(peptide([1, 2]), np.array([0, 2, 3, 4, 5, 6, 7, 8, 9])))


class TestWindows:
    def test_all_is_one_graph(self):
        topology = ala2().topology
        windows = make_windows(topology, select_atoms(topology))
        assert windows.n_graphs == 1 and windows.n_tokens == 3 and windows.n_atoms == 10
        assert windows.rows.tolist() == list(range(10)) and windows.token.tolist() == [0] * 3 + [1] * 5 + [2] * 2
        assert windows.z.tolist() == [6, 6, 8, 7, 6, 6, 8, 6, 7, 6]
        assert set(zip(*windows.pairs, strict=True)) == set(itertools.combinations(range(10), 2))

    @pytest.mark.parametrize("context", [0, 1, 2, 9])
    def test_sequence_windows(self, context):
        topology = peptide([1, 2, 3, 4, 5])
        windows = make_windows(topology, select_atoms(topology), "sequence", context)
        assert members(windows) == [[m for m in range(5) if abs(m - k) <= context] for k in range(5)]
        for k in range(5):  # every atom counts in the token of its own residue, in that residue's window
            own = windows.token == k
            assert (windows.graph[own] == k).all() and (windows.rows[own] == np.arange(4 * k, 4 * k + 4)).all()
        pairs = set(zip(*windows.pairs, strict=True))
        rows = range(len(windows.rows))
        assert pairs == {(i, j) for i, j in itertools.combinations(rows, 2) if windows.graph[i] == windows.graph[j]}

    def test_do_not_reach_over_breaks(self):
        topology = peptide([1, 2, 4, 5, 5], [6, 7])  # a missing residue 3, an insertion code, another chain
        windows = make_windows(topology, select_atoms(topology), "sequence", 2)
        assert members(windows) == [[0, 1], [0, 1], [2, 3, 4], [2, 3, 4], [2, 3, 4], [5, 6], [5, 6]]

    def test_do_not_reach_over_unselected_residues(self):
        topology = peptide([1, 2, 3, 4])
        atoms = select_atoms(topology, "not element H and not resSeq 2")
        assert members(make_windows(topology, atoms, "sequence", 1)) == [[0], [1, 2], [1, 2]]

    def test_caps_are_residues(self):
        topology = ala2().topology
        windows = make_windows(topology, select_atoms(topology), "sequence", 1)
        assert windows.n_tokens == 3 and np.bincount(windows.graph).tolist() == [8, 10, 7]

    @pytest.mark.parametrize(
        ("window", "context", "message"),
        [
            ("sequnce", 1, "Did you mean 'sequence'"),
            ("spatial", 1, "the choices are all, sequence"),
            ("sequence", -1, "0 or more, but was -1"),
            ("sequence", 1.5, "but was 1.5"),
        ],
    )
    def test_wrong_settings_are_errors(self, window, context, message):
        topology = ala2().topology
        with pytest.raises(GeomGNNError, match=message):
            make_windows(topology, select_atoms(topology), window, context)


class TestTokens:
    topology = peptide([1, 2, 3, 4, 5])
    atoms = select_atoms(topology)
    pos = np.random.default_rng(4).normal(size=(6, 20, 3)) * 4

    @pytest.mark.parametrize("model", ["visnet", "smooth-equivariant-transformer"])
    @pytest.mark.parametrize("pooling", ["sum", "mean"])
    def test_are_the_pooled_embeddings_of_each_window_alone(self, model, pooling):
        encoder = random_encoder(model)
        windows = make_windows(self.topology, self.atoms, "sequence", 1)
        tokens = Tokenizer(encoder, windows, pooling).embed(self.pos).numpy()
        assert tokens.shape == (6, 5, 4, 16)
        for k in range(5):
            rows = windows.rows[windows.graph == k]
            x, v = encoder.embed(windows.z[rows], self.pos[:, rows])
            alone = np.concatenate([x[:, :, None], v], axis=2)[:, rows // 4 == k]
            pooled = alone.sum(axis=1) if pooling == "sum" else alone.mean(axis=1)
            np.testing.assert_allclose(tokens[:, k], pooled, atol=2e-5)

    def test_in_chunks_are_the_same(self, monkeypatch):
        tokenizer = Tokenizer(random_encoder(), make_windows(self.topology, self.atoms, "sequence", 1))
        expected, done = tokenizer.embed(self.pos), []
        monkeypatch.setattr("openmm_geomgnn.encoder.CHUNK_PAIRS", 1)
        torch.testing.assert_close(tokenizer.embed(self.pos, done.append), expected, atol=1e-5, rtol=1e-5)
        assert sum(done) == 6 and len(done) > 2

    def test_wrong_settings_are_errors(self):
        windows = make_windows(self.topology, self.atoms)
        with pytest.raises(GeomGNNError, match="Unknown token pooling 'max'"):
            Tokenizer(random_encoder(), windows, "max")
        with pytest.raises(GeomGNNError, match="between 1 and 7 for this encoder, but 6 to 8"):
            Tokenizer(random_encoder(max_z=8), windows)


class TestWholeMolecules:
    frame = ala2()
    atoms = select_atoms(frame.topology)
    xyz = frame.xyz[0, atoms].astype(np.float64)

    @pytest.mark.parametrize("kind", BOXES)
    def test_cut_in_all_ways(self, kind):
        box = BOXES[kind]
        maker = MoleculeMaker(self.frame.topology, self.atoms)
        centred = self.xyz - self.xyz.mean(axis=0)
        # over the six faces, twelve edges and eight corners of the box
        ways = [way for way in itertools.product((0.0, 0.5, 1.0), repeat=3) if way != (0.5, 0.5, 0.5)]
        cut = np.array([wrapped(centred + np.array(way) @ box, box) for way in ways])
        assert len(cut) == 26
        assert min(np.ptp(frame, axis=0).max() for frame in cut) > 2.0  # each is torn apart indeed
        for found in (maker(cut, np.tile(box, (26, 1, 1))), maker(cut, box), np.array([maker(frame, box) for frame in cut])):
            np.testing.assert_allclose(found - found[:, :1], np.tile(centred - centred[0], (26, 1, 1)), atol=1e-12)
            lattice = (found - cut) @ np.linalg.inv(box)
            np.testing.assert_allclose(lattice, np.round(lattice), atol=1e-12)

    def test_each_frame_has_its_box(self):
        boxes = np.stack(list(BOXES.values()))
        cut = np.stack([wrapped(self.xyz, box) for box in boxes])
        found = MoleculeMaker(self.frame.topology, self.atoms)(cut, boxes)
        np.testing.assert_allclose(found - found[:, :1], np.tile(self.xyz - self.xyz[0], (2, 1, 1)), atol=1e-12)

    def test_without_a_box_nothing_moves(self):
        maker = MoleculeMaker(self.frame.topology, self.atoms)
        torn = wrapped(self.xyz, BOXES["triclinic"])
        np.testing.assert_array_equal(maker(torn, np.zeros((3, 3))), torn)

    def test_the_input_is_left_alone(self):
        torn = wrapped(self.xyz, BOXES["triclinic"])
        before = torn.copy()
        MoleculeMaker(self.frame.topology, self.atoms)(torn, BOXES["triclinic"])
        np.testing.assert_array_equal(torn, before)

    def test_groups_without_a_bond_are_joined_by_the_nearest_image(self):
        topology, box = peptide([1], [2]), BOXES["triclinic"]
        rng = np.random.default_rng(1)
        whole = np.concatenate([0.1 * rng.normal(size=(5, 3)), [0.5, -0.4, 0.3] + 0.1 * rng.normal(size=(5, 3))])
        found = MoleculeMaker(topology, np.arange(10))(wrapped(whole + [0.1, 0.2, 0.0], box), box)
        np.testing.assert_allclose(found - found[0], whole - whole[0], atol=1e-12)

    def test_positions_of_a_trajectory(self):
        box = BOXES["triclinic"]
        trajectory = mdtraj.Trajectory(wrapped(self.frame.xyz[0], box)[None], self.frame.topology)
        trajectory.unitcell_vectors = box[None]
        pos = SelectedMolecule(self.frame.topology, self.atoms).positions(trajectory)
        assert pos.dtype == torch.float64 and pos.shape == (1, 10, 3)
        expected = 10 * (self.xyz - self.xyz[0])
        np.testing.assert_allclose(pos[0] - pos[0, 0], expected, atol=2e-5)  # the trajectory is float32
