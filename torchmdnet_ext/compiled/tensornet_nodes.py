"""Numba kernels of the 3 x 3 matrices that TensorNet has for every atom and channel.

A matrix is kept as its 9 components in the orthonormal basis of `torchmdnet_ext.models.tensornet`: 1 of the unit matrix, 3
antisymmetric, 5 symmetric traceless. Arrays of tensors are (9, M, C): the atoms of all components of a part follow one
another, so that a linear map of a part is one product of matrices. In the kernels a tensor is a tuple of 9 lanes.
Arguments named like `x0` are offsets into the array `x`, in elements.
"""

import math

from torchmdnet_ext.compiled.jit import kernel
from torchmdnet_ext.kernels.lanes import PANEL, load16, splat16, store

ROOT_HALF, ROOT_THIRD, ROOT_SIXTH = math.sqrt(1 / 2), math.sqrt(1 / 3), math.sqrt(1 / 6)


@kernel
def load9(x, at, step):
    """The tensor whose components are `step` apart."""
    return (
        load16(x, at), load16(x, at + step), load16(x, at + 2 * step), load16(x, at + 3 * step), load16(x, at + 4 * step),
        load16(x, at + 5 * step), load16(x, at + 6 * step), load16(x, at + 7 * step), load16(x, at + 8 * step),
    )  # fmt: skip


@kernel
def store9(x, at, step, a):
    """Store the nine components of tensors, `step` apart."""
    store(x, at, a[0])
    store(x, at + step, a[1])
    store(x, at + 2 * step, a[2])
    store(x, at + 3 * step, a[3])
    store(x, at + 4 * step, a[4])
    store(x, at + 5 * step, a[5])
    store(x, at + 6 * step, a[6])
    store(x, at + 7 * step, a[7])
    store(x, at + 8 * step, a[8])


@kernel
def dot9(a, b):
    """The sum of the products of all nine components."""
    return (
        (a[0] * b[0] + a[1] * b[1] + a[2] * b[2])
        + (a[3] * b[3] + a[4] * b[4] + a[5] * b[5])
        + (a[6] * b[6] + a[7] * b[7] + a[8] * b[8])
    )


@kernel
def sum9(a, b):
    """The sum of two tensors."""
    return (
        a[0] + b[0], a[1] + b[1], a[2] + b[2], a[3] + b[3], a[4] + b[4], a[5] + b[5], a[6] + b[6], a[7] + b[7], a[8] + b[8]
    )  # fmt: skip


@kernel
def scaled9(a, unit, skew, symmetric):
    """A tensor with a factor for each part."""
    return (
        unit * a[0], skew * a[1], skew * a[2], skew * a[3],
        symmetric * a[4], symmetric * a[5], symmetric * a[6], symmetric * a[7], symmetric * a[8],
    )  # fmt: skip


@kernel
def transposed(zero, a):
    """The transposed tensor: the antisymmetric part, components 1 to 3, changes its sign."""
    return a[0], zero - a[1], zero - a[2], zero - a[3], a[4], a[5], a[6], a[7], a[8]


@kernel
def _matrix(like, a):
    half, sixth = splat16(like, ROOT_HALF), splat16(like, ROOT_SIXTH)
    x, y, z, yz, zx, xy = a[1] * half, a[2] * half, a[3] * half, a[4] * half, a[5] * half, a[6] * half
    third, across, along = a[0] * splat16(like, ROOT_THIRD), a[7] * half, a[8] * sixth
    rest = third - along
    return rest + across, xy + z, zx - y, xy - z, rest - across, yz + x, zx + y, yz - x, third + along + along


@kernel
def _components(like, m):
    half = splat16(like, ROOT_HALF)
    planar = m[0] + m[4]
    return (
        (planar + m[8]) * splat16(like, ROOT_THIRD),
        (m[5] - m[7]) * half, (m[6] - m[2]) * half, (m[1] - m[3]) * half,
        (m[5] + m[7]) * half, (m[6] + m[2]) * half, (m[1] + m[3]) * half, (m[0] - m[4]) * half,
        (m[8] + m[8] - planar) * splat16(like, ROOT_SIXTH),
    )  # fmt: skip


@kernel
def anticommutator(like, a, b):
    """AB + BA. Its derivative with respect to A, applied to a gradient G, is that of G and the transpose of B."""
    a, b = _matrix(like, a), _matrix(like, b)
    product = (
        a[0] * b[0] + a[1] * b[3] + a[2] * b[6] + b[0] * a[0] + b[1] * a[3] + b[2] * a[6],
        a[0] * b[1] + a[1] * b[4] + a[2] * b[7] + b[0] * a[1] + b[1] * a[4] + b[2] * a[7],
        a[0] * b[2] + a[1] * b[5] + a[2] * b[8] + b[0] * a[2] + b[1] * a[5] + b[2] * a[8],
        a[3] * b[0] + a[4] * b[3] + a[5] * b[6] + b[3] * a[0] + b[4] * a[3] + b[5] * a[6],
        a[3] * b[1] + a[4] * b[4] + a[5] * b[7] + b[3] * a[1] + b[4] * a[4] + b[5] * a[7],
        a[3] * b[2] + a[4] * b[5] + a[5] * b[8] + b[3] * a[2] + b[4] * a[5] + b[5] * a[8],
        a[6] * b[0] + a[7] * b[3] + a[8] * b[6] + b[6] * a[0] + b[7] * a[3] + b[8] * a[6],
        a[6] * b[1] + a[7] * b[4] + a[8] * b[7] + b[6] * a[1] + b[7] * a[4] + b[8] * a[7],
        a[6] * b[2] + a[7] * b[5] + a[8] * b[8] + b[6] * a[2] + b[7] * a[5] + b[8] * a[8],
    )
    return _components(like, product)


@kernel
def damping(like, a):
    """1 / (|A|^2 + 1)."""
    one = splat16(like, 1.0)
    return one / (dot9(a, a) + one)


@kernel
def damped_vjp(damped, scale, g):
    """Gradient with respect to A from that with respect to `damped` = A * `scale`, where scale is 1 / (|A|^2 + 1)."""
    along = dot9(g, damped)
    along = along + along
    return (
        scale * g[0] - along * damped[0], scale * g[1] - along * damped[1], scale * g[2] - along * damped[2],
        scale * g[3] - along * damped[3], scale * g[4] - along * damped[4], scale * g[5] - along * damped[5],
        scale * g[6] - along * damped[6], scale * g[7] - along * damped[7], scale * g[8] - along * damped[8],
    )  # fmt: skip


@kernel
def first_tensors(atoms, channels, mixed, factors, x, scale):
    """Fill x (9, M, C) = damped `mixed` times a factor for each part, factors (M, 3C), and scale (M, C)."""
    step = atoms * channels
    for m in range(atoms):
        for c in range(0, channels, PANEL):
            at, k = m * channels + c, m * 3 * channels + c
            unit, skew, symmetric = load16(factors, k), load16(factors, k + channels), load16(factors, k + 2 * channels)
            new = scaled9(load9(mixed, at, step), unit, skew, symmetric)
            s = damping(mixed, new)
            store9(x, at, step, scaled9(new, s, s, s))
            store(scale, at, s)


@kernel
def first_tensors_vjp(atoms, channels, mixed, factors, slope, g, g_mixed, g_factors):
    """From the gradient with respect to the tensors before they are damped; that of the factors before the activation."""
    step = atoms * channels
    for m in range(atoms):
        for c in range(0, channels, PANEL):
            at, k = m * channels + c, m * 3 * channels + c
            gx, own = load9(g, at, step), load9(mixed, at, step)
            unit, skew, symmetric = load16(factors, k), load16(factors, k + channels), load16(factors, k + 2 * channels)
            store9(g_mixed, at, step, scaled9(gx, unit, skew, symmetric))
            store(g_factors, k, gx[0] * own[0] * load16(slope, k))
            inner = gx[1] * own[1] + gx[2] * own[2] + gx[3] * own[3]
            store(g_factors, k + channels, inner * load16(slope, k + channels))
            inner = gx[4] * own[4] + gx[5] * own[5] + gx[6] * own[6] + gx[7] * own[7] + gx[8] * own[8]
            store(g_factors, k + 2 * channels, inner * load16(slope, k + 2 * channels))


@kernel
def next_tensors(atoms, channels, last, x, x0, update, update0, new0, scale, scale0, norms):
    """Tensors of the next layer, X + U + U^2, from the damped X and the update U; put into `x` from `new0` on.

    They are damped, with their `scale` (M, C), or after the last layer as they are, with the norms (M, 3C) of their parts.
    """
    step, half = atoms * channels, splat16(x, 0.5)
    for m in range(atoms):
        for c in range(0, channels, PANEL):
            at, k = m * channels + c, m * 3 * channels + c
            u = load9(update, update0 + at, step)
            square = scaled9(anticommutator(x, u, u), half, half, half)
            y = sum9(sum9(load9(x, x0 + at, step), u), square)
            if last:
                store9(x, new0 + at, step, y)
                store(norms, k, y[0] * y[0])
                store(norms, k + channels, y[1] * y[1] + y[2] * y[2] + y[3] * y[3])
                symmetric = y[4] * y[4] + y[5] * y[5] + y[6] * y[6] + y[7] * y[7] + y[8] * y[8]
                store(norms, k + 2 * channels, symmetric)
            else:
                s = damping(x, y)
                store9(x, new0 + at, step, scaled9(y, s, s, s))
                store(scale, scale0 + at, s)


@kernel
def update_vjp(atoms, channels, update, update0, g, g_update):
    """g_update (9, M, C) from the gradient with respect to X + U + U^2, which is that with respect to X."""
    step, zero = atoms * channels, splat16(g, 0.0)
    for at in range(0, step, PANEL):
        gx, u = load9(g, at, step), load9(update, update0 + at, step)
        store9(g_update, at, step, sum9(gx, anticommutator(g, gx, transposed(zero, u))))


@kernel
def damp_vjp(atoms, channels, x, x0, scale, scale0, g):
    """Replace the gradient with respect to damped tensors x by that with respect to the tensors themselves."""
    step = atoms * channels
    for at in range(0, step, PANEL):
        gx = damped_vjp(load9(x, x0 + at, step), load16(scale, scale0 + at), load9(g, at, step))
        store9(g, at, step, gx)


@kernel
def products_vjp(atoms, channels, own, own0, y, message, damped, scale, place, g_message, g):
    """Back through the damped products of atoms' tensors y with their messages.

    g (9, M, C), the gradient with respect to the damped products, is replaced by that with respect to y; g_message (9, M, C)
    is filled. place: where the layer starts in `scale`, and a ninth of where it starts in y, message and damped. own (3, C)
    are the filters at the distance 0, of an atom itself in its message.
    """
    step, zero, layer = atoms * channels, splat16(g, 0.0), 9 * place
    for m in range(atoms):
        for c in range(0, channels, PANEL):
            at, k = m * channels + c, own0 + c
            gu = damped_vjp(load9(damped, layer + at, step), load16(scale, place + at), load9(g, at, step))
            mine, received = load9(y, layer + at, step), load9(message, layer + at, step)
            gm = anticommutator(g, gu, transposed(zero, mine))
            gy = anticommutator(g, gu, transposed(zero, received))
            itself = scaled9(gm, load16(own, k), load16(own, k + channels), load16(own, k + 2 * channels))
            store9(g_message, at, step, gm)
            store9(g, at, step, sum9(gy, itself))


@kernel
def read_out_vjp(atoms, channels, x, x0, g_norms, g):
    """Add to g (9, M, C) the gradient with respect to the tensors x, from that of the norms (M, 3C) of their parts."""
    step = atoms * channels
    for m in range(atoms):
        for c in range(0, channels, PANEL):
            at, k = m * channels + c, m * 3 * channels + c
            unit, skew, symmetric = load16(g_norms, k), load16(g_norms, k + channels), load16(g_norms, k + 2 * channels)
            part = scaled9(load9(x, x0 + at, step), unit + unit, skew + skew, symmetric + symmetric)
            store9(g, at, step, sum9(load9(g, at, step), part))


@kernel
def squared_norm_vjp(atoms, channels, x, g_squared, g):
    """Add to g (9, M, C) the gradient with respect to x from that of its squared norm (M, C)."""
    step = atoms * channels
    for at in range(0, step, PANEL):
        twice = load16(g_squared, at) + load16(g_squared, at)
        store9(g, at, step, sum9(load9(g, at, step), scaled9(load9(x, at, step), twice, twice, twice)))


@kernel
def multiply(count, factor, out):
    """`out` *= `factor`, of `count` numbers."""
    for k in range(0, count, PANEL):
        store(out, k, load16(out, k) * load16(factor, k))
