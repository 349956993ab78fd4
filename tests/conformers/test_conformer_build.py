"""Building stores of conformers: the same bytes however they are made, and nothing lost when a build is stopped."""

import json
import subprocess
import sys
import time
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import build_sources
import numpy as np
import pytest
import torch
from build_sources import Gas, Walk, plan
from torchmdnet.utils import make_splits

from openmm_geomgnn.cli import main as cli
from openmm_geomgnn.cli.settings.yaml_files import load_data_build
from openmm_geomgnn.conformers import build as building
from openmm_geomgnn.conformers import sources
from openmm_geomgnn.conformers.build import Build, LabelledSource, build
from openmm_geomgnn.conformers.splits import FEWEST, Splits, hold_out, molecules
from openmm_geomgnn.errors import GeomGNNError
from torchmdnet_ext.datasets.conformer_store import Shard
from torchmdnet_ext.datasets.conformers import Conformers

pytestmark = pytest.mark.slow


def contents(folder):
    files = (path for path in sorted(Path(folder).rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """A store that was made by one process in one go."""
    folder = tmp_path_factory.mktemp("reference") / "store"
    build(plan(folder), processes=1)
    return folder


def test_a_store_holds_what_its_sources_gave(reference):
    dataset, source = Conformers(reference), Gas()
    given = [conformer for task in source.tasks(1) for conformer in source.conformers(task, 1)]
    assert len(dataset) == len(given) == 172 and dataset.sources == ["gas"]
    for data, (z, pos) in zip(dataset, given, strict=True):
        np.testing.assert_array_equal(data.z, z)
        np.testing.assert_allclose(data.pos, pos - pos.mean(axis=0), atol=0.00051)
    index = json.loads((reference / "index.json").read_text())
    sizes = np.array([len(z) for z, _ in given])
    assert index["sizes"]["histogram"] == {str(n): c for n, c in sorted(Counter(sizes.tolist()).items())}
    assert (index["sizes"]["min"], index["sizes"]["max"], index["atoms"]) == (sizes.min(), sizes.max(), sizes.sum())
    assert index["sizes"]["mean"] == pytest.approx(sizes.mean(), abs=1e-3)
    elements = Counter(np.concatenate([z for z, _ in given]).tolist())
    assert index["elements"] == {"H": elements[1], "C": elements[6], "O": elements[8]}
    assert index["sources"]["gas"]["skipped"] == {"every seventh": 28} and index["conformers"] == 172
    # every shard but the last is as long as it was asked to be, and not a task longer
    shards = [Shard.open(reference / entry["file"]) for entry in index["shards"]]
    assert [len(shard.header["task_counts"]) for shard in shards] == [3, 3, 3, 1]
    for shard in shards[:-1]:
        assert shard.atoms >= 300 > shard.arrays["ptr"][sum(shard.header["task_counts"][:2])]
    assert sorted(contents(reference)) == [*(f"gas-0000{i}.safetensors" for i in range(4)), "index.json", "splits.npz"]


def test_processes_do_not_matter(reference, tmp_path):
    moves = []
    build(plan(tmp_path), processes=3, progress=lambda done, total, note="": moves.append((done, total, note)))
    assert contents(tmp_path) == contents(reference)
    assert moves[0] == (0, 10, "0 conformers") and moves[-1] == (10, 10, "172 conformers")
    assert [done for done, _, _ in moves] == list(range(11))


def test_a_killed_build_goes_on(reference, tmp_path):
    folder, armed = tmp_path / "store", tmp_path / "armed"
    source = Gas(wait=0.15)
    code = f"""
import sys
sys.path.insert(0, {str(Path(build_sources.__file__).parent)!r})
from build_sources import Gas, plan
from openmm_geomgnn.conformers.build import build
build(plan({str(folder)!r}, Gas(wait=0.15)), processes=2)
"""
    process = subprocess.Popen([sys.executable, "-c", code])
    try:
        deadline = time.monotonic() + 60
        while not ((folder / "gas-00000.safetensors").is_file() and any((folder / ".build").glob("gas-*"))):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        process.kill()
        process.wait()
    assert not (folder / "index.json").exists() and not (folder / "gas-00002.safetensors").exists()
    with pytest.raises(ValueError, match="not finished: the same `geomgnn data build`"):
        Conformers(folder)
    first = (folder / "gas-00000.safetensors").stat()
    moves = []
    build(plan(folder, source), processes=2, progress=lambda done, total, note="": moves.append(done))
    assert moves[0] >= 4 and moves[-1] == 10
    assert (folder / "gas-00000.safetensors").stat().st_mtime_ns == first.st_mtime_ns
    mine, theirs = contents(folder), contents(reference)
    settings = [json.loads(files.pop("index.json")) for files in (mine, theirs)]
    assert mine == theirs and settings[0]["hash"] == settings[1]["hash"]
    assert not armed.exists()


@pytest.mark.parametrize(
    ("trouble", "message"),
    [
        ("die", r"Task 3 of gas, \[60, 80\], failed: its process was ended by SIGKILL.*memory"),
        ("raise", r"(?s)Task 3 of gas, \[60, 80\], failed: RuntimeError: the molecule fell apart.*Traceback.*_raise"),
    ],
)
def test_a_task_that_fails_is_named_and_what_is_finished_is_kept(reference, tmp_path, trouble, message):
    armed, folder = tmp_path / "armed", tmp_path / "store"
    armed.touch()
    source = Gas(trouble=trouble, armed=str(armed))
    with pytest.raises(GeomGNNError, match=message):
        build(plan(folder, source), processes=1)
    armed.unlink()
    moves = []
    index = build(plan(folder, source), processes=1, progress=lambda done, total, note="": moves.append(done))
    assert moves == list(range(3, 11))
    assert index["hash"] == json.loads((reference / "index.json").read_text())["hash"]


def test_a_finished_store_is_left_alone_and_a_lost_shard_is_made_again(reference, tmp_path, monkeypatch):
    build(plan(tmp_path), processes=1)
    monkeypatch.setattr(Gas, "tasks", lambda *_: pytest.fail("a finished store needs no tasks"))
    build(plan(tmp_path), processes=1)
    monkeypatch.undo()
    shard = tmp_path / "gas-00001.safetensors"
    whole = shard.read_bytes()
    for damage, problem in ((lambda: shard.write_bytes(whole[:-7]), "bytes instead of"), (shard.unlink, "is missing")):
        damage()
        with pytest.raises(ValueError, match=rf"gas-00001\.safetensors of the conformer store .*{problem}"):
            Conformers(tmp_path)
        build(plan(tmp_path), processes=1)
        assert contents(tmp_path) == contents(reference)
    # damage that leaves the length as it is shows when the shard is read, or its hash compared
    shard.write_bytes(whole.replace(np.int64(0).tobytes() * 1, np.int64(3).tobytes(), 1))
    assert len(Conformers(tmp_path)) == 172
    with pytest.raises(ValueError, match=r"gas-00001\.safetensors .*damaged"):
        Conformers(tmp_path)[80]
    index = json.loads((tmp_path / "index.json").read_text())
    assert building.damaged_shards(tmp_path, index) == []
    assert building.damaged_shards(tmp_path, index, thorough=True) == ["gas-00001.safetensors"]


def test_other_settings_are_refused_by_name(tmp_path):
    folder = tmp_path / "store"
    build(plan(folder, Gas(number=30)), processes=1)
    before = contents(folder)
    for other, message in (
        (plan(folder, Gas(number=40)), r"gas\.number is 30 there and 40 here.*--overwrite"),
        (plan(folder, Gas(number=30), seed=2), "seed is 1 there and 2 here"),
        (plan(folder, Gas(number=30), shard_size=7), "shard_size is 300 there and 7 here"),
        (Build(folder, (LabelledSource(Gas(30), "air"),), shard_size=300), "sources are gas there and air here"),
    ):
        with pytest.raises(GeomGNNError, match=message):
            build(other, processes=1)
        assert contents(folder) == before
    # splits are made from what is there
    index = build(plan(folder, Gas(number=30), splits=Splits(val=0.2, test=0.0)), processes=1)
    assert index["sources"]["gas"]["splits"] == {"train": 21, "val": 5, "test": 0, "by": "molecule"}
    assert {name: text for name, text in contents(folder).items() if name.startswith("gas")} == {
        name: text for name, text in before.items() if name.startswith("gas")
    }


def test_overwrite_moves_what_was_there_aside(tmp_path):
    folder = tmp_path / "store"
    build(plan(folder, Gas(number=30)), processes=1)
    (folder / "notes.txt").write_text("mine")
    before = contents(folder)
    air = Build(folder, (LabelledSource(Gas(30), "air"),))
    with pytest.warns(UserWarning, match="store is now .*store.previous-1"):
        build(air, processes=1, overwrite=True)
    assert sorted(contents(folder)) == ["air-00000.safetensors", "index.json", "splits.npz"]
    assert contents(tmp_path / "store.previous-1") == before


def test_overwrite_keeps_sources_and_settings(tmp_path):
    folder = tmp_path / "store"
    build(plan(folder, Gas(number=30)), processes=1)
    for name in ("molecules.arm", "build.yaml"):
        (folder / name).touch()
    before = contents(folder)
    pattern, settings = plan(folder, Gas(armed=str(folder / "*.arm"))), folder / "build.yaml"
    for other, settings_file, named in ((pattern, None, "molecules.arm"), (plan(folder), settings, "build.yaml")):
        with pytest.raises(GeomGNNError, match=f"would move .*store aside, but .* needs .*{named}"):
            build(other, processes=1, overwrite=True, settings_file=settings_file)
        assert contents(folder) == before
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def test_a_folder_of_something_else_or_of_another_process_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(GeomGNNError, match="not empty and was not made by"):
            build(plan(tmp_path), overwrite=overwrite)
    with pytest.raises(GeomGNNError, match="is a file"):
        build(plan(tmp_path / "notes.txt"))
    assert list(contents(tmp_path)) == ["notes.txt"]


def test_files_that_changed_are_noticed(tmp_path, monkeypatch):
    armed = tmp_path / "armed"
    armed.touch()
    source = Gas(trouble="raise", armed=str(armed))
    with pytest.raises(GeomGNNError, match="Task 3"):
        build(plan(tmp_path / "store", source), processes=1)
    monkeypatch.setattr(Gas, "tasks", lambda *_: [[0, 5]])
    with pytest.raises(GeomGNNError, match="The files of gas have changed since"):
        build(plan(tmp_path / "store", source), processes=1)


def test_sources_that_give_nothing(tmp_path):
    with pytest.raises(GeomGNNError, match="no sources"):
        Build(tmp_path, ())
    with pytest.raises(GeomGNNError, match="2 sources have the label 'gas'"):
        Build(tmp_path, (LabelledSource(Gas(), "gas"), LabelledSource(Gas(7), "gas")))
    with pytest.raises(GeomGNNError, match="label is 'a/b'"):
        LabelledSource(Gas(), "a/b")
    with pytest.raises(GeomGNNError, match="number of the conformer source `gas` is 0"):
        build(plan(tmp_path / "none", Gas(number=0)))
    assert not (tmp_path / "none").exists()
    with pytest.raises(GeomGNNError, match="The sources gave no conformers"):
        build(plan(tmp_path / "none", Walk(pieces=0)), processes=1)
    assert not (tmp_path / "none" / "index.json").exists()


# ---------------------------------------------------------------------------------------------------------------- splits


def test_molecules_are_told_apart_by_their_elements_in_order():
    z = [[6, 1, 1], [6, 1, 1], [1, 6, 1], [6, 1], [6, 1, 1, 1], [6, 1, 1]]
    ptr = np.cumsum([0, *map(len, z)])
    found = molecules(np.concatenate(z).astype(np.uint8), ptr)
    assert found[0] == found[1] == found[5] and len(set(found.tolist())) == 4
    rng = np.random.default_rng(0)
    many = rng.choice([1, 6, 7, 8], size=(20_000, 20)).astype(np.uint8)
    assert len(np.unique(molecules(many.ravel(), np.arange(0, 400_001, 20)))) == len(np.unique(many, axis=0))


def test_whole_molecules_are_held_out():
    rng = np.random.default_rng(1)
    one = rng.integers(100, size=5000).astype(np.uint64)
    two = rng.integers(50, 300, size=3000).astype(np.uint64)
    frames = np.full(400, 7, dtype=np.uint64)
    few = np.full(10, 8, dtype=np.uint64)
    groups = {"one": (one, np.arange(5000) // 100), "two": (two, np.arange(3000) // 100)}
    groups |= {"frames": (frames, np.arange(400) // 20), "few": (few, np.arange(10) // 5)}
    parts, by = hold_out(groups, Splits(val=0.1, test=0.2), seed=3)
    assert by == {"one": "molecule", "two": "molecule", "frames": "task", "few": "frames"}
    for part in parts[:3]:
        np.testing.assert_allclose(np.bincount(part) / len(part), [0.7, 0.1, 0.2], atol=0.03)
    assert parts[3].tolist() == [0] * 7 + [1, 2, 2]  # one molecule in two tasks: its last conformers
    # no molecule is in two parts, also across sources; no task of the trajectory is
    pairs = np.stack([np.append(one, two), np.append(parts[0], parts[1])])
    assert len(np.unique(pairs, axis=1).T) == len(np.unique(pairs[0]))
    assert len(np.unique([np.arange(400) // 20, parts[2]], axis=1).T) == 20
    again, _ = hold_out(groups, Splits(val=0.1, test=0.2), seed=3)
    other, _ = hold_out(groups, Splits(val=0.1, test=0.2), seed=4)
    assert all(map(np.array_equal, parts, again)) and not np.array_equal(parts[0], other[0])
    _, by = hold_out(groups, Splits("task"), seed=3)
    assert by == {"one": "task", "two": "task", "frames": "task", "few": "frames"}
    (part,), by = hold_out({"two frames": (few[:2], few[:2])}, Splits(), seed=3)
    assert by == {"two frames": None} and not part.any()


@pytest.mark.parametrize("number", [2, FEWEST, 20])
def test_large_groups_do_not_fill_the_splits(number):
    """Twenty residues with a twentieth of the conformers each: one for validation, one for the test. Of two molecules, in
    two tasks, it is the last conformers."""
    groups = np.repeat(np.arange(number, dtype=np.uint64), 100)
    (part,), _ = hold_out({"x": (groups, groups)}, Splits(val=0.05, test=0.05), seed=0)
    held = 10 if number < FEWEST else 100
    assert np.bincount(part, minlength=3).tolist() == [100 * number - 2 * held, held, held]


def test_splits_are_those_of_the_trainer(tmp_path):
    labelled = (LabelledSource(Gas(), "gas"), LabelledSource(Walk(), "walk"))
    index = build(Build(tmp_path, labelled, splits=Splits(val=0.1, test=0.1)), processes=1)
    dataset = Conformers(tmp_path)
    splits = make_splits(len(dataset), None, 0.3, 0.3, 1, None, str(tmp_path / "splits.npz"))
    assert sorted(torch.cat(splits).tolist()) == list(range(len(dataset)))
    molecules_of = [{tuple(dataset[i].z.tolist()) for i in part if dataset.source_of(i) == "gas"} for part in splits]
    assert all(molecules_of) and not (molecules_of[0] & molecules_of[1] or molecules_of[0] & molecules_of[2])
    # frames of the one molecule: whole tasks, of which task 2 lacks the broken frame
    assert index["sources"]["walk"]["skipped"] == {building.MALFORMED: 1}
    tasks = np.repeat(np.arange(10), [10, 10, 9, *[10] * 7])
    walk = np.arange(len(dataset) - 99, len(dataset))
    kept = [set(tasks[np.isin(walk, part)].tolist()) for part in splits]
    assert [len(part) for part in kept] == [8, 1, 1] and len(set.union(*kept)) == 10
    for label, by in (("gas", "molecule"), ("walk", "task")):
        numbers = index["sources"][label]["splits"]
        assert numbers.pop("by") == by
        assert list(numbers.values()) == [sum(dataset.source_of(i) == label for i in part) for part in splits]


# --------------------------------------------------------------------------------------------------------------- command


@pytest.fixture
def geomgnn(monkeypatch, capfd, tmp_path):
    """Run the command in this process with our sources: (exit code, what it printed)."""
    monkeypatch.chdir(tmp_path)
    for source in (Gas, Walk):
        monkeypatch.setitem(sources.SOURCES, source.name, source)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["geomgnn", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        out, error = capfd.readouterr()
        return end.value.code, " ".join((out + error).split())

    return run


def test_command(geomgnn, tmp_path):
    file = tmp_path / "mine.yaml"
    listed = "[{source: gas}, {source: gas, label: air, number: 60}, {source: walk}]"
    file.write_text(f"processes: 1\nshard_size: 500\nsources: {listed}\n")
    code, text = geomgnn("data", "build", file, "--set", "sources.0.number=100", "--processes", "2")
    assert code == 0 and "18/18 tasks 237 conformers" in text
    assert "gas 86 14 " in text and "walk 99 1 297 3-3 3.0" in text and f"walk skipped 1: {building.MALFORMED}" in text
    folder = tmp_path / "runs" / "mine"
    assert geomgnn("data", "info", folder, "--check")[1].count("all shards are as they were written") == 1
    assert geomgnn("data", "build", file, "--set", "sources.0.number=100")[0] == 0
    code, text = geomgnn("data", "build", file)
    assert code == 1 and "gas.number is 100 there and 200 here" in text

    code, text = geomgnn("data", "splits", folder, "some.npz", "--source", "gas", "--source", "walk")
    assert code == 0, text
    some, whole = Conformers(folder, sources=["gas", "walk"]), Conformers(folder)
    splits = [np.load(path) for path in ("some.npz", folder / "splits.npz")]
    for name in ("idx_train", "idx_val", "idx_test"):
        expected = [whole[i].pos for i in splits[1][name] if whole.source_of(i) != "air"]
        found = [some[i].pos for i in splits[0][name]]
        assert len(found) == len(expected) > 0 and all(map(torch.equal, found, expected))
    code, text = geomgnn("data", "splits", folder, "some.npz", "--source", "gass")
    assert code == 1 and "Did you mean 'gas'?" in text

    whole = (folder / "splits.npz").read_bytes()
    np.savez(tmp_path / "other.npz", **{name: splits[0][name] for name in splits[0]})
    for content in (b"", whole[:-30], (tmp_path / "other.npz").read_bytes(), b"PK" + whole[2:90] + b"\x07" + whole[91:]):
        (folder / "splits.npz").write_bytes(content)
        code, text = geomgnn("data", "splits", folder, "never.npz", "--source", "gas")
        assert code == 1 and "splits.npz" in text and "damaged" in text and not (tmp_path / "never.npz").exists()

    (folder / "gas-00000.safetensors").write_bytes(b"")
    code, text = geomgnn("data", "info", folder)
    assert code == 1 and "missing or damaged: gas-00000.safetensors" in text
    code, text = geomgnn("data", "info", tmp_path)
    assert code == 1 and "no conformer store in" in text


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("sorces: [{source: gas}]", ["Unknown key 'sorces'", "Did you mean 'sources'?"]),
        ("seed: 1", ["sources is missing"]),
        ("sources: []", ["must be a list of sections"]),
        ("sources: [gas]", ["Source 1 is 'gas'", "'source: NAME'"]),
        ("sources: [{source: gaz}]", ["'gaz' is unknown", "Did you mean 'gas'?"]),
        ("sources:\n- source: gas\n  nmber: 3", ["line 2", "no setting 'nmber'", "Did you mean 'number'?"]),
        ("sources:\n- source: gas\n  number: 0", ["line 3", "number of the conformer source `gas` is 0"]),
        ("sources:\n- source: gas\n  label: a/b", ["line 3", "label is 'a/b'"]),
        ("sources: [{source: gas}]\nprocesses: 0", ["line 2", "processes is 0", "at least 1"]),
        ("sources: [{source: gas}]\nsplits: {val: 0.6, test: 0.4}", ["leave nothing to train on"]),
        ("sources: [{source: gas}]\nsplits: {by: frame}", ["by is 'frame'", "'molecule' or 'task'"]),
        ("sources: [{source: gas}]\nunbiased: 3", ["Unknown key 'unbiased'", "file for `geomgnn run`", "data build"]),
    ],
)
def test_wrong_settings(geomgnn, tmp_path, text, parts):
    (tmp_path / "wrong.yaml").write_text(text)
    code, error = geomgnn("data", "build", "wrong.yaml")
    assert code == 1 and all(part in error for part in parts), error
    assert sorted(contents(tmp_path)) == ["wrong.yaml"]


def test_overrides_within_lists(geomgnn, tmp_path):
    (tmp_path / "mine.yaml").write_text("sources: [{source: gas}, {source: gas, label: b, armed: here}]")
    settings = load_data_build(tmp_path / "mine.yaml", {"sources.1.number": 5, "splits.val": 0.2})
    assert [labelled.source.number for labelled in settings.sources] == [200, 5] and settings.splits.val == 0.2
    assert settings.sources[1].source.armed == str(tmp_path / "here")
    with pytest.raises(GeomGNNError, match="'sources.2.number' has '2' in it where a number below 2"):
        load_data_build(tmp_path / "mine.yaml", {"sources.2.number": 5})


def test_the_protocol_that_ships(repository):
    if not (find_spec("qm9pack") and find_spec("PeptideBuilder")):
        pytest.skip("needs qm9pack and PeptideBuilder")
    settings = load_data_build(repository / "protocols" / "build-conformers.yaml")
    assert [labelled.label for labelled in settings.sources] == ["qm9", "peptides"]
    assert settings.output.name == "build-conformers" and settings.shard_size == building.SHARD_SIZE
