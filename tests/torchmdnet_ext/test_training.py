"""Denoising pre-training with the console script of an unmodified TorchMD-Net."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from ase.data import chemical_symbols
from torchmdnet.models.model import create_model, load_model
from torchmdnet.scripts import train as trainer
from torchmdnet.scripts.train import get_argparse

from openmm_geomgnn import Encoder
from torchmdnet_ext import data_module, registration
from torchmdnet_ext.datasets.conformers import Conformers, write_conformers
from torchmdnet_ext.denoising import Denoising
from torchmdnet_ext.models.equivariant_transformer import SmoothEquivariantTransformer
from torchmdnet_ext.models.visnet import ViSNet

pytestmark = pytest.mark.slow

SIZES = {"train_size": 24, "val_size": 8, "test_size": 6}
CONFIGURATION = {
    "seed": 1,
    "ngpus": 1,
    "num_workers": 0,
    "dataset": "Denoising",
    "dataset_root": None,
    **SIZES,
    "model": "visnet",
    "output_model": "Noise",
    "embedding_dimension": 16,
    "num_layers": 2,
    "num_heads": 4,
    "num_rbf": 8,
    "cutoff_upper": 5.0,
    "max_z": 100,
    "derivative": False,
    "num_epochs": 2,
    "batch_size": 6,
    "inference_batch_size": 3,
    "lr": 1e-3,
    "save_interval": 1,
    "precision": 32,
}


def torchmd_train(*arguments):
    """The console script, as users call it."""
    script = Path(sys.executable).parent / "torchmd-train"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([script, *map(str, arguments)], capture_output=True, text=True, env=environment, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout


def torchmd_train_here(*arguments):
    """What the console script calls, in this process: its imports alone take five seconds."""
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng():
        patch.setattr(sys, "argv", ["torchmd-train", *map(str, arguments)])
        for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):  # the trainer sets them
            patch.setenv(name, "0")
        trainer.main()


class Run:
    """A finished training: its folder, its metrics by epoch and its checkpoints by epoch."""

    def __init__(self, folder):
        self.folder = folder
        with open(folder / "metrics.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        self.validation = [float(row["val_total_mse_loss"]) for row in rows if row.get("val_total_mse_loss")]
        self.training = [float(row["train_total_mse_loss"]) for row in rows if row.get("train_total_mse_loss")]
        self.rates = [float(row["lr"]) for row in rows if row.get("lr")]
        self.epochs = [int(float(row["epoch"])) for row in rows if row.get("val_total_mse_loss")]
        self.checkpoints = {int(path.name.split("-")[0].removeprefix("epoch=")): path for path in folder.glob("*.ckpt")}


@pytest.fixture(scope="session")
def store(tmp_path_factory):
    """A store with the smallest of the conformers that ship with the package."""
    shipped = Conformers()
    small = [shipped[i] for i in range(400) if 6 <= len(shipped[i].z) <= 14][: sum(SIZES.values())]
    file = tmp_path_factory.mktemp("conformers") / "small.safetensors"
    assert write_conformers(file, [(data.z, data.pos, "shipped") for data in small]) == sum(SIZES.values())
    return file


@pytest.fixture(scope="session")
def train(tmp_path_factory, store):
    def train(*arguments, by=torchmd_train_here, **changes):
        folder = tmp_path_factory.mktemp("training")
        configuration = {
            **CONFIGURATION,
            "log_dir": str(folder / "log"),
            "dataset_arg": {"dataset_arg": {"file": str(store)}, "sigma": 0.2, "remove_hydrogens": 0.25},
            **changes,
        }
        (folder / "conf.yaml").write_text(yaml.safe_dump(configuration))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(data_module, "LEARNED", 20)  # there are 38 conformers
            by("--conf", folder / "conf.yaml", *arguments)
        return Run(folder / "log")

    return train


@pytest.fixture(scope="session")
def visnet_run(train):
    return train(model="visnet")


@pytest.fixture(scope="session")
def transformer_run(train):
    return train(model="smooth-equivariant-transformer")


@pytest.fixture(scope="session", params=["visnet_run", "transformer_run"])
def run(request):
    """A training of two epochs of each of our networks."""
    return request.getfixturevalue(request.param)


def test_help_lists_what_we_add():
    text = torchmd_train("--help")
    for name in (*registration.MODELS, *registration.HEADS, *registration.DATASETS):
        assert name in text
    for name, *_ in registration.ARGUMENTS:
        assert f"--{name}" in text


def test_losses_are_finite(run):
    assert run.epochs == [0, 1] and sorted(run.checkpoints) == [0, 1]
    # predicting no noise at all has a loss of 1; random weights are not far from it
    assert all(0.3 < loss < 3.0 for loss in run.training + run.validation)
    assert run.training[0] != run.training[1] and run.validation[0] != run.validation[1]


def test_load_model_reads_a_checkpoint_back(run, store):
    network = load_model(str(run.checkpoints[1]))
    assert type(network.representation_model) in (ViSNet, SmoothEquivariantTransformer)
    assert network.representation_model.smooth_cutoff
    data = Conformers(file=store)[0]
    noise, _ = network(data.z, data.pos)
    assert noise.shape == data.pos.shape and torch.isfinite(noise).all() and noise.abs().max() > 1e-4
    double = load_model(str(run.checkpoints[1]), precision=64)
    torch.testing.assert_close(double(data.z, data.pos.double())[0].float(), noise, atol=1e-4, rtol=1e-3)


def test_a_checkpoint_is_an_encoder(run, store, tmp_path):
    encoder = Encoder.load(run.checkpoints[1])
    network = load_model(str(run.checkpoints[1])).representation_model
    data = Conformers(file=store)[1]
    x, v = encoder.embed(data.z, data.pos)
    expected_x, expected_v, *_ = network(data.z, data.pos, torch.zeros_like(data.z))
    np.testing.assert_allclose(x, expected_x.detach().numpy(), atol=1e-6)
    np.testing.assert_allclose(v, expected_v.detach().numpy(), atol=1e-6)
    encoder.save(tmp_path / "encoder.safetensors")
    again = Encoder.load(tmp_path / "encoder.safetensors")
    numbers = Conformers(file=store).elements(20)
    assert again.training_information == {"elements": [chemical_symbols[number] for number in numbers]}
    assert again.untrained_elements([1, 6, 15]) == ["P"]
    assert again.content_hash() == encoder.content_hash() and again.settings == encoder.settings


def test_load_weights_and_fixed_validation_noise(visnet_run, train):
    """With a learning rate of 0 the loaded weights stay, and so does the validation loss."""
    again = train("--load-weights", visnet_run.checkpoints[1], lr=0.0, lr_min=0.0, num_epochs=2)
    assert again.validation[0] == again.validation[1] == pytest.approx(visnet_run.validation[1], rel=1e-6)
    assert again.training[0] != again.training[1]  # training noise is drawn again
    before, after = (load_model(str(part.checkpoints[1])).state_dict() for part in (visnet_run, again))
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_resume_with_load_model(transformer_run, tmp_path):
    run = transformer_run
    torchmd_train_here("--load-model", run.checkpoints[1], "--num-epochs", 3, "--log-dir", tmp_path / "log")
    resumed = Run(tmp_path / "log")
    assert resumed.epochs == [2] and np.isfinite(resumed.validation).all()
    before, after = (torch.load(path, weights_only=True) for path in (run.checkpoints[1], resumed.checkpoints[2]))
    assert after["global_step"] == before["global_step"] * 3 // 2
    moved = max(float((after["state_dict"][k] - before["state_dict"][k]).abs().max()) for k in before["state_dict"])
    assert 0 < moved < 0.1  # went on from there


def test_the_learning_rate_falls_along_a_cosine(train, tmp_path):
    settings = {"lr_schedule": "cosine", "lr_warmup_steps": 3, "lr_min": 1e-4}
    run = train(model="smooth-equivariant-transformer", num_epochs=3, **settings)
    done = np.array([4 - 3, 8 - 3, 12 - 3]) / (12 - 3)  # four steps an epoch; warming up is not part of it
    expected = 1e-4 + (1e-3 - 1e-4) * (1 + np.cos(np.pi * done)) / 2
    assert run.rates == pytest.approx(expected, rel=1e-6)
    # resumed after the second epoch, it ends where it would have ended
    torchmd_train_here("--load-model", run.checkpoints[1], "--num-epochs", 3, "--log-dir", tmp_path / "log")
    assert Run(tmp_path / "log").rates == pytest.approx(expected[2:], rel=1e-6)


def test_an_unknown_schedule_is_an_error(train):
    with pytest.raises(ValueError, match="lr_schedule is 'cosin'.*Did you mean 'cosine'"):
        train(lr_schedule="cosin")


def test_two_processes_train_together(train):
    run = train(ngpus=2, num_epochs=1, by=torchmd_train)
    assert run.epochs == [0] and np.isfinite(run.training + run.validation).all()
    steps = torch.load(run.checkpoints[0], weights_only=True)["global_step"]
    assert steps == SIZES["train_size"] // (2 * CONFIGURATION["batch_size"])  # each process sees half of the data


@pytest.mark.parametrize("model", registration.MODELS)
@pytest.mark.parametrize(
    "settings", [{}, {"lmax": 2, "vertex": True, "trainable_vecnorm": True, "neighbor_embedding": True}], ids=["", "more"]
)
def test_every_parameter_is_trained(model, settings, store):
    """A parameter without a gradient would stop training in several processes."""
    args = {**vars(_arguments()), **CONFIGURATION, **settings, "model": model}
    network = create_model(args)
    data = Conformers(file=store)[2]
    noise, _ = network(data.z, data.pos)
    noise.square().sum().backward()
    assert [name for name, parameter in network.named_parameters() if parameter.grad is None] == []


def test_the_protocol_that_ships_is_understood(repository):
    args = vars(_arguments("--conf", repository / "protocols" / "pretrain.yaml"))
    assert len(Denoising(args["dataset_root"], **args["dataset_arg"])) > 1000
    assert type(create_model(args).representation_model) is SmoothEquivariantTransformer


def _arguments(*command_line):
    return get_argparse().parse_args([str(part) for part in command_line])


def test_weights_of_elements_reach_the_trainer(train, store):
    """They change the training loss, and the validation loss stays that of all atoms."""
    arguments = {"dataset": "Conformers", "dataset_arg": {"file": str(store)}, "sigma": [0.1, 0.2]}
    frozen = {"lr": 0.0, "lr_min": 0.0, "num_epochs": 1}
    plain = train(dataset_arg=arguments, **frozen)
    weighted = train(dataset_arg={**arguments, "element_weights": {"C": 0, "H": 0}}, **frozen)
    assert plain.training[0] != weighted.training[0]
    assert plain.validation[0] == pytest.approx(weighted.validation[0], rel=1e-6)
