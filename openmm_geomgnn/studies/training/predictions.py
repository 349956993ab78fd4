"""What a trained network says of its test set, by its best checkpoint; computed once, and kept in its folder."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.files import atomic_write
from openmm_geomgnn.studies.training.folder import TRAINING, losses

PREDICTIONS = "test.npz"


def predictions_on_test(
    folder: Path, split: Path, predict: Callable[[Path, np.ndarray], Mapping[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """Arrays about the test set of a split.

    They are written to `test.npz` of the folder, with `index`, the numbers of the test set in the data, and `epoch`, that of
    the smallest validation loss. What is there is only read.

    predict : callable
        Of a checkpoint and indices (T,), which returns the arrays by their names.

    Raises GeomGNNError if there is no checkpoint of that epoch.
    """
    found = losses(folder)
    epoch = min(found, key=lambda one: found[one])
    path = folder / PREDICTIONS
    with np.load(split) as file:
        test = file["idx_test"]
    known = _load(path)
    if known is None or known["epoch"] != epoch or not np.array_equal(known["index"], test):
        known = {"index": test, **predict(_checkpoint(folder, epoch), test), "epoch": np.array(epoch)}
        arrays: dict[str, Any] = known
        with atomic_write(path) as temporary, open(temporary, "wb") as opened:
            np.savez(opened, **arrays)
    return known


def _load(path: Path) -> dict[str, np.ndarray] | None:
    try:
        with np.load(path) as file:
            found = {name: file[name] for name in file.files}
            return found if {"index", "epoch"} <= found.keys() else None
    except Exception:  # NumPy and zipfile raise all kinds of exceptions
        return None


def _checkpoint(folder: Path, epoch: int) -> Path:
    for path in (folder / TRAINING).glob("*.ckpt"):
        match = re.match(r"epoch=(\d+)-", path.name)
        if match and int(match[1]) == epoch:
            return path
    raise GeomGNNError(f"{folder / TRAINING} has no checkpoint of epoch {epoch}, whose validation loss is the smallest.")


def load_network(checkpoint: Path) -> tuple[Any, str]:
    """The network of a checkpoint of `torchmd-train`, as it is evaluated, and the device that it is on."""
    import torch
    from torchmdnet.models.model import create_model

    from torchmdnet_ext.networks import load_torch_file

    content = load_torch_file(checkpoint, "a checkpoint of torchmd-train")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with torch.random.fork_rng(devices=[]):
        network: Any = create_model(dict(content["hyper_parameters"])).eval()
    network.load_state_dict({name.removeprefix("model."): tensor for name, tensor in content["state_dict"].items()})
    return network.to(device), device


def atomic_references(network: Any) -> np.ndarray:
    """What the trainer subtracted from the label for an atom of each atomic number, with `remove_ref_energy: true`."""
    return network.prior_model[-1].initial_atomref[:, 0].double().cpu().numpy()
