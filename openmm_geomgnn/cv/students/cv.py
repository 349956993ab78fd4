"""A student as a collective variable: in a file of its own, and bound to a topology."""

import copy
import importlib
import importlib.util
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import ModuleType
from typing import Any

import mdtraj
import numpy as np
import torch

from openmm_geomgnn.aliases import PathLike, TopologyLike
from openmm_geomgnn.cv import file as cv_file
from openmm_geomgnn.cv.base import Bound, ValueAndVJP, check_precision
from openmm_geomgnn.cv.engines import ENGINES, choose_device
from openmm_geomgnn.cv.output_map import OutputMap
from openmm_geomgnn.cv.students.coordinates import InternalCoordinates
from openmm_geomgnn.cv.students.network import StudentNetwork
from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.representation.periodic import SelectedMolecule
from openmm_geomgnn.representation.selection import ResidueTable
from openmm_geomgnn.units import did_you_mean

PAIRS_PER_PASS = 1_000_000  # coordinates of all frames that are computed at once


class StudentCV(cv_file.SavedCV):
    """psi(conformation) = network(torsions and distances): made by `distillation.distill` from another CV.

    Parameters
    ----------
    network : StudentNetwork
    coordinates : InternalCoordinates
        Of atoms by their number in `atoms`.
    atoms : list of [residue, name]
        The selected atoms: the number of the residue in the residue table, and the atom's name in it. A network sees
        elements only; a student tells atoms by their names.
    molecule : list
        The residue table (`selection.residue_table`) of the molecule.
    selection : str, optional
        As in `selection.select_atoms`.
    near : list of [a, b]
        Atoms by number that are near each other wherever the molecules of a complex move, see `periodic.MoleculeUnwrapper`.
    lagtime : float
        Of the teacher, picoseconds.
    training : dict
        The teacher and its scores, the errors of the student, its stiffness: anything that JSON can hold.
    output : output_map.OutputMap, optional
        That of the teacher.
    """

    def __init__(
        self,
        network: StudentNetwork,
        coordinates: InternalCoordinates,
        atoms: Iterable[Sequence[Any]],
        molecule: ResidueTable,
        *,
        selection: str | None = None,
        near: Iterable[Sequence[int]] = (),
        lagtime: float = float("nan"),
        training: dict[str, Any] | None = None,
        output: OutputMap | None = None,
    ) -> None:
        super().__init__()
        self.network = network.double().requires_grad_(False).eval()
        self.coordinates = coordinates
        self.output = output or OutputMap.identity(self.dimension)
        self.atoms: list[list[Any]] = [[int(residue), str(name)] for residue, name in atoms]
        self.molecule = molecule
        self.selection = selection
        self.near = [[int(a), int(b)] for a, b in near]
        self.lagtime = float(lagtime)
        self.training_information = dict(training or {})

    @property
    def dimension(self) -> int:
        """Number of components, d."""
        return self.network.last.out_features

    def _metadata(self) -> dict[str, Any]:
        return {
            "kind": "student",
            "atoms": self.atoms,
            "near": self.near,
            "selection": self.selection,
            "lag_time_ps": self.lagtime,
            "molecule": self.molecule,
            "training": self.training_information,
        }

    def _tensors(self) -> dict[str, torch.Tensor]:
        modules = {"network": self.network, "coordinates": self.coordinates}
        tensors = {f"{part}.{name}": tensor for part in modules for name, tensor in modules[part].state_dict().items()}
        return tensors | {f"output.{name}": tensor for name, tensor in self.output.tensors().items()}

    @classmethod
    def from_file(cls, path: PathLike, metadata: dict[str, Any], tensors: Mapping[str, torch.Tensor]) -> "StudentCV":
        """The CV of what `file.read` returned."""
        cv_file.check_fields(path, metadata, {"atoms": list, "near": list})
        try:
            parts = cv_file.parts(tensors, ("network", "coordinates", "output"))
            weights = parts["network"]
            network = StudentNetwork(len(weights["mean"]), len(weights["first.bias"]), len(weights["last.bias"])).double()
            network.load_state_dict(weights)
            coordinates = InternalCoordinates(**parts["coordinates"])
            output = OutputMap.from_tensors(parts["output"], network.last.out_features)
        except (KeyError, TypeError, RuntimeError, ValueError, AttributeError, AssertionError) as error:
            raise GeomGNNError(f"{path} does not hold a usable student: {error}. Distil it again.") from error
        return cls(
            network,
            coordinates,
            metadata["atoms"],
            metadata["molecule"],
            selection=metadata["selection"],
            near=metadata["near"],
            lagtime=metadata["lag_time_ps"],
            training=metadata["training"],
            output=output,
        )

    def bind(
        self,
        topology: TopologyLike | SelectedMolecule,
        precision: str = "single",
        engine: str = "auto",
        device: str | torch.device | None = None,
    ) -> "BoundStudent":
        """The CV on a given topology, ready to be evaluated; see `BoundStudent`."""
        return BoundStudent(self, topology, precision, engine, device)


def named_atoms(topology: mdtraj.Topology, atoms: np.ndarray) -> list[list[Any]]:
    """[residue, name] of the selected atoms, with residues numbered as in `selection.residue_table`.

    Raises
    ------
    GeomGNNError
        If two atoms of a residue have the same name.
    """
    numbers: dict[int, int] = {}
    found: list[list[Any]] = []
    for index in atoms:
        atom = topology.atom(int(index))
        found.append([numbers.setdefault(atom.residue.index, len(numbers)), atom.name])
    if len(set(map(tuple, found))) < len(found):
        residue, name = next(key for k, key in enumerate(map(tuple, found)) if list(key) in found[:k])
        raise GeomGNNError(
            f"Residue {residue + 1} of the selection has several atoms of the name {name}, but a student tells atoms by "
            "their names. Give every atom of a residue a name of its own in the topology."
        )
    return found


class BoundStudent(Bound):
    """A student on the atoms of one topology, with the interface of `cv.BoundCV`, on the CPU.

    Parameters
    ----------
    cv : StudentCV
    topology : openmm.app.Topology, mdtraj.Topology or path
        Must be of the molecule that the student was made for, its atoms with the same names; their order in a residue, and
        solvent and ions around the molecule, do not matter. The `molecule` of another bound CV will do as well.
    precision : {"single", "double"}
        A student is always evaluated in double precision, which costs it nothing.
    engine : {"auto", "eager", "numba"}
        What evaluates one frame at a time: compiled kernels, plain PyTorch, or (`auto`) compiled kernels where Numba is
        installed. They agree to rounding.
    device : str or torch.device, optional
        "cpu": a GPU would take longer to be asked than the CPU takes to answer.
    """

    def __init__(
        self,
        cv: StudentCV,
        topology: TopologyLike | SelectedMolecule,
        precision: str = "single",
        engine: str = "auto",
        device: str | torch.device | None = None,
    ) -> None:
        super().__init__()
        check_precision(precision)
        if choose_device(device, engine).type != "cpu":
            raise GeomGNNError(
                "A student runs on the CPU, where it takes microseconds: on a GPU it would not be faster. Leave out device "
                "and engine: cuda; the simulation may run on a GPU all the same."
            )
        selected = self._select(cv, topology)
        rows = _rows(cv, named_atoms(selected.topology, selected.atoms))
        self.coordinates = InternalCoordinates(rows[cv.coordinates.torsions], rows[cv.coordinates.distances])
        self.network = StudentNetwork(len(self.coordinates), cv.network.first.out_features, cv.dimension).double()
        self.network.load_state_dict(cv.network.state_dict())
        self.network.requires_grad_(False).eval()
        self.output = copy.deepcopy(cv.output)
        near = [(int(rows[a]), int(rows[b])) for a, b in cv.near]
        self.molecule = selected.molecule or SelectedMolecule(selected.topology, selected.atoms, near)
        self.atoms = self.molecule.atoms
        self._compiled = _compiled(self.coordinates, self.network) if _use_numba(engine) else None
        self.engine_name = "eager" if self._compiled is None else "numba"

    @property
    def dimension(self) -> int:
        """Number of components, d."""
        return self.network.last.out_features

    @property
    def frames_per_pass(self) -> int:
        """Frames that `forward` takes at once without using much memory."""
        return max(1, PAIRS_PER_PASS // max(1, len(self.coordinates)))

    def forward(self, pos: torch.Tensor) -> torch.Tensor:
        """Evaluate psi (F, d), float64, on whole molecules `pos` (F, n, 3) in angstrom; differentiable."""
        return self.output(self.network(self.coordinates(pos.double())))

    def single(self, pos: torch.Tensor) -> torch.Tensor:
        """Evaluate psi (d,), float64, on one whole molecule `pos` (n, 3) in angstrom; differentiable."""
        return self(pos.unsqueeze(0))[0]

    def value_and_vjp(self, pos: np.ndarray) -> ValueAndVJP:
        """Evaluate psi (d,) on one whole molecule, and its vector-Jacobian product, as `cv.BoundCV` does."""
        if self._compiled is not None:
            return self._mapped(*self._compiled(np.ascontiguousarray(pos, dtype=np.float64)))
        there = torch.tensor(pos, dtype=torch.float64, requires_grad=True)
        psi = self.single(there)

        def vjp(weights: np.ndarray) -> np.ndarray:
            return torch.autograd.grad(psi, there, torch.from_numpy(weights), retain_graph=True)[0].numpy()

        return psi.detach().numpy(), vjp

    def warm_up(self, announce: Callable[[], None]) -> None:
        """Compile the kernels if no process has done so yet; `announce` is called before, as it takes long."""
        if self._compiled is not None and kernels().needs_compiling():
            announce()
            self.value_and_vjp(np.zeros((len(self.atoms), 3)))[1](np.ones(self.dimension))

    def compute_whole(self, pos: torch.Tensor | np.ndarray, progress: Callable[[int], None] | None = None) -> np.ndarray:
        """Evaluate psi (F, d) on whole molecules `pos` (F, n, 3) in angstrom, in chunks."""
        values = []
        with torch.no_grad():
            for chunk in torch.as_tensor(pos).split(self.frames_per_pass):
                values.append(self(chunk))
                if progress is not None:
                    progress(len(chunk))
        return torch.cat(values).numpy()


def _rows(cv: StudentCV, named: Sequence[Sequence[Any]]) -> np.ndarray:
    """(n,) the row, among the selected atoms of a topology, of each atom of a student."""
    row = {tuple(key): k for k, key in enumerate(named)}
    missing = [key for key in map(tuple, cv.atoms) if key not in row]
    if missing:
        residue, name = missing[0]
        there = [other for number, other in named if number == residue]
        raise GeomGNNError(
            f"Residue {residue + 1} of the selection, {cv.molecule[residue][1]}, has no atom {name} here: its atoms are "
            f"{', '.join(there)}.{did_you_mean(name, there)} A student tells atoms by their names: use those of the "
            "topology it was distilled with, or distil it again with this one."
        )
    return np.array([row[key] for key in map(tuple, cv.atoms)], dtype=np.int64)


def _use_numba(engine: str) -> bool:
    if engine not in ENGINES:
        near = did_you_mean(engine, ENGINES)
        raise GeomGNNError(f"Unknown engine '{engine}'; the choices are {', '.join(ENGINES)}.{near}")
    there = importlib.util.find_spec("numba") is not None
    if engine == "numba" and not there:
        raise GeomGNNError(
            'The numba engine cannot be used: numba is not installed (pip install "openmm-geomgnn[fast]"). Set engine: auto '
            "or engine: eager."
        )
    return there and engine != "eager"


def kernels() -> ModuleType:
    """The compiled kernels; Numba is there where it is wanted only."""
    return importlib.import_module("openmm_geomgnn.cv.students.kernels")


def _compiled(coordinates: InternalCoordinates, network: StudentNetwork) -> Callable[[np.ndarray], ValueAndVJP]:
    """A function from positions (n, 3), float64 in angstrom, to psi and its vector-Jacobian product, compiled."""
    from torchmdnet_ext.kernels.cache import FixedTypes  # Numba is there where it is wanted only

    forward, backward, call = kernels().forward, kernels().backward, FixedTypes()

    def array(tensor: Any) -> np.ndarray:
        return np.ascontiguousarray(tensor.detach().numpy())

    torsions, distances = array(coordinates.torsions), array(coordinates.distances)
    mean, inverse_scale = array(network.mean), array(1.0 / network.scale)
    layers = (network.first, network.second, network.last)
    (w1, b1), (w2, b2), (w3, b3) = ((array(layer.weight), array(layer.bias)) for layer in layers)
    w0 = array(network.skip.weight)

    def value_and_vjp(pos: np.ndarray) -> ValueAndVJP:
        psi, x, h1, h2 = call(forward, pos, torsions, distances, mean, inverse_scale, w1, b1, w2, b2, w3, b3, w0)

        def vjp(weights: np.ndarray) -> np.ndarray:
            weights = np.ascontiguousarray(weights, dtype=np.float64)
            return call(backward, pos, weights, x, h1, h2, torsions, distances, inverse_scale, w1, w2, w3, w0)

        return psi, vjp

    return value_and_vjp
