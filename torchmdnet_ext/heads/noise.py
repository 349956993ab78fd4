"""Per-atom vector read-out for denoising (Zaidi et al. 2022, arXiv 2206.00133)."""

from typing import Any

import torch
from torch import Tensor, nn

from torchmdnet_ext.models.building_blocks import ACTIVATIONS, vectors, xavier


class _GatedBlock(nn.Module):
    """A gated equivariant block (Schütt et al., PaiNN, arXiv 2102.03150), with the parameters of TorchMD-Net's.

    Of scalars (N, H) and vectors (N, 3, H) it makes (N, out) and (N, 3, out). activated: whether the scalars go through the
    activation at last.
    """

    def __init__(self, channels: int, out_channels: int, activation: str, activated: bool, dtype: torch.dtype) -> None:
        super().__init__()
        self.out_channels = out_channels
        self.vec1_proj = nn.Linear(channels, channels, bias=False, dtype=dtype)
        self.vec2_proj = nn.Linear(channels, out_channels, bias=False, dtype=dtype)
        make = ACTIVATIONS[activation]
        first, last = nn.Linear(2 * channels, channels, dtype=dtype), nn.Linear(channels, 2 * out_channels, dtype=dtype)
        self.update_net = nn.ModuleDict({"layers": nn.Sequential(first, make(), last)})
        self.act = make() if activated else None

    def reset_parameters(self) -> None:
        """Draw new initial parameters."""
        xavier(*(module for module in self.modules() if isinstance(module, nn.Linear)))

    def forward(self, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        squared = self.vec1_proj(v).square().sum(dim=1)
        some = squared > 0  # the length of a vector of 0 has no gradient
        length = torch.where(some, squared, 1.0).sqrt() * some
        mixed = self.update_net["layers"](torch.cat([x, length], dim=-1))
        x, gate = mixed.split(self.out_channels, dim=-1)
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


class EquivariantNoise(nn.Module):
    """One vector per atom from scalars (N, H) and vectors (N, 3 or 8, H): the predicted noise, (N, 3).

    In a configuration of `torchmd-train` it is `output_model: Noise`. Rows stay per atom (`reduce` does nothing), so with
    the noise as `batch.y` the trainer's own mean squared error per coordinate is the denoising loss. It has all that
    TorchMD-Net's `OutputModel` has, which is not imported (see `models.building_blocks`).

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
        super().__init__()
        self.allow_prior_model, self.reduce_op, self.static_shapes = allow_prior_model, reduce_op, static_shapes
        half = hidden_channels // 2
        self.output_network: Any = nn.ModuleList(
            [_GatedBlock(hidden_channels, half, activation, True, dtype), _GatedBlock(half, 1, activation, False, dtype)]
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

    def post_reduce(self, x: Tensor) -> Tensor:
        """Return `x` (N, 3) as it is."""
        return x
