"""What a collective variable is fitted to: tokens and positions, in memory or read from a store piece by piece."""

import numpy as np
import torch

from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.representation.store import encoder_identity
from openmm_geomgnn.units import NM_TO_ANGSTROM

PIECE = 4096  # frames that a mixer sees at once
FEATURES_IN_MEMORY = 1 << 30  # bytes of features that are kept; more are computed again for every pass over them


class Features:
    """What a mixer makes of the tokens of one trajectory, (F, n) in float64; computed where it is sliced, never as a whole.

    Parameters
    ----------
    mixer : Mixer
    tokens : (F, R, 4, H) tensor, or Zarr array
    frames : range, optional
        Those that count; all by default.
    """

    lazy = True  # see `koopman.covariance.as_trajectories`
    ndim = 2

    def __init__(self, mixer, tokens, frames=None):
        self._mixer = mixer
        self._tokens = tokens
        self._frames = range(tokens.shape[0]) if frames is None else frames

    def __len__(self):
        return len(self._frames)

    @property
    def shape(self):
        return len(self), self._mixer.out_features

    def __getitem__(self, frames):
        return Features(self._mixer, self._tokens, self._frames[frames])

    def pieces(self):
        """Yield (C, n) float tensors, in the mixer's own precision."""
        for k in range(0, len(self), PIECE):
            frames = self._frames[k : k + PIECE]
            tokens = torch.as_tensor(self._tokens[frames.start : frames.stop : frames.step]).float()
            with torch.no_grad():
                yield self._mixer(tokens)

    def __array__(self, dtype=None, copy=None):
        features = np.empty(self.shape, dtype or np.float64)
        done = 0
        for piece in self.pieces():
            features[done : done + len(piece)] = piece.numpy()
            done += len(piece)
        return features


def features_of(mixer, tokens):
    """`Features` for each trajectory, or arrays where all together are small."""
    features = [Features(mixer, part) for part in tokens]
    small = 8 * sum(len(part) for part in features) * mixer.out_features <= FEATURES_IN_MEMORY
    return [np.asarray(part) for part in features] if small else features


class StoredPositions:
    """Positions of one trajectory in a store, in angstrom as `periodic.SelectedMolecule` gives them; read where indexed."""

    def __init__(self, array):
        self._array = array  # (F, n, 3) in nm

    def __len__(self):
        return self._array.shape[0]

    def __getitem__(self, frames):
        """(K, n, 3) float64 tensor at the frames of an ascending tensor of numbers."""
        return torch.from_numpy(self._array.oindex[frames.numpy()].astype(np.float64) * NM_TO_ANGSTROM)


def even_frames(lengths, number):
    """Numbers of at most `number` frames, evenly spaced over all parts together: a tensor for each part."""
    chosen = torch.linspace(0, sum(lengths) - 1, min(number, sum(lengths))).long()
    found, first = [], 0
    for length in lengths:
        found.append(chosen[(chosen >= first) & (chosen < first + length)] - first)
        first += length
    return found


def evenly(parts, number):
    """The frames of `even_frames` of all parts together: (K, n, 3)."""
    frames = even_frames([len(part) for part in parts], number)
    return torch.cat([part[here] for part, here in zip(parts, frames, strict=True) if len(here)])


def in_memory(arrays):
    """Tensors that are parts of one, from Zarr arrays of tokens: one copy of the data, in the precision of the store."""
    arrays = list(arrays)
    lengths = [array.shape[0] for array in arrays]
    dtype = getattr(torch, str(arrays[0].dtype))
    parts = torch.empty((sum(lengths), *arrays[0].shape[1:]), dtype=dtype).split(lengths)
    for part, array in zip(parts, arrays, strict=True):
        size = array.chunks[0]
        for start in range(0, len(part), size):
            part[start : start + size] = torch.from_numpy(np.asarray(array[start : start + size]))
    return list(parts)


def check_stored(store, settings, encoder, topology, atoms, table):
    """Raise a GeomGNNError unless a store is complete and as it was written, of this molecule, and made as `settings` say.

    Parameters
    ----------
    settings : FitSettings
    table : list
        The residue table of `atoms`.
    """
    # a fit reads everything many times; a damaged chunk must not become a CV
    store.check(content=True)
    store.check_molecule(table, [topology.atom(int(index)).name for index in atoms])
    there = store.settings
    names = ["selection", "window", "pooling", *{"sequence": ["context"], "space": ["radius"]}.get(settings.window, [])]
    differing = [
        f"{name} {_shown(there[name])} there, {_shown(getattr(settings, name))} here"
        for name in names
        if getattr(settings, name) != there[name]
    ]
    if any(there[name] != value for name, value in encoder_identity(encoder).items()):
        differing.append(f"encoder {there['encoder']} with hash {there['encoder_hash']} there, {settings.encoder} here")
    if differing:
        raise GeomGNNError(
            f"{store.path} was made with other settings than the fit has: {'; '.join(differing)}. Leave these settings out "
            "of the fit, and it takes those of the store; or embed the trajectories with them."
        )


def _shown(value):
    return "null" if value is None else f"'{value}'" if isinstance(value, str) else str(value)
