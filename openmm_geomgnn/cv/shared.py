"""Collective variables for any molecule of a class: a mixer for any number of tokens, trained on several molecules."""

from collections.abc import Sequence
from typing import Any

import mdtraj
import numpy as np

from openmm_geomgnn.aliases import TopologyLike
from openmm_geomgnn.cv.base import ELEMENTS
from openmm_geomgnn.cv.fit_data import embed_positions, features_of
from openmm_geomgnn.cv.mixers.base import Mixer
from openmm_geomgnn.cv.network import CollectiveVariable
from openmm_geomgnn.cv.output_map import OutputMap, range_of
from openmm_geomgnn.cv.rules import lag_in_frames
from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.koopman import KoopmanModel, fit_linear
from openmm_geomgnn.representation.encoder import Encoder
from openmm_geomgnn.representation.featurization import Featurization, SelectedAtoms
from openmm_geomgnn.representation.spec import TokenSpec
from openmm_geomgnn.unfinished import Unfinished

MOLECULES = "molecules"  # in the training information


def make_shared_cv(
    encoder: Encoder,
    mixer: Mixer,
    model: KoopmanModel,
    molecules: dict[str, SelectedAtoms],
    *,
    spec: TokenSpec,
    lagtime: float,
    training: dict[str, Any] | None = None,
) -> CollectiveVariable:
    """A CV that binds to any molecule, and is meant for those that are like the ones it was trained on.

    Its value on a molecule that it has not seen has an offset of its own, for nothing says where zero is there, and how good
    it is there is not known: `cv_of_molecule` fits the projection. Elements that were in no molecule of the training give a
    UserWarning.

    Parameters
    ----------
    encoder : Encoder
    mixer : Mixer
        Trained by `koopman.train_shared_lobe`; for any number of tokens.
    model : KoopmanModel
    molecules : dict of SelectedAtoms
        Those it was trained on, by name.
    spec : TokenSpec
    lagtime : float
        ps
    training : dict, optional
        What else is to be known of the training.

    Raises
    ------
    GeomGNNError
        If the mixer is for a fixed number of tokens, or windows are by space, which a structure of one molecule decides.
    """
    if mixer.n_tokens is not None:
        raise GeomGNNError(
            f"A CV for several molecules needs a mixer for any number of tokens, but this takes {mixer.n_tokens}."
        )
    if spec.window == "space":
        raise GeomGNNError("Windows by space are those of one molecule's structure: use window: all or sequence.")
    elements = {one.topology.atom(int(index)).element.symbol for one in molecules.values() for index in one.atoms}
    return CollectiveVariable(
        encoder,
        mixer,
        model.mean,
        model.projection,
        model.singular_values,
        [],
        spec=spec.resolved(None),
        lagtime=lagtime,
        training={MOLECULES: list(molecules), ELEMENTS: sorted(elements), **(training or {})},
    )


def cv_of_molecule(
    cv: CollectiveVariable,
    topology: TopologyLike,
    trajectories: Sequence[mdtraj.Trajectory],
    frame_interval: float,
) -> CollectiveVariable:
    """The CV of one molecule, from that of several: the projection of the mixer's outputs is fitted to trajectories.

    It has as many components, and is bounded at the range of the trajectories.

    Parameters
    ----------
    cv : CollectiveVariable
        See `make_shared_cv`.
    topology : openmm.app.Topology, mdtraj.Topology or path
    trajectories : list of mdtraj.Trajectory
        Of this molecule.
    frame_interval : float
        ps between their frames.

    Raises
    ------
    GeomGNNError
        If the CV is that of one molecule, or trajectories are too short for the lag time.
    """
    if not cv.is_shared:
        raise GeomGNNError("This CV is that of one molecule: give one that was trained on several.")
    featurization = Featurization(SelectedAtoms.find(topology, cv.selection), cv.spec, cv.encoder)
    positions = [featurization.molecule.positions(part) for part in trajectories]
    tokens = embed_positions(featurization.tokenizer, positions, lambda *where: None, Unfinished())
    chi = [np.asarray(part) for part in features_of(cv.mixer, tokens)]
    model = fit_linear(chi, lag_in_frames(cv.lagtime, frame_interval), cv.dimension, None)
    facts = {**cv.training_information, "shared": cv.content_hash()}
    facts |= {"frames": [len(part) for part in trajectories], "frame_interval_ps": frame_interval}
    return CollectiveVariable(
        cv.encoder,
        cv.mixer,
        model.mean,
        model.projection,
        model.singular_values,
        featurization.table,
        spec=featurization.spec,
        lagtime=cv.lagtime,
        training=facts,
        output=OutputMap.bounded(*range_of([model.transform(part) for part in chi])),
    )
