"""What TorchMD-Net's trainer would make of its settings: the network and its size, the conformers, the time of a step."""

from __future__ import annotations

import io
import tempfile
import time
from argparse import Namespace
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.units import did_you_mean


@dataclass(frozen=True)
class TrainingData:
    """The conformers of settings, and how the trainer would split them.

    Attributes
    ----------
    dataset : torch dataset
    train, val, test : int arrays
        Indices of conformers.
    sources : list of str
        Names of the sources, none where the dataset does not know them.
    source : (M,) array
        The source of each conformer, as an index into `sources`.
    """

    dataset: Any
    train: np.ndarray
    val: np.ndarray
    test: np.ndarray
    sources: Sequence[str]
    source: np.ndarray


def complete(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of `torchmd-train` with its defaults.

    Raises GeomGNNError for one that it does not know, and for a model that it does not know.
    """
    known, models = _known()
    for name in settings:
        if name not in known:
            guess = did_you_mean(name, known)
            raise GeomGNNError(f"torchmd-train has no setting '{name}'.{guess} Known: {', '.join(known)}.")
    full = {**known, **settings}
    if full["model"] not in models:
        guess = did_you_mean(full["model"], models)
        raise GeomGNNError(f"torchmd-train has no model '{full['model']}'.{guess} Known: {', '.join(models)}.")
    if full["inference_batch_size"] is None:
        full["inference_batch_size"] = full["batch_size"]
    return full


@cache
def _known() -> tuple[dict[str, Any], tuple[str, ...]]:
    """Defaults of all settings of the trainer, and the names of its models."""
    from torchmdnet_ext.quiet import start_warp

    start_warp()
    from torchmdnet import models
    from torchmdnet.scripts.train import get_argparse

    return vars(get_argparse().parse_args([])), tuple(models.__all_models__)


def build(settings: Mapping[str, Any]) -> Any:
    """The network that `torchmd-train` would train, with random weights; the generators of random numbers stay as they are.

    Raises GeomGNNError with the reason if it cannot be built.
    """
    args = complete(settings)  # which starts Warp quietly
    import torch
    from torchmdnet.models.model import create_model

    try:
        with torch.random.fork_rng(devices=[]):
            return create_model(args)
    except Exception as error:  # networks check their settings in all kinds of ways
        raise GeomGNNError(f"it cannot be built: {type(error).__name__}: {' '.join(str(error).split())}") from error


def count_parameters(settings: Mapping[str, Any]) -> int:
    """Number of trainable parameters of the network and its head, embedding of the elements included."""
    return sum(p.numel() for p in build(settings).parameters() if p.requires_grad)


def read_data(settings: Mapping[str, Any]) -> TrainingData:
    """Open the conformers of settings, split as the trainer splits them; nothing is left on disk.

    Raises GeomGNNError if the trainer refuses them.
    """
    args = complete(settings)
    from torchmdnet.data import DataModule

    from torchmdnet_ext.datasets.conformers import Conformers

    with tempfile.TemporaryDirectory() as folder:
        data = DataModule(Namespace(**{**args, "log_dir": folder}))
        try:
            with redirect_stdout(io.StringIO()):
                data.prepare_data()
                data.setup("fit")
        except Exception as error:  # data sets of others raise anything
            raise GeomGNNError(f"The data of the base cannot be used: {error}") from error
    conformers = getattr(data.dataset, "clean", data.dataset)
    known = isinstance(conformers, Conformers)
    return TrainingData(
        data.dataset,
        data.idx_train.numpy(),
        data.idx_val.numpy(),
        data.idx_test.numpy(),
        conformers.sources if known else (),
        conformers.source.numpy() if known else np.zeros(0, np.uint8),
    )


def step_seconds(settings: Mapping[str, Any], data: TrainingData) -> float:
    """Measure a step of the optimiser on one batch, in this process and without workers that load data."""
    import torch
    from torch_geometric.data import Batch

    args = complete(settings)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    network: Any = build(settings).to(device)
    optimiser = torch.optim.AdamW(network.parameters())
    chosen = data.train[: args["batch_size"]]
    spent = []
    with torch.random.fork_rng():
        for _ in range(2):  # kernels are compiled in the first
            began = time.perf_counter()
            batch = Batch.from_data_list([data.dataset[int(i)] for i in chosen]).to(device)
            predicted, forces = network(batch.z, batch.pos, batch=batch.batch)
            loss = torch.nn.functional.mse_loss(predicted, batch.y)
            if args["derivative"]:
                loss = loss + torch.nn.functional.mse_loss(forces, batch.neg_dy)
            loss.backward()
            optimiser.step()
            if device == "cuda":
                torch.cuda.synchronize()
            spent.append(time.perf_counter() - began)
    return spent[-1]
