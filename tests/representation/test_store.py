"""Embeddings on disk: what is complete, what is not, what was damaged, and reading no more than is asked for."""

import json

import numpy as np
import pytest
from store_files import CHUNK, FRAMES, SETTINGS, contents, entry, new

from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.representation.store import Embeddings

zarr = pytest.importorskip("zarr")


@pytest.fixture
def full(tmp_path):
    store = new(tmp_path / "a.zarr")
    for number in range(len(store.chunks(0))):
        store.write(0, number, *contents(store, 0, number))
    return Embeddings.open(tmp_path / "a.zarr")


class TestContent:
    def test_is_what_was_written(self, full):
        assert full.lengths == [FRAMES] and len(full) == 1 and full.settings == SETTINGS
        assert [len(chunk) for chunk in full.chunks(0)] == [5, 5, 5, 5, 3]
        tokens, positions, times = (
            np.concatenate(parts) for parts in zip(*(contents(full, 0, c) for c in range(5)), strict=True)
        )
        np.testing.assert_array_equal(full.tokens(0)[:], tokens.astype(np.float32))
        np.testing.assert_array_equal(full.positions(0)[:], positions.astype(np.float32))
        np.testing.assert_array_equal(full.times(0), times)
        full.check(content=True)

    def test_is_zarr_that_others_read(self, full):
        group = zarr.open_group(full.path, mode="r")
        assert group["0/tokens"].shape == (FRAMES, 1, 4, 6) and group["0/tokens"].chunks == (CHUNK, 1, 4, 6)
        assert group.metadata.zarr_format == 3 and group.attrs["settings"]["molecule"] == SETTINGS["molecule"]

    def test_a_slice_reads_its_own_chunks_only(self, full):
        for number in (0, 1, 3, 4):
            (full.path / f"0/tokens/c/{number}/0/0/0").write_bytes(b"not a chunk")
        np.testing.assert_array_equal(full.tokens(0)[11:14], contents(full, 0, 2)[0][1:4].astype(np.float32))
        with pytest.raises(Exception):  # noqa: B017 whatever the codec says of such bytes
            full.tokens(0)[9:11]

    def test_default_chunks_have_some_megabytes(self, tmp_path):
        store = Embeddings.create(tmp_path / "a.zarr", {**SETTINGS, "dtype": "float16"})
        store.add(entry(10_000_000), (10, 4, 64), 80)
        assert 1e6 < np.prod(store.tokens(0).chunks) * 2 < 2e7
        store.add(entry(7, "b.xtc"), (10, 4, 64), 80)
        assert store.tokens(1).chunks[0] == 7 and len(store.chunks(1)) == 1

    def test_half_precision(self, tmp_path):
        store = new(tmp_path / "a.zarr", "float16")
        tokens, positions, times = contents(store, 0, 0)
        store.write(0, 0, tokens, positions, times)
        assert store.tokens(0).dtype == np.float16
        np.testing.assert_allclose(store.tokens(0)[:CHUNK], tokens, rtol=1e-3)
        tokens[3, 0, 2, 1] = -7e4
        with pytest.raises(GeomGNNError, match=r"a.xtc reach 7e\+04, beyond the largest float16 of 65504. Use --dtype"):
            store.write(0, 1, tokens, positions, times)
        assert 1 in store.missing(0)

    def test_tokens_that_are_not_finite(self, tmp_path):
        store = new(tmp_path / "a.zarr")
        tokens, positions, times = contents(store, 0, 1)
        tokens[2, 0, 1, 3] = np.nan
        with pytest.raises(GeomGNNError, match="tokens of frame 7 of a.xtc are not finite"):
            store.write(0, 1, tokens, positions, times)


class TestCompleteness:
    def test_what_was_not_written_is_missing(self, tmp_path):
        store = new(tmp_path / "a.zarr")
        for number in (0, 1, 4):
            store.write(0, number, *contents(store, 0, number))
        again = Embeddings.open(tmp_path / "a.zarr")
        assert again.missing(0) == [2, 3] and np.isnan(again.tokens(0)[10:20]).all()
        with pytest.raises(GeomGNNError, match="10 of 23 frames of a.xtc are not in .* first is frame 10. Run the same"):
            again.check()

    def test_data_without_a_checksum_do_not_count(self, full):
        (full.path / "0/checksums/c/3").unlink()
        assert full.missing(0) == [3] and np.isfinite(full.tokens(0)[:]).all()
        with pytest.raises(GeomGNNError, match="5 of 23 frames"):
            full.check()

    @pytest.mark.parametrize("name", ["tokens/c/2/0/0/0", "positions/c/2/0/0", "times/c/2"])
    def test_damage_is_found(self, full, name):
        path = full.path / "0" / name
        path.write_bytes((full.path / "0" / name.replace("c/2", "c/1")).read_bytes())
        full.check()
        with pytest.raises(GeomGNNError, match="Frames 10 to 14 of a.xtc in .* were changed or damaged"):
            full.check(content=True)
        path.write_bytes(path.read_bytes()[:20])
        with pytest.raises(GeomGNNError, match="Frames 10 to 14 of a.xtc"):
            full.check(content=True)

    def test_a_trajectory_that_was_not_entered_to_its_end(self, full):
        """A process may be killed between making the arrays and noting them."""
        store = Embeddings.open(full.path, writable=True)
        store._group.create_group("1").create_array("tokens", shape=(3, 1), dtype="f4")
        assert len(Embeddings.open(full.path)) == 1
        store.add(entry(4, "b.xtc"), (1, 4, 6), 2)
        assert store.lengths == [FRAMES, 4] and store.missing(1) == [0]


class TestErrors:
    def test_no_store(self, tmp_path):
        with pytest.raises(GeomGNNError, match="There is no store of embeddings .*none.zarr"):
            Embeddings.open(tmp_path / "none.zarr")
        with pytest.raises(GeomGNNError, match="is not a Zarr store"):
            Embeddings.open(tmp_path)
        zarr.create_group(tmp_path / "other.zarr", zarr_format=3)
        with pytest.raises(GeomGNNError, match="is a Zarr store, but not one of `geomgnn embed`"):
            Embeddings.open(tmp_path / "other.zarr")

    def test_a_newer_version(self, full):
        path = full.path / "zarr.json"
        text = json.loads(path.read_text())
        text["attributes"]["version"] = 99
        path.write_text(json.dumps(text))
        with pytest.raises(GeomGNNError, match="version 99 of the format and this code reads up to version 2"):
            Embeddings.open(full.path)

    @pytest.mark.parametrize(
        "change",
        [
            lambda attributes: attributes.pop("settings"),
            lambda attributes: attributes.update(settings=[]),
            lambda attributes: attributes["settings"].update(pooling="mean"),
            lambda attributes: attributes["settings"].pop("atoms"),
            lambda attributes: attributes["settings"].update(dtype="complex"),
            lambda attributes: attributes.update(trajectories={}),
            lambda attributes: attributes["trajectories"][0].pop("frames"),
            lambda attributes: attributes["trajectories"][0].update(frames="many"),
        ],
    )
    def test_damaged_attributes(self, full, change):
        path = full.path / "zarr.json"
        text = json.loads(path.read_text())
        change(text["attributes"])
        path.write_text(json.dumps(text))
        with pytest.raises(GeomGNNError, match="a.zarr was changed or damaged after it was written"):
            Embeddings.open(full.path)

    @pytest.mark.parametrize("content", ["", "{}", "[]", "\x00", None])
    @pytest.mark.parametrize("name", ["tokens", "checksums"])
    def test_damaged_arrays(self, full, name, content):
        path = full.path / "0" / name / "zarr.json"
        longer = json.loads(path.read_text())
        longer["shape"][0] += 1
        path.write_text(json.dumps(longer) if content is None else content)
        with pytest.raises(GeomGNNError, match=f"of a.xtc in .*a.zarr were changed or damaged .*{name}"):
            Embeddings.open(full.path).check()

    def test_stores_without_a_checksum_of_their_settings_are_read(self, full):
        path = full.path / "zarr.json"
        text = json.loads(path.read_text())
        del text["attributes"]["settings_checksum"]
        path.write_text(json.dumps(text))
        Embeddings.open(full.path).check(content=True)

    def test_another_molecule(self, full):
        full.check_molecule([[0, "ALA", {"C": 2}]], ["CA", "CB"])
        with pytest.raises(GeomGNNError, match="not that of the store a.zarr: residue 1"):
            full.check_molecule([[0, "GLY", {"C": 1}]], ["CA"])
        with pytest.raises(GeomGNNError, match="not in the order"):
            full.check_molecule([[0, "ALA", {"C": 2}]], ["CB", "CA"])

    def test_something_is_there_already(self, full):
        with pytest.raises(GeomGNNError, match="exists already"):
            Embeddings.create(full.path, SETTINGS)
