"""The kinds of features whose linear combinations are scored: those of an encoder, and torsions to compare with."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from openmm_geomgnn.aliases import StageProgress
from openmm_geomgnn.cv.estimators import RATE_FRAMES, feature_rates
from openmm_geomgnn.cv.fit import make_cv, make_fit_mixer
from openmm_geomgnn.cv.fit_data import embed_positions, even_frames, features_of
from openmm_geomgnn.cv.fit_settings import FitSettings
from openmm_geomgnn.cv.mixers import make_mixer
from openmm_geomgnn.cv.mixers.base import Mixer
from openmm_geomgnn.cv.score_rows import RANDOM, TORSIONS, Case, Features
from openmm_geomgnn.cv.stiffness import atomic_masses, stiffness, stiffness_of
from openmm_geomgnn.cv.students.coordinates import InternalCoordinates
from openmm_geomgnn.representation.featurization import Featurization
from openmm_geomgnn.representation.rotatable import torsions_among
from openmm_geomgnn.representation.store import Embeddings
from openmm_geomgnn.unfinished import Unfinished

NO_WINDOW = "-"  # of torsions
_FRAMES = 4096  # at once


class NetworkFeatures:
    """The features of an encoder: its pooled tokens, or those tokens for a mixer."""

    def __init__(
        self, name: str, featurization: Featurization, settings: FitSettings, kept: Unfinished, store: Any = None
    ) -> None:
        self.name, self.window = name, featurization.spec.window
        self._featurization, self._kept = featurization, kept
        self._settings = replace(settings, tokens=featurization.spec)
        self._store = store if isinstance(store, Embeddings) else None
        self._mixer = make_fit_mixer(self._settings, featurization)
        self._tokens: list[Any] | None = None

    def cases(self, cases: Sequence[Case]) -> Sequence[Case]:
        """Those that are scored: of random weights linear ones only."""
        return [case for case in cases if case.is_linear or self.name != RANDOM]

    def tokens(self, positions: Sequence[Any], progress: StageProgress) -> list[Any]:
        """The tokens (F, R, 4, H) along whole molecules (F, n, 3) in angstrom, which are embedded once."""
        if self._tokens is None:
            if self._store is not None:
                self._tokens = [self._store.tokens(k) for k in range(len(self._store))]
            else:
                whole = [part[torch.arange(len(part))] for part in positions]
                self._tokens = list(embed_positions(self._featurization.tokenizer, whole, progress, self._kept))
        return self._tokens

    def features(self, positions: Sequence[Any], cases: Sequence[Case], progress: StageProgress) -> Features:
        """The `Features` along whole molecules (F, n, 3) in angstrom."""
        tokens, rates = self.tokens(positions, progress), None
        if any(case.softening for case in cases):
            rates = feature_rates(self._featurization, self._mixer, positions, self._settings, progress)
        return Features(features_of(self._mixer, tokens), rates, even_frames([len(part) for part in positions], RATE_FRAMES))

    def untrained(self, name: str) -> Mixer:
        """A mixer for these tokens, with default settings."""
        n_tokens, _, channels = self._featurization.token_shape
        return make_mixer(name, n_tokens, channels)

    def stiffness(
        self, mean: np.ndarray, projection: np.ndarray, positions: Sequence[Any], mixer: Any = None, **more: Any
    ) -> dict[str, Any]:
        """As of `stiffness.stiffness`, of all components (n, d) at once; mixer: a trained one, where there is one."""
        koopman = mean, projection, np.ones(projection.shape[1])
        cv = make_cv(self._settings, self._featurization, mixer or self._mixer, koopman)
        return stiffness(cv, self._featurization.topology, positions, **more)


class TorsionFeatures:
    """Cosines and sines of the torsions."""

    name, window = TORSIONS, NO_WINDOW

    def __init__(self, featurization: Featurization) -> None:
        self.coordinates: Any = _torsion_coordinates(featurization)  # None where there are none
        self._arrays: list[np.ndarray] | None = None
        self._masses = atomic_masses(featurization.topology, featurization.atoms)

    def cases(self, cases: Sequence[Case]) -> Sequence[Case]:
        """Linear ones without softening: they are soft."""
        return list(dict.fromkeys(case._replace(softening=0.0) for case in cases if case.is_linear))

    def arrays(self, positions: Sequence[Any]) -> list[np.ndarray]:
        """(F, n) of each trajectory, which are computed once; an empty list where there are no torsions."""
        if self._arrays is None:
            self._arrays = [] if self.coordinates is None else _torsion_features(self.coordinates, positions)
        return self._arrays

    def features(self, positions: Sequence[Any], cases: Sequence[Case], progress: StageProgress) -> Features:
        """The `Features` along whole molecules (F, n, 3) in angstrom."""
        return Features(self.arrays(positions))

    def stiffness(self, mean: np.ndarray, projection: np.ndarray, positions: Sequence[Any], **more: Any) -> dict[str, Any]:
        """As of `stiffness.stiffness`, of all components (n, d) at once."""
        bound: Any = _Linear(self.coordinates, mean, projection)
        return stiffness_of(bound, self._masses, positions, **more)


def _torsion_coordinates(featurization: Featurization) -> InternalCoordinates | None:
    """Cosine and sine of every rotatable torsion between selected atoms; None where there is none."""
    rows = torsions_among(featurization.topology, featurization.atoms).atoms
    return InternalCoordinates(rows, np.zeros((0, 2), int)) if len(rows) else None


def _torsion_features(coordinates: InternalCoordinates, positions: Sequence[Any]) -> list[np.ndarray]:
    """The coordinates (F, n) along trajectories of whole molecules (F, n, 3) in angstrom."""
    found = []
    for part in positions:
        pieces = [part[torch.arange(k, min(k + _FRAMES, len(part)))] for k in range(0, len(part), _FRAMES)]
        found.append(np.concatenate([coordinates(piece.double()).numpy() for piece in pieces]))
    return found


class _Linear(torch.nn.Module):
    """psi = (coordinates - mean) @ projection, in the place of a CV that is bound to its atoms.

    Parameters
    ----------
    coordinates : InternalCoordinates
    mean : (n,) array, projection : (n, d) array
    """

    frames_per_pass = _FRAMES

    def __init__(self, coordinates: InternalCoordinates, mean: np.ndarray, projection: np.ndarray) -> None:
        super().__init__()
        self.coordinates = coordinates
        self.mean, self.projection = torch.as_tensor(mean), torch.as_tensor(projection)

    @property
    def dimension(self) -> int:
        """Number of components, d."""
        return self.projection.shape[1]

    def forward(self, pos: torch.Tensor) -> torch.Tensor:
        """Evaluate psi (F, d) on whole molecules `pos` (F, n, 3) in angstrom; differentiable."""
        return (self.coordinates(pos.double()) - self.mean) @ self.projection
