"""From trajectory files to a store of residue tokens, chunk by chunk and in parallel."""

import os
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import mdtraj
import numpy as np

from openmm_geomgnn.aliases import PathLike
from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.formatting import format_setting
from openmm_geomgnn.locks import is_empty, locked, set_aside
from openmm_geomgnn.representation.embed_workers import embed_chunks, import_distributed
from openmm_geomgnn.representation.encoder import Encoder
from openmm_geomgnn.representation.featurization import Featurization, SelectedAtoms
from openmm_geomgnn.representation.formats import import_zarr
from openmm_geomgnn.representation.selection import as_topology
from openmm_geomgnn.representation.spec import TokenSpec
from openmm_geomgnn.representation.store import DTYPES, Embeddings, encoder_identity
from openmm_geomgnn.representation.trajectory_files import TrajectoryFile, fingerprint, has_content, has_stamp
from openmm_geomgnn.representation.trajectory_times import frame_interval
from openmm_geomgnn.units import did_you_mean

# the settings of a store that may not differ from one trajectory in it to the next, as an error names them
_COMMON = {
    "encoder_hash": "encoder (parameters)",
    "encoder_settings": "encoder (settings)",
    "selection": "selection",
    "window": "window",
    "neighbours": "residues in each window",
    "pooling": "pooling",
    "stride": "stride",
    "frame_interval": "frame_interval",
    "dtype": "dtype",
}


@dataclass(frozen=True, kw_only=True)
class EmbedSettings:
    """How trajectories are embedded.

    `encoder` is what `Encoder.load` takes; `tokens` says how atoms become tokens. `stride` uses every stride-th frame.
    `frame_interval` is the time between frames in the files, in ps, for formats that do not hold it. `dtype` is that of the
    stored tokens, one of `store.DTYPES`. `chunk` is the number of frames that are embedded, written and resumed as one; by
    default as many as make `store.CHUNK_BYTES`. `allow_truncated` takes the whole frames of files that end too early.

    Examples
    --------
    >>> from importlib.resources import files
    >>> import mdtraj
    >>> topology = str(files("openmm_geomgnn.data") / "ala2-c7eq.pdb")
    >>> structure = mdtraj.load(topology)
    >>> import numpy as np
    >>> noise = 0.01 * np.random.default_rng(0).normal(size=(100, structure.n_atoms, 3))
    >>> trajectory = mdtraj.Trajectory(structure.xyz + noise, structure.topology)  # in place of a simulation
    >>> trajectory.save("a.xtc")
    >>> from openmm_geomgnn.representation.embed_trajectories import EmbedSettings, embed_trajectories
    >>> store = embed_trajectories(topology, ["a.xtc"], "ala2.zarr", EmbedSettings(stride=2), workers=1)
    >>> store.tokens(0).shape
    (50, 3, 4, 64)
    """

    encoder: str = "et-64"
    tokens: TokenSpec = TokenSpec()
    stride: int = 1
    frame_interval: float | None = None
    dtype: str = "float32"
    chunk: int | None = None
    allow_truncated: bool = False


def embed_trajectories(
    topology: PathLike,
    trajectories: Sequence[PathLike],
    output: PathLike,
    settings: EmbedSettings | None = None,
    workers: int | None = None,
    scheduler: str | None = None,
    overwrite: bool = False,
    progress: Callable[[int, int, int], None] | None = None,
    settings_file: PathLike | None = None,
) -> Embeddings:
    """Embed trajectory files into a store, or go on with what is missing in it.

    The result does not depend on how often it was interrupted, or by what: a chunk of frames that is not known to be
    complete is embedded again. There is an example at `EmbedSettings`.

    Parameters
    ----------
    topology : path
        Structure file with all atoms of the trajectories.
    trajectories : list of paths
        Of any format that mdtraj reads; the store may hold others already.
    output : path
        Folder of the store.
    settings : EmbedSettings
    workers : int, optional
        Processes with one thread each; 1 works in this process. By default one for each core, once the work has taken
        `embed_workers.ALONE` seconds.
    scheduler : str, optional
        Address of a Dask scheduler whose workers see the same files, instead of processes of our own.
    overwrite : bool
        Move a store that is there aside (see `locks.set_aside`).
    progress : callable, optional
        Called as progress(done, total, resumed), in frames; `resumed` were there before.
    settings_file : path, optional
        From which all this was read: not to be moved aside.

    Returns
    -------
    Embeddings

    Raises
    ------
    GeomGNNError
        If files cannot be read or do not fit the topology, the store holds other settings, a trajectory in it has changed,
        another process is at work in it, or what is to be moved aside holds a file that is needed.
    """
    settings = settings or EmbedSettings()
    _check(settings, trajectories, workers)
    if scheduler is not None or (workers or 1) > 1:
        import_distributed()
    import_zarr()
    topology_path, output = Path(os.path.abspath(topology)), Path(os.path.abspath(output))
    topology = as_topology(topology_path)
    with ExitStack() as stack:
        stack.enter_context(locked(output))
        found = _existing(output)
        # one without trajectories comes from a command that failed: its settings bind nobody
        old = None if overwrite or not found else found
        featurization = _featurization(topology, trajectories, settings, old)
        common = _in_common(featurization, settings)
        if old:
            _check_same(old, common)
        elif found:
            _check_readable(trajectories, topology, settings)
            files = (topology_path, *trajectories, settings.encoder, settings.tokens.reference, settings_file)
            set_aside(output, [file for file in files if file is not None])
            stack.enter_context(locked(output))
        elif found is not None:
            shutil.rmtree(output)
            stack.enter_context(locked(output))
        store = old or Embeddings.create(output, {**common, "topology": str(topology_path)})
        _fill(store, featurization, topology_path, trajectories, settings, workers, scheduler, progress)
        return Embeddings.open(output)


def _fill(
    store: Embeddings,
    featurization: Featurization,
    topology_path: Path,
    trajectories: Sequence[PathLike],
    settings: EmbedSettings,
    workers: int | None,
    scheduler: str | None,
    progress: Callable[[int, int, int], None] | None,
) -> None:
    """Embed what is missing of trajectories."""
    numbers = [_enter(store, featurization, path, settings) for path in trajectories]
    tasks = [(k, c) for k in sorted(set(numbers)) for c in store.missing(k)]
    total = sum(store.lengths[k] for k in set(numbers))
    resumed = total - sum(len(store.chunks(k)[c]) for k, c in tasks)
    report = progress or (lambda done, total, resumed: None)
    report(resumed, total, resumed)
    done = resumed
    for frames in embed_chunks((str(store.path), str(topology_path), uuid4().hex), tasks, workers, scheduler):
        done += frames
        report(done, total, resumed)


def _check_readable(trajectories: Sequence[PathLike], topology: mdtraj.Topology, settings: EmbedSettings) -> None:
    """Raise a GeomGNNError for the first of the trajectories that cannot be read."""
    for path in trajectories:
        _first(path, topology, settings)


def _first(path: PathLike, topology: mdtraj.Topology, settings: EmbedSettings) -> mdtraj.Trajectory:
    """The first frame of a trajectory file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that it is truncated is said when it is entered
        file = TrajectoryFile(path, topology, settings.allow_truncated)
    with file:
        return next(file.blocks(0, 1))


def _check(settings: EmbedSettings, trajectories: Sequence[PathLike], workers: int | None) -> None:
    if not trajectories:
        raise GeomGNNError("There are no trajectories to embed: give one or more.")
    if settings.dtype not in DTYPES:
        raise GeomGNNError(
            f"Unknown dtype '{settings.dtype}'; the choices are {', '.join(DTYPES)}.{did_you_mean(settings.dtype, DTYPES)}"
        )
    for name, value in (("stride", settings.stride), ("chunk", settings.chunk), ("workers", workers)):
        if value is not None and (isinstance(value, bool) or int(value) != value or value < 1):
            raise GeomGNNError(f"{name} must be a whole number of at least 1, but was {value!r}.")


def _existing(output: Path) -> Embeddings | None:
    """The store that is there, or None; anything else that is there is an error, so that it is never removed."""
    if output.is_dir() and is_empty(output):
        return None
    return Embeddings.open(output, writable=True)


def _check_times(name: str, times: np.ndarray | None, settings: EmbedSettings) -> None:
    """Raise a GeomGNNError where frame_interval contradicts the times in a file; warn where these jump."""
    try:
        frame_interval(name, times, settings.frame_interval)
    except GeomGNNError as error:
        if settings.frame_interval is not None:
            raise
        if times is not None and len(times) > 1:
            warnings.warn(f"{error} A fit will refuse it as it is.", UserWarning, stacklevel=4)


def _featurization(
    topology: mdtraj.Topology, trajectories: Sequence[PathLike], settings: EmbedSettings, old: Embeddings | None
) -> Featurization:
    """How these trajectories are embedded; `old`: the store that they are added to, or None."""
    selected = SelectedAtoms.find(topology, settings.tokens.selection)
    spec = settings.tokens
    if old is not None and spec.needs_structure and spec.reference is None:
        spec = spec.resolved(old.spec.neighbours)

    def structure() -> mdtraj.Trajectory:
        return _first(trajectories[0], topology, settings)

    return Featurization(selected, spec, Encoder.load(settings.encoder), structure=structure)


def _in_common(featurization: Featurization, settings: EmbedSettings) -> dict[str, Any]:
    """What all trajectories of a store have in common, a dict that JSON can hold."""
    encoder, path = featurization.encoder, Path(settings.encoder)
    return {
        "encoder": encoder.name,
        "encoder_source": os.path.abspath(path) if path.is_file() else settings.encoder,
        **encoder_identity(encoder),
        **featurization.spec.to_metadata(),
        "stride": settings.stride,
        "frame_interval": settings.frame_interval,
        "dtype": settings.dtype,
        "molecule": featurization.table,
        "atoms": featurization.atom_names,
    }


def _check_same(store: Embeddings, common: Mapping[str, Any]) -> None:
    """Raise a GeomGNNError that names what differs between a store and what would be added to it."""
    there = store.settings
    store.check_molecule(common["molecule"], common["atoms"])
    differing = [name for name in _COMMON if there[name] != common[name]]
    if differing:
        pairs = [(_COMMON[name], _described(name, there), _described(name, common)) for name in differing]
        listed = "; ".join(f"{label}: {before} there, {now} now" for label, before, now in pairs)
        raise GeomGNNError(
            f"{store.path} was made with other settings ({listed}). One store holds one kind of embedding: use the settings "
            "it was made with, another output, or --overwrite."
        )


def _described(name: str, settings: Mapping[str, Any]) -> str:
    if name == "encoder_hash":
        return f"{settings['encoder']} with hash {settings['encoder_hash']}"
    return format_setting(settings[name], limit=60)


def _entered(store: Embeddings, path: Path) -> tuple[int | None, dict[str, Any]]:
    """The number of a trajectory that a store has already, or None, and its fingerprint, {} where none had to be made.

    Raises GeomGNNError where the file is not what it was.
    """
    for k, entry in enumerate(store.trajectories):
        if entry["path"] == str(path) and has_stamp(path, entry):
            return k, {}
    now = fingerprint(path)
    for k, entry in enumerate(store.trajectories):
        if has_content(path, entry, now):
            if entry.get("sampled"):
                warnings.warn(
                    f"{store.path} is of an older version, which knows {path.name} by parts of it only: these are as they "
                    "were. From now on all of it counts.",
                    UserWarning,
                    stacklevel=4,
                )
            if entry["path"] == str(path) or not Path(entry["path"]).is_file():
                store.update(k, path=str(path), **now)
            return k, now
    for entry in store.trajectories:
        if entry["path"] == str(path):
            grown = entry["size"] != now["size"]
            how = f"had {entry['size']} bytes and has {now['size']} now" if grown else "has other content"
            raise GeomGNNError(
                f"The trajectory {path} is not the file any more that {store.path} has the embeddings of: it {how}. If it "
                "was continued, put what is new into a file of its own; otherwise use another output, or --overwrite."
            )
    return None, now


def _enter(store: Embeddings, featurization: Featurization, path: PathLike, settings: EmbedSettings) -> int:
    """The number of a trajectory in a store, with room made for it where it is new.

    Raises GeomGNNError where it is there, but has changed, or where it does not have the selected atoms.
    """
    path = Path(os.path.abspath(path))
    if not path.is_file():
        raise GeomGNNError(f"There is no trajectory {path}. Check the path.")
    k, now = _entered(store, path)
    if k is not None:
        return k
    with TrajectoryFile(path, featurization.topology, settings.allow_truncated) as file:
        frames = len(range(0, len(file), settings.stride))
        if frames == 0:
            raise GeomGNNError(f"The trajectory {path} has no frames. Leave it out.")
        frame = next(file.blocks(0, 1))
        try:
            featurization.molecule.rows(frame.topology)
        except GeomGNNError as error:
            raise GeomGNNError(f"{path.name}: {error}") from error
        _check_times(path.name, file.times(), settings)
    entry = {"name": path.name, "path": str(path), **now, "frames": frames}
    if file.truncated:
        entry["truncated"] = True
    store.add(entry, featurization.token_shape, len(featurization.atoms), settings.chunk)
    return len(store) - 1
