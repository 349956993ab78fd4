"""What came out of the runs of benchmarks/multiple_time_steps.py: averages with errors, tables and figures."""

from functools import partial

import numpy as np
from time_steps.runs import INTERVAL, WIDTHS, drift_run, load_chunks
from time_steps.systems import BARRIER, CENTRE, EVERY, KT, SYSTEMS, TEMPERATURE, WELL


def weighted(rows):
    """s and the weights that undo the bias, of any number of chunks."""
    return rows[..., 0].ravel(), np.exp((rows[..., 1].ravel() - rows[..., 1].max()) / KT)


def with_error(function, rows):
    """function(rows) and its standard error, by drawing chunks (the first axis of rows) with replacement."""
    rng = np.random.default_rng(0)
    draws = [function(rows[rng.integers(len(rows), size=len(rows))]) for _ in range(200)]
    # as of independent chunks: n drawn from n scatter less than n of many
    return function(rows), np.std(draws, axis=0) * np.sqrt(len(rows) / max(len(rows) - 1, 1))


def profile(rows, edges):
    """Free energy (bins,) in kJ/mol, of a density that is normalised over the bins; NaN where nothing was seen."""
    s, weights = weighted(rows)
    density = np.histogram(s, edges, weights=weights)[0]
    return -KT * np.log(np.where(density > 0, density, np.nan) / density.sum())


def difference(rows, middle):
    """Free energy of s > middle relative to s < middle, kJ/mol."""
    s, weights = weighted(rows)
    return -KT * np.log(weights[s > middle].sum() / weights[s < middle].sum())


def drift(energies, dof):
    """Of a straight line: its slope, kJ/mol/ns per degree of freedom, and the scatter about it, kJ/mol."""
    times = 1e-3 * INTERVAL * np.arange(len(energies))
    line = np.polyfit(times, energies, 1)
    return line[0] / dof, float(np.std(energies - np.polyval(line, times)))


def print_tables(folder, seeds):
    for name, kind in SYSTEMS.items():
        runs = all_runs(name, folder)
        if not runs:
            continue
        print(f"\n{name}: {len(runs[1])} chunks of {kind.length:g} ps; means and standard errors; K, kJ/mol")
        columns = ("T at a kick", "T between kicks", "inner energy", "free energy difference")
        print("every" + "".join(f"{column:>24s}" for column in columns))
        for every, rows in runs.items():
            shown = [with_error(lambda part, k=k: part[..., k].mean(), rows) for k in (2, 3, 4)]
            shown.append(with_error(partial(difference, middle=kind.middle), rows))
            print(f"{every:5d}" + "".join(f"{value:15.2f} +- {error:5.2f}" for value, error in shown))
    if not drifts_are_there(folder, seeds):
        return
    print("\nlearned CV, static bias, no thermostat: kernels, every, phase per outer step; then, for each run, drift in")
    print("kJ/mol/ns/dof and scatter about it in kJ/mol")
    for widen in WIDTHS:
        for every in EVERY:
            runs = [drift_run(widen, every, seed, folder) for seed in range(seeds)]
            shown = "".join("{:12.3f}{:9.3f}".format(*drift(energies, dof)) for energies, dof, _ in runs)
            print(f"{widen:5d}{every:5d}{runs[0][2]:8.3f}{shown}")


def drifts_are_there(folder, seeds):
    return (folder / f"drift.{WIDTHS[-1]}.{EVERY[-1]}.{seeds - 1}.npz").exists()


def all_runs(name, folder):
    runs = {every: load_chunks(name, every, folder) for every in EVERY}
    # the same number of chunks of each
    n = min(map(len, runs.values()))
    return {every: rows[:n] for every, rows in runs.items()} if n > 1 else {}


def draw_free_energies(folder, path):
    from matplotlib.figure import Figure

    labels = {"double-well": "distance (nm)", "phi": "phi (rad)"}
    found = {name: runs for name in SYSTEMS if (runs := all_runs(name, folder))}
    if not found:
        return
    figure = Figure(figsize=(3.6 * len(found), 4.6), layout="constrained")
    axes = figure.subplots(2, len(found), sharex="col", squeeze=False, height_ratios=(2, 1))
    for (upper, lower), (name, runs) in zip(axes.T, found.items(), strict=True):
        edges = SYSTEMS[name].edges
        centres = 0.5 * (edges[1:] + edges[:-1])
        profiles = {every: with_error(partial(profile, edges=edges), rows) for every, rows in runs.items()}
        reference, its_error = profiles[1]
        lowest = np.nanmin(reference)
        if name == "double-well":
            energy = BARRIER * (((centres - CENTRE) / WELL) ** 2 - 1) ** 2 - 2 * KT * np.log(centres)
            exact = energy + KT * np.log(np.exp(-energy / KT).sum())
            upper.plot(centres, exact - lowest, color="black", linewidth=1, label="exact")
        for k, (every, (F, error)) in enumerate(profiles.items()):
            upper.plot(centres, F - lowest, marker=".", linestyle="none", color=f"C{k}", label=f"every = {every}")
            if every > 1:
                shift = (k - 2) * 0.2 * (centres[1] - centres[0])
                both = np.hypot(error, its_error)
                lower.errorbar(centres + shift, F - reference, both, fmt=".", color=f"C{k}", markersize=4, linewidth=0.8)
        lower.axhline(0, color="black", linewidth=0.8)
        lower.set(xlabel=labels[name], ylim=(-3, 3))
        upper.set_title(name)
        upper.legend(frameon=False, fontsize=8)
    axes[0, 0].set_ylabel("F (kJ/mol)")
    axes[1, 0].set_ylabel("F - F(every = 1)")
    figure.savefig(path, dpi=110)


def draw_temperature_and_drift(folder, path, seeds):
    from matplotlib.figure import Figure

    if not drifts_are_there(folder, seeds):
        return
    figure = Figure(figsize=(10.8, 3.4), layout="constrained")
    left, centre, right = figure.subplots(1, 3)
    for k, name in enumerate(SYSTEMS):
        runs = all_runs(name, folder)
        for column, marker, label in ((2, "v", "at a kick"), (3, "o", "between kicks")):
            if not runs:
                continue
            values = np.array([with_error(lambda part, c=column: part[..., c].mean(), rows) for rows in runs.values()])
            places = np.array(list(runs)) * 1.06 ** (k - 1)
            left.errorbar(places, *values.T, fmt=marker, color=f"C{k}", markersize=5, label=f"{name}, {label}")
    left.axhline(TEMPERATURE, color="black", linewidth=0.8)
    left.set(xscale="log", xlabel="every", ylabel="kinetic temperature (K)", xticks=EVERY, xticklabels=EVERY)
    left.minorticks_off()
    left.legend(frameon=False, fontsize=7)
    for k, every in enumerate(EVERY):
        energies, _, _ = drift_run(2, every, 0, folder)
        times = INTERVAL * np.arange(len(energies))
        centre.plot(times, energies - energies[0], color=f"C{k}", linewidth=0.8, label=f"{every}")
    centre.set(xlabel="time (ps)", ylabel="energy (kJ/mol), no thermostat", ylim=(-5, 30))
    centre.legend(frameon=False, fontsize=8, title="every")
    for k, every in enumerate(EVERY):
        runs = [drift_run(widen, every, 0, folder) for widen in WIDTHS]
        # what a run of this length can tell from none is about 0.1
        drifts = [max(drift(energies, dof)[0], 0.1) for energies, dof, _ in runs]
        right.plot([phase for *_, phase in runs], drifts, marker="o", color=f"C{k}", markersize=4, label=f"{every}")
    right.axvline(0.5, color="black", linewidth=0.8)
    right.set(xscale="log", yscale="log", xlabel="phase of the bias per outer step", ylabel="drift (kJ/mol/ns/dof), or less")
    right.legend(frameon=False, fontsize=8, title="every")
    figure.savefig(path, dpi=110)
