"""A trajectory's own topology says which of its atoms are which: in `compute`, `fit` and `embed`."""

import warnings

import mdtraj
import numpy as np
import pytest
from mdtraj.core import element
from molecules import ALA2, ala2, peptide, random_cv, random_encoder, with_water

from openmm_geomgnn.cv.fit import FitSettings, fit_cv
from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.representation.embed_trajectories import EmbedSettings, embed_trajectories
from openmm_geomgnn.representation.matching import AtomMatcher
from openmm_geomgnn.representation.reference import first_frame
from openmm_geomgnn.representation.selection import select_atoms
from openmm_geomgnn.representation.spec import TokenSpec
from torchmdnet_ext.checkpoints import write_encoder

TOPOLOGY = ala2().topology


def frames(n=40, topology=TOPOLOGY):
    xyz = ala2().xyz[0] if topology is TOPOLOGY else np.random.default_rng(5).normal(size=(topology.n_atoms, 3))
    noise = 0.03 * np.random.default_rng(0).normal(size=(n, *xyz.shape))
    return mdtraj.Trajectory(xyz + noise, topology, time=2.0 * np.arange(n))


def reordered(trajectory, seed=1, residues=None, renumber=0, rename=lambda name: name, bonds=True):
    """The same frames with the atoms of each residue in another order, and residues in the order given."""
    rng, topology, made, order, new = np.random.default_rng(seed), trajectory.topology, mdtraj.Topology(), [], {}
    for number in residues or range(topology.n_residues):
        residue = topology.residue(number)
        while made.n_chains <= (0 if residues else residue.chain.index):
            chain = made.add_chain()
        copy = made.add_residue(residue.name, chain, residue.resSeq + renumber)
        atoms = list(residue.atoms)
        for atom in (atoms[k] for k in (rng.permutation(len(atoms)) if seed else range(len(atoms)))):
            new[atom.index] = made.add_atom(rename(atom.name), atom.element, copy)
            order.append(atom.index)
    for a, b in topology.bonds if bonds else ():
        made.add_bond(new[a.index], new[b.index])
    return mdtraj.Trajectory(trajectory.xyz[:, order], made, trajectory.time)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    path, random = tmp_path_factory.mktemp("encoder") / "random.safetensors", random_encoder(seed=8)
    write_encoder(path, random.settings, random.network)
    return str(path)


class TestCompute:
    @pytest.fixture(scope="class")
    def bound(self):
        return random_cv(TOPOLOGY, window="sequence", scale=0.2).bind(TOPOLOGY, engine="eager")

    @pytest.mark.parametrize(
        "changes", [{}, {"renumber": 7}, {"residues": [2, 0, 1]}, {"residues": [1, 2, 0], "bonds": False}, {"seed": 2}]
    )
    def test_atoms_in_another_order(self, bound, changes):
        trajectory = frames()
        other = reordered(trajectory, **changes)
        expected = bound.compute(trajectory)
        np.testing.assert_allclose(bound.compute(other), expected, atol=1e-5)
        # taken in the order of the file they are something else
        assert np.abs(bound.compute(other.xyz) - expected).max() > 0.1

    def test_solvent_that_is_somewhere_else_or_not_there(self, bound):
        dry = frames(3)
        wet = [with_water(dry.topology, xyz, before=True) for xyz in dry.xyz]
        trajectory = mdtraj.Trajectory(np.stack([xyz for _, xyz in wet]), wet[0][0])
        np.testing.assert_allclose(bound.compute(trajectory), bound.compute(dry), atol=1e-5)

    def test_names_of_another_program(self, bound):
        """They are taken in their order where elements and bonds agree with it; without bonds that is said."""
        trajectory = frames(3)
        expected, renamed = bound.compute(trajectory), {"rename": lambda name: f"{name}x"}
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            np.testing.assert_allclose(bound.compute(reordered(trajectory, seed=0, **renamed)), expected, atol=1e-5)
        with pytest.warns(UserWarning, match="other names of atoms in ACE1, ALA2, NME3 than"):
            found = bound.compute(reordered(trajectory, seed=0, bonds=False, **renamed))
        np.testing.assert_allclose(found, expected, atol=1e-5)
        with pytest.raises(GeomGNNError, match="its residue ACE1 has no atom CH3, but .*x, "):
            bound.compute(reordered(trajectory, **renamed))

    def test_other_molecules(self, bound):
        no_cap = frames(2).atom_slice(range(16))
        with pytest.raises(GeomGNNError, match="it has 0 NME instead of 1"):
            bound.compute(no_cap)
        no_beta = frames(2).atom_slice([k for k in range(22) if TOPOLOGY.atom(k).name != "CB"])
        with pytest.raises(GeomGNNError, match="its residue ALA2 has no atom CB"):
            bound.compute(no_beta)


class TestResidues:
    """Which residue is which, by order or number."""

    def rows(self, here, there, selection="name CA"):
        return AtomMatcher(here, here.select(selection)).rows(there).tolist()

    def test_numbers_from_elsewhere_do_not_count(self):
        """Of residues 2 to 4 of five: with numbers from 0 they are still the second to the fourth."""
        here, there = peptide([1, 2, 3, 4, 5]), peptide([0, 1, 2, 3, 4])
        assert self.rows(here, there, "resSeq 2 to 4 and name CA") == [7, 12, 17]

    def test_chains_of_a_dimer(self):
        here = peptide([1, 2], [1, 2])
        assert self.rows(here, here, "chainid 1 and name CA") == [12, 17]
        assert self.rows(here, peptide([1, 2], [2, 1]), "name CA") == [2, 7, 17, 12]

    def test_names_that_are_not_unique(self):
        here = mdtraj.Topology()
        residue = here.add_residue("LIG", here.add_chain())
        for symbol in "CCO":
            here.add_atom(symbol, element.get_by_symbol(symbol), residue)
        assert self.rows(here, here.copy(), "all") == [0, 1, 2]
        with pytest.raises(GeomGNNError, match="residue LIG0 has several atoms of one name"):
            AtomMatcher(here, [0, 1, 2]).rows(reordered(mdtraj.Trajectory(np.zeros((1, 3, 3)), here), seed=3).topology)

    def test_first_frame(self):
        trajectory = frames(2)
        atoms = select_atoms(TOPOLOGY)
        found = first_frame(reordered(trajectory), TOPOLOGY, atoms)
        np.testing.assert_array_equal(found.xyz, trajectory.xyz[:1, atoms])
        assert [atom.name for atom in found.topology.atoms] == [TOPOLOGY.atom(k).name for k in atoms]


class TestFiles:
    def test_fit(self, encoder):
        parts = [frames(), frames()[::-1]]
        settings = FitSettings(2.0, 2.0, encoder=encoder, pca=5, softening=0.0, tokens=TokenSpec(window="space"))
        expected, found = (fit_cv(data, ALA2, settings) for data in (parts, [reordered(part) for part in parts]))
        np.testing.assert_allclose(found.singular_values, expected.singular_values, rtol=1e-4)
        assert found.spec == expected.spec

    @pytest.mark.parametrize("ending", ["pdb", "h5", "gro"])
    def test_embed(self, ending, encoder, tmp_path):
        pytest.importorskip("zarr")
        if ending == "h5":
            pytest.importorskip("tables")
        frames().save(str(tmp_path / "a.xtc"))
        reordered(frames()).save(str(tmp_path / f"b.{ending}"))
        settings = EmbedSettings(encoder=encoder, tokens=TokenSpec(window="sequence"))
        paths = [tmp_path / "a.xtc", tmp_path / f"b.{ending}"]
        store = embed_trajectories(ALA2, paths, tmp_path / "a.zarr", settings, workers=1)
        np.testing.assert_allclose(store.positions(1)[:], store.positions(0)[:], atol=2e-3)

    def test_embed_of_another_molecule(self, encoder, tmp_path):
        pytest.importorskip("zarr")
        frames(2).atom_slice(range(16)).save(str(tmp_path / "a.pdb"))
        with pytest.raises(GeomGNNError, match="a.pdb: .* it has 0 NME instead of 1"):
            embed_trajectories(ALA2, [tmp_path / "a.pdb"], tmp_path / "a.zarr", EmbedSettings(encoder=encoder), workers=1)
