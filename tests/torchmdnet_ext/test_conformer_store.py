"""Stores of conformers, and the dataset that reads them."""

import json
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from build_sources import Gas, Walk
from safetensors.numpy import save_file
from torch_geometric.loader import DataLoader

from openmm_geomgnn.conformers.build import Build, LabelledSource, build
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
    with pytest.raises(ValueError, match=r"Conformer 1 \(source 'far'\).*3\.275e\+06 angstrom.*2147484"):
        write_conformers(path, [(z, pos, "fits"), (z, pos * 1e5, "far")])
    with pytest.raises(ValueError, match="not finite"):
        write_conformers(path, [(z, pos * np.nan, "nan")])
    with pytest.raises(ValueError, match=r"shape \(2,\).*shape \(3, 3\)"):
        write_conformers(path, [(z, np.zeros((3, 3)), "uneven")])
    with pytest.raises(ValueError, match="atomic numbers 0"):
        write_conformers(path, [([0, 1], pos, "dummy atom")])
    with pytest.raises(ValueError, match="no conformers"):
        write_conformers(path, [])
    assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]


def test_large_molecules_have_the_same_precision(tmp_path):
    rng = np.random.default_rng(0)
    small = ([6, 6], [[0.0, 0.0, 0.0], [0.0, 0.0, 65.53]], "small")
    protein = ([6] * 500, rng.normal(scale=60.0, size=(500, 3)), "protein")
    for name, conformers, kind in (("a", [small], np.int16), ("b", [small, protein], np.int32)):
        path = tmp_path / f"{name}.safetensors"
        write_conformers(path, conformers)
        dataset = Conformers(file=path)
        assert dataset.shards[0].arrays["pos"].dtype == kind
        for data, (_, pos, _) in zip(dataset, conformers, strict=True):
            np.testing.assert_allclose(data.pos, np.subtract(pos, np.mean(pos, axis=0)), atol=0.00052)
            assert data.pos.dtype == torch.float32


def test_which_file_is_read(store, tmp_path):
    assert Conformers().file == Conformers("~/data").file == shipped_file()  # what the trainer says without a dataset_root
    assert Conformers(str(store)).file == store
    assert Conformers(tmp_path / "nowhere", file=str(store)).file == store
    store.rename(tmp_path / "conformers.safetensors")
    assert Conformers(tmp_path).file == tmp_path / "conformers.safetensors"
    for arguments in ({"file": store}, {"root": store}):
        with pytest.raises(ValueError, match=r"no conformer file .*some\.safetensors.*geomgnn data build"):
            Conformers(**arguments)


@pytest.mark.parametrize(("name", "what"), [("nowhere", "does not exist"), (".", "holds no store"), ("~/dat", "does not")])
def test_a_root_without_a_store_is_refused(tmp_path, name, what):
    """It was the user who named it, and the conformers that ship are not what was meant."""
    with pytest.raises(ValueError, match=rf"dataset_root is .*, which {what}.*geomgnn data build.*leave dataset_root out"):
        Conformers(name if name.startswith("~") else tmp_path / name)


def test_truncated_and_foreign_files(store, tmp_path):
    whole = store.read_bytes()
    for length in (0, 5, 200, len(whole) - 100):
        store.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"some\.safetensors cannot be read.*truncated.*geomgnn data build"):
            Conformers(file=store)
    foreign = tmp_path / "weights.safetensors"
    save_file({"weight": np.zeros(3)}, foreign)
    with pytest.raises(ValueError, match="not a store of conformers: it holds weight"):
        Conformers(file=foreign)
    store.write_bytes(whole.replace(b'\\"version\\": 1', b'\\"version\\": 7'))
    with pytest.raises(ValueError, match="has version 7"):
        Conformers(file=store)


def test_batches(store):
    dataset = Conformers(file=store)
    loader = DataLoader(pickle.loads(pickle.dumps(dataset)), batch_size=64)
    batches = list(loader)
    assert [batch.num_graphs for batch in batches] == [64] * 6 + [16]
    assert batches[0].batch.max() == 63 and batches[0].pos.shape == (batches[0].num_nodes, 3)
    assert torch.equal(torch.cat([batch.pos for batch in batches]), torch.cat([data.pos for data in dataset]))


# ------------------------------------------------------------------------------------------------------ folders of shards


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A store of 271 conformers in seven shards, of two sources."""
    path = tmp_path_factory.mktemp("folder") / "store"
    labelled = (LabelledSource(Gas(), "gas"), LabelledSource(Walk(), "walk"))
    build(Build(path, labelled, shard_size=110), processes=1)
    return path


def test_nothing_is_read_before_it_is_asked_for(folder):
    dataset = Conformers(folder)
    assert len(dataset) == 271 and len(dataset.shards) > 7 and not any(shard._arrays for shard in dataset.shards)
    last = dataset[-1]
    assert last.z.tolist() == [6, 8, 1] and [shard._arrays is not None for shard in dataset.shards].count(True) == 1
    with pytest.raises(ValueError, match="read-only"):
        dataset.shards[-1].arrays["z"][0] = 1
    # a copy for another process maps the files itself
    list(dataset)
    again = pickle.dumps(dataset)
    assert len(again) < 10_000
    assert torch.equal(pickle.loads(again)[-1].pos, last.pos)


def test_workers_read_the_same(folder):
    dataset = Conformers(folder)
    expected = torch.cat([data.pos for data in dataset])
    loader = DataLoader(dataset, batch_size=50, num_workers=2)
    assert torch.equal(torch.cat([batch.pos for batch in loader]), expected)


def test_several_stores_and_some_sources(folder, store):
    both = Conformers(file=[store, str(folder)])
    assert len(both) == 671 and both.sources == ["left", "right", "gas", "walk"]
    one, two = Conformers(file=store), Conformers(folder)
    assert torch.equal(both[399].z, one[399].z) and both.source_of(399) == "right"
    assert [both.source_of(i) for i in (400, -1)] == ["gas", "walk"] and "some.safetensors + " in repr(both)
    names = [both.source_of(i) for i in range(len(both))]
    assert [both.sources[k] for k in both.source] == names

    some = Conformers(file=[store, folder], sources=["walk", "left"])
    indices = [i for i, name in enumerate(names) if name in ("left", "walk")]
    whole = Conformers(file=[store, folder])
    assert len(some) == len(indices) == 299
    assert [some.source_of(i) for i in range(299)] == [names[i] for i in indices]
    assert all(torch.equal(data.pos, whole[i].pos) for data, i in zip(some, indices, strict=True))
    # shards of another source are not even opened
    assert len(Conformers(folder, sources="walk")) == 99
    gas = Conformers(folder, sources="gas")
    assert len(gas) == 172 and not any(shard._arrays for shard in gas.shards) and torch.equal(gas[3].pos, two[3].pos)
    with pytest.raises(ValueError, match=r"'wlak', and .* from gas, walk\. Did you mean 'walk'\?"):
        Conformers(folder, sources=["wlak"])
    with pytest.raises(ValueError, match="empty list"):
        Conformers(file=[])


def test_molecules_and_elements(folder, store):
    """Those of the conformers that are here, of one store or several, of all sources or some."""
    for arguments in ({"file": folder}, {"file": [folder, store]}, {"file": [folder, store], "sources": ["left", "walk"]}):
        dataset = Conformers(**arguments)
        named = [tuple(data.z.tolist()) for data in dataset]
        numbers = dataset.molecules().tolist()
        assert len(set(zip(named, numbers, strict=True))) == len(set(named)) == len(set(numbers)) > 1
        assert dataset.elements().tolist() == sorted(set().union(*named))
        some = [z for z in set().union(*named) if sum(z in one for one in named) >= 100]
        assert dataset.elements(100).tolist() == sorted(some)


def test_folders_that_are_no_stores(folder, tmp_path):
    with pytest.raises(ValueError, match=r"no conformer store in .*holds no index\.json"):
        Conformers(file=tmp_path)
    index = (folder / "index.json").read_text()
    for text, message in ((index[:50], "not the index"), (index.replace('"version": 1', '"version": 9'), "version 9")):
        (tmp_path / "index.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            Conformers(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        lambda index: index.pop("shards"),
        lambda index: index.update(shards=[3]),
        lambda index: index["shards"][0].pop("bytes"),
        lambda index: index["shards"][0].update(atoms="many"),
        lambda index: index.update(settings=None),
        lambda index: index["sources"].popitem(),  # nothing that its form shows, but its checksum
    ],
)
def test_a_damaged_index(folder, tmp_path, change):
    index = json.loads((folder / "index.json").read_text())
    change(index)
    (tmp_path / "index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"index\.json was changed or damaged after it was written"):
        Conformers(tmp_path)
    (tmp_path / "index.json").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="is not the index of a conformer store"):
        Conformers(tmp_path)


def test_an_index_without_a_checksum_is_read(folder, tmp_path):
    for shard in folder.glob("*.safetensors"):
        (tmp_path / shard.name).write_bytes(shard.read_bytes())
    index = json.loads((folder / "index.json").read_text())
    del index["checksum"]
    (tmp_path / "index.json").write_text(json.dumps(index))
    assert len(Conformers(tmp_path)) == len(Conformers(folder))


@pytest.mark.parametrize(
    "change",
    [
        lambda described: described["z"].update(shape=[]),
        lambda described: described["z"].update(shape=["x"]),
        lambda described: described["ptr"].update(data_offsets=[0]),
        lambda described: described["pos"].update(data_offsets=[5, 1]),
        lambda described: described["pos"].update(dtype="I32"),
        lambda described: described["source"].update(shape=[-1]),
    ],
)
def test_a_shard_with_a_damaged_description(store, change):
    content = store.read_bytes()
    length = int.from_bytes(content[:8], "little")
    described = json.loads(content[8 : 8 + length])
    change(described)
    header = json.dumps(described).encode()
    store.write_bytes(len(header).to_bytes(8, "little") + header + content[8 + length :])
    with pytest.raises(ValueError, match=r"some\.safetensors (cannot be read|do not fit one another: the file is damaged)"):
        Conformers(file=store)


def test_elements_that_are_none(store):
    """A flipped byte in the elements of a shard."""
    whole = store.read_bytes()
    z = np.concatenate([z for z, _, _ in molecules(400)]).astype(np.uint8).tobytes()
    place = whole.index(z)
    store.write_bytes(whole[:place] + b"\xf0" + whole[place + 1 :])
    with pytest.raises(ValueError, match="do not fit one another: the file is damaged"):
        Conformers(file=store)[5]


@pytest.mark.slow
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


@pytest.mark.slow
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
