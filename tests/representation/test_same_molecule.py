"""A CV accepts its own molecule, whatever a topology knows of it, and no other one: not an isomer, and no stereoisomer."""

import json
import warnings

import mdtraj
import numpy as np
import pytest
from force_systems import make_context, make_system
from mdtraj.core import element
from molecules import ALA2, ala2, peptide, random_cv, random_encoder
from openmm import OpenMMException, app
from safetensors import safe_open
from safetensors.torch import save_file

from openmm_geomgnn import GeomGNNCV
from openmm_geomgnn.cv.file import content_hash
from openmm_geomgnn.cv.fit import FitSettings, fit_cv
from openmm_geomgnn.cv.network import CollectiveVariable
from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.representation.bond_graph import centres, contradiction, describe_bonds, inverted, known_signs
from openmm_geomgnn.representation.selection import bonds_of, residue_table, select_atoms
from torchmdnet_ext.checkpoints import write_encoder

HEAVY = "not element H"
GLUCOSE = "OC[C@H]1O[C@@H](O)[C@H](O)[C@@H](O)[C@@H]1O"
GALACTOSE = "OC[C@H]1O[C@@H](O)[C@H](O)[C@@H](O)[C@H]1O"


def molecule(smiles, names=str, order=None):
    """A molecule in three dimensions, made with RDKit, as an mdtraj trajectory of one frame. names: of O1 and the others."""
    pytest.importorskip("rdkit")
    from rdkit import Chem
    from rdkit.Chem import AllChem

    made = Chem.AddHs(Chem.MolFromSmiles(smiles))
    if order is not None:
        made = Chem.RenumberAtoms(made, np.random.default_rng(order).permutation(made.GetNumAtoms()).tolist())
    assert AllChem.EmbedMolecule(made, randomSeed=1) == 0
    topology, counts = mdtraj.Topology(), {}
    residue = topology.add_residue("LIG", topology.add_chain(), resSeq=1)
    for atom in made.GetAtoms():
        symbol = atom.GetSymbol()
        counts[symbol] = counts.get(symbol, 0) + 1
        topology.add_atom(names(f"{symbol}{counts[symbol]}"), element.get_by_symbol(symbol), residue)
    for bond in made.GetBonds():
        topology.add_bond(topology.atom(bond.GetBeginAtomIdx()), topology.atom(bond.GetEndAtomIdx()))
    return mdtraj.Trajectory(made.GetConformer().GetPositions()[None] / 10, topology)


def described(frame, selection=HEAVY):
    atoms = frame.topology.select(selection)
    return describe_bonds(frame.topology, atoms), 10 * frame.xyz[:, atoms]


def without_bonds(frame, keep=lambda a, b: False):
    topology = frame.topology.copy()
    topology._bonds = [bond for bond in topology.bonds if keep(*bond)]
    return mdtraj.Trajectory(frame.xyz, topology)


class TestBonds:
    @pytest.mark.parametrize(
        ("one", "other", "says"),
        [
            ("CCCO", "CC(O)C", "C2 has the neighbours C1, C3, O1 and 1 H here and the neighbours C1, C3 and 2 H there"),
            ("CCCO", "CCC=O", "C3 has the neighbours C2, O1 and 1 H here and the neighbours C2, O1 and 2 H there"),
            ("Cc1ccccc1O", "Cc1ccc(O)cc1", "neighbours"),
            # no refinement of colours tells these from one another
            ("C1CCCC2CCCCC12", "C1CCCC1C1CCCC1", "neighbours"),
        ],
    )
    def test_isomers(self, one, other, says):
        for names in (str, lambda name: f"X{name}"):
            expected, found = described(molecule(one))[0], described(molecule(other, names))[0]
            number, difference = contradiction(expected, found)
            assert number == 0 and (says in difference or names is not str)

    @pytest.mark.parametrize("smiles", ["CCCO", "C1CCCC2CCCCC12", GLUCOSE, "c1ccccc1C(=O)O"])
    def test_the_same_in_another_order_with_other_names(self, smiles):
        expected = described(molecule(smiles))[0]
        for order in range(3):
            assert contradiction(expected, described(molecule(smiles, lambda name: f"Q{name}", order))[0]) is None

    def test_what_one_does_not_know_is_not_compared(self):
        one, other = molecule("CCCO"), molecule("CC(O)C")
        bare = without_bonds(other)
        partly = without_bonds(other, lambda a, b: "C1" in (a.name, b.name))  # some CONECT records
        dry = other.atom_slice(other.topology.select(HEAVY))  # no hydrogens: of these nothing is known, of bonds it is
        for topology in (bare, partly):
            assert contradiction(described(one)[0], described(topology)[0]) is None
        assert contradiction(described(one)[0], described(dry)[0]) is not None
        aldehyde = molecule("CCC=O")
        united = aldehyde.atom_slice(aldehyde.topology.select(HEAVY))
        assert contradiction(described(one)[0], described(united)[0]) is None

    def test_links_between_residues(self):
        """A disulfide that is somewhere else is another molecule; one that is not known is not."""

        def peptide_with_sulfur(*pairs):
            topology = peptide([1, 2, 3], [1, 2, 3])
            for residue in topology.residues:
                residue.atom(4).element = element.sulfur
            for a, b in pairs:
                topology.add_bond(topology.residue(a).atom(4), topology.residue(b).atom(4))
            return describe_bonds(topology, np.arange(30))

        one = peptide_with_sulfur((0, 3), (2, 5))
        assert contradiction(one, peptide_with_sulfur((0, 3), (2, 5))) is None
        assert contradiction(one, peptide_with_sulfur()) is None
        number, difference = contradiction(one, peptide_with_sulfur((0, 5), (2, 3)))
        assert number == 0 and "O is bound to residue 6 here and to residue 4 there" in difference

    @pytest.mark.parametrize("source", ["openmm", "mdtraj", "no bonds", "no hydrogens"])
    def test_the_same_peptide_from_anywhere(self, source):
        expected = residue_table(ala2().topology, select_atoms(ala2().topology))
        topology = {
            "openmm": lambda: mdtraj.Topology.from_openmm(app.PDBFile(str(ALA2)).topology),
            "mdtraj": lambda: ala2().topology,
            "no bonds": lambda: without_bonds(ala2()).topology,
            "no hydrogens": lambda: ala2().atom_slice(select_atoms(ala2().topology)).topology,
        }[source]()
        found = residue_table(topology, select_atoms(topology))
        assert [row[:3] for row in found] == [row[:3] for row in expected]
        assert contradiction(bonds_of(expected), bonds_of(found)) is None
        assert bonds_of(expected)[1]["bonds"] == [[0, 1], [1, 2], [1, 4], [2, 3]]  # N CA C O CB


class TestHandedness:
    @pytest.mark.parametrize(
        ("one", "other", "names"),
        [
            ("C[C@H](N)C(=O)O", "C[C@@H](N)C(=O)O", ["C2 of residue 1"]),
            ("F[C@H](Cl)Br", "F[C@@H](Cl)Br", ["C1 of residue 1"]),
            (GLUCOSE, GALACTOSE, ["C6 of residue 1"]),
            ("CC(C)CO", "CC(C)CO", []),  # no centre, though three neighbours
            ("CN(CC)CCC", "CN(CC)CCC", []),  # an amine inverts
        ],
    )
    def test_stereoisomers(self, one, other, names):
        (here, pos), (there, others) = described(molecule(one)), described(molecule(other, order=4, names=lambda n: n))
        signs = known_signs(centres(here), pos)
        wrong = inverted(centres(there), signs, others)
        assert len(wrong) == len(names) and (len(signs) > 0) == bool(names)
        assert [centre.name for centre in inverted(centres(here), signs, pos * [1, 1, -1])] == [
            centre.name for centre in centres(here) if centre.key in signs
        ]
        (same, again) = described(molecule(one, order=5))
        assert inverted(centres(same), signs, again) == []
        if names == ["C6 of residue 1"]:
            (_, plain) = described(molecule(other))
            assert [centre.name for centre in inverted(centres(here), signs, plain)] == names

    def test_torn_bonds_say_nothing(self):
        parts, pos = described(molecule("F[C@H](Cl)Br"))
        signs = known_signs(centres(parts), pos)
        torn = pos * [1, 1, -1]
        torn[:, 0] += 20
        assert len(signs) == 1 and inverted(centres(parts), signs, torn) == []


class TestCollectiveVariable:
    @pytest.fixture(scope="class")
    def trajectory(self):
        rng = np.random.default_rng(3)
        return mdtraj.Trajectory(ala2().xyz + 0.004 * rng.normal(size=(60, 22, 3)), ala2().topology)

    @pytest.fixture(scope="class")
    def settings(self, tmp_path_factory):
        path, random = tmp_path_factory.mktemp("encoder") / "random.safetensors", random_encoder(seed=8)
        write_encoder(path, random.settings, random.network)
        return FitSettings(1.0, 1.0, encoder=str(path), pca=5, softening=0.0)

    @pytest.fixture(scope="class")
    def path(self, trajectory, settings, tmp_path_factory):
        path = tmp_path_factory.mktemp("cv") / "ala2.cv.safetensors"
        fit_cv([trajectory, trajectory[::-1]], ALA2, settings).save(path)
        return path

    @pytest.fixture
    def mirrored(self, trajectory):
        return mdtraj.Trajectory(trajectory.xyz * [-1, 1, 1], trajectory.topology)

    def test_of_propanol(self):
        one, other = molecule("CCCO"), molecule("CC(O)C")
        cv = random_cv(one.topology)
        cv.bind(molecule("CCCO", order=2).topology, engine="eager")
        with pytest.raises(GeomGNNError, match="residue 1 .*, LIG, has the same atoms, but other bonds: C2 has"):
            cv.bind(other.topology, engine="eager")

    def test_mirror_image_in_a_trajectory(self, path, trajectory, mirrored):
        bound = CollectiveVariable.load(path).bind(ALA2, engine="eager")
        assert np.isfinite(bound.compute(trajectory)).all()
        for positions in (mirrored, mirrored.xyz, mirrored.xyz[0]):
            with pytest.raises(GeomGNNError, match="another stereoisomer .*: CA of residue 2 .* is the other way round"):
                bound.compute(positions)

    def test_mirror_image_in_a_structure(self, path, mirrored, tmp_path):
        cv = CollectiveVariable.load(path)
        mirrored[0].save(str(tmp_path / "mirrored.pdb"))
        for source in (mirrored, tmp_path / "mirrored.pdb"):
            with pytest.raises(GeomGNNError, match="CA of residue 2"):
                cv.bind(source, engine="eager")
        cv.bind(mirrored.topology, engine="eager")

    def test_mirror_image_in_a_simulation(self, path, mirrored, trajectory):
        for source, wrong in ((trajectory, False), (mirrored, True)):
            system = make_system()
            handle = GeomGNNCV(path, ALA2, engine="eager", failures=None).addToSystem(system)
            context = make_context(system, source.xyz[0].astype(float))
            if wrong:
                with pytest.raises(OpenMMException, match="another stereoisomer"):
                    context.getState(getForces=True)
            else:
                assert np.isfinite(handle.getValue(context)[0]).all()

    def test_training_on_two_stereoisomers(self, trajectory, mirrored, settings):
        with pytest.raises(GeomGNNError, match="CA of residue 2 .* in trajectory 1 and its mirror image in trajectory 2"):
            fit_cv([trajectory, mirrored], ALA2, settings)

    def test_files_of_before(self, path, mirrored, tmp_path):
        """They load, compare what they know, and say that this is less."""
        with safe_open(path, framework="pt") as file:
            metadata = json.loads(file.metadata()["cv"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        metadata = {name: value for name, value in metadata.items() if name != "checksum"}
        metadata |= {"version": 3, "molecule": [row[:3] for row in metadata["molecule"]]}
        metadata["content_hash"] = content_hash(tensors, metadata)
        save_file(tensors, tmp_path / "old.cv", metadata={"cv": json.dumps(metadata)})
        old = CollectiveVariable.load(tmp_path / "old.cv")
        with pytest.warns(UserWarning, match="of an older version, which says nothing of bonds"):
            bound = old.bind(ALA2, engine="eager")
        assert np.isfinite(bound.compute(mirrored)).all() and old.content_hash() == metadata["content_hash"]
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            CollectiveVariable.load(path).bind(ALA2, engine="eager")
