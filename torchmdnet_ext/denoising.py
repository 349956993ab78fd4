"""Denoising as a task of TorchMD-Net's trainer (Zaidi et al. 2022, arXiv 2206.00133; algorithm of arXiv 2410.21683).

The positions of a conformer get Gaussian noise of `sigma` angstrom per coordinate and the network predicts that noise in
units of `sigma`. A network that predicts 0 has a loss of 1.0.
"""

import copy
import json

import torch
from torch.utils.data import Dataset
from torch_geometric.data import Data


class Denoising(Dataset):
    """Noisy conformers of any dataset that yields `z` (N,) and `pos` (N, 3) in angstrom.

    Noise is drawn anew at every access, from PyTorch's generator, until `fixed_noise()` is asked for.

    Parameters
    ----------
    root : str
        Passed on to the wrapped dataset.
    dataset : str
        Name of a dataset class of TorchMD-Net, ours included.
    dataset_arg : dict, optional
        Its arguments.
    sigma : float
        Standard deviation of the noise in angstrom.

    Raises
    ------
    ValueError
        If `sigma` is not positive or the dataset is not known.
    """

    def __init__(self, root=None, dataset="Conformers", dataset_arg=None, sigma=0.2):
        from torchmdnet import datasets

        if not sigma > 0:
            raise ValueError(f"The noise scale sigma must be positive (in angstrom), but was {sigma}.")
        if dataset not in datasets.__all__ or dataset == type(self).__name__:
            known = ", ".join(name for name in datasets.__all__ if name != type(self).__name__)
            raise ValueError(f"Unknown dataset '{dataset}' in dataset_arg. Choose one of {known}.")
        if isinstance(dataset_arg, str):
            dataset_arg = json.loads(dataset_arg)
        self.sigma = float(sigma)
        self.clean = getattr(datasets, dataset)(root, **(dataset_arg or {}))
        self.fixed = False

    def __len__(self):
        return len(self.clean)

    def __getitem__(self, index):
        index = int(index)
        conformer = self.clean[index]
        generator = torch.Generator().manual_seed(index) if self.fixed else None
        noise = torch.randn(conformer.pos.shape, generator=generator, dtype=conformer.pos.dtype)
        return Data(z=conformer.z, pos=conformer.pos + self.sigma * noise, y=noise)

    def fixed_noise(self):
        """The same conformers with noise that depends on the index alone: for validation and tests."""
        view = copy.copy(self)
        view.fixed = True
        return view


def fix_held_out_noise(data_module):
    """Give the validation and test sets of a `torchmdnet.data.DataModule` noise that stays the same in every epoch."""
    if isinstance(data_module.dataset, Denoising):
        fixed = data_module.dataset.fixed_noise()
        data_module.val_dataset.dataset = fixed
        data_module.test_dataset.dataset = fixed
