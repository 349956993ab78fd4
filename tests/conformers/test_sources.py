"""What all sources of conformers share: tasks, draws, settings, byte ranges of plain and compressed files."""

import gzip
import inspect
import json
import os
import re
import tarfile
import zipfile
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import fields, replace
from multiprocessing import get_context

import numpy as np
import pytest
from source_runs import run

from openmm_geomgnn.conformers.sources import SOURCES, base, records, source_from, streams
from openmm_geomgnn.errors import GeomGNNError

WATER = "3\nwater {}\nO 0.0 0.0 {}\nH 0.76 0.0 0.59\nH -0.76 0.0 0.59\n"
METHANE = "5\nmethane {}\nC 0.0 0.0 {}\nH 0.63 0.63 0.63\nH -0.63 -0.63 0.63\nH 0.63 -0.63 -0.63\nH -0.63 0.63 -0.63\n"


def xyz_text(number, first=0):
    """Frames of water and methane in turn; the height of the first atom is the number of the frame."""
    return "".join((WATER, METHANE)[i % 2].format(i, float(i)) for i in range(first, first + number))


def heights(conformers):
    return [int(pos[0, 2]) for _, pos in conformers]


@pytest.fixture
def many_frames(tmp_path):
    """Three XYZ files with 40, 1 and 59 frames, the last one compressed."""
    (tmp_path / "a.xyz").write_text(xyz_text(40))
    (tmp_path / "b.xyz").write_text(xyz_text(1, 40))
    (tmp_path / "c.xyz.gz").write_bytes(gzip.compress(xyz_text(59, 41).encode()))
    return SOURCES["xyz"](file=[str(tmp_path / "[ab].xyz"), str(tmp_path / "c.xyz.gz")])


# --- tasks and draws --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "number"), [(1, 100), (10_000, 1), (1000, 9)])
def test_tasks_cover_all_records_once(many_frames, monkeypatch, size, number):
    monkeypatch.setattr(records, "TASK_BYTES", size)
    tasks = many_frames.tasks(seed=1)
    assert json.loads(json.dumps(tasks)) == tasks and len(tasks) == number
    found = run(many_frames)[0]
    assert heights(found) == list(range(100))
    assert [len(z) for z, _ in found] == [3, 5] * 50
    # a task gives the same in any order and in another process
    shuffled = [tasks[i] for i in np.random.default_rng(0).permutation(len(tasks))]
    assert sorted(h for task in shuffled for h in heights(many_frames.conformers(task, 1))) == list(range(100))


def test_forked_processes_do_not_share_the_place_in_a_file(tmp_path, monkeypatch):
    kept, opened = [], streams.open_binary
    monkeypatch.setattr(streams, "open_binary", lambda *arguments: kept.append(opened(*arguments)) or kept[-1])
    path = tmp_path / "x.bin"
    content = np.random.default_rng(0).integers(0, 256, 100_000, dtype=np.uint8).tobytes()
    path.write_bytes(content)
    assert streams.read_range(path, 50_000, 50_100) == content[50_000:50_100]
    place = os.lseek(kept[0].fileno(), 0, os.SEEK_CUR)
    with ProcessPoolExecutor(1, mp_context=get_context("fork")) as pool:
        assert pool.submit(streams.read_range, path, 10, 99_000).result() == content[10:99_000]
    assert os.lseek(kept[0].fileno(), 0, os.SEEK_CUR) == place
    assert streams.read_range(path, 0, 100_000) == content and len(kept) == 1


def test_a_draw_is_sorted_repeatable_and_part_of_a_larger_one(many_frames, monkeypatch):
    monkeypatch.setattr(records, "TASK_BYTES", 600)
    small, large = replace(many_frames, number=20), replace(many_frames, number=60)
    drawn = heights(run(small)[0])
    assert len(drawn) == 20 and drawn == sorted(set(drawn)) and drawn == heights(run(small)[0])
    assert set(drawn) < set(heights(run(large)[0]))
    assert drawn != heights(run(small, seed=2)[0])
    assert heights(run(replace(many_frames, number=1000))[0]) == list(range(100))
    # behind those of a smaller draw there are none of them
    held_out = heights(run(replace(many_frames, number=40, skip=20))[0])
    assert sorted(held_out + heights(run(small)[0])) == heights(run(large)[0])
    assert len(run(replace(many_frames, skip=90))[0]) == 10 and run(replace(many_frames, skip=100))[0] == []
    with pytest.raises(GeomGNNError, match="skip of the conformer source `xyz` is -1"):
        replace(many_frames, skip=-1).check()


def test_shares_are_as_large_as_allowed():
    rng = np.random.default_rng(3)
    for _ in range(50):
        counts = rng.integers(0, 30, size=4)
        bounds = [np.cumsum([0, *rng.integers(1, 20, size=n)]) for n in counts]
        number = int(rng.integers(0, 60))
        drawn = records.draw_from([np.arange(n) for n in counts], number, seed=int(rng.integers(100)))
        assert sum(map(len, drawn)) == min(number, counts.sum())
        tasks = records.share_out(bounds, drawn, records_per_task=7, task_size=60)
        found, sizes = [], []
        for task in tasks:
            assert task
            sizes.append([0, 0])
            for k, first, stop, chosen in task:
                part = list(range(first, stop)) if chosen is None else [first + i for i in chosen]
                assert part[0] == first and part[-1] == stop - 1
                found += [(k, i) for i in part]
                sizes[-1][0] += len(part)
                sizes[-1][1] += int(bounds[k][stop] - bounds[k][first])
        assert found == [(k, i) for k, wanted in enumerate(drawn) for i in wanted.tolist()]
        assert all(n <= 7 and (size <= 60 or n == 1) for n, size in sizes)


# --- byte ranges ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [1, 7, 64, 1 << 20])
def test_bounds_do_not_depend_on_blocks(tmp_path, monkeypatch, block):
    monkeypatch.setattr(streams, "BLOCK", block)
    content = b"one\n$$$$\nx $$$$\n$$$$$\ntwo\r\n$$$$ \r\n\n$$$$\nthree\n$$$$"
    path = tmp_path / "x.sdf"
    path.write_bytes(content)
    bounds = streams.record_bounds(path, b"$$$$")
    parts = [content[a:b] for a, b in zip(bounds, bounds[1:], strict=False)]
    assert parts == [b"one\n$$$$\n", b"x $$$$\n$$$$$\ntwo\r\n$$$$ \r\n", b"\n$$$$\n", b"three\n$$$$"]
    path.write_bytes(content + b"\nopen end")
    assert streams.record_bounds(path, b"$$$$").tolist() == [*bounds[:-1], len(content) + 1, len(content) + 9]
    path.write_bytes(content + b"\n \n")
    assert streams.record_bounds(path, b"$$$$").tolist() == [*bounds[:-1], len(content) + 1]
    lines = streams.line_bounds(path)
    assert [(content + b"\n \n")[a:b] for a, b in zip(lines, lines[1:], strict=False)] == (content + b"\n \n").splitlines(
        True
    )
    path.write_bytes(b"a\nb")
    assert streams.line_bounds(path).tolist() == [0, 2, 3]


def test_ranges_of_archives(tmp_path):
    content = np.random.default_rng(0).integers(0, 256, 5000, dtype=np.uint8).tobytes()
    (tmp_path / "x.sdf").write_bytes(content)
    (tmp_path / "x.sdf.gz").write_bytes(gzip.compress(content))
    for name in ("x.tar", "x.tar.gz", "x.tgz"):
        with tarfile.open(tmp_path / name, "w" if name.endswith(".tar") else "w:gz") as archive:
            archive.add(tmp_path / "x.sdf.gz", "folder/other.gz")
            archive.add(tmp_path / "x.sdf", "folder/x.sdf")
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.write(tmp_path / "x.sdf.gz", "folder/x.sdf.gz")
    members = {"x.zip": "folder/x.sdf.gz", "x.sdf": None, "x.sdf.gz": None}
    for name in ("x.sdf", "x.sdf.gz", "x.tar", "x.tar.gz", "x.tgz", "x.zip"):
        for start, stop in ((4000, 5000), (0, 5000), (17, 18), (100, 3000)):
            found = streams.read_range(tmp_path / name, start, stop, members.get(name, ".sdf"))
            assert found == content[start:stop], name
    with pytest.raises(GeomGNNError, match=r"x\.tar\.gz holds no file that ends in \.csv"):
        streams.read_range(tmp_path / "x.tar.gz", 0, 1, ".csv")
    with pytest.raises(GeomGNNError, match=r"x\.zip holds no file x\.csv"):
        streams.read_range(tmp_path / "x.zip", 0, 1, "x.csv")


def test_damaged_and_replaced_files(tmp_path, many_frames):
    path = tmp_path / "c.xyz.gz"
    tasks = many_frames.tasks(seed=1)
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], whole[:20] + b"\0" * 40 + whole[60:], b"not gzip"):
        path.write_bytes(content)
        with pytest.raises(GeomGNNError, match=r"c\.xyz\.gz cannot be read .*damaged"):
            many_frames.tasks(seed=1)
    path.write_bytes(gzip.compress(xyz_text(3).encode()))
    with pytest.raises(GeomGNNError, match=r"c\.xyz\.gz ends at byte \d+ and was longer before"):
        [list(many_frames.conformers(task, 1)) for task in tasks]


# --- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"source": "smile"}, "conformer source 'smile' is unknown. Did you mean 'smiles'.*denali, hdf5"),
        ({}, "conformer source None is unknown"),
        ({"source": "smiles", "name": "mine"}, "no setting 'name'"),
        ({"source": "smiles", "optimize": "mmff"}, "no setting 'optimize'. Did you mean 'optimise'.*per_molecule"),
        ({"source": "sdf"}, "file of the conformer source `sdf` is not given"),
        ({"source": "qm9", "number": "many"}, "number of the conformer source `qm9` is 'many': .*integer"),
    ],
)
def test_unknown_and_wrong_settings(settings, message):
    with pytest.raises(GeomGNNError, match=message) as error:
        source_from(settings)
    assert "\n" not in str(error.value)


def test_checks_come_before_work(tmp_path):
    path = tmp_path / "x.xyz"
    path.write_text(xyz_text(1))
    xyz = SOURCES["xyz"](file=str(path))
    xyz.check()
    for wrong, message in (
        ({"number": 0}, "number of the conformer source `xyz` is 0, .*at least 1 or be left out"),
        ({"number": True}, "number .* is True"),
        ({"file": str(tmp_path / "y.xyz")}, r"y\.xyz, which is not a file"),
        ({"file": str(tmp_path / "*.pdb")}, r"\*\.pdb, which matches no file"),
        ({"file": []}, r"file .* is \[\], .*a list of those"),
        ({"file": 3}, "file .* is 3"),
    ):
        with pytest.raises(GeomGNNError, match=message) as error:
            replace(xyz, **wrong).check()
        assert "\n" not in str(error.value)


def test_relative_paths_are_taken_from_a_folder(tmp_path):
    (tmp_path / "x.xyz").write_text(xyz_text(2))
    source = source_from({"source": "xyz", "file": "*.xyz"})
    with pytest.raises(GeomGNNError, match="matches no file"):
        source.check()
    assert heights(run(source.relative_to(tmp_path))[0]) == [0, 1]
    assert heights(run(replace(source, file=["x.xyz"]).relative_to(tmp_path))[0]) == [0, 1]
    assert SOURCES["smiles"](file="moses/test").relative_to(tmp_path).file == "moses/test"
    assert SOURCES["qm9"]().relative_to(tmp_path) == SOURCES["qm9"]()


@pytest.mark.parametrize(
    ("module", "settings"),
    [
        ("rdkit", {"source": "smiles"}),
        ("rdkit", {"source": "sdf", "file": "x.sdf"}),
        ("qm9pack", {"source": "qm9"}),
        ("Bio", {"source": "peptides"}),
        ("h5py", {"source": "hdf5", "file": "x.h5"}),
        ("rdkit", {"source": "nucleotides"}),
        ("biotite", {"source": "ccd"}),
    ],
)
def test_missing_packages_are_named(monkeypatch, module, settings):
    find_spec = base.importlib.util.find_spec
    monkeypatch.setattr(base.importlib.util, "find_spec", lambda name: None if name == module else find_spec(name))
    with pytest.raises(GeomGNNError, match=r"needs the package .*pip install \"openmm-geomgnn\[data\]\""):
        source_from(settings).check()


def test_every_source_says_what_its_settings_are():
    for name, kind in SOURCES.items():
        assert kind.name == name
        settings = {setting.name for setting in fields(kind)}
        for key in settings:
            assert re.search(rf"^(\w+, )*{key}\b.*", inspect.getdoc(kind).split("Attributes")[1], re.MULTILINE), (name, key)
        assert set(kind.paths) <= settings


def test_reasons_are_counted():
    skipped = Counter()
    base.skip(skipped, "no reason", 2)
    base.skip(skipped, "no reason")
    base.skip(skipped, "never", 0)
    base.skip(None, "nobody asks")
    assert skipped == {"no reason": 3}
