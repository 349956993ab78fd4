"""A pre-trained network as a featurizer of atoms."""

import functools
import hashlib
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from openmm_geomgnn.aliases import PathLike
from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.plugins import PluginError, find, plugin_names
from openmm_geomgnn.representation.shipped import DATA, shipped_elements, shipped_encoders, unknown_encoder
from torchmdnet_ext import checkpoints, registration

# pairs of atoms embedded in one pass: larger passes were slower on a CPU, whose time goes into mapping fresh memory
CHUNK_PAIRS = 4000
# pairs in all frames from which on making compiled kernels ready (half a second) costs less than it saves
WORTH_COMPILING = 40_000


def worth_compiling(frames: int, n_pairs: int) -> bool:
    """Whether compiled kernels pay for as many frames of `n_pairs` pairs each."""
    return frames * n_pairs >= WORTH_COMPILING


def frames_per_pass(n_pairs: int) -> int:
    """How many frames with `n_pairs` pairs of atoms each are embedded in one pass."""
    return max(1, CHUNK_PAIRS // max(1, n_pairs))


def encoder_file(source: PathLike) -> Path:
    """The path of an encoder's file, from itself or from the name of a shipped encoder.

    Raises
    ------
    GeomGNNError
        If there is no such file or name.
    """
    path = Path(source)
    if _is_a_name(path):
        if str(source) not in shipped_encoders():
            raise unknown_encoder(str(source))
        path = DATA / f"{source}.safetensors"
    if not path.is_file():
        raise GeomGNNError(f"There is no encoder file {path}. Check the path, or give the name of a shipped encoder.")
    return path


def _is_a_name(path: Path) -> bool:
    return not path.suffix and not path.is_file()


def _provided(source: PathLike) -> "Encoder | PathLike | None":
    """The Encoder or the path that an installed package has under the name `source`; None where it is no such name.

    Raises
    ------
    PluginError
        If that package cannot be used.
    """
    name = str(source)
    if not _is_a_name(Path(source)) or name in shipped_encoders() or name not in plugin_names("encoder"):
        return None

    def problem(announced: object) -> str | None:
        if isinstance(announced, (str, os.PathLike)) or callable(announced):
            return None
        return f"it is {announced!r}, neither a path nor a function"

    found: Any = find("encoder", name, {}, problem)
    if callable(found):
        try:
            found = found()
        except Exception as error:  # whatever somebody else's function raises
            raise PluginError(f"The encoder {name!r} of another package cannot be made: {error}") from error
    if not isinstance(found, (Encoder, str, os.PathLike)):
        raise PluginError(f"The encoder {name!r} of another package is {found!r}, neither an Encoder nor a path.")
    return found


@functools.cache
def _warn_not_smooth(path: Path, cutoff: float) -> None:
    """Warn, once for each file, that a network is not smooth at its cutoff, in angstrom."""
    warnings.warn(
        f"{path} was trained without an envelope on its messages: features and forces are not smooth where a pair of "
        f"atoms crosses {cutoff:g} angstrom. To bias a simulation, load it with Encoder.load(..., smooth_cutoff=True) "
        "and .save() it so under another name: geom2vec's weights predict noise as well with the envelope as without.",
        stacklevel=3,
    )


@functools.cache
def _warn_of_untrained(name: str, symbols: tuple[str, ...]) -> None:
    """Warn, once for each encoder, of elements that it was not trained on."""
    others = [other for other in shipped_encoders() if set(symbols) <= set(shipped_elements(other))]
    remedy = f"Take {' or '.join(others)}, which was" if others else "Train one on conformers that have them"
    warnings.warn(
        f"The encoder {name} was not trained on {', '.join(symbols)}: of these atoms, and in part of those near them, its "
        f"features are no better than those of random weights. {remedy}, or leave these atoms out of the selection.",
        stacklevel=4,
    )


class Encoder(nn.Module):
    """Per-atom scalars and vectors of conformations, from a pre-trained geometric GNN.

    Use `Encoder.load`; the constructor takes a network that exists already.

    Attributes
    ----------
    hidden_channels : int
        H, the number of scalar and of vector channels.
    cutoff : float
        Angstrom.
    settings : dict
        Settings of `torchmd-train` that build the network.
    training_information : dict
        How it was trained; empty where that is not known.
    head : nn.Module or None
        The noise head it was trained with, where its file has one.

    Examples
    --------
    >>> from openmm_geomgnn import Encoder
    >>> encoder = Encoder.load("et-64")
    >>> encoder.hidden_channels, encoder.cutoff
    (64, 7.5)
    """

    def __init__(
        self,
        network: nn.Module,
        settings: Mapping[str, Any],
        training: Mapping[str, Any] | None = None,
        name: str = "unnamed",
        head: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.network: Any = network  # torchmdnet_ext's models share attributes that nn.Module does not know
        self.head = head
        self.settings = dict(settings)
        self.training_information = dict(training or {})
        self.name = name

    @classmethod
    def load(cls, source: PathLike, dtype: torch.dtype = torch.float32, smooth_cutoff: bool | None = None) -> "Encoder":
        """Load an encoder.

        Parameters
        ----------
        source : str or path
            The name of an encoder that is shipped or of an installed package (see `plugins`), a `.safetensors` file of ours,
            a `.ckpt` file of `torchmd-train`, or a `.pth` file of geom2vec, whose architecture follows from its tensors.
        dtype : torch.dtype
            Precision of the network, torch.float32 or torch.float64.
        smooth_cutoff : bool, optional
            Whether every message is multiplied by a C2 envelope. By default as the network was trained; one that was trained
            without is not smooth at its cutoff, which is warned about once.

        Raises
        ------
        GeomGNNError
            If there is no such file or name, or the file is not an encoder: every tensor must be there, and fit.

        Examples
        --------
        >>> from openmm_geomgnn import Encoder
        >>> Encoder.load("et-64").name
        'et-64'
        """
        if smooth_cutoff not in (None, True, False):
            raise GeomGNNError(f"smooth_cutoff is {smooth_cutoff!r}, but it must be True, False or None.")
        provided = _provided(source)
        if isinstance(provided, Encoder):
            return provided._remade(str(source), dtype, smooth_cutoff)
        path = encoder_file(source if provided is None else provided)
        try:
            settings, tensors, head_tensors, training = checkpoints.read_pretrained(path)
            if smooth_cutoff is not None:
                settings = {**settings, "smooth_cutoff": bool(smooth_cutoff)}
            network = checkpoints.build_network(settings, tensors, str(path))
            head = None if head_tensors is None else checkpoints.build_head(settings, head_tensors, str(path))
        except ValueError as error:
            raise GeomGNNError(str(error)) from error
        settings = {name: settings[name] for name in registration.NETWORK_SETTINGS if name in settings}
        encoder = cls(network, settings, training, path.stem, head).to(dtype)
        if smooth_cutoff is None and not network.smooth_cutoff:
            _warn_not_smooth(path, encoder.cutoff)
        return encoder

    def _remade(self, name: str, dtype: torch.dtype, smooth_cutoff: bool | None) -> "Encoder":
        """A copy under another name, made from settings and parameters as it is when a CV is read."""
        settings = self.settings if smooth_cutoff is None else {**self.settings, "smooth_cutoff": bool(smooth_cutoff)}
        try:
            network = checkpoints.build_network(settings, self.network.state_dict(), name)
        except ValueError as error:
            raise GeomGNNError(f"The encoder {name!r} cannot be made from its settings and parameters: {error}") from error
        return Encoder(network, settings, self.training_information, name, self.head).to(dtype)

    def in_precision(self, dtype: torch.dtype) -> "Encoder":
        """A copy in torch.float32 or torch.float64, as `load` makes it."""
        return self._remade(self.name, dtype, None)

    def with_random_weights(self, seed: int) -> "Encoder":
        """A network of the same settings as it is before any training, to see what pre-training is worth.

        torch's own generator is not touched.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = registration.representation_model({"precision": 32, "box_vecs": None, **self.settings})
        return Encoder(network.requires_grad_(False).eval(), self.settings, {"seed": seed}, f"{self.name}, random weights")

    def save(self, path: PathLike) -> None:
        """Write the encoder to a file, in single precision, with its noise head if it has one.

        Parameters
        ----------
        path : str or path
            `.safetensors` to load it again; `.ckpt` to train it on with `torchmd-train --load-weights`.

        Raises
        ------
        GeomGNNError
            If the name ends in something else, or in `.ckpt` and the encoder has no noise head.
        """
        path = Path(path)
        if path.suffix not in (".safetensors", ".ckpt"):
            raise GeomGNNError(f"An encoder cannot be saved as {path}: the name must end in .safetensors or .ckpt.")
        if path.suffix == ".safetensors":
            checkpoints.write_encoder(path, self.settings, self.network, self.training_information, self.head)
            return
        if self.head is None:
            raise GeomGNNError(
                f"The encoder {self.name} has no noise head, so it cannot be saved as {path} to train it on. Save it as "
                ".safetensors, or use the .ckpt file of its training."
            )
        checkpoints.write_trainer_checkpoint(path, self.settings, self.network, self.head)

    @property
    def hidden_channels(self) -> int:
        """Number of scalar and of vector channels, H."""
        return self.network.hidden_channels

    @property
    def cutoff(self) -> float:
        """Cutoff of the messages, in angstrom."""
        return float(self.network.cutoff_upper)

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the network."""
        return next(self.network.parameters()).dtype

    def untrained_elements(self, z: npt.ArrayLike) -> list[str]:
        """Symbols of the elements among the atomic numbers `z` that it was not trained on; none where that is not known.

        Files of ours know it (`training_information["elements"]`), and so do checkpoints of our denoising task.
        """
        known = self.training_information.get("elements")
        if not known:
            return []
        from ase.data import chemical_symbols

        here = [chemical_symbols[number] for number in np.unique(np.asarray(z))]
        return [symbol for symbol in here if symbol not in known]

    def check_elements(self, z: npt.ArrayLike) -> None:
        """Raise a GeomGNNError if it has no embedding for one of the atomic numbers `z`; warn of untrained ones."""
        z, max_z = np.asarray(z), self.network.max_z
        if z.size and not (0 < z.min() and z.max() < max_z):
            raise GeomGNNError(
                f"Atomic numbers must lie between 1 and {max_z - 1} for this encoder, but {z.min()} to {z.max()} were "
                "given. Leave virtual sites and unknown elements out of the selection."
            )
        untrained = self.untrained_elements(z)
        if untrained:
            _warn_of_untrained(self.name, tuple(untrained))

    def content_hash(self) -> str:
        """Hash of all parameters in float32: the same for the same network, whatever file it came from.

        The same parameters with and without an envelope are not the same network.
        """
        digest = hashlib.sha256() if self.network.smooth_cutoff else hashlib.sha256(b"smooth_cutoff: false")
        for name, tensor in sorted(self.network.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().float().cpu().numpy().tobytes())
        return digest.hexdigest()[:16]

    def forward(
        self, z: torch.Tensor, pos: torch.Tensor, batch: torch.Tensor, pairs: tuple[torch.Tensor, torch.Tensor] | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Scalars (N, H) and vectors (N, 3, H) of atoms `z` (N,) at `pos` (N, 3) in angstrom.

        Parameters
        ----------
        batch : (N,) int64
            Graph of each atom, ascending.
        pairs : (i, j), optional
            Candidate pairs, made once for a fixed topology.
        """
        x, v, *_ = self.network(z, pos, batch, pairs=pairs)
        return x, v[:, :3]

    def embed(self, z: npt.ArrayLike, pos: npt.ArrayLike, engine: str = "auto") -> tuple[np.ndarray, np.ndarray]:
        """Embed one conformation or many of the same molecule.

        In single precision compiled kernels are used where there are some for the network and the frames are worth it; they
        agree with the network itself to about 1e-6.

        Parameters
        ----------
        z : (N,) array of int
            Atomic numbers.
        pos : (N, 3) or (F, N, 3) array
            Positions in angstrom.
        engine : {"auto", "eager"}
            "eager" never uses compiled kernels.

        Returns
        -------
        x : (N, H) or (F, N, H) ndarray
        v : (N, 3, H) or (F, N, 3, H) ndarray

        Raises
        ------
        GeomGNNError
            If the shapes do not fit, positions are not finite, or an element is beyond the network's range.

        Examples
        --------
        >>> from openmm_geomgnn import Encoder
        >>> water = [[0.0, 0.0, 0.0], [0.96, 0.0, 0.0], [-0.24, 0.93, 0.0]]
        >>> x, v = Encoder.load("et-64").embed([8, 1, 1], water)
        >>> x.shape, v.shape
        ((3, 64), (3, 3, 64))
        """
        z = torch.as_tensor(np.asarray(z), dtype=torch.long)
        pos = torch.as_tensor(np.asarray(pos)).to(self.dtype)
        single = pos.dim() == 2
        frames = pos[None] if single else pos
        if z.dim() != 1 or frames.dim() != 3 or frames.shape[1:] != (z.numel(), 3):
            raise GeomGNNError(
                f"z has shape {tuple(z.shape)} and pos {tuple(pos.shape)}; they must be (N,) and (N, 3) or (F, N, 3), "
                "with pos in angstrom."
            )
        self.check_elements(z)
        if not bool(torch.isfinite(frames).all()):
            raise GeomGNNError("Some positions are not finite numbers. Remove those frames before embedding.")
        n, compiled = z.numel(), None
        if engine != "eager" and self.dtype == torch.float32 and worth_compiling(len(frames), n * (n - 1) // 2):
            from torchmdnet_ext.compiled import compiled_forward

            compiled = compiled_forward(self.network, z.numpy(), np.triu_indices(n, 1), [n])
        x, v = self._embed_eagerly(z, frames) if compiled is None else compiled.embed(frames.numpy())
        return (x[0], v[0]) if single else (x, v)

    def _embed_eagerly(self, z: torch.Tensor, frames: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        xs, vs = [], []
        n = z.numel()
        with torch.no_grad():
            for chunk in frames.split(frames_per_pass(n * (n - 1) // 2)):
                count = chunk.shape[0]
                batch = torch.arange(count).repeat_interleave(n)
                x, v = self(z.repeat(count), chunk.reshape(-1, 3), batch)
                xs.append(x.view(count, n, -1))
                vs.append(v.view(count, n, 3, -1))
        return torch.cat(xs).numpy(), torch.cat(vs).numpy()
