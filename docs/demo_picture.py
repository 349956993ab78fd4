"""The picture of the landing page, from a finished demo: python docs/demo_picture.py runs/demo docs/demo.png"""

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import mdtraj
import numpy as np

KT = 8.314462618e-3 * 300  # kJ/mol
DISCARDED = 200.0  # ps, as in the protocol
COLOURS = ("#0f6b68", "#d1722f")


def torsions(folder, name):
    trajectory = mdtraj.load(str(folder / name), top=str(folder / "topology.pdb"))
    return np.degrees([mdtraj.compute_phi(trajectory)[1][:, 0], mdtraj.compute_psi(trajectory)[1][:, 0]])


def rows_of_frames(folder, walker, frames):
    """Time, CV and bias of each saved frame of a walker; there is a frame at every n-th row of COLVAR."""
    with open(folder / "COLVAR", encoding="utf-8") as file:
        fields = file.readline().split()[2:]  # after "#! FIELDS"
    columns = [fields.index(name) for name in ("time", "walker", "cv.1", "opes.bias")]
    time, walkers, cv, bias = np.loadtxt(folder / "COLVAR", usecols=columns).T
    rows = np.flatnonzero(walkers == walker)
    every = len(rows) // frames
    rows = rows[every - 1 :: every][:frames]
    return time[rows], cv[rows], bias[rows]


def main(folder, output):
    folder = Path(folder)
    biased = [torsions(folder, f"trajectory.{i}.dcd") for i in (0, 1)]
    free = [torsions(folder, f"comparison/trajectory.{1000 + i}.dcd") for i in (0, 1)]
    rows = [rows_of_frames(folder, i, angles.shape[1]) for i, angles in enumerate(biased)]

    plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    figure = plt.figure(figsize=(10, 3.3), layout="constrained")
    grid = figure.add_gridspec(2, 3, width_ratios=(1.25, 1, 1))
    for k, (runs, title) in enumerate(((free, "without a bias"), (biased, "with the bias on the learned CV"))):
        axes = figure.add_subplot(grid[k, 0])
        for (phi, _), colour in zip(runs, COLOURS, strict=True):
            axes.plot(np.linspace(0, 1000, len(phi)), phi, ".", ms=1.4, color=colour)
        axes.set(ylim=(-180, 180), yticks=(-180, 0, 180), ylabel="φ (degrees)", xlim=(0, 1000))
        axes.set_title(title, loc="left", fontsize=9)
        axes.tick_params(labelbottom=k == 1)
    axes.set_xlabel("time (ps), two runs")

    (phi, psi), (time, cv, bias) = np.concatenate(biased, axis=1), np.concatenate(rows, axis=1)
    axes = figure.add_subplot(grid[:, 1])
    points = axes.scatter(phi, psi, c=cv, s=3, cmap="cividis", linewidths=0)
    finish(figure, axes, points, "the CV, learned from one structure", "CV")

    kept = time > DISCARDED
    edges = np.linspace(-180, 180, 37)
    weights = np.exp((bias[kept] - bias[kept].max()) / KT)
    density, _, _ = np.histogram2d(phi[kept], psi[kept], bins=[edges, edges], weights=weights)
    with np.errstate(divide="ignore"):
        energy = -KT * np.log(density.T)
    energy -= energy.min()
    axes = figure.add_subplot(grid[:, 2])
    mesh = axes.pcolormesh(edges, edges, np.ma.masked_invalid(energy), cmap="viridis", vmax=35)
    finish(figure, axes, mesh, "the free energy", "F (kJ/mol)")
    figure.savefig(output, dpi=120)


def finish(figure, axes, mappable, title, label):
    axes.set(xlim=(-180, 180), ylim=(-180, 180), xticks=(-180, 0, 180), yticks=(-180, 0, 180), xlabel="φ (degrees)")
    axes.set(ylabel="ψ (degrees)", aspect="equal")
    axes.set_title(title, loc="left", fontsize=9)
    figure.colorbar(mappable, ax=axes, label=label, shrink=0.75)


if __name__ == "__main__":
    main(*sys.argv[1:])
