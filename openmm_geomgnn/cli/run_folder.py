"""The output folder of a protocol: the owner of its results, and the settings that may still change."""

import json
import math
import os
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import numpy as np
from openmm.app import PDBFile

from openmm_geomgnn.aliases import PathLike
from openmm_geomgnn.cli.names import PROTOCOL, ROUNDS, SEEDS, TOPOLOGY, UNBIASED, WALL_TIME
from openmm_geomgnn.cli.settings.protocol import Protocol
from openmm_geomgnn.cli.settings.yaml_files import dump, load_protocol
from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.files import atomic_write, leftovers, remove_leftovers
from openmm_geomgnn.locks import is_empty, locked, set_aside
from openmm_geomgnn.sampling.checkpoint import find_checkpoint, load_checkpoint, topology_hash
from openmm_geomgnn.sampling.systems import load_structure

# settings that may change at any time
_FREE = (
    *(("run", name) for name in ("length", "checkpoint_interval", "accept", "threads")),
    ("unbiased", "comparison_length"),
    ("rounds", "number"),
)
_WALL_TIME_INTERVAL = 30.0  # s
_BEFORE_THE_BIAS = ("cv.", "bias.", "run.", "rounds")  # what may change when there are training data


@contextmanager
def prepare_output_folder(protocol: Protocol, overwrite: bool = False, source: PathLike | None = None) -> Iterator[None]:
    """Reserve the output folder for a protocol and this process while the block runs; nothing in it changes yet.

    The folder is new, empty, or holds the results of this protocol so far. Settings that have not been used yet may have
    changed: those of the bias, the run and the CV, which is then fitted again, before the first biased step, and all before
    there are training data. Lengths of runs may change at any time.

    Parameters
    ----------
    protocol : Protocol
    overwrite : bool
        Move the results of another protocol aside (see `locks.set_aside`).
    source : path, optional
        The protocol's own file.

    Raises
    ------
    GeomGNNError
        If the folder holds anything else, another process is working in it, or results to be moved aside include a file
        that the protocol needs.
    """
    folder, settled = protocol.output, protocol.output / PROTOCOL
    with ExitStack() as stack:
        stack.enter_context(locked(folder))
        if settled.is_file() and settled.read_bytes().startswith(dump(protocol).splitlines()[0].encode()):
            if overwrite:
                set_aside(folder, input_files(protocol, source))
                stack.enter_context(locked(folder))
            else:
                _check_unchanged(protocol, settled)
        elif not is_empty(folder, leftovers(folder)):
            raise GeomGNNError(f"{folder} is not empty and was not made by `geomgnn run`. Choose another output.")
        yield


def settle(protocol: Protocol) -> None:
    """Write the protocol and the topology of all trajectories into its folder, and remove leftovers of a killed run."""
    folder = protocol.output
    topology, positions = first_structure(protocol)
    remove_leftovers(folder)
    with atomic_write(folder / PROTOCOL) as temporary:
        temporary.write_text(dump(protocol), encoding="utf-8")
    # not a copy of the file: these are the atoms, in this order, that the trajectories have
    with atomic_write(folder / TOPOLOGY) as temporary, temporary.open("w") as file:
        PDBFile.writeFile(topology, positions * 10, file, keepIds=True)


def input_files(settings: Any, source: PathLike | None = None) -> list[PathLike]:
    """List all files that settings name, and the file from which they were read."""
    found = [] if source is None else [source]

    def collect(value: Any) -> None:
        if isinstance(value, dict):
            value = list(value.values())
        if isinstance(value, (list, tuple)):
            for one in value:
                collect(one)
        elif isinstance(value, (str, Path)) and os.path.isabs(value) and os.path.exists(value):
            found.append(value)

    collect(settings.model_dump(exclude={"output"}))
    return found


def has_biased_steps(folder: Path) -> bool:
    """Whether a biased run has begun there, so that its CV must not change."""
    checkpoint = find_checkpoint(folder)
    return checkpoint is not None and load_checkpoint(checkpoint).step > 0


def round_folders(folder: Path) -> list[Path]:
    """The folders of rounds in that of a run, in their order."""
    found = [path for path in (folder / ROUNDS).glob("*") if path.is_dir() and path.name.isdigit()]
    return sorted(found, key=lambda path: int(path.name))


def first_structure(protocol: Protocol) -> tuple[Any, np.ndarray]:
    """Read the openmm.app.Topology and positions (N, 3) in nm of the first structure.

    Raises GeomGNNError if a structure cannot be read, or the structures are of different molecules.
    """
    first, *others = protocol.system.structures
    topology, positions = load_structure(first)
    for path in others:
        if topology_hash(load_structure(path)[0]) != topology_hash(topology):
            raise GeomGNNError(
                f"{path} and {first} are not the same molecule with its atoms in the same order, as system.structures must "
                "be: write them from one topology."
            )
    return topology, positions


def as_begun(protocol: Protocol) -> Protocol:
    """The protocol, whose `run.every` is that of its folder where it is auto and biased steps were made; else as it is."""
    settled = protocol.output / PROTOCOL
    if protocol.run.every != "auto" or not _has_any_biased_steps(protocol.output) or not settled.is_file():
        return protocol
    return evaluated_every(protocol, _settled(settled).run.every)


def evaluated_every(protocol: Protocol, every: int | Literal["auto"]) -> Protocol:
    """The protocol with another `run.every`."""
    return protocol.model_copy(update={"run": protocol.run.model_copy(update={"every": every})})


def _has_any_biased_steps(folder: Path) -> bool:
    return any(map(has_biased_steps, (folder, *round_folders(folder))))


def _settled(path: Path) -> Protocol:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # said when it was begun
        return load_protocol(path)


def _check_unchanged(protocol: Protocol, settled: Any) -> None:
    folder = settled.parent
    old, new = _identity(_settled(settled)), _identity(as_begun(protocol))
    changed = sorted(name for name, value in new.items() if value != old[name])
    if find_checkpoint(folder) is None and (folder / "COLVAR").exists():
        raise GeomGNNError(
            f"{folder} holds a COLVAR file, but no checkpoint to continue from. Restore it, choose another output, or start "
            "again with --overwrite."
        )
    if not _has_any_biased_steps(folder):
        has_data = (folder / SEEDS).is_dir() or any((folder / UNBIASED).glob("trajectory.*.dcd"))
        changed = [name for name in changed if has_data and not name.startswith(_BEFORE_THE_BIAS)]
    if changed:
        raise GeomGNNError(
            f"{folder} holds the results of another protocol: {', '.join(changed)} differ. Choose another output, go on "
            f"with the old settings ({settled}), or start again with --overwrite."
        )


def _identity(protocol: Protocol) -> dict[str, Any]:
    """Settings on which results depend, by dotted keys."""
    data = protocol.model_dump(mode="json")
    for free in ("output", "analysis"):
        data.pop(free)
    for section, free in _FREE:
        if data[section] is not None:
            data[section].pop(free)
    # files of before say false where they now say nothing
    data["cv"]["student"] = protocol.makes_a_student
    # its content is compared, see `provenance.check_given`, not where it lies
    data["cv"]["file"] = data["cv"]["file"] is not None
    flat = {}
    for section, content in data.items():
        inner = content if isinstance(content, dict) else {}
        flat.update({f"{section}.{key}": value for key, value in inner.items()} or {section: content})
    return flat


def wall_time(folder: Path) -> float:
    """Seconds that all sessions of a run have taken; nan if unknown."""
    try:
        return float(json.loads((folder / WALL_TIME).read_text(encoding="utf-8"))["seconds"])
    # a missing file, or one that a full disk left empty, is no reason to stop a run
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return math.nan


@contextmanager
def count_wall_time(folder: Path, began: float) -> Iterator[None]:
    """Add to the wall time of a run while the block runs, every half a minute: a session that is killed counts too.

    began: what `time.perf_counter` said when the session began.
    """
    before, finished = wall_time(folder), threading.Event()
    before = 0.0 if math.isnan(before) else before

    def write() -> None:
        with atomic_write(folder / WALL_TIME) as temporary:
            temporary.write_text(json.dumps({"seconds": before + time.perf_counter() - began}) + "\n")

    def keep_writing() -> None:
        while not finished.wait(_WALL_TIME_INTERVAL):
            # on a full disk the simulation says so itself
            with suppress(OSError):
                write()

    writer = threading.Thread(target=keep_writing, daemon=True)
    writer.start()
    try:
        yield
    finally:
        finished.set()
        writer.join()
        write()
