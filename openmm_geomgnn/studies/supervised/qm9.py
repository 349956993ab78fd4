"""QM9 with its 12 targets, read from the package qm9pack into a store of labelled molecules.

Labels are those of Ramakrishnan et al., Sci. Data 1, 140022 (2014), with the names and in the units of TorchMD-Net's own
class `QM9`. Which entries are the same molecule, and their Bemis-Murcko scaffolds (J. Med. Chem. 39, 2887 (1996)), are
found with RDKit.
"""

import csv
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from openmm_geomgnn.conformers.sources import base, qm9
from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.units import did_you_mean
from torchmdnet_ext.datasets.labelled import Label, LabelledStore, write_labelled

ENTRIES = 130_831
DRAW = 2  # seed of a part of QM9, another than that of the encoders' conformers

_FREE_ATOMS = 7, 8, 9, 10  # targets for which PyTorch Geometric has the energies of free atoms, and no other
_OF_ATOM = (1, 6, 7, 8, 9)  # the elements, in its order


@dataclass(frozen=True)
class Target:
    """One of QM9's targets.

    Attributes
    ----------
    name : str
        As in TorchMD-Net.
    symbol : str
        As in tables.
    column : str
        Of qm9pack.
    unit : str
        In which networks are trained and which the store has.
    shown, factor : str, float
        Unit of tables, and from the other to that.
    head, reduce : str
        TorchMD-Net's `output_model` and `reduce_op`: a sum over atoms for what grows with the molecule, else a mean.
    references : bool
        Whether atomic references are subtracted: for a property that is mostly a sum over atoms.
    """

    name: str
    symbol: str
    column: str
    unit: str = "eV"
    shown: str = "meV"
    factor: float = 1000.0
    head: str = "Scalar"
    reduce: str = "add"
    references: bool = True


# in the order of PyTorch Geometric, which that of the free atoms' energies follows
TARGETS = {
    target.name: target
    for target in (
        Target("dipole_moment", "mu", "Dipole_debye", "D", "mD", head="DipoleMoment", references=False),
        Target("isotropic_polarizability", "alpha", "Polarizability_bohr3", "a0^3", "a0^3", 1.0),
        Target("homo", "HOMO", "HOMO_au", reduce="mean", references=False),
        Target("lumo", "LUMO", "LUMO_au", reduce="mean", references=False),
        Target("gap", "gap", "HOMO_LUMO_gap_au", reduce="mean", references=False),
        Target(
            "electronic_spatial_extent", "R2", "R2_bohr2", "a0^2", "a0^2", 1.0, "ElectronicSpatialExtent", references=False
        ),
        Target("zpve", "ZPVE", "ZPVE_au"),
        Target("energy_U0", "U0", "InternalEnergy_0K_au"),
        Target("energy_U", "U", "InternalEnergy_298K_au"),
        Target("enthalpy_H", "H", "Enthalphy_298K_au"),
        Target("free_energy", "G", "GibbsFreeEnergy_298K_au"),
        Target("heat_capacity", "Cv", "Heatcapacity_Cv_cal_mol_K", "cal/mol/K", "cal/mol/K", 1.0),
    )
}


def find_target(name: str) -> Target:
    """A target by its name or its symbol. Raises GeomGNNError if there is none."""
    known = {**{target.symbol: target for target in TARGETS.values()}, **TARGETS}
    if name not in known:
        raise GeomGNNError(f"QM9 has no target '{name}', but {', '.join(TARGETS)}.{did_you_mean(name, known)}")
    return known[name]


def make_store(
    path: Path,
    number: int | None = None,
    seed: int = DRAW,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> None:
    """Write entries of QM9 with all targets to a store; groups are `molecule` and `scaffold`, `index` that of QM9.

    Parameters
    ----------
    number : int, optional
        Entries to draw at random, by default all.
    seed : int
        Of that draw. With the seed of an encoder's conformers all might be entries that pre-training has seen.

    progress : callable
        Called as progress(entries done, all).

    Raises
    ------
    GeomGNNError
        If qm9pack or RDKit is missing.
    """
    source = qm9.QM9()
    base.require(source, "qm9pack", "rdkit")
    files = source.files()
    rows = base.draw(ENTRIES, number, seed)
    zs, positions, values, entries = [], [], [], []
    groups: dict[str, list[str]] = {"molecule": [], "scaffold": []}
    for done, (row, entry) in enumerate(records(files, rows)):
        z, pos = qm9.parse(entry["Elements"], entry["XYZ_Ang"])
        zs.append(z)
        positions.append(pos)
        values.append([float(entry[target.column].replace("*^", "e")) for target in TARGETS.values()])
        entries.append((row, int(entry["Index"])))
        for name, key in zip(groups, molecule_and_scaffold(entry["SMILES"]), strict=True):
            groups[name].append(key)
        progress(done + 1, len(rows))
    if len(entries) != len(rows):
        raise GeomGNNError(
            f"qm9pack has fewer than {ENTRIES} entries: pip install --force-reinstall --no-deps qm9pack==1.0.3."
        )
    arrays = {
        "z": np.concatenate(zs).astype(np.uint8),
        "pos": np.concatenate(positions).astype(np.float32),
        "ptr": np.cumsum([0, *map(len, zs)], dtype=np.int64),
        "labels": np.array(values) * _factors(),
        "index": np.array([index for _, index in entries]),
    }
    numbered = {name: _numbers(keys) for name, keys in groups.items()}
    numbered["row"] = np.array([row for row, _ in entries], dtype=np.int32)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_labelled(path, LabelledStore(_labels(), arrays, numbered, "QM9 from qm9pack; scaffolds by RDKit"))


def records(files: Sequence[str], rows: np.ndarray) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield (row, record) of the rows, numbers in ascending order over all files."""
    first, wanted = 0, iter(rows.tolist())
    row = next(wanted, None)
    for file in files:
        with open(file, newline="", encoding="utf-8") as text:
            columns = next(csv.reader(text))
            for number, line in enumerate(text, first):
                first = number + 1
                if number == row:
                    yield row, dict(zip(columns, next(csv.reader([line])), strict=True))
                    row = next(wanted, None)


def molecule_and_scaffold(smiles: str) -> tuple[str, str]:
    """Canonical SMILES of a molecule without its stereochemistry, and of its Bemis-Murcko scaffold, "" without rings.

    What RDKit cannot read is a molecule and a scaffold of its own.
    """
    from rdkit import Chem, rdBase
    from rdkit.Chem.Scaffolds import MurckoScaffold

    with rdBase.BlockLogs():
        molecule = Chem.MolFromSmiles(smiles)
        if molecule is None:
            return smiles, smiles
        Chem.RemoveStereochemistry(molecule)
        return Chem.MolToSmiles(molecule), Chem.MolToSmiles(MurckoScaffold.GetScaffoldForMol(molecule))


def _numbers(keys: Sequence[str]) -> np.ndarray:
    """Number groups in the order in which they come first, which depends on no spelling of their keys."""
    known: dict[str, int] = {}
    return np.array([known.setdefault(key, len(known)) for key in keys], dtype=np.int32)


def _factors() -> np.ndarray:
    """From the units of qm9pack to those of the store."""
    from torch_geometric.datasets.qm9 import HAR2EV

    return np.array([HAR2EV if target.column.endswith("_au") else 1.0 for target in TARGETS.values()])


def _labels() -> tuple[Label, ...]:
    from torch_geometric.datasets.qm9 import atomrefs

    def references(number: int) -> dict[int, float] | None:
        return dict(zip(_OF_ATOM, atomrefs[number], strict=True)) if number in _FREE_ATOMS else None

    return tuple(Label(target.name, target.unit, references(i)) for i, target in enumerate(TARGETS.values()))
