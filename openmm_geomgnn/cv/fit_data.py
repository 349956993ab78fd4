"""What a collective variable is fitted to: tokens and positions, in memory or read from a store piece by piece."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import mdtraj
import numpy as np
import numpy.typing as npt
import torch

from openmm_geomgnn.aliases import StageProgress
from openmm_geomgnn.cv.fit_settings import FitSettings
from openmm_geomgnn.cv.mixers.base import Mixer
from openmm_geomgnn.koopman.covariance import PairsLike
from openmm_geomgnn.representation.bond_graph import record_centres
from openmm_geomgnn.representation.encoder import Encoder
from openmm_geomgnn.representation.featurization import Featurization, SelectedAtoms
from openmm_geomgnn.representation.selection import bonds_of
from openmm_geomgnn.representation.store import Embeddings, encoder_identity
from openmm_geomgnn.representation.tokens import Tokenizer
from openmm_geomgnn.unfinished import Unfinished, fingerprint
from openmm_geomgnn.units import NM_TO_ANGSTROM

PIECE = 4096  # frames that a mixer sees at once
PIECE_FRAMES = 250  # whose tokens are kept as one, about
CENTRE_FRAMES = 20  # of each trajectory, in which the stereocentres are looked at
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

    def __init__(self, mixer: Mixer, tokens: Any, frames: range | None = None) -> None:
        self._mixer = mixer
        self._tokens = tokens
        self._frames = range(tokens.shape[0]) if frames is None else frames

    def __len__(self) -> int:
        return len(self._frames)

    @property
    def shape(self) -> tuple[int, int]:
        """Frames and features."""
        return len(self), self._mixer.out_features

    def __getitem__(self, frames: slice) -> "Features":
        return Features(self._mixer, self._tokens, self._frames[frames])

    def pieces(self) -> Iterator[torch.Tensor]:
        """Yield (C, n) float tensors, in the mixer's own precision."""
        for k in range(0, len(self), PIECE):
            frames = self._frames[k : k + PIECE]
            tokens = torch.as_tensor(self._tokens[frames.start : frames.stop : frames.step]).float()
            with torch.no_grad():
                yield self._mixer(tokens)

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> np.ndarray:
        features = np.empty(self.shape, dtype or np.float64)
        done = 0
        for piece in self.pieces():
            features[done : done + len(piece)] = piece.numpy()
            done += len(piece)
        return features


def features_of(mixer: Mixer, tokens: Sequence[Any]) -> Sequence[Any]:
    """`Features` for each trajectory, or arrays where all together are small."""
    features = [Features(mixer, part) for part in tokens]
    small = 8 * sum(len(part) for part in features) * mixer.out_features <= FEATURES_IN_MEMORY
    return [np.asarray(part) for part in features] if small else features


class StoredPositions:
    """Positions of one trajectory in a store, in angstrom as `periodic.SelectedMolecule` gives them; read where indexed."""

    def __init__(self, array: Any) -> None:
        self._array = array  # (F, n, 3) in nm

    def __len__(self) -> int:
        return self._array.shape[0]

    def __getitem__(self, frames: torch.Tensor) -> torch.Tensor:
        """(K, n, 3) float64 tensor at the frames of an ascending tensor of numbers."""
        return torch.from_numpy(self._array.oindex[frames.numpy()].astype(np.float64) * NM_TO_ANGSTROM)


def even_frames(lengths: Sequence[int], number: int) -> list[torch.Tensor]:
    """Numbers of at most `number` frames, evenly spaced over all parts together: a tensor for each part."""
    return by_part(torch.linspace(0, sum(lengths) - 1, min(number, sum(lengths))).long(), lengths)


def by_part(chosen: torch.Tensor, lengths: Sequence[int]) -> list[torch.Tensor]:
    """Numbers of frames of all parts together, (K,), as numbers in each part: a tensor for each."""
    found, first = [], 0
    for length in lengths:
        found.append(chosen[(chosen >= first) & (chosen < first + length)] - first)
        first += length
    return found


def evenly(parts: Sequence[Any], number: int) -> torch.Tensor:
    """The frames of `even_frames` of all parts together: (K, n, 3)."""
    return taken(parts, even_frames([len(part) for part in parts], number))


def taken(parts: Sequence[Any], frames: Sequence[torch.Tensor]) -> torch.Tensor:
    """These frames of each part, all together: (K, n, 3)."""
    return torch.cat([part[here] for part, here in zip(parts, frames, strict=True) if len(here)])


def in_memory(arrays: Iterable[Any]) -> list[torch.Tensor]:
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


@dataclass(frozen=True)
class TrainingFrames:
    """The data of a fit.

    Attributes
    ----------
    featurization : Featurization
    positions : list of (F, n, 3) tensors or StoredPositions
        Whole molecules in angstrom, of each trajectory.
    tokens : list of (F, R, 4, H) tensors or Zarr arrays
    pairs : list of koopman.Pairs, optional
        Of each trajectory; all frames a lag time apart where there are none.
    targets : list of (F, m) arrays, optional
        What the CV is to follow, for the progress estimator.
    biased : list of bool, optional
        Which trajectories had a bias; none by default.
    intervals : list of float, optional
        ps between the frames of each trajectory; that of the settings by default.
    """

    featurization: Featurization
    positions: list[Any]
    tokens: list[Any]
    pairs: PairsLike = None
    targets: list[np.ndarray] | None = None
    biased: list[bool] | None = None
    intervals: list[float] | None = None


def lengths_of(trajectories: Sequence[mdtraj.Trajectory] | Embeddings) -> list[int]:
    """Frames of each trajectory, of a list of mdtraj trajectories or of a store."""
    return trajectories.lengths if isinstance(trajectories, Embeddings) else [len(part) for part in trajectories]


def featurize(
    trajectories: Sequence[mdtraj.Trajectory] | Embeddings, topology: mdtraj.Topology, settings: FitSettings
) -> Featurization:
    """The Featurization of a fit.

    Parameters
    ----------
    trajectories : list of mdtraj.Trajectory, or Embeddings
        A store has its own windows, and must have been made as the settings say.
    topology : mdtraj.Topology
    settings : FitSettings

    Raises
    ------
    GeomGNNError
        If atoms, encoder and windows do not fit; if a store is incomplete, damaged, of another molecule or made otherwise.
    """
    spec = settings.tokens
    selected = SelectedAtoms.find(topology, spec.selection)
    encoder = Encoder.load(settings.encoder)
    if isinstance(trajectories, Embeddings):
        trajectories.check(content=True)  # a fit reads everything many times; a damaged chunk must not become a CV
        trajectories.check_molecule(selected.table, selected.names)
        trajectories.check_made_with(spec, encoder, settings.encoder)
        spec = spec.resolved(trajectories.spec.neighbours)
        return Featurization(selected, spec, encoder)
    return Featurization(selected, spec, encoder, structure=lambda: trajectories[0])


def read_frames(
    trajectories: Sequence[mdtraj.Trajectory] | Embeddings,
    featurization: Featurization,
    joined: bool,
    progress: StageProgress,
    unfinished: Unfinished,
) -> TrainingFrames:
    """The `TrainingFrames` of trajectories, whose stereocentres are noted in the residue table.

    Parameters
    ----------
    joined : bool
        Whether tokens of a store are read into memory, as parts of one tensor.
    progress : callable
        Called as progress("embed", done, total).
    unfinished : Unfinished
        Where tokens are kept.
    """
    positions = read_positions(trajectories, featurization)
    if isinstance(trajectories, Embeddings):
        tokens = [trajectories.tokens(k) for k in range(len(trajectories))]
        tokens = in_memory(tokens) if joined else tokens
    else:
        tokens = embed_positions(featurization.tokenizer, positions, progress, unfinished)
    return TrainingFrames(featurization, positions, tokens)


def read_positions(trajectories: Sequence[mdtraj.Trajectory] | Embeddings, featurization: Featurization) -> list[Any]:
    """The `TrainingFrames.positions` of trajectories, whose stereocentres are noted in the residue table."""
    positions: list[Any]
    if isinstance(trajectories, Embeddings):
        positions = [StoredPositions(trajectories.positions(k)) for k in range(len(trajectories))]
    else:
        positions = [featurization.molecule.positions(part) for part in trajectories]
    record_centres(bonds_of(featurization.table), [evenly([part], CENTRE_FRAMES) for part in positions])
    return positions


def embed_positions(
    tokenizer: Tokenizer, positions: Sequence[torch.Tensor], progress: StageProgress, unfinished: Unfinished
) -> list[torch.Tensor]:
    """Tokens of each trajectory, in pieces that are kept as soon as they are done."""
    lengths = [len(pos) for pos in positions]
    advance = frame_counter(progress, "embed", sum(lengths))
    encoder = tokenizer.encoder
    # parts of one tensor, which the training of a VAMPnet needs joined: one copy, not two
    shape = tokenizer.windows.n_tokens, 4, encoder.hidden_channels
    tokens = torch.empty((sum(lengths), *shape), dtype=encoder.dtype).split(lengths)
    size = max(1, PIECE_FRAMES // tokenizer.frames_per_pass) * tokenizer.frames_per_pass
    graphs = tokenizer.rows, tokenizer.z, tokenizer.graph, tokenizer.own, tokenizer.token
    same = fingerprint(encoder_identity(encoder), *graphs, tokenizer.pooling, sum(lengths))
    for number, (part, pos) in enumerate(zip(tokens, positions, strict=True)):
        for start in range(0, len(pos), size):
            piece, name = pos[start : start + size], f"tokens.{number}.{start}"
            made_from = fingerprint(same, piece)
            found = unfinished.load(name, made_from)
            if found is None:
                found = {"tokens": tokenizer.embed(piece, advance, expected=sum(lengths))}
                unfinished.save(name, made_from, found)
            else:
                advance(len(piece))
            part[start : start + size] = found["tokens"]
    return list(tokens)


def frame_counter(progress: StageProgress, stage: str, total: int) -> Callable[[int], None]:
    """A callable that takes how many more frames are done and reports the sum as progress(stage, done, total)."""
    done = 0

    def advance(frames: int) -> None:
        nonlocal done
        done += frames
        progress(stage, done, total)

    advance(0)
    return advance
