"""How networks come to their weights, and settings of TorchMD-Net's trainer that follow from an encoder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.studies.training import trainer
from torchmdnet_ext import registration


@dataclass(frozen=True)
class Way:
    """How a network comes to its weights: from the encoder or at random, trained or frozen, with noisy nodes or without."""

    from_encoder: bool = False
    frozen: bool = False
    noisy: bool = False


WAYS = {
    "scratch": Way(),
    "fine-tuned": Way(from_encoder=True),
    "frozen": Way(from_encoder=True, frozen=True),
    "frozen-random": Way(frozen=True),
    "scratch-noisy": Way(noisy=True),
    "fine-tuned-noisy": Way(from_encoder=True, noisy=True),
}
BASELINE = "scratch"
# of the trainer, where a study says nothing; one device, and a checkpoint after each epoch to go on from
DEFAULTS = {"ngpus": 1, "num_workers": 0, "save_interval": 1, "derivative": False, "redirect": False, "precision": 32}
# what a study itself sets for every network
OWN = (
    "log_dir", "load_model", "load_weights", "redirect", "seed", "splits", "train_size", "val_size", "test_size", "dataset",
    "dataset_root", "dataset_arg", "encoder", "freeze_encoder", "output_model", "reduce_op", "prior_model",
    "remove_ref_energy", "standardize", "num_epochs",
)  # fmt: skip
# whether a network can be built does not depend on these
_WITHOUT_EFFECT = ("seed", "num_epochs", "dataset", "dataset_root", "dataset_arg")


def epochs_of(size: int, epochs: int, most_seen: int | None) -> int:
    """Epochs of a network with so many training data, if it may see no more than `most_seen` over all of them."""
    return epochs if most_seen is None else max(1, min(epochs, most_seen // size))


def settings_of_way(way: str, encoder: str) -> dict[str, Any]:
    """Settings of `torchmd-train` that build a network of an encoder's settings, and give it its weights.

    Raises GeomGNNError if the encoder cannot be read.
    """
    how = WAYS[way]
    start = {"encoder": encoder if how.from_encoder else None, "freeze_encoder": how.frozen}
    return {**encoder_settings(encoder), **start}


@cache
def encoder_settings(encoder: str) -> dict[str, Any]:
    """Settings of `torchmd-train` that build the network of an encoder. Raises GeomGNNError if it cannot be read."""
    from torchmdnet_ext.quiet import start_warp

    start_warp()
    from torchmdnet_ext.checkpoints import read_pretrained
    from torchmdnet_ext.transfer import encoder_file

    try:
        settings = read_pretrained(encoder_file(encoder)).settings
    except ValueError as error:
        raise GeomGNNError(f"The encoder {encoder} cannot be used: {error}") from error
    settings = {**registration.OWN_DEFAULTS, **settings}
    names = ("model", *registration.own_settings(settings["model"]))
    return {name: settings[name] for name in names if name in settings}


def short_name(encoder: str) -> str:
    """The name of an encoder without folder and ending."""
    return Path(encoder).stem if Path(encoder).suffix else encoder


def why_not(settings: Mapping[str, Any]) -> str:
    """Why the network of settings cannot be built, or ""."""
    decisive = {name: value for name, value in settings.items() if name not in _WITHOUT_EFFECT}
    return _why_not(json.dumps({**decisive, "remove_ref_energy": False}, sort_keys=True))


@cache
def _why_not(settings: str) -> str:
    try:
        trainer.build(json.loads(settings))
    except GeomGNNError as error:
        return str(error)
    return ""
