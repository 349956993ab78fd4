"""Trajectories of every format become the tokens that they would have in memory, however often that was interrupted."""

import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import mdtraj
import numpy as np
import pytest
import torch
from molecules import ALA2, BOXES, ala2, random_encoder, with_water, wrapped

from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.representation import embed_workers as embedding_workers
from openmm_geomgnn.representation import trajectory_files
from openmm_geomgnn.representation.embed_trajectories import EmbedSettings, embed_trajectories
from openmm_geomgnn.representation.encoder import Encoder
from openmm_geomgnn.representation.periodic import SelectedMolecule
from openmm_geomgnn.representation.selection import select_atoms
from openmm_geomgnn.representation.spec import TokenSpec
from openmm_geomgnn.representation.store import Embeddings
from openmm_geomgnn.representation.tokens import Tokenizer
from openmm_geomgnn.representation.trajectory_files import TrajectoryFile, fingerprint, has_content, has_stamp
from openmm_geomgnn.representation.windows import make_windows
from torchmdnet_ext.checkpoints import write_encoder

pytestmark = pytest.mark.slow

pytest.importorskip("zarr")
FRAMES = 50
NEEDS = {"h5": "tables", "nc": "scipy", "dcd": None, "xtc": None, "trr": None, "pdb": None, "xyz": None, "lammpstrj": None}


def frames(n=FRAMES, seed=0, box=None):
    """Alanine dipeptide, trembling, at 2 ps per frame."""
    rng = np.random.default_rng(seed)
    frame = ala2()
    xyz = (frame.xyz + 0.02 * rng.normal(size=(n, frame.n_atoms, 3))).astype(np.float32)
    made = mdtraj.Trajectory(xyz, frame.topology, time=2.0 * np.arange(n) + 10.0)
    if box is not None:
        made.unitcell_vectors = np.tile(box, (n, 1, 1))
    return made


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
    """Files of two random encoders."""
    folder = tmp_path_factory.mktemp("encoders")
    for seed, name in ((8, "one"), (9, "two")):
        random = random_encoder(seed=seed)
        write_encoder(folder / f"{name}.safetensors", random.settings, random.network)
    return {name: str(folder / f"{name}.safetensors") for name in ("one", "two")}


@pytest.fixture
def settings(encoders):
    return EmbedSettings(encoder=encoders["one"], chunk=6, tokens=TokenSpec(window="sequence", context=0))


@pytest.fixture
def xtc(tmp_path):
    path = tmp_path / "a.xtc"
    frames().save(str(path))
    return path


def embed(paths, output, settings, **options):
    paths = paths if isinstance(paths, list) else [paths]
    return embed_trajectories(ALA2, paths, output, settings, **{"workers": 1, **options})


def expected(trajectory, settings):
    topology = trajectory.topology
    spec = settings.tokens
    atoms = select_atoms(topology, spec.selection)
    windows = make_windows(topology, atoms, spec.window, spec.context)
    tokenizer = Tokenizer(Encoder.load(settings.encoder), windows, spec.pooling)
    return tokenizer.embed(SelectedMolecule(topology, atoms, windows.contacts).positions(trajectory)).numpy()


def everything(store):
    return [part for k in range(len(store)) for part in (store.tokens(k)[:], store.positions(k)[:], store.times(k))]


class TestFormats:
    @pytest.mark.parametrize(("ending", "stride"), [*((ending, 4) for ending in NEEDS), ("xtc", 1), ("pdb", 1)])
    def test_tokens_are_those_of_the_frames_in_memory(self, ending, stride, settings, tmp_path, monkeypatch):
        if NEEDS[ending]:
            pytest.importorskip(NEEDS[ending])
        monkeypatch.setattr(trajectory_files, "BLOCK_BYTES", 5 * 12 * 22)  # 5 frames
        path = tmp_path / f"a.{ending}"
        frames(box=None if ending == "xyz" else BOXES["triclinic"]).save(str(path))  # XYZ has no boxes
        settings = replace(settings, stride=stride)
        store = embed(path, tmp_path / "a.zarr", settings)
        store.check(content=True)
        loaded = mdtraj.load(str(path), top=str(ALA2))[::stride]
        assert store.lengths == [len(loaded)] == [-(-FRAMES // stride)]
        np.testing.assert_allclose(store.tokens(0)[:], expected(loaded, settings), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(store.positions(0)[:], loaded.xyz[:, select_atoms(loaded.topology)], atol=1e-6)
        if ending in ("xtc", "trr", "h5"):
            np.testing.assert_allclose(store.times(0), loaded.time)
        else:
            assert np.isnan(store.times(0)).all()

    def test_times_of_formats_without_them(self, settings, tmp_path):
        path = tmp_path / "a.dcd"
        frames().save(str(path))
        store = embed(path, tmp_path / "a.zarr", replace(settings, stride=4, frame_interval=0.5))
        np.testing.assert_allclose(store.times(0), 2.0 * np.arange(13))

    def test_molecules_cut_by_the_box(self, settings, tmp_path):
        whole = frames(box=BOXES["triclinic"])
        cut = mdtraj.Trajectory(
            wrapped(whole.xyz.astype(np.float64), BOXES["triclinic"]), whole.topology, whole.time,
            whole.unitcell_lengths, whole.unitcell_angles,
        )  # fmt: skip
        assert np.ptp(cut.xyz, axis=1).max() > 2.0
        paths = [tmp_path / "whole.trr", tmp_path / "cut.trr"]
        for part, path in zip((whole, cut), paths, strict=True):
            part.save(str(path))
        store = embed(paths, tmp_path / "a.zarr", settings)
        np.testing.assert_allclose(store.tokens(0)[:], store.tokens(1)[:], rtol=1e-3, atol=1e-3)
        assert np.ptp(store.positions(1)[:], axis=1).max() < 1.0

    def test_water_does_not_matter(self, settings, tmp_path):
        dry = frames(8)
        topology, _ = with_water(dry.topology, dry.xyz[0])
        wet = mdtraj.Trajectory(np.stack([with_water(dry.topology, xyz)[1] for xyz in dry.xyz]), topology)
        wet.save(str(tmp_path / "wet.trr"))
        wet[0].save(str(tmp_path / "wet.pdb"))
        store = embed_trajectories(tmp_path / "wet.pdb", [tmp_path / "wet.trr"], tmp_path / "a.zarr", settings, workers=1)
        np.testing.assert_allclose(store.tokens(0)[:], expected(dry, settings), rtol=1e-4, atol=1e-5)

    def test_any_frames_in_any_order(self, xtc):
        loaded = mdtraj.load(str(xtc), top=str(ALA2))
        with TrajectoryFile(xtc, ala2().topology) as file:
            assert len(file) == FRAMES
            for start, stop, stride in ((30, 50, 1), (0, 50, 7), (49, 50, 1), (3, 48, 9), (1, 50, 48)):
                found = np.concatenate([part.xyz for part in file.blocks(start, stop, stride)])
                np.testing.assert_array_equal(found, loaded.xyz[start:stop:stride])

    def test_half_precision_takes_half_the_space(self, xtc, settings, tmp_path):
        single = embed(xtc, tmp_path / "a.zarr", settings).tokens(0)
        half = embed(xtc, tmp_path / "b.zarr", replace(settings, dtype="float16")).tokens(0)
        assert half.nbytes == single.nbytes // 2
        np.testing.assert_allclose(half[:], single[:], rtol=1e-3, atol=1e-6)

    def test_windows_in_the_space_of_the_first_frame(self, xtc, settings, tmp_path):
        settings = replace(settings, tokens=TokenSpec(window="space", radius=0.2))
        store = embed(xtc, tmp_path / "a.zarr", settings)
        assert store.settings["neighbours"] == [[0, 1], [0, 1, 2], [1, 2]]
        # they are those of the store when it goes on, whatever comes next
        frames(9, seed=3).save(str(tmp_path / "b.xtc"))
        assert embed(tmp_path / "b.xtc", tmp_path / "a.zarr", settings).lengths == [FRAMES, 9]


class TestGoingOn:
    def test_more_trajectories_later(self, xtc, settings, tmp_path):
        embed(xtc, tmp_path / "a.zarr", settings)
        frames(20, seed=1).save(str(tmp_path / "b.xtc"))
        calls = []
        store = embed([xtc, tmp_path / "b.xtc"], tmp_path / "a.zarr", settings, progress=lambda *call: calls.append(call))
        assert store.lengths == [FRAMES, 20] and [entry["name"] for entry in store.trajectories] == ["a.xtc", "b.xtc"]
        assert calls[0] == (50, 70, 50) and calls[-1] == (70, 70, 50) and len(calls) == 5
        together = embed([xtc, tmp_path / "b.xtc"], tmp_path / "b.zarr", settings)
        for one, other in zip(everything(store), everything(together), strict=True):
            np.testing.assert_array_equal(one, other)

    def test_only_what_is_missing_is_done_again(self, xtc, settings, tmp_path):
        store = embed(xtc, tmp_path / "a.zarr", settings)
        before = everything(store)
        kept, lost = tmp_path / "a.zarr/0/tokens/c/1/0/0/0", tmp_path / "a.zarr/0/tokens/c/2/0/0/0"
        lost.write_bytes(b"garbage")
        (tmp_path / "a.zarr/0/checksums/c/2").unlink()
        stamp = kept.stat().st_mtime_ns
        calls = []
        again = embed(xtc, tmp_path / "a.zarr", settings, progress=lambda *call: calls.append(call))
        assert calls == [(44, 50, 44), (50, 50, 44)] and kept.stat().st_mtime_ns == stamp
        for one, other in zip(before, everything(again), strict=True):
            np.testing.assert_array_equal(one, other)

    @pytest.mark.parametrize("change", ["grown", "written again"])
    def test_a_trajectory_that_changed(self, change, xtc, settings, tmp_path):
        embed(xtc, tmp_path / "a.zarr", settings)
        size = xtc.stat().st_size
        if change == "grown":
            frames(FRAMES + 9).save(str(xtc))
            message = f"a.xtc is not the file any more .* had {size} bytes and has .* a file of its own"
        else:
            content = bytearray(xtc.read_bytes())
            content[size // 2] ^= 1
            xtc.write_bytes(content)
            message = "it has other content"
        with pytest.raises(GeomGNNError, match=message):
            embed(xtc, tmp_path / "a.zarr", settings)
        with pytest.warns(UserWarning, match="a.zarr is now .*a.zarr.previous-1"):
            again = embed(xtc, tmp_path / "a.zarr", settings, overwrite=True)
        assert again.lengths == [59 if change == "grown" else 50]
        assert Embeddings.open(tmp_path / "a.zarr.previous-1").lengths == [50]

    def test_a_trajectory_that_moved(self, xtc, settings, tmp_path):
        embed(xtc, tmp_path / "a.zarr", settings)
        (tmp_path / "a.zarr/0/checksums/c/4").unlink()
        moved = xtc.rename(tmp_path / "moved.xtc")
        store = embed(moved, tmp_path / "a.zarr", settings)
        store.check()
        assert len(store) == 1 and store.trajectories[0]["path"] == str(moved)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"encoder": "two"}, r"encoder \(parameters\): one with hash \w+ there, two with hash"),
            ({"tokens": {"pooling": "mean"}}, "pooling: sum there, mean now"),
            ({"stride": 2, "dtype": "float16"}, "stride: 1 there, 2 now; dtype: float32 there, float16 now"),
            ({"tokens": {"window": "all"}}, "window: sequence there, all now; residues in each window"),
            ({"tokens": {"context": 1}}, r"residues in each window: \[\[0\], \[1\], \[2\]\] there, \[\[0, 1\]"),
            ({"frame_interval": 3.0}, "frame_interval: null there, 3.0 now"),
            ({"tokens": {"selection": "protein and not element H O"}}, "not that of the store a.zarr"),
        ],
    )
    def test_settings_are_not_mixed(self, change, message, xtc, settings, encoders, tmp_path):
        embed(xtc, tmp_path / "a.zarr", settings)
        change = {name: encoders[value] if name == "encoder" else value for name, value in change.items()}
        change["tokens"] = replace(settings.tokens, **change.get("tokens", {}))
        with pytest.raises(GeomGNNError, match=message):
            embed(xtc, tmp_path / "a.zarr", replace(settings, **change))
        assert embed(xtc, tmp_path / "a.zarr", settings).lengths == [FRAMES]

    @pytest.mark.parametrize("workers", [1, 2])
    def test_killed(self, workers, encoders, tmp_path):
        """By SIGKILL, in one process and in several; what follows is as if it had never happened, to the last bit."""
        if workers > 1:
            pytest.importorskip("distributed")
        frames(80).save(str(tmp_path / "a.trr"))
        output = tmp_path / "a.zarr"
        command = [
            *(sys.executable, "-c", "from openmm_geomgnn.cli.main import main; main()", "embed", str(ALA2)),
            *(str(tmp_path / "a.trr"), "-o", str(output), "--encoder", encoders["one"], "--chunk", "1"),
        ]
        process = subprocess.Popen([*command, "--workers", str(workers)], stdout=subprocess.DEVNULL, start_new_session=True)
        try:
            wait_for(lambda: len(chunks_in(output)) >= 8, process)
        finally:
            process.kill()  # the command alone: its workers must end by themselves
            process.wait()
        seen = settled(output)
        assert 8 <= seen < 80
        store = Embeddings.open(output)
        missing = store.missing(0)
        assert len(missing) >= 80 - seen
        for number in missing:  # whatever a killed writer left
            path = output / f"0/tokens/c/{number}/0/0/0"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"torn")
        settings = EmbedSettings(encoder=encoders["one"], chunk=1)
        finished = embed(tmp_path / "a.trr", output, settings)
        finished.check(content=True)
        untouched = embed(tmp_path / "a.trr", tmp_path / "b.zarr", settings)
        for one, other in zip(everything(finished), everything(untouched), strict=True):
            np.testing.assert_array_equal(one, other)
        assert np.isfinite(finished.tokens(0)[:]).all()


def chunks_in(output):
    return list(output.glob("0/tokens/c/*/0/0/0"))


def wait_for(condition, process, seconds=300):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, "the command ended before it was killed"
        assert time.monotonic() < end
        time.sleep(0.005)


def settled(output):
    """The number of chunks when nobody writes any more."""
    count = -1
    while count != len(chunks_in(output)):
        count = len(chunks_in(output))
        time.sleep(1.5)
    return count


class TestDask:
    @pytest.fixture
    def cluster(self):
        distributed = pytest.importorskip("distributed")
        threads = torch.get_num_threads()
        with distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=False, dashboard_address=None, silence_logs=50
        ) as cluster:
            yield cluster
        torch.set_num_threads(threads)

    def test_a_scheduler_of_the_user(self, cluster, xtc, settings, tmp_path):
        frames(20, seed=1).save(str(tmp_path / "b.xtc"))
        paths, calls = [xtc, tmp_path / "b.xtc"], []
        store = embed(
            paths, tmp_path / "a.zarr", settings, scheduler=cluster.scheduler_address, progress=lambda *c: calls.append(c)
        )
        assert calls[0] == (0, 70, 0) and calls[-1] == (70, 70, 0) and len(calls) == 14
        alone = embed(paths, tmp_path / "b.zarr", settings)
        for one, other in zip(everything(store), everything(alone), strict=True):
            np.testing.assert_array_equal(one, other)

    def test_processes_are_started_only_for_longer_work(self, cluster, xtc, settings, tmp_path, monkeypatch):
        started = []

        def client(stack, n_tasks, workers, scheduler):
            import distributed

            started.append(n_tasks)
            return stack.enter_context(distributed.Client(cluster))

        monkeypatch.setattr(embedding_workers, "_client", client)
        monkeypatch.setattr(embedding_workers, "cores", lambda: 2)
        embed(xtc, tmp_path / "a.zarr", settings, workers=None)
        assert started == []
        monkeypatch.setattr(embedding_workers, "ALONE", 0.0)
        embed(xtc, tmp_path / "b.zarr", settings, workers=None).check(content=True)
        assert started == [9]  # chunks, all of them
        embed(xtc, tmp_path / "c.zarr", settings, workers=2).check(content=True)
        assert started == [9, 9]

    def test_errors_of_workers(self, cluster, tmp_path, settings):
        broken = frames()
        broken.xyz[31, 8] = np.nan
        broken.save(str(tmp_path / "a.trr"))
        with pytest.raises(GeomGNNError, match="Frame 31 of a.trr has coordinates that are not finite"):
            embed(tmp_path / "a.trr", tmp_path / "a.zarr", settings, scheduler=cluster.scheduler_address)
        assert 5 in Embeddings.open(tmp_path / "a.zarr").missing(0)

    def test_no_scheduler(self, xtc, settings, tmp_path, monkeypatch):
        pytest.importorskip("distributed")
        with pytest.raises(GeomGNNError, match="No Dask scheduler answers at 'nonsense://1'"):
            embed(xtc, tmp_path / "a.zarr", settings, scheduler="nonsense://1")

    def test_without_dask(self, xtc, settings, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "distributed", None)
        monkeypatch.setattr(embedding_workers, "find_spec", lambda name: None)
        assert embed(xtc, tmp_path / "a.zarr", settings, workers=None).lengths == [FRAMES]
        with pytest.raises(GeomGNNError, match=r'pip install "openmm-geomgnn\[embed\]", or work in one process'):
            embed(xtc, tmp_path / "b.zarr", settings, workers=2)


class TestErrors:
    def test_without_zarr(self, xtc, settings, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "zarr", None)
        with pytest.raises(GeomGNNError, match=r'pip install "openmm-geomgnn\[embed\]"'):
            embed(xtc, tmp_path / "a.zarr", settings)

    def test_trajectories_that_do_not_fit(self, xtc, settings, tmp_path):
        heavy = frames(5)
        heavy.atom_slice(heavy.topology.select("not element H")).save(str(tmp_path / "heavy.xtc"))
        with pytest.raises(GeomGNNError, match=r"heavy.xtc cannot be read with a topology of 22 atoms .* the same atoms"):
            embed([xtc, tmp_path / "heavy.xtc"], tmp_path / "a.zarr", settings)
        with pytest.raises(GeomGNNError, match="There is no trajectory .*none.xtc"):
            embed(tmp_path / "none.xtc", tmp_path / "b.zarr", settings)
        (tmp_path / "torn.xtc").write_bytes(xtc.read_bytes()[:100])
        with pytest.raises(GeomGNNError, match="torn.xtc"):
            embed(tmp_path / "torn.xtc", tmp_path / "c.zarr", settings)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"dtype": "float64"}, "Unknown dtype 'float64'; the choices are float32, float16"),
            ({"stride": 0}, "stride must be a whole number of at least 1, but was 0"),
            ({"chunk": 2.5}, "chunk must be a whole number"),
        ],
    )
    def test_wrong_settings(self, change, message, xtc, settings, tmp_path):
        with pytest.raises(GeomGNNError, match=message):
            embed(xtc, tmp_path / "a.zarr", replace(settings, **change))
        assert not (tmp_path / "a.zarr").exists()

    def test_nothing_is_moved_before_all_is_known(self, xtc, settings, encoders, tmp_path):
        store = tmp_path / "a.zarr"
        embed(xtc, store, settings)
        (tmp_path / "torn.xtc").write_bytes(xtc.read_bytes()[:100])
        within = {name: shutil.copy(path, store) for name, path in {"a.xtc": xtc, "one": encoders["one"]}.items()}
        yaml = store / "embed.yaml"
        yaml.touch()
        for paths, changed, options, message in (
            (xtc, replace(settings, encoder="none-64"), {}, "no encoder"),
            ([xtc, tmp_path / "torn.xtc"], settings, {}, "torn.xtc"),
            (within["a.xtc"], settings, {}, "would move .*a.zarr aside, but .* needs .*a.zarr/a.xtc"),
            (xtc, replace(settings, encoder=within["one"]), {}, "needs .*a.zarr/one.safetensors"),
            (xtc, settings, {"settings_file": yaml}, "needs .*a.zarr/embed.yaml"),
        ):
            with pytest.raises(GeomGNNError, match=message):
                embed(paths, store, changed, overwrite=True, **options)
        assert not (tmp_path / "a.zarr.previous-1").exists()
        assert embed(xtc, store, settings).lengths == [FRAMES]

    def test_a_command_that_failed_leaves_no_settings(self, xtc, settings, tmp_path):
        (tmp_path / "torn.xtc").write_bytes(xtc.read_bytes()[:100])
        with pytest.raises(GeomGNNError, match="torn.xtc"):
            embed(tmp_path / "torn.xtc", tmp_path / "a.zarr", settings)
        assert (
            embed(xtc, tmp_path / "a.zarr", replace(settings, tokens=TokenSpec(pooling="mean"))).settings["pooling"]
            == "mean"
        )

    def test_only_stores_are_overwritten(self, xtc, settings, tmp_path):
        folder = tmp_path / "precious"
        folder.mkdir()
        (folder / "thesis.tex").touch()
        with pytest.raises(GeomGNNError, match="is not a Zarr store"):
            embed(xtc, folder, settings, overwrite=True)
        assert (folder / "thesis.tex").exists()

    def test_fingerprint_sees_every_byte(self, tmp_path):
        path, content = tmp_path / "a.bin", bytearray(np.random.default_rng(1).bytes(3 << 20))
        path.write_bytes(content)
        first = fingerprint(path)
        assert first["size"] == 3 << 20 and has_content(path, first) and has_stamp(path, first)
        for place in (0, 70 << 10, 1 << 20, len(content) - 1):
            content[place] ^= 1
            path.write_bytes(content)
            os.utime(path, ns=(0, first["mtime_ns"] + 1))
            assert not has_content(path, first) and not has_stamp(path, first)
            content[place] ^= 1

    def test_a_long_trajectory_that_changed_in_one_byte(self, settings, tmp_path):
        path, settings = tmp_path / "a.dcd", replace(settings, stride=1000)
        frames(5000).save(str(path))
        assert path.stat().st_size > 20 * (64 << 10)
        store = embed(path, tmp_path / "a.zarr", settings)
        assert store.lengths == [5]
        known = path.stat()
        os.utime(path, ns=(0, known.st_mtime_ns + 10**9))  # touched, not changed
        assert embed(path, tmp_path / "a.zarr", settings).lengths == [5]
        content = bytearray(path.read_bytes())
        content[70 << 10] ^= 1
        path.write_bytes(content)
        with pytest.raises(GeomGNNError, match="it has other content"):
            embed(path, tmp_path / "a.zarr", settings)

    def test_a_store_of_version_1(self, xtc, settings, tmp_path):
        import zarr

        expected = everything(embed(xtc, tmp_path / "a.zarr", settings))
        group = zarr.open_group(tmp_path / "a.zarr", mode="r+", zarr_format=3)
        old = {**group.attrs.asdict(), "version": 1}
        del old["settings_checksum"]
        old["settings"]["molecule"] = [row[:3] for row in old["settings"]["molecule"]]
        del old["trajectories"][0]["mtime_ns"]  # the hash of a small file is the same
        group.attrs.put(old)
        assert Embeddings.open(tmp_path / "a.zarr").lengths == [FRAMES]
        with pytest.warns(UserWarning) as warned:
            store = embed(xtc, tmp_path / "a.zarr", settings)
        texts = [str(warning.message) for warning in warned]
        assert any("knows a.xtc by parts of it only" in text for text in texts)
        assert any("which says nothing of bonds" in text for text in texts)
        for found, part in zip(everything(store), expected, strict=True):
            np.testing.assert_array_equal(found, part)
        again = zarr.open_group(tmp_path / "a.zarr", mode="r", zarr_format=3).attrs.asdict()
        assert again["version"] == 2 and "sampled" not in again["trajectories"][0]
        assert again["trajectories"][0]["mtime_ns"] == xtc.stat().st_mtime_ns


class TestCommand:
    def test_files_and_options(self, geomgnn, xtc, encoders, tmp_path, settings):
        options = ["--encoder", encoders["one"], "--window", "sequence", "--context", 0, "--stride", 2, "--chunk", 10]
        code, output, error = geomgnn("embed", ALA2, "a.xtc", "-o", "out.zarr", "--workers", 1, *options)
        assert code == 0 and error == ""
        lines = output.splitlines()
        assert lines[0] == "Embedding: 0/25 frames" and "Embedding: 25/25 frames" in output and "frames/s" in output
        assert lines[-2].startswith("25 frames of 1 trajectories, 3 residues with 16 channels") and lines[-2].endswith(" MB")
        assert lines[-1] == f"written to {tmp_path / 'out.zarr'}"
        store = Embeddings.open(tmp_path / "out.zarr")
        loaded = mdtraj.load(str(xtc), top=str(ALA2))[::2]
        np.testing.assert_allclose(store.tokens(0)[:], expected(loaded, settings), rtol=1e-5, atol=1e-6)
        code, _, error = geomgnn("embed", ALA2, "a.xtc", "-o", "out.zarr", *options, "--pooling", "mean")
        assert code == 1 and "pooling: sum there, mean now" in error and error.count("\n") == 1

    def test_yaml(self, geomgnn, xtc, encoders, tmp_path):
        (tmp_path / "in.yaml").write_text(
            f"topology: ala2-c7eq.pdb\ntrajectories: '*.xtc'\nencoder: {encoders['one']}\noutput: mine.zarr\nworkers: 1\n"
        )
        code, _, error = geomgnn("embed", "in.yaml", "--dtype", "float16", "--stride", "5")
        assert (code, error) == (0, "")
        store = Embeddings.open(tmp_path / "mine.zarr")
        assert store.lengths == [10] and store.tokens(0).dtype == np.float16 and store.settings["window"] == "all"

    @pytest.mark.parametrize(
        ("arguments", "parts"),
        [
            (["a.pdb", "a.xtc"], ["folder for the embeddings is missing", "-o a.zarr"]),
            ([ALA2, "-o", "a.zarr"], ["trajectories is []", "1 or more"]),
            ([ALA2, "b.xtc", "-o", "a.zarr"], ["no trajectory 'b.xtc'", "Did you mean 'a.xtc'?"]),
            ([ALA2, "a.xtc", "-o", "a.zar"], ["output is 'a.zar'", "write 'a.zar.zarr'"]),
            ([ALA2, "a.xtc", "-o", "a.zarr", "--dtype", "float8"], ["dtype is 'float8'", "'float32' or 'float16'"]),
            ([ALA2, "a.xtc", "-o", "a.zarr", "--stride", "two"], ["In the command line: stride is 'two'", "whole number"]),
            ([ALA2, "a.xtc", "-o", "a.zarr", "--encoder", "et64"], ["no encoder 'et64'", "Did you mean 'et-64'?"]),
            ([ALA2, "a.xtc", "-o", "a.zarr", "--selection", "residue ="], ["selection is 'residue ='"]),
            ([ALA2, "a.xtc", "-o", "a.zarr", "--reference", ALA2], ["Use window: space"]),
        ],
    )
    def test_errors(self, arguments, parts, geomgnn, xtc, tmp_path):
        code, _, error = geomgnn("embed", *arguments)
        assert code == 1 and error.startswith("Error: ") and error.count("\n") == 1
        for part in parts:
            assert part in error
        assert not (tmp_path / "a.zarr").exists()

    def test_the_example(self, repository, monkeypatch, tmp_path):
        from openmm_geomgnn.cli.settings.yaml_files import load_embed

        folder = tmp_path / "runs/ala2-opes/unbiased"
        folder.mkdir(parents=True)
        for k in range(2):
            (folder / f"trajectory.{k}.dcd").touch()
        (tmp_path / "protocols").mkdir()
        text = (repository / "protocols/embed-ala2.yaml").read_text()
        (tmp_path / "protocols/embed-ala2.yaml").write_text(text)
        monkeypatch.chdir(tmp_path)
        settings = load_embed(tmp_path / "protocols/embed-ala2.yaml")
        assert len(settings.trajectories) == 2 and settings.output == Path(tmp_path / "ala2.zarr")
