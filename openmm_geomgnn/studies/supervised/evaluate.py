"""The error of a trained network on test molecules, by its best checkpoint."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.files import atomic_write
from openmm_geomgnn.studies.training.folder import TRAINING, losses

PREDICTIONS = "test.npz"
_BATCH = 128


def test_error(folder: Path, settings: dict[str, Any], split: Path) -> float:
    """The mean absolute error over the test molecules of a split, in the unit of the store.

    The predictions are written to `test.npz` of the folder: `index` of each entry in the store, its `label` and its
    `prediction`, and the `epoch` of the checkpoint, that of the smallest validation loss. What is there is only read.

    Raises GeomGNNError if there is no checkpoint of that epoch.
    """
    found = losses(folder)
    epoch = min(found, key=lambda one: found[one])
    path = folder / PREDICTIONS
    with np.load(split) as file:
        test = file["idx_test"]
    known = _load(path)
    if known is None or known["epoch"] != epoch or not np.array_equal(known["index"], test):
        label, prediction = _predict(_checkpoint(folder, epoch), settings, test)
        known = {"index": test, "label": label, "prediction": prediction, "epoch": np.array(epoch)}
        with atomic_write(path) as temporary, open(temporary, "wb") as file:
            np.savez(file, **known)
    return float(np.abs(known["prediction"] - known["label"]).mean())


def _load(path: Path) -> dict[str, Any] | None:
    try:
        with np.load(path) as file:
            return {name: file[name] for name in ("index", "label", "prediction", "epoch")}
    except Exception:  # NumPy and zipfile raise all kinds of exceptions
        return None


def _checkpoint(folder: Path, epoch: int) -> Path:
    for path in (folder / TRAINING).glob("*.ckpt"):
        match = re.match(r"epoch=(\d+)-", path.name)
        if match and int(match[1]) == epoch:
            return path
    raise GeomGNNError(f"{folder / TRAINING} has no checkpoint of epoch {epoch}, whose validation loss is the smallest.")


def _predict(checkpoint: Path, settings: dict[str, Any], test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Labels and predictions, with the atomic references that the trainer subtracted added again."""
    import torch
    from torch_geometric.data import Batch
    from torchmdnet.models.model import create_model

    from torchmdnet_ext.datasets.labelled import LabelledMolecules
    from torchmdnet_ext.networks import load_torch_file

    content = load_torch_file(checkpoint, "a checkpoint of torchmd-train")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with torch.random.fork_rng(devices=[]):
        network: Any = create_model(dict(content["hyper_parameters"])).eval()
    network.load_state_dict({name.removeprefix("model."): tensor for name, tensor in content["state_dict"].items()})
    network.to(device)
    table = network.prior_model[-1].initial_atomref[:, 0].double().cpu().numpy() if settings["remove_ref_energy"] else None
    dataset = LabelledMolecules(settings["dataset_root"], **settings["dataset_arg"])
    predictions = []
    with torch.no_grad():
        for start in range(0, len(test), _BATCH):
            batch = Batch.from_data_list([dataset[i] for i in test[start : start + _BATCH]]).to(device)
            predictions.append(network(batch.z, batch.pos, batch=batch.batch)[0][:, 0].double().cpu().numpy())
    prediction = np.concatenate(predictions)
    if table is not None:
        prediction = prediction + dataset.composition()[test] @ table
    return dataset.values[test], prediction
