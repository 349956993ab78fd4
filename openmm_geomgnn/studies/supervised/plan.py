"""The networks of a study of QM9's targets, as settings of TorchMD-Net's trainer."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.studies.supervised.qm9 import Target, find_target
from openmm_geomgnn.studies.supervised.splits import HeldOut, hold_out, training_set
from openmm_geomgnn.studies.training import trainer
from torchmdnet_ext import registration
from torchmdnet_ext.datasets.labelled import LabelledStore

# whether a network can be built does not depend on these
_WITHOUT_EFFECT = ("seed", "num_epochs", "dataset", "dataset_root", "dataset_arg")


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
# of the trainer, where a study says nothing; one device, and a checkpoint after each epoch to go on from
DEFAULTS = {"ngpus": 1, "num_workers": 0, "save_interval": 1, "derivative": False, "redirect": False, "precision": 32}
NOISE = {"position_noise_scale": 0.05, "denoising_weight": 0.1}  # angstrom; of noisy nodes, where a study says nothing
# what the study itself sets for every network
OWN = (
    "log_dir", "load_model", "load_weights", "redirect", "seed", "splits", "train_size", "val_size", "test_size", "dataset",
    "dataset_root", "dataset_arg", "encoder", "freeze_encoder", "output_model", "reduce_op", "prior_model",
    "remove_ref_energy", "standardize", "num_epochs",
)  # fmt: skip


@dataclass(frozen=True)
class Study:
    """What is varied.

    Attributes
    ----------
    encoders : sequence of str
        Names or files of encoders, whose settings all networks have.
    targets : dict
        Name of a target -> numbers of training molecules.
    splits, ways : sequences of str
    seeds : sequence of int
        Of weights, of the order of the molecules, and of which molecules are trained on.
    epochs : int
    most_seen : int or None
        Molecules that a network sees over all epochs, at most.
    references : str
        Atomic references of targets that have them, "fitted" or "stored".
    training : dict
        Settings of `torchmd-train`.
    training_of : dict
        Way -> settings that replace those.
    """

    encoders: Sequence[str]
    targets: Mapping[str, Sequence[int]]
    splits: Sequence[str]
    ways: Sequence[str]
    seeds: Sequence[int]
    epochs: int
    most_seen: int | None
    references: str
    training: Mapping[str, Any]
    training_of: Mapping[str, Mapping[str, Any]]

    def epochs_of(self, size: int) -> int:
        """Epochs of a network with so many training molecules."""
        return self.epochs if self.most_seen is None else max(1, min(self.epochs, self.most_seen // size))


@dataclass(frozen=True)
class Network:
    """One training: settings of `torchmd-train`, without `log_dir` and `splits`, and the reason why it cannot be built."""

    name: str
    target: Target
    split: str
    size: int
    encoder: str
    way: str
    seed: int
    settings: dict[str, Any]
    reason: str = ""

    @property
    def split_name(self) -> str:
        """The name of the file of its split."""
        return f"{self.split}-{self.size}-seed{self.seed}"


@dataclass(frozen=True)
class Plan:
    """Networks, what is held out of each split, and the parts of each file of a split by its name."""

    networks: list[Network]
    held_out: dict[str, HeldOut]
    splits: dict[str, dict[str, np.ndarray]]


def plan(study: Study, store: LabelledStore, root: Path, sizes: tuple[int, int, int], seen: np.ndarray) -> Plan:
    """Make the networks of a study.

    Parameters
    ----------
    root : path
        The file of the store.
    sizes : (val, test, seed)
        How much is held out of each split, and the seed of that.
    seen : (M,) bool
        Entries that pre-training has seen; they are never held out.

    Raises
    ------
    GeomGNNError
        If there are too few molecules, an encoder cannot be read, or the trainer does not know a setting. A network that
        cannot be built is no error: its `reason` says why.
    """
    networks = make_networks(study, root)
    val, test, seed = sizes
    held = {kind: hold_out(store, kind, val, test, seed, seen) for kind in study.splits}
    splits = {}
    for network in networks:
        out = held[network.split]
        if network.split_name not in splits:
            train = training_set(out, network.size, network.seed)
            splits[network.split_name] = {"idx_train": train, "idx_val": out.val, "idx_test": out.test}
    return Plan(networks, held, splits)


def make_networks(study: Study, root: Path) -> list[Network]:
    """The networks of a study; seeds vary slowest, so that an unfinished study has all rows of its first seeds."""
    found = []
    for seed in study.seeds:
        for name, sizes in study.targets.items():
            for size in sizes:
                for split in study.splits:
                    for encoder in study.encoders:
                        for way in study.ways:
                            found.append(_network(study, root, find_target(name), (split, size, encoder, way, seed)))
    return found


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


def _network(study: Study, root: Path, target: Target, point: tuple[str, int, str, str, int]) -> Network:
    split, size, encoder, way, seed = point
    how = WAYS[way]
    noise = {**NOISE, **{name: study.training[name] for name in NOISE if name in study.training}}
    common = {name: value for name, value in study.training.items() if name not in NOISE}
    settings = {
        **DEFAULTS, **common, **(noise if how.noisy else {}), **study.training_of.get(way, {}), **encoder_settings(encoder),
        "seed": seed, "num_epochs": study.epochs_of(size),
        "dataset": "LabelledMolecules", "dataset_root": str(root),
        "dataset_arg": {"label": target.name, "references": study.references if target.references else "stored"},
        "output_model": target.head, "reduce_op": target.reduce, "standardize": True,
        # null, as the trainer adds the references to what an earlier session left there
        "prior_model": None, "remove_ref_energy": target.references,
        "encoder": encoder if how.from_encoder else None, "freeze_encoder": how.frozen,
    }  # fmt: skip
    stem = Path(encoder).stem if Path(encoder).suffix else encoder
    name = f"{target.symbol}-{split}-{size}-{stem}-{way}-seed{seed}"
    network = Network(name, target, split, size, stem, way, seed, settings)
    decisive = {key: value for key, value in settings.items() if key not in _WITHOUT_EFFECT}
    return replace(network, reason=_reason(json.dumps(decisive, sort_keys=True)))


@cache
def _reason(settings: str) -> str:
    """Why the network of settings (JSON) cannot be built, or ""."""
    try:
        trainer.build({**json.loads(settings), "remove_ref_energy": False})
    except GeomGNNError as error:
        return str(error)
    return ""
