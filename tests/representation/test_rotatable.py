import mdtraj
import numpy as np
import pytest

from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.representation.rotatable import rotatable_torsions
from openmm_geomgnn.representation.shipped import DATA


def molecule(atoms, bonds):
    """An mdtraj topology of one residue; atoms by name, the first letter of which is the element."""
    topology = mdtraj.Topology()
    residue = topology.add_residue("LIG", topology.add_chain(), 1)
    made = [topology.add_atom(name, mdtraj.element.get_by_symbol(name[0]), residue) for name in atoms.split()]
    by_name = {atom.name: atom for atom in made}
    for bond in bonds.split():
        topology.add_bond(*(by_name[name] for name in bond.split("-")))
    return topology


def test_torsions_of_peptides_have_the_names_of_chemists():
    frame = mdtraj.load(str(DATA / "ala2-c7eq.pdb"))
    torsions = rotatable_torsions(frame.topology)
    assert torsions.names == ("omega ACE1-ALA2", "phi ALA2", "psi ALA2", "omega ALA2-NME3")
    values = dict(zip(torsions.names, torsions.compute(frame)[0], strict=True))
    assert values["phi ALA2"] == pytest.approx(mdtraj.compute_phi(frame)[1][0, 0])
    assert values["psi ALA2"] == pytest.approx(mdtraj.compute_psi(frame)[1][0, 0])
    # phi of proline is in its ring
    for name, degrees in (("trans", 180), ("cis", 0)):
        frame = mdtraj.load(str(DATA / f"pro-{name}.pdb"))
        torsions = rotatable_torsions(frame.topology)
        assert torsions.names == ("omega ACE1-PRO2", "psi PRO2", "omega PRO2-NME3")
        away = np.cos(torsions.compute(frame)[0, 0] - np.radians(degrees))
        assert away > 0.9, name


def test_what_ends_in_hydrogens_or_looks_the_same_after_a_turn_is_left_out():
    hydrogens = "".join(f" C{k}-H{k}{j}" for k, n in ((1, 2), (2, 2), (4, 3), (5, 3), (6, 3)) for j in range(n))
    atoms = "C1 C2 C3 C4 C5 C6 O1 HO " + " ".join(bond.split("-")[1] for bond in hydrogens.split())
    skeleton = "C1-C2 C2-C3 C3-C4 C3-C5 C3-C6 C1-O1 O1-HO"
    # HO-CH2-CH2-C(CH3)3 turns about one bond
    torsions = rotatable_torsions(molecule(atoms, skeleton + hydrogens))
    assert torsions.names == ("LIG1-O1 C1 C2 C3",) and torsions.atoms.tolist() == [[6, 0, 1, 2]]
    # without hydrogens it is not known what looks the same
    assert len(rotatable_torsions(molecule("C1 C2 C3 C4 C5 C6 O1", "C1-C2 C2-C3 C3-C4 C3-C5 C3-C6 C1-O1")).names) == 2
    ring = molecule("C1 C2 C3 C4", "C1-C2 C2-C3 C3-C4 C4-C1")
    assert rotatable_torsions(ring).compute(mdtraj.Trajectory(np.zeros((3, 4, 3)), ring)).shape == (3, 0)


def test_without_bonds_nothing_is_known():
    with pytest.raises(GeomGNNError, match="no bonds.*CONECT"):
        rotatable_torsions(molecule("C1 C2 C3 C4", ""))
