"""What a biased simulation costs next to an unbiased one, all in: CV, bias, integrator and what a walker does besides.

    python benchmarks/md.py                             # alanine dipeptide, and chignolin where PeptideBuilder is installed
    python benchmarks/md.py --chignolin FILE.pdb        # with hydrogens
    python benchmarks/md.py --only chignolin --rounds 20 --encoder et-64
    python benchmarks/md.py --platform CUDA --engines numba cuda       # on a GPU, by the clock on the wall

amber14 and OBC2 implicit solvent at 300 K, 2 fs; the CV is an encoder, by default et-64, on heavy atoms (chignolin: one
window for each residue and its neighbours) with a linear projection. Its weights are random: that costs as much as a fitted
one. OPES with a deposition in every round acts on it, every 1, 2, 4 or 8 steps. One thread. Unbiased and biased walkers are
advanced in turns in one process; times are of the processor, so that other programs disturb them less. Ratios are those of
the medians, and of the least times, which other programs disturb least.
"""

import argparse
import itertools
import os
import tempfile
import time
from importlib import resources
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import mdtraj
import numpy as np
import torch
from embedding import chignolin

from openmm_geomgnn.cv.mixers import make_mixer
from openmm_geomgnn.cv.network import CollectiveVariable
from openmm_geomgnn.representation.encoder import Encoder
from openmm_geomgnn.representation.featurization import Featurization
from openmm_geomgnn.representation.selection import select_atoms
from openmm_geomgnn.representation.spec import TokenSpec
from openmm_geomgnn.sampling.opes.method import OPES
from openmm_geomgnn.sampling.systems import SystemSettings
from openmm_geomgnn.sampling.walker import Walker
from openmm_geomgnn.sampling.walker_spec import WalkerSpec

EVERY = (1, 2, 4, 8)
COLVAR, FRAME = 96, 480  # time steps between rows of COLVAR and between frames
SLOW, FAST = SystemSettings(native_obc=False), SystemSettings()
# molecule: of what is compared, a name, the system, the platform, the time steps of a round, the ratio aimed at
CASES = {
    "ala2": (
        ("alanine dipeptide", FAST, "CPU", 960, 5.0),
        ("alanine dipeptide, Reference platform", FAST, "Reference", 960, None),
    ),
    "chignolin": (
        ("chignolin, OBC2 as in OpenMM's implicit/obc2.xml", SLOW, "CPU", 96, 1.5),
        ("chignolin, the same function by GBSAOBCForce, our default", FAST, "CPU", 192, None),
    ),
}
WINDOWS = {"ala2": "all", "chignolin": "sequence"}
AIMED_EVERY = 4


def random_cv(structure, encoder, window):
    """A CV with random weights, whose values vary by about 1 when atoms move by 0.1 angstrom."""
    topology = structure.topology
    featurization = Featurization(topology, TokenSpec(window=window), encoder)
    atoms = featurization.atoms
    mixer = make_mixer("none", featurization.windows.n_tokens, encoder.hidden_channels)
    rng = np.random.default_rng(0)
    frames = 10.0 * structure.xyz[0, atoms] + 0.1 * rng.normal(size=(50, len(atoms), 3))
    with torch.no_grad():
        chi = mixer(featurization.tokenizer.embed(torch.as_tensor(frames))).double().numpy()
    projection = rng.normal(size=(mixer.out_features, 1))
    projection /= (chi @ projection).std()
    koopman = chi.mean(axis=0), projection, np.ones(1)
    return CollectiveVariable(encoder, mixer, *koopman, featurization.table, spec=featurization.spec)


def cases(molecule, platform):
    """What is measured of a molecule, on its own platforms or on another one."""
    if platform is None:
        return CASES[molecule]
    name, system, _, steps, _ = CASES[molecule][-1]
    return ((name.split(", Reference")[0], system, platform, steps, None),)


def compare(molecule, structure, encoder, folder, rounds, platform, engines):
    pdb, cv = str(folder / f"{molecule}.pdb"), str(folder / f"{molecule}.safetensors")
    structure.save_pdb(pdb)
    random_cv(structure, encoder, WINDOWS[molecule]).save(cv)
    n_heavy = len(select_atoms(structure.topology))
    for name, system, where, steps, aim in cases(molecule, platform):
        print(f"\n{name}: {structure.n_atoms} atoms, {n_heavy} heavy; {where}")
        clock = time.process_time if platform is None else time.perf_counter
        measure({"structure": pdb, "system": system, "platform": where}, cv, steps, aim, rounds, engines, clock)


def measure(common, cv, steps, aim, rounds, engines, clock):
    bias = OPES(barrier=30.0, pace=500, sigma=10.0)
    walkers = {("", 0): Walker(spec(**common))}
    biased = {"cv_path": cv, "bias": bias}
    for engine, every in itertools.product(engines, EVERY):
        walkers[engine, every] = Walker(spec(**common, **biased, every=every, engine=engine))
    states = {key: bias.initial_state(dimension=1) for key in walkers if key[1]}
    for key, walker in walkers.items():
        walker.start()
        walker.advance(states.get(key), 1)

    times = {key: [] for key in walkers}
    for _ in range(rounds):
        for (engine, every), walker in walkers.items():
            key = engine, every
            started = clock()
            report = walker.advance(states.get(key), steps // (every or 1))
            if every:
                states[key] = bias.update(states[key], report.s)
            times[key].append(1e3 * (clock() - started) / steps)
    median, least = ({key: f(values) for key, values in times.items()} for f in (np.median, min))
    print(f"{'':20s}{'ms per 2 fs step, median / least':>34s}{'ratio, median / least':>26s}")
    unbiased = "", 0
    for key in times:
        ratios = f"{median[key] / median[unbiased]:16.2f} /{least[key] / least[unbiased]:7.2f}x" if key != unbiased else ""
        label = "unbiased" if key == unbiased else f"every = {key[1]}" + (f", {key[0]}" if len(engines) > 1 else "")
        print(f"{label:20s}{median[key]:24.3f} /{least[key]:8.3f}{ratios}")
    if aim is not None:
        met = "met" if least[engines[0], AIMED_EVERY] <= aim * least[unbiased] else "missed"
        print(f"aim: at most {aim:g}x at every = {AIMED_EVERY}: {met}")


def spec(every=1, **settings):
    outer = {"colvar_interval": COLVAR // every, "frame_interval": FRAME // every}
    return WalkerSpec(every=every, equilibration=0.2, **outer, **settings)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chignolin", help="structure file with hydrogens; without it PeptideBuilder makes a helix")
    parser.add_argument("--encoder", default="et-64", help="name or file")
    parser.add_argument("--only", choices=tuple(CASES))
    parser.add_argument("--platform", help="of OpenMM, such as CUDA; times are then those of the clock on the wall")
    parser.add_argument("--engines", nargs="+", default=["auto"], help="numba, eager, cuda")
    parser.add_argument("--rounds", type=int, default=10)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    encoder = Encoder.load(arguments.encoder)
    ala2 = mdtraj.load(str(resources.files("openmm_geomgnn") / "data" / "ala2-c7eq.pdb"))
    with tempfile.TemporaryDirectory() as folder:
        if arguments.only != "chignolin":
            compare("ala2", ala2, encoder, Path(folder), arguments.rounds, arguments.platform, arguments.engines)
        if arguments.only == "ala2":
            return
        try:
            structure = mdtraj.load(arguments.chignolin) if arguments.chignolin else chignolin()
        except ImportError as error:
            print(f'\nno chignolin: {error}; pip install "openmm-geomgnn[data]", or give --chignolin FILE.pdb')
            return
        compare("chignolin", structure, encoder, Path(folder), arguments.rounds, arguments.platform, arguments.engines)


if __name__ == "__main__":
    main()
