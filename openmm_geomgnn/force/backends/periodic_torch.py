"""`periodic.MoleculeUnwrapper` for tensors, on a GPU and in TorchScript."""

import itertools

import numpy as np
import torch
from torch import Tensor

from openmm_geomgnn.representation.periodic import MoleculeUnwrapper

# -1, 0 or 1 of each box vector, none first
IMAGES = sorted(itertools.product((-1.0, 0.0, 1.0), repeat=3), key=np.linalg.norm)


def ancestors(molecule: MoleculeUnwrapper) -> np.ndarray:
    """Rows (K, n) of each atom's ancestors 1, 2, 4, ... generations back; a root is its own parent.

    Parameters
    ----------
    molecule : periodic.MoleculeUnwrapper
    """
    parents = np.arange(sum(len(children) for children, _ in molecule.levels) + 1)
    for children, theirs in molecule.levels:
        parents[children] = theirs
    rows = [parents]
    while (rows[-1][rows[-1]] != rows[-1]).any():
        rows.append(rows[-1][rows[-1]])
    return np.stack(rows)


def lattice_shifts(pos: Tensor, box: Tensor, ancestors: Tensor, images: Tensor) -> Tensor:
    """Compute shifts (n, 3), multiples of the box vectors, that make the molecules at `pos` (n, 3) whole.

    Every atom is brought to the image nearest to its parent, and the shifts of its ancestors are added: each round covers
    twice as many generations.

    Parameters
    ----------
    box : (3, 3) tensor
        Reduced box vectors as rows, in the precision of `pos`.
    ancestors : (K, n) int64 tensor
    images : (27, 3) tensor
        IMAGES, in the precision of `pos`.
    """
    apart = pos - pos.index_select(0, ancestors[0])
    image = apart
    for k in [2, 1, 0]:
        image = image - torch.round(image[:, k : k + 1] / box[k, k]) * box[k]
    # in an oblique box the brick spanned by the diagonal contains the shortest images only within a sphere
    candidates = image + (images @ box).unsqueeze(1)
    nearest = candidates.square().sum(2).argmin(0)
    image = candidates[nearest, torch.arange(pos.size(0), device=pos.device)]
    shifts = image - apart
    for k in range(ancestors.size(0)):
        shifts = shifts + shifts.index_select(0, ancestors[k])
    return shifts
