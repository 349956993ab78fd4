"""Trajectories of every format become the tokens that they would have in memory, however often that was interrupted."""

import subprocess
import sys
import time
from dataclasses import replace

import mdtraj
import numpy as np
import pytest
import torch
from embedded import FRAMES, embed, everything, expected, frames
from molecules import ALA2, BOXES, ala2, with_water, wrapped

from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.representation import embed_workers as embedding_workers
from openmm_geomgnn.representation import trajectory_files
from openmm_geomgnn.representation.embed_trajectories import EmbedSettings, embed_trajectories
from openmm_geomgnn.representation.selection import select_atoms
from openmm_geomgnn.representation.spec import TokenSpec
from openmm_geomgnn.representation.store import Embeddings
from openmm_geomgnn.representation.trajectory_files import TrajectoryFile

pytestmark = pytest.mark.slow

pytest.importorskip("zarr")

NEEDS = {"h5": "tables", "nc": "scipy", "dcd": None, "xtc": None, "trr": None, "pdb": None, "xyz": None, "lammpstrj": None}


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
            ({"tokens": {"pooling": "mean"}}, "pooling: 'sum' there, 'mean' now"),
            ({"stride": 2, "dtype": "float16"}, "stride: 1 there, 2 now; dtype: 'float32' there, 'float16' now"),
            ({"tokens": {"window": "all"}}, "window: 'sequence' there, 'all' now; residues in each window"),
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
