"""What the kernels of ViSNet take, by name, and the sizes of their arrays.

M atoms, P candidate pairs, E = 2P + M directed edges (both directions of every pair, and self loops), P + M rows (pairs,
then self loops), S = 3 or 8 components of vectors, C channels (padded), H true channels, L layers, T = TILE edges of a tile.
K is L where the values of all layers are kept for the gradient, otherwise 1. A and B are the most linear maps of edge
features and of vectors that a layer has, side by side.
"""

from typing import NamedTuple

import numpy as np

from torchmdnet_ext.compiled.arguments import Near, RadialTable, make_near
from torchmdnet_ext.compiled.jit import kernel
from torchmdnet_ext.kernels.lanes import PANEL

TILE = 48  # edges whose projections are in the first- and second-level cache at once; whole blocks of `matmul`
MOST_HELD = 256e6  # bytes of projections that are kept for the gradient, rather than computed again


class Sizes(NamedTuple):
    """Sizes of a network, and which of its variants it is."""

    groups: int
    depth: int
    channels: int
    components: int
    layers: int
    edge_maps: int  # A
    vector_maps: int  # B
    vertex: bool
    max_min: bool
    features: float  # true channels


def make_sizes(groups, depth, channels, lmax, layers, vertex, max_min, features):
    """The `Sizes` of a network with these settings."""
    edge_maps, vector_maps = (4, 7) if vertex else (3, 5)
    return Sizes(
        groups, depth, channels, (lmax + 1) ** 2 - 1, layers, edge_maps, vector_maps, bool(vertex), bool(max_min), features
    )


class Layer(NamedTuple):
    """What is special about a layer: the linear maps that it has, and where it starts in arrays of all layers.

    Layer 0 has no vectors to multiply or to update edges with. Edge features are the same in both directions of a pair in
    the layers 0 and 1, which share their projections between both. The last layer does not update edges.
    """

    number: int
    last: bool
    gated: bool  # has vectors
    shared: bool  # edge features are those of rows
    edge_width: int  # channels of the linear maps of edge features: keys, values, update
    message_width: int  # channels of the linear maps of messages: what multiplies directions, and vectors
    vector_width: int  # channels of the linear maps of vectors
    scalars0: int  # in arrays (K, M, C); those with several times C channels start at that multiple
    vectors0: int  # in arrays (L + 1, M, S, C)
    projected0: int  # in `Kept.projected`
    features0: int  # of the edge features in `Kept.edge_features`, unless they are shared
    next_features0: int  # of those that the layer makes
    edge_maps0: int  # in `Kept.edge_maps`
    message_maps0: int  # in `Kept.message_maps`


@kernel
def make_layer(sizes, number, atoms=0, edges=0, keep=1, hold=1, most_edges=0):
    """A layer of a graph with so many atoms and edges; `most_edges` is E, what `Kept.edge_features` was made for."""
    channels, components = sizes.channels, sizes.components
    last, gated, shared, size = number == sizes.layers - 1, number > 0, number < 2, atoms * channels
    edge_maps = 2 if last or not gated else sizes.edge_maps
    return Layer(
        number, last, gated, shared, edge_maps * channels, (2 if gated else 1) * channels,
        (3 if last else sizes.vector_maps) * channels, number * keep * size, number * components * size,
        number * keep * components * sizes.vector_maps * size,
        0 if shared else (number - 2) * keep * most_edges * channels, (number - 1) * keep * most_edges * channels,
        hold * number * edges * sizes.edge_maps * channels, hold * number * edges * 2 * channels,
    )  # fmt: skip


class Shared(NamedTuple):
    """What both directions read of a network."""

    sizes: Sizes
    radial: RadialTable  # coefficients (intervals, C / PANEL, 2 filters, 4 powers of t, PANEL)
    present: np.ndarray  # (C,) 0 on padding
    loop: np.ndarray  # (C,) filter of self loops
    edge: np.ndarray  # linear maps as `node_kernels.matmul` takes them: C to AC, of edge features
    edge_bias: np.ndarray
    message: np.ndarray  # C to 2C
    message_bias: np.ndarray
    norm: np.ndarray  # (L + 1, C) weights of the norms of vectors
    zeros: np.ndarray  # (BC,)
    gain: np.ndarray  # (H,) of the norm of the output
    order: np.ndarray  # (H,) place of each channel of the network


class ForwardWeights(NamedTuple):
    """Linear maps, as `node_kernels.matmul` takes them, and what else `forward` alone reads."""

    epsilon: float  # of LayerNorm
    envelope_width: float  # 0 without an envelope
    start: np.ndarray  # linear maps: C to C, of the neighbours' messages
    qkv: np.ndarray  # C to 3C
    qkv_bias: np.ndarray
    vectors: np.ndarray  # C to BC
    o: np.ndarray  # C to 3C
    o_bias: np.ndarray
    bias: np.ndarray  # (H,) of the norm of the output


class BackwardWeights(NamedTuple):
    """The linear maps transposed, of each layer only those that it has."""

    neighbour: np.ndarray  # (M, C) embedding of the elements for their neighbours
    start: np.ndarray
    qkv: np.ndarray
    edge: np.ndarray
    message: np.ndarray
    vectors: np.ndarray
    o: np.ndarray


class Graph(NamedTuple):
    """Pairs within the cutoff, and directed edges."""

    near: Near
    decay: np.ndarray  # (P + M, 4), float64: cosine cutoff, envelope, and their slopes in 1/angstrom
    first: np.ndarray  # (M + 1,) work
    source: np.ndarray  # (E,) atom that a directed edge comes from; edges are sorted by target
    target: np.ndarray  # (E,)
    row: np.ndarray  # (E,)
    edge: np.ndarray  # (E, 2 + S): cosine cutoff, envelope, spherical harmonics of the direction


class Kept(NamedTuple):
    """What `forward` leaves for `backward`."""

    graph: Graph
    start_x: np.ndarray  # (M, C)
    row_features: np.ndarray  # (1, P + M, C) edge features of the layers that share them between directions
    edge_features: np.ndarray  # (K - 2 or 1, E, C) those of the other layers
    normed: np.ndarray  # (L + 1, M, C)
    inverse: np.ndarray  # (L + 1, M)
    qkv: np.ndarray  # (K, M, 3C)
    vec: np.ndarray  # (L + 1, M, S, C)
    vec_normed: np.ndarray  # (L + 1, M, S, C)
    projected: np.ndarray  # (K, M, S, BC) linear maps of the normed vectors
    mixed: np.ndarray  # (K, M, 3C)
    hold: int  # 1 where the following are of all layers, 0 where they are of a tile, for work
    edge_maps: np.ndarray  # (L * E or T, AC) linear maps of edge features
    message_maps: np.ndarray  # (L * E or T, 2C) linear maps of messages


class ForwardWork(NamedTuple):
    """Work arrays of `forward`."""

    x: np.ndarray  # (M, C)
    total_x: np.ndarray  # (M, C)
    total_v: np.ndarray  # (M, S, C)
    filters: np.ndarray  # (P + M or T, AC) silu of the linear maps of edge features, of rows or of a tile
    product: np.ndarray  # (T, G, PANEL) of queries and keys
    message: np.ndarray  # (T, C)
    factors: np.ndarray  # (T, 2C) silu of the linear maps of messages
    norm: np.ndarray  # (C,)


class BackwardWork(NamedTuple):
    """Work arrays; those called `g_` are gradients with respect to what follows, `slopes` those of silu."""

    filters: np.ndarray  # shared with `forward`, as are product, message, factors and norm
    filter_slopes: np.ndarray
    g_filters: np.ndarray
    product: np.ndarray
    message: np.ndarray
    g_message: np.ndarray
    factors: np.ndarray
    factor_slopes: np.ndarray
    g_factors: np.ndarray
    norm: np.ndarray
    g_x: np.ndarray  # (M, C)
    g_vec: np.ndarray  # (M, S, C)
    g_total: np.ndarray  # (M, C)
    g_normed: np.ndarray  # (M, C)
    g_vec_normed: np.ndarray  # (M, S, C)
    g_qkv: np.ndarray  # (M, 3C)
    g_mixed: np.ndarray  # (M, 3C)
    g_projected: np.ndarray  # (M, S, BC)
    g_row_features: np.ndarray  # (P + M, C)
    g_edge_features: np.ndarray  # (E, C)
    g_edge: np.ndarray  # (E, 2 + S), float64
    g_pair: np.ndarray  # (P, 4), float64: with respect to t and to the unit vector


def _make_graph(zeros, components, atoms, pairs):
    edges, integers = 2 * pairs + atoms, np.int64
    return Graph(
        make_near(pairs), np.zeros((pairs + atoms, 4)), np.zeros(atoms + 1, integers),
        *(np.zeros(edges, integers) for _ in range(3)), zeros(edges, 2 + components),
    )  # fmt: skip


def make_kept(zeros, keep, sizes, atoms, pairs, itemsize):
    """`zeros` takes a shape to an aligned array; `keep` says whether the values of all layers are wanted."""
    c, s, layers, edges = sizes.channels, sizes.components, sizes.layers, 2 * pairs + atoms
    kept = layers if keep else 1  # a layer's values are overwritten by those of the next
    hold = int(keep and layers * edges * (sizes.edge_maps + 2) * c * itemsize <= MOST_HELD)
    lines = layers * edges if hold else TILE
    return Kept(
        graph=_make_graph(zeros, s, atoms, pairs),
        start_x=zeros(atoms, c),
        row_features=zeros(1, pairs + atoms, c),
        edge_features=zeros(max(layers - 2, 0) if keep else 1, edges, c),
        normed=zeros(layers + 1, atoms, c),
        inverse=zeros(layers + 1, atoms),
        qkv=zeros(kept, atoms, 3 * c),
        vec=zeros(layers + 1, atoms, s, c),
        vec_normed=zeros(layers + 1, atoms, s, c),
        projected=zeros(kept, atoms, s, sizes.vector_maps * c),
        mixed=zeros(kept, atoms, 3 * c),
        hold=hold,
        edge_maps=zeros(lines, sizes.edge_maps * c),
        message_maps=zeros(lines, 2 * c),
    )


def make_forward_work(zeros, sizes, atoms, pairs):
    """The arrays that a forward pass works in."""
    c = sizes.channels
    return ForwardWork(
        x=zeros(atoms, c),
        total_x=zeros(atoms, c),
        total_v=zeros(atoms, sizes.components, c),
        filters=zeros(max(pairs + atoms, TILE), sizes.edge_maps * c),
        product=zeros(TILE, sizes.groups, PANEL),
        message=zeros(TILE, c),
        factors=zeros(TILE, 2 * c),
        norm=zeros(c),
    )


def make_backward_work(zeros, sizes, forward, atoms, pairs):
    """`forward` are the work arrays of that; some are used for the same again."""
    c, s, edges = sizes.channels, sizes.components, 2 * pairs + atoms
    return BackwardWork(
        filters=forward.filters,
        filter_slopes=zeros(*forward.filters.shape),
        g_filters=zeros(*forward.filters.shape),
        product=forward.product,
        message=forward.message,
        g_message=zeros(TILE, c),
        factors=forward.factors,
        factor_slopes=zeros(TILE, 2 * c),
        g_factors=zeros(TILE, 2 * c),
        norm=forward.norm,
        g_x=zeros(atoms, c),
        g_vec=zeros(atoms, s, c),
        g_total=zeros(atoms, c),
        g_normed=zeros(atoms, c),
        g_vec_normed=zeros(atoms, s, c),
        g_qkv=zeros(atoms, 3 * c),
        g_mixed=zeros(atoms, 3 * c),
        g_projected=zeros(atoms, s, sizes.vector_maps * c),
        g_row_features=zeros(pairs + atoms, c),
        g_edge_features=zeros(edges, c),
        g_edge=np.zeros((edges, 2 + s)),
        g_pair=np.zeros((pairs, 4)),
    )
