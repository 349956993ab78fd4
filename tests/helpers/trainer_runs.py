"""An encoder that is quick to train on, and the trainer as a user starts it."""

import sys

import pytest
import torch
from torchmdnet.scripts import train as upstream
from torchmdnet.scripts.train import get_argparse

from torchmdnet_ext import registration
from torchmdnet_ext.checkpoints import write_encoder

NETWORK = {"embedding_dimension": 8, "num_layers": 1, "num_heads": 4, "num_rbf": 8, "cutoff_upper": 4.0, "max_z": 100}


def write_small_encoder(path):
    """Write an equivariant transformer with random weights."""
    settings = {**vars(get_argparse().parse_args([])), **NETWORK, "model": "smooth-equivariant-transformer"}
    with torch.random.fork_rng():
        network = registration.representation_model({**settings, "box_vecs": None})
    write_encoder(path, settings, network)


def torchmd_train(*arguments):
    """What the console script `torchmd-train` calls, in this process and on the CPU."""
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng():
        patch.setattr(sys, "argv", ["torchmd-train", *map(str, arguments)])
        for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):  # the trainer sets them
            patch.setenv(name, "0")
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        upstream.main()
