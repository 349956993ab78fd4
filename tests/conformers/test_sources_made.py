"""Conformers that are made: of SMILES with RDKit, of peptides and nucleotides with OpenMM."""

import gzip
import importlib.util
import zipfile
from collections import Counter
from dataclasses import replace

import mdtraj
import numpy as np
import pytest
from scipy.spatial.distance import pdist
from source_runs import assert_same, run

from openmm_geomgnn.conformers.sources import SOURCES, chain_geometry
from openmm_geomgnn.conformers.sources import smiles as smiles_module
from openmm_geomgnn.conformers.sources.ccd import components
from openmm_geomgnn.errors import GeomGNNError

ALANINE = "C[C@H](N)C(=O)O"
SMILES = ["CCO", ALANINE, "[Na+].[Cl-]", "c1ccccc1Br", "not a molecule", "", "C[C@@H](N)C(=O)O", "*CC", "CC(=O)NC"]
GOOD = [0, 1, 3, 6, 8]


# --- SMILES -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def smiles(tmp_path):
    pytest.importorskip("rdkit")
    path = tmp_path / "some.smi"
    path.write_text("".join(f"{text} name{i}\n" for i, text in enumerate(SMILES)))
    # the empty one is an empty line
    path.write_text(path.read_text().replace(" name5", "").replace("not a molecule", "not"))
    return SOURCES["smiles"](file=str(path))


def test_smiles_are_embedded_and_others_counted(smiles):
    from rdkit import Chem

    found, skipped = run(smiles)
    for (z, pos), i in zip(found, GOOD, strict=True):
        atoms = Chem.AddHs(Chem.MolFromSmiles(SMILES[i])).GetAtoms()
        assert z.tolist() == [atom.GetAtomicNum() for atom in atoms] and z.dtype == np.int64
        assert pos.shape == (len(z), 3) and 0.9 < pdist(pos).min() < 1.3
    assert skipped == {
        "not a valid SMILES": 1,
        "several fragments (a salt or a mixture)": 1,
        "has atoms that are no element": 1,
    }


def test_smiles_keep_their_chirality(smiles):
    # atoms C, CA, N, C of alanine: the sign of the volume that N, C and CB span at CA
    volumes = []
    for z, pos in (found for i, found in enumerate(run(replace(smiles, per_molecule=4))[0]) if i // 4 in (1, 3)):
        assert z[:6].tolist() == [6, 6, 7, 6, 8, 8]
        volumes.append(np.linalg.det([pos[2] - pos[1], pos[3] - pos[1], pos[0] - pos[1]]))
    assert len(volumes) == 8 and (np.sign(volumes) == [1] * 4 + [-1] * 4).all()


def test_conformers_depend_on_the_seed_and_the_molecule_only(smiles, monkeypatch):
    found, _ = run(smiles)
    assert_same(run(smiles)[0], found, atol=0)
    others, _ = run(smiles, seed=2)
    assert all(np.abs(pos - other).max() > 0.05 for (_, pos), (_, other) in zip(found, others, strict=True))
    # whatever else is drawn, and in however many tasks
    some, _ = run(replace(smiles, number=5))
    assert 0 < len(some) < 5
    for _, pos in some:
        assert any(np.array_equal(pos, p) for _, p in found)
    assert len(smiles.tasks(1)) == 1 and len(replace(smiles, per_molecule=100).tasks(1)) == 5
    monkeypatch.setattr(smiles_module, "CONFORMERS_PER_TASK", 2)
    assert len(smiles.tasks(1)) == 5
    assert_same(run(smiles)[0], found, atol=0)


def test_optimised_conformers_have_lower_energies(smiles):
    from rdkit import Chem
    from rdkit.Chem import rdForceFieldHelpers

    def energies(source, helper):
        result = []
        for (_, pos), i in zip(run(source)[0], np.repeat(GOOD, 3), strict=True):
            molecule = Chem.AddHs(Chem.MolFromSmiles(SMILES[i]))
            molecule.AddConformer(Chem.Conformer(len(pos)))
            molecule.GetConformer().SetPositions(pos)
            result.append(helper(molecule).CalcEnergy())
        return np.array(result)

    def mmff(molecule):
        settings = rdForceFieldHelpers.MMFFGetMoleculeProperties(molecule)
        return rdForceFieldHelpers.MMFFGetMoleculeForceField(molecule, settings)

    three = replace(smiles, per_molecule=3)
    for name, helper in (("mmff", mmff), ("uff", rdForceFieldHelpers.UFFGetMoleculeForceField)):
        assert (energies(replace(three, optimise=name), helper) < energies(three, helper) - 1).all()


def test_molecules_without_parameters_or_conformer_are_counted(tmp_path):
    pytest.importorskip("rdkit")
    path = tmp_path / "hard.smi"
    # an element without MMFF parameters, and a ring that no geometry closes with these stereocentres
    path.write_text("C[Se]C\nC1C[C@H]2CC[C@H]1C2\n")
    found, skipped = run(SOURCES["smiles"](file=str(path), optimise="mmff"))
    assert not found and skipped == {"no MMFF parameters": 1, "no conformer found": 1}


TABLE = 'id,"Smiles, canonical",SMILES\n1,x,CCO\n2,"a,b",CCN\n3\n\n4,x,"CC"\n'


@pytest.mark.parametrize(
    ("name", "text", "column"),
    [
        ("a.csv", TABLE, None),
        ("a.csv.gz", TABLE, "SMILES"),
        ("a.csv.gz", "\ufeff" + TABLE.replace("SMILES", "smiles").replace("\n", "\r\n"), None),
        ("a.tsv", TABLE.replace(",", "\t"), None),
        ("a.txt", "id smiles\n1 CCO\n2 CCN\n3\n\n4 CC\n", "smiles"),
        ("a.smi.gz", "CCO first\nCCN\n\nCC third", None),
    ],
)
def test_tables(tmp_path, name, text, column):
    pytest.importorskip("rdkit")
    content = text.encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    found, skipped = run(SOURCES["smiles"](file=str(tmp_path / name), column=column))
    assert [sorted(z)[-3:] for z, _ in found] == [[6, 6, 8], [6, 6, 7], [1, 6, 6]] and not skipped


def test_wrong_settings_of_smiles(tmp_path):
    pytest.importorskip("rdkit")
    path = tmp_path / "a.csv"
    path.write_text(TABLE)
    source = SOURCES["smiles"](file=str(path))
    for wrong, message in (
        ({"column": "smile"}, r"a\.csv has no column 'smile'; it has 'id', .*Did you mean 'SMILES'"),
        ({"optimise": "MMFF94"}, "optimise .* is 'MMFF94', .*Did you mean 'mmff'"),
        ({"per_molecule": 0}, "per_molecule .* is 0"),
    ):
        with pytest.raises(GeomGNNError, match=message):
            replace(source, **wrong).check()


def test_moses_is_found_in_its_package_and_its_wheel(tmp_path, monkeypatch):
    pytest.importorskip("rdkit")
    sets = {"train": ["CCO", "CCN"], "test": ["CCF"], "test_scaffolds": ["CCCl"]}
    folder = tmp_path / "site" / "moses" / "dataset" / "data"
    folder.mkdir(parents=True)
    (tmp_path / "site" / "moses" / "__init__.py").write_text("raise ImportError('this package is too old to import')")
    for name, smiles in sets.items():
        split = "train" if name == "train" else name
        table = "SMILES,SPLIT\n" + "".join(f"{text},{split}\n" for text in smiles)
        (folder / f"{name}.csv.gz").write_bytes(gzip.compress(table.encode()))
    wheel = tmp_path / "molsets-0.3.1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path in folder.iterdir():
            archive.write(path, f"moses/dataset/data/{path.name}")
    source = SOURCES["smiles"]()
    if importlib.util.find_spec("moses") is None:
        with pytest.raises(GeomGNNError, match="pip install --no-deps molsets"):
            source.check()
    monkeypatch.syspath_prepend(tmp_path / "site")
    heavy = [
        [z[z > 1].tolist() for z, _ in run(replace(source, file=f"moses{s}"))[0]] for s in ("", "/test", "/test_scaffolds")
    ]
    assert heavy == [[[6, 6, 8], [6, 6, 7]], [[6, 6, 9]], [[6, 6, 17]]]
    assert_same(run(replace(source, file=str(wheel)))[0], run(source)[0], atol=0)
    assert_same(
        run(replace(source, file=str(wheel), member="moses/dataset/data/test.csv.gz"))[0],
        run(replace(source, file="moses/test"))[0],
        atol=0,
    )


# --- peptides ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [1, 100, 5000])
def test_plan_adds_up(number):
    source = SOURCES["peptides"](number=number)
    plan = source.plan(seed=3)
    assert sum(n for _, n in plan) == number and min(n for _, n in plan) > 0
    assert plan == source.plan(seed=3)
    tasks = source.tasks(3)
    assert sum(n for *_, n in tasks) == number and max(n for *_, n in tasks) <= 100
    if number == 5000:
        assert {s for s, _ in plan if len(s) == 1} == set("ACDEFGHIKLMNPQRSTVWY")
        assert [sum(n for s, n in plan if len(s) == length) for length in range(1, 5)] == [2500, 1500, 600, 400]
        assert plan != source.plan(seed=4)
        assert {len(s) for s, _ in replace(source, shares=[0, 0, 1]).plan(1)} == {3}


def test_some_residues_are_mirrored():
    pytest.importorskip("PeptideBuilder")
    plain, source = (SOURCES["peptides"](number=4000, d_share=share) for share in (0.0, 0.3))
    sequences, mixed = ([sequence for sequence, _ in one.plan(2)] for one in (plain, source))
    assert [sequence.upper() for sequence in mixed[:50]] == sequences[:50]  # all of one and two residues are drawn alike
    assert all(sequence.isupper() for sequence in sequences + [one for one in mixed if len(one) == 1])
    longer = "".join(one for one in mixed if len(one) > 1)
    assert 0.2 < np.mean([letter.islower() for letter in longer]) < 0.4
    for wrong in (-0.1, 1.5, "all", True):
        with pytest.raises(GeomGNNError, match="d_share of the conformer source `peptides` is .* from 0 to 1"):
            replace(source, d_share=wrong).check()


def handedness(z, pos, centre):
    """The sign of the volume that the first three heavy neighbours of an atom span, and its number of hydrogens."""
    near = np.flatnonzero(np.linalg.norm(pos - pos[centre], axis=1) < 1.7)
    heavy = [k for k in near if k != centre and z[k] > 1]
    return np.sign(np.linalg.det(pos[heavy[:3]] - pos[centre])), len(near) - 1 - len(heavy)


@pytest.mark.slow
def test_d_residues_are_mirror_images():
    pytest.importorskip("PeptideBuilder")
    source = SOURCES["peptides"](temperatures=[400.0])
    # threonine has a second stereocentre, in its side chain; of proline the ring is mirrored
    for sequences, atoms in ((("TA", "tA", "TA"), ("CA", "CB")), (("PA", "pA", "PA"), ("CA",))):
        signs = []
        for sequence in sequences:
            names = [atom.name for atom in source.build(sequence)[0].atoms() if atom.residue.index == 1]
            centres = [6 + names.index(name) for name in atoms]  # behind the six atoms of ACE
            frames = list(source.conformers([sequence, 0, 0, 4], 1))
            assert len(frames) == 4
            found = {tuple(handedness(z, pos, k) for k in centres) for z, pos in frames}
            assert len(found) == 1  # none turns over
            signs.append([sign for sign, _ in found.pop()])
        assert signs[0] == signs[2] == [-sign for sign in signs[1]]


@pytest.mark.slow
def test_peptides_are_whole_and_repeatable():
    pytest.importorskip("PeptideBuilder")
    source = SOURCES["peptides"](temperatures=[350.0])
    tasks = [["A", 0, 0, 2], ["GP", 1, 0, 1]]
    first, second = ([found for task in tasks for found in source.conformers(task, 5)] for _ in range(2))
    assert [len(z) for z, _ in first] == [22, 22, 12 + 7 + 14]
    assert_same(second, first, atol=0)
    other = next(source.conformers(["A", 0, 100, 2], 5))
    assert np.abs(other[1] - first[0][1]).max() > 0.1
    for z, pos in first:
        gaps = np.linalg.norm(pos[:, None] - pos, axis=2) + 9 * np.eye(len(z))
        assert gaps.min() > 0.9 and gaps.min(axis=1).max() < 1.7
    for z, pos in first[:2]:
        assert z[:13].tolist() == [6, 1, 1, 1, 6, 8, 7, 1, 6, 1, 6, 8, 6]
        n, ca, c, cb = pos[[6, 8, 10, 12]]
        assert np.linalg.det([n - ca, c - ca, cb - ca]) > 0.5  # an L residue


def test_rotation_turns_a_torsion():
    pos = np.array([[0.1, 0.1, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.15], [0.1, 0.0, 0.2], [0.0, 0.1, 0.2]])
    topology = mdtraj.Topology()
    residue = topology.add_residue("X", topology.add_chain())
    for _ in pos:
        topology.add_atom("C", mdtraj.element.carbon, residue)
    turned = chain_geometry.rotate(pos, 1, 2, np.array([2, 3, 4]), 0.7)
    angles = mdtraj.compute_dihedrals(mdtraj.Trajectory([pos, turned], topology), [[0, 1, 2, 3]])[:, 0]
    assert angles[1] - angles[0] == pytest.approx(0.7, abs=1e-5)
    np.testing.assert_allclose(turned[:3], pos[:3], atol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(turned[3] - turned[4]), np.linalg.norm(pos[3] - pos[4]))


def test_wrong_settings_of_peptides():
    pytest.importorskip("PeptideBuilder")
    source = SOURCES["peptides"]()
    source.check()
    for wrong, message in (
        ({"number": 0}, "number .* is 0"),
        ({"temperatures": [300, -1]}, r"temperatures .* is \[300, -1\], .*at least 1"),
        ({"temperatures": 300}, "temperatures .* is 300, .*list"),
        ({"shares": [0, 0]}, r"shares .* is \[0, 0\]: give at least one above 0"),
        ({"shares": []}, "shares .*above 0"),
    ):
        with pytest.raises(GeomGNNError, match=message):
            replace(source, **wrong).check()


# --- nucleotides ------------------------------------------------------------------------------------------------------


def test_plan_of_nucleotides():
    source = SOURCES["nucleotides"](number=1000)
    plan = source.plan(1)
    assert sum(number for _, number in plan) == 1000
    singles = [sequence for sequence, _ in plan if len(sequence.split()[1]) == 1]
    assert singles == [f"{kind} {letter}" for kind, letters in (("RNA", "ACGU"), ("DNA", "ACGT")) for letter in letters]
    kinds = [sequence.split()[0] for sequence, _ in plan[len(singles) :]]
    assert {"RNA", "DNA"} == set(kinds)
    for sequence, _ in plan:
        kind, letters = sequence.split()
        assert set(letters) <= set("ACGU" if kind == "RNA" else "ACGT")


@pytest.mark.slow
@pytest.mark.parametrize(("sequence", "atoms", "phosphates"), [("RNA GU", 63, 1), ("DNA TCA", 93, 2), ("DNA A", 31, 0)])
def test_strands_are_whole_and_repeatable(sequence, atoms, phosphates):
    pytest.importorskip("rdkit")
    source = SOURCES["nucleotides"](temperatures=[400.0])
    first, second = (list(source.conformers([sequence, 0, 0, 3], 1)) for _ in range(2))
    assert_same(second, first, atol=0)
    for z, pos in first:
        assert len(z) == atoms and (z == 15).sum() == phosphates
        gaps = np.linalg.norm(pos[:, None] - pos, axis=2) + 9 * np.eye(len(z))
        assert gaps.min() > 0.9 and gaps.min(axis=1).max() < 1.8
        for k in np.flatnonzero(z == 15):
            bound = z[(gaps[k] < 1.9)]
            assert bound.tolist() == [8, 8, 8, 8]  # and no hydrogen at any of them:
            assert all(np.sum((gaps[j] < 1.2) & (z == 1)) == 0 for j in np.flatnonzero(gaps[k] < 1.9))


# --- the Chemical Component Dictionary --------------------------------------------------------------------------------


@pytest.mark.slow
class TestCCD:
    @pytest.fixture(autouse=True)
    def packages(self):
        pytest.importorskip("biotite")
        pytest.importorskip("rdkit")

    @staticmethod
    def names(source, seed=1):
        return [name for task in source.tasks(seed) for name, _ in task]

    def test_ideal_coordinates_are_those_of_the_dictionary(self):
        from biotite.structure import info

        source = SOURCES["ccd"](number=12, coordinates="ideal", having=["P", "Fe"])
        found, skipped = run(source)
        assert len(found) == 12 and not skipped
        for name, (z, pos) in zip(self.names(source), found, strict=True):
            residue = info.residue(name)
            np.testing.assert_allclose(pos, residue.coord, atol=1e-3)
            assert {15, 26} & set(z.tolist()) and len(z) == len(residue) <= 100
        assert_same(run(source)[0], found, atol=0)

    def test_made_conformers_have_the_stereocentres_of_the_dictionary(self):
        from biotite.structure import info

        # L- and D-alanine, adenosine triphosphate, a porphyrin that RDKit has no force field for
        source, numbers = SOURCES["ccd"](), {"ALA": 0, "DAL": 1, "ATP": 2, "HEM": 3}
        signs, skipped = {}, Counter()
        for name, number in numbers.items():
            made = list(source.conformers([[name, number]], 1, skipped))
            assert len(made) == (name != "HEM")
            for z, pos in made:
                gaps = np.linalg.norm(pos[:, None] - pos, axis=2) + 9 * np.eye(len(z))
                assert 0.9 < gaps.min() < 1.2
                atom = dict(zip(info.residue(name).atom_name.tolist(), pos, strict=True))
                if "CB" in atom:
                    signs[name] = np.sign(np.linalg.det([atom[there] - atom["CA"] for there in ("N", "C", "CB")]))
        assert signs["ALA"] == -signs["DAL"]
        assert sum(skipped.values()) == 1

    def test_what_is_asked_for_is_what_is_drawn(self):
        source = SOURCES["ccd"](elements=["H", "C", "O", "P"], having=["P"], max_atoms=40)
        table = components()
        place = {name: k for k, name in enumerate(table.names)}
        names = self.names(source)
        assert len(names) > 100 and len(set(names)) == len(names)
        for name in names:
            k = place[name]
            elements = {symbol for symbol, there in zip(table.symbols, table.has[k], strict=True) if there}
            assert "P" in elements <= {"H", "C", "O", "P"} and table.sizes[k] <= 40
        held_out = self.names(replace(source, number=50, skip=100))
        drawn = self.names(replace(source, number=100))
        assert len(drawn) == 100 and len(held_out) == 50 and not set(drawn) & set(held_out)
        every = SOURCES["ccd"]()
        assert max(len(task) for task in every.tasks(1)) == 100
        assert len(self.names(every)) > len(self.names(replace(every, coordinates="ideal"))) > 40_000

    def test_wrong_settings(self):
        source = SOURCES["ccd"]()
        source.check()
        for wrong, message in (
            ({"elements": ["C", "Xx"]}, "elements of the conformer source `ccd` names 'Xx'"),
            ({"having": [1]}, "having of the conformer source `ccd` names 1"),
            ({"coordinates": "model"}, "coordinates .* is 'model'"),
            ({"coordinates": "ideal", "per_molecule": 2}, "per_molecule .* is 2, but a component has one ideal"),
            ({"optimise": "gaff"}, "optimise .* is 'gaff'"),
            ({"max_atoms": 0}, "max_atoms .* is 0"),
        ):
            with pytest.raises(GeomGNNError, match=message):
                replace(source, **wrong).check()
