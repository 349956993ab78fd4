"""Numba kernels of what ViSNet does with single atoms, besides matrix products and layer norms.

S = 3 or 8 components of vectors, C channels (padded); arguments named like `vec0` are offsets.
"""

from torchmdnet_ext.compiled.jit import kernel
from torchmdnet_ext.compiled.lane_functions import larger, largest, root, smaller, smallest, where_positive
from torchmdnet_ext.kernels.lanes import PANEL, increase, load16, splat16, store, total8

LEAST_NORM = 1e-12  # PyG's, below which vectors are not divided by their norm


@kernel
def _norms(vec, at, first, last, channels, present, norm):
    """Fill norm (C,) of the components `first` to `last` - 1 of one atom; returns the smallest and the largest."""
    least, huge = splat16(norm, LEAST_NORM), splat16(norm, 1e30)
    one = splat16(norm, 1.0)
    top, low = splat16(norm, 0.0), huge
    for c in range(0, channels, PANEL):
        squared = splat16(norm, 0.0)
        for component in range(first, last):
            v = load16(vec, at + component * channels + c)
            squared = squared + v * v
        length = larger(least, root(squared))
        store(norm, c, length)
        here = load16(present, c)
        top, low = larger(top, length * here), smaller(low, length + (one - here) * huge)
    return smallest(low), largest(top)


@kernel
def norm_vectors(vec, vec0, atoms, components, channels, present, weight, w0, max_min, out, out0, norm):
    """ViSNet's norm of vectors, times `weight` (C,). norm (C,) is for work.

    With `max_min` vectors of an atom are rescaled so that the shortest of all channels has the length 0, the longest 1.
    """
    zero = splat16(norm, 0.0)
    for m in range(atoms):
        for first, last in ((0, 3), (3, 8)):
            if first >= components:
                break
            at = m * components * channels
            low, top = 0.0, 1.0
            if max_min:
                low, top = _norms(vec, vec0 + at, first, last, channels, present, norm)
            span = top - low if top != low else top * 0.0 + 1.0
            lowest, rate = splat16(norm, low), splat16(norm, 1.0 / span)
            for c in range(0, channels, PANEL):
                scale = load16(weight, w0 + c)
                if max_min:
                    length = load16(norm, c)
                    scale = scale * larger((length - lowest) * rate, zero) / length
                for component in range(first, last):
                    v = at + component * channels + c
                    store(out, out0 + v, load16(vec, vec0 + v) * scale)


@kernel
def norm_vectors_vjp(g, vec, vec0, atoms, components, channels, present, weight, w0, max_min, norm, g_vec):
    """g_vec (M, S, C) += gradient with respect to the vectors, from that of the normed ones, g (M, S, C)."""
    zero, least = splat16(norm, 0.0), splat16(norm, LEAST_NORM)
    for m in range(atoms):
        for first, last in ((0, 3), (3, 8)):
            if first >= components:
                break
            at = m * components * channels
            if not max_min:
                for component in range(first, last):
                    for c in range(0, channels, PANEL):
                        v = at + component * channels + c
                        increase(g_vec, v, load16(g, v) * load16(weight, w0 + c))
                continue
            low, top = _norms(vec, vec0 + at, first, last, channels, present, norm)
            span = top - low if top != low else top * 0.0 + 1.0
            lowest, rate = splat16(norm, low), splat16(norm, 1.0 / span)
            g_low, g_span = zero, zero
            shortest, longest = -1, -1
            for c in range(channels):
                if shortest < 0 and norm[c] == low and present[c] > 0.0:
                    shortest = c
                if longest < 0 and norm[c] == top and present[c] > 0.0:
                    longest = c
            for c in range(0, channels, PANEL):
                length, factor = load16(norm, c), load16(weight, w0 + c)
                share = larger((length - lowest) * rate, zero)
                inner = zero
                for component in range(first, last):
                    v = at + component * channels + c
                    inner = inner + load16(g, v) * load16(vec, vec0 + v)
                inner = inner * factor / length
                g_share = where_positive(share, inner)
                g_low = g_low - g_share * rate
                g_span = g_span - g_share * share * rate
                # the direction does not depend on a length that is too short to divide by
                g_length = where_positive(length - least, g_share * rate - inner * share / length)
                scale, turn = factor * share / length, g_length / length
                for component in range(first, last):
                    v = at + component * channels + c
                    increase(g_vec, v, load16(g, v) * scale + load16(vec, vec0 + v) * turn)
            g_top = total8(g_span) if top != low else 0.0
            for c, gradient in ((longest, g_top), (shortest, total8(g_low) - g_top)):
                if c >= 0 and norm[c] > LEAST_NORM:
                    for component in range(first, last):
                        v = component * channels + c
                        g_vec.flat[at + v] += gradient * vec.flat[vec0 + at + v] / norm[c]
