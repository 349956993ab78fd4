"""A collective variable for any molecule of a class: encoder, a mixer for any number of tokens, and one projection."""

import warnings
from collections.abc import Sequence
from typing import Any

import mdtraj
import torch

from openmm_geomgnn.aliases import TopologyLike
from openmm_geomgnn.cv.fit_data import embed_positions, features_of
from openmm_geomgnn.cv.network import BoundCV, CollectiveVariable
from openmm_geomgnn.cv.output_map import OutputMap, range_of
from openmm_geomgnn.cv.rules import lag_in_frames
from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.koopman import fit_linear
from openmm_geomgnn.representation.featurization import Featurization, SelectedAtoms
from openmm_geomgnn.representation.periodic import SelectedMolecule
from openmm_geomgnn.unfinished import Unfinished

KIND = "shared"
MOLECULES, ELEMENTS = "molecules", "elements"  # in the training information


class SharedCV(CollectiveVariable):
    """A CV that was trained on several molecules and binds to others: those of the same class, as a user judges it.

    Its value on a molecule that it has not seen has an offset of its own, for nothing says where zero is there, and how good
    it is there is not known; `for_molecule` with trajectories fits the projection. Elements that were in no training
    molecule give a UserWarning. Parameters are those of `CollectiveVariable`, with an empty `molecule`, a mixer for any
    number of tokens, and the names of the molecules and the symbols of their elements in `training`.

    Raises
    ------
    GeomGNNError
        If the mixer is for a fixed number of tokens, or windows are by space, which a structure of one molecule decides.
    """

    def __init__(self, *parts: Any, **settings: Any) -> None:
        super().__init__(*parts, **settings)
        if self.mixer.n_tokens is not None:
            raise GeomGNNError(
                f"A CV for several molecules needs a mixer for any number of tokens, but this takes {self.mixer.n_tokens}."
            )
        if self.spec.window == "space":
            raise GeomGNNError("Windows by space are those of one molecule's structure: use window: all or sequence.")

    def _metadata(self) -> dict[str, Any]:
        return {**super()._metadata(), "kind": KIND}

    def for_molecule(
        self,
        topology: TopologyLike | SelectedMolecule,
        trajectories: Sequence[mdtraj.Trajectory] = (),
        frame_interval: float | None = None,
    ) -> CollectiveVariable:
        """The CV of one molecule, which can be saved as any other.

        Parameters
        ----------
        topology : openmm.app.Topology, mdtraj.Topology or path
        trajectories : list of mdtraj.Trajectory, optional
            Of this molecule. The projection is fitted to them, with as many components, and the CV is bounded at their
            range; without them the projection is that of the molecules it was trained on.
        frame_interval : float
            ps between their frames.

        Raises
        ------
        GeomGNNError
            If the encoder does not know an element, or trajectories are too short for the lag time.
        """
        selected = SelectedAtoms.find(topology, self.selection)
        self._check_elements(selected)
        featurization = Featurization(selected, self.spec, self.encoder)
        mean, projection, values = self.mean, self.projection, self.singular_values
        output, facts = OutputMap.identity(self.dimension), {**self.training_information, "shared": self.content_hash()}
        if trajectories:
            if frame_interval is None:
                raise GeomGNNError("frame_interval is missing: give the time between the frames of the trajectories, ps.")
            positions = [featurization.molecule.positions(part) for part in trajectories]
            tokens = embed_positions(featurization.tokenizer, positions, lambda *where: None, Unfinished())
            chi = features_of(self.mixer, tokens)
            model = fit_linear(chi, lag_in_frames(self.lagtime, frame_interval), self.dimension, None)
            mean, projection, values = (torch.as_tensor(x) for x in (model.mean, model.projection, model.singular_values))
            output = OutputMap.bounded(*range_of([model.transform(part) for part in chi]))
            facts |= {"frames": [len(part) for part in trajectories], "frame_interval_ps": frame_interval}
        return CollectiveVariable(
            self.encoder,
            self.mixer,
            mean,
            projection,
            values,
            featurization.table,
            spec=featurization.spec,
            lagtime=self.lagtime,
            training=facts,
            output=output,
        )

    def bind(
        self,
        topology: TopologyLike | SelectedMolecule,
        precision: str = "single",
        engine: str = "auto",
        device: str | torch.device | None = None,
    ) -> BoundCV:
        """The CV on the molecule in a topology, ready to be evaluated; see `BoundCV`."""
        return self.for_molecule(topology).bind(topology, precision, engine, device)

    def _check_elements(self, selected: SelectedAtoms) -> None:
        known = self.training_information.get(ELEMENTS, [])
        here = {selected.topology.atom(int(index)).element.symbol for index in selected.atoms}
        strange = sorted(here - set(known))
        if known and strange:
            warnings.warn(
                f"The CV was trained on molecules of {', '.join(known)}, and this one has {', '.join(strange)} as well: "
                "what it does there is not known.",
                UserWarning,
                stacklevel=4,
            )
