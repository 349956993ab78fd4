"""Training of published networks and of ours, side by side: molecules per second.

    python benchmarks/pretraining.py [--model et tensornet visnet] [--layers 3 6] [--batch-size 64] [--steps 12]

et, tensornet: TorchMD-Net's own networks; visnet: PyTorch Geometric's, given our neighbours, as its own search needs another
package. Both of a pair train on the same batches (noise of 0.2 angstrom, half of the molecules without hydrogens), in turns,
in one process and on one thread, with the same read-out and the same optimiser. The task is denoising; as TorchMD-Net's
TensorNet has no vectors, the task of both TensorNets is the length of each atom's noise instead. The clock is the processor
time of the process, so that what else the machine does counts little. First, from the same weights and without our envelope,
both take the same few steps: the losses show that the same thing is computed.
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
from torch_geometric.nn.models.visnet import ViSNetBlock
from torchmdnet.models.tensornet import TensorNet
from torchmdnet.models.torchmd_et import TorchMD_ET

from torchmdnet_ext.denoising import Denoising
from torchmdnet_ext.heads.noise import EquivariantNoise
from torchmdnet_ext.models import fused_attention, fused_tensors, fused_visnet
from torchmdnet_ext.models.equivariant_transformer import SmoothEquivariantTransformer
from torchmdnet_ext.models.neighbours import Neighbours
from torchmdnet_ext.models.tensornet import SmoothTensorNet
from torchmdnet_ext.models.visnet import ViSNet


def batches(store, batch_size, count):
    """`count` batches z, noisy pos, batch, noise from a store of conformers."""
    noisy = Denoising(store, sigma=0.2, remove_hydrogens=0.5)
    for indices in torch.randint(0, len(noisy), (count, batch_size)).tolist():
        batch = Batch.from_data_list([noisy[index] for index in indices])
        yield batch.z, batch.pos, batch.batch, batch.y


class NoiseLength(torch.nn.Module):
    """The length of each atom's noise from its scalars (N, H)."""

    def __init__(self, channels):
        super().__init__()
        self.linear = torch.nn.Linear(channels, 1)

    def forward(self, x):
        return self.linear(x).squeeze(1)


class Directed(torch.nn.Module):
    """Our neighbour search with the output of PyTorch Geometric's."""

    def __init__(self, cutoff):
        super().__init__()
        self.search = Neighbours(cutoff)

    def forward(self, pos, batch):
        graph = self.search(pos, batch)
        source, target, direction = graph.directed()
        distance = graph.pair_rows(graph.filter_distances())
        return torch.stack([source, target]), distance, direction * distance[:, None]


class Trainer:
    """A network, a read-out and AdamW."""

    def __init__(self, network, head):
        self.network, self.head = network.train(), copy.deepcopy(head)
        self.optimizer = torch.optim.AdamW([*self.network.parameters(), *self.head.parameters()], 1e-3)

    def loss(self, z, pos, graphs, noise):
        x, v, *_ = self.network(z, pos, graphs)
        if isinstance(self.head, NoiseLength):
            return (self.head(x) - noise.norm(dim=1)).square().mean()
        return (self.head.pre_reduce(x, v, z, pos, graphs) - noise).square().mean()

    def step(self, *batch):
        loss = self.loss(*batch)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item()


def make_et(settings, arguments, smooth_cutoff):
    settings = {**settings, "cutoff_upper": arguments.cutoff, "neighbor_embedding": arguments.neighbor_embedding}
    settings["num_heads"] = arguments.heads
    upstream = TorchMD_ET(**settings, max_num_neighbors=128)
    return upstream, SmoothEquivariantTransformer(**settings, smooth_cutoff=smooth_cutoff)


def make_tensornet(settings, arguments, smooth_cutoff):
    settings = {**settings, "cutoff_upper": arguments.cutoff}
    upstream = TensorNet(**settings, max_num_neighbors=128, static_shapes=False)
    return upstream, SmoothTensorNet(**settings, smooth_cutoff=smooth_cutoff)


def make_visnet(settings, arguments, smooth_cutoff):
    settings = {**settings, "num_heads": arguments.heads, "lmax": arguments.lmax, "vertex": arguments.vertex}
    upstream = ViSNetBlock(**settings, cutoff=arguments.cutoff)
    upstream.distance = Directed(arguments.cutoff)
    return upstream, ViSNet(**settings, cutoff_upper=arguments.cutoff, smooth_cutoff=smooth_cutoff)


# name -> both networks, whose is the published one, why ours would run without its kernels, read-out
MODELS = {
    "et": (make_et, "TorchMD-Net", fused_attention.reason_against, EquivariantNoise),
    "tensornet": (make_tensornet, "TorchMD-Net", fused_tensors.reason_against, NoiseLength),
    "visnet": (make_visnet, "PyG", fused_visnet.reason_against, EquivariantNoise),
}


def make_trainers(model, layers, arguments, smooth_cutoff):
    settings = {
        "hidden_channels": arguments.hidden,
        "num_layers": layers,
        "num_rbf": arguments.rbf,
        "trainable_rbf": arguments.trainable_rbf,
    }
    make, _, _, head_class = MODELS[model]
    torch.manual_seed(0)
    upstream, ours = make(settings, arguments, smooth_cutoff)
    ours.load_state_dict(upstream.state_dict(), strict=model != "visnet")  # our neighbours have a box
    head = head_class(arguments.hidden)
    return {"published": Trainer(upstream, head), "ours": Trainer(ours, head)}


def compare(model, layers, arguments, data):
    _, whose, reason_against, _ = MODELS[model]
    same = make_trainers(model, layers, arguments, smooth_cutoff=False)
    losses = {name: [trainer.step(*batch) for batch in data[:4]] for name, trainer in same.items()}
    trainers = make_trainers(model, layers, arguments, smooth_cutoff=True)
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
    ratio = np.median(np.divide(rates["ours"], rates["published"]))
    print(f"{model:10s}{whose:12s}{layers:6d}{median['published']:12.0f}{median['ours']:8.0f}{ratio:7.2f}x", end="")
    print(f"{best['published']:12.0f}{best['ours']:8.0f}{best['ours'] / best['published']:7.2f}x")
    for name, values in losses.items():
        print(f"          loss, {name:10s}", *(f"{value:.7f}" for value in values), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    shipped = resources.files("openmm_geomgnn.data") / "conformers.safetensors"
    parser.add_argument("--model", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--layers", type=int, nargs="+", default=[3, 6])
    parser.add_argument("--store", default=str(shipped), help="a store of conformers; without it, the shipped one")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=12, help="timed steps of each network")
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--rbf", type=int, default=64)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--cutoff", type=float, default=7.5, help="angstrom")
    parser.add_argument("--neighbor-embedding", action="store_true", help="of the equivariant transformer; ViSNet has one")
    parser.add_argument("--lmax", type=int, choices=(1, 2), default=1, help="of ViSNet")
    parser.add_argument("--vertex", action="store_true", help="vertex geometry of ViSNet")
    parser.add_argument("--trainable-rbf", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(1)
    data = list(batches(arguments.store, arguments.batch_size, 6))
    atoms = np.mean([len(z) for z, *_ in data])
    print(f"{arguments.batch_size} molecules a batch, {atoms:.0f} atoms on average; molecules per second of processor time")
    print(f"{'median':>48s}{'best':>28s}")
    print(f"{'model':10s}{'published by':12s}{'layers':>6s}" + 2 * f"{'published':>12s}{'ours':>8s}{'ratio':>8s}")
    for model in arguments.model:
        for layers in arguments.layers:
            compare(model, layers, arguments, data)


if __name__ == "__main__":
    main()
