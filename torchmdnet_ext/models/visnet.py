"""ViSNet (Wang et al., Nat. Commun. 2024, arXiv 2210.16518): PyG's published block with our neighbours and envelope."""

import torch
from torch import Tensor, nn
from torch_geometric.nn.models.visnet import ViS_MP, ViS_MP_Vertex, ViSNetBlock

from torchmdnet_ext.models.envelopes import DEFAULT_WIDTH, enveloped_neighbour_embedding, make_envelope
from torchmdnet_ext.models.fused_visnet import fused_messages, reason_against
from torchmdnet_ext.models.neighbours import Graph, Neighbours


class _SmoothMessages:
    """Mix-in for PyG's message passing layers: both messages are multiplied by an envelope.

    The linear map behind the enveloped attention has a bias, so without this the vector message of a pair at the cutoff
    is not zero.
    """

    envelope: nn.Module

    def message(
        self, q_i: Tensor, k_j: Tensor, v_j: Tensor, vec_j: Tensor, dk: Tensor, dv: Tensor, r_ij: Tensor, d_ij: Tensor
    ) -> tuple[Tensor, Tensor]:
        x, vec = super().message(q_i, k_j, v_j, vec_j, dk, dv, r_ij, d_ij)  # type: ignore[misc]  # of the other base
        envelope = self.envelope(r_ij)
        return x * envelope[:, None], vec * envelope[:, None, None]


class SmoothViSMP(_SmoothMessages, ViS_MP):
    """ViSNet's message passing without vertex geometry."""


class SmoothViSMPVertex(_SmoothMessages, ViS_MP_Vertex):
    """ViSNet's message passing with vertex geometry."""


class ViSNet(ViSNetBlock):
    """ViSNet as a representation model of TorchMD-Net.

    Parameters
    ----------
    hidden_channels, num_layers, num_rbf, num_heads, max_z, trainable_rbf
        As everywhere in TorchMD-Net.
    cutoff_upper : float
        In angstrom.
    lmax : int
        1 or 2, the highest degree of the spherical harmonics.
    vecnorm_type : {"none", "max_min"}
        Normalisation of the vectors; `max_min` is not continuous for an atom that gains its first neighbour.
    vertex : bool
        Use vertex geometric features.
    smooth_cutoff, envelope_width
        The C2 envelope on every message.

    Attributes
    ----------
    compiled : bool
        Whether training on a CPU may use the compiled messages of `fused_visnet` (the default); they are used where numba is
        installed and the positions need no gradient, and have no second derivatives.

    Raises
    ------
    ValueError
        If `activation` or `rbf_type` is not what ViSNet is defined with, `cutoff_lower` is not 0, or `lmax` or
        `vecnorm_type` is not one of the choices.
    """

    def __init__(
        self,
        hidden_channels: int = 128,
        num_layers: int = 6,
        num_rbf: int = 32,
        num_heads: int = 8,
        max_z: int = 100,
        cutoff_upper: float = 5.0,
        cutoff_lower: float = 0.0,
        rbf_type: str = "expnorm",
        trainable_rbf: bool = False,
        activation: str = "silu",
        lmax: int = 1,
        vecnorm_type: str = "none",
        trainable_vecnorm: bool = False,
        vertex: bool = False,
        smooth_cutoff: bool = True,
        envelope_width: float = DEFAULT_WIDTH,
        box_vecs: Tensor | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        for name, value, only in (
            ("activation", activation, "silu"),
            ("rbf_type", rbf_type, "expnorm"),
            ("cutoff_lower", cutoff_lower, 0.0),
        ):
            if value != only:
                raise ValueError(f"ViSNet is defined with {name}: {only}, but {name} was {value}. Remove the setting.")
        for name, value, choices in (("lmax", lmax, (1, 2)), ("vecnorm_type", vecnorm_type, (None, "none", "max_min"))):
            if value not in choices:
                raise ValueError(f"{name} must be {' or '.join(str(c) for c in choices if c)}, but was {value}.")
        super().__init__(
            lmax=lmax,
            vecnorm_type=None if vecnorm_type in (None, "none") else vecnorm_type,
            trainable_vecnorm=trainable_vecnorm,
            num_heads=num_heads,
            num_layers=1,  # they are replaced below
            hidden_channels=hidden_channels,
            num_rbf=num_rbf,
            trainable_rbf=trainable_rbf,
            max_z=max_z,
            cutoff=cutoff_upper,
            vertex=vertex,
        )
        self.num_layers = int(num_layers)
        self.cutoff_upper = float(cutoff_upper)
        self.vertex = bool(vertex)
        self.smooth_cutoff = bool(smooth_cutoff)
        self.envelope_width = float(envelope_width)
        self.compiled = True
        self.distance = Neighbours(cutoff_upper, box_vecs)
        self.envelope = make_envelope(smooth_cutoff, cutoff_upper, self.envelope_width)
        layer_class = SmoothViSMPVertex if vertex else SmoothViSMP
        self.vis_mp_layers = nn.ModuleList(
            layer_class(
                num_heads=num_heads,
                hidden_channels=hidden_channels,
                cutoff=cutoff_upper,
                vecnorm_type=self.vecnorm_type,
                trainable_vecnorm=trainable_vecnorm,
                last_layer=last,
            )
            for last in [False] * (num_layers - 1) + [True]
        )
        for layer in self.vis_mp_layers:
            layer.envelope = self.envelope
        self.to(dtype)

    def forward(
        self,
        z: Tensor,
        pos: Tensor,
        batch: Tensor,
        box: Tensor | None = None,
        q: Tensor | None = None,
        s: Tensor | None = None,
        pairs: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Scalars (N, H) and vectors (N, 3 or 8, H) of atoms `z` (N,) at `pos` (N, 3) in angstrom.

        Returns x, v, z, pos, batch as every representation model of TorchMD-Net does.
        """
        graph = self.distance(pos, batch, box, pairs)
        rows = graph.filter_distances()
        rbf = self.distance_expansion(rows)
        x = enveloped_neighbour_embedding(self.neighbor_embedding, z, self.embedding(z), graph, rbf, self.envelope)
        if self.compiled and reason_against(self, pos, box) is None:
            ends = torch.cat([x[graph.i] + x[graph.j], 2 * x])
            own = rbf[-1:].expand(len(x), -1)
            features = ends * self.edge_embedding.edge_proj(torch.cat([rbf[:-1], own]))
            x, vec = fused_messages(self, x, features, graph)
        else:
            x, vec = self._messages(x, graph, rows, rbf)
        return self.out_norm(x), self.vec_out_norm(vec), z, pos, batch

    def _messages(self, x: Tensor, graph: Graph, rows: Tensor, rbf: Tensor) -> tuple[Tensor, Tensor]:
        """Scalars and vectors behind the last layer by PyG's layers; `rbf` (P + 1, K) at the distances `rows`."""
        source, target, direction = graph.directed()
        edge_index = torch.stack([source, target])
        distance, rbf = graph.pair_rows(rows), graph.pair_rows(rbf)
        sphere = self.sphere(direction)
        vec = x.new_zeros(x.shape[0], (self.lmax + 1) ** 2 - 1, x.shape[1])
        edge_attr = self.edge_embedding(edge_index, rbf, x)
        for layer in self.vis_mp_layers:
            dx, dvec, dedge_attr = layer(x, vec, edge_index, distance, edge_attr, sphere)
            x = x + dx
            vec = vec + dvec
            if dedge_attr is not None:
                edge_attr = edge_attr + dedge_attr
        return x, vec
