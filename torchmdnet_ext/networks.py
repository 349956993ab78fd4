"""Networks built from settings and tensors in a file, every one of which must fit."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from torchmdnet_ext import registration
from torchmdnet_ext.files import PathLike

if TYPE_CHECKING:
    from torchmdnet_ext.heads.noise import EquivariantNoise

SIZES = ("embedding_dimension", "num_rbf", "max_z")  # settings that are dimensions of tensors


class Pretrained(NamedTuple):
    """The content of a file with a pre-trained network.

    Attributes
    ----------
    settings : dict
        Settings of `torchmd-train` that build the network.
    tensors : dict of str to tensor
        Tensors of the network.
    head : dict of str to tensor, or None
        Tensors of its noise head, if the file has one.
    training : dict
        How the network was trained, as far as that is known.
    """

    settings: dict
    tensors: dict
    head: dict | None
    training: dict


class Denoiser(nn.Module):
    """A network and its noise head, which predict the noise in positions."""

    def __init__(self, network: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.head: Any = head

    def forward(self, z: Tensor, pos: Tensor, batch: Tensor) -> Tensor:
        """Predict the noise (N, 3) in units of its standard deviation.

        Parameters
        ----------
        z, pos, batch : (N,), (N, 3), (N,)
            Elements, positions in angstrom and the graph of each atom, ascending.
        """
        x, v, z, pos, batch = self.network(z, pos, batch)
        return self.head.pre_reduce(x, v, z, pos, batch)


def misfits(expected: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """List what is wrong with the tensors `found`, by name; `expected` has their shapes, or tensors of these shapes."""
    shapes = {name: tuple(getattr(shape, "shape", shape)) for name, shape in expected.items()}
    problems = [f"{name} is missing" for name in shapes.keys() - found.keys()]
    problems += [f"{name} belongs to another network" for name in found.keys() - shapes.keys()]
    for name in shapes.keys() & found.keys():
        if not isinstance(found[name], torch.Tensor):
            problems.append(f"{name} is no tensor")
        elif tuple(found[name].shape) != shapes[name]:
            problems.append(f"{name} has shape {tuple(found[name].shape)} instead of {shapes[name]}")
        elif hasattr(expected[name], "dtype") and found[name].is_floating_point() != expected[name].is_floating_point():
            problems.append(f"{name} is of type {found[name].dtype} instead of {expected[name].dtype}")
    return sorted(problems)


def _fill(module: nn.Module, tensors: Mapping[str, Tensor], origin: str) -> nn.Module:
    problems = misfits(module.state_dict(), tensors)
    if problems:
        raise ValueError(
            f"{origin} does not hold the network that its settings describe: {'; '.join(problems)}. The file was made by "
            "another program or changed afterwards; use the one that was written by the training."
        )
    module.load_state_dict(tensors)
    return module.requires_grad_(False).eval()


def build_network(settings: Mapping[str, Any], tensors: Mapping[str, Tensor], origin: str = "the encoder") -> nn.Module:
    """Build the network described by `settings` with the given tensors, every one of which must fit.

    Raises
    ------
    ValueError
        If a setting is missing, or a tensor is missing, left over or of the wrong shape; all tensors are named.
    """
    if settings.get("model") not in registration.MODELS:
        raise ValueError(
            f"{origin} holds a network of the kind '{settings.get('model')}', which cannot be an encoder. Train one with "
            f"model: {' or '.join(registration.MODELS)}."
        )
    _check_sizes(settings, tensors, origin)
    try:
        network: Any = registration.representation_model({"precision": 32, "box_vecs": None, **settings})
    except KeyError as error:
        raise ValueError(
            f"{origin} does not say what {error} the network has, so it cannot be built. Use the file that was written by "
            "the training."
        ) from error
    # exceptions of networks for settings that no training has written
    except (ValueError, TypeError, RuntimeError, AssertionError, AttributeError, IndexError, ArithmeticError) as error:
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise ValueError(
            f"{origin} has settings that no network can be built with ({reason}): "
            "use the file that was written by the training."
        ) from error
    return _fill(network, {"distance.box": network.distance.box, **tensors}, origin)


def _check_sizes(settings: Mapping[str, Any], tensors: Mapping[str, Tensor], origin: str) -> None:
    """Refuse sizes that differ from those of the tensors before a network of any size is built with them."""
    there = {size for tensor in tensors.values() for size in getattr(tensor, "shape", ())}
    for name in SIZES:
        size = settings.get(name)
        if name in settings and (type(size) is not int or size not in there):
            raise ValueError(
                f"{origin} says that its network has {name} {size!r}, but none of its tensors has that size. The file was "
                "changed after it was written; use the one that was written by the training."
            )
    layers = settings.get("num_layers")
    if "num_layers" in settings and (type(layers) is not int or not 0 < layers <= len(tensors)):
        raise ValueError(
            f"{origin} says that its network has num_layers {layers!r}, which its {len(tensors)} tensors do not have. Use "
            "the file that was written by the training."
        )


def new_head(channels: int, activation: str = "silu") -> EquivariantNoise:
    """Make a noise head for H `channels` with random weights."""
    from torchmdnet_ext.heads.noise import EquivariantNoise

    return EquivariantNoise(channels, activation=activation)


def build_head(settings: Mapping[str, Any], tensors: Mapping[str, Tensor], origin: str = "the encoder") -> nn.Module:
    """Build the noise head of the network that `settings` describe with the given tensors; errors as in `build_network`."""
    head = new_head(settings["embedding_dimension"], settings["activation"])
    return _fill(head, tensors, f"The noise head in {origin}")


def load_torch_file(path: PathLike, kind: str) -> Any:
    """Load a file of `torch.save` to the CPU: tensors, numbers, texts and settings.

    Parameters
    ----------
    kind : str
        The expected kind of file, for messages: "a checkpoint of torchmd-train".

    Raises
    ------
    ValueError
        If it cannot be read without running code that it carries, which is never run, or is truncated or of another kind.
    """
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except (
        Exception
    ) as error:  # torch raises many kinds of exceptions here; each means that the file is not of the expected kind
        code = re.search(r"GLOBAL ([\w.]+)", str(error))
        if code:
            raise ValueError(
                f"{path} is refused: it cannot be read as {kind} without running code that it carries, which would call "
                f"{code[1]}. Nothing of it was run. Get a file with nothing but tensors and settings from its author."
            ) from error
        raise ValueError(
            f"{path} cannot be read as {kind} ({type(error).__name__}): it is truncated or of another kind. Copy it again."
        ) from error
