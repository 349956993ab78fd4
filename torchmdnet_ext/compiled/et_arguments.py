"""What the kernels of the equivariant transformer take, by name, and the sizes of their arrays.

M window atoms, P pairs of them, U rows, C channels (padded), B = C / WIDTH blocks, G groups of heads, L layers; layers are
those after the first, whose input depends on the elements only, so index 0 of weights belongs to layer 1. K is L where the
values of all layers are kept for the gradient, otherwise 1.
"""

from typing import NamedTuple

import numpy as np

from torchmdnet_ext.compiled.arguments import Near, RadialTable, make_near
from torchmdnet_ext.kernels.lanes import WIDTH

BATCH = 16  # rows whose filters are made at once: few enough for the fastest cache


class Candidates(NamedTuple):
    """Rows, which are pairs of atoms whose positions are given, and the pairs of window atoms of each row."""

    first: np.ndarray  # (U,) one atom of each row
    second: np.ndarray  # (U,) the other
    starts: np.ndarray  # (U + 1,) where the pairs of a row start in i and j
    i: np.ndarray  # (P,)
    j: np.ndarray  # (P,)


class NearPairs(NamedTuple):
    """The rows closer than the cutoff and their pairs of window atoms."""

    rows: Near
    starts: np.ndarray  # (U + 1,)
    i: np.ndarray  # (P,)
    j: np.ndarray  # (P,)


class Shared(NamedTuple):
    """What both directions read of a network."""

    radial: RadialTable  # coefficients (L, intervals, B, 4 filters, 4 powers of t, WIDTH)
    groups: int
    depth: int
    present: np.ndarray  # (C,) 0 on padding
    features: float  # true channels
    self_filters: np.ndarray  # (L, B, 4, WIDTH) filters at the distance 0
    zeros: np.ndarray  # (5C,)
    gain: np.ndarray  # (H,) of the norm of the output
    order: np.ndarray  # (H,) place of each channel of the network


class ForwardWeights(NamedTuple):
    """Linear maps, as `node_kernels.matmul` takes them: C to so many times C channels."""

    epsilon: float  # of LayerNorm
    start: np.ndarray  # C to C
    qkv: np.ndarray  # C to 5C
    qkv_bias: np.ndarray
    vec: np.ndarray  # C to 3C
    o: np.ndarray  # C to 3C
    o_bias: np.ndarray
    bias: np.ndarray  # (H,) of the norm of the output


class BackwardWeights(NamedTuple):
    """The linear maps transposed."""

    start: np.ndarray
    qkv: np.ndarray
    vec: np.ndarray
    o: np.ndarray


class Kept(NamedTuple):
    """What `forward` leaves for `backward`, and the filters of a batch of rows."""

    pairs: NearPairs
    values: np.ndarray  # (BATCH, 4C)
    slopes: np.ndarray  # (BATCH, 4C)
    qkv: np.ndarray  # (max(2, K), M, 5C)
    normed: np.ndarray  # (max(2, K), M, C), the first of the output
    inverse: np.ndarray  # (L, M), the first of the output
    vec: np.ndarray  # (K + 1, M, 3, C)
    projected: np.ndarray  # (K, M, 3, 3C)
    mixed: np.ndarray  # (K, M, 3C)
    attention: np.ndarray  # (K, P, G, 4, WIDTH)
    self_attention: np.ndarray  # (K, M, G, 2, WIDTH)


class ForwardWork(NamedTuple):
    """Work arrays of `forward`."""

    x: np.ndarray  # (M, C)
    total_x: np.ndarray  # (M, C)
    total_v: np.ndarray  # (M, 3, C)


class BackwardWork(NamedTuple):
    """Work arrays of `backward`: gradients with respect to what their names say."""

    x: np.ndarray  # (M, C)
    v: np.ndarray  # (M, 3, C)
    vec: np.ndarray  # (M, 3, C)
    total: np.ndarray  # (M, C)
    normed: np.ndarray  # (M, C)
    qkv: np.ndarray  # (M, 5C)
    mixed: np.ndarray  # (M, 3C)
    projected: np.ndarray  # (M, 3, 3C)
    rows: np.ndarray  # (U, 4), float64


def make_kept(zeros, keep, layers, atoms, rows, pairs, channels, groups):
    """`zeros` takes a shape to an aligned array; `keep` says whether the values of all layers are wanted."""
    kept = layers if keep else 1  # a layer's values are overwritten by those of the next
    two = max(2, kept)
    return Kept(
        pairs=NearPairs(make_near(rows), np.zeros(rows + 1, np.int64), *(np.zeros(pairs, np.int64) for _ in range(2))),
        values=zeros(BATCH, 4 * channels),
        slopes=zeros(BATCH, 4 * channels),
        qkv=zeros(two, atoms, 5 * channels),
        normed=zeros(two, atoms, channels),
        inverse=zeros(layers, atoms),
        vec=zeros(kept + 1, atoms, 3, channels),
        projected=zeros(kept, atoms, 3, 3 * channels),
        mixed=zeros(kept, atoms, 3 * channels),
        attention=zeros(kept, pairs, groups, 4, WIDTH),
        self_attention=zeros(kept, atoms, groups, 2, WIDTH),
    )


def make_forward_work(zeros, atoms, channels):
    """The arrays that a forward pass works in."""
    return ForwardWork(zeros(atoms, channels), zeros(atoms, channels), zeros(atoms, 3, channels))


def make_backward_work(zeros, atoms, rows, channels):
    """The arrays that a backward pass works in."""
    return BackwardWork(
        x=zeros(atoms, channels),
        v=zeros(atoms, 3, channels),
        vec=zeros(atoms, 3, channels),
        total=zeros(atoms, channels),
        normed=zeros(atoms, channels),
        qkv=zeros(atoms, 5 * channels),
        mixed=zeros(atoms, 3 * channels),
        projected=zeros(atoms, 3, 3 * channels),
        rows=np.zeros((rows, 4)),
    )
