"""What the kernels of TensorNet take, by name, and the sizes of their arrays.

M atoms, P candidate pairs, E = 2P directed edges, C channels (padded), H true channels, B = C / 16 panels, L layers. K is L
where the values of all layers are kept for the gradient, otherwise 1; F is L + 1 or 1. Arrays of tensors are (9, M, C), as
in `tensornet_nodes`. Layer 0 of the table and of the filters at the distance 0 are those of the embedding.
"""

from typing import NamedTuple

import numpy as np

from torchmdnet_ext.compiled.arguments import Near, RadialTable, make_near
from torchmdnet_ext.kernels.lanes import PANEL


class Shared(NamedTuple):
    """What both directions read of a network."""

    radial: RadialTable  # coefficients (1 + L, intervals, B, 3 parts, 4 powers of t, PANEL)
    own: np.ndarray  # (1 + L, 3, C) filters at the distance 0, of an atom itself
    layers: int
    present: np.ndarray  # (3C,) 0 on padding
    features: float  # true channels
    zeros: np.ndarray  # (3C,)
    order: np.ndarray  # (H,) place of each channel of the network


class ForwardWeights(NamedTuple):
    """Linear maps, as `node_kernels.matmul` takes them."""

    epsilon: float  # of the LayerNorm of the embedding
    out_epsilon: float  # and of the output
    tensor: np.ndarray  # C to C, three for each linear map of tensors
    scalar1: np.ndarray  # C to 2C
    scalar1_bias: np.ndarray
    scalar2: np.ndarray  # 2C to 3C
    scalar2_bias: np.ndarray
    out: np.ndarray  # 3C to C
    out_bias: np.ndarray


class BackwardWeights(NamedTuple):
    """The linear maps transposed."""

    centre: np.ndarray  # (M, C) what the elements of both ends of an edge add to its factor
    neighbour: np.ndarray  # (M, C)
    tensor: np.ndarray
    scalar1: np.ndarray
    scalar2: np.ndarray
    out: np.ndarray


class Graph(NamedTuple):
    """Pairs within the cutoff, and directed edges, both directions of every pair."""

    near: Near
    first: np.ndarray  # (M + 1,) where the edges of each atom start
    source: np.ndarray  # (E,) the other atom
    row: np.ndarray  # (E,) the pair
    edge: np.ndarray  # (E, 8) the unit vector u from the atom to the other, and the symmetric traceless part of u u^T


class Kept(NamedTuple):
    """What `forward` leaves for `backward`."""

    graph: Graph
    filters: np.ndarray  # (F, B, P, 3, 16)
    slopes: np.ndarray  # as the filters, only with the gradient
    embedding: np.ndarray  # (9, M, C)
    mixed: np.ndarray  # (9, M, C) its linear map
    normed: np.ndarray  # (M, C)
    inverse: np.ndarray  # (2, M) of both LayerNorms
    hidden: np.ndarray  # (M, 2C)
    hidden_slope: np.ndarray
    factors: np.ndarray  # (M, 3C) of the three parts of the embedding
    factors_slope: np.ndarray
    x: np.ndarray  # (F, 9, M, C) tensors of each layer, damped, and of the output
    scale: np.ndarray  # (K, M, C) factor by which they are damped
    y: np.ndarray  # (K, 9, M, C) their linear map
    message: np.ndarray  # (K, 9, M, C)
    damped: np.ndarray  # (K, 9, M, C) products of tensors and messages
    damped_scale: np.ndarray  # (K, M, C)
    update: np.ndarray  # (K, 9, M, C)
    normed_out: np.ndarray  # (M, 3C)
    out: np.ndarray  # (M, C)
    out_slope: np.ndarray


class ForwardWork(NamedTuple):
    """Work arrays of `forward`."""

    squared: np.ndarray  # (M, C) squared norms of the embedding
    norms: np.ndarray  # (M, 3C) squared norms of the parts of the output


class BackwardWork(NamedTuple):
    """Gradients with respect to what their names say."""

    x: np.ndarray  # (9, M, C) tensors
    update: np.ndarray  # (9, M, C)
    y: np.ndarray  # (9, M, C)
    message: np.ndarray  # (9, M, C)
    norms: np.ndarray  # (M, 3C)
    normed: np.ndarray  # (M, 3C)
    hidden: np.ndarray  # (M, 2C)
    squared: np.ndarray  # (M, C)
    radial: np.ndarray  # (P, 16) lanes whose sum is that with respect to the place in the table
    pair: np.ndarray  # (P, 4), float64: with respect to the place in the table and to the unit vector


def make_kept(zeros, keep, layers, atoms, pairs, channels):
    """`zeros` takes a shape to an aligned array; `keep` says whether the values of all layers are wanted."""
    kept, filters = (layers, layers + 1) if keep else (1, 1)

    def tensors(count):
        return zeros(count, 9, atoms, channels)

    near, integers = make_near(pairs), np.int64
    first, source, row = (np.zeros(count, integers) for count in (atoms + 1, 2 * pairs, 2 * pairs))
    return Kept(
        graph=Graph(near, first, source, row, zeros(2 * pairs, 8)),
        filters=zeros(filters, pairs, 3 * channels),
        slopes=zeros(filters, pairs, 3 * channels) if keep else zeros(0, 0, 0),
        embedding=zeros(9, atoms, channels),
        mixed=zeros(9, atoms, channels),
        normed=zeros(atoms, channels),
        inverse=zeros(2, atoms),
        hidden=zeros(atoms, 2 * channels),
        hidden_slope=zeros(atoms, 2 * channels),
        factors=zeros(atoms, 3 * channels),
        factors_slope=zeros(atoms, 3 * channels),
        x=tensors(filters),
        scale=zeros(kept, atoms, channels),
        y=tensors(kept),
        message=tensors(kept),
        damped=tensors(kept),
        damped_scale=zeros(kept, atoms, channels),
        update=tensors(kept),
        normed_out=zeros(atoms, 3 * channels),
        out=zeros(atoms, channels),
        out_slope=zeros(atoms, channels),
    )


def make_forward_work(zeros, atoms, channels):
    """The arrays that a forward pass works in."""
    return ForwardWork(zeros(atoms, channels), zeros(atoms, 3 * channels))


def make_backward_work(zeros, atoms, pairs, channels):
    """The arrays that a backward pass works in."""
    return BackwardWork(
        x=zeros(9, atoms, channels),
        update=zeros(9, atoms, channels),
        y=zeros(9, atoms, channels),
        message=zeros(9, atoms, channels),
        norms=zeros(atoms, 3 * channels),
        normed=zeros(atoms, 3 * channels),
        hidden=zeros(atoms, 2 * channels),
        squared=zeros(atoms, channels),
        radial=zeros(pairs, PANEL),
        pair=np.zeros((pairs, 4)),
    )
