"""Trajectory files that end too early, and times that are not those of one continuous trajectory, are not taken silently."""

import struct
import warnings
from dataclasses import replace

import mdtraj
import numpy as np
import pytest
from molecules import ALA2, ala2, random_encoder

from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.representation.embed_trajectories import EmbedSettings, embed_trajectories
from openmm_geomgnn.representation.store import Embeddings
from openmm_geomgnn.representation.trajectory_files import TrajectoryFile, load_trajectory
from openmm_geomgnn.representation.trajectory_heads import _bits, _compiled, _xtc_stream
from openmm_geomgnn.representation.trajectory_times import frame_interval
from torchmdnet_ext.checkpoints import write_encoder

TOPOLOGY = ala2().topology
BOX = 3.0 * np.eye(3)


def frames(n=60, times=None, box=BOX, topology=TOPOLOGY):
    rng = np.random.default_rng(0)
    xyz = np.tile(ala2().xyz[:, : topology.n_atoms], (n, 1, 1)) + 0.02 * rng.normal(size=(n, topology.n_atoms, 3))
    made = mdtraj.Trajectory(xyz, topology, time=2.0 * np.arange(n) if times is None else times)
    if box is not None:
        made.unitcell_vectors = np.tile(box, (n, 1, 1))
    return made


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    path, random = tmp_path_factory.mktemp("encoder") / "random.safetensors", random_encoder(seed=8)
    write_encoder(path, random.settings, random.network)
    return str(path)


def write_fit(folder, encoder, more):
    (folder / "fit.yaml").write_text(
        f"topology: ala2-c7eq.pdb\ntrajectories: a.*\noutput: my.cv.safetensors\n{more}\n"
        f"cv: {{lag: 4 ps, encoder: {encoder}, pca: 5, softening: 0}}\n"
    )


class TestTruncated:
    """A file that is cut anywhere but between two frames, or has fewer frames than its header says."""

    @pytest.mark.parametrize("ending", ["dcd", "xtc", "trr", "nc", "xyz"])
    @pytest.mark.parametrize("n_atoms", [22, 5, 1])  # fewer than ten are not compressed in an XTC file
    @pytest.mark.parametrize("periodic", [True, False])
    def test_every_cut_is_seen(self, ending, n_atoms, periodic, tmp_path):
        whole, cut = tmp_path / f"a.{ending}", tmp_path / f"cut.{ending}"
        topology = ala2().atom_slice(range(n_atoms)).topology
        frames(4, box=BOX if periodic and ending != "xyz" else None, topology=topology).save(str(whole))
        content = whole.read_bytes()
        assert len(load_trajectory(whole, topology)) == 4
        # between two frames nothing but a header can tell
        between = [] if ending in ("dcd", "nc") else [len(content) * k // 4 for k in range(1, 4)]
        if ending == "xtc" and n_atoms > 9:  # compressed, each as well as it can be
            between = [int(offset) for offset in mdtraj.open(str(whole)).offsets]
        for size in {1, 10, 100, *np.random.default_rng(1).integers(1, len(content), 40).tolist(), len(content) - 1}:
            if size in between:
                continue
            cut.write_bytes(content[:size])
            with pytest.raises(GeomGNNError):
                load_trajectory(cut, topology)

    @pytest.mark.parametrize("ending", ["dcd", "xtc", "trr", "xyz"])
    def test_what_is_whole_can_be_had(self, ending, tmp_path):
        whole, cut = tmp_path / f"a.{ending}", tmp_path / f"cut.{ending}"
        made = frames(10, box=None if ending == "xyz" else BOX)
        made.save(str(whole))
        expected = mdtraj.load(str(whole), top=TOPOLOGY)
        cut.write_bytes(whole.read_bytes()[: int(0.73 * whole.stat().st_size)])
        says = "ends too early: it holds 7 whole frames" + (" of the 10 that its header counts" if ending == "dcd" else "")
        with pytest.raises(GeomGNNError, match=f"{says} and a part of another.*--allow-truncated"):
            TrajectoryFile(cut, TOPOLOGY)
        with pytest.warns(UserWarning, match=says):
            found = load_trajectory(cut, TOPOLOGY, stride=2, allow_truncated=True)
        np.testing.assert_array_equal(found.xyz, expected.xyz[:7:2])

    @pytest.mark.parametrize("stride", [2, 3, 7])
    def test_an_xyz_file_cut_within_a_line(self, stride, tmp_path):
        """The part of a frame is neither used nor skipped as a whole one, wherever in a line the file breaks off."""
        whole, cut = tmp_path / "a.xyz", tmp_path / "cut.xyz"
        frames(10, box=None).save(str(whole))
        expected = mdtraj.load(str(whole), top=TOPOLOGY)
        lines = whole.read_bytes().splitlines(keepends=True)
        start = sum(map(len, lines[: 7 * 24 + 5]))  # of the third atom in the eighth frame
        for size in range(start, start + len(lines[7 * 24 + 5]) + 1):
            cut.write_bytes(whole.read_bytes()[:size])
            with pytest.warns(UserWarning, match="it holds 7 whole frames and a part of another"):
                found = load_trajectory(cut, TOPOLOGY, stride, allow_truncated=True)
            np.testing.assert_array_equal(found.xyz, expected.xyz[:7:stride])
            np.testing.assert_array_equal(found.time, expected.time[:7:stride])

    def test_a_dcd_file_cut_between_two_frames(self, tmp_path):
        """There is no part of another frame: only the header tells."""
        path = tmp_path / "a.dcd"
        frames(4, box=None).save(str(path))
        path.write_bytes(path.read_bytes()[: -3 * (8 + 4 * 22)])
        with pytest.raises(GeomGNNError, match="it holds 3 whole frames of the 4 that its header counts. Copy"):
            TrajectoryFile(path, TOPOLOGY)

    def test_commands(self, geomgnn, encoder, tmp_path):
        pytest.importorskip("zarr")
        frames(80).save(str(tmp_path / "whole.dcd"))
        content = (tmp_path / "whole.dcd").read_bytes()
        (tmp_path / "a.dcd").write_bytes(content[: int(0.8 * len(content))])
        write_fit(tmp_path, encoder, "frame_interval: 2 ps")
        says = "a.dcd ends too early: it holds 63 whole frames of the 80"
        options = ["-o", "a.zarr", "--encoder", encoder, "--workers", 1]
        for command in (["fit", "fit.yaml"], ["embed", ALA2, "a.dcd", *options]):
            code, output, error = geomgnn(*command)
            assert code == 1 and says in error and "dcdplugin" not in output and "of size" not in output
            code, output, error = geomgnn(*command, "--allow-truncated")
            assert code == 0 and says in output + error and "63 frames" in output and " of size" not in output
        more = ["--allow-truncated", "--overwrite", "--window", "space"]
        code, output, error = geomgnn("embed", ALA2, "a.dcd", *options, *more)
        assert code == 0 and (output + error).count(says) == 1
        store = Embeddings.open(tmp_path / "a.zarr")
        store.check(content=True)
        assert store.lengths == [63] and store.trajectories[0]["truncated"]


class TestDamaged:
    """test_damage.py tries many more, in a process that may crash."""

    @pytest.mark.parametrize("ending", ["dcd", "xtc", "trr", "nc"])
    def test_not_finite(self, ending, tmp_path):
        broken = frames(9)
        broken.xyz[6, 3] = np.nan if ending != "xtc" else 0
        broken.save(str(tmp_path / f"a.{ending}"))
        if ending == "xtc":  # its coordinates are integers, divided by one number
            content = bytearray((tmp_path / "a.xtc").read_bytes())
            struct.pack_into(">f", content, int(mdtraj.open(str(tmp_path / "a.xtc")).offsets[6]) + 56, 0.0)
            (tmp_path / "a.xtc").write_bytes(content)
        with pytest.raises(GeomGNNError, match=f"^Frame 6 of a.{ending} has coordinates that are not finite numbers"):
            load_trajectory(tmp_path / f"a.{ending}", TOPOLOGY, stride=3)
        with TrajectoryFile(tmp_path / f"a.{ending}", TOPOLOGY) as file:
            assert [len(piece) for piece in file.blocks(0, 6)] == [6]
            assert [len(piece) for piece in file.blocks(0, 9, finite=False)] == [9]

    def test_frames_without_coordinates(self, tmp_path):
        """Of a TRR file, which may hold velocities more often: mdtraj gives what was in memory."""
        path = tmp_path / "a.trr"
        frames(4).save(str(path))
        content = bytearray(path.read_bytes())
        struct.pack_into(">2i", content, len(content) // 2 + 24 + 4 * 7, 0, 12 * 22)
        path.write_bytes(content)
        with pytest.raises(GeomGNNError, match="^Frame 2 of the trajectory .*a.trr holds no coordinates"):
            TrajectoryFile(path, TOPOLOGY)

    @pytest.mark.parametrize("n_atoms", [10, 22, 600])
    @pytest.mark.parametrize("spread", [0, 1e-4, 0.1, 30])
    def test_compressed_frames(self, n_atoms, spread, tmp_path):
        """The atoms of an XTC frame end with its last byte, however they are spread and whoever counts."""
        topology = mdtraj.Topology()
        residue = topology.add_residue("X", topology.add_chain())
        for _ in range(n_atoms):
            topology.add_atom("H", mdtraj.element.hydrogen, residue)
        xyz = spread * np.random.default_rng(0).normal(size=(3, n_atoms, 3))
        xyz[1] += np.repeat(np.random.default_rng(1).uniform(0, 5, (n_atoms // 2, 3)), 2, axis=0)
        path = tmp_path / "a.xtc"
        mdtraj.Trajectory(xyz, topology).save(str(path))
        np.testing.assert_allclose(load_trajectory(path, topology).xyz, xyz, atol=1e-3)
        content = path.read_bytes()
        for offset in mdtraj.open(str(path)).offsets:
            atoms, big, small, size = _xtc_stream(content[offset : offset + 92])
            stream = content[offset + 92 : offset + 92 + size]
            bits = _bits(stream, size, atoms, big, small)
            assert atoms == n_atoms and -(-bits // 8) == size
            assert _compiled()(stream, size, atoms, big, small) == bits


class TestTimes:
    def test_of_an_even_trajectory(self):
        times = np.float32(1e7) + 10 * np.arange(500)  # ten microseconds: steps of float32 are 1 ps
        assert frame_interval("a.xtc", times.astype(np.float32).astype(float)) == pytest.approx(10, rel=1e-3)
        assert frame_interval("a.xtc", 2.0 * np.arange(10), 2.0) == 2.0
        assert frame_interval("a.dcd", None, 3.0) == frame_interval("a.dcd", np.full(5, np.nan), 3.0) == 3.0

    @pytest.mark.parametrize(
        ("times", "says"),
        [
            ([0, 2, 4, 6, 5, 7, 9], r"frame 3 is at 6 ps and frame 4 at 5 ps, where frames are 2 ps apart. .*after frame 3"),
            ([0, 2, 4, 104, 106, 108], "frame 2 is at 4 ps and frame 3 at 104 ps"),
            ([0, 2, 4, 6, 7.1], "frame 3 is at 6 ps and frame 4 at 7.1 ps"),  # the last frame of a run that was stopped
            ([0, 2, 4, 4, 6, 8], "frame 2 is at 4 ps and frame 3 at 4 ps"),  # written twice, at a restart
        ],
    )
    @pytest.mark.parametrize("given", [None, 2.0])
    def test_jumps(self, times, says, given):
        with pytest.raises(GeomGNNError, match=says):
            frame_interval("a.xtc", np.array(times, dtype=float), given)

    def test_contradiction(self):
        with pytest.raises(GeomGNNError, match="frames are 1 ps apart, but in a.xtc they are 2 ps apart"):
            frame_interval("a.xtc", 2.0 * np.arange(9), 1.0)

    def test_unknown(self):
        for times in (None, np.full(4, np.nan), np.zeros(4)):
            with pytest.raises(GeomGNNError, match="a.xtc are not known: give frame_interval"):
                frame_interval("a.xtc", times)
        with pytest.raises(GeomGNNError, match="a.xtc has one frame"):
            frame_interval("a.xtc", np.zeros(1))

    @pytest.mark.parametrize("ending", ["xtc", "trr", "h5", "dcd"])
    def test_read_from_files(self, ending, tmp_path):
        if ending == "h5":
            pytest.importorskip("tables")
        times = 100.0 + np.cumsum(np.arange(1.0, 31.0))
        frames(30, times=times).save(str(tmp_path / f"a.{ending}"))
        with TrajectoryFile(tmp_path / f"a.{ending}", TOPOLOGY) as file:
            if ending == "dcd":
                assert file.times() is None
            else:
                np.testing.assert_allclose(file.times(), times)

    @pytest.mark.parametrize("ending", ["xtc", "trr"])
    def test_fit(self, geomgnn, encoder, ending, tmp_path):
        frames(80).save(str(tmp_path / f"a.{ending}"))
        for more, code, says in (
            ("frame_interval: 1 ps", 1, f"frames are 1 ps apart, but in a.{ending} they are 2 ps apart"),
            ("frame_interval: 1 ps\nstride: 2", 1, "frames are 2 ps apart, but in"),
            ("frame_interval: 2 ps", 0, "80 frames, 2 ps apart"),
        ):
            write_fit(tmp_path, encoder, more)
            found, output, error = geomgnn("fit", "fit.yaml")
            assert found == code and says in output + error
        frames(80, times=2.0 * np.arange(80) + 50 * (np.arange(80) > 30)).save(str(tmp_path / f"a.{ending}"))
        for more in ("", "frame_interval: 2 ps"):
            write_fit(tmp_path, encoder, more)
            code, _, error = geomgnn("fit", "fit.yaml")
            assert code == 1 and "frame 30 is at 60 ps and frame 31 at 112 ps" in error and error.count("\n") == 1

    def test_embed(self, encoder, tmp_path):
        pytest.importorskip("zarr")
        path, settings = tmp_path / "a.xtc", EmbedSettings(encoder=encoder)
        frames(20).save(str(path))
        with pytest.raises(GeomGNNError, match="frames are 1 ps apart, but in a.xtc they are 2 ps apart"):
            embed_trajectories(ALA2, [path], tmp_path / "a.zarr", replace(settings, frame_interval=1.0), workers=1)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            embed_trajectories(ALA2, [path], tmp_path / "b.zarr", replace(settings, frame_interval=2.0), workers=1)
        frames(20, times=2.0 * np.arange(20) + 50 * (np.arange(20) > 3)).save(str(path))
        with pytest.warns(UserWarning, match="frame 3 is at 6 ps and frame 4 at 58 ps.* A fit will refuse it"):
            embed_trajectories(ALA2, [path], tmp_path / "c.zarr", settings, workers=1)
