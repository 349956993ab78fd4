"""Between rounds of learning: OPES_EXPLORE on the CV so far looks for states that the round did not find."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from openmm_geomgnn.cli.learning_data import LearningData
from openmm_geomgnn.cli.names import CV_FILE
from openmm_geomgnn.cli.settings.protocol import Protocol
from openmm_geomgnn.cli.starts import explore_along, seed_structures, starting_from
from openmm_geomgnn.cli.unbiased_runs import runs_from_seeds


class Further(NamedTuple):
    """What is known after exploring along a CV.

    Attributes
    ----------
    data : LearningData
    starts : list of Path
        Structures from which walkers start in turn; after the first, new ones come first.
    noted : dict
        What rounds.json says of it; empty where the protocol does not ask for it.
    """

    data: LearningData
    starts: list[Path]
    noted: dict[str, Any]


def look_further(protocol: Protocol, dimension: int, bias: Any, data: LearningData, starts: Sequence[Path]) -> Further:
    """Explore along the CV of a round, and run unbiased runs from seeds of what was found; all in the folder of the round.

    Exploration starts from as many structures as there are walkers. A piece or run that is there is not made again.

    Parameters
    ----------
    protocol : Protocol
        Of the round.
    dimension : int
        Of its CV.
    bias
        That on its CV, whose kernels are as wide as those of the exploration.
    data : LearningData
    starts : list of Path
    """
    if protocol.explore is None or not protocol.explore.along_cv:
        return Further(data, list(starts), {})
    sigma = getattr(bias, "sigma", None)
    widths = None if sigma is None else tuple(float(one) for one in np.broadcast_to(sigma, dimension))
    first = starting_from(protocol, starts[: protocol.run.walkers])
    explored = explore_along(first, protocol.output / CV_FILE, widths)
    seeds = seed_structures(starting_from(protocol, starts), explored)
    runs = runs_from_seeds(protocol, seeds)
    data = data.with_explored(explored).with_unbiased(runs, protocol.unbiased.frame_interval)
    frames = sum(map(len, explored))
    return Further(data, [*starts[:1], *seeds, *starts[1:]], {"explored": {"frames": frames, "seeds": len(seeds)}})
