"""From a topology to windows, by sequence and by space, and molecules cut by the periodic box."""

import itertools

import mdtraj
import numpy as np
import pytest
import torch
from mdtraj.core import element
from molecules import ALA2, BOXES, ala2, peptide, with_water, wrapped

from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.representation.periodic import MoleculeUnwrapper, SelectedMolecule
from openmm_geomgnn.representation.reference import read_reference
from openmm_geomgnn.representation.selection import select_atoms
from openmm_geomgnn.representation.windows import make_windows, neighbours_by_number


def members(windows):
    """Residue numbers (of 4 heavy atoms each) in every window."""
    return [sorted(set((windows.rows[windows.graph == k] // 4).tolist())) for k in range(windows.n_graphs)]


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

    def test_unselected_residues_count_as_steps(self):
        """As glycines do where only side chains are selected."""
        topology = peptide([1, 2, 3, 4])
        atoms = select_atoms(topology, "not element H and not resSeq 2")
        assert members(make_windows(topology, atoms, "sequence", 1)) == [[0], [1, 2], [1, 2]]
        assert members(make_windows(topology, atoms, "sequence", 2)) == [[0, 1], [0, 1, 2], [1, 2]]

    def test_bonds_say_more_than_numbers(self):
        topology = peptide([1, 2, 3, 4, 5, 6])
        for residue, number in zip(topology.residues, (27, 28, 30, 60, 60, 97), strict=True):  # as of an antibody
            residue.resSeq = number
        assert members(make_windows(topology, select_atoms(topology), "sequence", 1))[2:4] == [[1, 2, 3], [2, 3, 4]]
        broken = peptide([1, 2, 3], [4, 5])  # two molecules ...
        for residue in list(broken.residues)[3:]:  # ... in one chain, numbered on
            residue.chain = broken.chain(0)
        broken.chain(0)._residues += broken.chain(1)._residues
        broken._chains.pop()
        assert members(make_windows(broken, select_atoms(broken), "sequence", 4)) == [[0, 1, 2]] * 3 + [[3, 4]] * 2

    @pytest.mark.parametrize("context", [1, 2, 3])
    def test_reach_around_a_ring(self, context):
        topology = peptide([1, 2, 3, 4, 5, 6])
        topology.add_bond(topology.residue(5).atom("C"), topology.residue(0).atom("N"))
        found = members(make_windows(topology, select_atoms(topology), "sequence", context))
        expected = [{(k + step) % 6 for step in range(-context, context + 1)} for k in range(6)]
        assert found == [sorted(part) for part in expected]

    def test_disulfides_and_ligands_are_no_neighbours_in_sequence(self):
        topology = peptide([1, 2, 3, 4, 5], [6, 7])
        sulfurs = [topology.add_atom("SG", element.sulfur, topology.residue(k)) for k in (0, 4)]
        topology.add_bond(*sulfurs)
        ligand = topology.add_residue("LIG", topology.chain(1), resSeq=8)
        for name in ("C1", "C2", "O1", "N1"):
            topology.add_atom(name, element.get_by_symbol(name[0]), ligand)
        atoms = select_atoms(topology, "not element H S")
        windows = make_windows(topology, atoms, "sequence", 1)
        assert members(windows) == [[0, 1], [0, 1, 2], [1, 2, 3], [2, 3, 4], [3, 4], [5, 6], [5, 6], [7]]
        assert windows.n_tokens == 8

    def test_nucleotides_are_joined_by_phosphodiesters(self):
        topology = mdtraj.Topology()
        chain, last = topology.add_chain(), None
        for number, name in ((1, "DA5"), (2, "DC"), (7, "DT3")):
            residue = topology.add_residue(name, chain, resSeq=number)
            p, c, o = (topology.add_atom(atom, element.get_by_symbol(atom[0]), residue) for atom in ("P", "C3'", "O3'"))
            topology.add_bond(p, c)
            topology.add_bond(c, o)
            if last is not None:
                topology.add_bond(last, p)
            last = o
        windows = make_windows(topology, select_atoms(topology), "sequence", 1)
        assert windows.neighbours == [[0, 1], [0, 1, 2], [1, 2]]

    @pytest.mark.parametrize("numbers", [[1, 2, 4, 5, 5], [3, 4, 5]])
    def test_without_bonds_numbers_decide(self, numbers):
        """What version 1 of CV files went by, and the choice where a topology has no bonds."""
        bonded, bare = peptide(numbers, [6, 7]), peptide(numbers, [6, 7])
        bare._bonds = []
        atoms = select_atoms(bonded)
        for context in (1, 2):
            expected = make_windows(bonded, atoms, "sequence", context).neighbours
            assert make_windows(bare, atoms, "sequence", context).neighbours == expected
            assert neighbours_by_number(bare, atoms, context) == neighbours_by_number(bonded, atoms, context) == expected

    def test_numbers_of_ligands_mean_nothing(self):
        topology = mdtraj.Topology()
        chain = topology.add_chain()
        for number in (1, 2, 3):
            residue = topology.add_residue("LIG", chain, resSeq=number)
            for name in ("C", "O"):
                topology.add_atom(name, element.get_by_symbol(name), residue)
        assert make_windows(topology, np.arange(6), "sequence", 1).neighbours == [[0], [1], [2]]

    def test_are_made_again_from_their_neighbours(self):
        topology = peptide([1, 2, 3, 4, 5])
        atoms = select_atoms(topology)
        windows = make_windows(topology, atoms, "sequence", 2)
        topology._bonds = []
        again = make_windows(topology, atoms, "sequence", 7, neighbours=windows.neighbours)
        for name in ("rows", "graph", "token", "z"):
            np.testing.assert_array_equal(getattr(again, name), getattr(windows, name))
        with pytest.raises(GeomGNNError, match="is a single atom, GLY1-CA, which has no shape"):
            make_windows(peptide([1]), [2])
        with pytest.raises(GeomGNNError, match="windows for 5 residues, but the selection has 4"):
            make_windows(topology, atoms[4:], "sequence", neighbours=windows.neighbours)

    def test_caps_are_residues(self):
        topology = ala2().topology
        windows = make_windows(topology, select_atoms(topology), "sequence", 1)
        assert windows.n_tokens == 3 and np.bincount(windows.graph).tolist() == [8, 10, 7]

    @pytest.mark.parametrize(
        ("window", "context", "message"),
        [
            ("sequnce", 1, "Did you mean 'sequence'"),
            ("spatial", 1, "the choices are all, sequence, space"),
            ("sequence", -1, "0 or more, but was -1"),
            ("sequence", 1.5, "but was 1.5"),
        ],
    )
    def test_wrong_settings_are_errors(self, window, context, message):
        topology = ala2().topology
        with pytest.raises(GeomGNNError, match=message):
            make_windows(topology, select_atoms(topology), window, context)


class TestSpace:
    """Windows of residues that are near each other in a reference structure."""

    def complex(self, *places, **options):
        """Chains of one to three glycines at given places (nm), atoms within 0.04 nm, and a structure of them."""
        topology = peptide(*[list(range(1, len(chain) + 1)) for chain in places])
        centres = np.repeat(np.concatenate([np.array(chain, dtype=float) for chain in places]), 5, axis=0)
        xyz = centres + np.random.default_rng(5).uniform(-0.02, 0.02, size=centres.shape)
        return topology, mdtraj.Trajectory(xyz, topology, **options)

    def windows(self, topology, structure, **options):
        atoms = select_atoms(topology)
        return make_windows(topology, atoms, "space", reference=structure.atom_slice(atoms), **options)

    def test_hold_the_residues_that_are_near(self):
        topology, structure = self.complex([[0, 0, 0], [0.4, 0, 0], [0.8, 0, 0]], [[0, 0.4, 0], [3, 3, 3]])
        windows = self.windows(topology, structure)
        assert windows.neighbours == [[0, 1, 3], [0, 1, 2], [1, 2], [0, 3], [4]] == members(windows)
        assert self.windows(topology, structure, radius=0.2).neighbours == [[0], [1], [2], [3], [4]]
        assert self.windows(topology, structure, radius=9).neighbours == [list(range(5))] * 5
        for k, near in enumerate(windows.neighbours):
            assert (windows.token[windows.graph == k] == k).sum() == 4 and len(near) * 4 == (windows.graph == k).sum()

    def test_agree_with_all_distances(self):
        rng = np.random.default_rng(2)
        places = rng.uniform(0, 1.5, size=(4, 5, 3))
        topology, structure = self.complex(*places)
        atoms = select_atoms(topology)
        xyz = structure.xyz[0, atoms].reshape(20, 4, 3)
        distance = np.linalg.norm(xyz[:, None, :, None] - xyz[None, :, None], axis=-1).min((2, 3))
        for radius in (0.3, 0.45, 0.8):
            expected = [np.flatnonzero(row < radius).tolist() for row in distance]
            assert self.windows(topology, structure, radius=radius).neighbours == expected

    def test_chains_are_treated_alike(self):
        places = [[[0, 0, 0], [0.4, 0, 0]], [[0, 0.4, 0]], [[0.4, 0.4, 0], [0.8, 0.4, 0], [2, 2, 2]]]
        sizes = [len(chain) for chain in places]
        near = self.windows(*self.complex(*places), radius=0.48).neighbours  # between the sides and the diagonals
        order = [2, 0, 1]
        swapped = self.windows(*self.complex(*[places[k] for k in order]), radius=0.48).neighbours
        starts = np.cumsum([0, *sizes])
        old = [m for k in order for m in range(starts[k], starts[k + 1])]  # new number -> old number
        assert {(old[k], old[m]) for k, part in enumerate(swapped) for m in part} == {
            (k, m) for k, part in enumerate(near) for m in part
        }

    @pytest.mark.parametrize("kind", BOXES)
    def test_of_a_reference_cut_by_its_box(self, kind):
        """However the box cuts it and wherever its molecules lie, the reference gives the same windows."""
        box = BOXES[kind]
        places = [[[0, 0, 0], [0.4, 0, 0], [0.8, 0, 0]], [[0, 0.4, 0], [0.3, 0.5, 0.3]], [[0, 0, -0.4]]]
        topology, structure = self.complex(*places)
        expected = self.windows(topology, structure).neighbours
        assert max(map(len, expected)) > 3 and min(map(len, expected)) < 6
        for seed in range(6):
            xyz = wrapped(structure.xyz[0] + np.random.default_rng(seed).uniform(-5, 5, size=3), box)
            cut = mdtraj.Trajectory(xyz, topology)
            cut.unitcell_vectors = box[None]
            assert self.windows(topology, cut).neighbours == expected

    def test_a_molecule_is_not_near_to_its_own_images(self):
        box = np.diag([2.0, 2.0, 2.0])
        line = [[0, 0, 0], [0.4, 0, 0], [0.8, 0, 0], [1.2, 0, 0], [1.6, 0, 0]]  # ends 0.4 from its next image
        topology, structure = self.complex(line)
        structure.unitcell_vectors = box[None]
        assert self.windows(topology, structure).neighbours == [[0, 1], [0, 1, 2], [1, 2, 3], [2, 3, 4], [3, 4]]

    def test_a_ligand_has_its_surroundings(self):
        topology, structure = self.complex([[0, 0, 0], [0.4, 0, 0], [0.8, 0, 0]], [[0.4, 0.4, 0]])
        topology.residue(3).name = "LIG"
        atoms = select_atoms(topology, "(protein or resname LIG) and not element H")
        structure.topology = topology
        windows = make_windows(topology, atoms, "space", reference=structure.atom_slice(atoms))
        assert windows.neighbours[3] == [1, 3]
        assert make_windows(topology, atoms, "sequence").neighbours[3] == [3]

    def test_are_linear_in_residues(self):
        rng = np.random.default_rng(0)
        cluster = rng.uniform(0, 1.2, size=(20, 3))
        for window in ("sequence", "space"):
            pairs = []
            for count in (1, 50):
                places = [cluster + [5.0 * k, 0, 0] for k in range(count)]
                topology, structure = self.complex(*places)
                atoms = select_atoms(topology)
                windows = make_windows(topology, atoms, window, radius=0.4, reference=structure.atom_slice(atoms))
                pairs.append(len(windows.pairs[0]) / count)
            assert pairs[1] == pytest.approx(pairs[0], rel=0.1)

    def test_wrong_settings_and_references_are_errors(self):
        topology, structure = self.complex([[0, 0, 0], [0.4, 0, 0]])
        atoms = select_atoms(topology)
        for radius in (0, -1, np.inf, np.nan):
            with pytest.raises(GeomGNNError, match="radius is a length in nm, but was"):
                self.windows(topology, structure, radius=radius)
        with pytest.raises(GeomGNNError, match="needs a reference structure"):
            make_windows(topology, atoms, "space")
        with pytest.raises(GeomGNNError, match="has 10 atoms, but 8 are selected"):
            make_windows(topology, atoms, "space", reference=structure)
        structure.unitcell_vectors = np.eye(3)[None] * 0.8
        with pytest.raises(GeomGNNError, match="0.800 nm wide, less than twice the radius of 0.45 nm"):
            self.windows(topology, structure)
        structure.unitcell_vectors = None
        structure.xyz[0, 2] = np.nan
        with pytest.raises(GeomGNNError, match="not finite"):
            self.windows(topology, structure)


class TestReferenceFile:
    def test_holds_the_molecule_with_other_solvent(self, tmp_path):
        frame = ala2()
        topology, xyz = with_water(frame.topology, frame.xyz[0], before=True)
        mdtraj.Trajectory(xyz, topology).save_pdb(str(tmp_path / "a.pdb"))
        atoms = select_atoms(frame.topology)
        found = read_reference(tmp_path / "a.pdb", frame.topology, atoms)
        np.testing.assert_allclose(found.xyz[0], frame.xyz[0, atoms], atol=1e-3)
        windows = make_windows(frame.topology, atoms, "space", radius=0.2, reference=found)
        assert windows.neighbours == [[0, 1], [0, 1, 2], [1, 2]]

    def test_of_another_molecule_is_an_error(self, tmp_path):
        frame = ala2()
        (tmp_path / "a.pdb").write_text(ALA2.read_text().replace(" ALA ", " SER "))
        with pytest.raises(GeomGNNError, match="not that of the trajectories: residue 2 .* was ALA"):
            read_reference(tmp_path / "a.pdb", frame.topology, select_atoms(frame.topology))


class TestWholeMolecules:
    frame = ala2()
    atoms = select_atoms(frame.topology)
    xyz = frame.xyz[0, atoms].astype(np.float64)

    @pytest.mark.parametrize("kind", BOXES)
    def test_cut_in_all_ways(self, kind):
        box = BOXES[kind]
        maker = MoleculeUnwrapper(self.frame.topology, self.atoms)
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
        found = MoleculeUnwrapper(self.frame.topology, self.atoms)(cut, boxes)
        np.testing.assert_allclose(found - found[:, :1], np.tile(self.xyz - self.xyz[0], (2, 1, 1)), atol=1e-12)

    def test_without_a_box_nothing_moves(self):
        maker = MoleculeUnwrapper(self.frame.topology, self.atoms)
        torn = wrapped(self.xyz, BOXES["triclinic"])
        np.testing.assert_array_equal(maker(torn, np.zeros((3, 3))), torn)

    def test_the_input_is_left_alone(self):
        torn = wrapped(self.xyz, BOXES["triclinic"])
        before = torn.copy()
        MoleculeUnwrapper(self.frame.topology, self.atoms)(torn, BOXES["triclinic"])
        np.testing.assert_array_equal(torn, before)

    def test_groups_without_a_bond_are_joined_by_the_nearest_image(self):
        topology, box = peptide([1], [2]), BOXES["triclinic"]
        rng = np.random.default_rng(1)
        whole = np.concatenate([0.1 * rng.normal(size=(5, 3)), [0.5, -0.4, 0.3] + 0.1 * rng.normal(size=(5, 3))])
        found = MoleculeUnwrapper(topology, np.arange(10))(wrapped(whole + [0.1, 0.2, 0.0], box), box)
        np.testing.assert_allclose(found - found[0], whole - whole[0], atol=1e-12)

    def test_groups_that_are_near_are_joined_there(self):
        """A long molecule whose far end touches another: their first atoms are nearer by another image."""
        topology, box = peptide([1, 2, 3], [1]), np.diag([3.0, 3.0, 3.0])
        centres = np.repeat([[0, 0, 0], [0.9, 0, 0], [1.8, 0, 0], [2.2, 0, 0]], 5, axis=0)
        whole = centres + np.random.default_rng(1).uniform(-0.05, 0.05, size=(20, 3))
        atoms = select_atoms(topology)
        reference = mdtraj.Trajectory(wrapped(whole, box), topology)
        reference.unitcell_vectors = box[None]
        windows = make_windows(topology, atoms, "space", reference=reference.atom_slice(atoms))
        assert windows.neighbours == [[0], [1], [2, 3], [2, 3]] and windows.contacts == [(8, 12)]
        for shift in ([0, 0, 0], [1.0, 0.2, 2.9], [-0.3, 1.4, 0.6]):
            cut = wrapped(whole[atoms] + shift, box)
            found = MoleculeUnwrapper(topology, atoms, windows.contacts)(cut, box)
            np.testing.assert_allclose(found - found[0], whole[atoms] - whole[atoms[0]], atol=1e-12)
            assert not np.allclose(MoleculeUnwrapper(topology, atoms)(cut, box) - found[0], found - found[0])

    def test_positions_of_a_trajectory(self):
        box = BOXES["triclinic"]
        trajectory = mdtraj.Trajectory(wrapped(self.frame.xyz[0], box)[None], self.frame.topology)
        trajectory.unitcell_vectors = box[None]
        pos = SelectedMolecule(self.frame.topology, self.atoms).positions(trajectory)
        assert pos.dtype == torch.float64 and pos.shape == (1, 10, 3)
        expected = 10 * (self.xyz - self.xyz[0])
        np.testing.assert_allclose(pos[0] - pos[0, 0], expected, atol=2e-5)  # the trajectory is float32
