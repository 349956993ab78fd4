"""Networks that start from a pre-trained encoder, and what else TorchMD-Net's training module learns from us."""

import functools
import importlib.util
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import LambdaLR

from torchmdnet_ext import registration
from torchmdnet_ext.checkpoints import read_pretrained
from torchmdnet_ext.denoising import weighted
from torchmdnet_ext.files import PathLike
from torchmdnet_ext.networks import misfits
from torchmdnet_ext.noisy_nodes import WithNoise, denoising_loss, with_noise

SCHEDULES = ("plateau", "cosine")  # values of lr_schedule


def encoder_file(name: PathLike) -> Path:
    """The file of an encoder: a path, or the name of one that comes with openmm-geomgnn."""
    spec = importlib.util.find_spec("openmm_geomgnn")
    if Path(name).suffix == "" and spec is not None and spec.submodule_search_locations:
        shipped = Path(spec.submodule_search_locations[0]) / "data" / f"{name}.safetensors"
        if shipped.is_file():
            return shipped
    return Path(name).expanduser()


def start_from_encoder(model: Any, settings: Mapping[str, Any]) -> None:
    """Give the network of a model the weights of the encoder that the settings name; also its noise head, if both have one.

    Raises ValueError if the file cannot be read, or holds a network of other settings, all of which are named.
    """
    path = encoder_file(settings["encoder"])
    pretrained = read_pretrained(path)
    own = registration.own_settings(settings["model"])
    theirs = {**registration.OWN_DEFAULTS, **pretrained.settings}
    wrong = [
        f"{name} {settings.get(name)!r} instead of {theirs[name]!r}"
        for name in ("model", *own)
        if name in theirs and settings.get(name) != theirs[name]
    ]
    network = model.representation_model
    if not wrong:
        wrong = misfits(network.state_dict(), {"distance.box": network.distance.box, **pretrained.tensors})
    if wrong:
        raise ValueError(f"The network is not that of the encoder {path}: it has {'; '.join(wrong)}. Set what it has there.")
    network.load_state_dict({"distance.box": network.distance.box, **pretrained.tensors})
    if isinstance(model.output_model, WithNoise) and pretrained.head is not None:
        model.output_model.noise.load_state_dict(pretrained.head)


def cosine_schedule(optimizer: Any, steps: int, start: int, lowest: float) -> LambdaLR:
    """Let the learning rate fall from its value at step `start` to `lowest` of it at step `steps` along half a cosine.

    Loshchilov & Hutter, ICLR 2017, arXiv 1608.03983, without restarts.
    """

    def factor(step: int) -> float:
        done = min(max(step - start, 0) / max(steps - start, 1), 1.0)
        return lowest + (1 - lowest) * 0.5 * (1 + math.cos(math.pi * done))

    return LambdaLR(optimizer, factor)


def extend_training(module: Any) -> None:
    """Extend `torchmdnet.module`: a loss of classes, weights of atoms, noisy nodes, an encoder to start from, a schedule."""
    module.loss_class_mapping.setdefault(registration.CLASSIFICATION, cross_entropy)
    upstream_losses, upstream_training_step = module.LNNP._compute_losses, module.LNNP.training_step
    upstream_optimizers = module.LNNP.configure_optimizers

    @functools.wraps(upstream_optimizers)
    def configure_optimizers(self: Any) -> Any:
        optimizers, schedulers = upstream_optimizers(self)
        settings = self.hparams
        schedule = settings.get("lr_schedule", SCHEDULES[0])
        registration.check_choice("lr_schedule", schedule, SCHEDULES)
        if schedule != "cosine":
            return optimizers, schedulers
        steps = self.trainer.estimated_stepping_batches
        if math.isinf(steps):
            raise ValueError("lr_schedule: cosine has to know its last step, but num_epochs is not limited: give a number.")
        lowest = settings["lr_min"] / settings["lr"] if settings["lr"] else 0.0
        cosine = cosine_schedule(optimizers[0], steps, settings["lr_warmup_steps"], lowest)
        return optimizers, [{"scheduler": cosine, "interval": "step"}]

    @functools.wraps(upstream_losses)
    def compute_losses(self: Any, y: Any, neg_y: Any, batch: Any, loss_fn: Any, *rest: Any) -> Any:
        if "loss_weight" in batch:
            loss_fn = weighted(loss_fn, batch.loss_weight)
        losses = upstream_losses(self, y, neg_y, batch, loss_fn, *rest)
        return {**losses, "y": losses["y"] + denoising_loss(self, batch)}

    @functools.wraps(upstream_training_step)
    def training_step(self: Any, batch: Any, batch_idx: int) -> Any:
        scale = self.hparams.get("position_noise_scale") or 0.0
        return upstream_training_step(self, with_noise(batch, scale) if scale else batch, batch_idx)

    def on_fit_start(self: Any) -> None:
        """Start from an encoder, unless weights of another training were loaded."""
        settings = self.hparams
        if settings.get("encoder") and not settings.get("load_model") and not settings.get("load_weights"):
            start_from_encoder(self.model, settings)

    module.LNNP.configure_optimizers = configure_optimizers
    module.LNNP._compute_losses = compute_losses
    module.LNNP.training_step = training_step
    module.LNNP.on_fit_start = on_fit_start
