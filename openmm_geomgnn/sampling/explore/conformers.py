"""Conformers by distance geometry (RDKit), each minimised in the force field: for small molecules and short peptides."""

from importlib.util import find_spec
from typing import Any

import mdtraj
import networkx
import numpy as np
import openmm
from openmm import app

from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.sampling.explore.base import ExploreSettings, Made, Molecule, Piece
from openmm_geomgnn.sampling.explore.quench import quench
from openmm_geomgnn.sampling.walker import make_system
from openmm_geomgnn.units import NM_TO_ANGSTROM

LARGEST = 60  # atoms


def why_not(molecule: Molecule, settings: ExploreSettings) -> str | None:
    """Why this way does not fit a molecule, in a sentence; None if it does."""
    atoms = list(molecule.topology.atoms())
    if len(atoms) > LARGEST:
        return f"It has {len(atoms)} atoms, and conformers are made of up to {LARGEST}."
    if any(atom.element is None for atom in atoms):
        return "It has particles that are no atoms."
    if not networkx.is_connected(mdtraj.Topology.from_openmm(molecule.topology).to_bondgraph()):
        return "It is not one molecule, or some of its bonds are not known."
    if find_spec("rdkit") is None:
        return "Conformers need RDKit: pip install 'openmm-geomgnn[data]', or pip install rdkit."
    return None


def pieces(molecule: Molecule, settings: ExploreSettings) -> list[Piece]:
    """One piece with all conformers."""
    return [Piece("conformers", "conformers", {"conformers": settings.conformers})]


def make(piece: Piece, molecule: Molecule) -> Made:
    """Embed conformers of the stereoisomer of the start, and minimise them."""
    spec, number = molecule.spec, piece.settings["conformers"]
    embedded = _embed(_rdkit_molecule(molecule), number, spec.seed)
    minima, _, faults = quench(spec, embedded)
    good = np.array([fault is None for fault in faults], dtype=bool)
    notes = []
    if len(embedded) < number:
        notes.append(f"RDKit found {len(embedded)} of {number} conformers.")
    if not good.all():
        reasons = "; ".join(sorted({fault for fault in faults if fault}))
        notes.append(f"{(~good).sum()} of {len(good)} conformers are left out: {reasons}.")
    positions = minima[good].astype(np.float32)
    return Made(positions, None, None, None, spec.temperature, float("nan"), tuple(notes))


def _embed(molecule: Any, number: int, seed: int) -> np.ndarray:
    """Conformers (F, N, 3) in nm.

    One half by ETKDGv3 (Wang et al., J. Chem. Inf. Model. 60, 2044 (2020)), which knows the torsions of crystals, and one
    half without that knowledge, because it leaves out basins: every phi of a peptide is negative there.
    """
    from rdkit.Chem import AllChem

    found = []
    for settings, count in ((AllChem.ETKDGv3(), (number + 1) // 2), (AllChem.KDG(), number // 2)):
        settings.randomSeed = seed
        settings.numThreads = 1
        if not count:
            continue
        if not AllChem.EmbedMultipleConfs(molecule, count, settings):
            settings.useRandomCoords = True  # strained cages and macrocycles
            AllChem.EmbedMultipleConfs(molecule, count, settings)
        found += [np.array(conformer.GetPositions()) for conformer in molecule.GetConformers()]
    return np.array(found).reshape(-1, molecule.GetNumAtoms(), 3) / NM_TO_ANGSTROM


def _rdkit_molecule(molecule: Molecule) -> Any:
    """The RDKit molecule with its bond orders, from bonds and total charge, and the stereocentres of the start."""
    from rdkit import Chem, rdBase
    from rdkit.Chem import rdDetermineBonds

    made = Chem.RWMol()
    for atom in molecule.topology.atoms():
        one = Chem.Atom(atom.element.atomic_number)
        one.SetNoImplicit(True)
        made.AddAtom(one)
    for a, b in molecule.topology.bonds():
        made.AddBond(a.index, b.index, Chem.BondType.SINGLE)
    conformer = Chem.Conformer(made.GetNumAtoms())
    for index, place in enumerate(np.asarray(molecule.spec.positions) * NM_TO_ANGSTROM):
        conformer.SetAtomPosition(index, place.tolist())
    made.AddConformer(conformer)
    charge = _charge(make_system(molecule.spec, molecule.topology), molecule.topology)
    try:
        with rdBase.BlockLogs():
            rdDetermineBonds.DetermineBondOrders(made, charge=charge)
            Chem.SanitizeMol(made)
    except (ValueError, RuntimeError) as error:
        raise GeomGNNError(
            f"RDKit finds no bond orders for {molecule.name} with the charge {charge} ({str(error).strip()}). Are hydrogens "
            "missing? Explore it in another way, as in ways: torsions."
        ) from error
    Chem.AssignStereochemistryFrom3D(made)
    return made


def _charge(system: openmm.System, topology: app.Topology) -> int:
    """The total charge in the force field, in elementary charges."""
    total = 0.0
    for force in system.getForces():
        if isinstance(force, openmm.NonbondedForce):
            total += sum(force.getParticleParameters(atom.index)[0]._value for atom in topology.atoms())
    return round(total)
