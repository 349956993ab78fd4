"""Plain PyTorch against the compiled engine: forward and gradient with respect to the positions, one thread.

    python benchmarks/encoder_engine.py [--network visnet] [--layers 3] [--hidden 64] [--seconds 5]

Both are timed in turns in one process, through torch.autograd, so that whatever else the machine does hits both. The network
is random: its weights do not matter for the time.
"""

import argparse
import copy
import os
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

from openmm_geomgnn.engines import compiled_class
from torchmdnet_ext.models.equivariant_transformer import SmoothEquivariantTransformer
from torchmdnet_ext.models.visnet import ViSNet

NETWORKS = {
    "et": lambda **settings: SmoothEquivariantTransformer(neighbor_embedding=False, **settings),
    "visnet": ViSNet,
}
# extended alanine dipeptide, angstrom
ALANINE_DIPEPTIDE = """
H 2.000 1.000 0.000  C 2.000 2.090 0.000  H 1.486 2.454 0.890  H 1.486 2.454 -0.890  C 3.427 2.641 0.000
O 4.391 1.877 0.000  N 3.555 3.970 0.000  H 2.733 4.556 0.000  C 4.853 4.614 0.000  H 5.408 4.316 0.890
C 5.661 4.221 -1.232  H 5.123 4.521 -2.131  H 6.630 4.719 -1.206  H 5.809 3.141 -1.241  C 4.713 6.129 0.000
O 3.601 6.653 0.000  N 5.846 6.835 0.000  H 6.737 6.359 0.000  C 5.846 8.284 0.000  H 4.819 8.648 0.000
H 6.360 8.648 0.890  H 6.360 8.648 -0.890
"""
NUMBERS = {"H": 1, "C": 6, "N": 7, "O": 8}
HEAVY_ATOMS_OF_CLN025 = (12, 12, 8, 7, 9, 7, 4, 7, 14, 13)  # YYDPETGTWY


def alanine_dipeptide(heavy):
    words = ALANINE_DIPEPTIDE.split()
    z = np.array([NUMBERS[name] for name in words[::4]])
    pos = np.array([words[k::4] for k in (1, 2, 3)], float).T
    keep = z > 1 if heavy else z > 0
    return z[keep], pos[keep], np.triu_indices(int(keep.sum()), 1)


def windows_of_a_mini_protein():
    """Ten windows of a residue and its neighbours in sequence; the atoms are a random tree of that size."""
    rng = np.random.default_rng(0)
    residue = np.repeat(np.arange(10), HEAVY_ATOMS_OF_CLN025)
    pos = [np.zeros(3)]
    while len(pos) < len(residue):
        step = rng.normal(size=3)
        new = pos[rng.integers(max(0, len(pos) - 4), len(pos))] + 1.45 * step / np.linalg.norm(step)
        if np.linalg.norm(np.array(pos) - new, axis=1).min() > 1.35:
            pos.append(new)
    z = rng.choice([6, 7, 8], len(residue), p=[0.66, 0.14, 0.20])
    rows, first, second = [], [], []
    for centre in range(10):
        atoms = np.flatnonzero(abs(residue - centre) <= 1)
        i, j = np.triu_indices(len(atoms), 1)
        first.append(i + len(rows))
        second.append(j + len(rows))
        rows.extend(atoms)
    return z[rows], np.array(pos)[rows], (np.concatenate(first), np.concatenate(second))


def compare(name, network, case, seconds):
    z, pos, pairs = case
    started = time.perf_counter()
    engine = compiled_class(network)(network, z, pairs)
    built = time.perf_counter() - started
    atoms, tensors = torch.as_tensor(z), tuple(torch.as_tensor(side) for side in pairs)
    batch = torch.zeros(len(z), dtype=torch.long)
    generator = torch.Generator().manual_seed(0)
    g_x, g_v = (torch.randn(len(z), *shape, network.hidden_channels, generator=generator) for shape in ((), (3,)))

    def gradient(function, dtype=torch.float32):
        q = torch.tensor(pos, dtype=dtype, requires_grad=True)
        x, v = function(q)
        torch.autograd.backward([x, v], [g_x.to(x), g_v.to(v)])
        return q.grad

    exact_network = copy.deepcopy(network).double()
    functions = {
        "eager": lambda q: network(atoms, q, batch, pairs=tensors)[:2],
        "numba": engine,
    }
    exact = gradient(lambda q: exact_network(atoms, q, batch, pairs=tensors)[:2], torch.float64)
    errors = {key: ((gradient(f) - exact).norm() / exact.norm()).item() for key, f in functions.items()}
    times = {key: [] for key in functions}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times["numba"]) < 5:
        for key, function in functions.items():
            for _ in range(3):
                started = time.perf_counter()
                gradient(function)
                times[key].append(1e3 * (time.perf_counter() - started))
    median, least = ({key: f(v) for key, v in times.items()} for f in (np.median, min))
    print(
        f"{name:28s}{len(z):6d}{len(pairs[0]):7d}"
        f"{median['eager']:10.2f} /{least['eager']:7.2f}{median['numba']:9.3f} /{least['numba']:7.3f}"
        f"{median['eager'] / median['numba']:8.1f}x{errors['eager']:11.1e}{errors['numba']:9.1e}{built:8.2f}"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", choices=NETWORKS, default="et")
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--rbf", type=int, default=64)
    parser.add_argument("--cutoff", type=float, default=7.5, help="angstrom")
    parser.add_argument("--seconds", type=float, default=5.0, help="for each molecule")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    network = NETWORKS[arguments.network](
        hidden_channels=arguments.hidden,
        num_layers=arguments.layers,
        num_rbf=arguments.rbf,
        num_heads=8,
        cutoff_upper=arguments.cutoff,
    ).requires_grad_(False)

    z, pos, pairs = alanine_dipeptide(heavy=True)
    q = torch.tensor(pos, requires_grad=True)
    engine = compiled_class(network)(network, z, pairs)
    started = time.perf_counter()
    torch.autograd.backward(engine(q), [torch.ones(len(z), arguments.hidden), torch.ones(len(z), 3, arguments.hidden)])
    print(f"first call (kernels compiled, or read from the cache): {time.perf_counter() - started:.1f} s")
    print(f"{arguments.layers} layers, {arguments.hidden} channels; ms for forward + gradient, median / least")
    print(
        f"{'':28s}{'atoms':>6s}{'pairs':>7s}{'eager':>19s}{'numba':>18s}{'ratio':>9s}"
        f"{'error of gradient':>20s}{'build s':>8s}"
    )
    compare("alanine dipeptide, heavy", network, (z, pos, pairs), arguments.seconds)
    compare("alanine dipeptide", network, alanine_dipeptide(heavy=False), arguments.seconds)
    compare("mini-protein, 10 windows", network, windows_of_a_mini_protein(), arguments.seconds)


if __name__ == "__main__":
    main()
