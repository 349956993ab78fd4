"""Capped peptides in molecular dynamics, which resemble what a collective variable of a protein sees."""

import functools
import io
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from openmm_geomgnn.conformers.sources.base import Conformer, Source, check_count, require, skip
from openmm_geomgnn.conformers.sources.peptide_geometry import bond_distances, capped_pdb, random_torsions, rotatable_bonds
from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.units import NM_TO_ANGSTROM

if TYPE_CHECKING:
    from openmm import app

RESIDUES = "ARNDCQEGHILKMFPSTWYV"
FRAMES_PER_START = 20
STEPS_PER_FRAME = 200  # of 4 fs: 0.8 ps
TIME_STEP = 0.004  # ps
CONFORMERS_PER_TASK = 100
CLASH = 0.16  # nm; a bond through a ring is closer than this to one of the ring's atoms
BOND_STRETCH = 0.04  # nm; a heavy-atom bond stretched by more is strained by a knot, not by heat
ATTEMPTS = 20


@dataclass(frozen=True)
class Peptides(Source):
    """ACE-X-NME of all 20 residues, and random ACE-XX-NME and longer, simulated with OpenMM.

    The force field is amber14 with OBC2 implicit solvent. Runs start from random torsions, so that they cover regions such
    as phi > 0, which a simulation that starts in a helix or strand does not reach; frames are 0.8 ps apart. All residues
    are L.

    Attributes
    ----------
    number : int
        Conformers.
    shares : list of float
        Shares of the conformers with one, two, three, four, ... residues between the caps; they need not add up to 1.
    per_sequence : int
        Conformers of each sequence of two or more residues; single residues share theirs equally.
    temperatures : list of float
        Kelvin; one is drawn for each run of 20 frames.
    """

    name: ClassVar[str] = "peptides"

    number: int = 5000
    shares: list[float] = (0.5, 0.3, 0.12, 0.08)  # type: ignore[assignment]  # a default must not be mutable
    per_sequence: int = 40
    temperatures: list[float] = (300.0, 400.0, 500.0)  # type: ignore[assignment]

    def check(self) -> None:
        """Raise GeomGNNError for wrong settings, missing files and missing packages."""
        require(self, "PeptideBuilder")
        check_count(self, "number", "per_sequence")
        for key, least in (("shares", 0.0), ("temperatures", 1.0)):
            values = getattr(self, key)
            if not isinstance(values, (list, tuple)) or not all(_is_number(value) and value >= least for value in values):
                raise GeomGNNError(
                    f"{key} of the conformer source `peptides` is {values!r}, but it must be a list of numbers of at least "
                    f"{least:g}."
                )
            if not sum(values):
                raise GeomGNNError(f"{key} of the conformer source `peptides` is {values!r}: give at least one above 0.")

    def tasks(self, seed: int) -> list[list[Any]]:
        """Cut the work into tasks."""
        return [
            [sequence, k, start, min(CONFORMERS_PER_TASK, number - start)]
            for k, (sequence, number) in enumerate(self.plan(seed))
            for start in range(0, number, CONFORMERS_PER_TASK)
        ]

    def plan(self, seed: int) -> list[tuple[str, int]]:
        """[(sequence, conformers of it)] that add up to `number`: all 20 single residues, then random longer ones."""
        rng = np.random.default_rng([seed, 20])
        ends = np.rint(np.cumsum([0, *self.shares]) / sum(self.shares) * self.number).astype(int)
        planned = []
        for length, amount in enumerate(np.diff(ends).tolist(), start=1):
            if length == 1:
                sequences = list(RESIDUES)
            else:
                kinds = max(1, round(amount / self.per_sequence))
                sequences = ["".join(RESIDUES[k] for k in row) for row in rng.integers(len(RESIDUES), size=(kinds, length))]
            share, rest = divmod(amount, len(sequences))
            planned += [(sequence, share + (i < rest)) for i, sequence in enumerate(sequences)]
        return [(sequence, number) for sequence, number in planned if number]

    def conformers(self, task: list[Any], seed: int, skipped: Counter[str] | None = None) -> Iterator[Conformer]:
        """Yield (z, pos in angstrom) of the conformers of one task."""
        sequence, k, start, wanted = task
        peptide = Peptide(sequence)
        rng = np.random.default_rng([seed, 21, k, start])
        failures = 0
        while wanted:
            made = 0
            for pos in peptide.frames(rng, float(rng.choice(self.temperatures)), min(wanted, FRAMES_PER_START)):
                yield peptide.z, pos
                made += 1
            wanted -= made
            if not made:
                failures += 1
                skip(skipped, "a run from random torsions came apart; another was made")
            if failures == ATTEMPTS:
                raise GeomGNNError(
                    f"ACE-{sequence}-NME could not be run: {ATTEMPTS} starts from random torsions came apart. Try another "
                    "seed or lower temperatures, and report it with the versions of openmm and PeptideBuilder."
                )


@functools.cache
def _forcefield() -> "app.ForceField":
    from openmm import app

    from openmm_geomgnn.sampling.systems import SystemSettings

    return app.ForceField(*SystemSettings().forcefield)


def _platform() -> Any:
    """For such a small molecule the Reference platform is fastest, and its results do not depend on threads."""
    import openmm

    return openmm.Platform.getPlatform("Reference")


def build_peptide(sequence: str) -> tuple["app.Topology", Any]:
    """Extended ACE-`sequence`-NME with hydrogens, not minimised.

    Parameters
    ----------
    sequence : str
        One-letter codes, all L.

    Returns
    -------
    topology : openmm.app.Topology
    positions : openmm Quantity
    """
    from openmm import app

    pdb = app.PDBFile(io.StringIO(capped_pdb(sequence)))
    modeller = app.Modeller(pdb.topology, pdb.positions)
    # Modeller draws the first guess of the hydrogens from the process-wide generator
    state = random.getstate()
    try:
        random.seed(sequence)
        modeller.addHydrogens(_forcefield(), platform=_platform())
    finally:
        random.setstate(state)
    return modeller.topology, modeller.positions


class Peptide:
    """ACE-`sequence`-NME in implicit solvent, ready to run from random torsions.

    Attributes
    ----------
    z : (N,) int
    """

    def __init__(self, sequence: str) -> None:
        import openmm

        from openmm_geomgnn.sampling.systems import SystemSettings, build_system

        platform = _platform()
        topology, positions = build_peptide(sequence)
        system = build_system(topology, SystemSettings(hydrogen_mass=2.0))
        self.z = np.array([a.element.atomic_number for a in topology.atoms()])
        bonds = np.array([(b[0].index, b[1].index) for b in topology.bonds()])
        self._heavy_bonds = bonds[(self.z[bonds] > 1).all(axis=1)]
        self._apart = bond_distances(len(self.z), bonds) > 3
        self._torsions = rotatable_bonds(topology, bonds)
        self._integrator = openmm.LangevinMiddleIntegrator(300.0, 1.0, TIME_STEP)
        self._context = openmm.Context(system, self._integrator, platform)
        self._context.setPositions(positions)
        openmm.LocalEnergyMinimizer.minimize(self._context, 10.0, 500)
        self._reference = self._positions()
        self._reference_lengths = self._lengths(self._reference)

    def frames(self, rng: np.random.Generator, temperature: float, number: int) -> Iterator[np.ndarray]:
        """Yield up to `number` conformers (N, 3) in angstrom of one run, fewer if the molecule comes apart."""
        import openmm

        self._integrator.setTemperature(temperature)
        self._integrator.setRandomNumberSeed(int(rng.integers(1, 2**31)))
        # the integrator takes its seed when its context is made
        self._context.reinitialize()
        self._context.setPositions(random_torsions(self._reference, self._torsions, self._apart, rng, CLASH))
        openmm.LocalEnergyMinimizer.minimize(self._context, 50.0, 100)
        self._context.setVelocitiesToTemperature(temperature, int(rng.integers(1, 2**31)))
        for _ in range(number):
            try:
                self._integrator.step(STEPS_PER_FRAME)
            except openmm.OpenMMException:
                # OpenMM's report of a particle at NaN; any other failure recurs at every start and ends in an error
                return
            pos = self._positions()
            if not np.isfinite(pos).all() or (self._lengths(pos) - self._reference_lengths).max() > BOND_STRETCH:
                return
            yield pos * NM_TO_ANGSTROM

    def _positions(self) -> np.ndarray:
        return self._context.getState(positions=True).getPositions(asNumpy=True)._value

    def _lengths(self, pos: np.ndarray) -> np.ndarray:
        return np.linalg.norm(pos[self._heavy_bonds[:, 0]] - pos[self._heavy_bonds[:, 1]], axis=1)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
