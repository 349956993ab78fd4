"""The store of conformers, the dataset that reads it, and the script that makes it."""

import io
import json
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from torch_geometric.loader import DataLoader

from openmm_geomgnn.data import make_conformers
from torchmdnet_ext.datasets.conformers import Conformers, shipped_file, write_conformers


def molecules(number, seed=0):
    """Random C/N/O/H molecules of 3 to 20 atoms, (z, pos, source), about half of the atoms hydrogens."""
    rng = np.random.default_rng(seed)
    for i in range(number):
        n = int(rng.integers(3, 21))
        z = rng.choice([1, 1, 1, 6, 7, 8], size=n)
        z[:2] = 6
        yield z, rng.normal(scale=3.0, size=(n, 3)) + 40.0, ("left", "right")[i % 2]


@pytest.fixture
def store(tmp_path):
    path = tmp_path / "some.safetensors"
    assert write_conformers(path, molecules(400), "made for a test") == 400
    return path


def test_round_trip(store):
    dataset = Conformers(file=store)
    assert len(dataset) == 400
    assert dataset.sources == ["left", "right"] and dataset.how == "made for a test"
    for i, (z, pos, source) in enumerate(molecules(400)):
        data = dataset[i]
        assert data.z.dtype == torch.int64 and data.pos.dtype == torch.float32
        np.testing.assert_array_equal(data.z, z)
        np.testing.assert_allclose(data.pos, pos - pos.mean(axis=0), atol=0.00051)
        assert dataset.sources[dataset.source[i]] == source
    assert torch.equal(dataset[-1].pos, dataset[torch.tensor(399)].pos)
    with pytest.raises(IndexError, match="400"):
        dataset[400]


def test_a_store_that_cannot_be_written_names_the_conformer_and_leaves_no_file(tmp_path):
    path = tmp_path / "folder" / "bad.safetensors"
    z, pos = np.array([6, 8]), np.array([[0.0, 0.0, 0.0], [0.0, 0.0, 65.5]])
    assert write_conformers(path, [(z, pos, "fits")]) == 1
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"Conformer 1 \(source 'far'\).*32\.8 angstrom.*32\.767"):
        write_conformers(path, [(z, pos, "fits"), (z, pos * [1, 1, 1.001], "far")])
    with pytest.raises(ValueError, match="not finite"):
        write_conformers(path, [(z, pos * np.nan, "nan")])
    with pytest.raises(ValueError, match=r"shape \(2,\).*shape \(3, 3\)"):
        write_conformers(path, [(z, np.zeros((3, 3)), "uneven")])
    with pytest.raises(ValueError, match="atomic numbers 0"):
        write_conformers(path, [([0, 1], pos, "dummy atom")])
    with pytest.raises(ValueError, match="no conformers"):
        write_conformers(path, [])
    assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]


def test_heavy_atoms_share_is_fixed_by_the_index(store):
    full, some = Conformers(file=store), Conformers(file=store, heavy_atoms=0.3)
    stripped = [not (data.z == 1).any() and (whole.z == 1).any() for whole, data in zip(full, some, strict=True)]
    assert np.mean(stripped) == pytest.approx(0.3, abs=0.07)
    for whole, data, without in zip(full, some, stripped, strict=True):
        keep = whole.z > 1 if without else slice(None)
        assert torch.equal(data.z, whole.z[keep]) and torch.equal(data.pos, whole.pos[keep])

    # the same ones in another process, and a larger share holds a smaller one
    again = f"""
from torchmdnet_ext.datasets.conformers import Conformers
print([i for i, d in enumerate(Conformers(file={str(store)!r}, heavy_atoms=0.3)) if not (d.z == 1).any()])
"""
    printed = subprocess.run([sys.executable, "-c", again], capture_output=True, text=True, check=True).stdout
    assert json.loads(printed) == [i for i, data in enumerate(some) if not (data.z == 1).any()]
    larger = Conformers(file=store, heavy_atoms=0.6)
    assert all(not (data.z == 1).any() for data, without in zip(larger, stripped, strict=True) if without)
    assert all((data.z > 1).all() for data in Conformers(file=store, heavy_atoms=1.0))
    with pytest.raises(ValueError, match="heavy_atoms was 1.5"):
        Conformers(file=store, heavy_atoms=1.5)


def test_a_conformer_keeps_two_atoms(tmp_path):
    path = tmp_path / "small.safetensors"
    water = ([8, 1, 1], np.eye(3), "small")
    hydrogen = ([1, 1], np.eye(3)[:2], "small")
    peroxide = ([8, 8, 1, 1], np.eye(4)[:, :3], "small")
    write_conformers(path, [water, hydrogen, peroxide])
    assert [data.num_nodes for data in Conformers(file=path, heavy_atoms=1.0)] == [3, 2, 2]


def test_which_file_is_read(store, tmp_path):
    assert Conformers().file == shipped_file()
    assert Conformers(tmp_path / "nowhere").file == shipped_file()
    assert Conformers(tmp_path).file == shipped_file()
    assert Conformers(str(store)).file == store
    assert Conformers(tmp_path / "nowhere", file=str(store)).file == store
    store.rename(tmp_path / "conformers.safetensors")
    assert Conformers(tmp_path).file == tmp_path / "conformers.safetensors"
    for arguments in ({"file": store}, {"root": store}):
        with pytest.raises(ValueError, match=r"no conformer file .*some\.safetensors.*make_conformers"):
            Conformers(**arguments)


def test_truncated_and_foreign_files(store, tmp_path):
    whole = store.read_bytes()
    for length in (0, 5, 200, len(whole) - 100):
        store.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"some\.safetensors cannot be read.*truncated.*make_conformers"):
            Conformers(file=store)
    foreign = tmp_path / "weights.safetensors"
    save_file({"weight": np.zeros(3)}, foreign)
    with pytest.raises(ValueError, match="not a store of conformers: it holds weight"):
        Conformers(file=foreign)
    store.write_bytes(whole.replace(b'\\"version\\": 1', b'\\"version\\": 7'))
    with pytest.raises(ValueError, match="has version 7"):
        Conformers(file=store)


def test_batches(store):
    dataset = Conformers(file=store, heavy_atoms=0.5)
    loader = DataLoader(pickle.loads(pickle.dumps(dataset)), batch_size=64)
    batches = list(loader)
    assert [batch.num_graphs for batch in batches] == [64] * 6 + [16]
    assert batches[0].batch.max() == 63 and batches[0].pos.shape == (batches[0].num_nodes, 3)
    assert torch.equal(torch.cat([batch.pos for batch in batches]), torch.cat([data.pos for data in dataset]))


def test_import_needs_no_openmm():
    code = """
import sys
from torchmdnet_ext.datasets.conformers import Conformers
Conformers()
print("openmm" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"


@pytest.fixture(scope="module")
def shipped():
    return Conformers()


def test_shipped_file_is_sane(shipped):
    assert shipped.file.stat().st_size <= 3_000_000
    assert shipped.sources == ["qm9", "peptide"]
    counts = torch.bincount(shipped.source.long())
    assert counts[0] >= 5000 and counts[1] >= 4000
    sizes = np.array([data.num_nodes for data in shipped])
    assert sizes.min() >= 2 and sizes.max() <= 100
    assert set(torch.cat([data.z for data in shipped]).tolist()) == {1, 6, 7, 8, 9, 16}
    # one block of equal sizes at a time: quick, and each distance is seen
    for size in np.unique(sizes):
        pos = torch.stack([shipped[int(i)].pos for i in np.flatnonzero(sizes == size)])
        assert torch.cdist(pos, pos).add(torch.eye(size) * 9).min() > 0.6
        assert pos.mean(dim=1).abs().max() < 0.002
        assert torch.cdist(pos, pos).max() < 45


def test_shipped_peptides_cover_both_signs_of_phi_and_are_all_l(shipped):
    backbone = [6, 1, 1, 1, 6, 8, 7, 1, 6, 1, 6, 8, 6]  # ACE, then N H CA HA C O CB: neither glycine nor proline
    peptides = (shipped[int(i)] for i in torch.nonzero(shipped.source == shipped.sources.index("peptide")))
    first = [data.pos[:13] for data in peptides if data.z[:13].tolist() == backbone]
    assert len(first) > 2000
    pos = torch.stack(first)
    c_ace, n, ca, c, cb = (pos[:, i] for i in (4, 6, 8, 10, 12))
    # sin(phi) has the sign of (C_ace -> N) . (normal of N, CA, C)
    positive = ((n - c_ace) * torch.linalg.cross(ca - n, c - ca)).sum(1) > 0
    assert 0.1 < positive.float().mean() < 0.6
    # the volume N, C, CB about CA is positive in an L residue
    volume = (torch.linalg.cross(n - ca, c - ca) * (cb - ca)).sum(1)
    assert (volume > 0.5).all()


# --- making stores ----------------------------------------------------------------------------------------------------


def test_qm9_text_with_its_exponents():
    z, pos = make_conformers.parse_qm9("['C','H','F']", "[[-0.5,1.*^-6,0.],[2.5*^-1,-3.*^-2,1.],[0.,0.,-12.25]]")
    np.testing.assert_array_equal(z, [6, 1, 9])
    np.testing.assert_array_equal(pos, [[-0.5, 1e-6, 0.0], [0.25, -0.03, 1.0], [0.0, 0.0, -12.25]])


@pytest.mark.parametrize("number", [1, 100, 5000])
def test_plan_adds_up(number):
    plan = make_conformers.plan(number, seed=3)
    assert sum(n for _, n in plan) == number and min(n for _, n in plan) > 0
    assert plan == make_conformers.plan(number, seed=3)
    if number == 5000:
        assert {s for s, _ in plan if len(s) == 1} == set("ACDEFGHIKLMNPQRSTVWY")
        assert {len(s) for s, _ in plan} == {1, 2, 3}
        assert plan != make_conformers.plan(number, seed=4)


def test_rotation_turns_a_torsion():
    mdtraj = pytest.importorskip("mdtraj")
    pos = np.array([[0.1, 0.1, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.15], [0.1, 0.0, 0.2], [0.0, 0.1, 0.2]])
    topology = mdtraj.Topology()
    residue = topology.add_residue("X", topology.add_chain())
    for _ in pos:
        topology.add_atom("C", mdtraj.element.carbon, residue)
    turned = make_conformers.rotate(pos, 1, 2, np.array([2, 3, 4]), 0.7)
    angles = mdtraj.compute_dihedrals(mdtraj.Trajectory([pos, turned], topology), [[0, 1, 2, 3]])[:, 0]
    assert angles[1] - angles[0] == pytest.approx(0.7, abs=1e-5)
    np.testing.assert_allclose(turned[:3], pos[:3], atol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(turned[3] - turned[4]), np.linalg.norm(pos[3] - pos[4]))


def test_peptides_are_whole_and_repeatable(monkeypatch):
    pytest.importorskip("PeptideBuilder")
    monkeypatch.setattr(make_conformers, "plan", lambda number, seed: [("A", 2), ("G", 1), ("W", 1)])
    first, second = (list(make_conformers.peptides(4, seed=5)) for _ in range(2))
    assert [len(z) for z, _, _ in first] == [22, 22, 19, 36]
    for (z, pos, source), (_, again, _) in zip(first, second, strict=True):
        np.testing.assert_array_equal(pos, again)
        assert source == "peptide" and pos.shape == (len(z), 3)
        gaps = np.linalg.norm(pos[:, None] - pos, axis=2) + 9 * np.eye(len(z))
        assert gaps.min() > 0.9 and gaps.min(axis=1).max() < 1.7


def test_fast_implicit_solvent_is_the_same():
    openmm = pytest.importorskip("openmm")
    pytest.importorskip("PeptideBuilder")
    from openmm import app

    field = app.ForceField("amber14-all.xml", "implicit/obc2.xml")
    platform = openmm.Platform.getPlatform("Reference")
    pdb = app.PDBFile(io.StringIO(make_conformers.capped_pdb("D")))
    modeller = app.Modeller(pdb.topology, pdb.positions)
    modeller.addHydrogens(field, platform=platform)
    found = []
    for fast in (False, True):
        system = field.createSystem(modeller.topology)
        if fast:
            make_conformers.with_gbsaobc(system)
        context = openmm.Context(system, openmm.VerletIntegrator(0.001), platform)
        context.setPositions(modeller.positions)
        state = context.getState(energy=True, forces=True)
        found.append((state.getPotentialEnergy()._value, state.getForces(asNumpy=True)._value))
    assert found[0][0] == pytest.approx(found[1][0], abs=0.01)
    np.testing.assert_allclose(found[0][1], found[1][1], atol=0.02)


def test_command_says_what_is_missing(monkeypatch, tmp_path):
    find_spec = make_conformers.importlib.util.find_spec
    monkeypatch.setattr(make_conformers.importlib.util, "find_spec", lambda n: None if n == "qm9pack" else find_spec(n))
    with pytest.raises(SystemExit, match="pip install qm9pack"):
        make_conformers.main([str(tmp_path / "x.safetensors"), "--qm9", "3", "--peptides", "0"])
    assert list(tmp_path.iterdir()) == []
