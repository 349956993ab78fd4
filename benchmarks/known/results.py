"""States, free energies and crossings of a `Sampled`."""

import numpy as np
from known.biases import KT
from known.molecules import PERIOD, divided
from known.sampling import PACE

from openmm_geomgnn.analysis.crossings import core_crossings
from openmm_geomgnn.analysis.free_energy import delta_F, free_energy_1d, kish_size, log_weights
from openmm_geomgnn.analysis.intervals import within

BINS = 72


def evaluate(known, sampled, discard):
    """All results as a dict for JSON. discard: ps at the start, when the bias grows; crossings are counted there, too."""
    first = round(discard / PACE)
    angles, weights = sampled.angles[first:], log_weights(sampled.energies[first:], KT)[0]
    results = {
        "structure": known.structure.name,
        "torsions": list(known.torsions),
        "barrier": known.barrier,
        "nanoseconds": len(sampled.angles) * PACE / 1000,
        "discarded_ns": discard / 1000,
        "temperature": float(sampled.temperatures[first:].mean()),
        "effective_frames": kish_size(weights),
        "wall_seconds": sampled.seconds,
        "crossings_per_ns": crossings(known, sampled.angles),
        "free_energy": {name: _profile(angles[:, k], weights) for k, name in enumerate(known.torsions)},
    }
    sides = divided(known.torsions)
    inside = {known.torsions[k]: within(angles[:, k], sides[k].inside, PERIOD) for k in sides}
    results["delta_F"] = {name: _difference(~plus, plus, weights) for name, plus in inside.items()}
    if inside:
        results["states"] = _states(np.array(list(inside.values())).T, weights)
    return results


def crossings(known, angles):
    """Crossings per ns between the cores of each torsion that has some: {name: number}."""
    nanoseconds = len(angles) * PACE / 1000
    sides = divided(known.torsions)
    return {known.torsions[k]: core_crossings(angles[:, k], *sides[k].cores, PERIOD) / nanoseconds for k in sides}


def _profile(angle, weights):
    profile = free_energy_1d(angle, weights, KT, BINS, periodic=True)
    return {"angle": profile.centres[0].tolist(), "value": _plain(profile.values), "error": _plain(profile.error)}


def _difference(without, within, weights):
    """F(+) - F(-) in kJ/mol, its error, and its value in either half."""
    whole, half = delta_F(without, within, weights, KT), len(weights) // 2
    halves = [delta_F(without[part], within[part], weights[part], KT).value for part in (slice(half), slice(half, None))]
    return {"value": _plain(whole.value), "error": _plain(whole.error), "halves": _plain(halves), "note": whole.reason}


def _states(plus, weights):
    """Of every pattern of signs, in the order of the torsions: the population, and F relative to all of the molecule."""
    states = {}
    for number in range(2 ** plus.shape[1]):
        pattern = [bool(number >> k & 1) for k in range(plus.shape[1])]
        here = (plus == pattern).all(axis=1)
        name = "".join("+" if side else "-" for side in pattern)
        states[name] = {"population": float(np.exp(weights[here]).sum() / np.exp(weights).sum())}
        states[name] |= {"frames": int(here.sum()), "free_energy": _difference(~here, here, weights)}
    return states


def _plain(values):
    """For JSON, where what is not known is null."""
    values = np.asarray(values, dtype=float)
    return np.where(np.isfinite(values), values, None).tolist()
