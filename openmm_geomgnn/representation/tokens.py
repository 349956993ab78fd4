"""From atoms to residue tokens: the encoder on the windows of a molecule, summed over each residue's own atoms."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.representation import encoder as encoders
from openmm_geomgnn.representation.encoder import Encoder, frames_per_pass, worth_compiling
from openmm_geomgnn.representation.windows import Windows

POOLING = ("sum", "mean")


class Part(NamedTuple):
    """Some consecutive windows, as slices of the window atoms, of their pairs and of the atoms that count in tokens."""

    atoms: slice
    pairs: slice
    own: slice


class Tokenizer(nn.Module):
    """Residue tokens of conformations of one molecule.

    Parameters
    ----------
    encoder : Encoder
    windows : Windows
    pooling : {"sum", "mean"}
        Over the residue's own atoms.
    engine : {"auto", "eager"}
        "eager" never uses compiled kernels.
    """

    rows: torch.Tensor
    z: torch.Tensor
    graph: torch.Tensor
    pair_i: torch.Tensor
    pair_j: torch.Tensor
    own: torch.Tensor
    token: torch.Tensor
    size: torch.Tensor

    def __init__(self, encoder: Encoder, windows: Windows, pooling: str = "sum", engine: str = "auto") -> None:
        super().__init__()
        if pooling not in POOLING:
            raise GeomGNNError(f"Unknown token pooling '{pooling}'; the choices are {', '.join(POOLING)}.")
        self.encoder = encoder
        self.windows = windows
        self.pooling = pooling
        self.engine = engine
        self._compiled: Any = None
        rows = torch.as_tensor(windows.rows)
        z = torch.as_tensor(windows.z)
        encoder.check_elements(windows.z)
        token = torch.as_tensor(windows.token)
        own = (token >= 0).nonzero().squeeze(1)
        self.register_buffer("rows", rows, persistent=False)
        self.register_buffer("z", z[rows], persistent=False)
        self.register_buffer("graph", torch.as_tensor(windows.graph), persistent=False)
        self.register_buffer("pair_i", torch.as_tensor(windows.pairs[0]), persistent=False)
        self.register_buffer("pair_j", torch.as_tensor(windows.pairs[1]), persistent=False)
        self.register_buffer("own", own, persistent=False)
        self.register_buffer("token", token[own], persistent=False)
        self.register_buffer("size", torch.bincount(token[own], minlength=windows.n_tokens), persistent=False)

    @property
    def frames_per_pass(self) -> int:
        """Frames that are embedded at once."""
        return frames_per_pass(self.pair_i.numel())

    def window_features(self, pos: torch.Tensor, part: Part | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Scalars (F*M, H) and vectors (F*M, 3, H) of all window atoms of frames `pos` (F, n, 3) in angstrom.

        Parameters
        ----------
        part : Part, optional
            Of these windows only.
        """
        atoms, pairs = part[:2] if part else (slice(0, self.rows.numel()), slice(None))
        count, size = pos.shape[0], atoms.stop - atoms.start
        shift = torch.arange(count, device=pos.device).unsqueeze(1)
        graph = (self.graph[atoms] + shift * self.windows.n_graphs).flatten()
        both = tuple((side[pairs] + (shift * size - atoms.start)).flatten() for side in (self.pair_i, self.pair_j))
        return self.encoder(self.z[atoms].repeat(count), pos.index_select(1, self.rows[atoms]).reshape(-1, 3), graph, both)

    def pool(self, x: torch.Tensor, v: torch.Tensor, count: int) -> torch.Tensor:
        """Tokens (F, R, 4, H) from features of window atoms of `count` = F frames."""
        return self._divided(self._sums(x, v, count))

    def _sums(self, x: torch.Tensor, v: torch.Tensor, count: int, part: Part | None = None) -> torch.Tensor:
        """(F, R, 4, H) sums over the own atoms of each residue, of all windows or of those of a part."""
        first, own = (part.atoms.start, part.own) if part else (0, slice(None))
        atoms = torch.cat([x.unsqueeze(1), v], dim=1).view(count, x.shape[0] // count, 4, -1)
        tokens = atoms.new_zeros(count, self.windows.n_tokens, 4, atoms.shape[-1])
        return tokens.index_add(1, self.token[own], atoms.index_select(1, self.own[own] - first))

    def _divided(self, tokens: torch.Tensor) -> torch.Tensor:
        return tokens / self.size.to(tokens.dtype)[:, None, None] if self.pooling == "mean" else tokens

    def forward(self, pos: torch.Tensor) -> torch.Tensor:
        """Tokens (F, R, 4, H) of frames `pos` (F, n, 3) in angstrom."""
        return self.pool(*self.window_features(pos), pos.shape[0])

    def embed(
        self, pos: torch.Tensor | np.ndarray, progress: Callable[[int], None] | None = None, expected: int = 0
    ) -> torch.Tensor:
        """Tokens of many frames, in chunks and without gradients.

        In single precision compiled kernels are used where there are some for the encoder and the frames are worth it; they
        agree with the network itself to about 1e-6.

        Parameters
        ----------
        pos : (F, n, 3) tensor or array
            Angstrom.
        progress : callable, optional
            Called with the number of frames done after each chunk.
        expected : int
            Frames that are embedded in all, if these are a part of them: many frames are worth compiling for.
        """
        pos = torch.as_tensor(pos)
        parts = self._parts()
        compiled = self._compiled_network(max(len(pos), expected), parts)
        tokens = []
        with torch.no_grad():
            for chunk in pos.split(self.frames_per_pass):
                sums = self._sums_eagerly(chunk, parts) if compiled is None else self._sums_compiled(chunk, compiled)
                tokens.append(self._divided(sums))
                if progress is not None:
                    progress(len(chunk))
        return torch.cat(tokens)

    def _sums_eagerly(self, pos: torch.Tensor, parts: Sequence[Part]) -> Any:
        pos = pos.to(self.encoder.dtype)
        return sum(self._sums(*self.window_features(pos, part), len(pos), part) for part in parts)

    def _sums_compiled(self, pos: torch.Tensor, compiled: Any) -> torch.Tensor:
        x, v = (torch.from_numpy(part).flatten(0, 1) for part in compiled.embed(pos[:, self.rows].numpy()))
        return self._sums(x, v, len(pos))

    def _compiled_network(self, frames: int, parts: Sequence[Part]) -> Any:
        """The encoder for these windows as compiled kernels, or None; kept until the encoder's parameters change."""
        if self.engine == "eager" or self.encoder.dtype != torch.float32 or self.rows.is_cuda:
            return None
        state = [(parameter.data_ptr(), parameter._version) for parameter in self.encoder.parameters()]
        if self._compiled is None or self._compiled[0] != state:
            if not worth_compiling(frames, self.pair_i.numel()):
                return None
            from torchmdnet_ext.compiled import compiled_forward

            pairs = self.pair_i.numpy(), self.pair_j.numpy()
            ends = [part.atoms.stop for part in parts]
            self._compiled = state, compiled_forward(self.encoder.network, self.z.numpy(), pairs, ends)
        return self._compiled[1]

    def _parts(self) -> list[Part]:
        """The windows in groups that have few enough pairs for one pass, or are one window."""
        pair_ends = np.bincount(self.windows.graph[self.windows.pairs[0]], minlength=self.windows.n_graphs).cumsum()
        atom_ends = np.bincount(self.windows.graph).cumsum()
        own, parts, atom, pair = np.flatnonzero(self.windows.token >= 0), [], 0, 0
        while atom < atom_ends[-1]:
            fitting = np.searchsorted(pair_ends, pair + encoders.CHUNK_PAIRS, "right") - 1
            last = max(fitting, np.searchsorted(atom_ends, atom, "right"))
            atoms, pairs = slice(atom, int(atom_ends[last])), slice(pair, int(pair_ends[last]))
            parts.append(Part(atoms, pairs, slice(*np.searchsorted(own, [atoms.start, atoms.stop]).tolist())))
            atom, pair = atoms.stop, pairs.stop
        return parts
