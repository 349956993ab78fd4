"""`model: residues`: any network from the residues of a structure to classes, under TorchMD-Net's trainer.

The network is a class of an installed package, named in the settings as `network: package.module:Class` and made with
`network_arg`. So the trainer runs networks that this package does not know of, its mixers among them, and the settings of
a training say all that is needed to make the network again.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn


def make_network(name: Any, arguments: Any) -> nn.Module:
    """Make the network that `network` and `network_arg` of `torchmd-train` describe.

    Raises ValueError if there is no such class, it is no torch.nn.Module, or does not take the arguments.
    """
    module, _, attribute = str(name).partition(":")
    try:
        kind = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"network is {name!r}, which cannot be imported ({error}). Write package.module:Class, such as "
            "openmm_geomgnn.studies.structures.networks:AlphaCarbonNetwork."
        ) from error
    if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        raise ValueError(f"network is {name!r}, which is no subclass of torch.nn.Module.")
    arguments = {} if arguments is None else arguments
    if not isinstance(arguments, Mapping):
        raise ValueError(f"network_arg is {arguments!r}, but must be a dictionary of arguments of {name}.")
    try:
        return kind(**arguments)
    except TypeError as error:
        raise ValueError(f"{name} cannot be made with network_arg {dict(arguments)}: {error}") from error


def _without_box(state: dict[str, Any], *_: Any) -> None:
    """Drop what TorchMD-Net's `load_model` adds to every network, for the box of its own."""
    state.pop("representation_model.distance.box", None)


class Residues(nn.Module):
    """A network on residues, called as the trainer calls its models.

    Parameters
    ----------
    network : nn.Module
        Called as `network(residue, pos, batch, tokens)`: kinds of residues (N,), C-alpha atoms (N, 3) in angstrom, the
        structure of each residue (N,), ascending, and tokens (N, 4, H) or None. Returns scores (structures, classes).
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self._register_load_state_dict_pre_hook(_without_box)

    def forward(
        self, z: Tensor, pos: Tensor, batch: Tensor, extra_args: Mapping[str, Any] | None = None, **_: Any
    ) -> tuple[Tensor, None]:
        """Scores (structures, classes), and no derivative."""
        return self.network(z, pos, batch, (extra_args or {}).get("tokens")), None
