"""What cannot be embedded is refused, with the reason; and the command that does it."""

import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import mdtraj
import numpy as np
import pytest
from embedded import FRAMES, embed, everything, expected, frames
from molecules import ALA2

from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.representation.spec import TokenSpec
from openmm_geomgnn.representation.store import Embeddings
from openmm_geomgnn.representation.trajectory_files import fingerprint, has_content, has_stamp

pytestmark = pytest.mark.slow

pytest.importorskip("zarr")


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
        assert code == 1 and "pooling: 'sum' there, 'mean' now" in error and error.count("\n") == 1

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
