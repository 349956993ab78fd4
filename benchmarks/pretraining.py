"""Denoising training of TorchMD-Net's own equivariant transformer and of ours, side by side: molecules per second.

    python benchmarks/pretraining.py [--layers 3 6] [--store FILE] [--batch-size 64] [--steps 12]

Both train on the same batches (noise of 0.2 angstrom, half of the molecules without hydrogens), in turns, in one process and
on one thread, with the same read-out and the same optimiser. The clock is the processor time of the process, so that what
else the machine does counts little. First, from the same weights and without our envelope, both take the same few steps: the
losses show that the same thing is computed.
"""

import argparse
import copy
import os
import time
from importlib import resources

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from torch_geometric.data import Batch
from torchmdnet.models.torchmd_et import TorchMD_ET

from torchmdnet_ext.denoising import Denoising
from torchmdnet_ext.heads.noise import EquivariantNoise
from torchmdnet_ext.models.equivariant_transformer import SmoothEquivariantTransformer
from torchmdnet_ext.models.fused_attention import reason_against


def batches(store, batch_size, count):
    """`count` batches z, noisy pos, batch, noise from a store of conformers."""
    noisy = Denoising(store, sigma=0.2, remove_hydrogens=0.5)
    for indices in torch.randint(0, len(noisy), (count, batch_size)).tolist():
        batch = Batch.from_data_list([noisy[index] for index in indices])
        yield batch.z, batch.pos, batch.batch, batch.y


class Trainer:
    """A network, the noise read-out and AdamW."""

    def __init__(self, network, head):
        self.network, self.head = network.train(), copy.deepcopy(head)
        self.optimizer = torch.optim.AdamW([*self.network.parameters(), *self.head.parameters()], 1e-3)

    def step(self, z, pos, graphs, noise):
        x, v, *_ = self.network(z, pos, graphs)
        loss = (self.head.pre_reduce(x, v, z, pos, graphs) - noise).square().mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item()


def make_trainers(layers, arguments, smooth_cutoff):
    settings = {
        "hidden_channels": arguments.hidden,
        "num_layers": layers,
        "num_rbf": arguments.rbf,
        "num_heads": arguments.heads,
        "cutoff_upper": arguments.cutoff,
        "neighbor_embedding": arguments.neighbor_embedding,
        "trainable_rbf": arguments.trainable_rbf,
    }
    torch.manual_seed(0)
    upstream = TorchMD_ET(**settings, max_num_neighbors=128)
    ours = SmoothEquivariantTransformer(**settings, smooth_cutoff=smooth_cutoff)
    ours.load_state_dict(upstream.state_dict())
    head = EquivariantNoise(arguments.hidden)
    return {"TorchMD-Net": Trainer(upstream, head), "ours": Trainer(ours, head)}


def compare(layers, arguments, data):
    same = make_trainers(layers, arguments, smooth_cutoff=False)
    losses = {name: [trainer.step(*batch) for batch in data[:4]] for name, trainer in same.items()}
    trainers = make_trainers(layers, arguments, smooth_cutoff=True)
    reason = reason_against(trainers["ours"].network, data[0][1], None)
    if reason is not None:
        print(f"Ours runs without its compiled kernels: {reason}.")
    for trainer in trainers.values():
        trainer.step(*data[0])  # kernels are compiled, or read from their cache
    rates = {name: [] for name in trainers}
    for k in range(arguments.steps):
        for name, trainer in trainers.items():
            started = time.process_time()
            trainer.step(*data[k % len(data)])
            rates[name].append(arguments.batch_size / (time.process_time() - started))
    median, best = ({name: f(values) for name, values in rates.items()} for f in (np.median, np.max))
    ratio = np.median(np.divide(rates["ours"], rates["TorchMD-Net"]))
    print(f"{layers:6d}{median['TorchMD-Net']:15.0f}{median['ours']:10.0f}{ratio:9.2f}x", end="")
    print(f"{best['TorchMD-Net']:15.0f}{best['ours']:10.0f}{best['ours'] / best['TorchMD-Net']:9.2f}x")
    for name, values in losses.items():
        print(f"       loss of {name:12s}", *(f"{value:.7f}" for value in values))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    shipped = resources.files("openmm_geomgnn.data") / "conformers.safetensors"
    parser.add_argument("--layers", type=int, nargs="+", default=[3, 6])
    parser.add_argument("--store", default=str(shipped), help="a store of conformers; without it, the shipped one")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=12, help="timed steps of each network")
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--rbf", type=int, default=64)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--cutoff", type=float, default=7.5, help="angstrom")
    parser.add_argument("--neighbor-embedding", action="store_true")
    parser.add_argument("--trainable-rbf", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(1)
    data = list(batches(arguments.store, arguments.batch_size, 6))
    atoms = np.mean([len(z) for z, *_ in data])
    print(f"{arguments.batch_size} molecules a batch, {atoms:.0f} atoms on average; molecules per second of processor time")
    print(f"{'median':>31s}{'best':>35s}")
    print("layers" + 2 * f"{'TorchMD-Net':>15s}{'ours':>10s}{'ratio':>10s}")
    for layers in arguments.layers:
        compare(layers, arguments, data)


if __name__ == "__main__":
    main()
