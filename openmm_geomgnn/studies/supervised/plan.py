"""The networks of a study of QM9's targets, as settings of TorchMD-Net's trainer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from openmm_geomgnn.studies.supervised.qm9 import Target, find_target
from openmm_geomgnn.studies.supervised.splits import HeldOut, hold_out, training_set
from openmm_geomgnn.studies.training.ways import DEFAULTS, WAYS, epochs_of, settings_of_way, short_name, why_not
from torchmdnet_ext.datasets.labelled import LabelledStore

NOISE = {"position_noise_scale": 0.05, "denoising_weight": 0.1}  # angstrom; of noisy nodes, where a study says nothing


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
        return epochs_of(size, self.epochs, self.most_seen)


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


def _network(study: Study, root: Path, target: Target, point: tuple[str, int, str, str, int]) -> Network:
    split, size, encoder, way, seed = point
    noise = {**NOISE, **{name: study.training[name] for name in NOISE if name in study.training}}
    common = {name: value for name, value in study.training.items() if name not in NOISE}
    settings = {
        **DEFAULTS, **common, **(noise if WAYS[way].noisy else {}), **study.training_of.get(way, {}),
        **settings_of_way(way, encoder), "seed": seed, "num_epochs": study.epochs_of(size),
        "dataset": "LabelledMolecules", "dataset_root": str(root),
        "dataset_arg": {"label": target.name, "references": study.references if target.references else "stored"},
        "output_model": target.head, "reduce_op": target.reduce, "standardize": True,
        # null, as the trainer adds the references to what an earlier session left there
        "prior_model": None, "remove_ref_energy": target.references,
    }  # fmt: skip
    stem = short_name(encoder)
    name = f"{target.symbol}-{split}-{size}-{stem}-{way}-seed{seed}"
    return Network(name, target, split, size, stem, way, seed, settings, why_not(settings))
