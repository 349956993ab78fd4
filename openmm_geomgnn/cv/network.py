"""A collective variable: encoder, token mixer and Koopman projection, frozen, in one file."""

import copy
from collections.abc import Callable, Mapping
from numbers import Real
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from openmm_geomgnn.aliases import PathLike, TopologyLike
from openmm_geomgnn.cv import file as cv_file
from openmm_geomgnn.cv.base import PRECISIONS, Bound, check_precision
from openmm_geomgnn.cv.cuda_graph import EagerFunction, GraphedFunction
from openmm_geomgnn.cv.engines import choose_device, make_engine
from openmm_geomgnn.cv.mixers import make_mixer
from openmm_geomgnn.cv.mixers.base import Mixer
from openmm_geomgnn.cv.output_map import OutputMap
from openmm_geomgnn.cv.readouts import make_readout
from openmm_geomgnn.cv.students.cv import StudentCV
from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.plugins import PluginError
from openmm_geomgnn.representation.encoder import Encoder
from openmm_geomgnn.representation.featurization import Featurization
from openmm_geomgnn.representation.periodic import SelectedMolecule
from openmm_geomgnn.representation.selection import ResidueTable
from openmm_geomgnn.representation.spec import TokenSpec
from openmm_geomgnn.representation.windows import neighbours_by_number
from torchmdnet_ext.checkpoints import build_network

# what stands in the file of this kind of CV beyond `file.FIELDS`
FIELDS = {
    "encoder": dict,
    "mixer": dict,
    "window": str,
    "context": int,
    "radius": Real,
    "neighbours": (list, type(None)),
    "pooling": str,
}


class CollectiveVariable(cv_file.SavedCV):
    """psi(conformation) = (chi - mean) @ projection, with chi the mixer's output on the encoder's residue tokens.

    Parameters
    ----------
    encoder : Encoder
    mixer : Mixer
    mean : (n,) array, projection : (n, d) array, singular_values : (d,) array
        The frozen Koopman projection, float64.
    molecule : list
        The residue table (`selection.residue_table`) of the molecule it was trained on; empty if it is for any molecule
        (`shared.make_shared_cv`).
    spec : TokenSpec
        How atoms become tokens, with the neighbours of each residue (`Featurization.spec`): bonds and reference structure
        are not needed any more. Without neighbours windows by sequence follow from residue numbers, as they did in files of
        version 1.
    lagtime : float
        Picoseconds.
    training : dict
        Scores and how it was trained: anything that JSON can hold.
    output : output_map.OutputMap, optional
        What is done to the slow functions before they are the CV; nothing by default.

    Examples
    --------
    >>> from importlib.resources import files
    >>> import mdtraj
    >>> structure = mdtraj.load(files("openmm_geomgnn.data") / "ala2-c7eq.pdb")
    >>> import numpy as np
    >>> noise = 0.01 * np.random.default_rng(0).normal(size=(100, structure.n_atoms, 3))
    >>> trajectory = mdtraj.Trajectory(structure.xyz + noise, structure.topology)  # in place of a simulation
    >>> from openmm_geomgnn.cv import FitSettings, fit_cv
    >>> settings = FitSettings(lagtime=0.2, frame_interval=0.1, softening=0.0)
    >>> cv = fit_cv([trajectory], structure.topology, settings)
    >>> cv.save("ala2.cv.safetensors")
    >>> cv = CollectiveVariable.load("ala2.cv.safetensors")
    >>> bound = cv.bind(structure.topology)
    >>> bound.compute(trajectory).shape
    (100, 1)
    """

    mean: torch.Tensor
    projection: torch.Tensor
    singular_values: torch.Tensor

    def __init__(
        self,
        encoder: Encoder,
        mixer: Mixer,
        mean: npt.ArrayLike,
        projection: npt.ArrayLike,
        singular_values: npt.ArrayLike,
        molecule: ResidueTable,
        *,
        spec: TokenSpec | None = None,
        lagtime: float = float("nan"),
        training: dict[str, Any] | None = None,
        output: OutputMap | None = None,
    ) -> None:
        super().__init__()
        self.encoder = encoder.requires_grad_(False).eval()
        self.mixer = mixer.requires_grad_(False).eval()
        self.register_buffer("mean", torch.as_tensor(np.array(mean, dtype=np.float64)))
        self.register_buffer("projection", torch.as_tensor(np.array(projection, dtype=np.float64)))
        self.register_buffer("singular_values", torch.as_tensor(np.array(singular_values, dtype=np.float64)))
        self.output = output or OutputMap.identity(self.projection.shape[1])
        self.molecule = molecule
        self.spec = spec or TokenSpec()
        self.lagtime = float(lagtime)
        self.training_information = dict(training or {})

    @property
    def dimension(self) -> int:
        """Number of components, d."""
        return self.projection.shape[1]

    @property
    def selection(self) -> str | None:
        """The atoms that the CV depends on, as in `selection.select_atoms`."""
        return self.spec.selection

    @property
    def is_shared(self) -> bool:
        """Whether it is for any molecule like those it was trained on."""
        return not self.molecule

    def project(self, chi: torch.Tensor) -> torch.Tensor:
        """Project chi (F, n) to psi (F, d), in float64, before the output map."""
        return (chi.double() - self.mean) @ self.projection

    def _metadata(self) -> dict[str, Any]:
        return {
            "kind": "network",
            "encoder": {
                "name": self.encoder.name,
                "settings": self.encoder.settings,
                "training": self.encoder.training_information,
            },
            "mixer": self.mixer.settings,
            **self.spec.to_metadata(),
            "lag_time_ps": self.lagtime,
            "molecule": self.molecule,
            "training": self.training_information,
        }

    def _tensors(self) -> dict[str, torch.Tensor]:
        tensors = {f"encoder.{name}": tensor for name, tensor in self.encoder.network.state_dict().items()}
        tensors.update({f"mixer.{name}": tensor for name, tensor in self.mixer.state_dict().items()})
        for name in ("mean", "projection", "singular_values"):
            tensors[f"koopman.{name}"] = getattr(self, name)
        tensors.update({f"output.{name}": tensor for name, tensor in self.output.tensors().items()})
        return tensors

    @staticmethod
    def load(path: PathLike) -> "CollectiveVariable | StudentCV":
        """Read a file that `save` wrote: a CollectiveVariable, or a `students.cv.StudentCV`, which is used in the same way.

        Raises
        ------
        GeomGNNError
            If the file is missing, truncated, changed, of another kind or of a version this one cannot read.
        """
        return _of_its_kind(path, *cv_file.read(path))

    @staticmethod
    def from_bytes(data: bytes, label: str = "The data") -> "CollectiveVariable | StudentCV":
        """The CV whose `to_bytes` returned `data`, as `load` reads it from a file; `label` stands for the path in messages.

        Raises
        ------
        GeomGNNError
            If the data are truncated, changed, of another kind or of a version this one cannot read.
        """
        return _of_its_kind(label, *cv_file.read_bytes(data, label))

    @classmethod
    def from_file(
        cls, path: PathLike, metadata: dict[str, Any], tensors: Mapping[str, torch.Tensor]
    ) -> "CollectiveVariable":
        """The CV of what `file.read` returned."""
        cv_file.check_fields(path, metadata, FIELDS)
        try:
            parts = cv_file.parts(tensors, ("encoder", "mixer", "koopman", "output"))
            described = metadata["encoder"]
            network = build_network(described["settings"], parts["encoder"], str(path))
            encoder = Encoder(network, described["settings"], described["training"], described["name"])
            mixer = make_mixer(**metadata["mixer"])
            mixer.load_state_dict(parts["mixer"])
            mean, projection, values = (parts["koopman"][name] for name in ("mean", "projection", "singular_values"))
            if projection.shape != (mixer.out_features, len(values)) or mean.shape != (mixer.out_features,):
                raise ValueError(f"its projection has shape {tuple(projection.shape)} for {mixer.out_features} features.")
            output = OutputMap.from_tensors(parts["output"], len(values))
        except PluginError as error:
            raise GeomGNNError(
                f"{path} cannot be read: {error} Its mixer comes from another package, or from a newer openmm-geomgnn: "
                "install or update that."
            ) from error
        except (ValueError, RuntimeError, KeyError, TypeError, AttributeError, AssertionError) as error:
            raise GeomGNNError(f"{path} does not hold a usable collective variable: {error} Fit it again.") from error
        return cls(
            encoder,
            mixer,
            mean,
            projection,
            values,
            metadata["molecule"],
            spec=TokenSpec.from_metadata(metadata),
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
    ) -> "BoundCV":
        """The CV on a given topology, ready to be evaluated; see `BoundCV`."""
        return BoundCV(self, topology, precision, engine, device)


KINDS: dict[str, Any] = {"network": CollectiveVariable, "student": StudentCV}


def _of_its_kind(path: PathLike, metadata: dict[str, Any], tensors: Mapping[str, torch.Tensor]) -> Any:
    """The CollectiveVariable or StudentCV that a file holds."""
    if metadata["kind"] not in KINDS:
        raise GeomGNNError(
            f"{path} holds a collective variable of the kind '{metadata['kind']}', and this code knows "
            f"{', '.join(KINDS)}. Update openmm-geomgnn."
        )
    return KINDS[metadata["kind"]].from_file(path, metadata, tensors)


class BoundCV(Bound):
    """A collective variable on the atoms of one topology.

    Parameters
    ----------
    cv : CollectiveVariable
    topology : openmm.app.Topology, mdtraj.Topology or path
        Must be of the molecule the CV was trained on, unless it is for any; solvent and ions around it do not matter. The
        `molecule` of another BoundCV will do as well.
    precision : {"single", "double"}
        Of encoder and mixer; the projection is always in float64.
    engine : {"auto", "eager", "numba", "cuda"}
        What evaluates one frame at a time: compiled kernels, plain PyTorch, or (`auto`) compiled kernels in single precision
        where they are to be had; in double precision they are as exact as their table of radial filters, about 1e-6. There
        are kernels of the mixers none, mlp and attention, too; others stay in PyTorch, as do those with chirality. On a GPU
        it is CUDA graphs of plain PyTorch (`cuda`, `auto`) or, slower, plain PyTorch itself (`eager`).
    device : str or torch.device, optional
        "cpu", "cuda" or "cuda:0"; by default the CPU unless the engine is `cuda`.
    """

    mean: torch.Tensor
    projection: torch.Tensor

    def __init__(
        self,
        cv: CollectiveVariable,
        topology: TopologyLike | SelectedMolecule,
        precision: str = "single",
        engine: str = "auto",
        device: str | torch.device | None = None,
    ) -> None:
        super().__init__()
        check_precision(precision)
        selected, spec = self._select(cv, topology), cv.spec
        if spec.neighbours is None and spec.window == "sequence" and not cv.is_shared:
            spec = spec.resolved(neighbours_by_number(selected.topology, selected.atoms, spec.context))
        # a copy: two precisions of one CV must not share their parameters
        dtype = PRECISIONS[precision]
        settings = cv.encoder.settings
        network: Any = build_network(settings, cv.encoder.network.state_dict()).to(dtype)
        encoder = Encoder(network, settings, cv.encoder.training_information, cv.encoder.name)
        featurization = Featurization(selected, spec, encoder, engine=engine)
        self.tokenizer, self.molecule = featurization.tokenizer, featurization.molecule
        self.mixer = make_mixer(**cv.mixer.settings)
        self.mixer.load_state_dict(cv.mixer.state_dict())
        self.mixer.requires_grad_(False).eval().to(dtype)
        self.register_buffer("mean", cv.mean.clone())
        self.register_buffer("projection", cv.projection.clone())
        self.output = copy.deepcopy(cv.output)
        self.dtype = dtype
        self.atoms = self.molecule.atoms
        self.to(choose_device(device, engine))
        self._engine = make_engine(engine, self.tokenizer, precision)
        self.engine_name = self._engine.name
        parts = self.tokenizer, self.mixer, self.mean, self.projection
        self._readout = make_readout(*parts, self._psi, compiled=self.engine_name == "numba")
        self._function: EagerFunction | GraphedFunction | None = None
        if self.device.type != "cpu":
            if self.engine_name == "cuda":
                self._function = GraphedFunction(self.single, self, network.distance.every_pair)
            else:
                self._function = EagerFunction(self.single)

    @property
    def dimension(self) -> int:
        """Number of components, d."""
        return self.projection.shape[1]

    @property
    def device(self) -> torch.device:
        """Where the CV is evaluated."""
        return self.projection.device

    @property
    def takes_tensors(self) -> bool:
        """Whether `value_and_vjp` takes positions that are on a GPU as well."""
        return self._function is not None

    @property
    def frames_per_pass(self) -> int:
        """Frames that `forward` takes at once without using much memory."""
        return self.tokenizer.frames_per_pass

    def _psi(self, tokens: torch.Tensor) -> torch.Tensor:
        return (self.mixer(tokens).double() - self.mean) @ self.projection

    def _project(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.output(self._psi(tokens))

    def forward(self, pos: torch.Tensor) -> torch.Tensor:
        """Evaluate psi (F, d), float64, on whole molecules `pos` (F, n, 3) in angstrom; differentiable."""
        return self._project(self.tokenizer(pos.to(self.dtype)))

    def single(self, pos: torch.Tensor) -> torch.Tensor:
        """Evaluate psi (d,), float64, on one whole molecule `pos` (n, 3) in angstrom, by the fast engine; differentiable."""
        x, v = self._engine(pos)
        return self._project(self.tokenizer.pool(x, v, 1))[0]

    def value_and_vjp(self, pos: Any) -> tuple[np.ndarray, Callable[[np.ndarray], Any]]:
        """Evaluate psi (d,) on one whole molecule, and its vector-Jacobian product, for the forces of a bias.

        Parameters
        ----------
        pos : (n, 3) float64 ndarray, or a tensor if the CV `takes_tensors`
            Angstrom.

        Returns
        -------
        psi : (d,) float64 ndarray
        vjp : callable
            Takes weights (d,), an ndarray, to the gradient (n, 3) of their product with psi: an ndarray, or a tensor on the
            CV's device if `pos` is a tensor.
        """
        if self._function is not None:
            return self._tensor_value_and_vjp(self._function, pos)
        x, v, features_vjp = self._engine.features_and_vjp(pos)
        psi, readout_vjp = self._readout(x, v)
        return self._mapped(psi, lambda weights: features_vjp(*readout_vjp(weights)))

    def warm_up(self, announce: Callable[[], None]) -> None:
        """Compile the engine's kernels if no process has done so yet; `announce` is called before, as it takes long."""
        if getattr(self._engine, "needs_compiling", False) or self._readout.needs_compiling:
            announce()
            self.value_and_vjp(np.zeros((len(self.atoms), 3)))[1](np.ones(self.dimension))

    def _tensor_value_and_vjp(
        self, function: EagerFunction | GraphedFunction, pos: Any
    ) -> tuple[np.ndarray, Callable[[np.ndarray], Any]]:
        """As `value_and_vjp`; of a tensor only psi and the weights go from one device to the other."""
        psi, vjp = function.value_and_vjp(torch.as_tensor(pos, dtype=torch.float64, device=self.device))

        def gradient(weights: np.ndarray) -> Any:
            rows = vjp(torch.as_tensor(weights, device=self.device))
            return rows if isinstance(pos, torch.Tensor) else rows.cpu().numpy()

        return psi.cpu().numpy(), gradient

    def compute_whole(self, pos: torch.Tensor | np.ndarray, progress: Callable[[int], None] | None = None) -> np.ndarray:
        """Evaluate psi (F, d) on whole molecules `pos` (F, n, 3) in angstrom, in chunks."""
        with torch.no_grad():
            tokens = self.tokenizer.embed(torch.as_tensor(pos, device=self.device), progress)
            return torch.cat([self._project(chunk) for chunk in tokens.split(4096)]).cpu().numpy()
