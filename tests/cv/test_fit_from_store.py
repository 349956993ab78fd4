"""A fit to stored embeddings is the fit to the trajectories that they were made of."""

from dataclasses import replace

import mdtraj
import numpy as np
import pytest
from molecules import ALA2, ala2, random_encoder

from openmm_geomgnn.cv import fit_data as training_data
from openmm_geomgnn.cv.fit import FitSettings, fit_cv
from openmm_geomgnn.cv.fit_data import Features, evenly, in_memory
from openmm_geomgnn.cv.mixers import make_mixer
from openmm_geomgnn.cv.network import CollectiveVariable
from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.koopman import fit_linear
from openmm_geomgnn.representation.embed_trajectories import EmbedSettings, embed_trajectories
from openmm_geomgnn.representation.spec import TokenSpec
from openmm_geomgnn.representation.store import Embeddings
from torchmdnet_ext.checkpoints import write_encoder

pytestmark = pytest.mark.slow

pytest.importorskip("zarr")
INTERVAL = 2.0  # ps
LENGTHS = 260, 180


def trajectory(n, seed):
    """Alanine dipeptide in which a slow mode moves all atoms; others tremble."""
    rng, frame = np.random.default_rng(seed), ala2()
    slow = np.zeros(n)
    for k in range(1, n):
        slow[k] = 0.95 * slow[k - 1] + 0.3 * rng.normal()
    direction = np.random.default_rng(99).normal(size=(frame.n_atoms, 3))
    xyz = frame.xyz + 0.006 * slow[:, None, None] * direction + 0.003 * rng.normal(size=(n, frame.n_atoms, 3))
    return mdtraj.Trajectory(xyz.astype(np.float32), frame.topology, time=INTERVAL * np.arange(n))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An encoder, trajectories and their embeddings with windows along the sequence."""
    folder = tmp_path_factory.mktemp("data")
    random = random_encoder(seed=8)
    write_encoder(folder / "random.safetensors", random.settings, random.network)
    paths = [folder / "a.trr", folder / "b.trr"]
    for seed, (path, length) in enumerate(zip(paths, LENGTHS, strict=True)):
        trajectory(length, seed).save(str(path))
    settings = EmbedSettings(encoder=str(folder / "random.safetensors"), chunk=50, tokens=TokenSpec(window="sequence"))
    embed_trajectories(ALA2, paths, folder / "a.zarr", settings, workers=1)
    return folder


@pytest.fixture
def store(folder):
    return Embeddings.open(folder / "a.zarr")


@pytest.fixture
def trajectories(folder):
    return [mdtraj.load(str(folder / name), top=str(ALA2)) for name in ("a.trr", "b.trr")]


def fit_settings(store, **settings):
    return FitSettings(10.0, INTERVAL, **{"encoder": store.encoder_source, "tokens": store.spec, **settings})


ESTIMATORS = {
    "linear": {"n_components": 2},
    "not reversible": {"reversible": False, "softening": 0.0},
    "vampnet": {
        "estimator": "vampnet",
        "mixer": "mlp",
        "mixer_settings": {"width": 16, "readout": 16},
        "training": {"epochs": 2, "batch_size": 100},
    },
}


class TestFit:
    @pytest.mark.parametrize("name", ESTIMATORS)
    @pytest.mark.parametrize("kept", [0, 1 << 30])
    def test_is_that_of_the_trajectories(self, name, kept, store, trajectories, monkeypatch):
        if name == "vampnet" and not kept:
            pytest.skip("a VAMPnet has its tokens in memory")
        monkeypatch.setattr(training_data, "FEATURES_IN_MEMORY", kept)
        settings = fit_settings(store, **ESTIMATORS[name])
        calls = []
        found = fit_cv(store, ALA2, settings, lambda *call: calls.append(call))
        expected = fit_cv(trajectories, ALA2, settings)
        psi = [cv.bind(ALA2, engine="eager").compute(trajectories[0]) for cv in (found, expected)]
        np.testing.assert_allclose(*psi, rtol=1e-4, atol=1e-4)
        for key, value in expected.training_information.items():
            if isinstance(value, (float, list)) and key not in ("frames", "timescale_notes"):
                ours, theirs = (np.array(x, float) for x in (found.training_information[key], value))  # None is nan
                # a frame on the border of two bins of the profile may be in either one
                rtol = 0.2 if key == "rate_profile" else 1e-3
                np.testing.assert_allclose(ours, theirs, rtol=rtol, err_msg=key)
        assert found.training_information.keys() == expected.training_information.keys()
        assert found.training_information["frames"] == list(LENGTHS)
        assert found._metadata().keys() == expected._metadata().keys() and found.spec == expected.spec
        assert "embed" not in {stage for stage, _, _ in calls}

    def test_its_file_is_as_good(self, store, trajectories, tmp_path):
        cv = fit_cv(store, ALA2, fit_settings(store))
        cv.save(tmp_path / "a.cv.safetensors")
        again = CollectiveVariable.load(tmp_path / "a.cv.safetensors")
        psi = again.bind(ALA2, engine="eager").compute(trajectories[1])[:, 0]
        assert len(psi) == LENGTHS[1] and 0.3 < psi.std() < 3

    def test_half_precision_is_nearly_the_same(self, folder, store, tmp_path):
        settings = EmbedSettings(
            encoder=str(folder / "random.safetensors"), dtype="float16", tokens=TokenSpec(window="sequence")
        )
        half = embed_trajectories(ALA2, [folder / "a.trr", folder / "b.trr"], tmp_path / "half.zarr", settings, workers=1)
        for name in ("linear", "vampnet"):
            fits = [fit_cv(part, ALA2, fit_settings(part, **ESTIMATORS[name])) for part in (half, store)]
            np.testing.assert_allclose(*(fit.training_information["singular_values"][:1] for fit in fits), rtol=1e-2)


class TestErrors:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"tokens": {"pooling": "mean"}}, "pooling 'sum' there, 'mean' here"),
            ({"tokens": {"context": 2}}, "context 1 there, 2 here"),
            ({"tokens": {"window": "all"}}, "window 'sequence' there, 'all' here"),
            ({"encoder": "et-64"}, r"encoder random with hash \w+ there, et-64 here"),
            ({"tokens": {"selection": "protein and not element H O"}}, "not that of the store a.zarr"),
        ],
    )
    def test_other_settings(self, change, message, store):
        with pytest.raises(GeomGNNError, match=message):
            settings = fit_settings(store)
            tokens = replace(settings.tokens, **change.get("tokens", {}))
            fit_cv(store, ALA2, replace(settings, **{**change, "tokens": tokens}))

    def test_a_store_that_is_not_finished(self, folder, tmp_path):
        settings = EmbedSettings(encoder=str(folder / "random.safetensors"), stride=10, chunk=5)
        store = embed_trajectories(ALA2, [folder / "a.trr"], tmp_path / "a.zarr", settings, workers=1)
        (tmp_path / "a.zarr/0/checksums/c/1").unlink()
        with pytest.raises(GeomGNNError, match="5 of 26 frames of a.trr are not in .*Run the same `geomgnn embed` again"):
            fit_cv(store, ALA2, replace(fit_settings(store), frame_interval=20.0, lagtime=20.0))

    def test_a_store_with_a_damaged_chunk(self, folder, tmp_path):
        settings = EmbedSettings(encoder=str(folder / "random.safetensors"), stride=10, chunk=5)
        store = embed_trajectories(ALA2, [folder / "a.trr"], tmp_path / "a.zarr", settings, workers=1)
        (tmp_path / "a.zarr/0/tokens/c/1/0/0/0").unlink()  # Zarr reads NaN where a chunk is not there
        with pytest.raises(GeomGNNError, match="Frames 5 to 9 of a.trr in .*a.zarr were changed or damaged"):
            fit_cv(store, ALA2, replace(fit_settings(store), frame_interval=20.0, lagtime=20.0))


class TestParts:
    def test_features_in_pieces(self, store, monkeypatch):
        monkeypatch.setattr(training_data, "PIECE", 7)
        mixer = make_mixer("none", 3, 16)
        features = Features(mixer, store.tokens(0))
        whole = np.asarray(features)
        (tokens, _) = in_memory([store.tokens(k) for k in range(2)])
        np.testing.assert_array_equal(whole, mixer(tokens).double().numpy())
        assert whole.shape == features.shape and whole.dtype == np.float64 and len(features) == LENGTHS[0]
        part = features[20:-30]
        assert isinstance(part, Features)
        np.testing.assert_array_equal(part[:100:3], whole[20:-30][:100:3])
        np.testing.assert_array_equal(np.asarray(part, np.float32), whole[20:-30].astype(np.float32))

    def test_linear_estimator_never_sees_all_of_them(self, store):
        """Not more than some hundred frames at a time."""
        seen = []

        class Watched(Features):
            def __getitem__(self, frames):
                return Watched(self._mixer, self._tokens, self._frames[frames])

            def __array__(self, dtype=None, copy=None):
                seen.append(len(self))
                return super().__array__(dtype, copy)

        from openmm_geomgnn.koopman import covariance

        mixer = make_mixer("none", 3, 16)
        parts = [Watched(mixer, store.tokens(k)) for k in range(2)]
        expected = fit_linear([np.asarray(part) for part in parts], 5, 2)
        seen.clear()
        size, covariance._CHUNK_NUMBERS = covariance._CHUNK_NUMBERS, 1
        try:
            found = fit_linear(parts, 5, 2)
        finally:
            covariance._CHUNK_NUMBERS = size
        assert max(seen) <= 256 < sum(LENGTHS) and len(seen) > 10
        np.testing.assert_allclose(found.projection, expected.projection, rtol=1e-6, atol=1e-9)

    def test_tokens_in_memory_are_one_tensor(self, store):
        parts = in_memory([store.tokens(k) for k in range(2)])
        assert [len(part) for part in parts] == list(LENGTHS)
        assert parts[0].untyped_storage().data_ptr() == parts[1].untyped_storage().data_ptr()
        from openmm_geomgnn.koopman.vampnet import _joined

        joined = _joined([part.detach() for part in parts])
        assert joined.data_ptr() == parts[0].data_ptr() and len(joined) == sum(LENGTHS)
        np.testing.assert_array_equal(joined[LENGTHS[0] :].numpy(), store.tokens(1)[:])
        swapped = _joined(parts[::-1])
        assert swapped.data_ptr() != parts[1].data_ptr()
        np.testing.assert_array_equal(swapped[: LENGTHS[1]].numpy(), parts[1].numpy())

    def test_evenly(self, store):
        import torch

        parts = [torch.arange(10.0)[:, None], torch.arange(10.0, 13.0)[:, None]]
        assert evenly(parts, 5)[:, 0].tolist() == [0, 3, 6, 9, 12] and len(evenly(parts, 99)) == 13
        positions = [training_data.StoredPositions(store.positions(k)) for k in range(2)]
        expected = 10 * np.concatenate([store.positions(k)[:] for k in range(2)])[np.linspace(0, 439, 60).astype(int)]
        np.testing.assert_allclose(evenly(positions, 60).numpy(), expected, rtol=1e-6)


class TestCommand:
    def write(self, folder, data, cv="{lag: 10 ps}", more=""):
        (folder / "fit.yaml").write_text(f"topology: ala2-c7eq.pdb\n{data}\noutput: a.cv.safetensors\ncv: {cv}\n{more}")

    def test_same_cv(self, geomgnn, folder, tmp_path, trajectories):
        encoder = folder / "random.safetensors"
        made = []
        for data, cv in (
            (f"embeddings: {folder / 'a.zarr'}", "{lag: 10 ps}"),
            (f"trajectories: {folder}/*.trr", f"{{lag: 10 ps, window: sequence, encoder: {encoder}}}"),
        ):
            self.write(tmp_path, data, cv)
            code, output, error = geomgnn("fit", "fit.yaml")
            assert (code, error) == (0, "") and output.startswith("440 frames, 2 ps apart, in 2 trajectories\n")
            assert ("Embedding" in output) == ("trajectories:" in data)
            made.append(CollectiveVariable.load(tmp_path / "a.cv.safetensors").bind(ALA2, engine="eager"))
        np.testing.assert_allclose(*(cv.compute(trajectories[0]) for cv in made), rtol=1e-4, atol=1e-4)

    def test_settings_that_differ(self, geomgnn, folder, tmp_path):
        for cv, part in (
            ("{lag: 10 ps, window: all}", "window 'sequence' there, 'all' here"),
            ("{lag: 10 ps, encoder: et-64}", "et-64 here"),
            ("{lag: 3 ps}", "not a multiple of the 2 ps between frames"),
        ):
            self.write(tmp_path, f"embeddings: {folder / 'a.zarr'}", cv)
            code, _, error = geomgnn("fit", "fit.yaml")
            assert code == 1 and part in error and error.count("\n") == 1

    @pytest.mark.parametrize(
        ("data", "parts"),
        [
            ("embeddings: none.zarr", ["no store of embeddings 'none.zarr'", "`geomgnn embed` makes one"]),
            ("trajectories: b.trr\nembeddings: a.zarr", ["trajectories and embeddings are both given"]),
            ("seed: 3", ["trajectories is missing: give them, or embeddings"]),
            ("embeddings: a.zarr\nstride: 2", ["stride is for trajectories"]),
        ],
    )
    def test_errors(self, data, parts, geomgnn, tmp_path):
        (tmp_path / "a.zarr").mkdir()
        (tmp_path / "b.trr").touch()
        self.write(tmp_path, data)
        code, _, error = geomgnn("fit", "fit.yaml")
        assert code == 1 and error.count("\n") == 1
        for part in parts:
            assert part in error

    def test_times_that_are_not_known(self, geomgnn, folder, tmp_path):
        trajectory(60, 1).save(str(tmp_path / "a.dcd"))
        settings = EmbedSettings(encoder=str(folder / "random.safetensors"))
        embed_trajectories(ALA2, [tmp_path / "a.dcd"], tmp_path / "a.zarr", settings, workers=1)
        self.write(tmp_path, "embeddings: a.zarr")
        code, _, error = geomgnn("fit", "fit.yaml")
        assert code == 1 and "The times of the frames of a.dcd are not known: give frame_interval" in error
        self.write(tmp_path, "embeddings: a.zarr", more="frame_interval: 2 ps\n")
        assert geomgnn("fit", "fit.yaml")[0] == 0
