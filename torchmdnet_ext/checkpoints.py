"""Pre-trained networks on disk: our safetensors files, TorchMD-Net's checkpoints, geom2vec's files.

A file of ours holds the tensors of one representation network and, as JSON metadata, the settings of `torchmd-train` that
build it; it may hold the noise head that the network was trained with as well, as tensors `head.*`. Nothing is ever
unpickled: files of PyTorch are read with `weights_only=True`.
"""

import argparse
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from torchmdnet_ext import registration
from torchmdnet_ext.files import PathLike, write_whole
from torchmdnet_ext.geom2vec import read_geom2vec
from torchmdnet_ext.networks import Denoiser, Pretrained, build_head, build_network, load_torch_file
from torchmdnet_ext.tensor_files import CHECKSUM, DamagedFile, is_as_written, read_tensor_file, with_checksum

__all__ = [
    "build_head",
    "build_network",
    "read_denoiser",
    "read_encoder",
    "read_geom2vec",
    "read_pretrained",
    "read_trainer_checkpoint",
    "write_encoder",
    "write_trainer_checkpoint",
]

FORMAT = "openmm-geomgnn encoder"
VERSION = 3
FIRST_WITH_CHECKSUM = 3
# entries in the header of an encoder's file, and their types
HEADER: dict[str, Any] = {"settings": dict, "training": dict, "head": (str, type(None))}
HEAD = "head."  # prefix of the names of the noise head's tensors in our files
# prefixes of names in a checkpoint of the trainer
NETWORK = "model.representation_model."
TRAINER_HEAD = "model.output_model."
# networks of TorchMD-Net that equal ours without an envelope
UPSTREAM = {"equivariant-transformer": "smooth-equivariant-transformer", "tensornet": "smooth-tensornet"}
# other entries of a checkpoint from which TorchMD-Net can build a model
TRAINER_SETTINGS = {
    "output_model": "Noise",
    "output_mlp_num_layers": 0,
    "prior_model": None,
    "derivative": False,
    "reduce_op": "add",
    "atom_filter": -1,
    "precision": 32,
    "static_shapes": False,
}


def _network_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: settings[name] for name in registration.NETWORK_SETTINGS if name in settings}


def _single(module: nn.Module, prefix: str = "") -> dict[str, Tensor]:
    """Get the tensors of a module in single precision, their names with a prefix."""
    return {prefix + name: tensor.detach().float().contiguous() for name, tensor in module.state_dict().items()}


def write_encoder(
    path: PathLike,
    settings: Mapping[str, Any],
    network: nn.Module,
    training: Mapping[str, Any] | None = None,
    head: nn.Module | None = None,
) -> None:
    """Write a network and the settings that build it to `path` (safetensors), in single precision.

    Parameters
    ----------
    settings : dict
        Settings of `torchmd-train`; those that do not concern the network are left out.
    training : dict, optional
        How the network was trained: anything that JSON can hold.
    head : nn.Module, optional
        The noise head that the network was trained with.
    """
    header = {
        "format": FORMAT,
        "version": VERSION,
        "settings": _network_settings(settings),
        "training": training or {},
        "head": None if head is None else TRAINER_SETTINGS["output_model"],
    }
    tensors = {**_single(network), **({} if head is None else _single(head, HEAD))}
    # not save_file, which makes the file readable by its owner only
    write_whole(path, save(tensors, metadata={"encoder": json.dumps(with_checksum(header, tensors))}))


def _without_head(header: dict[str, Any]) -> dict[str, Any]:
    """Version 1 knew no heads."""
    return {**header, "version": 2, "head": None}


def _without_checksum(header: dict[str, Any]) -> dict[str, Any]:
    """Version 2 knew no checksums."""
    return {**header, "version": 3}


MIGRATIONS = {1: _without_head, 2: _without_checksum}  # version -> function from its header to the next version's


def read_encoder(path: PathLike) -> Pretrained:
    """Read a file of ours as `Pretrained`.

    Raises
    ------
    ValueError
        If the file is truncated, changed, of another kind, or of a version that cannot be read.
    """
    try:
        header, tensors = read_tensor_file(path, "encoder")
    except DamagedFile as error:
        raise ValueError(
            f"{path} cannot be read as an encoder ({error}): it is truncated or of another kind. Copy it again."
        ) from error
    if header is None or header.get("format") != FORMAT:
        raise ValueError(f"{path} is a safetensors file, but not an encoder of openmm-geomgnn. Give an encoder's file.")
    version = header.get("version")
    if type(version) is not int or not 1 <= version <= VERSION:
        raise ValueError(
            f"{path} has version {version} of the encoder format and this code reads up to version {VERSION}. "
            "Update openmm-geomgnn."
        )
    intact = is_as_written(header, tensors) if CHECKSUM in header or version >= FIRST_WITH_CHECKSUM else True
    while header["version"] < VERSION:
        header = MIGRATIONS[header["version"]](header)
    if not intact or not all(isinstance(header.get(key, ...), kind) for key, kind in HEADER.items()):
        raise ValueError(
            f"{path} was changed or damaged after it was written: its content does not have the checksum that it states. "
            "Copy it again from where it was made."
        )
    head = None
    if header["head"] is not None:
        head = {name.removeprefix(HEAD): tensors.pop(name) for name in list(tensors) if name.startswith(HEAD)}
    return Pretrained(header["settings"], tensors, head, header["training"])


def write_trainer_checkpoint(path: PathLike, settings: Mapping[str, Any], network: nn.Module, head: nn.Module) -> None:
    """Write a `.ckpt` file in single precision, which `torchmd-train --load-weights` and `Encoder.load` read.

    Parameters are those of `write_encoder`; the trainer needs the noise head as well.
    """
    tensors = {**_single(network, NETWORK), **_single(head, TRAINER_HEAD)}
    tensors.update({"model.mean": torch.zeros(()), "model.std": torch.ones(())})
    checkpoint = {"state_dict": tensors, "hyper_parameters": {**TRAINER_SETTINGS, **_network_settings(settings)}}
    buffer = io.BytesIO()
    torch.save(checkpoint, buffer)
    write_whole(path, buffer.getvalue())


def read_trainer_checkpoint(path: PathLike) -> Pretrained:
    """Read a checkpoint of `torchmd-train` as `Pretrained`, also of those of TorchMD-Net's own networks that ours can equal.

    Raises
    ------
    ValueError
        If the file cannot be read without running code from it, or is not a checkpoint of TorchMD-Net.
    """
    checkpoint = load_torch_file(path, "a checkpoint of torchmd-train")
    if not isinstance(checkpoint, dict) or not {"hyper_parameters", "state_dict"} <= checkpoint.keys():
        raise ValueError(f"{path} is not a checkpoint of torchmd-train: it has no hyper_parameters and state_dict.")
    settings = checkpoint["hyper_parameters"]
    settings = dict(vars(settings) if isinstance(settings, argparse.Namespace) else settings)
    if settings.get("model") in UPSTREAM:
        settings.update(model=UPSTREAM[settings["model"]], smooth_cutoff=False)

    def those(prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): t for name, t in checkpoint["state_dict"].items() if name.startswith(prefix)}

    head = those(TRAINER_HEAD) if settings.get("output_model") == TRAINER_SETTINGS["output_model"] else None
    elements = checkpoint.get("datamodule_hyper_parameters", {}).get("elements")
    return Pretrained(settings, those(NETWORK), head, {} if elements is None else {"elements": elements})


READERS = {
    ".safetensors": read_encoder,
    ".ckpt": read_trainer_checkpoint,
    ".pth": read_geom2vec,
    ".pt": read_geom2vec,
}


def read_pretrained(path: PathLike) -> Pretrained:
    """Read a file of any kind in `READERS`, according to the suffix of its name, as `Pretrained`.

    Raises
    ------
    ValueError
        If there is no such file, its suffix is unknown, or its reader refuses it.
    """
    path = Path(path)
    if path.suffix not in READERS:
        raise ValueError(f"{path} is not a file of a pre-trained network: these end in {', '.join(READERS)}.")
    if not path.is_file():
        raise ValueError(f"There is no file {path}. Check the path.")
    return READERS[path.suffix](path)


def read_denoiser(path: PathLike) -> Denoiser:
    """Read a pre-trained network with its noise head, called as model(z (N,), pos (N, 3), batch (N,)).

    Returns
    -------
    Denoiser
        Predicts the noise (N, 3) in positions in angstrom, in units of its standard deviation.

    Raises
    ------
    ValueError
        As `read_pretrained` does, or if the file holds no noise head or tensors that do not fit.
    """
    settings, tensors, head, _ = read_pretrained(path)
    if head is None:
        raise ValueError(
            f"{path} holds no noise head, so it cannot predict noise. Give the .ckpt file of its training, or the file that "
            'Encoder.load("....ckpt").save("....safetensors") makes of it.'
        )
    return Denoiser(build_network(settings, tensors, str(path)), build_head(settings, head, str(path))).eval()
