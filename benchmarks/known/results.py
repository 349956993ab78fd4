"""States, free energies and crossings of a `Sampled`."""

import numpy as np
from known.biases import KT
from known.molecules import PERIOD, divided

from openmm_geomgnn.analysis.crossings import crossings_per_ns
from openmm_geomgnn.analysis.free_energy import delta_F, free_energy_1d, kish_size, log_weights
from openmm_geomgnn.analysis.intervals import within

BINS = 72


def evaluate(known, sampled, discard):
    """All results as a dict for JSON. discard: ps at the start of each walker, which only crossings are counted in."""
    first = round(discard / sampled.interval)
    angles = [walker[first:] for walker in sampled.angles]
    weights = log_weights([walker[first:] for walker in sampled.energies], KT)
    results = {
        "structure": known.structure.name,
        "torsions": list(known.torsions),
        "nanoseconds": sampled.nanoseconds,
        "discarded_ps": discard,
        "temperature": float(np.concatenate([walker[first:] for walker in sampled.temperatures]).mean()),
        "effective_frames": kish_size(weights),
        "wall_seconds": sampled.seconds,
        "crossings_per_ns": crossings(known, sampled),
        "free_energy": {name: _profile(_column(angles, k), weights) for k, name in enumerate(known.torsions)},
    }
    sides = divided(known.torsions)
    plus = {k: [within(walker[:, k], sides[k].inside, PERIOD) for walker in angles] for k in sides}
    results["delta_F"] = {known.torsions[k]: _difference(here, weights) for k, here in plus.items()}
    if plus:
        results["states"] = _states([np.array(walker).T for walker in zip(*plus.values(), strict=True)], weights)
    return results


def crossings(known, sampled):
    """Crossings per ns between the cores of each torsion that has some: {name: number}."""
    sides, interval = divided(known.torsions), sampled.interval
    columns = {k: (_column(sampled.angles, k), interval, *sides[k].cores, PERIOD) for k in sides}
    return {known.torsions[k]: crossings_per_ns(*column) for k, column in columns.items()}


def _column(angles, k):
    return [walker[:, k] for walker in angles]


def _profile(angle, weights):
    profile = free_energy_1d(angle, weights, KT, BINS, periodic=True)
    return {"angle": profile.centres[0].tolist(), "value": _plain(profile.values), "error": _plain(profile.error)}


def _difference(inside, weights):
    """F(inside) - F(the rest) in kJ/mol, its error, and its value in either half of the walkers."""
    outside = [~walker for walker in inside]
    whole, halves = delta_F(outside, inside, weights, KT), []
    for half in (slice(None, len(weights[0]) // 2), slice(len(weights[0]) // 2, None)):
        parts = ([walker[half] for walker in series] for series in (outside, inside, weights))
        halves.append(delta_F(*parts, KT).value)
    return {"value": _plain(whole.value), "error": _plain(whole.error), "halves": _plain(halves), "note": whole.reason}


def _states(plus, weights):
    """Of every pattern of signs, in the order of the torsions: its population, and F(pattern) - F(the rest)."""
    states, total = {}, sum(np.exp(walker).sum() for walker in weights)
    for number in range(2 ** plus[0].shape[1]):
        pattern = [bool(number >> k & 1) for k in range(plus[0].shape[1])]
        here = [(walker == pattern).all(axis=1) for walker in plus]
        name = "".join("+" if side else "-" for side in pattern)
        weight = sum(np.exp(walker[inside]).sum() for walker, inside in zip(weights, here, strict=True))
        states[name] = {"population": float(weight / total), "frames": int(sum(map(np.count_nonzero, here)))}
        states[name]["free_energy"] = _difference(here, weights)
    return states


def _plain(values):
    """For JSON, where what is not known is null."""
    values = np.asarray(values, dtype=float)
    return np.where(np.isfinite(values), values, None).tolist()
