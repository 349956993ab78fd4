"""Checkpoints, from which a run that was stopped or killed continues: one safetensors file, replaced atomically."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import openmm
from openmm import app
from safetensors.numpy import save_file

from openmm_geomgnn.aliases import PathLike
from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.files import atomic_write, sha256
from openmm_geomgnn.force.integrators import has_virtual_sites
from openmm_geomgnn.formatting import format_setting
from openmm_geomgnn.sampling.outputs import Written
from openmm_geomgnn.sampling.systems import SystemSettings
from torchmdnet_ext.tensor_files import CHECKSUM, DamagedFile, is_as_written, read_tensor_file, with_checksum

if TYPE_CHECKING:
    from openmm_geomgnn.sampling.walker_spec import WalkerSpec

FORMAT = "openmm-geomgnn run"
VERSION = 2
NAME = "checkpoint.safetensors"


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A run between two blocks of steps.

    step: outer steps done. bias: the arrays of the bias state. walkers: the OpenMM checkpoint of each walker. heat: the
    arrays of the HeatGuard. written: the extent of the output files. fingerprint: see `fingerprint`.
    """

    step: int
    bias: Mapping[str, np.ndarray]
    walkers: list[bytes]
    heat: Mapping[str, np.ndarray]
    written: Written
    fingerprint: Mapping[str, Any]


def save_checkpoint(path: PathLike, checkpoint: Checkpoint) -> None:
    """Write a Checkpoint; an existing one is replaced only when the new one is complete."""
    arrays = {f"bias.{name}": np.array(array, order="C") for name, array in checkpoint.bias.items()}
    arrays |= {f"heat.{name}": np.array(array) for name, array in checkpoint.heat.items()}
    for i, state in enumerate(checkpoint.walkers):
        arrays[f"walker.{i}"] = np.frombuffer(state, dtype=np.uint8)
    metadata = {
        "format": FORMAT,
        "version": VERSION,
        "step": checkpoint.step,
        "n_walkers": len(checkpoint.walkers),
        "written": asdict(checkpoint.written),
        "fingerprint": checkpoint.fingerprint,
    }
    with atomic_write(path) as temporary:
        save_file(arrays, temporary, metadata={"run": json.dumps(with_checksum(metadata, arrays))})


def load_checkpoint(path: PathLike) -> Checkpoint:
    """Read a file of `save_checkpoint`. Raises GeomGNNError if it is damaged, of another kind or of a later version."""
    try:
        metadata, arrays = read_tensor_file(path, "run", framework="numpy")
    except (FileNotFoundError, DamagedFile) as error:
        raise GeomGNNError(
            f"The checkpoint {path} cannot be read ({error}): it is damaged. Restore it, or start a new run in "
            "another folder."
        ) from error
    if metadata is None or metadata.get("format") != FORMAT:
        raise GeomGNNError(f"{path} is not the checkpoint of a run. Start the run in another folder.")
    version: Any = metadata.get("version")
    if type(version) is int and version > VERSION:
        raise GeomGNNError(
            f"{path} has version {version} of the format, and this code reads up to {VERSION}: update "
            "openmm-geomgnn, or start a new run in another folder."
        )
    try:
        # those of version 2 that were written first have no checksum
        if CHECKSUM in metadata and not is_as_written(metadata, arrays):
            raise ValueError("its content does not have the checksum that it states")
        for older in range(version, VERSION):
            metadata, arrays = _MIGRATIONS[older](metadata, arrays)
        return Checkpoint(
            step=int(metadata["step"]),
            bias=_part(arrays, "bias."),
            walkers=[arrays[f"walker.{i}"].tobytes() for i in range(metadata["n_walkers"])],
            heat=_part(arrays, "heat."),
            written=Written(**metadata["written"]),
            fingerprint=dict(metadata["fingerprint"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise GeomGNNError(
            f"The checkpoint {path} cannot be used ({error}): it is damaged. Restore it, or start a new run in another "
            "folder."
        ) from error


def _part(arrays: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def _heat_since_the_start(
    metadata: dict[str, Any], arrays: dict[str, np.ndarray]
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Version 2 holds the number of rows since the start; version 1 held only the most recent rows."""
    rows = {"rows": arrays["temperatures"], "count": np.array(metadata["written"]["rows"]), "sum": np.array(math.nan)}
    return metadata, arrays | {f"heat.{name}": array for name, array in rows.items()}


# (metadata, arrays) of version k -> those of version k + 1; a step for every change of the format
_MIGRATIONS = {1: _heat_since_the_start}


def fingerprint(specs: "Sequence[WalkerSpec]", topology: app.Topology, system: str, platform: str) -> dict[str, Any]:
    """Describe everything a run depends on as a flat dict, with names that users know and values that JSON can hold.

    specs: list of WalkerSpec. topology: openmm.app.Topology. system: XML of the unbiased openmm.System. platform: its name.
    The starts of the walkers, and settings that only change the speed (engine, precision), are left out.
    """
    spec = specs[0]
    prints: dict[str, Any] = {"structure (atoms, residues and bonds)": topology_hash(topology)}
    if isinstance(spec.system, SystemSettings):
        prints |= {f"system setting {name}": value for name, value in spec.system.as_dict().items()}
    prints["system (parameters of the force field)"] = hashlib.sha256(system.encode()).hexdigest()[:16]
    if spec.cv_path is not None:
        prints["collective variable (content of its file)"] = sha256(spec.cv_path)
    elif spec.make_cv is not None:
        prints["collective variable"] = getattr(spec.make_cv, "__qualname__", None) or repr(spec.make_cv)
    prints |= bias_settings(spec.bias)
    prints["number of walkers"] = len(specs)
    for name in ("temperature", "friction", "timestep", "every", "seed", "colvar_interval", "frame_interval"):
        prints[name] = getattr(spec, name)
    if spec.bias is not None and spec.every > 1:
        # the state of a Context depends on the integrator; earlier versions used OpenMM's MTSLangevinIntegrator, and for
        # virtual sites one that left them behind
        sites = has_virtual_sites(openmm.XmlSerializer.deserialize(system))
        prints["integrator of multiple time steps"] = "Langevin middle" + sites * ", virtual sites at every time step"
    prints["platform"] = platform
    # as JSON gives it back
    return json.loads(json.dumps(prints))


def start_fingerprint(spec: "WalkerSpec") -> dict[str, Any]:
    """Where and how a walker starts, as entries of a fingerprint."""
    given = None if spec.positions is None else np.asarray(spec.positions, dtype=np.float64).tobytes()
    content = Path(spec.structure).read_bytes() if given is None else given
    start = {"start positions": hashlib.sha256(content).hexdigest()[:16]}
    return start | {"minimise": spec.minimise, "equilibration": spec.equilibration}


def bias_settings(bias: Any) -> dict[str, Any]:
    """The settings of a bias, a dataclass, as entries of a fingerprint."""
    if bias is None:
        return {"bias": None}
    entries: dict[str, Any] = {"bias": type(bias).__name__}
    if is_dataclass(bias):
        for entry in fields(bias):
            if entry.init and entry.metadata.get("fingerprint", True):
                value = getattr(bias, entry.name)
                entries[f"bias setting {entry.name}"] = list(value) if isinstance(value, tuple) else value
    return entries


def check_fingerprint(saved: Mapping[str, Any], mine: Mapping[str, Any], path: PathLike) -> None:
    """Raise a GeomGNNError that names the first thing that differs between two fingerprints."""
    for name in [*mine, *(name for name in saved if name not in mine)]:
        old, new = saved.get(name), mine.get(name)
        if _same(old, new):
            continue
        before, now = (format_setting(value, absent="absent") for value in (old, new))
        raise GeomGNNError(
            f"{path} belongs to a run with another {name}: it was {before} and is now {now}. A run is only continued as it "
            "began: put it back as it was, or start a new run in another folder."
        )


def _same(old: Any, new: Any) -> bool:
    if isinstance(old, list) and isinstance(new, list):
        return len(old) == len(new) and all(_same(a, b) for a, b in zip(old, new, strict=True))
    if isinstance(old, int | float) and isinstance(new, int | float):
        # not to the last bit: the same number in other units may differ by a rounding error
        return old == new or math.isclose(old, new, rel_tol=1e-9)
    return old == new


def topology_hash(topology: app.Topology) -> str:
    """Hash of atoms, residues and bonds: equal for two structures of one system."""
    digest = hashlib.sha256()
    for atom in topology.atoms():
        element = "" if atom.element is None else atom.element.symbol
        residue = atom.residue
        digest.update(f"{atom.name} {element} {residue.index} {residue.name} {residue.chain.index}\n".encode())
    for pair in sorted(sorted((bond[0].index, bond[1].index)) for bond in topology.bonds()):
        digest.update(f"{pair}\n".encode())
    return digest.hexdigest()[:16]


def find_checkpoint(folder: PathLike) -> Path | None:
    """The checkpoint in a run's folder, or None."""
    path = Path(folder) / NAME
    return path if path.exists() else None
