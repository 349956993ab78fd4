"""Demands on data beyond those of TorchMD-Net's trainer: molecules held out whole, settings that fit, a validation set."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from torchmdnet_ext.arguments import dataset_arguments
from torchmdnet_ext.datasets.conformers import Conformers
from torchmdnet_ext.datasets.extended_xyz import ExtendedXYZ
from torchmdnet_ext.datasets.labelled import LabelledMolecules
from torchmdnet_ext.datasets.splits import NAMES, split
from torchmdnet_ext.denoising import Denoising
from torchmdnet_ext.files import PathLike

OURS = {
    "Conformers": Conformers,
    "Denoising": Denoising,
    "LabelledMolecules": LabelledMolecules,
    "ExtendedXYZ": ExtendedXYZ,
}
LEARNED = 100  # conformers with an element from which on a network is said to have been trained on it
KEYS = tuple(f"idx_{name}" for name in NAMES)


def is_ours(module: Any) -> bool:
    """Whether a `torchmdnet.data.DataModule` has, or is going to make, a dataset of ours."""
    return module.hparams["dataset"] in OURS or isinstance(module.dataset, tuple(OURS.values()))


@contextmanager
def prepared(module: Any) -> Iterator[None]:
    """Make the dataset of a DataModule, and the splits that its own `setup`, called within, reads.

    Without a file of splits, the sets are those that come with the data (`ExtendedXYZ` of three files), or whole molecules
    are held out of `Conformers`, `LabelledMolecules` and `ExtendedXYZ`. Other datasets within `Denoising` are split by the
    trainer.

    Raises ValueError if a setting does not fit the dataset.
    """
    settings = module.hparams
    if module.dataset is None:
        kind = OURS[settings["dataset"]]
        module.dataset = kind(settings["dataset_root"], **dataset_arguments(kind, settings["dataset_arg"]))
    conformers = getattr(module.dataset, "clean", module.dataset)
    given = settings["splits"]
    known = isinstance(conformers, Conformers | LabelledMolecules)
    if known:
        _check_elements(conformers, settings.get("max_z"))
    if isinstance(module.dataset, Denoising) and isinstance(conformers, Conformers):
        settings["elements"] = _learned_elements(conformers)
    if given is not None:
        _check_splits(given, len(conformers))
    if given is not None or not known:
        yield
        return
    indices, how = _held_out(conformers, settings)
    print(how)
    # a file of this process: several may be setting up at once, and the trainer writes the one in its log folder
    handle, path = tempfile.mkstemp(suffix=".npz")
    os.close(handle)
    try:
        arrays: dict[str, Any] = dict(zip(KEYS, indices, strict=True))
        np.savez(path, **arrays)
        settings["splits"] = path
        yield
    finally:
        settings["splits"] = None
        os.unlink(path)


def _held_out(conformers: Any, settings: Any) -> tuple[tuple[np.ndarray, ...], str]:
    """Indices of the three sets, and a sentence on how they came about."""
    held = conformers.given_split() if isinstance(conformers, LabelledMolecules) else None
    if held is not None:
        return held, "The training, validation and test sets are those of the three files."
    sizes = [settings[f"{name}_size"] for name in NAMES]
    *indices, whole = split(conformers.molecules(), sizes, settings["seed"])
    if whole:
        return tuple(indices), "Whole molecules are held out."
    return tuple(indices), "There are fewer than three molecules: their last conformers are held out, not whole molecules."


def _check_elements(conformers: Any, max_z: int | None) -> None:
    heaviest = int(conformers.elements().max(initial=0))
    if max_z is not None and heaviest >= max_z:
        from ase.data import chemical_symbols

        raise ValueError(
            f"max_z is {max_z}, so the network knows atomic numbers up to {max_z - 1}, but the conformers hold "
            f"{chemical_symbols[heaviest]} ({heaviest}): set max_z to {heaviest + 1} or more, 100 for all that ship."
        )


def _learned_elements(conformers: Conformers) -> list[str]:
    """Symbols of the elements that enough conformers have; a checkpoint keeps them with the other settings of its data."""
    from ase.data import chemical_symbols

    return [chemical_symbols[number] for number in conformers.elements(LEARNED)]


def _check_splits(path: PathLike, total: int) -> None:
    try:
        with np.load(path) as file:
            indices = [file[key] for key in KEYS]
    except (OSError, KeyError, ValueError) as error:
        raise ValueError(
            f"splits is {path}, which cannot be read ({error}): give an .npz file with {', '.join(KEYS)}, as "
            "`geomgnn data build` writes, or leave it out to hold out whole molecules."
        ) from error
    largest = max((int(part.max(initial=-1)) for part in indices), default=-1)
    if largest >= total:
        raise ValueError(
            f"splits is {path}, which counts to conformer {largest}, but there are {total}: it is of another store, or of "
            "all sources where only some are read. `geomgnn data splits` writes that of some sources."
        )


def check_held_out(module: Any) -> None:
    """Raise ValueError if training is to follow a validation loss but nothing is held out, or there is no training data."""
    settings, sizes = module.hparams, [len(module.idx_train), len(module.idx_val), len(module.idx_test)]
    shown = ", ".join(f"{name} {size}" for name, size in zip(NAMES, sizes, strict=True))
    remedy = "use more conformers, or other values of splits, train_size, val_size, test_size"
    if not sizes[0]:
        raise ValueError(f"There is nothing to train on ({shown}): {remedy}.")
    monitors = "checkpoint_monitor", "early_stopping_monitor", "lr_metric"
    followed = [name for name in monitors if str(settings.get(name, "")).startswith("val")]
    if not sizes[1] and followed:
        raise ValueError(
            f"There are no conformers for validation ({shown}), but {', '.join(followed)} follow the validation loss: "
            f"{remedy}; or train without validation (checkpoint_monitor and early_stopping_monitor: train_total_mse_loss, "
            "lr_metric: train)."
        )
