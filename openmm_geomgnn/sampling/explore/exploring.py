"""All pieces of an exploration, side by side."""

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import openmm

from openmm_geomgnn.aliases import PathLike, StageProgress
from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.files import remove_leftovers
from openmm_geomgnn.jobs import run_jobs
from openmm_geomgnn.locks import locked
from openmm_geomgnn.sampling.checkpoint import fingerprint, start_fingerprint
from openmm_geomgnn.sampling.explore.base import Explored, ExploreSettings, Molecule, Piece
from openmm_geomgnn.sampling.explore.chirality import Guard
from openmm_geomgnn.sampling.explore.files import PieceFiles
from openmm_geomgnn.sampling.explore.ways import choose_ways, get_way
from openmm_geomgnn.sampling.plan import prepare
from openmm_geomgnn.sampling.systems import degrees_of_freedom
from openmm_geomgnn.sampling.walker import load_start
from openmm_geomgnn.sampling.walker_spec import WalkerSpec

STAGE = "exploring"


def explore(
    specs: Sequence[WalkerSpec],
    settings: ExploreSettings,
    folder: PathLike,
    processes: int = 1,
    progress: StageProgress | None = None,
) -> list[Explored]:
    """Look for other states of a molecule from the known ones.

    A piece that is complete is not made again; one that was killed starts again, and ends in the same bytes on the Reference
    platform.

    Parameters
    ----------
    specs : list of WalkerSpec
        Without a bias, one for each known structure; all of one molecule.
    settings : ExploreSettings
    folder : path
        Gets a trajectory (.dcd) and a description (.json) of every piece.
    processes : int
        Pieces at a time.
    progress : callable, optional
        Called as progress("exploring", done, total) before the first and after every piece.

    Returns
    -------
    list of Explored
        In the order of ways, structures and torsions.

    Raises
    ------
    GeomGNNError
        If a way that is asked for does not fit the molecule, or none does; if a piece fails, or one in the folder was made
        in another way; or if another process is working in the folder.

    Examples
    --------
    >>> import tempfile
    >>> from importlib.resources import files
    >>> from openmm_geomgnn.sampling.explore import ExploreSettings, explore
    >>> from openmm_geomgnn.sampling.walker_spec import WalkerSpec
    >>> spec = WalkerSpec(str(files("openmm_geomgnn.data") / "ala2-c7eq.pdb"), platform="Reference")
    >>> settings = ExploreSettings(ways=("torsions",), length=2, frame_interval=0.5)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     found = explore([spec], settings, folder)
    >>> [(one.name, one.positions.shape) for one in found[:2]]
    [('all torsions from ala2-c7eq', (4, 22, 3)), ('phi ALA2 from ala2-c7eq', (4, 22, 3))]
    """
    if processes < 1:
        raise GeomGNNError(f"processes is {processes}, but must be 1 or more.")
    folder = Path(folder)
    molecules = _molecules(specs)
    jobs = []
    for name in choose_ways(molecules[0], settings):
        for molecule in molecules:
            jobs += [_job(folder, piece, molecule, settings.seed) for piece in get_way(name).pieces(molecule, settings)]
    with locked(folder):
        todo = [job for job in jobs if not job.files.is_complete(job.prints)]
        remove_leftovers(folder)
        _make_all(todo, len(jobs), processes, progress)
        return [one for job in jobs for one in job.files.read()]


class _Job(NamedTuple):
    files: PieceFiles
    piece: Piece
    molecule: Molecule
    prints: Mapping[str, Any]


def _molecules(specs: Sequence[WalkerSpec]) -> list[Molecule]:
    if not specs:
        raise GeomGNNError("There is no structure to explore from: give a WalkerSpec for each known one.")
    prepared = prepare([replace(spec, bias=None, colvar_interval=0, frame_interval=0, index=0) for spec in specs])
    freedom = degrees_of_freedom(openmm.XmlSerializer.deserialize(prepared.specs[0].system))
    stems = [Path(spec.structure).stem for spec in specs]
    found = []
    for number, (spec, stem) in enumerate(zip(prepared.specs, stems, strict=True)):
        name = stem if stems.count(stem) == 1 else f"{stem} {number}"
        found.append(Molecule(name, replace(spec, positions=load_start(spec)[1]), prepared.topology, freedom))
    return found


def _job(folder: Path, piece: Piece, molecule: Molecule, seed: int) -> _Job:
    # a seed of its own, which does not depend on what else is explored
    words = hashlib.sha256(f"{seed} {piece.way} {piece.name}".encode()).digest()
    spec = replace(molecule.spec, seed=(molecule.spec.seed + int.from_bytes(words[:4], "little")) % 2**31)
    prints = fingerprint([spec], molecule.topology, str(spec.system), spec.platform)
    prints |= start_fingerprint(spec) | {
        "way": piece.way,
        **{f"setting {name}": value for name, value in piece.settings.items()},
    }
    files = PieceFiles(folder, piece.way, piece.name, molecule.name)
    return _Job(files, piece, replace(molecule, spec=spec), prints)


def _make_all(todo: Sequence[_Job], total: int, processes: int, progress: StageProgress | None) -> None:
    there = total - len(todo)
    report = progress or (lambda stage, done, total: None)
    report(STAGE, there, total)
    if min(processes, len(todo)) <= 1:
        for done, job in enumerate(todo, start=there + 1):
            _make(*job)
            report(STAGE, done, total)
        return
    with closing(run_jobs(_make, todo, processes, lambda job: job[0].name)) as finished:
        for done, _ in enumerate(finished, start=there + 1):
            report(STAGE, done, total)


def _make(files: PieceFiles, piece: Piece, molecule: Molecule, prints: Mapping[str, Any]) -> None:
    made = get_way(piece.way).make(piece, molecule)
    guard = Guard(molecule.topology, np.asarray(molecule.spec.positions))
    files.write(prints, molecule.topology, made, guard.check(made.positions))
