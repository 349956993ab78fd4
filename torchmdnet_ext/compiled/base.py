"""What compiled networks have in common: their checks, the order of their channels, and their place in torch.autograd."""

import threading

import numpy as np
import torch
from torch.autograd.function import once_differentiable

from torchmdnet_ext.compiled.arguments import RadialTable
from torchmdnet_ext.compiled.arrays import aligned_zeros
from torchmdnet_ext.compiled.tables import table_error, tabulate
from torchmdnet_ext.kernels.cache import FixedTypes, array_types, signatures
from torchmdnet_ext.kernels.lanes import PANEL, WIDTH

STACKED_ROWS = 30  # atoms that small molecules are stacked to: whole blocks of `matmul`, few enough for the cache


class _Evaluate(torch.autograd.Function):
    @staticmethod
    def forward(ctx, pos, engine):
        x, v, ctx.ticket = engine.forward(pos.detach().numpy())
        ctx.engine, ctx.dtype = engine, pos.dtype
        ctx.save_for_backward(pos)
        return torch.from_numpy(x), torch.from_numpy(v)

    @staticmethod
    @once_differentiable
    def backward(ctx, g_x, g_v):
        (pos,) = ctx.saved_tensors
        gradient = ctx.engine.vjp(pos.detach().numpy(), g_x.detach().numpy(), g_v.detach().numpy(), ctx.ticket)
        return torch.from_numpy(gradient).to(ctx.dtype), None


def checked_pairs(pairs, n_atoms):
    """Pairs i < j in ascending order, as int64 arrays (P,), from pairs in any order.

    Raises
    ------
    ValueError
        If the two sides differ in length, an atom is out of range or its own partner, or a pair is listed twice.
    """
    i, j = (np.asarray(side, dtype=np.int64).reshape(-1) for side in pairs)
    if len(i) != len(j):
        raise ValueError(f"Both sides of the pairs must be equally long, but have {len(i)} and {len(j)} entries.")
    both = np.stack([np.minimum(i, j), np.maximum(i, j)])
    if both.size and (both.min() < 0 or both.max() >= n_atoms or (both[0] == both[1]).any()):
        raise ValueError(f"Pairs must join two different atoms numbered from 0 to {n_atoms - 1}.")
    both = both[:, np.lexsort((both[1], both[0]))]
    if both.shape[1] > 1 and (np.diff(both, axis=1) == 0).all(0).any():
        raise ValueError("A pair of atoms is listed twice. List every pair once; both directions are implied.")
    return np.ascontiguousarray(both[0]), np.ascontiguousarray(both[1])


def make_parts(i, j, n_atoms, ends):
    """Groups of consecutive atoms: of each the slice of its atoms, and its pairs numbered from its first atom on.

    Raises
    ------
    ValueError
        If the ends do not rise to the number of atoms, or a pair joins atoms of two groups.
    """
    ends = np.asarray(ends, dtype=np.int64)
    if len(ends) == 0 or ends[-1] != n_atoms or (np.diff(ends, prepend=0) <= 0).any():
        raise ValueError(f"The ends of parts must rise to the number of atoms, {n_atoms}, but are {ends}.")
    if (np.searchsorted(ends, i, "right") != np.searchsorted(ends, j, "right")).any():
        raise ValueError("A pair joins atoms of two parts. Give parts that hold whole graphs.")
    pair_ends = np.searchsorted(i, ends)
    return [
        (slice(start, end), i[first:last] - start, j[first:last] - start)
        for start, end, first, last in zip(np.r_[0, ends[:-1]], ends, np.r_[0, pair_ends[:-1]], pair_ends, strict=True)
    ]


def have_kernels(functions, dtype):
    """Of each jitted function whether it is compiled for arrays of a precision, in this process or in its folder."""
    # some arrays are in double precision always, so single precision shows in there being one of it
    return [
        any(any(str(kind.dtype) == "float32" for kind in array_types(types)) == (dtype == np.float32) for types in kinds)
        for kinds in map(signatures, functions)
    ]


class CompiledNetwork:
    """Base of a network for fixed atoms and fixed candidate pairs.

    A network's own class has its `network_class`, perhaps `_uncovered`, the kernels `_forward` and `_backward`, and what
    makes their arguments, named tuples that its module of arguments defines: `_make_weights(network, z, intervals)` sets
    `_start` (two arrays with a row for each atom), `_shared`, `_forward_weights` and, with `gradient`, `_backward_weights`;
    `_make_work(atoms, pairs)`, for the largest numbers of them in a part, sets `_kept`, `_forward_work` and, with
    `gradient`, `_backward_work`.

    Parameters
    ----------
    network : nn.Module
        Its parameters are copied; later changes to it have no effect.
    z : (M,) int array
        Atomic numbers.
    pairs : (i, j), int arrays (P,)
        Candidate pairs, i != j, each once. At run time those beyond the cutoff are skipped.
    precision : {"single", "double"}
        Of the arithmetic inside and of the outputs; distances are always computed in double precision. Double is meant for
        checks: it is slower by a factor of two or more.
    intervals : int, optional
        Intervals of the table of radial filters; without it as many as the precision needs.
    gradient : bool
        Whether `vjp` is wanted; without it an evaluation needs less memory.
    parts : (K,) int array, optional
        Ends of groups of consecutive atoms with no pair between them, the last is M. Without `gradient` they are evaluated
        one after the other, in the memory of the largest.
    rows : (M,) int array, optional
        With `gradient`, where atoms stand in several windows: the atom that each of the M is. Positions and gradients are
        then those of the atoms, (n, 3).

    Attributes
    ----------
    shares_pairs : bool
        Whether the kernels themselves take positions of atoms; otherwise they take those of all M.

    Raises
    ------
    ValueError
        If the network has settings that the kernels do not cover (see `supports`), or z or the pairs do not make sense.
    """

    shares_pairs = False

    def __init__(self, network, z, pairs, precision="single", intervals=None, gradient=True, parts=None, rows=None):
        reason = self.supports(network)
        if reason is not None:
            raise ValueError(f"The compiled engine cannot run this network: {reason}. Use the plain PyTorch network.")
        if precision not in ("single", "double"):
            raise ValueError(f"precision must be 'single' or 'double', but was {precision!r}.")
        self.dtype = np.dtype(np.float32 if precision == "single" else np.float64)
        z = np.asarray(z, dtype=np.int64).reshape(-1)
        largest = network.max_z - 1
        if len(z) == 0 or z.min() < 0 or z.max() > largest:
            raise ValueError(f"Atomic numbers must be a non-empty array of values from 0 to {largest}, but were {z}.")
        i, j = checked_pairs(pairs, len(z))
        self.gradient = bool(gradient)
        self._rows = None if rows is None else np.asarray(rows, dtype=np.int64)
        self._positions = (len(z) if rows is None else int(self._rows.max()) + 1, 3)
        self._lock = threading.Lock()
        self._call = FixedTypes()
        self._ticket = 0  # number of the evaluation whose intermediate values are in the work arrays
        self._make_order(network)
        self._shape = (len(z), len(self.order))
        self._parts = make_parts(i, j, len(z), [len(z)] if parts is None or gradient else parts)
        self._stack = 1 if gradient or len(self._parts) > 1 else max(1, STACKED_ROWS // len(z))
        with torch.no_grad():
            self._make_weights(network, np.tile(z, self._stack), intervals)
        shift = len(z) * np.arange(self._stack)[:, None]
        self._parts = [(atoms, (i + shift).reshape(-1), (j + shift).reshape(-1)) for atoms, i, j in self._parts]
        self._make_work(
            self._stack * max(atoms.stop - atoms.start for atoms, _, _ in self._parts),
            max(len(first) for _, first, _ in self._parts),
        )

    @classmethod
    def supports(cls, network) -> str | None:
        """None if a network can be run, otherwise the reason why not."""
        if not isinstance(network, cls.network_class):
            return f"it is a {type(network).__name__}, not a {cls.network_class.__name__}"
        return cls._uncovered(network) or ("periodic boxes are not covered" if bool(network.distance.box.any()) else None)

    @staticmethod
    def _uncovered(network) -> str | None:
        """Which settings of a network of the right class the kernels do not cover; None if they do."""
        return None

    def _make_order(self, network):
        heads, width = network.num_heads, network.hidden_channels // network.num_heads
        self.groups = -(-heads // WIDTH)
        self.depth = width + width % 2  # an even number of blocks makes whole panels
        self.channels = self.groups * self.depth * WIDTH
        head, d = np.divmod(np.arange(network.hidden_channels), width)
        # position of every channel of the network among the kernels' channels
        self.order = ((head // WIDTH) * self.depth + d) * WIDTH + head % WIDTH

    def _channels(self, rows):
        """(..., H) in the network's order -> (..., C) in the kernels' order, 0 on padding."""
        out = np.zeros((*rows.shape[:-1], self.channels))
        out[..., self.order] = rows
        return out

    def _matrix(self, weight):
        """(parts * H, H) weight of a linear layer -> (C, parts * C)."""
        parts = weight.reshape(-1, len(self.order), weight.shape[1])
        rows = self._channels(parts.transpose(2, 0, 1))  # (H, parts, C)
        return self._channels(rows.transpose(1, 2, 0)).transpose(2, 0, 1).reshape(self.channels, -1)

    def _packed(self, matrices):
        """Matrices (inner, columns) -> (n, columns / PANEL, inner, PANEL)."""
        shape = (0, 1, 1, PANEL)
        packed = [m.reshape(m.shape[0], -1, PANEL).transpose(1, 0, 2) for m in matrices]
        return self._cast(np.stack(packed) if packed else np.zeros(shape))

    def _cast(self, array):
        out = aligned_zeros(np.shape(array), self.dtype)
        out[...] = array
        return out

    def _zeros(self, *shape):
        return aligned_zeros(shape, self.dtype)

    def _tabulated(self, network, choices, tolerance, filters):
        """Coefficients of the radial filters with the fewest intervals that are exact enough; sets `grid`."""
        for choice in choices:
            self.grid, coefficients = tabulate(network, choice, filters)
            if choice == choices[-1] or table_error(network, self.grid, coefficients, filters) < tolerance:
                return coefficients

    def _radial_table(self, coefficients):
        """The coefficients, in the order of the kernels, with their grid."""
        grid = self.grid
        return RadialTable(
            grid.cutoff, grid.share, float(grid.steepness), grid.alpha, grid.intervals, self._cast(coefficients)
        )

    @property
    def needs_compiling(self) -> bool:
        """Whether the first evaluation will take long, since the kernels are neither in this process nor in their folder."""
        return not all(have_kernels((self._forward, self._backward) if self.gradient else (self._forward,), self.dtype))

    def __call__(self, pos):
        """Scalars x (M, H) and vectors v (M, 3, H) at `pos` (M, 3) in angstrom, as torch tensors.

        Differentiable once with respect to `pos`. Outputs have the engine's precision; the gradient has the type of `pos`.
        If any position is not finite, all outputs and gradients are NaN.
        """
        if pos.device.type != "cpu":
            raise ValueError(f"The compiled engine runs on the CPU, but the positions are on {pos.device}. Move them to it.")
        return _Evaluate.apply(pos, self)

    def forward(self, pos):
        """Compute x (M, H) and v (M, 3, H) as numpy arrays, and the ticket that `vjp` takes to reuse this evaluation."""
        pos = np.ascontiguousarray(pos, dtype=np.float64)
        m, hidden = self._shape
        if pos.shape != self._positions:
            raise ValueError(f"Positions must have the shape {self._positions}, but have {pos.shape}.")
        x, v = np.empty((m, hidden), self.dtype), np.empty((m, 3, hidden), self.dtype)
        with self._lock:
            self._run(self._kernel_positions(pos), x, v)
            return x, v, self._ticket

    def _kernel_positions(self, pos):
        return pos if self._rows is None or self.shares_pairs else pos[self._rows]

    def embed(self, frames):
        """Compute x (F, M, H) and v (F, M, 3, H) at `frames` (F, M, 3), as numpy arrays; small frames go together.

        All of a frame with a position that is not finite is NaN.
        """
        frames = np.ascontiguousarray(frames, dtype=np.float64)
        m, hidden = self._shape
        if frames.ndim != 3 or frames.shape[1:] != (m, 3):
            raise ValueError(f"Frames must have the shape (F, {m}, 3), but have {frames.shape}.")
        broken = ~np.isfinite(frames).all((1, 2))
        if broken.any():
            frames = np.where(broken[:, None, None], 0.0, frames)
        x, v = np.empty((len(frames), m, hidden), self.dtype), np.empty((len(frames), m, 3, hidden), self.dtype)
        with self._lock:
            for k in range(0, len(frames), self._stack):
                chunk = slice(k, k + self._stack)
                self._run(frames[chunk].reshape(-1, 3), x[chunk].reshape(-1, hidden), v[chunk].reshape(-1, 3, hidden))
        x[broken], v[broken] = np.nan, np.nan
        return x, v

    def _run(self, pos, x, v):
        """Fill x and v, of one frame or of several, at most `_stack`, one after the other."""
        self._ticket += 1
        first, second = self._start
        for a, i, j in self._parts:
            a = slice(a.start, a.stop + len(pos) - self._shape[0])  # several frames only where there is one part
            n = len(i) // self._stack * (len(pos) // self._shape[0])
            self._run_part(pos[a], (i[:n], j[:n]), (first[a], second[a]), x[a], v[a])

    def _run_part(self, pos, pairs, start, x, v):
        self._near = self._call(
            self._forward, int(self.gradient), pos, *pairs, *start, x, v,
            self._shared, self._forward_weights, self._kept, self._forward_work,
        )  # fmt: skip

    def vjp(self, pos, g_x, g_v, ticket=None):
        """Gradient, float64 in the shape of `pos`, of sum(g_x * x) + sum(g_v * v) with respect to `pos`.

        If `ticket` is not that of the latest evaluation, the forward pass is repeated at `pos`.

        Raises
        ------
        ValueError
            If the engine was made without `gradient`.
        """
        if not self.gradient:
            raise ValueError("This engine keeps nothing for gradients. Make it with gradient=True.")
        m, hidden = self._shape
        gradient = np.empty(self._positions if self.shares_pairs else (m, 3))
        g_x, g_v = np.ascontiguousarray(g_x, dtype=self.dtype), np.ascontiguousarray(g_v, dtype=self.dtype)
        with self._lock:
            if ticket != self._ticket:
                x, v = np.empty((m, hidden), self.dtype), np.empty((m, 3, hidden), self.dtype)
                self._run(self._kernel_positions(np.ascontiguousarray(pos, dtype=np.float64)), x, v)
            self._call(
                self._backward, self._near, g_x, g_v,
                self._shared, self._backward_weights, self._kept, self._backward_work, gradient,
            )  # fmt: skip
        if self._rows is None or self.shares_pairs:
            return gradient
        # np.add.at would take longer than small networks
        return np.stack([np.bincount(self._rows, column, self._positions[0]) for column in gradient.T], axis=1)
