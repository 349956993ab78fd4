"""One spec says how atoms become tokens, and one featurization of it stands behind a fit, a store and a CV on a topology."""

import json
from dataclasses import FrozenInstanceError, replace

import mdtraj
import numpy as np
import pytest
import torch
from molecules import ALA2, ala2, peptide, random_cv, random_encoder, with_water

from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.representation.featurization import Featurization, SelectedAtoms
from openmm_geomgnn.representation.selection import residue_table, select_atoms
from openmm_geomgnn.representation.spec import TokenSpec

SPECS = {
    "all": TokenSpec(),
    "sequence": TokenSpec(window="sequence", context=0, pooling="mean"),
    "space": TokenSpec(window="space", radius=0.2, selection="protein and not element H"),
}


@pytest.fixture(params=SPECS)
def spec(request):
    return SPECS[request.param]


def made(spec, topology=None, **options):
    return Featurization(topology or ala2().topology, spec, random_encoder(), structure=ala2, **options)


class TestSpec:
    def test_what_files_hold_makes_the_same_tokens(self, spec):
        first = made(spec)
        again = TokenSpec.from_metadata({**json.loads(json.dumps(first.spec.to_metadata())), "version": 5})
        assert again == first.spec and not again.needs_structure and again.reference is None
        frames = first.molecule.positions(ala2())
        expected = first.tokenizer.embed(frames)
        # without a structure: the neighbours say all
        found = Featurization(ala2().topology, again, random_encoder())
        torch.testing.assert_close(found.tokenizer.embed(frames), expected, rtol=0, atol=0)
        assert found.windows.neighbours == first.windows.neighbours and found.spec == first.spec

    def test_is_frozen(self):
        with pytest.raises(FrozenInstanceError):
            TokenSpec().window = "space"

    def test_differences_are_those_that_matter(self):
        base = TokenSpec(window="sequence")
        assert base.differences(base.resolved([[0], [1]])) == []
        assert base.differences(replace(base, context=2, pooling="mean")) == ["pooling", "context"]
        assert base.differences(replace(base, radius=0.9)) == []  # no matter along the sequence
        assert TokenSpec(window="space").differences(TokenSpec(window="space", radius=0.9)) == ["radius"]
        assert TokenSpec().differences(TokenSpec(context=7, selection="name CA")) == ["selection"]

    def test_extent(self):
        assert [replace(TokenSpec(), window=kind).extent for kind in ("all", "sequence", "space")] == [
            None,
            "context",
            "radius",
        ]


class TestFeaturization:
    def test_is_what_a_cv_is_bound_with(self, spec):
        """The same atoms, windows and tokens, live and in a fit."""
        topology, _ = with_water(ala2().topology, ala2().xyz[0])
        options = {} if spec.window != "space" else {"reference": ala2()}
        cv = random_cv(ala2().topology, **spec.to_metadata() | options)
        bound, expected = cv.bind(topology, engine="eager"), made(cv.spec, topology)
        np.testing.assert_array_equal(bound.atoms, expected.atoms)
        assert bound.tokenizer.windows.neighbours == expected.windows.neighbours and cv.molecule == expected.table
        frames = expected.molecule.positions(with_water(ala2().topology, ala2().xyz[0])[1])
        torch.testing.assert_close(bound.tokenizer.embed(frames), expected.tokenizer.embed(frames), rtol=0, atol=0)

    def test_a_structure_is_asked_for_where_it_is_needed(self, tmp_path):
        calls = []

        def structure():
            calls.append(1)
            return ala2()

        spec = SPECS["space"]
        near = Featurization(ala2().topology, spec, random_encoder(), structure=structure).spec
        assert calls == [1]
        named = replace(spec, reference=str(ALA2))
        for other in (TokenSpec(), TokenSpec(window="sequence"), near, named):
            Featurization(ala2().topology, other, random_encoder(), structure=structure)
        assert calls == [1]
        with pytest.raises(GeomGNNError, match="needs a reference structure"):
            Featurization(ala2().topology, spec, random_encoder())

    def test_tokens_of_another_encoder(self):
        featurization, encoder = made(SPECS["sequence"]), random_encoder(seed=9).double()
        tokens = featurization.tokenizer_of(encoder).embed(featurization.molecule.positions(ala2()))
        assert tokens.dtype == torch.float64 and tokens.shape == (1, *featurization.token_shape)
        assert featurization.encoder is not encoder


class TestSelectedAtoms:
    def test_of_a_system_and_of_its_molecule(self):
        topology, _ = with_water(peptide([1, 2, 3]), np.zeros((15, 3)), before=True)
        found = SelectedAtoms.find(topology)
        np.testing.assert_array_equal(found.atoms, select_atoms(topology))
        assert found.table == residue_table(topology, found.atoms) and found.molecule is None
        assert found.names == [topology.atom(k).name for k in found.atoms]
        molecule = made(TokenSpec(), found).molecule
        again = SelectedAtoms.find(molecule)
        assert again.molecule is molecule and again.names == found.names and again.table == found.table
        np.testing.assert_array_equal(again.atoms, np.arange(len(found.atoms)))

    def test_of_a_file(self):
        found = SelectedAtoms.find(ALA2, "element C")
        assert isinstance(found.topology, mdtraj.Topology) and set(found.names) == {"CH3", "C", "CA", "CB"}
