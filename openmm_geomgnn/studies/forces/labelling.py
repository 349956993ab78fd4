"""Trajectories of a molecule with energies and forces of GFN2-xTB: Langevin dynamics of ASE with the calculator of tblite.

GFN2-xTB: Bannwarth, Ehlert & Grimme, J. Chem. Theory Comput. 15, 1652 (2019).

A trajectory is a folder of pieces, files of extended XYZ. Each starts from the last frame of the one before, as it is
written, with random numbers of its own: what was killed goes on at the last piece, and becomes the same as without.
"""

from __future__ import annotations

import importlib.util
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.files import atomic_write, remove_leftovers
from openmm_geomgnn.jobs import run_jobs

if TYPE_CHECKING:
    from ase import Atoms

METHOD = "GFN2-xTB"
START, MADE_FROM = "start.xyz", "labels.json"
STRUCTURES = (".xyz", ".extxyz", ".sdf", ".mol", ".pdb")
_PIECE = 50  # frames
_CONFORMERS = 10  # of which the lowest is taken
_RELAXED = 0.01  # eV/angstrom, the largest force
_RELAXATION = 500  # steps


@dataclass(frozen=True)
class Dynamics:
    """How trajectories are made.

    Attributes
    ----------
    frames : int
        Of each trajectory.
    interval, timestep, equilibration : float
        In ps: between frames, of the integrator, and before the first frame, from the relaxed molecule at rest.
    friction : float
        Of Langevin's equation, in 1/ps.
    charge, multiplicity : int
    seed : int
    """

    frames: int = 1000
    interval: float = 0.01
    timestep: float = 0.0005
    equilibration: float = 1.0
    friction: float = 10.0
    charge: int = 0
    multiplicity: int = 1
    seed: int = 1

    def pieces(self) -> int:
        """Files of a trajectory."""
        return -(-self.frames // _PIECE)

    def frames_of(self, piece: int) -> int:
        """Frames of the piece with a number from 0."""
        return min(_PIECE, self.frames - piece * _PIECE)

    def steps(self) -> int:
        """Steps of a trajectory."""
        return _steps(self.equilibration, self.timestep) + self.frames * _steps(self.interval, self.timestep)


def _steps(time: float, timestep: float) -> int:
    return round(time / timestep)


def require_tblite() -> None:
    """Raise a GeomGNNError unless tblite is installed."""
    if importlib.util.find_spec("tblite") is None:
        raise GeomGNNError(
            'Labels of GFN2-xTB need tblite, which is not installed: pip install "openmm-geomgnn[forces]". Or give frames '
            "that have labels."
        )


def calculator(dynamics: Dynamics) -> Any:
    """ASE's calculator of GFN2-xTB, in eV and angstrom. Raises GeomGNNError if tblite is not installed."""
    require_tblite()
    from tblite.ase import TBLite

    return TBLite(method=METHOD, charge=dynamics.charge, multiplicity=dynamics.multiplicity, verbosity=0)


def read_molecule(name: str, dynamics: Dynamics) -> list[Atoms]:
    """Conformers of a molecule: of a SMILES some that RDKit makes, of a file its first frame.

    Raises
    ------
    GeomGNNError
        If it cannot be read or built, or its electrons do not fit the multiplicity.
    """
    found = [_from_file(Path(name))] if Path(name).suffix.lower() in STRUCTURES else _from_smiles(name)
    electrons = int(found[0].numbers.sum()) - dynamics.charge
    if electrons < 1 or (electrons + dynamics.multiplicity) % 2 == 0:
        raise GeomGNNError(
            f"The molecule {name} has {electrons} electrons with a charge of {dynamics.charge}, which do not give a "
            f"multiplicity of {dynamics.multiplicity}. Set charge and multiplicity."
        )
    return found


def _from_file(path: Path) -> Atoms:
    import ase.io

    try:
        atoms: Any = ase.io.read(path, index=0)
    except Exception as error:  # ASE raises all kinds of exceptions
        raise GeomGNNError(f"The molecule {path} cannot be read by ASE: {type(error).__name__}: {error}") from error
    if not len(atoms) or atoms.numbers.min() < 1:
        raise GeomGNNError(f"The molecule {path} has no atoms, or atoms that are no elements.")
    atoms.set_pbc(False)
    return atoms


def _from_smiles(smiles: str) -> list[Atoms]:
    from ase import Atoms

    if importlib.util.find_spec("rdkit") is None:
        raise GeomGNNError(
            f'The molecule {smiles} is built by RDKit, which is not installed: pip install "openmm-geomgnn[data]". Or give '
            f"a file ({', '.join(STRUCTURES)})."
        )
    from rdkit import rdBase

    from openmm_geomgnn.conformers.sources.rdkit_molecules import embed, molecule_from_smiles

    skipped: Counter[str] = Counter()
    with rdBase.BlockLogs():
        molecule = molecule_from_smiles(smiles, skipped)
        made = list(embed(molecule, _CONFORMERS, "none", 1, 0, skipped)) if molecule is not None else []
    if not made:
        raise GeomGNNError(
            f"No molecule can be built of '{smiles}': {' and '.join(skipped)}. Give a SMILES, or a file "
            f"({', '.join(STRUCTURES)})."
        )
    return [Atoms(*one) for one in made]


def relax(conformers: Sequence[Atoms], dynamics: Dynamics) -> Atoms:
    """Relax conformers of a molecule with GFN2-xTB, and return the one of lowest energy.

    Raises GeomGNNError if none comes to rest.
    """
    from ase.calculators.calculator import CalculationFailed, InputError
    from ase.optimize import BFGS

    lowest, reason = None, f"none is at rest after {_RELAXATION} steps"
    for conformer in conformers:
        found = conformer.copy()
        found.calc = calculator(dynamics)
        try:
            at_rest = BFGS(found, logfile=None).run(fmax=_RELAXED, steps=_RELAXATION)
        except (CalculationFailed, InputError) as error:
            reason = " ".join(str(error).split())
            continue
        if at_rest and (lowest is None or found.get_potential_energy() < lowest.get_potential_energy()):
            lowest = found
    if lowest is None:
        raise GeomGNNError(f"The molecule cannot be relaxed with {METHOD}: {reason}. Start from another structure.")
    lowest.calc = None
    return lowest


def prepare(folder: Path, molecule: str, dynamics: Dynamics) -> Atoms:
    """Write the relaxed molecule and what labels are made from, unless they are there; returns the molecule.

    Raises GeomGNNError if labels of another molecule or of other settings are there.
    """
    import ase.io

    made_from = {"molecule": molecule, "method": METHOD, **asdict(dynamics)}
    path = folder / MADE_FROM
    if path.exists():
        before = json.loads(path.read_text(encoding="utf-8"))
        other = [name for name in made_from if before.get(name) != made_from[name]]
        if other:
            raise GeomGNNError(f"{folder} holds labels of other settings ({', '.join(other)}). Give another output.")
    else:
        relaxed = relax(read_molecule(molecule, dynamics), dynamics)
        with atomic_write(folder / START) as temporary:
            ase.io.write(temporary, relaxed, format="extxyz")
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps(made_from, indent=1) + "\n", encoding="utf-8")
    return ase.io.read(folder / START, format="extxyz")  # type: ignore[return-value]


def label(folder: Path, temperatures: Sequence[float], dynamics: Dynamics, processes: int) -> Iterator[Path]:
    """Make the trajectories of a prepared folder side by side, and yield each file that is there, in no order.

    Raises
    ------
    GeomGNNError
        If a process ends, or a frame cannot be computed.
    """
    open_: list[tuple[Any, ...]] = []
    for temperature in temperatures:
        files = [piece_file(folder, temperature, piece) for piece in range(dynamics.pieces())]
        there = list(takewhile(Path.exists, files))
        yield from there
        if len(there) < len(files):
            open_.append((folder, temperature, len(there), dynamics))

    def following(job: tuple[Any, ...]) -> tuple[Any, ...] | None:
        _, temperature, piece, _ = job
        return (folder, temperature, piece + 1, dynamics) if piece + 1 < dynamics.pieces() else None

    if open_:
        name = "The trajectory at {1:g} K".format
        with closing(
            run_jobs(label_piece, open_, min(processes, len(open_)), lambda job: name(*job), then=following)
        ) as jobs:
            for _, path in jobs:
                yield path


def trajectory(folder: Path, temperature: float) -> Path:
    """The folder of the pieces of a trajectory."""
    return folder / f"{temperature:g}K"


def piece_file(folder: Path, temperature: float, piece: int) -> Path:
    """The file of one piece."""
    return trajectory(folder, temperature) / f"{piece:04d}.xyz"


def label_piece(folder: Path, temperature: float, piece: int, dynamics: Dynamics) -> Path:
    """Make one piece of a trajectory, the one before being there; returns its file. Nothing is done if it is there."""
    import ase.io

    path = piece_file(folder, temperature, piece)
    if path.exists():
        return path
    remove_leftovers(path.parent)
    before = piece_file(folder, temperature, piece - 1) if piece else folder / START
    atoms: Any = ase.io.read(before, index=-1, format="extxyz")
    with atomic_write(path) as temporary:
        ase.io.write(temporary, list(move(atoms, temperature, piece, dynamics)), format="extxyz")
    return path


def move(atoms: Atoms, temperature: float, piece: int, dynamics: Dynamics) -> Iterator[Atoms]:
    """Yield the labelled frames of a piece that starts from `atoms`, with momenta, centred.

    Raises GeomGNNError if a frame cannot be computed.
    """
    from ase import units
    from ase.calculators.calculator import CalculationFailed
    from ase.calculators.singlepoint import SinglePointCalculator
    from ase.md.langevin import Langevin

    picosecond = 1000 * units.fs
    atoms.calc = calculator(dynamics)
    motion = Langevin(
        atoms, dynamics.timestep * picosecond, temperature_K=temperature, friction=dynamics.friction / picosecond,
        fixcm=False, rng=np.random.default_rng([dynamics.seed, round(1000 * temperature), piece]),
    )  # fmt: skip
    interval = _steps(dynamics.interval, dynamics.timestep)
    try:
        if not piece:
            motion.run(_steps(dynamics.equilibration, dynamics.timestep))
        for number in range(piece * _PIECE, piece * _PIECE + dynamics.frames_of(piece)):
            motion.run(interval)
            frame = atoms.copy()
            frame.positions -= frame.get_center_of_mass()
            frame.info = {"temperature_K": temperature, "time_ps": round(number * dynamics.interval, 9)}
            labels = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces()}
            if not np.isfinite(labels["forces"]).all():
                raise CalculationFailed("the forces are not finite")
            frame.calc = SinglePointCalculator(frame, **labels)
            yield frame
    except CalculationFailed as error:
        raise GeomGNNError(
            f"{METHOD} has no result after {motion.nsteps} steps of piece {piece + 1}: {' '.join(str(error).split())}. The "
            "molecule may have broken: lower the temperature or the timestep."
        ) from error
