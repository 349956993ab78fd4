"""Heads for molecules, encoders to start from, frozen networks and noisy nodes, through TorchMD-Net's trainer."""

import csv
import os
import sys

import numpy as np
import pytest
import torch
import yaml
from torchmdnet.models.model import create_model, load_model
from torchmdnet.scripts import train as trainer
from torchmdnet.scripts.train import get_argparse

from torchmdnet_ext import registration
from torchmdnet_ext.checkpoints import read_encoder, write_encoder
from torchmdnet_ext.datasets.labelled import Label, LabelledStore, write_labelled
from torchmdnet_ext.networks import new_head
from torchmdnet_ext.noisy_nodes import WithNoise
from torchmdnet_ext.transfer import encoder_file, start_from_encoder

pytestmark = pytest.mark.slow
NETWORK = {
    "embedding_dimension": 16, "num_layers": 1, "num_heads": 4, "num_rbf": 8, "cutoff_upper": 5.0, "max_z": 100,
    "precision": 32,
}  # fmt: skip
HEADS = ("Scalar", "DipoleMoment", "ElectronicSpatialExtent")


def arguments(**changes):
    return {**vars(get_argparse().parse_args([])), **NETWORK, **changes}


def build(**changes):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return create_model(arguments(**changes))


@pytest.fixture(scope="module")
def molecules():
    """Two molecules of 5 and 4 atoms, (z, pos, batch)."""
    generator = torch.Generator().manual_seed(2)
    z = torch.tensor([6, 1, 1, 8, 7, 6, 6, 1, 9])
    return z, 2 * torch.randn(9, 3, generator=generator), torch.tensor([0] * 5 + [1] * 4)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("model", registration.MODELS)
def test_heads_are_invariant(model, head, molecules):
    z, pos, batch = molecules
    network = build(model=model, output_model=head).eval()
    rotation = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(3)))[0]
    with torch.no_grad():
        value = network(z, pos, batch)[0]
        turned = network(z, pos @ rotation.T + torch.tensor([3.0, -2.0, 1.0]), batch)[0]
        alone = network(z[:5], pos[:5], batch[:5])[0]
    assert value.shape == (2, 1) and (value[0] - value[1]).abs() > 1e-4
    assert torch.allclose(value, turned, rtol=1e-3, atol=1e-4) and torch.allclose(value[:1], alone, rtol=1e-3, atol=1e-4)


def test_a_dipole_of_more_than_vectors_is_refused():
    with pytest.raises(ValueError, match="set lmax to 1"):
        build(model="visnet", output_model="DipoleMoment", lmax=2)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A small encoder with a noise head, of other random weights."""
    torch.manual_seed(5)
    settings = arguments(model="smooth-equivariant-transformer", output_model="Noise")
    file = tmp_path_factory.mktemp("encoder") / "small.safetensors"
    write_encoder(file, settings, registration.representation_model({**settings, "box_vecs": None}), head=new_head(16))
    return file


def test_a_network_starts_from_an_encoder(encoder):
    settings = arguments(
        model="smooth-equivariant-transformer", output_model="Scalar", encoder=str(encoder), position_noise_scale=0.1
    )
    model = create_model(settings)
    start_from_encoder(model, settings)
    pretrained = read_encoder(encoder)
    for name, tensor in pretrained.tensors.items():
        assert torch.equal(model.representation_model.state_dict()[name], tensor)
    for name, tensor in pretrained.head.items():
        assert torch.equal(model.output_model.noise.state_dict()[name], tensor)


def test_an_encoder_of_another_network_is_refused(encoder):
    settings = arguments(model="smooth-equivariant-transformer", output_model="Scalar", encoder=str(encoder), num_layers=2)
    with pytest.raises(ValueError, match="num_layers 2 instead of 1"):
        start_from_encoder(create_model(settings), settings)
    with pytest.raises(ValueError, match="There is no file"):
        start_from_encoder(build(model="visnet"), {**settings, "encoder": "nowhere.safetensors"})


def test_shipped_encoders_have_names():
    assert encoder_file("et-64").is_file() and encoder_file("et-64").suffix == ".safetensors"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"freeze_encoder": True, "position_noise_scale": 0.1}, "which freeze_encoder excludes"),
        ({"output_model": "Noise", "position_noise_scale": 0.1}, "which output_model: Noise excludes"),
        ({"position_noise_scale": -0.1}, "must not be negative"),
        ({"freeze_encoder": "no"}, "freeze_encoder is 'no'"),
    ],
)
def test_settings_that_exclude_each_other(changes, message):
    with pytest.raises(ValueError, match=message):
        build(model="visnet", **changes)


@pytest.fixture(scope="module")
def train(tmp_path_factory, encoder):
    """Trains on 24 random molecules whose label is a sum over atoms and 0.3 times the mean distance from the centre."""
    rng = np.random.default_rng(4)
    zs = [rng.choice([1, 6, 8], 5) for _ in range(36)]
    pos = [1.5 * rng.normal(size=(5, 3)) for _ in zs]
    spread = [np.linalg.norm(one - one.mean(axis=0), axis=1).mean() for one in pos]
    energy = [sum({1: -13.0, 6: -1030.0, 8: -2042.0}[int(z)] for z in one) for one in zs]
    arrays = {
        "z": np.concatenate(zs).astype(np.uint8),
        "pos": np.concatenate(pos).astype(np.float32),
        "ptr": 5 * np.arange(37),
        "labels": (np.array(energy) + 0.3 * np.array(spread))[:, None],
        "index": np.arange(36),
    }
    folder = tmp_path_factory.mktemp("supervised")
    groups = {"molecule": np.arange(36, dtype=np.int32)}
    write_labelled(folder / "store.safetensors", LabelledStore((Label("energy", "eV"),), arrays, groups))

    def run(name, *options, **changes):
        settings = {
            **NETWORK, "seed": 1, "ngpus": 1, "num_workers": 0, "dataset": "LabelledMolecules",
            "dataset_root": str(folder / "store.safetensors"), "dataset_arg": {"label": "energy", "references": "fitted"},
            "train_size": 24, "val_size": 6, "test_size": 6, "model": "smooth-equivariant-transformer",
            "output_model": "Scalar", "prior_model": None, "remove_ref_energy": True, "standardize": True, "num_epochs": 2,
            "batch_size": 12, "lr": 1e-3, "save_interval": 1, "log_dir": str(folder / name), **changes,
        }  # fmt: skip
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(settings))
        with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng():
            patch.setattr(sys, "argv", ["torchmd-train", *options, "--conf", str(folder / f"{name}.yaml")])
            for variable in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):  # the trainer sets them
                patch.setenv(variable, "0")
            patch.setenv("CUDA_VISIBLE_DEVICES", "")
            trainer.main()
        checkpoints = sorted((folder / name).glob("*.ckpt"), key=os.path.getmtime)
        return str(checkpoints[-1])

    return run


def changed(checkpoint, encoder):
    """Names of the tensors of the network that are not those of the encoder."""
    network = load_model(checkpoint).representation_model.state_dict()
    return [name for name, tensor in read_encoder(encoder).tensors.items() if not torch.equal(network[name], tensor)]


def test_a_frozen_encoder_stays_as_it_is(train, encoder):
    checkpoint = train("frozen", encoder=str(encoder), freeze_encoder=True)
    assert not changed(checkpoint, encoder)
    model = load_model(checkpoint)
    assert not any(p.requires_grad for p in model.representation_model.parameters())
    # the energies of the atoms, which the trainer subtracted, are in the checkpoint
    assert float(model.prior_model[0].initial_atomref[6]) == pytest.approx(-1030.0, abs=0.5)
    assert 0 < float(model.std) < 0.5


def test_fine_tuning_with_noise_starts_from_the_encoder_and_goes_on(train, encoder, tmp_path):
    checkpoint = train("tuned", encoder=str(encoder), position_noise_scale=0.1, denoising_weight=0.5, lr=1e-6)
    tuned, kept = load_model(checkpoint), read_encoder(encoder)
    assert changed(checkpoint, encoder) and isinstance(tuned.output_model, WithNoise)
    for name, tensor in kept.tensors.items():  # such a small learning rate leaves it near where it began
        assert torch.allclose(tuned.representation_model.state_dict()[name], tensor, atol=1e-4)
    before = tuned.output_model.noise.state_dict()
    assert all(torch.allclose(before[name], tensor, atol=1e-4) for name, tensor in kept.head.items())
    assert any(not torch.equal(before[name], tensor) for name, tensor in kept.head.items())
    # the encoder's file is not needed to go on
    further = train(
        "tuned", "--load-model", checkpoint, encoder=str(tmp_path / "gone"), position_noise_scale=0.1, num_epochs=4
    )
    assert further != checkpoint


def test_noise_is_in_the_training_loss_only(train):
    def losses(folder):
        with open(os.path.join(os.path.dirname(folder), "metrics.csv"), newline="") as file:
            rows = list(csv.DictReader(file))
        return [[float(row[name]) for row in rows if row.get(name)] for name in ("train_y_mse_loss", "val_y_mse_loss")]

    plain = losses(train("plain", num_epochs=1))
    noisy = losses(train("noisy", num_epochs=1, position_noise_scale=1e-6, denoising_weight=2.0))
    assert noisy[0][0] == pytest.approx(plain[0][0] + 2.0, abs=0.7)
    assert noisy[1][0] == pytest.approx(plain[1][0], abs=0.1)
