"""The error of a trained network on test molecules."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from openmm_geomgnn.studies.training.predictions import atomic_references, load_network, predictions_on_test

_BATCH = 128


def test_error(folder: Path, settings: dict[str, Any], split: Path) -> float:
    """The mean absolute error over the test molecules of a split, in the unit of the store.

    The predictions are in `test.npz` of the folder: `index` of each entry in the store, its `label` and its `prediction`.

    Raises GeomGNNError if there is no checkpoint of the best epoch.
    """
    known = predictions_on_test(folder, split, partial(_predict, settings))
    return float(np.abs(known["prediction"] - known["label"]).mean())


def _predict(settings: dict[str, Any], checkpoint: Path, test: np.ndarray) -> dict[str, np.ndarray]:
    """Labels and predictions, with the atomic references that the trainer subtracted added again."""
    import torch
    from torch_geometric.data import Batch

    from torchmdnet_ext.datasets.labelled import LabelledMolecules

    network, device = load_network(checkpoint)
    dataset = LabelledMolecules(settings["dataset_root"], **settings["dataset_arg"])
    predictions = []
    with torch.no_grad():
        for start in range(0, len(test), _BATCH):
            batch = Batch.from_data_list([dataset[i] for i in test[start : start + _BATCH]]).to(device)
            predictions.append(network(batch.z, batch.pos, batch=batch.batch)[0][:, 0].double().cpu().numpy())
    prediction = np.concatenate(predictions)
    if settings["remove_ref_energy"]:
        prediction = prediction + dataset.composition()[test] @ atomic_references(network)
    return {"label": dataset.values[test], "prediction": prediction}
