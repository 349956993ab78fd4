"""The networks of a study of energies and forces, as settings of TorchMD-Net's trainer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.studies.training import ways
from openmm_geomgnn.studies.training.ways import epochs_of, settings_of_way, short_name, why_not

TEMPORAL, HOTTER = "temporal", "hotter"
# what the study itself sets for every network
OWN = (*ways.OWN, "derivative")
# of the trainer, where a study says nothing
DEFAULTS = {**ways.DEFAULTS, "y_weight": 0.05, "neg_dy_weight": 0.95}
_DRAW = 23  # of the random numbers that draw training frames

Parts = Mapping[str, Mapping[str, np.ndarray]]


@dataclass(frozen=True)
class Study:
    """What is varied.

    Attributes
    ----------
    encoders, splits, ways : sequences of str
    sizes : sequence of int
        Numbers of training frames.
    seeds : sequence of int
        Of weights, of the order of the frames, and of which frames are trained on.
    epochs : int
    most_seen : int or None
        Frames that a network sees over all epochs, at most.
    training : dict
        Settings of `torchmd-train`.
    training_of : dict
        Way -> settings that replace those.
    """

    encoders: Sequence[str]
    splits: Sequence[str]
    ways: Sequence[str]
    sizes: Sequence[int]
    seeds: Sequence[int]
    epochs: int
    most_seen: int | None
    training: Mapping[str, Any]
    training_of: Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Network:
    """One training: settings of `torchmd-train`, without `log_dir` and `splits`, and the reason why it cannot be built."""

    name: str
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


def make_networks(study: Study, frames: Path) -> list[Network]:
    """The networks of a study; seeds vary slowest, so that an unfinished study has all rows of its first seeds.

    A network that cannot be built is no error: its `reason` says why. Raises GeomGNNError if an encoder cannot be read or
    the trainer does not know a setting.
    """
    return [
        _network(study, frames, (split, size, encoder, way, seed))
        for seed in study.seeds
        for split in study.splits
        for size in study.sizes
        for encoder in study.encoders
        for way in study.ways
    ]


def _network(study: Study, frames: Path, point: tuple[str, int, str, str, int]) -> Network:
    split, size, encoder, way, seed = point
    settings = {
        **DEFAULTS, **study.training, **study.training_of.get(way, {}), **settings_of_way(way, encoder),
        "seed": seed, "num_epochs": epochs_of(size, study.epochs, study.most_seen),
        "dataset": "ExtendedXYZ", "dataset_root": str(frames), "dataset_arg": None, "derivative": True,
        "output_model": "Scalar", "reduce_op": "sum", "prior_model": None, "remove_ref_energy": True, "standardize": True,
    }  # fmt: skip
    stem = short_name(encoder)
    name = f"{split}-{size}-{stem}-{way}-seed{seed}"
    return Network(name, split, size, stem, way, seed, settings, why_not(settings))


def make_splits(networks: Sequence[Network], parts: Parts) -> dict[str, dict[str, np.ndarray]]:
    """The arrays of the file of each split, {name: {"idx_train", "idx_val", "idx_test": indices}}.

    parts : {set: {"train", "val", "test": indices}}, as `temporal_parts` makes them. The test frames of all splits are those
        of all sets; `hotter` trains on the first set only, and its validation frames are of that.

    Raises GeomGNNError if there are too few frames to train on.
    """
    found = {}
    for network in networks:
        if network.split_name not in found:
            sets = list(parts.values())
            used = sets[:1] if network.split == HOTTER else sets
            pool = np.concatenate([one["train"] for one in used])
            if network.size > len(pool):
                raise GeomGNNError(
                    f"{network.size} frames are to be trained on, but the {network.split} split leaves {len(pool)}. Give "
                    "fewer (sizes), or more frames."
                )
            # smaller ones are part of larger ones
            order = np.random.default_rng([network.seed, _DRAW]).permutation(len(pool))
            found[network.split_name] = {
                "idx_train": np.sort(pool[order[: network.size]]),
                "idx_val": np.concatenate([one["val"] for one in used]),
                "idx_test": np.concatenate([one["test"] for one in sets]),
            }
    return found
