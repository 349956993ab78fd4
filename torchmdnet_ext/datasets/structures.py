"""Structures as residues with a class: what `geomgnn structures` writes and `torchmd-train` learns graph-level labels from.

A file, safetensors, holds the C-alpha atoms of all structures, one structure after the other:

| tensor | type | what |
|---|---|---|
| `residue` | uint8 (A,) | index of the residue's name among those in the header, from 1; 0 is any other |
| `pos` | float32 (A, 3) | C-alpha atoms, angstrom |
| `ptr` | int64 (M + 1,) | structure i is the residues `ptr[i]:ptr[i + 1]` |
| `label` | int64 (M,) | the class, an index into those in the header |
| `tokens` | float32 (A, 4, H) | residue tokens of an encoder: a row of scalars and three of vectors |

The header (safetensors metadata, JSON) names classes, residues, structures and the part of the data that each belongs to,
and says of which encoder the tokens are (name and content hash).
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save
from torch import Tensor
from torch.utils.data import Dataset
from torch_geometric.data import Data

from torchmdnet_ext.files import PathLike, write_whole
from torchmdnet_ext.tensor_files import read_arrays, with_checksum

FORMAT, VERSION = "structures", 1


def write_structures(path: PathLike, tensors: Mapping[str, np.ndarray], header: Mapping[str, Any]) -> None:
    """Write structures; the file appears under its name only when it is complete.

    Parameters
    ----------
    tensors : dict of arrays
        Those of the table above.
    header : dict
        `classes`, `residues`, `names`, `parts` (lists of str), `encoder` (dict); anything else that JSON can hold.
    """
    header = with_checksum({"format": FORMAT, "version": VERSION, **header}, tensors)
    write_whole(path, save(dict(tensors), metadata={FORMAT: json.dumps(header)}))


def read_structures(path: PathLike) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Read (header, tensors) of a file of structures.

    Raises ValueError if there is no such file, or it is damaged or of another kind.
    """
    return read_arrays(path, FORMAT, VERSION, "file of structures", "`geomgnn structures` writes one")


class Structures(Dataset):
    """Structures with a class for `torchmd-train`, which takes `model: residues` and `train_loss: cross_entropy_loss`.

    An item has `z` (R,), the kinds of the residues, `pos` (R, 3), their C-alpha atoms in angstrom, `y` (1, classes), a one
    for the class and zeros, and `tokens` (R, 4, H).

    Parameters
    ----------
    root : path
        The file, see the module.
    tokens : bool
        Whether items have tokens.

    Raises
    ------
    ValueError
        See `read_structures`.
    """

    def __init__(self, root: PathLike, tokens: bool = True) -> None:
        header, tensors = read_structures(Path(root).expanduser())
        self.classes: list[str] = header["classes"]
        self.names: list[str] = header["names"]
        self.parts: list[str] = header["parts"]
        self.residues = torch.from_numpy(tensors["residue"]).long()
        self.positions = torch.from_numpy(tensors["pos"])
        self.ends: list[int] = tensors["ptr"].tolist()
        self.labels = torch.from_numpy(tensors["label"])
        self.tokens: Tensor | None = torch.from_numpy(tensors["tokens"]) if tokens else None

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Data:
        rows = slice(self.ends[index], self.ends[index + 1])
        y = torch.nn.functional.one_hot(self.labels[index], len(self.classes)).float()[None]
        item = Data(z=self.residues[rows], pos=self.positions[rows], y=y)
        if self.tokens is not None:
            item.tokens = self.tokens[rows]
        return item
