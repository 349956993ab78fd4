"""The envelope that makes messages vanish smoothly at the cutoff."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from torchmdnet_ext.models.neighbours import Graph

DEFAULT_WIDTH = 1.0  # angstrom


class C2Envelope(nn.Module):
    """1 up to `cutoff - width`, 0 from `cutoff` on, a quintic in between with two continuous derivatives.

    Parameters
    ----------
    cutoff : float
        Distance in angstrom from which on the envelope is 0.
    width : float
        Length in angstrom over which it falls from 1 to 0.

    Raises
    ------
    ValueError
        If `width` is not positive or exceeds `cutoff`.
    """

    def __init__(self, cutoff: float, width: float = DEFAULT_WIDTH) -> None:
        super().__init__()
        if not 0 < width <= cutoff:
            raise ValueError(
                f"The envelope's width must be positive and no larger than the cutoff, but width is {width} and "
                f"cutoff is {cutoff} angstrom. Set envelope_width to a value between 0 and cutoff_upper."
            )
        self.cutoff = float(cutoff)
        self.width = float(width)

    def forward(self, distance: Tensor) -> Tensor:
        """Envelope of distances in angstrom; same shape as `distance`."""
        u = ((distance - (self.cutoff - self.width)) / self.width).clamp(0.0, 1.0)
        return 1.0 - u * u * u * (10.0 - 15.0 * u + 6.0 * u * u)


class NoEnvelope(nn.Module):
    """No envelope, as in the published networks: they have their own cutoff function, and no messages beyond it."""

    def __init__(self, cutoff: float) -> None:
        super().__init__()
        self.cutoff = float(cutoff)

    def forward(self, distance: Tensor) -> Tensor:
        """Return 1 at distances (P,) within the cutoff and 0 beyond it."""
        return (distance < self.cutoff).to(distance.dtype)


def make_envelope(smooth_cutoff: bool, cutoff: float, width: float) -> nn.Module:
    """Make the envelope of a network: C2 if `smooth_cutoff` is set, none otherwise."""
    return C2Envelope(cutoff, width) if smooth_cutoff else NoEnvelope(cutoff)


def enveloped_neighbour_embedding(
    module: Any, z: Tensor, x: Tensor, graph: Graph, rbf: Tensor, envelope: nn.Module
) -> Tensor:
    """Compute the neighbour embedding of TorchMD-Net's or PyG's `module` with messages multiplied by an envelope.

    Returns (N, H).

    Parameters
    ----------
    module : the published module; its `embedding`, `distance_proj`, `combine` and `cutoff` are used.
    z, x : (N,), (N, H)
    graph : Graph
    rbf : (P + 1, K)
        Radial basis of all pairs and, last, of the self loops, which this embedding leaves out.
    """
    weight = module.distance_proj(rbf[:-1]) * (module.cutoff(graph.distance) * envelope(graph.distance))[:, None]
    neighbours = module.embedding(z)
    total = torch.zeros_like(x)
    total = total.index_add(0, graph.i, weight * neighbours[graph.j]).index_add(0, graph.j, weight * neighbours[graph.i])
    return module.combine(torch.cat([x, total], dim=1)).to(x.dtype)  # they differ where precisions are mixed
