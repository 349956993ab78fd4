"""What the kernels of mixers with weights take, by name, and the sizes of what they keep for the gradient.

M window atoms, R tokens, H channels, d components, L layers. F features of a token, width W of a mixer, width D of its last
hidden layer and B of feed-forward networks are padded with zeros to whole panels. Arrays of weights have one axis; matrices
are packed as `torchmdnet_ext.compiled.node_kernels.matmul` reads them.
"""

from typing import NamedTuple, TypeAlias

import numpy as np

POOLS = ("flatten", "sum", "mean", "attention")
FLATTEN, SUM, MEAN, ATTENTION = range(len(POOLS))


# a part of an array, or its shape
Part: TypeAlias = np.ndarray | tuple[int, ...]


class Sizes(NamedTuple):
    """Sizes of a read-out's arrays."""

    atoms: int  # M
    tokens: int  # R
    hidden: int  # H
    features: int  # F
    width: int  # W
    channels: int  # of the width, those that are no padding
    last: int  # D
    pool: int  # place in POOLS
    layers: int  # L
    heads: int = 0  # of attention
    feedforward: int = 0  # B


class Input(NamedTuple):
    """From window atoms to the features of tokens, which are [x, |v|] standardised."""

    own: np.ndarray  # (n,) window atoms that count
    token: np.ndarray  # (n,) the token of each
    share: np.ndarray  # (R,) factor of each token's sum
    mean: np.ndarray  # (R * 2H,)
    scale: np.ndarray  # (R * 2H,) by which the features are multiplied
    norm_epsilon2: float  # of the norms of vectors, squared


class Output(NamedTuple):
    """From the rows of all tokens to the components of the CV, `mixers.pooling`."""

    score: np.ndarray  # (W,) weights of the scores with which attention pools
    weight: np.ndarray  # W, or where rows are flattened R * W, to D
    bias: np.ndarray  # (D,)
    transposed: np.ndarray  # of the weight
    projection: np.ndarray  # (D + 1, d), float64: matrix, and the shift in the last row
    zeros: np.ndarray  # of the size of the widest matrix product


class MLPWeights(NamedTuple):
    """All that the kernels read of an `mixers.MLPMixer`."""

    sizes: Sizes
    input: Input
    output: Output
    present: np.ndarray  # (W,) 0 on padding
    epsilon: float  # of LayerNorm
    first: np.ndarray  # F to W
    later: np.ndarray  # W to W, of all layers but the first
    bias: np.ndarray  # (L * W,)
    gain: np.ndarray  # (L * W,) of LayerNorm
    shift: np.ndarray  # (L * W,)
    first_transposed: np.ndarray
    later_transposed: np.ndarray


class AttentionWeights(NamedTuple):
    """All that the kernels read of an `mixers.AttentionMixer`."""

    sizes: Sizes
    input: Input
    output: Output
    present: np.ndarray  # (W,) 0 on padding
    epsilon: float  # of LayerNorm
    embed: np.ndarray  # F to W
    embed_bias: np.ndarray  # (R * W,) with the positions of the tokens
    embed_transposed: np.ndarray
    # of all layers
    qkv: np.ndarray  # W to 3W
    qkv_bias: np.ndarray
    out: np.ndarray  # W to W, what follows the attention
    out_bias: np.ndarray
    up: np.ndarray  # W to B, of the feed-forward network
    up_bias: np.ndarray
    down: np.ndarray  # B to W
    down_bias: np.ndarray
    qkv_transposed: np.ndarray
    out_transposed: np.ndarray
    up_transposed: np.ndarray
    down_transposed: np.ndarray


class MLPKept(NamedTuple):
    """Parts of the array with what the vector-Jacobian product needs of an evaluation, or their shapes."""

    vectors: Part  # of the tokens
    norms: Part
    rows: Part  # that are pooled
    scores: Part
    pooled: Part
    last: Part  # the last hidden layer before its silu
    normed: Part  # by LayerNorm, of all layers
    inverse: Part


class MLPWork(NamedTuple):
    """Parts of the work array, or their shapes; in the vector-Jacobian product gradients with respect to the same."""

    features: Part  # of the tokens
    product: Part  # before LayerNorm
    rows: Part  # behind it
    pooled: Part
    last: Part


class AttentionKept(NamedTuple):
    """As `MLPKept`; the layers have two LayerNorms, and there is a last one."""

    vectors: Part
    norms: Part
    rows: Part
    scores: Part
    pooled: Part
    last: Part
    normed: Part
    inverse: Part
    qkv: Part
    weights: Part  # of the attention
    feedforward: Part  # hidden layer before its gelu


class AttentionWork(NamedTuple):
    """As `MLPWork`."""

    features: Part
    rows: Part
    mixed: Part  # by the attention
    feedforward: Part
    pooled: Part
    last: Part
    qkv: Part  # in the vector-Jacobian product only, as the following
    slopes: Part  # of the scores of one token


def mlp_kept_shapes(sizes: Sizes) -> MLPKept:
    """Shapes of the parts of `MLPKept`."""
    tokens, width = sizes.tokens, sizes.width
    return MLPKept(
        (tokens, 3, sizes.hidden), (tokens, sizes.hidden), (tokens, width), (tokens,), (width,), (sizes.last,),
        (sizes.layers, tokens, width), (sizes.layers, tokens),
    )  # fmt: skip


def mlp_work_shapes(sizes: Sizes) -> MLPWork:
    """Shapes of the parts of `MLPWork`."""
    tokens, width = sizes.tokens, sizes.width
    return MLPWork((tokens, sizes.features), (tokens, width), (tokens, width), (width,), (sizes.last,))


def attention_kept_shapes(sizes: Sizes) -> AttentionKept:
    """Shapes of the parts of `AttentionKept`."""
    tokens, width, layers = sizes.tokens, sizes.width, sizes.layers
    return AttentionKept(
        (tokens, 3, sizes.hidden), (tokens, sizes.hidden), (tokens, width), (tokens,), (width,), (sizes.last,),
        (2 * layers + 1, tokens, width), (2 * layers + 1, tokens), (layers, tokens, 3, width),
        (layers, sizes.heads, tokens, tokens), (layers, tokens, sizes.feedforward),
    )  # fmt: skip


def attention_work_shapes(sizes: Sizes) -> AttentionWork:
    """Shapes of the parts of `AttentionWork`."""
    tokens, width = sizes.tokens, sizes.width
    return AttentionWork(
        (tokens, sizes.features), (tokens, width), (tokens, width), (tokens, sizes.feedforward), (width,), (sizes.last,),
        (tokens, 3, width), (tokens,),
    )  # fmt: skip
