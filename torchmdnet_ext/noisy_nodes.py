"""Noise in positions as a second task beside a target, and networks of which only the head is trained.

Noisy nodes (Godwin et al. 2022, arXiv 2106.07971; Zaidi et al. 2022, arXiv 2206.00133): the positions of training data get
Gaussian noise, which a second head predicts beside the target. Validation and test see no noise.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torchmdnet.models.output_modules import OutputModel

from torchmdnet_ext.heads.noise import EquivariantNoise


class WithNoise(OutputModel):
    """A head, and beside it one that predicts the noise (N, 3) in positions while the network is trained."""

    def __init__(self, head: Any, noise: EquivariantNoise) -> None:
        super().__init__(head.allow_prior_model, head.reduce_op, head.static_shapes)
        self.head: Any = head
        self.noise: Any = noise
        self.predicted: Tensor | None = None

    def reset_parameters(self) -> None:
        """Draw new initial parameters."""
        self.head.reset_parameters()
        self.noise.reset_parameters()

    def pre_reduce(self, x: Tensor, v: Tensor, z: Tensor, pos: Tensor, batch: Tensor, box: Tensor | None = None) -> Tensor:
        """The atoms' contributions to the target."""
        self.predicted = self.noise.pre_reduce(x, v, z, pos, batch) if self.training else None
        return self.head.pre_reduce(x, v, z, pos, batch, box=box)

    def reduce(self, x: Tensor, batch: Tensor, num_systems: int | None = None) -> Tensor:
        """The sum or mean over atoms that the head makes."""
        return self.head.reduce(x, batch, num_systems=num_systems)

    def post_reduce(self, x: Tensor) -> Tensor:
        """What the head makes of the sum."""
        return self.head.post_reduce(x)

    def take_prediction(self) -> Tensor | None:
        """The noise (N, 3) that was predicted last, in units of its standard deviation; once."""
        predicted, self.predicted = self.predicted, None
        return predicted


def adapt(model: Any, args: Mapping[str, Any]) -> Any:
    """Freeze the network of a model, or give it a second head, as the settings of `torchmd-train` say.

    Raises ValueError for settings that exclude each other.
    """
    scale, frozen = args.get("position_noise_scale") or 0.0, args.get("freeze_encoder", False)
    if frozen not in (True, False):
        raise ValueError(f"freeze_encoder is {frozen!r}, but it must be true or false.")
    if scale < 0 or args.get("denoising_weight", 0.0) < 0:
        raise ValueError("position_noise_scale and denoising_weight must not be negative.")
    if frozen:
        model.representation_model.requires_grad_(False)
    if not scale:
        return model
    if frozen or isinstance(model.output_model, EquivariantNoise):
        other = "freeze_encoder" if frozen else f"output_model: {args['output_model']}"
        raise ValueError(
            f"position_noise_scale trains the network to predict noise beside a target, which {other} excludes: remove one."
        )
    dtype = next(model.output_model.parameters()).dtype
    noise = EquivariantNoise(args["embedding_dimension"], activation=args["activation"], dtype=dtype)
    model.output_model = WithNoise(model.output_model, noise)
    return model


def with_noise(batch: Any, scale: float) -> Any:
    """Add noise of a standard deviation in angstrom to the positions of a batch; it becomes `batch.position_noise`."""
    batch.position_noise = torch.randn_like(batch.pos)
    batch.pos = batch.pos + scale * batch.position_noise
    return batch


def denoising_loss(module: Any, batch: Any) -> Tensor | float:
    """The mean squared error of the predicted noise with its weight; 0 for a module without noise."""
    head = getattr(module.model, "output_model", None)  # `model: residues` has none
    predicted = head.take_prediction() if isinstance(head, WithNoise) else None
    if predicted is None or "position_noise" not in batch:
        return 0.0
    return module.hparams["denoising_weight"] * nn.functional.mse_loss(predicted, batch.position_noise.to(predicted.dtype))
