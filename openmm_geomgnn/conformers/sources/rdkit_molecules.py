"""RDKit molecules: conformers from a graph, and atoms and coordinates of existing conformers."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np

from openmm_geomgnn.conformers.sources.base import NO_ELEMENT, Conformer, molecule_seed, skip

OPTIMISERS = ("none", "mmff", "uff")
EMBEDDING_ITERATIONS = 20  # per conformer; RDKit's own default is ten times the number of atoms


def molecule_from_smiles(smiles: str, skipped: Counter[str] | None) -> Any:
    """Make the molecule of a SMILES string with its hydrogens; None, and counted, if it is not one molecule."""
    from rdkit import Chem

    molecule = Chem.MolFromSmiles(smiles)
    if molecule is None or not molecule.GetNumAtoms():
        return skip(skipped, "not a valid SMILES")
    if len(Chem.GetMolFrags(molecule)) > 1:
        return skip(skipped, "several fragments (a salt or a mixture)")
    if any(atom.GetAtomicNum() == 0 for atom in molecule.GetAtoms()):
        return skip(skipped, NO_ELEMENT)
    return Chem.AddHs(molecule)


def embed(
    molecule: Any, conformers: int, optimise: str, seed: int, index: int, skipped: Counter[str] | None
) -> Iterator[Conformer]:
    """Yield up to `conformers` conformers (z, pos) of a molecule with hydrogens by ETKDGv3, optionally optimised.

    ETKDGv3: Wang et al., J. Chem. Inf. Model. 60, 2044 (2020). Conformers that optimisation makes identical are all kept.
    """
    from rdkit.Chem import AllChem

    settings = AllChem.ETKDGv3()
    settings.randomSeed = molecule_seed(seed, index)
    settings.maxIterations = EMBEDDING_ITERATIONS
    settings.numThreads = 1
    if not AllChem.EmbedMultipleConfs(molecule, conformers, settings):
        # strained cages and macrocycles
        settings.useRandomCoords = True
        if not AllChem.EmbedMultipleConfs(molecule, conformers, settings):
            return skip(skipped, "no conformer found")
    if optimise == "mmff":
        if not AllChem.MMFFHasAllMoleculeParams(molecule):
            return skip(skipped, "no MMFF parameters")
        AllChem.MMFFOptimizeMoleculeConfs(molecule, numThreads=1)
    elif optimise == "uff":
        if not AllChem.UFFHasAllMoleculeParams(molecule):
            return skip(skipped, "no UFF parameters")
        AllChem.UFFOptimizeMoleculeConfs(molecule, numThreads=1)
    yield from coordinates(molecule)


def coordinates(molecule: Any) -> Iterator[Conformer]:
    """Yield (z, pos in angstrom) of the conformers that a molecule has."""
    z = np.array([atom.GetAtomicNum() for atom in molecule.GetAtoms()])
    for conformer in molecule.GetConformers():
        yield z, np.array(conformer.GetPositions())
