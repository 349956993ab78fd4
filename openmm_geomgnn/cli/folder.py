"""The output folder of a protocol: whose results it holds, and what of the protocol may still change there."""

import json
import math
import shutil
import warnings

from openmm.app import PDBFile

from openmm_geomgnn.cli.config import dump, load_protocol
from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.files import atomic_write
from openmm_geomgnn.sampling.checkpoint import find_checkpoint, load_checkpoint, topology_hash
from openmm_geomgnn.sampling.systems import load_structure

PROTOCOL = "protocol.yaml"
TOPOLOGY = "topology.pdb"
CV_FILE = "cv.safetensors"
WALL_TIME = "wall_time.json"
UNBIASED = "unbiased"
COMPARISON = "comparison"
# all that a run writes
_OURS = (
    *(PROTOCOL, TOPOLOGY, CV_FILE, WALL_TIME, UNBIASED, COMPARISON),
    *("COLVAR", "KERNELS", "checkpoint.safetensors", "trajectory.*.dcd", "summary.json", "report.html"),
)


def claim(protocol, overwrite=False):
    """Make the output folder that of a protocol: it is new, empty, or holds what this very protocol has done so far.

    What has not been used yet may have changed since: the bias and the run before the first biased step, then also the CV,
    which is fitted anew, and everything before there are training data. Lengths of runs may change at any time.

    overwrite: remove what another protocol has left there.

    Raises GeomGNNError when the folder holds anything else, a structure cannot be read, or they are of several molecules.
    """
    folder = protocol.output
    topology, positions = _first_structure(protocol)
    settled = folder / PROTOCOL
    if folder.exists() and not folder.is_dir():
        raise GeomGNNError(f"{folder} is a file, so it cannot be the folder for the results. Choose another output.")
    if settled.is_file() and settled.read_bytes().startswith(dump(protocol).splitlines()[0].encode()):
        if overwrite:
            _clear(folder)
        else:
            _check_unchanged(protocol, settled)
    elif folder.exists() and any(folder.iterdir()):
        raise GeomGNNError(f"{folder} is not empty and was not made by `geomgnn run`. Choose another output.")
    with atomic_write(settled) as temporary:
        temporary.write_text(dump(protocol), encoding="utf-8")
    # not a copy of the file: these are the atoms, in this order, that the trajectories have
    with atomic_write(folder / TOPOLOGY) as temporary, temporary.open("w") as file:
        PDBFile.writeFile(topology, positions * 10, file, keepIds=True)


def _first_structure(protocol):
    """(openmm.app.Topology, positions (N, 3) in nm), checked to be that of the other structures too."""
    first, *others = protocol.system.structures
    topology, positions = load_structure(first)
    for path in others:
        if topology_hash(load_structure(path)[0]) != topology_hash(topology):
            raise GeomGNNError(
                f"{path} and {first} are not the same molecule with its atoms in the same order, as system.structures must "
                "be: write them from one topology."
            )
    return topology, positions


def _clear(folder):
    """Remove what a run has written, and nothing else."""
    for path in [path for name in _OURS for path in folder.glob(name)]:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _check_unchanged(protocol, settled):
    folder = settled.parent
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # said when it was begun
        old = _identity(load_protocol(settled))
    changed = sorted(name for name, value in _identity(protocol).items() if value != old[name])
    checkpoint = find_checkpoint(folder)
    if checkpoint is None or load_checkpoint(checkpoint).step == 0:
        if any(name.startswith("cv.") for name in changed):
            (folder / CV_FILE).unlink(missing_ok=True)
        has_data = any((folder / UNBIASED).glob("trajectory.*.dcd"))
        changed = [name for name in changed if has_data and not name.startswith(("cv.", "bias.", "run."))]
    if changed:
        raise GeomGNNError(
            f"{folder} holds the results of another protocol: {', '.join(changed)} differ. Choose another output, go on "
            f"with the old settings ({settled}), or start anew with --overwrite."
        )


def _identity(protocol):
    """The settings that results depend on, by dotted keys."""
    data = protocol.model_dump(mode="json")
    for free in ("output", "analysis"):
        data.pop(free)
    for section, free in (("run", "length"), ("run", "checkpoint_interval"), ("unbiased", "comparison_length")):
        data[section].pop(free)
    flat = {}
    for section, content in data.items():
        inner = content if isinstance(content, dict) else {}
        flat.update({f"{section}.{key}": value for key, value in inner.items()} or {section: content})
    return flat


def wall_time(folder):
    """Seconds that all sessions of a run have taken; nan where it is not known."""
    path = folder / WALL_TIME
    return json.loads(path.read_text())["seconds"] if path.exists() else math.nan


def add_wall_time(folder, seconds):
    """Add to the seconds that all sessions of a run have taken; returns the sum."""
    before = wall_time(folder)
    seconds += 0.0 if math.isnan(before) else before
    with atomic_write(folder / WALL_TIME) as temporary:
        temporary.write_text(json.dumps({"seconds": seconds}) + "\n")
    return seconds
