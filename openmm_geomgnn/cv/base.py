"""What every kind of collective variable does once it is bound to the atoms of a topology."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import mdtraj
import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from openmm_geomgnn.aliases import TopologyLike
from openmm_geomgnn.cv.output_map import OutputMap
from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.representation.bond_graph import centres, inverted
from openmm_geomgnn.representation.featurization import SelectedAtoms
from openmm_geomgnn.representation.periodic import SelectedMolecule
from openmm_geomgnn.representation.selection import bonds_of, check_same_molecule
from openmm_geomgnn.units import NM_TO_ANGSTROM

WITHOUT_COORDINATES = (".prmtop", ".parm7", ".prm7", ".psf")
# psi (d,), and what takes weights (d,) to the gradient (n, 3) of their product with psi
ValueAndVJP: TypeAlias = tuple[np.ndarray, Callable[[np.ndarray], Any]]
ELEMENTS = "elements"  # in the training information of a CV for any molecule: symbols of those it has seen
PRECISIONS = {"single": torch.float32, "double": torch.float64}


class Bound(nn.Module):
    """Base of `cv.BoundCV` and `students.cv.BoundStudent`, which set the attributes and evaluate.

    Attributes
    ----------
    molecule : periodic.SelectedMolecule
        All that it knows of the system it is bound to.
    atoms : (n,) ndarray
        The atoms it depends on.
    engine_name : str
        What evaluates one frame at a time.
    output : output_map.OutputMap
        What is done to the slow functions before they are the CV.
    """

    molecule: SelectedMolecule
    atoms: np.ndarray
    engine_name: str
    output: OutputMap

    @property
    def dimension(self) -> int:
        """Number of components, d."""
        raise NotImplementedError

    @property
    def takes_tensors(self) -> bool:
        """Whether `value_and_vjp` takes positions that are on a GPU as well."""
        return False

    @property
    def frames_per_pass(self) -> int:
        """Frames that `forward` takes at once without using much memory."""
        raise NotImplementedError

    def value_and_vjp(self, pos: Any) -> ValueAndVJP:
        """Values psi (d,) of one whole molecule (n, 3) in angstrom and their vector-Jacobian product, see `cv.BoundCV`."""
        raise NotImplementedError

    def _mapped(self, psi: np.ndarray, vjp: Callable[[np.ndarray], Any]) -> ValueAndVJP:
        """The CV (d,) and its vector-Jacobian product, from those of psi."""
        output = self.output
        if output.is_identity:
            return psi, vjp
        values, slope = output.value_and_slope(psi)
        return values, lambda weights: vjp(weights * slope)

    def _select(self, cv: Any, topology: TopologyLike | SelectedMolecule) -> SelectedAtoms:
        """The `SelectedAtoms` of a CV in a topology.

        Raises
        ------
        GeomGNNError
            If they are of another molecule than the CV's.
        """
        selected = SelectedAtoms.find(topology, cv.selection)
        if cv.molecule:
            check_same_molecule(cv.molecule, selected.table)
        else:
            _check_elements(cv.training_information.get(ELEMENTS, []), selected)
        expected = bonds_of(cv.molecule)
        if selected.molecule is None and None in expected:
            warnings.warn(
                "The CV file is of an older version, which says nothing of bonds: that this is its molecule is seen by the "
                "names of residues and elements only. Fit it again to have bonds and stereocentres compared.",
                UserWarning,
                stacklevel=4,
            )
        self._signs = {key: sign for part in expected if part for key, sign in part.get("centres", {}).items()}
        self._centres = [centre for centre in centres(bonds_of(selected.table)) if centre.key in self._signs]
        structure = _first_structure(topology) if self._centres else None
        if structure is not None:
            self.check_handedness(structure.xyz[:, selected.atoms] * NM_TO_ANGSTROM)
        return selected

    def check_handedness(self, pos: torch.Tensor | np.ndarray) -> None:
        """Raise a GeomGNNError where conformations (F, n, 3) in angstrom are of another stereoisomer than the CV's."""
        wrong = inverted(self._centres, self._signs, pos)
        if wrong:
            mirrored = len(wrong) == len(self._centres)
            names = ", ".join(centre.name for centre in wrong[:5])
            raise GeomGNNError(
                f"This is another stereoisomer than that of the CV: {names} of the selection "
                f"{'are' if len(wrong) > 1 else 'is'} the other way round"
                f"{', as in its mirror image' if mirrored else ''}. Look at the structure, or fit a new CV for this "
                "molecule with `geomgnn fit`."
            )

    def compute(
        self,
        trajectory: mdtraj.Trajectory | npt.ArrayLike,
        progress: Callable[[int], None] | None = None,
        *,
        boxes: npt.ArrayLike | None = None,
    ) -> np.ndarray:
        """Evaluate psi (F, d) on an mdtraj trajectory, or on positions (F, atoms, 3) in nm.

        Parameters
        ----------
        boxes : (F, 3, 3) or (3, 3) array or Quantity, optional
            Periodic box vectors that go with positions, nm: without them these must be of whole molecules.

        Raises
        ------
        GeomGNNError
            If the atoms do not fit, positions are not finite or of another stereoisomer, or boxes make no sense.
        """
        pos = self.molecule.positions(trajectory, boxes)
        self.check_handedness(pos)
        return self.compute_whole(pos, progress)

    def compute_whole(self, pos: torch.Tensor | np.ndarray, progress: Callable[[int], None] | None = None) -> np.ndarray:
        """Evaluate psi (F, d) on whole molecules `pos` (F, n, 3) in angstrom, in chunks."""
        raise NotImplementedError


def _first_structure(given: Any) -> mdtraj.Trajectory | None:
    """The first frame of what a topology was taken from; None where that has no coordinates."""
    if isinstance(given, mdtraj.Trajectory):
        return given[0] if len(given) else None
    if not isinstance(given, str | Path) or Path(given).suffix.lower() in WITHOUT_COORDINATES:
        return None
    try:
        return mdtraj.load_frame(str(given), 0)
    except Exception:  # it was good for a topology, and what mdtraj's readers trip over is not to be missed here
        return None


def check_precision(precision: str) -> None:
    """Raise a GeomGNNError for a precision that is neither single nor double."""
    if precision not in PRECISIONS:
        raise GeomGNNError(f"The precision must be 'single' or 'double', but was '{precision}'.")


def _check_elements(known: list[str], selected: SelectedAtoms) -> None:
    """Give a UserWarning if selected atoms are of elements that a CV for any molecule was not trained on."""
    here = {selected.topology.atom(int(index)).element.symbol for index in selected.atoms}
    strange = sorted(here - set(known))
    if known and strange:
        warnings.warn(
            f"The CV was trained on molecules of {', '.join(known)}, and this one has {', '.join(strange)} as well: what it "
            "does there is not known.",
            UserWarning,
            stacklevel=5,
        )
