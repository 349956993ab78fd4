"""Checkpoints of TorchMD-Net's trainer are read as encoders, and a file that does not fit says why."""

import argparse
import os

import numpy as np
import pytest
import torch
from small_networks import POS, SETTINGS, Z, make_head, make_network, same
from torchmdnet.models.tensornet import TensorNet
from torchmdnet.models.torchmd_et import TorchMD_ET

from openmm_geomgnn import Encoder
from openmm_geomgnn.errors import GeomGNNError
from torchmdnet_ext import checkpoints, registration


@pytest.fixture(params=registration.MODELS)
def model(request):
    return request.param


class TestTrainerCheckpoint:
    @staticmethod
    def save(path, model, settings=dict, change=lambda checkpoint: None):
        network = make_network(model)
        tensors = {f"model.representation_model.{name}": tensor for name, tensor in network.state_dict().items()}
        checkpoint = {
            "epoch": 3,
            "hyper_parameters": settings({**SETTINGS[model], "precision": 32, "lr": 1e-3, "load_model": None}),
            "state_dict": {**tensors, "model.output_model.bias": torch.zeros(3), "model.mean": torch.zeros(())},
        }
        change(checkpoint)
        torch.save(checkpoint, path)
        return network

    @pytest.mark.parametrize("settings", [dict, lambda items: argparse.Namespace(**items)], ids=["dict", "namespace"])
    def test_is_read_without_the_head(self, model, settings, tmp_path):
        network = self.save(tmp_path / "a.ckpt", model, settings)
        encoder = Encoder.load(tmp_path / "a.ckpt")
        assert encoder.settings == SETTINGS[model]
        expected = network.state_dict()
        assert all(torch.equal(tensor, expected[name]) for name, tensor in encoder.network.state_dict().items())

    def test_one_without_a_box_is_read(self, tmp_path):
        def change(checkpoint):
            del checkpoint["state_dict"]["model.representation_model.distance.box"]

        self.save(tmp_path / "a.ckpt", "visnet", change=change)
        assert not Encoder.load(tmp_path / "a.ckpt").network.distance.box.any()

    def test_the_noise_head_is_read(self, model, tmp_path):
        def change(checkpoint):
            checkpoint["hyper_parameters"]["output_model"] = "Noise"
            del checkpoint["state_dict"]["model.output_model.bias"]
            tensors = make_head().state_dict()
            checkpoint["state_dict"].update({f"model.output_model.{name}": tensor for name, tensor in tensors.items()})

        self.save(tmp_path / "a.ckpt", model, change=change)
        assert same(Encoder.load(tmp_path / "a.ckpt").head.state_dict(), make_head())
        assert checkpoints.read_denoiser(tmp_path / "a.ckpt")(torch.tensor(Z), torch.rand(5, 3), torch.zeros(5).long()).any()

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("model", "upstream"), [("smooth-equivariant-transformer", TorchMD_ET), ("smooth-tensornet", TensorNet)]
    )
    def test_networks_of_torchmdnet_itself_are_read(self, model, upstream, tmp_path):
        names = {"embedding_dimension": "hidden_channels"}
        settings = {
            name: value
            for name, value in SETTINGS[model].items()
            if name not in ("model", "smooth_cutoff", "envelope_width")
        }
        torch.manual_seed(5)
        theirs = upstream(**{names.get(name, name): value for name, value in settings.items()}, max_num_neighbors=50)

        def change(checkpoint):
            # torchmd-train with our settings known writes smooth_cutoff: true for them as well
            checkpoint["hyper_parameters"]["model"] = model.removeprefix("smooth-")
            tensors = theirs.state_dict()
            checkpoint["state_dict"].update(
                {f"model.representation_model.{name}": tensor for name, tensor in tensors.items()}
            )

        self.save(tmp_path / "a.ckpt", model, change=change)
        with pytest.warns(UserWarning, match=r"Encoder\.load\(\.\.\., smooth_cutoff=True\)"):
            encoder = Encoder.load(tmp_path / "a.ckpt")
        x, v = encoder.embed(Z, POS[0])
        expected, vectors, *_ = theirs(torch.tensor(Z), torch.tensor(POS[0]).float(), torch.zeros(5).long())
        np.testing.assert_allclose(x, expected.detach().numpy(), atol=2e-6)
        if vectors is not None:
            np.testing.assert_allclose(v, vectors.detach().numpy(), atol=2e-6)

    def test_another_network_is_an_error(self, tmp_path):
        def change(checkpoint):
            checkpoint["hyper_parameters"]["num_layers"] = 3

        self.save(tmp_path / "a.ckpt", "visnet", change=change)
        with pytest.raises(GeomGNNError, match=r"vis_mp_layers\.2\.[a-z_.]+ is missing"):
            Encoder.load(tmp_path / "a.ckpt")

    @pytest.mark.parametrize("key", ["hyper_parameters", "state_dict"])
    def test_other_files_of_torch_are_errors(self, key, tmp_path):
        self.save(tmp_path / "a.ckpt", "visnet", change=lambda checkpoint: checkpoint.pop(key))
        with pytest.raises(GeomGNNError, match="not a checkpoint of torchmd-train"):
            Encoder.load(tmp_path / "a.ckpt")

    @pytest.mark.parametrize("length", [0, 100, -200])
    def test_truncated_file_is_an_error(self, length, tmp_path):
        path = tmp_path / "a.ckpt"
        self.save(path, "visnet")
        path.write_bytes(path.read_bytes()[:length])
        with pytest.raises(GeomGNNError, match="cannot be read as a checkpoint of torchmd-train"):
            Encoder.load(path)

    @pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
    @pytest.mark.parametrize("where", ["hyper_parameters", "state_dict", "callbacks"])
    def test_code_in_a_file_is_refused_and_does_not_run(self, where, zipped, tmp_path):
        trace = tmp_path / "it-ran"

        class Code:
            def __reduce__(self):
                return os.system, (f"touch {trace}",)

        network = make_network("visnet")
        tensors = {f"model.representation_model.{name}": tensor for name, tensor in network.state_dict().items()}
        checkpoint = {"hyper_parameters": dict(SETTINGS["visnet"]), "state_dict": tensors, "callbacks": {}}
        checkpoint[where]["code"] = Code()
        torch.save(checkpoint, tmp_path / "a.ckpt", _use_new_zipfile_serialization=zipped)
        with pytest.raises(
            GeomGNNError, match=rf"without running code that it carries, which would call {os.system.__module__}"
        ):
            Encoder.load(tmp_path / "a.ckpt")
        assert not trace.exists()
        torch.load(tmp_path / "a.ckpt", weights_only=False)  # the file of this test would indeed have run it
        assert trace.exists()
