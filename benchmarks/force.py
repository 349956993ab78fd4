"""What a CV costs in a simulation: encoders against the published networks, the whole CV against its encoder; one thread.

    python benchmarks/force.py                                # all of it
    python benchmarks/force.py --encoders et visnet --layers 3
    python benchmarks/force.py --only compile                 # how long kernels take to compile, and from their cache

Encoders: features of all window atoms and the gradient of a combination of them with respect to the positions, in single
precision. The published networks are TorchMD-Net's TorchMD_ET and TensorNet and PyG's ViSNetBlock, in eager mode; the last
has its neighbours given, since its own search needs torch_cluster. "plain" is our network without compiled kernels. Errors
are those of the compiled values and of their gradient against our network in double precision. Weights are random and do not
matter for the time. Positions vary from call to call, as in a simulation.

Whole CV: value, bias and forces as a simulation asks for them, against the encoder alone.

All that is compared is timed in turns in one process; times are of the processor, so that other programs disturb them less.
"""

import argparse
import copy
import os
import subprocess
import sys
import tempfile
import time
from importlib import resources

os.environ.setdefault("OMP_NUM_THREADS", "1")

import mdtraj
import numpy as np
import torch
from mdtraj.core import element

from openmm_geomgnn.cv.mixers import make_mixer
from openmm_geomgnn.cv.network import CollectiveVariable
from openmm_geomgnn.force.evaluation import Evaluation
from openmm_geomgnn.representation.encoder import Encoder
from openmm_geomgnn.representation.featurization import Featurization
from openmm_geomgnn.representation.selection import select_atoms
from openmm_geomgnn.representation.spec import TokenSpec
from openmm_geomgnn.representation.windows import make_windows
from openmm_geomgnn.sampling.opes.method import OPES
from openmm_geomgnn.units import NM_TO_ANGSTROM
from torchmdnet_ext import registration
from torchmdnet_ext.compiled import compiled_class
from torchmdnet_ext.models.neighbours import connect

SIZE = {"embedding_dimension": 64, "num_rbf": 64, "cutoff_upper": 7.5, "max_z": 100}
COMMON = {
    "precision": 32, "num_heads": 8, "cutoff_lower": 0.0, "rbf_type": "expnorm", "trainable_rbf": False,
    "activation": "silu", "attn_activation": "silu", "distance_influence": "both", "neighbor_embedding": False,
    "vector_cutoff": False, "lmax": 1, "equivariance_invariance_group": "O(3)", "smooth_cutoff": True, "envelope_width": 1.0,
}  # fmt: skip
MODELS = {"et": "smooth-equivariant-transformer", "visnet": "visnet", "tensornet": "smooth-tensornet"}
LAYERS = {"et": (3, 6), "visnet": (3,), "tensornet": (2,)}
HEAVY_ATOMS_OF_CLN025 = (12, 12, 8, 7, 9, 7, 4, 7, 14, 13)  # YYDPETGTWY
FRAMES = 16
KERNELS = 200  # of the bias
MIXERS = ("none", "mlp", "attention")


# ---------------------------------------------------------------------------------------------------------------- systems


def mini_protein():
    """A random tree of atoms of the size of chignolin, without hydrogens."""
    rng = np.random.default_rng(0)
    residue = np.repeat(np.arange(10), HEAVY_ATOMS_OF_CLN025)
    pos = [np.zeros(3)]
    while len(pos) < len(residue):
        step = rng.normal(size=3)
        new = pos[rng.integers(max(0, len(pos) - 4), len(pos))] + 0.145 * step / np.linalg.norm(step)
        if np.linalg.norm(np.array(pos) - new, axis=1).min() > 0.135:
            pos.append(new)
    topology = mdtraj.Topology()
    chain = topology.add_chain()
    residues = [topology.add_residue("ALA", chain, resSeq=k + 1) for k in range(10)]
    for k, kind in enumerate(rng.choice([6, 7, 8], len(residue), p=[0.66, 0.14, 0.20])):
        topology.add_atom(f"X{k}", element.Element.getByAtomicNumber(int(kind)), residues[residue[k]])
    return mdtraj.Trajectory(np.array(pos), topology)


def systems():
    """Name -> (structure, selection, window)."""
    ala2 = mdtraj.load(str(resources.files("openmm_geomgnn") / "data" / "ala2-c7eq.pdb"))
    return {
        "ala2, heavy atoms": (ala2, "not element H", "all"),
        "ala2": (ala2, "all", "all"),
        "mini-protein, windows": (mini_protein(), "not element H", "sequence"),
    }


def prepared(structure, selection, window):
    """Windows, and frames (FRAMES, n, 3) of the selected atoms in angstrom."""
    atoms = select_atoms(structure.topology, selection)
    windows = make_windows(structure.topology, atoms, window)
    noise = np.random.default_rng(0).normal(size=(FRAMES, len(atoms), 3))
    return windows, 10.0 * structure.xyz[0, atoms].astype(np.float64) + 0.03 * noise


# --------------------------------------------------------------------------------------------------------------- networks


def settings_of(kind, layers):
    return {**COMMON, **SIZE, "model": MODELS[kind], "num_layers": layers}


def our_network(kind, layers):
    torch.manual_seed(0)
    return registration.representation_model(settings_of(kind, layers)).requires_grad_(False).eval()


class LiveEdges(torch.nn.Module):
    """Stands in for the neighbour search of PyG's network, with our pairs; differentiable."""

    def __init__(self, pairs, cutoff):
        super().__init__()
        self.pairs, self.cutoff = pairs, cutoff

    def forward(self, pos, _):
        graph = connect(pos, *self.pairs, self.cutoff)
        source, target, direction = graph.directed()
        distance = graph.pair_rows(graph.filter_distances()[:, None])[:, 0]
        return torch.stack([source, target]), distance, direction * distance[:, None]


def published_network(kind, layers, windows):
    """The published network, taking z, pos and batch to its features."""
    size = {"hidden_channels": SIZE["embedding_dimension"], "num_rbf": SIZE["num_rbf"], "max_z": SIZE["max_z"]}
    if kind == "visnet":
        from torch_geometric.nn.models.visnet import ViSNetBlock

        network = ViSNetBlock(lmax=1, vecnorm_type=None, num_heads=8, num_layers=layers, cutoff=SIZE["cutoff_upper"], **size)
        network.distance = LiveEdges(tuple(torch.as_tensor(side) for side in windows.pairs), SIZE["cutoff_upper"])
        return network.requires_grad_(False).eval()
    most = int(np.bincount(windows.graph).max())  # its own limit would drop pairs
    size.update(num_layers=layers, cutoff_lower=0.0, cutoff_upper=SIZE["cutoff_upper"], max_num_neighbors=max(32, most))
    if kind == "et":
        from torchmdnet.models.torchmd_et import TorchMD_ET

        network = TorchMD_ET(num_heads=8, neighbor_embedding=False, **size)
    else:
        from torchmdnet.models.tensornet import TensorNet

        network = TensorNet(**size)
    return network.requires_grad_(False).eval()


# ----------------------------------------------------------------------------------------------------------------- timing


def in_turns(functions, frames, seconds):
    """Name -> processor times in ms of functions of a frame, called in turns: the fast ones more often."""
    cost = {}
    for name, function in functions.items():
        function(frames[0])
        started = time.process_time()
        function(frames[1])
        cost[name] = time.process_time() - started
    calls = {name: int(np.clip(max(cost.values()) / (4 * value), 1, FRAMES)) for name, value in cost.items()}
    times = {name: [] for name in functions}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[min(calls, key=calls.get)]) < 3:
        for name, function in functions.items():
            for frame in frames[: calls[name]]:
                started = time.process_time()
                function(frame)
                times[name].append(1e3 * (time.process_time() - started))
    return times


def shown(times):
    return f"{np.median(times):9.3f} /{min(times):8.3f}"


def ratio(times, reference):
    return f"{np.median(reference) / np.median(times):7.1f}x /{min(reference) / min(times):6.1f}x"


# ------------------------------------------------------------------------------------------------------------- comparisons


def features_and_gradient(network, windows, frame, cotangents, dtype=torch.float32, **options):
    """Gradient (n, 3) of a combination of the features, and those, of a network in PyTorch."""
    pos = torch.tensor(frame, dtype=dtype, requires_grad=True)
    z, rows, batch = (torch.from_numpy(part) for part in (windows.z[windows.rows], windows.rows, windows.graph))
    x, v = network(z, pos[rows], batch, **options)[:2]
    features = (x,) if v is None else (x, v[:, :3])  # TensorNet as published has no vectors
    (gradient,) = torch.autograd.grad(features, pos, [g.to(x) for g in cotangents[: len(features)]])
    return gradient.numpy(), *(feature.detach().numpy() for feature in features)


def compare_encoder(kind, layers, name, system, seconds):
    network = our_network(kind, layers)
    windows, frames = prepared(*system)
    published = published_network(kind, layers, windows)
    pairs = tuple(torch.as_tensor(side) for side in windows.pairs)
    generator = torch.Generator().manual_seed(0)
    shapes = (len(windows.rows), SIZE["embedding_dimension"]), (len(windows.rows), 3, SIZE["embedding_dimension"])
    cotangents = [torch.randn(*shape, generator=generator) for shape in shapes]
    functions = {
        "published": lambda frame: features_and_gradient(published, windows, frame, cotangents),
        "plain": lambda frame: features_and_gradient(network, windows, frame, cotangents, pairs=pairs),
    }
    kernels, errors = compiled_class(network), "  no compiled kernels"
    if kernels is not None and kernels.supports(network) is None:
        engine = kernels(network, windows.z[windows.rows], windows.pairs, rows=windows.rows)

        def compiled(frame):
            x, v, ticket = engine.forward(frame)
            return engine.vjp(frame, *(g.numpy() for g in cotangents), ticket), x, v

        functions["compiled"] = compiled
        double = copy.deepcopy(network).double()
        exact = features_and_gradient(double, windows, frames[0], cotangents, torch.float64, pairs=pairs)
        found = compiled(frames[0])
        value = max(np.abs(found[k] - exact[k]).max() / np.abs(exact[k]).max() for k in (1, 2))
        errors = f"{value:9.1e}{np.linalg.norm(found[0] - exact[0]) / np.linalg.norm(exact[0]):10.1e}"
    times = in_turns(functions, frames, seconds)
    ours = times.get("compiled", times["plain"])
    print(
        f"{f'{kind}, {layers} layers, {name}':38s}{len(windows.rows):5d}{shown(times['published'])}{shown(times['plain'])}"
        f"{shown(ours)}{ratio(ours, times['published'])}{errors}",
        flush=True,
    )


def random_cv(structure, selection, window, mixer):
    settings = settings_of("et", 3)
    encoder = Encoder(our_network("et", 3), settings, {}, "random")
    featurization = Featurization(structure.topology, TokenSpec(selection=selection, window=window), encoder)
    torch.manual_seed(0)
    mixer = make_mixer(mixer, featurization.windows.n_tokens, SIZE["embedding_dimension"])
    generator = np.random.default_rng(0)
    projection = generator.normal(size=(mixer.out_features, 2)) / np.sqrt(mixer.out_features)
    koopman = np.zeros(mixer.out_features), projection, np.ones(2)
    return CollectiveVariable(encoder, mixer, *koopman, featurization.table, spec=featurization.spec)


def compare_cv(name, system, mixer, seconds):
    _, frames = prepared(*system)
    bound = random_cv(*system, mixer).bind(system[0].topology)
    values = np.array([bound.value_and_vjp(frame)[0] for frame in frames])
    spread = values.std(0) + 1e-6
    opes = OPES(40, 500, sigma=tuple(0.3 * spread), compression_threshold=0)
    biased = Evaluation(None, bias=opes, bound=bound)
    for k in range(KERNELS):
        biased.state = opes.update(biased.state, values[k % FRAMES] + 0.5 * spread * np.sin([k, 2.0 * k]))
    engine, weights = bound._engine, np.array([0.7, -0.4])
    cotangents = [np.ones_like(feature) for feature in engine.features_and_vjp(frames[0])[:2]]
    times = in_turns(
        {
            "encoder": lambda frame: engine.features_and_vjp(frame[0])[2](*cotangents),
            "CV": lambda frame: bound.value_and_vjp(frame[0])[1](weights),
            "CV and bias": lambda frame: biased(frame[1], None, 0),
        },
        list(zip(frames, frames / NM_TO_ANGSTROM, strict=True)),
        seconds,
    )
    ratios = [
        f"{np.median(times[part]) / np.median(times['encoder']):8.2f} /{min(times[part]) / min(times['encoder']):5.2f}"
        for part in ("CV", "CV and bias")
    ]
    print(f"{f'{name}, mixer {mixer}':38s}", *map(shown, times.values()), *ratios, sep="", flush=True)


COMPILE = """
import sys, time
sys.path.insert(0, {folder!r})
import force
network = force.our_network({kind!r}, {layers})
windows, frames = force.prepared(*force.systems()["ala2"])
force.torch.set_num_threads(1)
began, cpu = time.perf_counter(), time.process_time()
engine = force.compiled_class(network)(network, windows.z[windows.rows], windows.pairs, rows=windows.rows)
made = time.process_time()
x, v, ticket = engine.forward(frames[0])
engine.vjp(frames[0], x, v, ticket)
print(f"{{made - cpu:.2f}} {{time.process_time() - made:.2f}} {{time.perf_counter() - began:.2f}}")
"""


def compile_times(kinds):
    print("seconds until the first gradient in a new process: filters tabulated, kernels (processor), all (clock)")
    for kind in kinds:
        if compiled_class(our_network(kind, LAYERS[kind][0])) is None:
            continue
        with tempfile.TemporaryDirectory() as cache:
            program = COMPILE.format(folder=os.path.dirname(os.path.abspath(__file__)), kind=kind, layers=LAYERS[kind][0])
            for state in ("cold", "cached"):
                environment = {**os.environ, "NUMBA_CACHE_DIR": cache}
                done = subprocess.run(
                    [sys.executable, "-c", program], env=environment, check=True, capture_output=True, text=True
                )
                table, kernels, everything = done.stdout.split()[-3:]
                print(f"{kind:12s}{state:8s}{table:>8s}{kernels:>8s}{everything:>8s}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=("encoders", "cv", "compile"), default=("encoders", "cv", "compile"))
    parser.add_argument("--encoders", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--layers", nargs="+", type=int, help="of every encoder; by default those that ship, and 6 of et")
    parser.add_argument("--seconds", type=float, default=4.0, help="for each line")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if "encoders" in arguments.only:
        print("forward + gradient, ms of one processor, median / least; ratio: published / ours")
        print(
            f"{'':38s}{'atoms':>5s}{'published':>19s}{'plain':>19s}{'ours':>19s}{'ratio':>17s}{'value':>9s}{'gradient':>10s}"
        )
        for kind in arguments.encoders:
            for layers in arguments.layers or LAYERS[kind]:
                for name, system in systems().items():
                    compare_encoder(kind, layers, name, system, arguments.seconds)
    if "cv" in arguments.only:
        print(f"\nwhole CV with et, 3 layers, and a bias of {KERNELS} kernels: ms, median / least; ratios to the encoder")
        print(f"{'':38s}{'encoder':>19s}{'CV':>19s}{'CV and bias':>19s}{'CV':>15s}{'CV and bias':>15s}")
        for name, system in systems().items():
            for mixer in MIXERS:
                compare_cv(name, system, mixer, arguments.seconds)
    if "compile" in arguments.only:
        print()
        compile_times(arguments.encoders)


if __name__ == "__main__":
    main()
