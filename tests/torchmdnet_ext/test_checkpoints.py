"""Encoders on disk: what is written is what is read, and a file that does not fit says why."""

import json
import os
import stat

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from small_networks import POS, SETTINGS, Z, make_head, make_network, same

from openmm_geomgnn import Encoder
from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.representation.encoder import shipped_encoders
from openmm_geomgnn.testing.numerics import relative
from torchmdnet_ext import checkpoints, registration
from torchmdnet_ext.tensor_files import with_checksum


@pytest.fixture(params=registration.MODELS)
def model(request):
    return request.param


@pytest.fixture
def written(model, tmp_path):
    """An encoder's file and the network in it."""
    network = make_network(model)
    settings = {**SETTINGS[model], "lr": 1e-3, "log_dir": "/somewhere", "precision": 32}
    checkpoints.write_encoder(tmp_path / "encoder.safetensors", settings, network, {"loss": 0.4})
    return tmp_path / "encoder.safetensors", network


def changed(path, change, seal=True):
    """A copy of a file whose header or tensors `change(header, tensors)` has changed; seal: with the checksum of that."""
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["encoder"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    change(header, tensors)
    if seal:
        header.pop("checksum", None)
        header = with_checksum(header, tensors)
    copy = path.with_name("changed.safetensors")
    save_file(tensors, copy, metadata={"encoder": json.dumps(header)})
    return copy


class TestEncoderFile:
    def test_round_trip(self, written, model):
        path, network = written
        settings, tensors, head, training = checkpoints.read_encoder(path)
        assert settings == SETTINGS[model] and training == {"loss": 0.4} and head is None
        assert same(tensors, network)
        assert [file.name for file in path.parent.iterdir()] == [path.name]  # nothing temporary is left behind

    def test_loaded_encoder_is_the_network(self, written, model):
        path, network = written
        encoder = Encoder.load(path)
        assert (encoder.name, encoder.hidden_channels, encoder.cutoff) == ("encoder", 8, 5.0)
        assert encoder.training_information == {"loss": 0.4} and not encoder.network.training
        assert not any(parameter.requires_grad for parameter in encoder.parameters())
        x, v = encoder.embed(Z, POS[0])
        expected_x, expected_v, *_ = network.eval()(torch.tensor(Z), torch.tensor(POS[0]).float(), torch.zeros(5).long())
        np.testing.assert_allclose(x, expected_x.detach().numpy(), atol=1e-6)
        np.testing.assert_allclose(v, expected_v[:, :3].detach().numpy(), atol=1e-6)

    def test_hash_is_that_of_the_network(self, written, model, tmp_path):
        path, network = written
        encoder = Encoder.load(path)
        assert encoder.content_hash() == Encoder.load(path, dtype=torch.float64).content_hash()
        checkpoints.write_encoder(tmp_path / "again.safetensors", encoder.settings, encoder.network)
        assert Encoder.load(tmp_path / "again.safetensors").content_hash() == encoder.content_hash()
        with torch.no_grad():
            next(iter(network.parameters()))[0, 0] += 1e-6
        checkpoints.write_encoder(tmp_path / "other.safetensors", SETTINGS[model], network)
        assert Encoder.load(tmp_path / "other.safetensors").content_hash() != encoder.content_hash()

    def test_the_same_weights_without_an_envelope_are_another_network(self, written):
        with pytest.warns(UserWarning, match="trained without an envelope"):
            rough = Encoder.load(changed(written[0], lambda header, _: header["settings"].update(smooth_cutoff=False)))
        assert rough.content_hash() != Encoder.load(written[0]).content_hash()

    def test_a_file_of_version_1_is_read(self, written):
        def change(header, tensors):
            del header["head"], header["checksum"]
            header["version"] = 1

        old = Encoder.load(changed(written[0], change, seal=False))
        assert same(old.network.state_dict(), written[1]) and old.head is None
        assert old.content_hash() == Encoder.load(written[0]).content_hash()

    def test_hash_of_the_shipped_encoder_stays_what_it_is_in_files_of_cvs(self):
        assert Encoder.load("et-64").content_hash() == "e156ed2d482496d5"

    def test_is_readable_by_others(self, written):
        umask = os.umask(0)
        os.umask(umask)
        assert stat.S_IMODE(written[0].stat().st_mode) == 0o666 & ~umask

    def test_tensors_that_do_not_fit_are_all_named(self, written):
        def change(header, tensors):
            del tensors["out_norm.weight"]
            tensors["surplus"] = torch.zeros(2)
            tensors["out_norm.bias"] = torch.zeros(5)

        with pytest.raises(ValueError) as error:
            Encoder.load(changed(written[0], change))
        message = str(error.value)
        assert isinstance(error.value, GeomGNNError)
        assert "out_norm.weight is missing" in message and "surplus belongs to another network" in message
        assert f"out_norm.bias has shape (5,) instead of ({len(written[1].out_norm.bias)},)" in message

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda header, tensors: header.update(version=99), "version 99.*up to version 3.*Update openmm-geomgnn"),
            (lambda header, tensors: header.pop("version"), "version None"),
            (lambda header, tensors: header.update(format="something else"), "not an encoder of openmm-geomgnn"),
            (lambda header, tensors: header["settings"].update(model="tensornet"), "of the kind 'tensornet'.*visnet or"),
            (lambda header, tensors: header["settings"].pop("num_layers"), "does not say what 'num_layers'"),
            (lambda header, tensors: header["settings"].update(smooth_cutoff="maybe"), "smooth_cutoff is 'maybe'"),
            (lambda header, tensors: header["settings"].update(num_rbf=10**9), "num_rbf 1000000000, but none of its"),
            (lambda header, tensors: header["settings"].update(num_layers=10**9), "num_layers 1000000000, which"),
            (lambda header, tensors: header["settings"].update(cutoff_upper="far"), "settings that no network can be built"),
            (lambda header, tensors: header.update(settings=[]), "changed or damaged after it was written"),
        ],
    )
    def test_other_headers_are_errors(self, written, change, message):
        with pytest.raises(GeomGNNError, match=message):
            Encoder.load(changed(written[0], change))

    @pytest.mark.parametrize(
        "change",
        [
            lambda header, tensors: tensors["distance_expansion.betas"].add_(1e-6),
            lambda header, tensors: header["settings"].update(cutoff_upper=6.0),
            lambda header, tensors: header["training"].update(loss=0.1),
            lambda header, tensors: header.pop("checksum"),
            lambda header, tensors: header.update(version=2),
            lambda header, tensors: tensors.update(
                {"distance_expansion.betas": tensors["distance_expansion.betas"].view(torch.int32)}
            ),
        ],
        ids=["tensor", "settings", "training", "checksum", "version", "type"],
    )
    def test_changed_file_is_an_error(self, written, change):
        with pytest.raises(GeomGNNError, match="changed or damaged after it was written"):
            Encoder.load(changed(written[0], change, seal=False))

    @pytest.mark.parametrize("length", [0, 5, 200, -40])
    def test_truncated_file_is_an_error(self, written, length):
        path, _ = written
        path.write_bytes(path.read_bytes()[:length])
        with pytest.raises(GeomGNNError, match="truncated or of another kind"):
            Encoder.load(path)

    def test_another_safetensors_file_is_an_error(self, tmp_path):
        save_file({"a": torch.zeros(2)}, tmp_path / "a.safetensors")
        with pytest.raises(GeomGNNError, match="not an encoder of openmm-geomgnn"):
            Encoder.load(tmp_path / "a.safetensors")


class TestHead:
    """The noise head that a network was trained with, in the same file."""

    @pytest.fixture
    def file(self, model, tmp_path):
        path = tmp_path / "whole.safetensors"
        checkpoints.write_encoder(path, SETTINGS[model], make_network(model), head=make_head())
        return path

    @staticmethod
    def noise(denoiser):
        z, pos = torch.tensor(Z), torch.tensor(POS[0]).float()
        return denoiser(z, pos, torch.zeros_like(z)).detach()

    def expected(self, model):
        z, pos = torch.tensor(Z), torch.tensor(POS[0]).float()
        x, v, *_ = make_network(model).eval()(z, pos, torch.zeros_like(z))
        return make_head().pre_reduce(x, v, z, pos, torch.zeros_like(z)).detach()

    def test_makes_a_denoiser(self, file, model):
        noise = self.noise(checkpoints.read_denoiser(file))
        assert noise.shape == (5, 3) and relative(noise, self.expected(model)) < 1e-5

    def test_does_not_change_the_encoder(self, file, model, tmp_path):
        checkpoints.write_encoder(tmp_path / "headless.safetensors", SETTINGS[model], make_network(model))
        headless, whole = Encoder.load(tmp_path / "headless.safetensors"), Encoder.load(file)
        assert headless.content_hash() == whole.content_hash()
        np.testing.assert_array_equal(headless.embed(Z, POS)[0], whole.embed(Z, POS)[0])

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("ending", [".safetensors", ".ckpt"])
    def test_save_and_load_again(self, file, model, tmp_path, dtype, ending):
        encoder = Encoder.load(file, dtype)
        encoder.save(tmp_path / f"again{ending}")
        again = Encoder.load(tmp_path / f"again{ending}")
        assert again.settings == encoder.settings == SETTINGS[model]
        assert again.content_hash() == encoder.content_hash()
        assert same(again.head.state_dict(), make_head())
        assert relative(self.noise(checkpoints.read_denoiser(tmp_path / f"again{ending}")), self.expected(model)) < 1e-5

    def test_saved_checkpoint_is_one_of_the_trainer(self, file, model, tmp_path):
        from torchmdnet.models.model import load_model
        from torchmdnet.scripts.train import fix_state_dict

        Encoder.load(file).save(tmp_path / "start.ckpt")
        whole = load_model(str(tmp_path / "start.ckpt"))
        noise, _ = whole(torch.tensor(Z), torch.tensor(POS[0]).float())
        assert relative(noise, self.expected(model)) < 1e-5
        # what --load-weights does, strictly
        whole.load_state_dict(fix_state_dict(torch.load(tmp_path / "start.ckpt", weights_only=True)))

    def test_without_one_there_is_no_denoiser(self, written, tmp_path):
        with pytest.raises(ValueError, match="holds no noise head, so it cannot predict noise"):
            checkpoints.read_denoiser(written[0])
        with pytest.raises(GeomGNNError, match=r"no noise head, so it cannot be saved as .*start\.ckpt"):
            Encoder.load(written[0]).save(tmp_path / "start.ckpt")

    def test_tensors_of_the_head_must_fit(self, file):
        def change(header, tensors):
            del tensors["head.output_network.1.vec2_proj.weight"]
            tensors["head.surplus"] = torch.zeros(2)

        for read in (Encoder.load, checkpoints.read_denoiser):
            with pytest.raises(
                ValueError, match=r"output_network\.1\.vec2_proj\.weight is missing; surplus belongs to another"
            ):
                read(changed(file, change))

    def test_other_names_are_refused(self, file, tmp_path):
        with pytest.raises(GeomGNNError, match=r"must end in \.safetensors or \.ckpt"):
            Encoder.load(file).save(tmp_path / "encoder.pth")
        for name, message in (("a.onnx", r"end in \.safetensors, \.ckpt, \.pth"), ("missing.ckpt", "There is no file")):
            with pytest.raises(ValueError, match=message):
                checkpoints.read_denoiser(tmp_path / name)


class TestEncoder:
    @pytest.fixture
    def encoder(self, written):
        return Encoder.load(written[0])

    def test_unknown_names_and_missing_files_are_errors(self, tmp_path):
        with pytest.raises(GeomGNNError, match="smooth_cutoff is 'maybe', but it must be True, False or None"):
            Encoder.load("et-64", smooth_cutoff="maybe")
        with pytest.raises(GeomGNNError, match="There is no encoder 'vis-64'.*The package ships"):
            Encoder.load("vis-64")
        for name in ("missing.safetensors", "missing.ckpt"):
            with pytest.raises(GeomGNNError, match=f"There is no encoder file .*{name}"):
                Encoder.load(tmp_path / name)

    @pytest.mark.parametrize("name", shipped_encoders())
    def test_shipped_encoders_load(self, name):
        encoder = Encoder.load(name)
        x, v = encoder.embed(Z, POS)
        assert x.shape == (3, 5, encoder.hidden_channels) and v.shape == (3, 5, 3, encoder.hidden_channels)
        assert encoder.name == name and np.isfinite(x).all() and np.isfinite(v).all()
        assert encoder.network.smooth_cutoff

    def test_many_frames_are_each_alone(self, encoder, monkeypatch):
        x, v = encoder.embed(Z, POS)
        monkeypatch.setattr("openmm_geomgnn.representation.encoder.CHUNK_PAIRS", 20)
        chunked_x, chunked_v = encoder.embed(Z, POS)
        assert x.shape == (3, 5, 8) and v.shape == (3, 5, 3, 8)
        for frame in range(3):
            one_x, one_v = encoder.embed(Z, POS[frame])
            for found in (x[frame], chunked_x[frame]):
                np.testing.assert_allclose(found, one_x, atol=2e-6)
            for found in (v[frame], chunked_v[frame]):
                np.testing.assert_allclose(found, one_v, atol=2e-6)

    def test_double_precision(self, written):
        encoder = Encoder.load(written[0], dtype=torch.float64)
        x, v = encoder.embed(Z, POS)
        assert x.dtype == v.dtype == np.float64
        np.testing.assert_allclose(Encoder.load(written[0]).embed(Z, POS)[0], x, atol=1e-5)

    @pytest.mark.parametrize(
        ("z", "pos", "message"),
        [
            (Z[:4], POS, r"z has shape \(4,\) and pos \(3, 5, 3\)"),
            (Z, POS[..., :2], "pos in angstrom"),
            (Z[None], POS, r"\(1, 5\)"),
            (np.array([6, 1, 35, 1, 7]), POS, "between 1 and 19 for this encoder, but 1 to 35"),
            (np.array([6, 1, 0, 1, 7]), POS, "0 to 7"),
            (Z, np.where(np.arange(3) == 1, np.nan, POS), "not finite"),
        ],
    )
    def test_wrong_input_is_an_error(self, encoder, z, pos, message):
        with pytest.raises(GeomGNNError, match=message):
            encoder.embed(z, pos)
