"""From atoms to residue tokens: the encoder on the windows of a molecule, summed over each residue's own atoms."""

import torch
from torch import nn

from openmm_geomgnn.encoder import check_elements, frames_per_pass
from openmm_geomgnn.errors import GeomGNNError

POOLING = ("sum", "mean")


class Tokenizer(nn.Module):
    """Residue tokens of conformations of one molecule.

    Parameters
    ----------
    encoder : Encoder
    windows : Windows
    pooling : {"sum", "mean"}
        Over the residue's own atoms.
    """

    def __init__(self, encoder, windows, pooling="sum"):
        super().__init__()
        if pooling not in POOLING:
            raise GeomGNNError(f"Unknown token pooling '{pooling}'; the choices are {', '.join(POOLING)}.")
        self.encoder = encoder
        self.windows = windows
        self.pooling = pooling
        rows = torch.as_tensor(windows.rows)
        z = torch.as_tensor(windows.z)
        check_elements(z, encoder.network.max_z)
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
    def frames_per_pass(self):
        """Frames that are embedded at once."""
        return frames_per_pass(self.pair_i.numel())

    def window_features(self, pos):
        """Scalars (F*M, H) and vectors (F*M, 3, H) of all window atoms of frames `pos` (F, n, 3) in angstrom."""
        count, atoms = pos.shape[0], self.rows.numel()
        shift = torch.arange(count, device=pos.device).unsqueeze(1)
        graph = (self.graph + shift * self.windows.n_graphs).flatten()
        pairs = (self.pair_i + shift * atoms).flatten(), (self.pair_j + shift * atoms).flatten()
        return self.encoder(self.z.repeat(count), pos[:, self.rows].reshape(-1, 3), graph, pairs)

    def pool(self, x, v, count):
        """Tokens (F, R, 4, H) from features of window atoms of `count` = F frames."""
        atoms = torch.cat([x.unsqueeze(1), v], dim=1).view(count, self.rows.numel(), 4, -1)
        tokens = atoms.new_zeros(count, self.windows.n_tokens, 4, atoms.shape[-1])
        tokens = tokens.index_add(1, self.token, atoms[:, self.own])
        if self.pooling == "mean":
            tokens = tokens / self.size.to(tokens.dtype)[:, None, None]
        return tokens

    def forward(self, pos):
        """Tokens (F, R, 4, H) of frames `pos` (F, n, 3) in angstrom."""
        return self.pool(*self.window_features(pos), pos.shape[0])

    def embed(self, pos, progress=None):
        """Tokens of many frames, in chunks and without gradients.

        Parameters
        ----------
        pos : (F, n, 3) tensor or array
            Angstrom.
        progress : callable, optional
            Called with the number of frames done after each chunk.
        """
        pos = torch.as_tensor(pos).to(self.encoder.dtype)
        chunks = []
        with torch.no_grad():
            for chunk in pos.split(self.frames_per_pass):
                chunks.append(self(chunk))
                if progress is not None:
                    progress(len(chunk))
        return torch.cat(chunks)
