"""Embedding of trajectories: our encoders against the published networks with the same weights, and cost by size.

    python benchmarks/embedding.py                      # random weights, alanine dipeptide and chignolin
    python benchmarks/embedding.py --weights et.pth     # the weights of geom2vec, or any file that Encoder.load reads
    python benchmarks/embedding.py --sizes              # cost and peak memory from 10 to 1,000 residues

One thread. The published networks are TorchMD-Net's TorchMD_ET and PyG's ViSNetBlock, in eager mode and with their
neighbours given, so that what is compared is the network. Both sides are timed in turns in one process, after their values
were compared. Times are of the processor, so that other programs disturb them less; ratios are those of the medians.
"""

import argparse
import os
import subprocess
import sys
import time
import warnings
from importlib import resources

os.environ.setdefault("OMP_NUM_THREADS", "1")

import mdtraj
import numpy as np
import torch

from openmm_geomgnn.representation.encoder import Encoder
from openmm_geomgnn.representation.selection import select_atoms
from openmm_geomgnn.representation.tokens import Tokenizer
from openmm_geomgnn.representation.windows import make_windows
from torchmdnet_ext import registration
from torchmdnet_ext.compiled import compiled_forward
from torchmdnet_ext.models.neighbours import all_pairs, connect

SIZE = {"embedding_dimension": 64, "num_layers": 6, "num_rbf": 64, "num_heads": 8, "cutoff_upper": 7.5, "max_z": 100}
COMMON = {
    "cutoff_lower": 0.0, "rbf_type": "expnorm", "trainable_rbf": False, "activation": "silu", "attn_activation": "silu",
    "distance_influence": "both", "neighbor_embedding": False, "vector_cutoff": False, "smooth_cutoff": False, "lmax": 1,
}  # fmt: skip
MODELS = {"et": "smooth-equivariant-transformer", "visnet": "visnet"}
SEQUENCE = "YYDPETGTWY"  # chignolin, CLN025
BATCHES = (1, 8, 32, 256)
RESIDUES = (10, 30, 100, 300, 1000)
MOST_EDGES = 130_000  # of one pass of a published network; more take many seconds and GB


def random_encoder(kind):
    settings = {"precision": 32, "model": MODELS[kind], **SIZE, **COMMON}
    torch.manual_seed(0)
    return Encoder(registration.representation_model(settings).requires_grad_(False).eval(), settings, {}, "random")


# ------------------------------------------------------------------------------------------------------------- published


class Edges(torch.nn.Module):
    """Stands in for the neighbour search of a published network: the edges are made once, by ours."""

    def __init__(self, pos, batch, cutoff):
        super().__init__()
        with torch.no_grad():
            graph = connect(pos, *all_pairs(batch), cutoff)
            source, target, direction = graph.directed()
            distance = graph.pair_rows(graph.filter_distances()[:, None])[:, 0]
        self.index, self.distance = torch.stack([source, target]), distance
        self.vector = direction * distance[:, None]  # from target to source, as in both networks
        self.box = torch.nn.Parameter(torch.zeros(3, 3), requires_grad=False)

    def forward(self, *_):
        return self.index, self.distance, self.vector.clone()  # the networks normalise the vectors in place


def published_et(network, settings):
    from torchmdnet.models.torchmd_et import TorchMD_ET

    names = ("num_layers", "num_rbf", "num_heads", "max_z", "cutoff_lower", "cutoff_upper", "rbf_type", "trainable_rbf")
    names += ("activation", "attn_activation", "distance_influence", "neighbor_embedding", "vector_cutoff")
    arguments = {name: settings[name] for name in names if name in settings}
    made = TorchMD_ET(hidden_channels=settings["embedding_dimension"], **arguments)
    made.load_state_dict(network.state_dict())
    return made


def published_visnet(network, settings):
    from torch_geometric.nn.models.visnet import ViSNetBlock

    vecnorm = settings.get("vecnorm_type", "none")
    made = ViSNetBlock(
        lmax=settings.get("lmax", 1),
        vecnorm_type=None if vecnorm == "none" else vecnorm,
        trainable_vecnorm=settings.get("trainable_vecnorm", False),
        hidden_channels=settings["embedding_dimension"],
        cutoff=settings["cutoff_upper"],
        vertex=settings.get("vertex", False),
        **{name: settings[name] for name in ("num_heads", "num_layers", "num_rbf", "trainable_rbf", "max_z")},
    )
    made.load_state_dict({name: tensor for name, tensor in network.state_dict().items() if name != "distance.box"})
    return made


PUBLISHED = {"smooth-equivariant-transformer": published_et, "visnet": published_visnet}


# ------------------------------------------------------------------------------------------------------------- molecules


def alanine_dipeptide():
    return mdtraj.load(str(resources.files("openmm_geomgnn") / "data" / "ala2-c7eq.pdb"))


def chignolin():
    """A helix of chignolin's sequence, with hydrogens: the atoms, and about the neighbours, of the folded hairpin."""
    import io

    from Bio.PDB import PDBIO
    from openmm import app
    from PeptideBuilder import Geometry, PeptideBuilder

    geometries = [Geometry.geometry(letter) for letter in SEQUENCE]
    for geometry in geometries:
        geometry.phi, geometry.psi_im1 = -57.0, -47.0
    structure = PeptideBuilder.make_structure_from_geos(geometries)
    PeptideBuilder.add_terminal_OXT(structure)
    writer, text = PDBIO(), io.StringIO()
    writer.set_structure(structure)
    writer.save(text)
    text.seek(0)
    pdb = app.PDBFile(text)
    modeller = app.Modeller(pdb.topology, pdb.positions)
    modeller.addHydrogens(app.ForceField("amber14-all.xml"))
    positions = np.array([[x, y, z] for x, y, z in modeller.positions.value_in_unit(modeller.positions.unit)])
    return mdtraj.Trajectory(positions, mdtraj.Topology.from_openmm(modeller.topology))


def frames_of(structure, selection, count, seed=0):
    """Atomic numbers (N,) and `count` disturbed conformations (F, N, 3) in angstrom."""
    atoms = select_atoms(structure.topology, selection)
    z = np.array([structure.topology.atom(int(index)).element.number for index in atoms])
    noise = np.random.default_rng(seed).normal(size=(count, len(atoms), 3))
    return z, 10.0 * structure.xyz[0, atoms].astype(np.float64) + 0.05 * noise


# ------------------------------------------------------------------------------------------------------------- comparison


def compare(name, encoder, structure, selection, batches, seconds):
    published = PUBLISHED[encoder.settings["model"]](encoder.network, encoder.settings).requires_grad_(False).eval()
    z, pos = frames_of(structure, selection, max(batches))
    pairs = np.triu_indices(len(z), 1)
    kernels = compiled_forward(encoder.network, z, pairs, [len(z)])
    numbers = torch.as_tensor(z)

    def theirs(frames):
        with torch.no_grad():
            x, v = published(numbers.repeat(len(frames)), frames.reshape(-1, 3), published_batch)[:2]
        return x.view(len(frames), len(z), -1), v[:, :3].reshape(len(frames), len(z), 3, -1)

    def ours(frames):
        return encoder.embed(z, frames) if kernels is None else kernels.embed(frames)

    for size in batches:
        frames, single = pos[:size], torch.as_tensor(pos[:size]).float()
        published_batch = torch.arange(size).repeat_interleave(len(z))
        edges = Edges(single.reshape(-1, 3), published_batch, encoder.cutoff)
        if edges.index.shape[1] > MOST_EDGES:
            print(f"{name:34s}{len(z):6d}{size:7d}   left out: {edges.index.shape[1]} edges in a published pass")
            continue
        published.distance = edges
        error = max(
            float(np.abs(mine - other.numpy()).max() / np.abs(mine).max())
            for mine, other in zip(ours(frames), theirs(single), strict=True)
        )
        times = {"theirs": [], "ours": []}
        end = time.perf_counter() + seconds
        while time.perf_counter() < end or len(times["ours"]) < 2:
            for key, function, argument in (("theirs", theirs, single), ("ours", ours, frames)):
                started = time.process_time()
                function(argument)
                times[key].append(time.process_time() - started)
        median = {key: np.median(value) / size for key, value in times.items()}
        print(
            f"{name:34s}{len(z):6d}{size:7d}{1 / median['theirs']:14.1f}{1 / median['ours']:12.1f}"
            f"{median['theirs'] / median['ours']:9.1f}x{error:11.1e}{'' if error < 1e-5 else '  VALUES DIFFER'}",
            flush=True,
        )


def comparison(arguments):
    encoders = {}
    if arguments.weights:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that they are not smooth
            encoders["weights"] = Encoder.load(arguments.weights)
    else:
        encoders = {kind: random_encoder(kind) for kind in arguments.models}
    structures = {"ala2": alanine_dipeptide()}
    try:
        structures["chignolin"] = mdtraj.load(arguments.chignolin) if arguments.chignolin else chignolin()
    except ImportError as error:
        print(f"no chignolin: {error}; pip install PeptideBuilder, or give --chignolin FILE.pdb")
    columns = f"{'atoms':>6s}{'batch':>7s}{'published':>14s}{'ours':>12s}{'ratio':>10s}{'error':>11s}"
    print(f"{'frames/s, one thread':34s}{columns}")
    for kind, encoder in encoders.items():
        for molecule, structure in structures.items():
            for atoms, selection in (("heavy atoms", "not element H"), ("all atoms", "all")):
                label = f"{kind}, {molecule}, {atoms}"
                compare(label, encoder, structure, selection, arguments.batches, arguments.seconds)


# ------------------------------------------------------------------------------------------------------------------ sizes


def repeated(structure, residues):
    """A structure of at least so many residues: the chain repeated on a grid 5 nm wide."""
    copies = -(-residues // structure.n_residues)
    side = int(np.ceil(copies ** (1 / 3)))
    topology = structure.topology
    for _ in range(copies - 1):
        topology = topology.join(structure.topology)
    places = np.stack(np.unravel_index(np.arange(copies), (side, side, side)), axis=1)
    return mdtraj.Trajectory((structure.xyz[0] + 5.0 * places[:, None]).reshape(1, -1, 3), topology)


def peak_memory():
    """MiB; of this process alone, which `ru_maxrss` is not."""
    with open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) / 1024


def one_size(arguments):
    """A line of the table, in a process of its own."""
    structure = mdtraj.load(arguments.chignolin) if arguments.chignolin else chignolin()
    structure.unitcell_vectors = None
    encoder = Encoder.load(arguments.weights) if arguments.weights else random_encoder(arguments.models[0])
    structure = repeated(structure, arguments.residues)
    atoms = select_atoms(structure.topology)
    started = time.perf_counter()
    windows = make_windows(structure.topology, atoms, arguments.window, reference=structure.atom_slice(atoms))
    made = time.perf_counter() - started
    tokenizer = Tokenizer(encoder, windows, engine=arguments.engine)
    before = peak_memory()
    pos = 10.0 * structure.xyz[:, atoms].astype(np.float64)
    tokenizer.embed(np.repeat(pos, 1 + 40_000 // len(windows.pairs[0]), axis=0))  # enough for kernels to be compiled
    times = []
    while len(times) < 3 or sum(times) < arguments.seconds:
        started = time.process_time()
        tokens = tokenizer.embed(pos)
        times.append(time.process_time() - started)
    assert torch.isfinite(tokens).all()
    each = 1e3 * np.median(times)
    print(
        f"{windows.n_tokens:9d}{len(windows.rows):14d}{len(windows.pairs[0]):10d}{made:11.2f}{each:12.1f}"
        f"{1e3 * each / windows.n_tokens:16.1f}{before:14.0f}{peak_memory():10.0f}"
    )


def sizes(arguments):
    for engine in ("auto", "eager"):
        print(f"heavy atoms, window: {arguments.window}, engine: {engine}")
        print(
            f"{'residues':>9s}{'window atoms':>14s}{'pairs':>10s}{'windows s':>11s}{'ms / frame':>12s}{'us / residue':>16s}"
            f"{'MiB before':>14s}{'peak MiB':>10s}",
            flush=True,
        )
        for residues in RESIDUES:
            again = [name for name in sys.argv[1:] if name != "--sizes"]
            command = [sys.executable, __file__, *again, "--residues", str(residues), "--engine", engine]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            print(done.stdout.splitlines()[-1], flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", help="file or name for Encoder.load; without it weights are random")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS), help="kinds of random networks")
    parser.add_argument("--chignolin", help="structure file with hydrogens; without it PeptideBuilder makes a helix")
    parser.add_argument("--batches", nargs="+", type=int, default=BATCHES)
    parser.add_argument("--seconds", type=float, default=0.5, help="for each line, and at least two passes")
    parser.add_argument("--sizes", action="store_true", help="cost and peak memory by the number of residues")
    parser.add_argument("--window", choices=("sequence", "space"), default="sequence", help="for --sizes")
    parser.add_argument("--engine", choices=("auto", "eager"), default="auto", help=argparse.SUPPRESS)
    parser.add_argument("--residues", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    task = one_size if arguments.residues else sizes if arguments.sizes else comparison
    task(arguments)


if __name__ == "__main__":
    main()
