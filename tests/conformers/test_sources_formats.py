"""Conformers from files: each source on a small file of the published format, with real molecules in it."""

import gzip
import hashlib
import importlib.util
import io
import tarfile
import zipfile
from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial.distance import pdist
from source_runs import assert_same, run

from openmm_geomgnn.conformers.sources import SOURCES, hdf5
from openmm_geomgnn.errors import GeomGNNError

SMILES = ["CCO", "c1ccsc1", "CC(=O)NC", "C[NH3+]", "CC(=O)[O-]", "Brc1ccccc1", "C#N", "F/C=C/Cl", "OP(O)(O)=O", "C1CC1"]


@pytest.fixture(scope="module")
def embedded():
    """RDKit molecules of SMILES, with one conformer each."""
    pytest.importorskip("rdkit")
    from rdkit import Chem
    from rdkit.Chem import AllChem

    molecules = [Chem.AddHs(Chem.MolFromSmiles(smiles)) for smiles in SMILES]
    for i, molecule in enumerate(molecules):
        assert AllChem.EmbedMolecule(molecule, randomSeed=i) == 0
    return molecules


@pytest.fixture(scope="module")
def conformers(embedded):
    return [
        (np.array([atom.GetAtomicNum() for atom in molecule.GetAtoms()]), molecule.GetConformer().GetPositions())
        for molecule in embedded
    ]


def xyz_frame(z, pos, comment=""):
    from ase.data import chemical_symbols

    rows = [f"{chemical_symbols[k]} {x:.6f} {y:.6f} {w:.6f}" for k, (x, y, w) in zip(z, pos, strict=True)]
    return "\n".join([str(len(z)), comment, *rows]) + "\n"


# --- QM9 --------------------------------------------------------------------------------------------------------------


def test_qm9():
    if importlib.util.find_spec("qm9pack") is None:  # it is not imported, here or in the source
        pytest.skip("qm9pack is not installed")
    qm9 = SOURCES["qm9"](number=300)
    found, skipped = run(qm9)
    assert len(found) == 300 and not skipped
    assert set(np.concatenate([z for z, _ in found])) <= {1, 6, 7, 8, 9} and max(len(z) for z, _ in found) <= 29
    assert all(0.9 < pdist(pos).min() < 1.6 for z, pos in found if len(z) > 2)
    everything = replace(qm9, number=None)
    assert sum(len(task) for task in everything.tasks(1)) >= 14
    z, pos = next(everything.conformers(everything.tasks(1)[0], 1))
    np.testing.assert_array_equal(z, [6, 1, 1, 1, 1])
    np.testing.assert_allclose(pos[0], [-0.0126981359, 1.0858041578, 0.0080009958])
    assert everything.tasks(1)[-1][-1][3] + 1 <= 130_831 // 3 + 1


def test_qm9_text_with_its_exponents():
    from openmm_geomgnn.conformers.sources.qm9 import parse

    z, pos = parse("['C','H','F']", "[[-0.5,1.*^-6,0.],[2.5*^-1,-3.*^-2,1.],[0.,0.,-12.25]]")
    np.testing.assert_array_equal(z, [6, 1, 9])
    np.testing.assert_array_equal(pos, [[-0.5, 1e-6, 0.0], [0.25, -0.03, 1.0], [0.0, 0.0, -12.25]])


# --- SDF, PCQM4Mv2 ----------------------------------------------------------------------------------------------------


@pytest.fixture
def sdf(tmp_path, embedded):
    """An SDF file with a drawing, a molecule in V3000 format, one with properties and one that is broken in it."""
    from rdkit import Chem

    flat = Chem.MolFromSmiles("c1ccsc1")
    flat.Compute2DCoords()
    text = [Chem.MolToMolBlock(molecule) for molecule in embedded]
    text[2] = Chem.MolToV3KMolBlock(embedded[2])
    text[3] += "> <note>\n$$$$ is within this line\n\n"
    text.insert(4, text[0].replace(" C ", " * ", 1))
    text.insert(6, Chem.MolToMolBlock(flat))
    text.insert(7, "no molecule\n\n\n")
    path = tmp_path / "some.sdf"
    path.write_text("$$$$\n".join(text) + "$$$$\n")
    return path


@pytest.mark.parametrize("task_bytes", [1, 1 << 24])
def test_sdf(sdf, conformers, monkeypatch, task_bytes):
    from openmm_geomgnn.conformers.sources import records

    monkeypatch.setattr(records, "TASK_BYTES", task_bytes)
    source = SOURCES["sdf"](file=str(sdf))
    assert len(source.tasks(1)) == (13 if task_bytes == 1 else 1)
    found, skipped = run(source)
    assert_same(found, conformers)
    assert skipped == {"has flat coordinates (2-D)": 1, "cannot be read": 1, "has atoms that are no element": 1}
    sdf.with_suffix(".sdf.gz").write_bytes(gzip.compress(sdf.read_bytes()))
    assert_same(run(replace(source, file=f"{sdf}.gz"))[0], conformers)
    some, _ = run(replace(source, number=6))
    assert 3 <= len(some) <= 6 and all(any(np.array_equal(pos, p) for _, p in found) for _, pos in some)


def test_pcqm4mv2_geometries(tmp_path, embedded, conformers):
    from rdkit import Chem

    path = tmp_path / "pcqm4m-v2-train.sdf"
    with Chem.SDWriter(str(path)) as writer:
        for molecule in embedded:
            writer.write(molecule)
    with tarfile.open(f"{path}.tar.gz", "w:gz") as archive:
        archive.add(path, path.name)
    source = SOURCES["pcqm4mv2"]()
    assert_same(run(source.relative_to(tmp_path))[0], conformers)
    assert_same(run(replace(source, file=str(path)))[0], conformers)
    assert len(run(replace(source, file=str(path), number=4))[0]) == 4
    with pytest.raises(GeomGNNError, match="pcqm4m-v2-train.sdf.tar.gz, which is not a file"):
        source.check()


def test_pcqm4mv2_smiles(tmp_path, conformers):
    table = "idx,smiles,homolumogap\n" + "".join(f"{i},{smiles},{i / 10}\n" for i, smiles in enumerate(SMILES))
    (tmp_path / "data.csv.gz").write_bytes(gzip.compress(table.encode()))
    with zipfile.ZipFile(tmp_path / "pcqm4m-v2.zip", "w") as archive:
        archive.write(tmp_path / "data.csv.gz", "pcqm4m-v2/raw/data.csv.gz")
    source = SOURCES["pcqm4mv2"](file=str(tmp_path / "data.csv.gz"), per_molecule=2)
    found, _ = run(source)
    assert [z.tolist() for z, _ in found] == [z.tolist() for z, _ in conformers for _ in range(2)]
    assert_same(run(replace(source, file=str(tmp_path / "pcqm4m-v2.zip")))[0], found, atol=0)


# --- XYZ, OrbNet Denali -----------------------------------------------------------------------------------------------


def test_plain_xyz(tmp_path, conformers):
    path = tmp_path / "some.xyz"
    path.write_text("\n".join(xyz_frame(z, pos, "a comment") for z, pos in conformers) + "\n\n")
    source = SOURCES["xyz"](file=str(path))
    assert_same(run(source)[0], conformers)
    path.write_text(xyz_frame(*conformers[0], "a form feed \f and a line separator \u2028 do not end a line"))
    assert_same(run(source)[0], conformers[:1])
    numbers = "2\n\n8 0 0 0\n1 0 0 .96 extra columns\n1\nions are frames\nna 1e0 -2 3\n"
    path.write_text(numbers)
    assert_same(run(source)[0], [([8, 1], [[0, 0, 0], [0, 0, 0.96]]), ([11], [[1, -2, 3]])])
    path.write_bytes(numbers.replace("\n", "\r\n").encode())
    assert_same(run(source)[0], [([8, 1], [[0, 0, 0], [0, 0, 0.96]]), ([11], [[1, -2, 3]])])


def test_extended_xyz_as_ase_writes_it(tmp_path, conformers):
    ase_io = pytest.importorskip("ase.io")
    from ase import Atoms
    from ase.calculators.singlepoint import SinglePointCalculator

    frames = [Atoms(numbers=z, positions=pos) for z, pos in conformers]
    for frame in frames[::2]:
        frame.calc = SinglePointCalculator(frame, energy=-1.0, forces=np.full((len(frame), 3), 9.0))
        frame.info["name"] = "with a = sign and pos"
    frames[1].set_cell([20.0, 21.0, 22.0])
    path = tmp_path / "some.extxyz"
    ase_io.write(path, frames, format="extxyz")
    source = SOURCES["xyz"](file=str(path))
    assert_same(run(source)[0], conformers, atol=1e-7)
    # columns in another order
    path.write_text('2\nProperties=id:I:1:forces:R:3:pos:R:3:Z:I:1 pbc="F F F"\n0 9 9 9 0 0 0 6\n1 9 9 9 0 0 1.1 8\n')
    assert_same(run(source)[0], [([6, 8], [[0, 0, 0], [0, 0, 1.1]])])


def test_bad_xyz(tmp_path):
    path = tmp_path / "some.xyz"
    source = SOURCES["xyz"](file=str(path))
    good = "1\n\nH 0 0 0\n"
    path.write_text(good + "2\n\nX 0 0 0\nH 0 0 1\n" + "1\n\nH nan 0 0\n" + good)
    found, skipped = run(source)
    assert len(found) == 2
    assert skipped == {"has atoms that are no element": 1, "has coordinates that are not finite": 1}
    for text, message in (
        (good + "3\n\nH 0 0 0\n", "Frame 2 of .*has 3 atoms, and ends after 1 lines"),
        (good + "0\n\n", "Frame 2 of .* starts with '0'"),
        (good + "ATOM\n", "Frame 2 of .* starts with 'ATOM'"),
        (good + "1\n\nH 0 0\n", "Frame 2 of .*some.xyz cannot be read: .*x, y, z"),
        (good + "1\n\nH 0 0 one\n", "Frame 2 of .*cannot be read: .*'one'"),
        ("1\nProperties=species:S:1:forces:R:3\nH 0 0 0\n", "Frame 1 of .*species, forces, .*pos"),
    ):
        path.write_text(text)
        with pytest.raises(GeomGNNError, match=message) as error:
            run(source)
        assert "\n" not in str(error.value)


@pytest.fixture(params=[tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def denali(tmp_path, conformers, request):
    """The archives of OrbNet Denali with ten conformers; their names are longer than a tar header holds."""
    rows, expected = [], []
    path = tmp_path / "orbnet_denali.tar.gz"
    with tarfile.open(path, "w:gz", format=request.param) as archive:
        for folder in ("xyz_files", *(f"xyz_files/CHEMBL{i}_conformers_of_a_protomer" for i in range(4))):
            entry = tarfile.TarInfo(folder)
            entry.type = tarfile.DIRTYPE
            archive.addfile(entry)
        for i, (z, pos) in enumerate(conformers):
            molecule, sample = f"CHEMBL{i // 3}_conformers_of_a_protomer", hashlib.sha256(bytes([i])).hexdigest()
            for name, text in ((f"{sample}.xyz", xyz_frame(z, pos, f"{i % 2} 1")), (f"._{sample}.xyz", "\0\1")):
                entry = tarfile.TarInfo(f"xyz_files/{molecule}/{name}")
                entry.size = len(text)
                archive.addfile(entry, io.BytesIO(text.encode()))
            if i != 5:  # not every file is in the table
                subset = ("conformers", "salts")[i % 2]
                rows.append(f"{i},{sample},{subset},{molecule},False,False,False,True,0,-1588.0915,-56.1028\n")
                expected.append((z, pos))
    header = ",sample_id,subset,mol_id,test_set,test_set_plus,prelim_1,training_set_plus,charge,dft_energy,xtb1_energy\n"
    table = tmp_path / "denali_labels.csv"
    table.write_text(header + "".join(reversed(rows)))
    with tarfile.open(tmp_path / "orbnet_denali_targets.tar.gz", "w:gz") as archive:
        archive.add(table, "denali_labels.csv")
    return path, table, expected


def test_denali(denali, conformers, tmp_path, monkeypatch):
    from openmm_geomgnn.conformers.sources import records

    path, table, expected = denali
    source = SOURCES["denali"](file=str(path))
    assert_same(run(source)[0], conformers)
    (tmp_path / "plain.tar").write_bytes(gzip.decompress(path.read_bytes()))
    assert_same(run(replace(source, file=str(tmp_path / "plain.tar")))[0], conformers)
    monkeypatch.setattr(records, "TASK_BYTES", 6000)
    assert len(source.tasks(1)) > 2
    assert_same(run(source)[0], conformers)
    labelled = replace(source, labels=str(tmp_path / "orbnet_denali_targets.tar.gz"))
    assert_same(run(labelled)[0], expected)
    assert_same(run(replace(labelled, labels=str(table), subset="salts"))[0], conformers[1:4:2] + conformers[7::2])
    assert len(run(replace(labelled, subset=["salts", "conformers"], number=3))[0]) == 3
    with pytest.raises(GeomGNNError, match="no subset 'salt'. Did you mean 'salts'.*conformers, salts"):
        run(replace(labelled, subset="salt"))
    with pytest.raises(GeomGNNError, match="subset .* is 'salts', but the subsets are in denali_labels.csv"):
        replace(source, subset="salts").check()
    with pytest.raises(GeomGNNError, match="holds no .xyz files"):
        run(replace(source, file=str(tmp_path / "orbnet_denali_targets.tar.gz")))


# --- HDF5, TorchMD-Net ------------------------------------------------------------------------------------------------


@pytest.fixture
def shaken(conformers):
    """Five copies of each conformer with noise: [(z, (5, N, 3))]."""
    rng = np.random.default_rng(2)
    return [(z, pos + rng.normal(scale=0.05, size=(5, *pos.shape))) for z, pos in conformers]


def flat(shaken):
    return [(z, pos) for z, many in shaken for pos in many]


def write_ani1(file, shaken):
    from ase.data import chemical_symbols

    for i, (z, pos) in enumerate(shaken):
        group = file.create_group(f"gdb11_s01/gdb11_s01-{i}")
        group["species"] = np.array([chemical_symbols[k] for k in z], dtype="S")
        group["coordinates"] = pos.astype(np.float32)
        group["energies"] = np.zeros(len(pos))


def write_ani1x(file, shaken):
    for i, (z, pos) in enumerate(shaken):
        group = file.create_group(f"C{i}")
        group["atomic_numbers"] = z.astype(np.uint8)
        group["coordinates"] = pos.astype(np.float32)
        group["wb97x_dz.energy"] = np.zeros(len(pos))
        group["wb97x_dz.forces"] = np.zeros(pos.shape, dtype=np.float32)


def write_spice(file, shaken):
    for i, (z, pos) in enumerate(shaken):
        group = file.create_group(f"{i:05d}")
        group["atomic_numbers"] = z.astype(np.int16)
        group["conformations"] = (pos / hdf5.UNITS["bohr"]).astype(np.float32)
        group["conformations"].attrs["units"] = "bohr"
    file.create_group("bogus")["atomic_numbers"] = np.array([6], dtype=np.int16)
    file["bogus"]["conformations"] = np.zeros(0)


def write_torchmdnet(file, shaken):
    file.create_group("_metadata")["note"] = np.zeros(3)
    for i, (z, pos) in enumerate(shaken):
        group = file.create_group(f"molecules{i}")
        group["types"] = z
        group["pos"] = pos.astype(np.float32)
        group["energy"] = np.zeros(len(pos))


@pytest.mark.parametrize("write", [write_ani1, write_ani1x, write_spice, write_torchmdnet])
@pytest.mark.parametrize("atoms", [20, 2_000_000])
def test_hdf5(tmp_path, shaken, write, atoms, monkeypatch):
    h5py = pytest.importorskip("h5py")
    monkeypatch.setattr(hdf5, "ATOMS_PER_TASK", atoms)
    path = tmp_path / "some.h5"
    with h5py.File(path, "w") as file:
        write(file, shaken)
    source = SOURCES["hdf5"](file=str(path))
    assert len(source.tasks(1)) > 20 if atoms == 20 else len(source.tasks(1)) == 1
    everything, skipped = run(source)
    assert_same(everything, flat(shaken))
    assert not skipped
    some, _ = run(replace(source, number=12))
    assert len(some) == 12 and all(any(np.array_equal(pos, p) for _, p in everything) for _, pos in some)


def test_hdf5_groups_of_several_molecules(tmp_path, conformers, monkeypatch):
    h5py = pytest.importorskip("h5py")
    monkeypatch.setattr(hdf5, "ATOMS_PER_TASK", 20)
    same_size = [(np.roll(z, i), np.roll(pos, i, axis=0)) for i, (z, pos) in enumerate([conformers[0]] * 9)]
    with h5py.File(tmp_path / "some.h5", "w") as file:
        file["9/types"] = np.array([z for z, _ in same_size])
        file["9/pos"] = np.array([pos for _, pos in same_size])
        file["9/energy"] = np.zeros(9)
    assert_same(run(SOURCES["hdf5"](file=str(tmp_path / "some.h5")))[0], same_size)
    torchmdnet = SOURCES["torchmdnet"](dataset="HDF5", arguments={"filename": str(tmp_path / "some.h5")})
    assert_same(run(torchmdnet)[0], same_size)


def test_hdf5_names_units_and_faults(tmp_path, shaken):
    h5py = pytest.importorskip("h5py")
    path = tmp_path / "some.h5"
    z, pos = shaken[0]
    with h5py.File(path, "w") as file:
        file["numbers"], file["xyz"], file["species"] = z, pos[0] / 10, z[:-1]
    source = SOURCES["hdf5"](file=str(path))
    with pytest.raises(GeomGNNError, match=r"holds no conformers.*coordinates, conformations.*`coordinates`"):
        run(source)
    named = replace(source, coordinates="xyz", elements="numbers", unit="nanometer")
    assert_same(run(named)[0], [(z, pos[0])])
    with pytest.raises(GeomGNNError, match=r"has 8 elements and coordinates of 9 atoms"):
        run(replace(named, elements="species"))
    with pytest.raises(GeomGNNError, match="unit .* is 'bhor'.*Did you mean 'bohr'"):
        replace(named, unit="bhor").check()
    with h5py.File(path, "a") as file:
        file["xyz"].attrs["units"] = np.bytes_("nm")
    assert_same(run(replace(named, unit=None))[0], [(z, pos[0])])
    with h5py.File(path, "a") as file:
        file["xyz"].attrs["units"] = "furlong"
    with pytest.raises(GeomGNNError, match="units of 'furlong'.*give `unit`, one of angstrom"):
        run(replace(named, unit=None))
    path.write_text("text")
    with pytest.raises(GeomGNNError, match="cannot be read as an HDF5 file"):
        source.check()


@pytest.mark.slow
def test_torchmdnet_data_sets(tmp_path, shaken):
    h5py = pytest.importorskip("h5py")
    path = tmp_path / "some.h5"
    with h5py.File(path, "w") as file:
        write_torchmdnet(file, shaken)
    source = SOURCES["torchmdnet"](dataset="HDF5", arguments={"filename": str(path)})
    assert_same(run(source)[0], flat(shaken))
    assert_same(run(source)[0], run(SOURCES["hdf5"](file=str(path)))[0], atol=1e-6)
    assert len(run(replace(source, number=7))[0]) == 7

    raw = tmp_path / "ani" / "raw" / "ani1x-release.h5"
    raw.parent.mkdir(parents=True)
    light = [(z, pos) for z, pos in shaken if set(z) <= {1, 6, 7, 8}]
    with h5py.File(raw, "w") as file:
        write_ani1x(file, light)
    assert_same(run(SOURCES["torchmdnet"](dataset="ANI1X", root="ani").relative_to(tmp_path))[0], flat(light))

    for wrong, message in (
        ({"dataset": "Spice"}, "no data set 'Spice'. Did you mean 'SPICE'"),
        ({"arguments": {"file": "x"}, "dataset": "MD17"}, "MD17 of TorchMD-Net takes no file"),
        ({"arguments": {}, "dataset": "MD17"}, "MD17 of TorchMD-Net needs root"),
        ({"arguments": [1]}, r"arguments .* is \[1\], .*mapping"),
        ({"arguments": {"filename": str(tmp_path / "none.h5")}}, "cannot open its data set HDF5 with .*none.h5"),
    ):
        with pytest.raises(GeomGNNError, match=message):
            run(replace(source, **wrong))
