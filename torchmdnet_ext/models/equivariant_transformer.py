"""The equivariant transformer of TorchMD-Net (Thölke & De Fabritiis, ICLR 2022, arXiv 2202.02541), made smooth.

Parameters, their names and, with `smooth_cutoff=False`, the values are those of `torchmdnet.models.torchmd_et`, which is not
imported (see `building_blocks`). The differences are a C2 envelope on every message, a neighbour search without a cap, and
radial filters that are computed once for both directions of a pair.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from torchmdnet_ext.models.building_blocks import ACTIVATIONS, RADIAL_BASES, CosineCutoff, NeighbourEmbedding, xavier
from torchmdnet_ext.models.envelopes import DEFAULT_WIDTH, enveloped_neighbour_embedding, make_envelope
from torchmdnet_ext.models.fused_attention import FusedMessages, reason_against
from torchmdnet_ext.models.neighbours import Graph, Neighbours
from torchmdnet_ext.models.radial_grid import RadialGrid

# whether filters of the distance multiply the keys, and the values
INFLUENCES = {"keys": (True, False), "values": (False, True), "both": (True, True), "none": (False, False)}


class SmoothAttention(nn.Module):
    """One interaction layer, whose messages are multiplied by an envelope.

    Parameters
    ----------
    hidden_channels, num_rbf, num_heads, distance_influence, activation, attn_activation, dtype
        As of `SmoothEquivariantTransformer`.

    Raises
    ------
    ValueError
        If there are not as many channels for each head.
    """

    def __init__(
        self,
        hidden_channels: int,
        num_rbf: int,
        num_heads: int,
        distance_influence: str,
        activation: str,
        attn_activation: str,
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        if hidden_channels % num_heads:
            raise ValueError(
                f"{hidden_channels} hidden channels cannot be divided among {num_heads} heads: set embedding_dimension to a "
                "multiple of num_heads."
            )
        self.hidden_channels, self.num_heads, self.head_dim = hidden_channels, num_heads, hidden_channels // num_heads
        self.act, self.attn_activation = ACTIVATIONS[activation](), ACTIVATIONS[attn_activation]()
        self.layernorm = nn.LayerNorm(hidden_channels, dtype=dtype)
        self.q_proj = nn.Linear(hidden_channels, hidden_channels, dtype=dtype)
        self.k_proj = nn.Linear(hidden_channels, hidden_channels, dtype=dtype)
        self.v_proj = nn.Linear(hidden_channels, 3 * hidden_channels, dtype=dtype)
        self.o_proj = nn.Linear(hidden_channels, 3 * hidden_channels, dtype=dtype)
        self.vec_proj = nn.Linear(hidden_channels, 3 * hidden_channels, bias=False, dtype=dtype)
        keys, values = INFLUENCES[distance_influence]
        self.dk_proj = nn.Linear(num_rbf, hidden_channels, dtype=dtype) if keys else None
        self.dv_proj = nn.Linear(num_rbf, 3 * hidden_channels, dtype=dtype) if values else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw new initial parameters."""
        self.layernorm.reset_parameters()
        xavier(*(module for module in self.children() if isinstance(module, nn.Linear)))

    def forward(
        self, x: Tensor, vec: Tensor | None, messages: Callable[..., tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, Tensor]:
        """Compute the residuals of the scalars and vectors.

        Parameters
        ----------
        x : (N, H)
        vec : (N, 3, H), or None for 0, as in the first layer
        messages : PlainMessages or FusedMessages
            Messages of this batch.
        """
        x = self.layernorm(x)
        total_x, total_v = messages(self, x, vec)
        # where vec is 0, one row stands for those of all atoms
        projected = self.vec_proj(x.new_zeros(1, 3, self.hidden_channels) if vec is None else vec)
        vec1, vec2, vec3 = projected.split(self.hidden_channels, dim=-1)
        o1, o2, o3 = self.o_proj(total_x).split(self.hidden_channels, dim=1)
        dx = (vec1 * vec2).sum(dim=1) * o2 + o3
        dvec = vec3 * o1.unsqueeze(1) + total_v
        return dx, dvec


class PlainMessages:
    """The messages of one batch in plain PyTorch, with one radial filter for both directions of a pair."""

    def __init__(self, network: "SmoothEquivariantTransformer", graph: Graph) -> None:
        distance = graph.filter_distances()
        self.graph = graph
        self.rbf = network.distance_expansion(distance)
        self.weight = network.message_weights(distance)

    def __call__(self, layer: SmoothAttention, x: Tensor, vec: Tensor | None) -> tuple[Tensor, Tensor]:
        """Sum the messages to every atom, (N, H) and (N, 3, H), given normalised scalars (N, H) and vectors."""
        graph, heads, width = self.graph, layer.num_heads, layer.head_dim
        q = layer.q_proj(x).view(-1, heads, width)
        k = layer.k_proj(x).view(-1, heads, width)
        v = layer.v_proj(x).view(-1, heads, 3 * width)
        # filters of all pairs and, last, of the self loops
        key = None if layer.dk_proj is None else layer.act(layer.dk_proj(self.rbf)).view(-1, heads, width)
        value = self.weight[:, 1:].unsqueeze(1)
        if layer.dv_proj is not None:
            value = value * layer.act(layer.dv_proj(self.rbf)).view(-1, heads, 3 * width)

        def attended(product: Tensor, rows: Any) -> Tensor:
            product = product if key is None else product * key[rows]
            return layer.attn_activation(product.sum(-1, keepdim=True)) * self.weight[rows, :1].unsqueeze(1)

        last, pairs = slice(-1, None), slice(None, -1)
        scalar, gate, _ = (v * value[last]).split(width, dim=-1)
        total_x = (scalar * attended(q * k, last)).reshape(x.shape)
        total_v = x.new_zeros(x.shape[0], 3, x.shape[1]) if vec is None else vec * gate.reshape(-1, 1, x.shape[1])
        for target, source, direction in ((graph.i, graph.j, graph.direction), (graph.j, graph.i, -graph.direction)):
            attention = attended(q.index_select(0, target) * k.index_select(0, source), pairs)
            message = v.index_select(0, source) * value[pairs]
            scalar, gate, radial = message.split(width, dim=-1)
            total_x = total_x.index_add(0, target, (scalar * attention).reshape(-1, x.shape[1]))
            vector = radial.reshape(-1, 1, x.shape[1]) * direction.unsqueeze(2)
            if vec is not None:
                vector = vector + vec.index_select(0, source) * gate.reshape(-1, 1, x.shape[1])
            total_v = total_v.index_add(0, target, vector)
        return total_x, total_v


class SmoothEquivariantTransformer(nn.Module):
    """Equivariant transformer whose output has two continuous derivatives when pairs cross the cutoff.

    Parameters
    ----------
    hidden_channels, num_layers, num_rbf, num_heads : int
        Channels of each atom, layers, functions of the radial basis, and heads of the attention.
    rbf_type : {"expnorm", "gauss"}
    trainable_rbf : bool
    activation, attn_activation : str
        Names of `building_blocks.ACTIVATIONS`: in the layers, and of the attention.
    neighbor_embedding : bool
        Embed the neighbours of atoms before the first layer.
    distance_influence : {"keys", "values", "both", "none"}
        What is multiplied by filters of the distance.
    cutoff_lower, cutoff_upper : float
        angstrom; the lower one must be 0.
    max_z : int
        Atomic numbers are below.
    vector_cutoff : bool
        Apply the cosine cutoff to values, and not to the attention.
    smooth_cutoff : bool
        Multiply every message by a C2 envelope. Without it the network is the published one, and its output jumps when a
        pair crosses the cutoff.
    envelope_width : float
        Length in angstrom over which the envelope falls from 1 to 0 before `cutoff_upper`.
    box_vecs : (3, 3) tensor, optional
        A periodic box, in angstrom.
    dtype : torch.dtype
    max_num_neighbors : int, optional
        As of TorchMD-Net; it has no meaning, as no neighbour is ever dropped.

    Attributes
    ----------
    compiled : bool
        Whether training on a CPU may use the compiled messages of `fused_attention` (the default); they are used where
        numba is installed and the positions need no gradient, and have no second derivatives.

    Raises
    ------
    ValueError
        If `cutoff_lower` is not 0, `distance_influence` is unknown, or channels cannot be divided among the heads.
    """

    def __init__(
        self,
        hidden_channels: int = 128,
        num_layers: int = 6,
        num_rbf: int = 50,
        rbf_type: str = "expnorm",
        trainable_rbf: bool = True,
        activation: str = "silu",
        attn_activation: str = "silu",
        neighbor_embedding: bool = True,
        num_heads: int = 8,
        distance_influence: str = "both",
        cutoff_lower: float = 0.0,
        cutoff_upper: float = 5.0,
        max_z: int = 100,
        vector_cutoff: bool = False,
        smooth_cutoff: bool = True,
        envelope_width: float = DEFAULT_WIDTH,
        box_vecs: Tensor | None = None,
        dtype: torch.dtype = torch.float32,
        max_num_neighbors: int | None = None,
    ) -> None:
        super().__init__()
        if cutoff_lower != 0:
            raise ValueError(f"cutoff_lower must be 0 for this network, but was {cutoff_lower}.")
        if distance_influence not in INFLUENCES:
            raise ValueError(f"distance_influence is {distance_influence!r}, but it must be one of {', '.join(INFLUENCES)}.")
        self.hidden_channels, self.num_layers, self.num_heads = hidden_channels, num_layers, num_heads
        self.activation, self.attn_activation = activation, attn_activation
        self.cutoff_upper, self.max_z = cutoff_upper, max_z
        self.smooth_cutoff = bool(smooth_cutoff)
        self.envelope_width = float(envelope_width)
        self.vector_cutoff = bool(vector_cutoff)
        # in the order of the published network, in which optimisers of earlier trainings number the parameters
        self.embedding = nn.Embedding(max_z, hidden_channels, dtype=dtype)
        self.distance = Neighbours(cutoff_upper, box_vecs)
        self.distance_expansion: Any = RADIAL_BASES[rbf_type](cutoff_upper, num_rbf, trainable_rbf)
        self.neighbor_embedding = (
            NeighbourEmbedding(hidden_channels, num_rbf, max_z, cutoff_upper, dtype) if neighbor_embedding else None
        )
        self.attention_layers = nn.ModuleList()
        self.out_norm = nn.LayerNorm(hidden_channels)
        self.compiled = True
        self.radial_grid = RadialGrid(self.distance_expansion, cutoff_upper)
        self.cutoff = CosineCutoff(cutoff_upper)
        self.envelope = make_envelope(smooth_cutoff, cutoff_upper, self.envelope_width)
        layer = hidden_channels, num_rbf, num_heads, distance_influence, activation, attn_activation, dtype
        for _ in range(2):  # so that a seed gives the weights that it gave when layers of a parent were replaced
            self.attention_layers = nn.ModuleList(SmoothAttention(*layer) for _ in range(num_layers))
            self.reset_parameters()
        self.to(dtype)

    def reset_parameters(self) -> None:
        """Draw new initial parameters of all layers."""
        first = [self.embedding, self.distance_expansion]
        first += [] if self.neighbor_embedding is None else [self.neighbor_embedding]
        modules: list[Any] = [*first, *self.attention_layers, self.out_norm]
        for module in modules:
            module.reset_parameters()

    def message_weights(self, distance: Tensor) -> Tensor:
        """(P, 2) factors of the attention and of the whole message at distances (P,) in angstrom."""
        cutoff = self.cutoff(distance)
        envelope = self.envelope(distance)
        if self.vector_cutoff:
            return torch.stack([torch.ones_like(cutoff), cutoff * envelope], 1)
        return torch.stack([cutoff, envelope], 1)

    def forward(
        self,
        z: Tensor,
        pos: Tensor,
        batch: Tensor,
        box: Tensor | None = None,
        q: Tensor | None = None,
        s: Tensor | None = None,
        pairs: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor | None, Tensor, Tensor, Tensor]:
        """Scalars (N, H) and vectors (N, 3, H) of atoms `z` (N,) at `pos` (N, 3) in angstrom.

        Returns x, v, z, pos, batch as every representation model of TorchMD-Net does.
        """
        graph = self.distance(pos, batch, box, pairs)
        fused = self.compiled and reason_against(self, pos, box) is None
        messages = FusedMessages(self, graph) if fused else PlainMessages(self, graph)
        x = self.embedding(z)
        if self.neighbor_embedding is not None:
            rbf = messages.rbf if isinstance(messages, PlainMessages) else self.distance_expansion(graph.filter_distances())
            x = enveloped_neighbour_embedding(self.neighbor_embedding, z, x, graph, rbf, self.envelope)
        vec = None
        for layer in self.attention_layers:
            dx, dvec = layer(x, vec, messages)
            x = x + dx
            vec = dvec if vec is None else vec + dvec
        return self.out_norm(x), vec, z, pos, batch
