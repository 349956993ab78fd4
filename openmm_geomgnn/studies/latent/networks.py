"""The networks that are compared, and what they make of trajectories: features of residues, of the molecule, by layer."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from openmm_geomgnn.cv.fit_data import taken
from openmm_geomgnn.cv.mixers.features import invariants
from openmm_geomgnn.cv.score_rows import RANDOM
from openmm_geomgnn.representation.encoder import Encoder
from openmm_geomgnn.representation.featurization import Featurization
from openmm_geomgnn.representation.tokens import Tokenizer
from torchmdnet_ext.layers import recorded_states

POOLED, TOKENS = "pooled", "tokens"
REPRESENTATIONS = (POOLED, TOKENS)


@dataclass(frozen=True, eq=False)
class Network:
    """An encoder under a name of its own.

    Attributes
    ----------
    name : str
    encoder : Encoder
    is_random : bool
        Whether it was never trained.
    """

    name: str
    encoder: Encoder
    is_random: bool = False


def make_networks(encoders: Sequence[Encoder], random_weights: int, seed: int) -> list[Network]:
    """The encoders, then networks of the first one's settings with random weights, whose seeds are seed, seed + 1, ..."""
    names = [encoder.name for encoder in encoders]
    unique = [f"{name} ({k})" if names.count(name) > 1 else name for k, name in enumerate(names, start=1)]
    trained = [Network(name, encoder) for name, encoder in zip(unique, encoders, strict=True)]
    seeds = range(seed, seed + random_weights)
    untrained = [encoders[0].with_random_weights(one).to(encoders[0].dtype) for one in seeds]
    return [*trained, *(Network(f"{RANDOM} {k}", one, True) for k, one in enumerate(untrained, start=1))]


def representations(tokens: Sequence[torch.Tensor]) -> dict[str, np.ndarray]:
    """Features along all trajectories together, from the tokens (F, R, 4, H) of each.

    Returns
    -------
    dict
        "tokens": (F, R * 2H) scalars and norms of vectors of every residue, as the mixer `none` has them; "pooled": (F, 2H)
        their mean over residues. With one residue both are the same.
    """
    features = invariants(torch.cat([part.float() for part in tokens]))
    return {POOLED: features.mean(dim=1).numpy(), TOKENS: features.flatten(1).numpy()}


def layer_features(
    network: Network, featurization: Featurization, positions: Sequence[torch.Tensor], frames: Sequence[torch.Tensor]
) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """Features after each layer of a network: ("embedding", ...), ("layer 1", ...), the last the output.

    Parameters
    ----------
    positions : list of (F, n, 3) tensors
        Whole molecules in angstrom, of each trajectory.
    frames : list of tensors
        Numbers of the frames of each trajectory, K in all.

    Yields
    ------
    name : str
    features : dict
        As of `representations`: "pooled" (K, 2H) and "tokens" (K, R * 2H).
    """
    tokenizer = Tokenizer(network.encoder, featurization.windows, featurization.spec.pooling, engine="eager")
    pos = taken(positions, frames).to(network.encoder.dtype)
    parts: list[list[torch.Tensor]] = []
    with torch.no_grad(), recorded_states(network.encoder.network) as states:
        for chunk in pos.split(tokenizer.frames_per_pass):
            output = tokenizer.window_features(chunk)
            parts.append([tokenizer.pool(x, v, len(chunk)) for x, v in [*states, output]])
    for number, pieces in enumerate(zip(*parts, strict=True)):
        yield "embedding" if number == 0 else f"layer {number}", representations(pieces)
