"""`geomgnn info` and `geomgnn compute`: what a file is, and the values of a CV along trajectories."""

import json
import warnings
from importlib import resources

import mdtraj
import numpy as np
import pytest
from molecules import ALA2, ala2

from openmm_geomgnn.cli import compute, info
from openmm_geomgnn.cli.settings.yaml_files import compute_settings
from openmm_geomgnn.cv.network import CollectiveVariable
from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.sampling.colvar import read_colvar, split_walkers
from torchmdnet_ext.datasets.conformers import write_conformers

DATA = resources.files("openmm_geomgnn") / "data"
FRAMES = 11


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A structure, an XTC file with times from 5 ps, a DCD file without, and one that was cut off."""
    folder, frame = tmp_path_factory.mktemp("trajectories"), ala2()
    xyz = frame.xyz + 0.02 * np.random.default_rng(1).normal(size=(FRAMES, 22, 3))
    trajectory = mdtraj.Trajectory(xyz, frame.topology, time=5.0 + 2.0 * np.arange(FRAMES))
    frame.save(str(folder / "a.pdb"))
    trajectory.save(str(folder / "a.xtc"))
    trajectory[:4].save(str(folder / "b.dcd"))
    content = (folder / "b.dcd").read_bytes()
    (folder / "cut.dcd").write_bytes(content[:-40])
    return folder


def run(cv, folder, names, output, **options):
    files = [str(cv), *(str(folder / name) for name in ("a.pdb", *names))]
    return compute.run_compute(compute_settings(files, {"output": str(output), **options}))


class TestCompute:
    def test_one_trajectory(self, cv_file, folder, tmp_path):
        run(cv_file, folder, ["a.xtc"], tmp_path / "COLVAR", stride="2")
        found = read_colvar(tmp_path / "COLVAR")
        assert list(found) == ["time", "cv.1", "cv.2"]
        np.testing.assert_allclose(found["time"], 5.0 + 4.0 * np.arange(6))
        trajectory = mdtraj.load(str(folder / "a.xtc"), top=str(ALA2))[::2]
        expected = CollectiveVariable.load(cv_file).bind(ala2().topology, engine="eager").compute(trajectory)
        np.testing.assert_allclose(np.column_stack([found["cv.1"], found["cv.2"]]), expected, atol=1e-4)

    def test_several_trajectories_are_walkers(self, cv_file, folder, tmp_path, capsys):
        run(cv_file, folder, ["b.dcd", "a.xtc"], tmp_path / "COLVAR", frame_interval="2 ps")
        first, second = split_walkers(read_colvar(tmp_path / "COLVAR"))
        assert list(first) == ["time", "walker", "cv.1", "cv.2"]
        np.testing.assert_allclose(first["time"], 2.0 * np.arange(4))
        np.testing.assert_allclose(second["time"], 5.0 + 2.0 * np.arange(FRAMES))
        np.testing.assert_allclose(first["cv.1"], second["cv.1"][:4], atol=0.05)  # the same frames, rounded in XTC
        text = capsys.readouterr().out
        assert f"walker 0: 4 frames of {folder / 'b.dcd'}" in text and "cv.2: " in text

    def test_a_trajectory_that_was_cut_off(self, cv_file, folder, tmp_path):
        with pytest.raises(GeomGNNError, match=r"cut\.dcd ends too early.*--allow-truncated"):
            run(cv_file, folder, ["a.xtc", "cut.dcd"], tmp_path / "COLVAR", frame_interval="2 ps")
        assert not list(tmp_path.iterdir())
        with pytest.warns(UserWarning, match="ends too early"):
            run(cv_file, folder, ["cut.dcd"], tmp_path / "COLVAR", frame_interval="2 ps", allow_truncated=True)
        assert len(read_colvar(tmp_path / "COLVAR")["time"]) == 3

    @pytest.mark.parametrize(
        ("names", "options", "parts"),
        [
            (["b.dcd"], {}, ["frame_interval is not given, and b.dcd", "--frame-interval"]),
            (["a.xtc"], {"frame_interval": "1 ps"}, ["frame_interval says that frames are 1 ps apart", "2 ps apart"]),
            (["a.xtc"], {"output": "there"}, ["there, which exists already"]),
            (["none.xtc"], {}, ["no trajectory", "none.xtc"]),
            (["a.xtc"], {"stride": "0"}, ["stride is 0"]),
        ],
    )
    def test_errors(self, names, options, parts, cv_file, folder, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "there").write_text("mine")
        with pytest.raises(GeomGNNError) as error:
            run(cv_file, folder, names, **{"output": "COLVAR", **options})
        assert all(part in str(error.value) for part in parts), error.value
        assert [path.name for path in tmp_path.iterdir()] == ["there"]

    def test_another_molecule(self, cv_file, folder, tmp_path):
        ala2().atom_slice(range(16)).save(str(tmp_path / "other.pdb"))
        files = [str(cv_file), str(tmp_path / "other.pdb"), str(folder / "a.xtc")]
        with pytest.raises(GeomGNNError, match="This topology is not that of the CV file"):
            compute.run_compute(compute_settings(files, {"output": str(tmp_path / "COLVAR")}))
        assert not (tmp_path / "COLVAR").exists()


class TestInfo:
    @pytest.fixture
    def shown(self, capsys):
        def shown(path):
            info.show_info(path)
            return capsys.readouterr().out

        return shown

    def test_a_cv(self, cv_file, shown):
        text = shown(cv_file)
        for part in (
            "kind           collective variable, a network, 2 components",
            "encoder        random (smooth-equivariant-transformer, 2 layers of 16 channels, cutoff 5 angstrom",
            "selection      the default: 10 atoms of 3 residues",
            "molecule       ACE ALA NME",
            "windows        all; pooling sum",
            f"hash           {CollectiveVariable.load(cv_file).content_hash()}",
        ):
            assert part in text

    def test_scores_of_a_cv(self, cv_file, shown, tmp_path):
        cv = CollectiveVariable.load(cv_file)
        cv.lagtime = 5.0
        cv.training_information |= {
            **{"vamp2_training": 1.8, "vamp2_held_out": 1.7, "in_basin_spread": [0.1, 0.2], "rate_300K_per_ps": [3.0, 4.0]},
            **{"timescales_ps": [40.0, None], "timescale_notes": ["", "separates runs; no timescale"]},
            "transitions": [7, 0],
            "verdict": {"grade": "weak", "reasons": ["cv.2 separates runs"]},
            "frames": [100, 50],
        }
        cv.save(tmp_path / "a.cv")
        text = shown(tmp_path / "a.cv")
        for part in ("5 ps", "150 frames of 2 trajectories", "VAMP-2 1.800, held out 1.700", "40 ps (7 transitions)"):
            assert part in text
        assert "cv.2: separates runs; no timescale" in text and "Verdict: weak: cv.2 separates runs." in text

    def test_an_encoder(self, shown):
        text = shown(DATA / "et-64.safetensors")
        assert "encoder with its noise head" in text and "cutoff 7.5 angstrom" in text and "hash e156ed2d482496d5" in text

    def test_conformers(self, shown, tmp_path):
        write_conformers(tmp_path / "a.safetensors", [([6, 8], [[0, 0, 0], [0, 0, 1.2]], "made")])
        assert "made" in shown(tmp_path / "a.safetensors")

    def test_a_store_of_embeddings(self, shown, tmp_path):
        pytest.importorskip("zarr")
        from store_files import new

        new(tmp_path / "a.zarr")
        text = shown(tmp_path / "a.zarr")
        assert "store of embeddings: 23 frames of 1 trajectory" in text
        assert "23 frames of /nowhere/a.xtc, 23 not embedded yet: the same `geomgnn embed` continues" in text

    def test_what_is_none_of_these(self, tmp_path, folder):
        (tmp_path / "wall_time.json").write_text(json.dumps({}))
        for path, part in ((folder / "a.pdb", "cannot be read"), (tmp_path, "is none of what"), (DATA, "is none of what")):
            with pytest.raises(GeomGNNError, match=part):
                info.show_info(path)

    def test_damaged_files(self, cv_file, tmp_path):
        (tmp_path / "a.cv").write_bytes(cv_file.read_bytes()[:-9])
        with warnings.catch_warnings(), pytest.raises(GeomGNNError, match="cannot be read"):
            info.show_info(tmp_path / "a.cv")
