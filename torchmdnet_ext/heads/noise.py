"""Per-atom vector read-out for denoising (Zaidi et al. 2022, arXiv 2206.00133)."""

from typing import Any

import torch
from torch import Tensor, nn
from torchmdnet.models.output_modules import OutputModel
from torchmdnet.models.utils import GatedEquivariantBlock

from torchmdnet_ext.models.visnet import vectors


class _GatedBlock(GatedEquivariantBlock):
    """TorchMD-Net's block with the lengths of vectors in a few whole-array operations; values and gradients are the same."""

    def forward(self, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        squared = self.vec1_proj(v).square().sum(dim=1)
        some = squared > 0  # the length of a vector of 0 has no gradient
        length = torch.where(some, squared, 1.0).sqrt() * some
        x, gate = self.update_net(torch.cat([x, length], dim=-1)).split(self.out_channels, dim=-1)
        return (x if self.act is None else self.act(x)), gate.unsqueeze(1) * self.vec2_proj(v)


# arguments that TorchMD-Net's `create_model` passes to every head
_OF_OTHER_HEADS = {
    "num_layers",
    "q_dim",
    "q_weights",
    "coulomb_cutoff",
    "coulomb_max_num_neighbors",
    "coulomb_neighbor_strategy",
}


class EquivariantNoise(OutputModel):
    """One vector per atom from scalars (N, H) and vectors (N, 3 or 8, H): the predicted noise, (N, 3).

    In a configuration of `torchmd-train` it is `output_model: Noise`. Rows stay per atom (`reduce` does nothing), so with
    the noise as `batch.y` the trainer's own mean squared error per coordinate is the denoising loss.

    Raises ValueError if num_hidden_layers (`output_mlp_num_layers`) is not 0, since there are none, and TypeError for
    settings that no head has.
    """

    def __init__(
        self,
        hidden_channels: int,
        activation: str = "silu",
        allow_prior_model: bool = False,
        reduce_op: str = "sum",
        dtype: torch.dtype = torch.float,
        static_shapes: bool = False,
        num_hidden_layers: int = 0,
        **of_others: Any,
    ) -> None:
        unknown = ", ".join(sorted(of_others.keys() - _OF_OTHER_HEADS))
        if unknown:
            raise TypeError(f"The head Noise has no settings {unknown}: it has activation and reduce_op.")
        if num_hidden_layers:
            raise ValueError(
                f"output_mlp_num_layers is {num_hidden_layers}, but the head Noise has no such layers: leave it out, or 0."
            )
        super().__init__(allow_prior_model=allow_prior_model, reduce_op=reduce_op, static_shapes=static_shapes)
        half = hidden_channels // 2
        self.output_network: Any = nn.ModuleList(
            [
                _GatedBlock(hidden_channels, half, activation=activation, scalar_activation=True, dtype=dtype),
                _GatedBlock(half, 1, activation=activation, dtype=dtype),
            ]
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw new initial parameters."""
        for layer in self.output_network:
            layer.reset_parameters()

    def pre_reduce(self, x: Tensor, v: Tensor, z: Tensor, pos: Tensor, batch: Tensor, box: Tensor | None = None) -> Tensor:
        """Predict the noise (N, 3) in units of its standard deviation."""
        v = vectors(v)
        for layer in self.output_network:
            x, v = layer(x, v)
        return v.squeeze(2)

    def reduce(self, x: Tensor, batch: Tensor, num_systems: int | None = None) -> Tensor:
        """Return `x` (N, 3) as it is: the noise is predicted for each atom."""
        return x
