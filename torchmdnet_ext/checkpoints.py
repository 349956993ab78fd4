"""Encoders on disk: our safetensors files, and TorchMD-Net's training checkpoints turned into them.

A file of ours holds the tensors of one representation network and, as JSON metadata, the settings of `torchmd-train` that
build it. Nothing is unpickled: TorchMD-Net's checkpoints are read with `weights_only=True`.
"""

import argparse
import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from torchmdnet_ext import registration

FORMAT = "openmm-geomgnn encoder"
VERSION = 1
PREFIX = "model.representation_model."


def build_network(settings, tensors, origin="the encoder"):
    """The network described by `settings` with the given tensors, every one of which must fit.

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
    try:
        network = registration.representation_model({"precision": 32, "box_vecs": None, **settings})
    except KeyError as error:
        raise ValueError(
            f"{origin} does not say what {error} the network has, so it cannot be built. Use the file that was written by "
            "the training."
        ) from error
    expected = network.state_dict()
    tensors = {"distance.box": expected["distance.box"], **tensors}
    problems = [f"{name} is missing" for name in expected.keys() - tensors.keys()]
    problems += [f"{name} belongs to another network" for name in tensors.keys() - expected.keys()]
    problems += [
        f"{name} has shape {tuple(tensors[name].shape)} instead of {tuple(expected[name].shape)}"
        for name in expected.keys() & tensors.keys()
        if expected[name].shape != tensors[name].shape
    ]
    if problems:
        raise ValueError(
            f"{origin} does not hold the network that its settings describe: {'; '.join(sorted(problems))}. The file was "
            "made by another program or changed afterwards; use the one that was written by the training."
        )
    network.load_state_dict(tensors)
    return network.requires_grad_(False).eval()


def write_encoder(path, settings, network, training=None):
    """Write a network and the settings that build it to `path` (safetensors).

    Parameters
    ----------
    settings : dict
        Settings of `torchmd-train`; those that do not concern the network are left out.
    training : dict, optional
        How it was trained: anything that JSON can hold.
    """
    header = {
        "format": FORMAT,
        "version": VERSION,
        "settings": {name: settings[name] for name in registration.NETWORK_SETTINGS if name in settings},
        "training": training or {},
    }
    tensors = {name: tensor.detach().float().contiguous() for name, tensor in network.state_dict().items()}
    path = Path(path)
    temporary = path.with_name(f".{path.name}.part")
    try:
        # not save_file, which makes the file readable by its owner only
        temporary.write_bytes(save(tensors, metadata={"encoder": json.dumps(header)}))
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read_encoder(path):
    """Settings, tensors and training information of a file of ours.

    Raises
    ------
    ValueError
        If the file is truncated, of another kind, or of a version this one cannot read.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get("encoder", "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{path} cannot be read as an encoder ({error}): it is truncated or of another kind. Copy it again."
        ) from error
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise ValueError(f"{path} is a safetensors file, but not an encoder of openmm-geomgnn. Give an encoder's file.")
    if header.get("version") != VERSION:
        raise ValueError(
            f"{path} has version {header.get('version')} of the encoder format and this code reads version {VERSION}. "
            "Update openmm-geomgnn."
        )
    return header["settings"], tensors, header["training"]


def read_trainer_checkpoint(path):
    """Settings and representation tensors of a checkpoint that `torchmd-train` wrote.

    Raises
    ------
    ValueError
        If the file cannot be read without running code from it, or is not a checkpoint of TorchMD-Net.
    """
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds here; each means that the file is not what it should be
        raise ValueError(
            f"{path} cannot be read as a checkpoint of torchmd-train without running code that it carries "
            f"({type(error).__name__}). Use a .ckpt file that torchmd-train wrote."
        ) from error
    if not isinstance(checkpoint, dict) or not {"hyper_parameters", "state_dict"} <= checkpoint.keys():
        raise ValueError(f"{path} is not a checkpoint of torchmd-train: it has no hyper_parameters and state_dict.")
    settings = checkpoint["hyper_parameters"]
    settings = dict(vars(settings) if isinstance(settings, argparse.Namespace) else settings)
    tensors = {
        name[len(PREFIX) :]: tensor for name, tensor in checkpoint["state_dict"].items() if name.startswith(PREFIX)
    }
    return settings, tensors
