"""Molecules with labels on disk, and the dataset that TorchMD-Net's trainer reads from them.

A store is one safetensors file:

| tensor | type | what |
|---|---|---|
| `z` | uint8 (A,) | atomic numbers of all molecules, one after the other |
| `pos` | float32 (A, 3) | coordinates in angstrom |
| `ptr` | int64 (M + 1,) | molecule i is the atoms `ptr[i]:ptr[i + 1]` |
| `labels` | float64 (M, L) | labels, in the order of the header |
| `group.NAME` | int32 (M,) | which molecules belong together: `molecule` (the same one), `scaffold`, ... |
| `index` | int64 (M,) | number of each molecule where it comes from |

The header (JSON) has format, version, a line on how the file was made, a checksum, and of each label its name, its unit and,
where there are any, its values for free atoms by atomic number.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save
from torch import Tensor
from torch_geometric.data import Data

from torchmdnet_ext.arguments import did_you_mean
from torchmdnet_ext.datasets import splits
from torchmdnet_ext.files import PathLike, write_whole
from torchmdnet_ext.tensor_files import read_arrays, with_checksum

FORMAT, VERSION = "labelled molecules", 1
GROUP = "group."
TENSORS = ("z", "pos", "ptr", "labels", "index")
REFERENCES = ("stored", "fitted")
_NO_SPREAD = 1e-9  # of labels that are all the same, or that the composition explains
MAX_Z = 100  # atomic references are a table of this length, as in TorchMD-Net


@dataclass(frozen=True)
class Label:
    """A property: its name, its unit, and its values for free atoms, {atomic number: value}, or None."""

    name: str
    unit: str
    references: dict[int, float] | None = None


@dataclass(frozen=True, eq=False)
class LabelledStore:
    """The content of a store; `arrays` are the tensors of the module's table, `groups` those called `group.NAME`."""

    labels: tuple[Label, ...]
    arrays: dict[str, np.ndarray]
    groups: dict[str, np.ndarray] = field(default_factory=dict)
    how: str = ""

    def __len__(self) -> int:
        return len(self.arrays["ptr"]) - 1


def write_labelled(path: PathLike, store: LabelledStore) -> None:
    """Write a store; the file appears under its name only when it is complete."""
    tensors = {**store.arrays, **{GROUP + name: values for name, values in store.groups.items()}}
    tensors = {name: np.ascontiguousarray(values) for name, values in tensors.items()}
    header = {"format": FORMAT, "version": VERSION, "labels": [asdict(label) for label in store.labels], "how": store.how}
    # not save_file, which makes the file readable by its owner only
    write_whole(path, save(tensors, metadata={FORMAT: json.dumps(with_checksum(header, tensors))}))


def read_labelled(path: PathLike) -> LabelledStore:
    """Read a store.

    Raises
    ------
    ValueError
        If there is none, or it is truncated, changed, of another kind or of a later version.
    """
    path = Path(path).expanduser()
    header, tensors = read_arrays(path, FORMAT, VERSION, "store of labelled molecules", "`geomgnn supervised` makes one")
    labels = tuple(
        Label(one["name"], one["unit"], one["references"] and {int(z): value for z, value in one["references"].items()})
        for one in header["labels"]
    )
    groups = {name.removeprefix(GROUP): values for name, values in tensors.items() if name.startswith(GROUP)}
    return LabelledStore(labels, {name: tensors[name] for name in TENSORS}, groups, header["how"])


class LabelledMolecules(torch.utils.data.Dataset):
    """Molecules with one label: `dataset[i]` is a `Data` with `z` (N,), `pos` (N, 3) in angstrom and `y` (1, 1), float64.

    In a TorchMD-Net configuration: `dataset: LabelledMolecules`, `dataset_root` the store, the other settings in
    `dataset_arg`. With `remove_ref_energy: true` the trainer subtracts atomic references from the label, in double
    precision; with `prior_model: Atomref` the network adds them. With `standardize: true` the output of a network that is
    not trained yet has the mean and the spread of the labels of the training molecules, as far as its head allows.

    Parameters
    ----------
    root : path
        The store.
    label : str
        Name of the label.
    references : {"stored", "fitted"}
        Atomic references: those of free atoms in the store, or those with which the composition alone describes the label
        best, by least squares over the training molecules (what is left of the stored ones, where there are any).

    Raises
    ------
    ValueError
        If the store cannot be read, or it has no such label.
    """

    def __init__(self, root: PathLike, label: str, references: str = "stored") -> None:
        store = read_labelled(root)
        names = [one.name for one in store.labels]
        if label not in names:
            raise ValueError(f"{root} has no label '{label}', but {', '.join(names)}.{did_you_mean(label, names)}")
        if references not in REFERENCES:
            raise ValueError(f"references is {references!r}, but must be one of {', '.join(REFERENCES)}.")
        self._use(store, names.index(label), references == "fitted")

    def _use(self, store: LabelledStore, number: int, fitted: bool) -> None:
        """Take the label with this number of a store."""
        self.store = store
        self.label = store.labels[number]
        self.values = store.arrays["labels"][:, number]
        self._fitted = fitted
        self._table: np.ndarray | None = None if self._fitted else self._stored()

    def _stored(self) -> np.ndarray | None:
        if self.label.references is None:
            return None
        table = np.zeros(MAX_Z)
        for z, value in self.label.references.items():
            table[z] = value
        return table

    def __len__(self) -> int:
        return len(self.store)

    def __getitem__(self, index: int) -> Data:
        index = int(index)
        arrays = self.store.arrays
        start, stop = arrays["ptr"][index : index + 2]
        return Data(
            z=torch.from_numpy(arrays["z"][start:stop].astype(np.int64)),
            pos=torch.from_numpy(arrays["pos"][start:stop]),
            y=torch.tensor([[self.values[index]]], dtype=torch.float64),
        )

    def molecules(self) -> np.ndarray:
        """Number the molecule of each entry, (M,): what is the same molecule, or has the same elements in the same order."""
        known = self.store.groups.get("molecule")
        return splits.molecules(self.store.arrays["z"], self.store.arrays["ptr"]) if known is None else known

    def elements(self) -> np.ndarray:
        """The atomic numbers that occur, ascending."""
        return np.unique(self.store.arrays["z"])

    def composition(self) -> np.ndarray:
        """Number of atoms of each element in each molecule, (M, 100)."""
        z, ptr = self.store.arrays["z"].astype(np.int64), self.store.arrays["ptr"]
        owner = np.repeat(np.arange(len(self)), np.diff(ptr))
        return np.bincount(owner * MAX_Z + z, minlength=len(self) * MAX_Z).reshape(len(self), MAX_Z)

    def fit_references(self, train: Sequence[int] | np.ndarray | Tensor) -> None:
        """Fit the atomic references to training molecules, given by their indices, if they are to be fitted."""
        if not self._fitted:
            return
        stored, counts = self._stored(), self.composition()[np.asarray(train)]
        table = np.zeros(MAX_Z) if stored is None else stored
        present = np.flatnonzero(counts.any(axis=0))
        rest = self.values[np.asarray(train)] - counts @ table
        # an element that no training molecule has keeps its stored reference
        table[present] += np.linalg.lstsq(counts[:, present].astype(float), rest, rcond=None)[0]
        self._table = table

    def get_atomref(self, max_z: int = MAX_Z) -> Tensor:
        """Atomic references (max_z, 1), float64, for TorchMD-Net's prior `Atomref`.

        Raises
        ------
        ValueError
            If there are none in the store, or they are to be fitted and have not been.
        """
        if self._table is None:
            remedy = "call fit_references first" if self._fitted else "use references: fitted, or train without them"
            raise ValueError(f"There are no atomic references for {self.label.name}: {remedy}.")
        table = torch.zeros(max_z, 1, dtype=torch.float64)
        known = torch.from_numpy(self._table)[:max_z, None]
        table[: len(known)] = known
        return table

    def standardisation(self, train: Sequence[int] | np.ndarray | Tensor, head: str, referred: bool) -> tuple[float, float]:
        """Mean and scale of what the head `head` predicts for training molecules, given by their indices.

        What is predicted is the scale times a sum or mean over atoms, plus the mean: for a dipole moment, a vector, the mean
        is 0; for the electronic spatial extent the scale is per squared distance from the centre. `referred` is whether
        atomic references are subtracted.
        """
        chosen = np.asarray(train)
        y = self.values[chosen]
        if referred:
            y = y - (self.composition() @ self.get_atomref().numpy()[:, 0])[chosen]
        if head == "ElectronicSpatialExtent":
            return 0.0, float(y.mean() / self._squared_extents()[chosen].mean())
        spread = float(y.std())
        return (0.0 if head == "DipoleMoment" else float(y.mean())), spread if spread > _NO_SPREAD else 1.0

    def _squared_extents(self) -> np.ndarray:
        """Sum of the squared distances of the atoms from their centroid, (M,), in angstrom^2."""
        pos, ptr = self.store.arrays["pos"].astype(float), self.store.arrays["ptr"]
        sums = np.add.reduceat(pos, ptr[:-1])
        squares = np.add.reduceat(np.square(pos).sum(axis=1), ptr[:-1])
        return squares - np.square(sums).sum(axis=1) / np.diff(ptr)

    def given_split(self) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
        """Indices for training, validation and test that come with the data; None, as a store has none."""
        return None

    def __repr__(self) -> str:
        return f"LabelledMolecules({len(self)}, {self.label.name} in {self.label.unit})"


def standardise(module: Any) -> None:
    """Fit references, mean and scale to the training molecules of a `torchmdnet.data.DataModule`."""
    settings, dataset = module.hparams, module.dataset
    dataset.fit_references(module.idx_train)
    referred = bool(settings["remove_ref_energy"]) or _names_atomref(settings["prior_model"])
    numbers = dataset.standardisation(module.idx_train, settings["output_model"], referred)
    module._mean, module._std = (torch.tensor(number, dtype=torch.float64) for number in numbers)


def _names_atomref(prior: Any) -> bool:
    priors = prior if isinstance(prior, list) else [prior]
    return any("Atomref" in one if isinstance(one, Mapping) else one == "Atomref" for one in priors)
