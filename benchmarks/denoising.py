"""How well encoders predict noise: the loss on the same molecules and noise, by domain, with and without hydrogens.

    python benchmarks/denoising.py [--conformers held-out/] [--encoder et-64 --encoder other.pth ...] [--sigma 0.2]

An encoder is a shipped name, a .safetensors of ours, a .ckpt of `torchmd-train` or a .pth of geom2vec; it must hold its
noise head. Predicting no noise has a loss of 1.0. Each source of the conformers is a domain. By default the encoders and the
conformers that ship are used; those conformers are training data, so name held-out ones for figures that mean something
(docs/concepts/shipped-encoders.md says how the held-out molecules there were made). The noise depends on the index alone.
Behind +- stands the standard error of the mean over molecules.
"""

import argparse
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch.utils.data import Subset
from torch_geometric.loader import DataLoader

from openmm_geomgnn.representation.encoder import encoder_file, shipped_encoders
from torchmdnet_ext.checkpoints import read_denoiser
from torchmdnet_ext.datasets.conformers import shipped_file
from torchmdnet_ext.denoising import Denoising


def losses(model, dataset):
    """Mean squared error per coordinate of each conformer, and the number of its atoms; both (F,)."""
    found, atoms = [], []
    with torch.no_grad():
        for batch in DataLoader(dataset, batch_size=16):
            errors = (model(batch.z, batch.pos, batch.batch) - batch.y).square().mean(1)
            number = torch.bincount(batch.batch)
            found.append(torch.zeros(len(number)).index_add(0, batch.batch, errors) / number)
            atoms.append(number)
    return torch.cat(found), torch.cat(atoms).float()


def mean_and_error(loss, atoms):
    """The mean over coordinates of all conformers and its standard error, from conformers as independent samples."""
    share = atoms / atoms.sum()
    mean = (share * loss).sum()
    return mean.item(), (share * (loss - mean)).square().sum().sqrt().item()


def sample(dataset, source, number):
    """Indices of up to `number` conformers of one source, evenly spaced."""
    clean = dataset.clean
    members = (clean.source == clean.sources.index(source)).nonzero().squeeze(1)
    return members[torch.linspace(0, len(members) - 1, min(number, len(members))).long()].tolist()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--encoder", action="append", help="name or file; several may be given (default: those shipped)")
    parser.add_argument("--conformers", default=str(shipped_file()), help="a store of conformers")
    parser.add_argument("--number", type=int, default=200, help="conformers of each source")
    parser.add_argument("--sigma", type=float, action="append", help="angstrom; several may be given (default: 0.2)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    names = arguments.encoder or shipped_encoders()
    models = {name: read_denoiser(encoder_file(name)) for name in names}
    width = max(4, *(len(name.rsplit("/", 1)[-1]) - 9 for name in names)) + 2
    print(f"{arguments.number} conformers of each source of {arguments.conformers}; loss +- standard error")
    titles = "".join(f"{name.rsplit('/', 1)[-1]:>{width + 9}s}" for name in names)
    print(f"{'source':14s}{'hydrogens':>10s}{'sigma':>7s}{titles}")
    for sigma in arguments.sigma or [0.2]:
        for share, kept in ((0.0, "with"), (1.0, "without")):
            dataset = Denoising(
                dataset_arg={"file": arguments.conformers}, sigma=sigma, remove_hydrogens=share
            ).fixed_noise()
            for source in dataset.clean.sources:
                chosen = Subset(dataset, sample(dataset, source, arguments.number))
                row = f"{source:14s}{kept:>10s}{sigma:7.2f}"
                for model in models.values():
                    mean, error = mean_and_error(*losses(model, chosen))
                    row += f"{mean:{width}.3f} +- {error:.3f}"
                print(row, flush=True)


if __name__ == "__main__":
    main()
