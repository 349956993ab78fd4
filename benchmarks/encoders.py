"""How good a linear CV the tokens of encoders make: held-out VAMP-2 and, where labels are given, how well it tells states.

    python benchmarks/encoders.py                       # of Ace-Ala3-Nme, simulated for that: shows how it works, no more
    python benchmarks/encoders.py topology.pdb a.dcd b.dcd --interval 1 --lag 10 --lag 50 --components 2 --components 5 \
        --encoder et-64 --encoder other.safetensors
    python benchmarks/encoders.py topology.pdb traj.dcd --interval 500 --lag 500 --labels COLVAR 1 0.2 --encoder et-64

Every encoder is beside networks of its settings with random weights and beside all torsions of the molecule. All are scored
on the same blocks of time that their CV was not fitted to; of several numbers of principal components the best counts, for
all alike. Behind +- stands the standard error over folds, which for a difference is that of the differences from the first
encoder. Random weights are averaged over seeds, whose least and largest score are shown.

AUC: the share of pairs of held-out frames, one of each state, that the first component puts in the order it has in
training. The states are the frames below and above a threshold of a column (from 0) of a text file with a line for each
frame.
"""

import argparse
import os
from dataclasses import replace

os.environ.setdefault("OMP_NUM_THREADS", "1")

import mdtraj
import numpy as np
import openmm
import torch
from sklearn.metrics import roc_auc_score

from openmm_geomgnn.cv.fit_data import featurize, read_positions
from openmm_geomgnn.cv.fit_settings import FitSettings
from openmm_geomgnn.cv.reweighting import weighting
from openmm_geomgnn.cv.score_features import NetworkFeatures, TorsionFeatures
from openmm_geomgnn.cv.score_rows import Features, ScoreGrid, of_segments, score_cases
from openmm_geomgnn.cv.scores import ScoreSettings, make_split
from openmm_geomgnn.koopman import linear_basis
from openmm_geomgnn.representation.encoder import shipped_encoders
from openmm_geomgnn.representation.featurization import Featurization, SelectedAtoms
from openmm_geomgnn.representation.shipped import DATA
from openmm_geomgnn.representation.spec import TokenSpec
from openmm_geomgnn.sampling.systems import SystemSettings, build_system, load_structure
from openmm_geomgnn.unfinished import Unfinished


def simulated(number=2, frames=400, interval=0.5):
    """Short runs at 300 K of the peptide that ships, and the time between their frames in ps."""
    topology, positions = load_structure(DATA / "ala3.pdb")
    system, runs = build_system(topology, SystemSettings()), []
    for seed in range(1, number + 1):
        integrator = openmm.LangevinMiddleIntegrator(300, 1, 0.002)
        integrator.setRandomNumberSeed(seed)
        context = openmm.Context(system, integrator, openmm.Platform.getPlatformByName("Reference"))
        context.setPositions(positions)
        context.setVelocitiesToTemperature(300, seed)
        xyz = []
        for _ in range(frames):
            integrator.step(round(interval / 0.002))
            xyz.append(context.getState(getPositions=True).getPositions(asNumpy=True)._value)
        runs.append(mdtraj.Trajectory(np.array(xyz), mdtraj.Topology.from_openmm(topology)))
    return runs, interval


def sources(trajectories, topology, settings, arguments):
    """Yield (row of the tables, its features of each trajectory); random weights of several seeds have one row."""
    for name in arguments.encoder:
        featurization = featurize(trajectories, topology, replace(settings, encoder=name))
        positions = read_positions(trajectories, featurization)
        same = SelectedAtoms(featurization.topology, featurization.atoms, featurization.table, featurization.molecule)
        for seed in (None, *range(1, arguments.random + 1)):
            encoder = featurization.encoder if seed is None else featurization.encoder.with_random_weights(seed)
            tokens = NetworkFeatures(name, Featurization(same, featurization.spec, encoder), settings, Unfinished())
            yield encoder.name, tokens.features(positions, [], lambda *progress: None).arrays
    yield "torsions", TorsionFeatures(featurization).arrays(positions)


def areas(arrays, labels, split, pca):
    """The area under the curve of the first component in each fold that has both states, for each number of `pca`."""
    found = {k: [] for k in pca}
    for training, held in split.folds:
        seen, truth = of_segments(arrays, training), np.concatenate(of_segments(labels, held))
        if truth.all() or not truth.any():
            continue
        basis = linear_basis(seen, split.lag, None, split.reversible)
        known = np.concatenate(of_segments(labels, training))
        for k in pca:
            projection = basis.solve(1, k).projection[:, 0]
            values, there = (
                np.concatenate([basis.reduce(x) @ projection for x in part]) for part in (of_segments(arrays, held), seen)
            )
            area = roc_auc_score(truth, values)
            found[k].append(area if roc_auc_score(known, there) > 0.5 else 1.0 - area)
    return found


def score(arrays, labels, split, grid):
    """What is measured -> its value in each fold, with the best number of principal components."""
    best = {}
    for scored in score_cases(Features(arrays), grid.cases(), split):
        what = f"VAMP-2, {scored.case.components} components"
        if what not in best or scored.held_out.mean() > best[what].mean():
            best[what] = scored.held_out
    if labels is not None:
        best["AUC of the first component"] = np.array(max(areas(arrays, labels, split, grid.pca).values(), key=np.mean))
    return best


def shown(values):
    return f"{values.mean():.3f} +- {values.std(ddof=1) / np.sqrt(len(values)):.3f}"


def table(title, rows):
    """Print a line for each row. rows: name -> (seeds, folds), the first of which the others are compared with."""
    print(f"\n{title}\n{'':40s}{'held out':>18s}{'less the first':>20s}{'seeds':>20s}")
    first = np.mean(next(iter(rows.values())), axis=0)
    for name, values in rows.items():
        folds, seeds = np.mean(values, axis=0), np.mean(values, axis=1)
        difference = "" if (folds == first).all() else shown(folds - first)
        spread = f"{seeds.min():.3f} to {seeds.max():.3f}" if len(seeds) > 1 else ""
        print(f"{name:40s}{shown(folds):>18s}{difference:>20s}{spread:>20s}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("topology", nargs="?")
    parser.add_argument("trajectories", nargs="*")
    parser.add_argument("--interval", type=float, help="ps between frames")
    parser.add_argument("--lag", type=float, action="append", help="ps; several may be given (default: 5)")
    parser.add_argument("--components", type=int, action="append", help="of the CV; several may be given (default: 2)")
    parser.add_argument("--pca", type=int, action="append", help="principal components, 0 for all (default: 50, 150, 0)")
    parser.add_argument("--window", default="sequence", choices=("all", "sequence", "space"))
    parser.add_argument("--encoder", action="append", help="name or file; several may be given (default: those shipped)")
    parser.add_argument("--random", type=int, default=3, help="networks with random weights of each")
    parser.add_argument("--folds", type=int, default=4)
    parser.add_argument("--labels", nargs=3, metavar=("FILE", "COLUMN", "THRESHOLD"), help="of one trajectory")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.encoder, arguments.lag = arguments.encoder or shipped_encoders(), arguments.lag or [5.0]
    if arguments.topology and not (arguments.trajectories and arguments.interval):
        parser.error("a topology comes with trajectories and --interval")
    if arguments.topology:
        trajectories = [mdtraj.load(file, top=arguments.topology) for file in arguments.trajectories]
    else:
        trajectories, arguments.interval = simulated()
    lengths = [len(part) for part in trajectories]
    labels = None
    if arguments.labels:
        file, column, threshold = arguments.labels
        labels = [np.loadtxt(file)[:, int(column)] < float(threshold)]
        print(f"{labels[0].sum()} of {lengths[0]} frames are below the threshold")
    spec = TokenSpec(window=arguments.window)
    settings = {lag: FitSettings(lag, arguments.interval, softening=0.0, tokens=spec) for lag in arguments.lag}
    grid = ScoreGrid(
        pca=tuple(k or None for k in arguments.pca or (50, 150, 0)),
        softening=(0.0,),
        components=tuple(arguments.components or (2,)),
    )
    scoring, first = ScoreSettings(grid=grid, folds=arguments.folds, hold_out="blocks"), settings[arguments.lag[0]]
    splits = {}
    for lag, one in settings.items():
        splits[lag] = make_split([], lengths, weighting(lengths, one, None, None), one, scoring)
    found = {}
    for name, arrays in sources(trajectories, trajectories[0].topology, first, arguments):
        for lag, split in splits.items():
            for what, folds in score(arrays, labels, split, grid).items():
                found.setdefault((lag, what), {}).setdefault(name, []).append(folds)
    for (lag, what), rows in found.items():
        table(f"{what}, lag {lag:g} ps, window {arguments.window}, {sum(lengths)} frames", rows)


if __name__ == "__main__":
    main()
