"""Which atoms are selected, by any name that programs give residues, and which molecules are the same."""

import mdtraj
import numpy as np
import pytest
from mdtraj.core import element
from molecules import ALA2, ala2, peptide, with_water
from openmm import app

from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.representation import formats
from openmm_geomgnn.representation.selection import (
    as_topology,
    check_same_molecule,
    default_selection,
    residue_table,
    same_residue,
    select_atoms,
)
from openmm_geomgnn.representation.trajectory_files import TrajectoryFile


def residues(*names, topology=None, atoms=(("C1", "C"), ("O1", "O"), ("H1", "H"))):
    """A topology with one chain of residues of the same atoms."""
    topology = topology or mdtraj.Topology()
    chain = topology.add_chain()
    for number, name in enumerate(names, start=1):
        residue = topology.add_residue(name, chain, resSeq=number)
        for atom, symbol in atoms:
            topology.add_atom(atom, element.get_by_symbol(symbol), residue)
    return topology


class TestSelection:
    def test_of_openmm_mdtraj_and_a_file_is_the_same(self):
        expected = ala2().topology
        for source in (ALA2, str(ALA2), app.PDBFile(str(ALA2)).topology, ala2()):
            topology = as_topology(source)
            atoms = select_atoms(topology)
            assert atoms.tolist() == [0, 4, 5, 6, 8, 10, 11, 12, 16, 18]
            assert [row[:3] for row in residue_table(topology, atoms)] == [row[:3] for row in residue_table(expected, atoms)]
        assert [row[:3] for row in residue_table(expected, atoms)] == [
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

    @pytest.mark.parametrize("content", [b"", b"hello world\n" * 20, b"<html></html>", bytes(range(1, 256)) * 8])
    @pytest.mark.parametrize("ending", [".gro", ".psf", ".mol2", ".pdb", ".prmtop", ".cif"])
    def test_files_that_are_not_what_their_names_say_are_errors(self, ending, content, tmp_path):
        path = tmp_path / f"garbage{ending}"
        path.write_bytes(content)
        with pytest.raises(GeomGNNError, match=f"garbage{ending} (.*): it is damaged|holds no atoms") as error:
            as_topology(path)
        assert "\n" not in str(error.value)

    @pytest.mark.parametrize(("ending", "package"), [(".h5", "tables"), (".gsd", "gsd")])
    def test_formats_that_take_another_package(self, ending, package, tmp_path, monkeypatch, capfd):
        path = tmp_path / f"a{ending}"
        path.write_bytes(b"nothing")
        monkeypatch.setattr(formats, "find_spec", lambda name: None)
        for read in (as_topology, lambda path: TrajectoryFile(path, ala2().topology)):
            with pytest.raises(GeomGNNError, match=f"a{ending} takes a package .*: `pip install {package}`"):
                read(path)
        assert capfd.readouterr() == ("", "")  # mdtraj prints a page

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

    @pytest.mark.parametrize(
        ("name", "unified"),
        [
            ("NHIE", "HIS"), ("CCYX", "CYS"), ("ASPP", "ASP"), ("LYSH", "LYS"), ("DA5", "DA"), ("RU3", "U"), ("RG", "G"),
            ("MSE", "MSE"), ("SEP", "SEP"), ("LIG", "LIG"), ("NAD", "NAD"), ("CYN", "CYN"), ("CA", "CA"),
        ],
    )  # fmt: skip
    def test_one_name_for_all_names_of_a_residue(self, name, unified):
        assert same_residue(name) == unified
        assert same_residue(unified) == unified
        table = residue_table(residues(name), np.arange(3))
        assert [row[:3] for row in table] == [[0, unified, {"C": 1, "O": 1, "H": 1}]]
        check_same_molecule([[0, name, {"C": 1, "O": 1, "H": 1}]], table)  # a file from before the name was known

    @pytest.mark.parametrize("name", ["MSE", "SEP", "TPO", "HYP", "NALA", "CLYS", "LYSH", "FOR", "CT3"])
    def test_modified_and_terminal_residues_are_protein(self, name):
        topology = peptide([1, 2, 3])
        topology.residue(1).name = name
        assert len(select_atoms(topology)) == 12

    def test_residues_with_a_backbone_are_protein_whatever_their_name(self):
        topology = peptide([1, 2, 3])
        topology.residue(1).name = "QQ7"
        assert len(select_atoms(topology)) == 12
        with pytest.raises(GeomGNNError, match="matches none"):
            select_atoms(topology, "not protein and element C")
        topology.atom(7).name = "C9"  # no alpha carbon any more
        assert len(select_atoms(topology)) == 8

    def test_side_chains_and_other_words_of_the_language(self):
        topology = ala2().topology
        for text, names in (
            ("sidechain and not element H and resname ALA", ["CB"]),
            ("protein and resid 1 and (name =~ 'C.*')", ["CA", "C", "CB"]),
            ("is_protein and not (resname ACE NME) and element N O", ["N", "O"]),
        ):
            assert [topology.atom(i).name for i in select_atoms(topology, text)] == names


class TestDefault:
    def test_water_and_ions_are_left_out(self):
        topology, _ = with_water(ala2().topology, ala2().xyz[0])
        assert select_atoms(topology).tolist() == select_atoms(ala2().topology).tolist()

    @pytest.mark.parametrize(("name", "symbol"), [("CAL", "Ca"), ("I", "I"), ("U", "U")])
    def test_ions_with_the_names_of_residues_are_left_out(self, name, symbol):
        ions = residues(name, name, topology=ala2().topology.copy(), atoms=((name, symbol),))
        assert select_atoms(ions).tolist() == select_atoms(ala2().topology).tolist()
        with pytest.raises(GeomGNNError, match="neither protein nor nucleic acid"):
            select_atoms(residues(name, name, atoms=((name, symbol),)))

    @pytest.mark.parametrize("names", [("DA5", "DC", "DG", "DT3"), ("A", "C", "G", "U"), ("RA5", "RU3"), ("ADE", "PSU")])
    def test_nucleic_acid_where_there_is_no_protein(self, names):
        topology = residues(*names)
        assert default_selection(topology) == "nucleic and not element H"
        assert len(select_atoms(topology)) == 2 * len(names) == len(select_atoms(topology, "nucleic and name C1 O1"))
        both = residues("ALA", topology=topology)
        assert select_atoms(both).tolist() == [3 * len(names), 3 * len(names) + 1]
        assert len(select_atoms(both, "(protein or nucleic) and not element H")) == 2 * len(names) + 2

    def test_the_only_ligand_where_there_is_neither(self):
        topology = residues("HOH", "HOH", atoms=(("O", "O"), ("H1", "H"), ("H2", "H")))
        topology = residues("NA", topology=topology, atoms=(("NA", "Na"),))
        topology = residues("LIG", topology=topology)
        assert select_atoms(topology).tolist() == [7, 8]

    def test_otherwise_it_is_an_error_that_asks(self):
        with pytest.raises(GeomGNNError, match="the 2 residues .DRG, LIG., and 2 of them have two or more heavy atoms"):
            select_atoms(residues("LIG", "DRG"))
        with pytest.raises(GeomGNNError, match="and 0 of them .* Give a selection in mdtraj's language"):
            select_atoms(residues("HOH", atoms=(("O", "O"),)))
