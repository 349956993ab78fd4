"""Errors of energies and forces of a trained network, on the test frames of each set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from openmm_geomgnn.studies.training.predictions import atomic_references, load_network, predictions_on_test

_BATCH = 64


@dataclass(frozen=True)
class Errors:
    """Mean absolute errors.

    Attributes
    ----------
    energy, energy_per_atom : float
        Of the energy of a molecule, and of that by its number of atoms, meV.
    relative_energy : float
        The same as `energy` without the median error of all test frames, a constant that no force depends on.
    forces : float
        Of components, meV/angstrom.
    """

    energy: float
    relative_energy: float
    energy_per_atom: float
    forces: float


def test_errors(
    folder: Path, settings: Mapping[str, Any], split: Path, tests: Mapping[str, np.ndarray]
) -> dict[str, Errors]:
    """Errors on the test frames of each set, {set: indices} -> {set: Errors}.

    Labels and predictions are in `test.npz` of the folder: `index` (T,) of each frame, `atoms` (T,), `energy` and
    `predicted_energy` (T,) in eV, `forces` and `predicted_forces` of all their atoms (sum of atoms, 3) in eV/angstrom.

    Raises GeomGNNError if there is no checkpoint of the best epoch.
    """
    known = predictions_on_test(folder, split, partial(_predict, settings))
    return {name: errors(known, np.isin(known["index"], indices)) for name, indices in tests.items()}


def errors(known: Mapping[str, np.ndarray], chosen: np.ndarray) -> Errors:
    """Errors over the frames that are chosen, (T,) bool, of what `test.npz` has."""
    wrong = known["predicted_energy"] - known["energy"]
    energy, relative = np.abs(wrong)[chosen], np.abs(wrong - np.median(wrong))[chosen]
    forces = np.abs(known["predicted_forces"] - known["forces"])[np.repeat(chosen, known["atoms"])]
    found = energy, relative, energy / known["atoms"][chosen], forces
    return Errors(*(float(1000 * one.mean()) for one in found))


def _predict(settings: Mapping[str, Any], checkpoint: Path, test: np.ndarray) -> dict[str, np.ndarray]:
    from torch_geometric.data import Batch

    from torchmdnet_ext.datasets.extended_xyz import ExtendedXYZ

    network, device = load_network(checkpoint)
    dataset = ExtendedXYZ(settings["dataset_root"])
    energies, forces, labels = [], [], []
    for start in range(0, len(test), _BATCH):
        frames = [dataset[i] for i in test[start : start + _BATCH]]
        batch = Batch.from_data_list(frames).to(device)
        y, neg_dy = network(batch.z, batch.pos, batch=batch.batch)
        energies.append(y[:, 0].detach().double().cpu().numpy())
        forces.append(neg_dy.detach().double().cpu().numpy())
        labels += [frame.neg_dy.numpy() for frame in frames]
    return {
        "atoms": np.array([len(one) for one in labels]),
        "energy": dataset.values[test],
        "predicted_energy": np.concatenate(energies) + dataset.composition()[test] @ atomic_references(network),
        "forces": np.concatenate(labels),
        "predicted_forces": np.concatenate(forces),
    }
