"""Forces of our networks, and their training on energies and forces through TorchMD-Net's trainer."""

import csv
import sys

import numpy as np
import pytest
import torch
import yaml
from ase import Atoms
from ase.calculators.morse import MorsePotential
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write
from torchmdnet.models.model import create_model, load_model
from torchmdnet.scripts import train as trainer
from torchmdnet.scripts.train import get_argparse

from openmm_geomgnn.testing.numerics import randn
from torchmdnet_ext import registration
from torchmdnet_ext.checkpoints import write_encoder
from torchmdnet_ext.datasets.extended_xyz import ExtendedXYZ

pytestmark = pytest.mark.slow
NETWORK = {
    "embedding_dimension": 32, "num_layers": 1, "num_heads": 4, "num_rbf": 8, "cutoff_upper": 5.0, "max_z": 100,
    "output_model": "Scalar", "derivative": True, "prior_model": None,
}  # fmt: skip
OFFSET = -7267.0  # eV


@pytest.fixture(scope="module", params=registration.MODELS)
def model(request):
    return request.param


def arguments(**changes):
    return {**vars(get_argparse().parse_args([])), **NETWORK, **changes}


@pytest.fixture
def network(model):
    """In double precision, in training mode; its size is one that the compiled messages of all networks take."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        network = create_model(arguments(model=model, precision=64)).train()
    with torch.no_grad():  # before training some vectors are almost zero, where their norms have a kink
        for k, parameter in enumerate(network.parameters()):
            parameter += 0.1 * randn(*parameter.shape, seed=100 + k)
    return network


@pytest.fixture
def molecules():
    """Two molecules of 5 and 4 atoms, (z, pos, batch)."""
    z = torch.tensor([6, 1, 1, 8, 7, 6, 6, 1, 9])
    return z, 1.5 * randn(9, 3, seed=2), torch.tensor([0] * 5 + [1] * 4)


def test_forces_are_the_gradient_of_the_energy(network, molecules):
    z, pos, batch = molecules
    energy, forces = (tensor.detach() for tensor in network(z, pos.clone(), batch))
    assert energy.shape == (2, 1) and forces.shape == (9, 3) and forces.abs().max() > 1e-3
    h = 1e-4
    for atom, axis in ((0, 0), (3, 2), (7, 1)):
        shift = torch.zeros_like(pos)
        shift[atom, axis] = h
        up, down = (network(z, pos + sign * shift, batch)[0].detach().sum() for sign in (1, -1))
        assert float(forces[atom, axis]) == pytest.approx(float(down - up) / (2 * h), abs=1e-6)
    # those of validation are the same, and of another molecule in the batch none
    assert torch.allclose(network.eval()(z, pos.clone(), batch)[1], forces, atol=1e-10)
    assert torch.allclose(network(z[:5], pos[:5].clone(), batch[:5])[1], forces[:5], atol=1e-10)


def test_the_loss_of_forces_has_the_right_gradient(network, molecules):
    """Second derivatives, which the compiled messages do not have, by differences along a direction of all parameters."""
    z, pos, batch = molecules

    def loss():
        energy, forces = network(z, pos.clone(), batch)
        return energy.square().sum() + (forces - 0.1).square().sum()

    parameters = [p for p in network.parameters() if p.requires_grad]
    # what a single layer does not use has none
    gradients = torch.autograd.grad(loss(), parameters, allow_unused=True)
    directions = [randn(*p.shape, seed=k) for k, p in enumerate(parameters)]
    slope = sum(float((g * d).sum()) for g, d in zip(gradients, directions, strict=True) if g is not None)
    values, h = [], 1e-6
    for step in (h, -2 * h):
        with torch.no_grad():
            for p, d in zip(parameters, directions, strict=True):
                p += step * d
        values.append(float(loss().detach()))
    assert slope == pytest.approx((values[0] - values[1]) / (2 * h), rel=1e-5)


def formaldehyde(number, seed):
    """Distorted molecules with a Morse potential between all atoms and the total energy of a real one."""
    rng = np.random.default_rng(seed)
    start = np.array([[0.0, 0.0, 0.0], [0.0, 0.0, 1.2], [0.94, 0.0, -0.55], [-0.94, 0.0, -0.55]])
    for _ in range(number):
        atoms = Atoms("COH2", start + 0.05 * rng.normal(size=(4, 3)))
        atoms.calc = MorsePotential(epsilon=0.5, r0=1.2, rho0=3.0)
        labels = {"energy": atoms.get_potential_energy() + OFFSET, "forces": atoms.get_forces()}
        atoms.calc = SinglePointCalculator(atoms, **labels)
        yield atoms


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder of three files, as xxMD publishes them, and one file of all."""
    folder = tmp_path_factory.mktemp("forces")
    (folder / "sets").mkdir()
    parts = {name: list(formaldehyde(n, seed)) for name, n, seed in (("train", 32, 1), ("val", 8, 2), ("test", 5, 3))}
    for name, frames in parts.items():
        write(folder / "sets" / f"fal_{name}.xyz", frames, format="extxyz")
    write(folder / "all.xyz", [atoms for frames in parts.values() for atoms in frames], format="extxyz")
    return folder


def train(folder, **changes):
    """Train by `torchmd-train` in this process; returns rows of its metrics."""
    settings = {
        **NETWORK, "precision": 32, "seed": 1, "ngpus": 1, "num_workers": 0, "dataset": "ExtendedXYZ",
        "remove_ref_energy": True, "standardize": True, "y_weight": 0.05, "neg_dy_weight": 0.95, "batch_size": 8,
        "inference_batch_size": 8, "lr": 2e-3, "lr_warmup_steps": 0, "save_interval": 1, "log_dir": str(folder), **changes,
    }  # fmt: skip
    folder.mkdir()
    (folder / "train.yaml").write_text(yaml.safe_dump(settings))
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng():
        patch.setattr(sys, "argv", ["torchmd-train", "--conf", str(folder / "train.yaml")])
        for variable in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):  # the trainer sets them
            patch.setenv(variable, "0")
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        trainer.main()
    with open(folder / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def column(rows, name):
    return [float(row[name]) for row in rows if row.get(name)]


def test_a_training_learns_forces_from_the_sets_of_the_files(model, data, tmp_path):
    rows = train(tmp_path / "run", model=model, dataset_root=str(data / "sets"), num_epochs=6)
    with np.load(tmp_path / "run" / "splits.npz") as split:
        assert [len(split[f"idx_{name}"]) for name in ("train", "val", "test")] == [32, 8, 5]
        assert split["idx_test"].tolist() == list(range(40, 45))
    forces, energies = column(rows, "val_neg_dy_mse_loss"), column(rows, "val_y_mse_loss")
    assert len(forces) == 6 and forces[-1] < 0.7 * forces[0] and max(energies) < 100  # of total energies: 5e7
    # the network that is read back gives the total energy
    checkpoint = max((tmp_path / "run").glob("*.ckpt"), key=lambda path: path.stat().st_mtime)
    network = load_model(str(checkpoint), derivative=True, remove_ref_energy=False)
    frame = ExtendedXYZ(data / "all.xyz")[41]
    energy, found = network(frame.z, frame.pos, None)
    assert float(energy.detach()) == pytest.approx(float(frame.y), abs=2.0)
    assert torch.nn.functional.mse_loss(found.detach().double(), frame.neg_dy) < frame.neg_dy.square().mean()


def test_one_file_is_split_in_time_and_a_training_starts_from_an_encoder(data, tmp_path):
    settings = arguments(model="smooth-equivariant-transformer", precision=32)
    torch.manual_seed(5)
    encoder = registration.representation_model({**settings, "box_vecs": None})
    write_encoder(tmp_path / "small.safetensors", settings, encoder)
    rows = train(
        tmp_path / "run", model="smooth-equivariant-transformer", dataset_root=str(data / "all.xyz"), num_epochs=2,
        train_size=None, val_size=8, test_size=5, encoder=str(tmp_path / "small.safetensors"), lr=1e-6,
    )  # fmt: skip
    with np.load(tmp_path / "run" / "splits.npz") as split:
        assert split["idx_val"].tolist() == list(range(32, 40)) and split["idx_test"].tolist() == list(range(40, 45))
    assert np.isfinite(column(rows, "val_neg_dy_mse_loss")).all()
    checkpoint = max((tmp_path / "run").glob("*.ckpt"), key=lambda path: path.stat().st_mtime)
    trained = load_model(str(checkpoint)).representation_model.state_dict()
    for name, tensor in encoder.state_dict().items():  # such a small learning rate leaves it near where it began
        assert torch.allclose(trained[name], tensor, atol=1e-4)
