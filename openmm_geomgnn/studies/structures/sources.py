"""Structures with labels: folders of PDB and mmCIF files, and the SCOPe 1.75 folds as ProNet and GearNet publish them."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mdtraj
import numpy as np

from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.units import NM_TO_ANGSTROM

TRAIN, VALIDATION, TEST = "train", "val", "test"
LABELS = "labels.csv"
CLASSES = "class_map.txt"
# parts of the SCOPe data -> names of their files, in ProNet's folder and in GearNet's
SCOPE_PARTS = {
    TRAIN: ("training", "train"),
    VALIDATION: ("validation", "valid"),
    "test_fold": ("test_fold",),
    "test_family": ("test_family",),
    "test_superfamily": ("test_superfamily",),
}
_SHARES = (0.6, 0.2)  # of training and validation, where a folder does not say


@dataclass(frozen=True)
class LabelledStructure:
    """A structure and its class.

    Attributes
    ----------
    name : str
    label : str
    part : str
        "train", "val" or the name of a part that is tested on, which begins with "test".
    source : path or mdtraj.Trajectory
        The file, or the structure itself.
    """

    name: str
    label: str
    part: str
    source: Any

    def load(self) -> mdtraj.Trajectory:
        """The structure, one frame.

        Raises GeomGNNError if its file cannot be read.
        """
        if isinstance(self.source, mdtraj.Trajectory):
            return self.source[0]
        path = Path(self.source)
        if path.suffix.lower() in (".hdf5", ".h5"):
            return read_scope_protein(path)
        try:
            return mdtraj.load(str(path))[0]
        except Exception as error:  # mdtraj's readers raise all kinds of exceptions
            raise GeomGNNError(f"The structure {path} cannot be read ({error}): give a PDB or mmCIF file.") from error


def read_folder(folder: Path, seed: int) -> list[LabelledStructure]:
    """Read the structures of a folder whose `labels.csv` has the columns file, label and, optionally, part.

    Without parts, 60 % of the structures of each class are for training and 20 % for validation, drawn by a seed.

    Raises GeomGNNError if the table or a file is missing, or a part is unknown.
    """
    path = Path(folder) / LABELS
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except OSError as error:
        raise GeomGNNError(
            f"{path} cannot be read ({error}): give a table with the columns file, label and part."
        ) from error
    if not rows or not {"file", "label"} <= rows[0].keys():
        raise GeomGNNError(f"{path} must have a line for each structure and the columns file and label (and part).")
    found = []
    for number, row in enumerate(rows, start=2):
        source = Path(folder) / (row["file"] or "")
        if not row["label"] or not source.is_file():
            raise GeomGNNError(f"Line {number} of {path}: there is no label, or no file {source}.")
        found.append(LabelledStructure(row["file"], row["label"], row.get("part") or "", source))
    if not any(one.part for one in found):
        return _split(found, seed)
    wrong = next((one for one in found if one.part not in (TRAIN, VALIDATION) and not one.part.startswith(TEST)), None)
    if wrong is not None:
        raise GeomGNNError(f"{wrong.name} in {path} is of part {wrong.part!r}: give train, val, test or test_NAME, or none.")
    return found


def _split(structures: Sequence[LabelledStructure], seed: int) -> list[LabelledStructure]:
    """The structures of each class in parts at random."""
    generator, found = np.random.default_rng(seed), []
    for label in sorted({one.label for one in structures}):
        members = [one for one in structures if one.label == label]
        order = generator.permutation(len(members))
        first, second = round(_SHARES[0] * len(members)), round(sum(_SHARES) * len(members))
        for place, k in enumerate(order):
            part = TRAIN if place < first else VALIDATION if place < second else TEST
            found.append(LabelledStructure(members[k].name, label, part, members[k].source))
    return found


def read_scope(folder: Path) -> list[LabelledStructure]:
    """Read the SCOPe 1.75 folds (Hou et al. 2018) in the files of Hermosilla et al. 2021, arXiv 2007.06252.

    The folder has `class_map.txt` (fold, tab, number), for each part a list (`training.txt`: protein, tab, ..., fold) and
    a folder of proteins (`training/PROTEIN.hdf5`). ProNet calls the parts training and validation, GearNet train and valid;
    the test sets are test_fold, test_family and test_superfamily. What is missing of the last three is left out.

    Raises GeomGNNError if a file that must be there is missing, or a fold is not in the map.
    """
    folder = Path(folder)
    known = {line.split("\t")[0] for line in _lines(folder / CLASSES)}
    found = []
    for part, names in SCOPE_PARTS.items():
        listed = next((folder / f"{name}.txt" for name in names if (folder / f"{name}.txt").is_file()), None)
        if listed is None:
            if part in (TRAIN, VALIDATION):
                raise GeomGNNError(f"{folder} has no {' nor '.join(f'{name}.txt' for name in names)}: is it HomologyTAPE?")
            continue
        for line in _lines(listed):
            protein, *_, fold = line.split("\t")
            if fold not in known:
                raise GeomGNNError(f"{listed} has {protein} of fold {fold!r}, which {CLASSES} does not know.")
            source = folder / listed.stem / f"{protein}.hdf5"
            if not source.is_file():
                raise GeomGNNError(f"{listed} names {protein}, but there is no {source}: unpack {listed.stem}.zip there.")
            found.append(LabelledStructure(protein, fold, part, source))
    return found


def _lines(path: Path) -> Iterator[str]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise GeomGNNError(f"{path} cannot be read ({error}): give the folder of the SCOPe data.") from error
    return (line.rstrip() for line in text.splitlines() if line.strip())


def read_scope_protein(path: Path) -> mdtraj.Trajectory:
    """Read a protein of the SCOPe data.

    Its arrays are `atom_pos` (1, atoms, 3) in angstrom, `atom_names`, `atom_residue_names`, and `atom_amino_id` (or
    `atom_residue_id`), the residue of each atom.

    Raises GeomGNNError if h5py is missing or the file is of another kind.
    """
    try:
        import h5py
    except ImportError as error:
        raise GeomGNNError('The SCOPe data need h5py: pip install "openmm-geomgnn[data]".') from error
    try:
        with h5py.File(path, "r") as file:
            pos = np.asarray(file["atom_pos"][0], dtype=np.float64)
            names, kinds = ([text.decode() for text in file[key][()]] for key in ("atom_names", "atom_residue_names"))
            residue = file["atom_amino_id" if "atom_amino_id" in file else "atom_residue_id"][()]
    except (OSError, KeyError, AttributeError, IndexError, ValueError) as error:
        raise GeomGNNError(f"{path} is no protein of the SCOPe data ({error}).") from error
    return structure_of(names, kinds, residue, pos)


def structure_of(names: Sequence[str], kinds: Sequence[str], residue: np.ndarray, pos: np.ndarray) -> mdtraj.Trajectory:
    """A structure of one chain from its atoms, in the order of residues.

    Parameters
    ----------
    names, kinds : lists of str
        Of each atom, its name in the PDB and that of its residue.
    residue : (N,) array of int
    pos : (N, 3) array
        Angstrom.
    """
    topology = mdtraj.Topology()
    chain, last, current = topology.add_chain(), None, None
    for name, kind, place in zip(names, kinds, residue, strict=True):
        if place != last:
            current, last = topology.add_residue(kind, chain), place
        # of the elements in proteins, only selenium has two letters that a name could begin with
        symbol = "Se" if name.upper().startswith("SE") else name.lstrip("0123456789")[0]
        topology.add_atom(name, mdtraj.element.get_by_symbol(symbol), current)
    topology.create_standard_bonds()
    return mdtraj.Trajectory(np.asarray(pos, dtype=np.float32)[None] / NM_TO_ANGSTROM, topology)
