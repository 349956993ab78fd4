"""Molecules whose slow coordinates are known torsions, and the states that these divide."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from openmm_geomgnn.analysis.crossings import PHI_CORE_A, PHI_CORE_B, PHI_DIVIDING
from openmm_geomgnn.representation.rotatable import rotatable_torsions
from openmm_geomgnn.representation.shipped import DATA
from openmm_geomgnn.sampling.systems import load_structure

PERIOD = 2 * np.pi


@dataclass(frozen=True)
class Known:
    """A molecule and the torsions along which it is slow.

    structure: PDB or PDBx file. torsions: to be biased, with the names of `rotatable_torsions`. barrier: kJ/mol.
    """

    structure: Path
    torsions: tuple[str, ...]
    barrier: float


@dataclass(frozen=True)
class Sides:
    """The two sides of a torsion, radians.

    inside: (low, high) of the side "+"; the rest is "-". cores: between them crossings are counted.
    """

    inside: tuple[float, float]
    cores: tuple[tuple[float, float], tuple[float, float]]


MOLECULES = {
    "ala2": Known(DATA / "ala2-c7eq.pdb", ("phi ALA2", "psi ALA2"), 40.0),
    "pro": Known(DATA / "pro-trans.pdb", ("omega ACE1-PRO2",), 70.0),
    "glypro": Known(Path(__file__).with_name("gly-pro.pdb"), ("omega GLY2-PRO3",), 70.0),
    "val": Known(Path(__file__).with_name("val.pdb"), ("phi VAL2", "psi VAL2"), 40.0),
    "ala3": Known(DATA / "ala3.pdb", ("phi ALA2", "phi ALA3", "phi ALA4"), 40.0),
}
# of kinds of torsions; the others, as psi, may be biased but divide no states. "+" is C7ax, and cis
SIDES = {
    "phi": Sides(PHI_DIVIDING, (PHI_CORE_A, PHI_CORE_B)),
    "omega": Sides((-np.pi / 2, np.pi / 2), ((2.5, -2.5), (-0.6, 0.6))),
}


def find_molecule(name, torsions=None, barrier=None):
    """A `Known` by its name in MOLECULES, or from a structure file and names of torsions."""
    if name in MOLECULES:
        known = MOLECULES[name]
        return Known(known.structure, tuple(torsions or known.torsions), barrier or known.barrier)
    path = Path(name)
    if not path.is_file():
        raise SystemExit(f"{name} is neither a structure file nor one of {', '.join(MOLECULES)}.")
    if not torsions:
        names = ", ".join(rotatable_torsions(load_structure(path)[0]).names)
        raise SystemExit(f"Name the torsions of {name} to bias with --torsions. There are: {names}.")
    return Known(path, tuple(torsions), barrier or 40.0)


def find_atoms(topology, names):
    """The atoms (N, 4) of torsions by their names."""
    found = rotatable_torsions(topology)
    missing = [name for name in names if name not in found.names]
    if missing:
        raise SystemExit(f"There is no torsion {missing[0]!r}. There are: {', '.join(found.names)}.")
    return np.array([found.atoms[found.names.index(name)] for name in names])


def divided(names):
    """{column: Sides} of the torsions that divide states."""
    kinds = [name.split()[0] for name in names]
    return {column: SIDES[kind] for column, kind in enumerate(kinds) if kind in SIDES}
