"""Every torsion about which the molecule can turn is biased, all at once and each in turn, at the run's temperature."""

from collections.abc import Sequence

import numpy as np
import openmm
from openmm import app

from openmm_geomgnn.representation.rotatable import Torsions, rotatable_torsions
from openmm_geomgnn.sampling.explore.base import ExploreSettings, Made, Molecule, Piece
from openmm_geomgnn.sampling.explore.fourier import HARMONICS, TorsionHills, dihedrals
from openmm_geomgnn.sampling.explore.simulate import LOWEST_FRICTION, Dynamics, steps
from openmm_geomgnn.units import BOLTZMANN

IN_TURN = 4  # torsions up to which "auto" biases each in turn, too
MOST = 40
_PACE = 0.5  # ps between hills
_HIGHEST_HILL = 3.0  # kJ/mol
# hills may heat by this share of the temperature, were all their work to become heat; about half of it does
_HEATING = 0.04


def why_not(molecule: Molecule, settings: ExploreSettings) -> str | None:
    """Why this way does not fit a molecule, in a sentence; None if it does."""
    count = len(find_torsions(molecule.topology, settings.omega).names)
    if not count:
        return "Nothing in the molecule turns about a bond."
    if count > MOST:
        return f"The molecule turns about {count} bonds, and only up to {MOST} are biased."
    return None


def pieces(molecule: Molecule, settings: ExploreSettings) -> list[Piece]:
    """One piece for all torsions at once, and one for each if there are several and they are asked for.

    At once each torsion crosses its barrier as often as on its own in a simulation of the same length.
    """
    torsions = find_torsions(molecule.topology, settings.omega)
    found = [*zip(torsions.names, torsions.atoms[:, None].tolist(), strict=True)]
    if len(found) > 1:
        in_turn = len(found) <= IN_TURN if settings.in_turn == "auto" else settings.in_turn
        found = [("all torsions", torsions.atoms.tolist()), *(found if in_turn else [])]
    shared = {"length": settings.length, "frame_interval": settings.frame_interval, "barrier": settings.barrier}
    return [Piece("torsions", name, shared | {"atoms": atoms}) for name, atoms in found]


def make(piece: Piece, molecule: Molecule) -> Made:
    """Run the metadynamics of a piece."""
    atoms, spec = np.array(piece.settings["atoms"]), molecule.spec
    height = hill_height(len(atoms), molecule)
    hills = TorsionHills(height, piece.settings["barrier"], spec.temperature)
    interval = steps(piece.settings["frame_interval"], spec)
    dynamics = Dynamics(molecule, [bias_force(k, four) for k, four in enumerate(atoms)], interval)
    coefficients, biases = hills.start(len(atoms)), []

    def deposit() -> None:
        nonlocal coefficients
        coefficients = hills.deposit(coefficients, dihedrals(dynamics.positions, atoms))
        set_biases(dynamics.context, coefficients)

    def note_bias() -> None:
        angles = dihedrals(dynamics.positions, atoms)
        biases.append(float(hills.values(coefficients, angles).sum()) - hills.offset(coefficients))

    trouble = dynamics.advance(steps(piece.settings["length"], spec), steps(_PACE, spec), deposit, note_bias)
    mean = float(np.mean(dynamics.temperatures)) if dynamics.temperatures else float("nan")
    positions, boxes = dynamics.kept
    notes = () if trouble is None else (trouble,)
    return Made(positions, boxes, interval * spec.timestep, np.array(biases), spec.temperature, mean, notes)


def find_torsions(topology: app.Topology, omega: bool | str = "auto") -> Torsions:
    """Find the torsions to bias.

    Parameters
    ----------
    topology : openmm.app.Topology
    omega : bool or "auto"
        Whether those of peptide bonds are among them; "auto": where nitrogen has no hydrogen, as in proline, so that cis is
        not rare.
    """
    found = rotatable_torsions(topology)
    heavy: dict[int, int] = {}
    for a, b in topology.bonds():
        if all(atom.element is not None and atom.element.atomic_number > 1 for atom in (a, b)):
            for atom in (a, b):
                heavy[atom.index] = heavy.get(atom.index, 0) + 1
    atoms = list(topology.atoms())

    def wanted(name: str, four: Sequence[int]) -> bool:
        if not name.startswith("omega ") or omega is True:
            return True
        nitrogen = next(k for k in four[1:3] if atoms[k].name == "N")
        return omega == "auto" and heavy[nitrogen] == 3

    keep = [k for k, (name, four) in enumerate(zip(found.names, found.atoms, strict=True)) if wanted(name, four)]
    return Torsions(tuple(found.names[k] for k in keep), found.atoms[keep])


def hill_height(torsions: int, molecule: Molecule) -> float:
    """The height of the first hills in kJ/mol: as much as the thermostat can take away."""
    friction = max(molecule.spec.friction, LOWEST_FRICTION)
    taken = _HEATING * friction * molecule.degrees_of_freedom * BOLTZMANN * molecule.spec.temperature
    return min(_HIGHEST_HILL, taken * _PACE / torsions)


def bias_force(number: int, atoms: Sequence[int]) -> openmm.CustomTorsionForce:
    """The bias of torsion `number` about four atoms: a Fourier series of global parameters, zero until `set_biases`."""
    terms = [_parameter(number, 0)]
    for kind, first in (("cos", 1), ("sin", 1 + HARMONICS)):
        terms += [f"{_parameter(number, first + k)}*{kind}({k + 1}*theta)" for k in range(HARMONICS)]
    force = openmm.CustomTorsionForce(" + ".join(terms))
    for term in range(2 * HARMONICS + 1):
        force.addGlobalParameter(_parameter(number, term), 0.0)
    force.addTorsion(*map(int, atoms), [])
    return force


def set_biases(context: openmm.Context, coefficients: np.ndarray) -> None:
    """Give the forces of `bias_force` in a context the coefficients (torsions, 2*HARMONICS + 1) of a `TorsionHills`."""
    for number, series in enumerate(coefficients.tolist()):
        for term, value in enumerate(series):
            context.setParameter(_parameter(number, term), value)


def _parameter(torsion: int, term: int) -> str:
    return f"exploration_{torsion}_{term}"
