"""Denoising as a task of TorchMD-Net's trainer (Zaidi et al. 2022, arXiv 2206.00133; algorithm of arXiv 2410.21683).

The positions of a conformer get Gaussian noise of `sigma` angstrom per coordinate and the network predicts that noise in
units of `sigma`. A network that predicts 0 has a loss of 1.0.
"""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torch_geometric.data import Data

from torchmdnet_ext.arguments import dataset_arguments
from torchmdnet_ext.datasets.conformers import Conformers
from torchmdnet_ext.files import PathLike

COUNTED = 2000  # number of conformers in which elements are counted for balanced weights
RAREST = 10.0  # largest weight of a rare element, relative to the commonest one


class Denoising(Dataset):
    """Noisy conformers of any dataset that yields `z` (N,) and `pos` (N, 3) in angstrom.

    The trainer holds out whole molecules of `Conformers`, and random conformers of other datasets unless there are `splits`.

    Noise is drawn from PyTorch's generator at every access; `fixed_noise()` gives noise that does not change.

    Parameters
    ----------
    root : str
        Passed on to the wrapped dataset.
    dataset : str
        Name of a dataset class of TorchMD-Net, ours included.
    dataset_arg : dict, optional
        Its arguments.
    sigma : float or list of float
        Standard deviation of the noise in angstrom; if there are several, each conformer gets a random one.
    remove_hydrogens : float
        Fraction of the conformers, 0 to 1, that appear without their hydrogens, for collective variables of heavy atoms. A
        conformer that would be left with fewer than two atoms keeps them.
    element_weights : "balanced" or dict, optional
        Weights of the elements in the training loss, such as {H: 0.5}; other elements have weight 1. "balanced" weights each
        by the inverse of its frequency, up to 10 times the weight of the commonest. The validation loss is never weighted,
        so it stays comparable.

    Raises
    ------
    ValueError
        If a setting is out of range or the dataset is unknown.
    """

    def __init__(
        self,
        root: PathLike | None = None,
        dataset: str = "Conformers",
        dataset_arg: Any = None,
        sigma: float = 0.2,
        remove_hydrogens: float = 0.0,
        element_weights: Mapping | None = None,
    ) -> None:
        from torchmdnet import datasets

        scales = list(sigma) if isinstance(sigma, list | tuple) else [sigma]
        if not scales or not all(isinstance(scale, int | float) and 0 < scale < math.inf for scale in scales):
            raise ValueError(f"The noise scale sigma must be positive (in angstrom), or a list of such, but was {sigma}.")
        if not isinstance(remove_hydrogens, int | float) or not 0 <= remove_hydrogens <= 1:
            raise ValueError(
                f"remove_hydrogens was {remove_hydrogens!r}; it is the share of conformers that appear without their "
                "hydrogens: give 0 to 1."
            )
        if dataset not in datasets.__all__ or dataset == type(self).__name__:
            known = ", ".join(name for name in datasets.__all__ if name != type(self).__name__)
            raise ValueError(f"Unknown dataset '{dataset}' in dataset_arg. Choose one of {known}.")
        self.sigma = torch.tensor(scales)
        self.remove_hydrogens = float(remove_hydrogens)
        kind = getattr(datasets, dataset)
        self.clean = kind(root, **dataset_arguments(kind, dataset_arg))
        self.weights = None if element_weights is None else self._weights(element_weights)
        self.fixed = False

    def _weights(self, chosen: Any) -> Tensor:
        """Weights (119,) of the elements in the training loss."""
        weights = torch.ones(119)
        if chosen == "balanced":
            sample = torch.linspace(0, len(self.clean) - 1, min(len(self.clean), COUNTED)).long().unique()
            counts = torch.bincount(torch.cat([self.clean[int(i)].z for i in sample]), minlength=119)
            present = counts > 0
            weights[present] = (counts.max() / counts[present]).clamp(max=RAREST)
            weights[~present] = RAREST
            return weights
        from ase.data import atomic_numbers

        if not isinstance(chosen, dict):
            raise ValueError(f"element_weights was {chosen!r}: give 'balanced', or weights by element such as {{H: 0.5}}.")
        for symbol, weight in chosen.items():
            if atomic_numbers.get(symbol, 0) < 1:
                raise ValueError(f"element_weights names '{symbol}', which is not the symbol of an element.")
            if not isinstance(weight, int | float) or not 0 <= weight < math.inf:
                raise ValueError(f"The weight of {symbol} in element_weights must be 0 or more, but was {weight!r}.")
            weights[atomic_numbers[symbol]] = weight
        return weights

    def __len__(self) -> int:
        return len(self.clean)

    def __getitem__(self, index: int) -> Data:
        conformer = self.clean[int(index)]
        [noisy] = self._noisy(conformer.z, conformer.pos, [len(conformer.z)], [index])
        if "box" in conformer:
            noisy.box = conformer.box
        return noisy

    def __getitems__(self, indices: Sequence[int]) -> list[Data]:
        """Return noisy conformers, as `self[i]` does for one: PyTorch's loaders ask for batches like this."""
        if not isinstance(self.clean, Conformers):
            return [self[index] for index in indices]
        return self._noisy(*self.clean.gather(indices), indices)

    def _draw(self, atoms: int, conformers: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor, Tensor]:
        """Noise (atoms, 3), a number from 0 to 1 that decides about hydrogens, and which sigma, of each conformer."""
        noise = torch.randn((atoms, 3), generator=generator)
        hydrogens = torch.rand(conformers, generator=generator) if self.remove_hydrogens else torch.ones(conformers)
        return noise, hydrogens, torch.randint(len(self.sigma), (conformers,), generator=generator)

    def _noisy(self, z: Tensor, pos: Tensor, sizes: Sequence[int], indices: Sequence[int]) -> list[Data]:
        """Noisy copies of the conformers `indices` of these sizes, whose z (A,) and pos (A, 3) follow one another."""
        if self.fixed:
            generators = [torch.Generator().manual_seed(int(index)) for index in indices]
            draws = [self._draw(size, 1, generator) for size, generator in zip(sizes, generators, strict=True)]
            noise, hydrogens, scale = (torch.cat(parts) for parts in zip(*draws, strict=True))
        else:
            noise, hydrogens, scale = self._draw(len(z), len(sizes), None)
        owner = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
        if self.remove_hydrogens:
            heavy = z > 1
            number = torch.bincount(owner[heavy], minlength=len(sizes))
            bare = (hydrogens < self.remove_hydrogens) & (number >= 2)
            kept = heavy | ~bare[owner]
            z, pos, noise, owner = z[kept], pos[kept], noise[kept], owner[kept]
            sizes = torch.where(bare, number, torch.tensor(sizes)).tolist()
        tensors = {"z": z, "pos": pos + self.sigma[scale][owner].unsqueeze(1) * noise, "y": noise}
        if self.weights is not None and not self.fixed:
            tensors["loss_weight"] = self.weights[z]
        parts = zip(*(tensor.split(sizes) for tensor in tensors.values()), strict=True)
        return [Data.from_dict(dict(zip(tensors, part, strict=True))) for part in parts]

    def fixed_noise(self) -> "Denoising":
        """Return the same conformers with noise that depends only on the index, for validation and tests."""
        view = copy.copy(self)
        view.fixed = True
        return view


def fix_held_out_noise(data_module: Any) -> None:
    """Give the validation and test sets of a `torchmdnet.data.DataModule` noise that stays the same in every epoch."""
    if isinstance(data_module.dataset, Denoising):
        fixed = data_module.dataset.fixed_noise()
        data_module.val_dataset.dataset = fixed
        data_module.test_dataset.dataset = fixed


def weighted(loss: Callable[[Tensor, Tensor], Tensor], weight: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """Compute `loss(prediction, target)`, a mean square, with weights (N,) of the rows (N, 3)."""
    root = (weight / weight.mean().clamp(min=1e-9)).sqrt().unsqueeze(1)
    return lambda prediction, target: loss(root * prediction, root * target)
