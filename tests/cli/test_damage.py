"""Whatever happens to a file or a setting: it is read, or refused with one paragraph, in time, and nothing changes.

GEOMGNN_EXAMPLES sets how many examples of each kind are tried.
"""

import json
import math
import os
import shutil
import struct
import subprocess
import sys
import warnings
from datetime import timedelta
from pathlib import Path

import mdtraj
import numpy as np
import pytest
import read_trajectories
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from molecules import ALA2, ala2, random_cv, random_encoder
from openmm import app
from protocol_texts import FULL

from openmm_geomgnn.cli.data import _readable, read_splits
from openmm_geomgnn.cli.run_folder import wall_time
from openmm_geomgnn.cli.settings.yaml_files import dump, load_protocol
from openmm_geomgnn.conformers.folder import index_of
from openmm_geomgnn.cv.network import CollectiveVariable
from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.representation.encoder import Encoder
from openmm_geomgnn.representation.selection import as_topology
from openmm_geomgnn.sampling.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from openmm_geomgnn.sampling.colvar import ColvarWriter, read_colvar
from openmm_geomgnn.sampling.outputs import TrajectoryWriter, Written, read_dcd
from openmm_geomgnn.sampling.systems import load_structure
from torchmdnet_ext.datasets.conformer_store import INDEX_FORMAT, INDEX_VERSION
from torchmdnet_ext.datasets.conformers import Conformers, write_conformers
from torchmdnet_ext.tensor_files import with_checksum

pytestmark = pytest.mark.slow

EXAMPLES = int(os.environ.get("GEOMGNN_EXAMPLES", 25))
FEW = settings(
    max_examples=EXAMPLES,
    derandomize=True,
    database=None,
    deadline=timedelta(seconds=20),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
HEADER = 1500  # bytes at the beginning, where most of a file's description is


# ------------------------------------------------------------------------------------------------------- kinds of files


def write_cv(path):
    random_cv(ala2().topology, lagtime=5.0, training={"timescales_ps": [3.0, None], "frames": [10]}).save(path)


def write_splits(path):
    np.savez(path, idx_train=np.arange(8), idx_val=np.array([8]), idx_test=np.array([9, 10]))


def write_checkpoint(path):
    bias, heat = {"centres": np.arange(6.0).reshape(3, 2)}, {"count": np.array(5)}
    save_checkpoint(path, Checkpoint(7, bias, [bytes(range(200)), b"b" * 100], heat, Written(4, 3, 2), {"seed": 1}))


def write_colvar(path):
    with ColvarWriter(path, ["time", "walker", "cv.1"]) as colvar:
        colvar.write(np.random.default_rng(0).normal(size=(40, 3)))


def write_dcd(path, box=None):
    topology = app.PDBFile(str(ALA2)).topology
    topology.setPeriodicBoxVectors(None if box is None else np.diag(box))
    with TrajectoryWriter(path, topology, 0.002, 10) as writer:
        frames = np.repeat(ala2().xyz, 5, axis=0)
        writer.write(frames, None if box is None else np.repeat(np.diag(box)[None], 5, axis=0))


def write_index(path):
    shard = {"file": "a.safetensors", "bytes": 3, "sha256": "0", "sources": ["a"], "conformers": 1, "atoms": 2}
    counts = {"conformers": 1, "atoms": 2, "sizes": {"min": 2, "max": 2}, "elements": {"H": 2}, "skipped": {}}
    index = {"format": INDEX_FORMAT, "version": INDEX_VERSION, "settings": {}, "tasks": {}, "shards": [shard], "sources": {}}
    path.write_text(json.dumps(with_checksum({**index, **counts}, {}), indent=1))


def read_conformers(path):
    with _readable():
        dataset = Conformers(file=path)
        return [(data.z.tolist(), data.pos.numpy()) for data in dataset]


# name of the file -> what writes it, what reads it, whether it carries a checksum of all that is in it
KINDS = {
    "cv.safetensors": (write_cv, CollectiveVariable.load, True),
    "encoder.safetensors": (lambda path: random_encoder().save(path), Encoder.load, True),
    "checkpoint.safetensors": (write_checkpoint, load_checkpoint, True),
    "index.json": (write_index, lambda path: index_of(path.parent), True),
    "conformers.safetensors": (
        lambda path: write_conformers(path, [([6, 8, 1], np.eye(3), "a"), ([1, 1], np.eye(3)[:2], "b")] * 5),
        read_conformers,
        False,
    ),
    "splits.npz": (write_splits, lambda path: read_splits(path, 11), False),
    "COLVAR": (write_colvar, read_colvar, False),
    "trajectory.0.dcd": (write_dcd, read_dcd, False),
    "boxed.dcd": (lambda path: write_dcd(path, [3.0, 3.0, 3.0]), read_dcd, False),
    "structure.pdb": (lambda path: path.write_bytes(ALA2.read_bytes()), load_structure, False),
    "topology.pdb": (lambda path: path.write_bytes(ALA2.read_bytes()), as_topology, False),
    "structure.cif": (lambda path: ala2().save(str(path)), load_structure, False),
    "topology.gro": (lambda path: ala2().save(str(path)), as_topology, False),
    "wall_time.json": (lambda path: path.write_text('{"seconds": 12.5}\n'), lambda path: wall_time(path.parent), False),
    "protocol.yaml": (lambda path: path.write_text(FULL), load_protocol, False),
}


# what happens to a file: where, of so many bytes from its beginning, where its description is; what; with which number
DAMAGE = st.lists(
    st.tuples(
        st.sampled_from([60, HEADER, None]),
        st.floats(0, 1, exclude_max=True),
        st.sampled_from(["flip", "flip", "set", "cut", "remove", "repeat"]),
        st.integers(0, 255),
    ),
    min_size=1,
    max_size=3,
)


def damaged(content, damage):
    """Bytes of a file after flips, cuts and repetitions."""
    content = bytearray(content)
    for within, where, kind, number in damage:
        place = int(where * min(len(content), within or len(content)))
        length = 1 + number % 40
        if kind == "cut":
            del content[place:]
        elif kind == "remove":
            del content[place : place + length]
        elif kind == "repeat":
            content[place:place] = content[place : place + length]
        elif content:
            content[place] = number if kind == "set" else content[place] ^ (1 << number % 8)
    return bytes(content)


class Whole(dict):
    """Files by name; hypothesis prints what a test was given."""

    def __repr__(self):
        return f"{len(self)} files"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The content of a file of each kind, as we write it."""
    folder, found = tmp_path_factory.mktemp("whole"), Whole()
    for name, (write, *_) in KINDS.items():
        write(folder / name)
        found[name] = (folder / name).read_bytes()
    return found


def told(read, path):
    """What reading a file gives, or None where it is refused; anything but a GeomGNNError of one paragraph is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return read(path)
        except GeomGNNError as error:
            text = str(error)
            assert text and "\n" not in text and text[-1] in ".?", text
            return None


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", KINDS)
@FEW
@given(damage=DAMAGE)
def test_damaged_files(name, damage, whole, tmp_path, monkeypatch):
    """Truncated or with other bytes: as before, or refused; and where there is a checksum nothing else passes."""
    monkeypatch.chdir(tmp_path)
    content = damaged(whole[name], damage)
    path = tmp_path / name
    path.write_bytes(content)
    found = told(KINDS[name][1], path)
    assert contents(tmp_path) == {Path(name): content}
    if name == "index.json" and found is not None:  # as text it may look different
        expected = json.loads(whole[name])
        assert all(found[key] == value for key, value in expected.items() if key != "checksum")
    elif KINDS[name][2]:
        assert found is None or content == whole[name]


@pytest.mark.parametrize("name", KINDS)
def test_whole_files_are_read(name, whole, tmp_path, monkeypatch):
    """Without which the test above could not fail."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_bytes(whole[name])
    found = told(KINDS[name][1], tmp_path / name)
    assert found is not None and not (isinstance(found, float) and math.isnan(found))


@FEW
@given(damage=DAMAGE, number=st.integers(0, 1000))
def test_damaged_stores_of_embeddings(damage, number, tmp_path_factory):
    """A byte of any file of a store: frames are read as before, or it is refused."""
    pytest.importorskip("zarr")
    from store_files import contents as chunk
    from store_files import new

    from openmm_geomgnn.representation.store import Embeddings

    folder = tmp_path_factory.getbasetemp() / "embeddings"
    if not folder.exists():
        store = new(folder / "whole.zarr")
        for number in range(len(store.chunks(0))):
            store.write(0, number, *chunk(store, 0, number))
    copy = folder / "copy.zarr"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(folder / "whole.zarr", copy)
    files = sorted(path for path in copy.rglob("*") if path.is_file())
    path = files[number % len(files)]
    path.write_bytes(damaged(path.read_bytes(), damage))

    def read(path):
        store = Embeddings.open(path)
        store.check(content=True)
        return [store.tokens(0)[:], store.positions(0)[:], store.times(0)]

    before = contents(copy)
    found = told(read, copy)
    assert contents(copy) == before
    if found is not None:
        for array, expected in zip(found, read(folder / "whole.zarr"), strict=True):
            np.testing.assert_array_equal(array, expected)


# --------------------------------------------------------------------------------------------------------- trajectories

# name of the file -> number of atoms: ten or more are compressed in an XTC file
TRAJECTORIES = {"a.xtc": 22, "small.xtc": 5, "a.trr": 22, "a.dcd": 22, "fixed.dcd": 22}
WORDS = (0, 1, -1, 2, 8, 9, 73, 2**31 - 1, -(2**31), 1 << 24, -92, -96)


def write_trajectory(path, n_frames=6):
    molecule = ala2().atom_slice(range(TRAJECTORIES[path.name]))
    xyz = molecule.xyz + 0.02 * np.random.default_rng(0).normal(size=(n_frames, molecule.n_atoms, 3))
    made = mdtraj.Trajectory(xyz, molecule.topology, time=2.0 * np.arange(n_frames))
    made.unitcell_vectors = np.tile(3 * np.eye(3), (n_frames, 1, 1))
    made.save(str(path))
    if path.name == "fixed.dcd":
        path.write_bytes(with_fixed_atoms(path.read_bytes(), molecule.n_atoms, 4))


def with_fixed_atoms(content, n_atoms, fixed):
    """A DCD file in which the first atoms do not move: frames after the first have the others only, which the head lists."""
    free, head = n_atoms - fixed, bytearray(content[: len(content) % (80 + 12 * n_atoms) or None])
    frames = np.frombuffer(content[len(head) :], np.uint8).reshape(-1, 80 + 12 * n_atoms)
    struct.pack_into("<i", head, 40, fixed)
    head += struct.pack(f"<{free + 2}i", 4 * free, *range(fixed + 1, n_atoms + 1), 4 * free) + frames[0].tobytes()
    mark = struct.pack("<i", 4 * free)
    for frame in frames[1:]:
        axes = frame[56:].reshape(3, 8 + 4 * n_atoms)[:, 4 + 4 * fixed : -4]
        head += frame[:56].tobytes() + b"".join(mark + axis.tobytes() + mark for axis in axes)
    return bytes(head)


def any_damage(content, rng):
    """As `damaged`, or another number in one of the heads of frames, where C code believes it."""
    if rng.random() < 0.5:
        kinds = ["flip", "flip", "set", "cut", "remove", "repeat"]
        once = [([60, HEADER, None][rng.integers(3)], rng.random(), kinds[rng.integers(6)], int(rng.integers(256)))]
        return damaged(content, once * rng.integers(1, 3))
    content = bytearray(content)
    place = 4 * int(rng.integers([30, len(content) // 4][rng.integers(2)]))
    struct.pack_into([">i", "<i"][rng.integers(2)], content, min(place, len(content) - 4), WORDS[rng.integers(len(WORDS))])
    return bytes(content)


def outcomes(paths, topology):
    """What became of reading each of these files, in a process that may crash: [(name, outcome)]."""
    child = Path(read_trajectories.__file__)
    done = subprocess.run([sys.executable, child, topology, *paths], capture_output=True, text=True, timeout=300)
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    if done.returncode != 0:
        lines.append([paths[len(lines)].name, f"ended with {done.returncode}: {done.stderr[-1500:]}"])
    return lines


@pytest.mark.skipif(sys.platform != "linux", reason="a limit of memory is set as Linux does it")
@pytest.mark.parametrize("name", TRAJECTORIES)
def test_damaged_trajectories(name, tmp_path):
    """C code reads these: here a crash, a file without end, memory without end and NaN are errors as well."""
    topology = tmp_path / "topology.pdb"
    ala2().atom_slice(range(TRAJECTORIES[name])).save(str(topology))
    write_trajectory(tmp_path / name)
    whole, rng = (tmp_path / name).read_bytes(), np.random.default_rng(0)
    paths = [tmp_path / name]
    for number in range(12 * EXAMPLES // 5):
        paths.append(tmp_path / f"{number}.{name}")
        paths[-1].write_bytes(any_damage(whole, rng))
    found = outcomes(paths, topology)
    assert found[0] == [name, "read"]
    assert [line for line in found if line[1] not in ("read", "refused")] == []
    assert len(found) == len(paths) and "refused" in dict(found).values()


# ------------------------------------------------------------------------------------------------------------- settings

KEYS = sorted(
    {
        *("seed", "output", "system", "run", "cv", "bias", "unbiased", "analysis", "x.y", "", "run.length.deeper"),
        *("system.structures", "system.structures.0", "system.forcefield", "system.temperature", "system.timestep"),
        *("system.constraints", "system.hydrogen_mass", "system.periodic", "system.platform", "system.friction"),
        *("unbiased.length", "unbiased.frame_interval", "unbiased.equilibration", "unbiased.comparison_length"),
        *("cv.encoder", "cv.lag", "cv.components", "cv.pca", "cv.window", "cv.context", "cv.radius", "cv.mixer", "cv.file"),
        *("cv.selection", "cv.reference", "cv.estimator", "cv.softening", "cv.training", "cv.training.epochs", "cv.pooling"),
        *("bias.barrier", "bias.pace", "bias.sigma", "bias.sigma_min", "bias.biasfactor", "bias.adaptive_stride"),
        *("bias.compression_threshold", "bias.kernel_cutoff", "bias.explore", "bias.method"),
        *("run.length", "run.walkers", "run.every", "run.colvar_interval", "run.frame_interval", "run.checkpoint_interval"),
        *("run.engine", "analysis.torsions", "analysis.torsions.phi", "analysis.cores", "analysis.cores.a"),
        "analysis.discard",
    }
)
UNITS = ("", " ps", "fs", " ns", " K", " kJ/mol", " 1/ps", " nm", " amu", " %", " deg", "/", "^2 ps", " parsec", " ps^-1")
NUMBERS = st.one_of(
    st.integers(-3, 100),
    st.integers(-(10**25), 10**25),
    st.floats(allow_nan=True, allow_infinity=True),
    st.sampled_from([1e-320, 1e308, 2**63, 0.1, 0.2, 5, 50, 300]),
)
TEXTS = st.one_of(
    st.builds(lambda number, unit: f"{number}{unit}", NUMBERS, st.sampled_from(UNITS)),
    st.text(max_size=20),
    st.sampled_from(["1:30", "010", "~nobody/x", "a\0b", "et-64", "auto", "none", "vampnet", "name CA", "((((", "*", "."]),
)
VALUES = st.recursive(
    st.one_of(NUMBERS, TEXTS, st.booleans(), st.none()),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8), inner, max_size=3)),
    max_leaves=6,
)


@settings(FEW, max_examples=6 * EXAMPLES)
@given(overrides=st.dictionaries(st.sampled_from(KEYS), VALUES, min_size=1, max_size=3))
def test_any_settings(overrides, shipped_files, tmp_path, monkeypatch):
    """Refused, or settings that can be written down and read back, as every run does."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "x.yaml"
    path.write_text(FULL)

    def read(path):
        return load_protocol(path, overrides)

    protocol = told(read, path)
    assert contents(tmp_path) == {Path("x.yaml"): FULL.encode()}
    if protocol is not None:
        again = tmp_path / "again.yaml"
        again.write_text(dump(protocol), encoding="utf-8")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert load_protocol(again) == protocol
        again.unlink()


@FEW
@given(text=st.text(alphabet="ab:-[]{}&*!|>'\"#%@,?<0123456789.~\n \t\\x", max_size=60))
def test_any_yaml(text, shipped_files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "x.yaml"
    path.write_text(text)
    told(load_protocol, path)
    assert contents(tmp_path) == {Path("x.yaml"): text.encode()}
