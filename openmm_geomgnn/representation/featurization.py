"""From the positions of a system to residue tokens of one molecule in it: all that depends on the topology, made once."""

from collections.abc import Callable
from dataclasses import dataclass

import mdtraj
import numpy as np

from openmm_geomgnn.aliases import TopologyLike
from openmm_geomgnn.representation.encoder import Encoder
from openmm_geomgnn.representation.periodic import SelectedMolecule
from openmm_geomgnn.representation.reference import first_frame, read_reference
from openmm_geomgnn.representation.selection import ResidueTable, as_topology, residue_table, select_atoms
from openmm_geomgnn.representation.spec import TokenSpec
from openmm_geomgnn.representation.tokens import Tokenizer
from openmm_geomgnn.representation.windows import make_windows


@dataclass(frozen=True)
class SelectedAtoms:
    """The atoms that a selection finds in a topology.

    Attributes
    ----------
    topology : mdtraj.Topology
    atoms : (n,) int
        Indices of the selected atoms.
    table : list
        Their residue table, see `selection.residue_table`.
    molecule : SelectedMolecule, optional
        What the atoms were taken from, where that is one.
    """

    topology: mdtraj.Topology
    atoms: np.ndarray
    table: ResidueTable
    molecule: SelectedMolecule | None = None

    @classmethod
    def find(cls, topology: TopologyLike | SelectedMolecule, selection: str | None = None) -> "SelectedAtoms":
        """Select atoms.

        Parameters
        ----------
        topology : openmm.app.Topology, mdtraj.Topology, path or SelectedMolecule
            Of a SelectedMolecule all atoms are taken.
        selection : str, optional
            As in `selection.select_atoms`, which also says what is raised.
        """
        if isinstance(topology, SelectedMolecule):
            molecule, topology = topology, topology.topology
            atoms = np.arange(topology.n_atoms)
        else:
            molecule, topology = None, as_topology(topology)
            atoms = select_atoms(topology, selection)
        return cls(topology, atoms, residue_table(topology, atoms), molecule)

    @property
    def names(self) -> list[str]:
        """The name of each atom."""
        return [self.topology.atom(int(index)).name for index in self.atoms]


class Featurization:
    """Residue tokens of one molecule, from positions of the system that holds it.

    Parameters
    ----------
    topology : openmm.app.Topology, mdtraj.Topology, path, SelectedMolecule or SelectedAtoms
    spec : TokenSpec
    encoder : Encoder
    structure : callable, optional
        Returns an mdtraj.Trajectory, whose first frame says which residues are near each other. Called only for windows by
        space where the spec has neither neighbours nor a reference.
    engine : {"auto", "eager"}
        As in `tokens.Tokenizer`.

    Attributes
    ----------
    topology : mdtraj.Topology
    atoms : (n,) int
        Indices of the selected atoms.
    atom_names : list of str
    table : list
        Their residue table, see `selection.residue_table`.
    windows : Windows
    spec : TokenSpec
        With the neighbours of each residue, so that no structure is needed to make the windows again.
    tokenizer : Tokenizer
    molecule : SelectedMolecule

    Raises
    ------
    GeomGNNError
        If atoms, windows or encoder do not fit, see the parts.

    Examples
    --------
    >>> from importlib.resources import files
    >>> import mdtraj
    >>> structure = mdtraj.load(files("openmm_geomgnn.data") / "ala2-c7eq.pdb")
    >>> from openmm_geomgnn import Encoder
    >>> from openmm_geomgnn.representation.featurization import Featurization
    >>> from openmm_geomgnn.representation.spec import TokenSpec
    >>> featurization = Featurization(structure.topology, TokenSpec(), Encoder.load("et-64"))
    >>> len(featurization.atoms), featurization.token_shape
    (10, (3, 4, 64))
    >>> positions = featurization.molecule.positions(structure)
    >>> featurization.tokenizer.embed(positions).shape
    torch.Size([1, 3, 4, 64])
    """

    def __init__(
        self,
        topology: TopologyLike | SelectedMolecule | SelectedAtoms,
        spec: TokenSpec,
        encoder: Encoder,
        *,
        structure: Callable[[], mdtraj.Trajectory] | None = None,
        engine: str = "auto",
    ) -> None:
        selected = topology if isinstance(topology, SelectedAtoms) else SelectedAtoms.find(topology, spec.selection)
        self.topology, self.atoms, self.table = selected.topology, selected.atoms, selected.table
        self.atom_names = selected.names
        reference = self._reference(spec, structure) if spec.needs_structure else None
        self.windows = make_windows(
            self.topology, self.atoms, spec.window, spec.context, spec.radius, reference, neighbours=spec.neighbours
        )
        self.spec = spec.resolved(self.windows.neighbours)
        self.tokenizer = Tokenizer(encoder, self.windows, spec.pooling, engine)
        self.molecule = selected.molecule or SelectedMolecule(self.topology, self.atoms, self.windows.contacts)

    def _reference(self, spec: TokenSpec, structure: Callable[[], mdtraj.Trajectory] | None) -> mdtraj.Trajectory | None:
        """The selected atoms of the structure that says which residues are near each other; None where there is none."""
        if spec.reference is not None:
            return read_reference(spec.reference, self.topology, self.atoms, spec.selection)
        return None if structure is None else first_frame(structure(), self.topology, self.atoms)

    @property
    def encoder(self) -> Encoder:
        """The network that embeds the windows."""
        return self.tokenizer.encoder

    @property
    def token_shape(self) -> tuple[int, int, int]:
        """The shape of the tokens of a frame, (R, 4, H)."""
        return self.windows.n_tokens, 4, self.encoder.hidden_channels

    def tokenizer_of(self, encoder: Encoder) -> Tokenizer:
        """The tokenizer of the same windows with another encoder."""
        return Tokenizer(encoder, self.windows, self.spec.pooling)
