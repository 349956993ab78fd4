"""The equivariant transformer of TorchMD-Net (Thölke & De Fabritiis, ICLR 2022, arXiv 2202.02541), made smooth.

Parameters, their names and, with `smooth_cutoff=False`, the values are those of `torchmdnet.models.torchmd_et`; what
differs is a C2 envelope on every message, the neighbour search (no cap), and that each radial filter is computed once for
both directions of a pair.
"""

import torch
from torch import Tensor, nn
from torchmdnet.models.torchmd_et import EquivariantMultiHeadAttention, TorchMD_ET
from torchmdnet.models.utils import act_class_mapping

from torchmdnet_ext.models.envelopes import DEFAULT_WIDTH, enveloped_neighbour_embedding, make_envelope
from torchmdnet_ext.models.neighbours import Graph, Neighbours


class SmoothAttention(EquivariantMultiHeadAttention):
    """One interaction layer; the parameters of its parent, messages multiplied by an envelope."""

    def forward(self, x: Tensor, vec: Tensor, graph: Graph, edges, rbf: Tensor, weight: Tensor):
        """Residuals of the scalars and vectors.

        Parameters
        ----------
        x, vec : (N, H), (N, 3, H)
        edges : source (E,), target (E,), direction (E, 3)
            As made by `Graph.directed`.
        rbf : (P + 1, K)
            Radial basis at `Graph.filter_distances`.
        weight : (P + 1, 2)
            Factors of the attention and of the whole message at the same distances.
        """
        source, target, direction = edges
        heads, width = self.num_heads, self.head_dim
        x = self.layernorm(x)
        q = self.q_proj(x).view(-1, heads, width)
        k = self.k_proj(x).view(-1, heads, width)
        v = self.v_proj(x).view(-1, heads, 3 * width)
        vec1, vec2, vec3 = self.vec_proj(vec).split(self.hidden_channels, dim=-1)
        vec_dot = (vec1 * vec2).sum(dim=1)

        weight = graph.pair_rows(weight)
        product = q.index_select(0, target) * k.index_select(0, source)
        if self.dk_proj is not None:
            product = product * graph.pair_rows(self.act(self.dk_proj(rbf)).view(-1, heads, width))
        attention = self.attn_activation(product.sum(-1, keepdim=True)) * weight[:, :1].unsqueeze(1)
        message = v.index_select(0, source)
        if self.dv_proj is not None:
            message = message * graph.pair_rows(self.act(self.dv_proj(rbf)).view(-1, heads, 3 * width))
        message = message * weight[:, 1:].unsqueeze(1)
        scalar, gate, radial = message.split(width, dim=-1)
        scalar = (scalar * attention).reshape(-1, self.hidden_channels)
        gate = gate.reshape(-1, 1, self.hidden_channels)
        radial = radial.reshape(-1, 1, self.hidden_channels)
        vector = vec.index_select(0, source) * gate + radial * direction.unsqueeze(2)

        o1, o2, o3 = self.o_proj(torch.zeros_like(x).index_add(0, target, scalar)).split(self.hidden_channels, dim=1)
        dx = vec_dot * o2 + o3
        dvec = vec3 * o1.unsqueeze(1) + torch.zeros_like(vec).index_add(0, target, vector)
        return dx, dvec


class SmoothEquivariantTransformer(TorchMD_ET):
    """Equivariant transformer whose output has two continuous derivatives when pairs cross the cutoff.

    Takes the arguments of `TorchMD_ET` and:

    Parameters
    ----------
    smooth_cutoff : bool
        Multiply every message by a C2 envelope. Without it the network is the published one, and its output jumps when a
        pair crosses the cutoff.
    envelope_width : float
        Length in angstrom over which the envelope falls from 1 to 0 before `cutoff_upper`.
    """

    def __init__(self, *, smooth_cutoff=True, envelope_width=DEFAULT_WIDTH, box_vecs=None, **settings):
        settings.pop("max_num_neighbors", None)  # no neighbour is ever dropped
        super().__init__(**settings)
        if self.cutoff_lower != 0:
            raise ValueError(f"cutoff_lower must be 0 for this network, but was {self.cutoff_lower}.")
        self.smooth_cutoff = bool(smooth_cutoff)
        self.envelope_width = float(envelope_width)
        self.vector_cutoff = bool(settings.get("vector_cutoff", False))
        self.distance = Neighbours(self.cutoff_upper, box_vecs)
        self.envelope = make_envelope(smooth_cutoff, self.cutoff_upper, self.envelope_width)
        self.attention_layers = nn.ModuleList(
            SmoothAttention(
                self.hidden_channels,
                self.num_rbf,
                self.distance_influence,
                self.num_heads,
                act_class_mapping[self.activation],
                self.attn_activation,
                self.cutoff_lower,
                self.cutoff_upper,
                self.vector_cutoff,
                self.dtype,
            )
            for _ in range(self.num_layers)
        )
        self.reset_parameters()

    def message_weights(self, distance: Tensor) -> Tensor:
        """(P, 2) factors of the attention and of the whole message at distances (P,) in angstrom."""
        cutoff = self.attention_layers[0].cutoff(distance)
        envelope = self.envelope(distance)
        if self.vector_cutoff:
            return torch.stack([torch.ones_like(cutoff), cutoff * envelope], 1)
        return torch.stack([cutoff, envelope], 1)

    def forward(self, z, pos, batch, box=None, q=None, s=None, pairs=None):
        """Scalars (N, H) and vectors (N, 3, H) of atoms `z` (N,) at `pos` (N, 3) in angstrom.

        Returns x, v, z, pos, batch as every representation model of TorchMD-Net does.
        """
        graph = self.distance(pos, batch, box, pairs)
        edges = graph.directed()
        distance = graph.filter_distances()
        rbf = self.distance_expansion(distance)
        weight = self.message_weights(distance)
        x = self.embedding(z)
        if self.neighbor_embedding is not None:
            x = enveloped_neighbour_embedding(self.neighbor_embedding, z, x, graph, rbf, self.envelope)
        vec = x.new_zeros(x.shape[0], 3, x.shape[1])
        for layer in self.attention_layers:
            dx, dvec = layer(x, vec, graph, edges, rbf, weight)
            x = x + dx
            vec = vec + dvec
        return self.out_norm(x), vec, z, pos, batch
