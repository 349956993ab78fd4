"""A pre-trained network as a featurizer of atoms."""

import hashlib
from importlib import resources
from pathlib import Path

import numpy as np
import torch
from torch import nn

from openmm_geomgnn.errors import GeomGNNError
from torchmdnet_ext import checkpoints, registration

# pairs of atoms embedded in one pass: larger passes were slower on a CPU, whose time goes into mapping fresh memory
CHUNK_PAIRS = 4000


def frames_per_pass(n_pairs):
    """How many frames with `n_pairs` pairs of atoms each are embedded in one pass."""
    return max(1, CHUNK_PAIRS // max(1, n_pairs))


def shipped_encoders():
    """Names of the encoders that come with the package."""
    folder = resources.files("openmm_geomgnn") / "data"
    names = [Path(entry.name) for entry in folder.iterdir() if entry.name.endswith(".safetensors")]
    return sorted(name.stem for name in names if name.stem != "conformers")


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
    """

    def __init__(self, network, settings, training=None, name="unnamed"):
        super().__init__()
        self.network = network
        self.settings = dict(settings)
        self.training_information = dict(training or {})
        self.name = name

    @classmethod
    def load(cls, source, dtype=torch.float32):
        """Load an encoder.

        Parameters
        ----------
        source : str or path
            The name of a shipped encoder, a `.safetensors` file of ours, or a `.ckpt` file of `torchmd-train`.
        dtype : torch.dtype
            Precision of the network, torch.float32 or torch.float64.

        Raises
        ------
        GeomGNNError
            If there is no such file or name, or the file is not an encoder.
        """
        path = Path(source)
        shipped = resources.files("openmm_geomgnn") / "data" / f"{source}.safetensors"
        if not path.suffix and not path.is_file():
            if str(source) not in shipped_encoders():
                raise GeomGNNError(
                    f"There is no encoder '{source}'. The package ships {', '.join(shipped_encoders())}; otherwise give "
                    "the path of a .safetensors or .ckpt file."
                )
            path = Path(str(shipped))
        if not path.is_file():
            raise GeomGNNError(f"There is no encoder file {path}. Check the path, or give the name of a shipped encoder.")
        try:
            if path.suffix == ".ckpt":
                settings, tensors = checkpoints.read_trainer_checkpoint(path)
                training = {}
            else:
                settings, tensors, training = checkpoints.read_encoder(path)
            network = checkpoints.build_network(settings, tensors, str(path))
        except ValueError as error:
            raise GeomGNNError(str(error)) from error
        settings = {name: settings[name] for name in registration.NETWORK_SETTINGS if name in settings}
        return cls(network.to(dtype), settings, training, path.stem)

    @property
    def hidden_channels(self):
        return self.network.hidden_channels

    @property
    def cutoff(self):
        return float(self.network.cutoff_upper)

    @property
    def dtype(self):
        return self.network.embedding.weight.dtype

    def content_hash(self):
        """Hash of all parameters in float32: the same for the same network, whatever file it came from."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.network.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().float().cpu().numpy().tobytes())
        return digest.hexdigest()[:16]

    def forward(self, z, pos, batch, pairs=None):
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

    def embed(self, z, pos):
        """Embed one conformation or many of the same molecule.

        Parameters
        ----------
        z : (N,) array of int
            Atomic numbers.
        pos : (N, 3) or (F, N, 3) array
            Positions in angstrom.

        Returns
        -------
        x : (N, H) or (F, N, H) ndarray
        v : (N, 3, H) or (F, N, 3, H) ndarray

        Raises
        ------
        GeomGNNError
            If the shapes do not fit, positions are not finite, or an element is beyond the network's range.
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
        check_elements(z, self.network.max_z)
        if not bool(torch.isfinite(frames).all()):
            raise GeomGNNError("Some positions are not finite numbers. Remove those frames before embedding.")
        xs, vs = [], []
        n = z.numel()
        with torch.no_grad():
            for chunk in frames.split(frames_per_pass(n * (n - 1) // 2)):
                count = chunk.shape[0]
                batch = torch.arange(count).repeat_interleave(n)
                x, v = self(z.repeat(count), chunk.reshape(-1, 3), batch)
                xs.append(x.view(count, n, -1))
                vs.append(v.view(count, n, 3, -1))
        x, v = torch.cat(xs).numpy(), torch.cat(vs).numpy()
        return (x[0], v[0]) if single else (x, v)


def check_elements(z, max_z):
    """Raise a GeomGNNError if an atomic number is not one the network has an embedding for."""
    if z.numel() and not (0 < int(z.min()) and int(z.max()) < max_z):
        raise GeomGNNError(
            f"Atomic numbers must lie between 1 and {max_z - 1} for this encoder, but {int(z.min())} to {int(z.max())} "
            "were given. Leave virtual sites and unknown elements out of the selection."
        )
