"""The trainings of a study of structures, each a plain `torchmd-train`, and the accuracies of what they trained."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch_geometric.loader import DataLoader

from openmm_geomgnn.cv.score_rows import RANDOM
from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.studies.structures.sources import TEST, TRAIN, VALIDATION
from openmm_geomgnn.studies.training.folder import TRAINING
from torchmdnet_ext.datasets.structures import Structures
from torchmdnet_ext.models.residues import Residues, make_network
from torchmdnet_ext.networks import load_torch_file

NO_TOKENS = "none"
GRAPHS = {"graph": "AlphaCarbonNetwork", "gvp": "GVPNetwork"}
_LOSS = "val_total_cross_entropy_loss"
_MODULE = "openmm_geomgnn.studies.structures.networks"
# what `torchmd-train` needs for classes, and what suits a few hundred structures
FIXED = {
    "dataset": "Structures",
    "model": "residues",
    "train_loss": "cross_entropy_loss",
    "checkpoint_monitor": _LOSS,
    "early_stopping_monitor": _LOSS,
    "derivative": False,
    "save_interval": 1,
    "test_interval": -1,
}
DEFAULTS = {
    "num_epochs": 40,
    "batch_size": 32,
    "inference_batch_size": 128,
    "lr": 1e-3,
    "lr_patience": 5,
    "lr_factor": 0.5,
    "lr_min": 1e-6,
    "weight_decay": 1e-4,
    "early_stopping_patience": 15,
    "gradient_clipping": 10.0,
    "num_workers": 0,
    "ngpus": 1,
    "redirect": False,
}
_BATCH = 128


@dataclass(frozen=True)
class Training:
    """One network to train.

    Attributes
    ----------
    network : str
        "graph", "gvp" or the name of a mixer.
    tokens : str
        "none", the name of the encoder, or "random weights".
    seed : int
        Of the training, and of random weights.
    file : Path
        The structures.
    settings : dict
        Of `torchmd-train`, but for its folders.
    """

    network: str
    tokens: str
    seed: int
    file: Path
    settings: dict[str, Any]

    @property
    def name(self) -> str:
        """The name of its folder."""
        return f"{self.network}.{self.tokens}.{self.seed}".replace(" ", "-")


def plan_trainings(
    networks: Sequence[str],
    network_settings: Mapping[str, Mapping[str, Any]],
    encoder: str,
    files: Mapping[tuple[str, int], Path],
    seeds: Sequence[int],
    training: Mapping[str, Any],
    classes: int,
    channels: int,
) -> list[Training]:
    """All trainings of a study: every network without tokens, with those of the encoder, and with those of random weights.

    Mixers, which see nothing but tokens, are not trained without. A training with seed s on tokens of random weights has
    those of the network of seed s.

    Parameters
    ----------
    networks : list of str
        "graph", "gvp" or names of mixers.
    network_settings : dict of dict
        Of networks, by name.
    encoder : str
        The name of the encoder in `files`.
    files : dict of path
        Structures, by (encoder, 0) and ("random weights", seed).
    training : dict
        Settings of `torchmd-train` that replace the defaults.
    classes, channels : int
        Of the structures, and H of their tokens.
    """
    found = []
    for name in networks:
        for tokens in (NO_TOKENS, encoder, RANDOM):
            if tokens == NO_TOKENS and name not in GRAPHS:
                continue
            for seed in seeds:
                file = files[RANDOM, seed] if tokens == RANDOM else files[encoder, 0]
                arguments = {"classes": classes, **network_settings.get(name, {})}
                if tokens != NO_TOKENS:
                    arguments["token_channels"] = channels
                if name not in GRAPHS:
                    arguments["mixer"] = name
                settings = {
                    **DEFAULTS,
                    **training,
                    **FIXED,
                    "seed": seed,
                    "dataset_root": str(file),
                    "dataset_arg": {"tokens": tokens != NO_TOKENS},
                    "network": f"{_MODULE}:{GRAPHS.get(name, 'MixerNetwork')}",
                    "network_arg": arguments,
                }
                found.append(Training(name, tokens, seed, file, settings))
    return found


def split_of(structures: Structures) -> dict[str, np.ndarray]:
    """The split of structures as `torchmd-train` reads it; all that is tested on together.

    Raises GeomGNNError if there is nothing to train on, to validate or to test on, or a class is not trained on.
    """
    parts = np.array(structures.parts)
    found = {
        "idx_train": np.flatnonzero(parts == TRAIN),
        "idx_val": np.flatnonzero(parts == VALIDATION),
        "idx_test": np.flatnonzero(np.char.startswith(parts, TEST)),
    }
    empty = [name.removeprefix("idx_") for name, rows in found.items() if not len(rows)]
    if empty:
        raise GeomGNNError(f"No structure is of part {empty[0]}: give structures for training, validation and tests.")
    known = set(structures.labels[found["idx_train"]].tolist())
    missing = [name for k, name in enumerate(structures.classes) if k not in known]
    if missing:
        raise GeomGNNError(f"No structure of class {missing[0]} is for training, so it cannot be learned.")
    return found


def best_checkpoint(folder: Path) -> Path:
    """The checkpoint of a training with the smallest loss of validation.

    Raises GeomGNNError if there is none.
    """
    found = {
        path: float(match[1])
        for path in sorted((folder / TRAINING).glob("*.ckpt"))
        if (match := re.search(r"val_loss=([\d.]+\d)", path.name))
    }
    if not found:
        raise GeomGNNError(f"{folder} has no checkpoint: its training did not finish an epoch.")
    return min(found, key=lambda path: found[path])


def load_classifier(checkpoint: Path) -> Residues:
    """The network in a checkpoint of `model: residues`, ready to be used.

    Raises ValueError if it cannot be read or made.
    """
    content = load_torch_file(checkpoint, "a checkpoint of torchmd-train")
    settings = content["hyper_parameters"]
    network = Residues(make_network(settings["network"], settings["network_arg"]))
    network.load_state_dict({name.removeprefix("model."): tensor for name, tensor in content["state_dict"].items()})
    return network.requires_grad_(False).eval()


def predict(classifier: Residues, structures: Structures, rows: np.ndarray) -> np.ndarray:
    """The class (n,) that a network gives each of the structures in `rows`."""
    loader = DataLoader([structures[k] for k in rows.tolist()], batch_size=_BATCH)
    with torch.no_grad():
        scores = [classifier(one.z, one.pos, one.batch, extra_args={"tokens": one.get("tokens")})[0] for one in loader]
    return torch.cat(scores).argmax(1).numpy()


def confusions(classifier: Residues, structures: Structures) -> dict[str, np.ndarray]:
    """How many structures of each class are given which, for each part that is tested on.

    Returns
    -------
    dict of (classes, classes) int ndarray
        By the name of the part; rows are the true classes, columns those that the network gives.
    """
    parts, number = np.array(structures.parts), len(structures.classes)
    found = {}
    for part in sorted(set(structures.parts)):
        if part.startswith(TEST):
            rows = np.flatnonzero(parts == part)
            found[part] = np.zeros((number, number), dtype=np.int64)
            np.add.at(found[part], (structures.labels[rows].numpy(), predict(classifier, structures, rows)), 1)
    return found


def chance(structures: Structures, part: str) -> float:
    """The accuracy of always naming the class that most structures for training have."""
    parts = np.array(structures.parts)
    common = np.bincount(structures.labels[parts == TRAIN].numpy()).argmax()
    return float((structures.labels[parts == part].numpy() == common).mean())
