"""How much a label depends on the level of theory: the same molecules computed with many functionals and basis sets.

After Fig. 6 of arXiv 2410.21683, which does this for the gaps of methane, ammonia and water.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, fields
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from openmm_geomgnn.files import atomic_write
from openmm_geomgnn.jobs import run_jobs
from openmm_geomgnn.studies.label_molecules import LabelledMolecule
from openmm_geomgnn.studies.quantum import OrbitalEnergies, SCFSettings, compute_orbitals, require_pyscf

FORMAT, VERSION = "openmm-geomgnn labels", 1


@dataclass(frozen=True)
class LabelRow:
    """One calculation: the name of the molecule, the level of theory, and what came out."""

    molecule: str
    functional: str
    basis: str
    result: OrbitalEnergies

    @property
    def key(self) -> tuple[str, str, str]:
        """Which calculation this is."""
        return self.molecule, self.functional, self.basis

    def as_dict(self) -> dict[str, Any]:
        """The row as JSON holds it."""
        return {"molecule": self.molecule, "functional": self.functional, "basis": self.basis, **asdict(self.result)}

    @classmethod
    def from_dict(cls, entry: dict[str, Any]) -> "LabelRow":
        """The row that `as_dict` gave. Raises KeyError or TypeError for anything else."""
        names = [one.name for one in fields(OrbitalEnergies)]
        return cls(
            entry["molecule"], entry["functional"], entry["basis"], OrbitalEnergies(**{name: entry[name] for name in names})
        )


@dataclass(frozen=True)
class LabelGrid:
    """All combinations of molecules, functionals and bases, and how each is computed."""

    molecules: tuple[LabelledMolecule, ...]
    functionals: tuple[str, ...]
    bases: tuple[str, ...]
    scf: SCFSettings = field(default_factory=SCFSettings)

    def keys(self) -> list[tuple[str, str, str]]:
        """(molecule, functional, basis) of every calculation, in the order of the rows."""
        names = [molecule.name for molecule in self.molecules]
        return [(name, functional, basis) for name, basis, functional in product(names, self.bases, self.functionals)]

    def made_from(self) -> dict[str, Any]:
        """What rows depend on beside their keys, as JSON holds it."""
        require_pyscf()
        from importlib.metadata import version

        return {
            "pyscf": version("pyscf"),
            "scf": asdict(self.scf),
            "molecules": {one.name: {"z": list(one.z), "pos": [list(place) for place in one.pos]} for one in self.molecules},
        }


def compute_labels(
    grid: LabelGrid,
    processes: int = 1,
    progress: Callable[..., None] = lambda done, total, note="": None,
    known: Iterable[LabelRow] = (),
    keep: Callable[[list[LabelRow]], None] = lambda rows: None,
) -> list[LabelRow]:
    """Do the calculations of a grid that are not known yet, side by side.

    Parameters
    ----------
    grid : LabelGrid
    processes : int
        How many work side by side. Rows do not depend on it.
    progress : callable
        Called with the number of finished calculations, that of all, and a note.
    known : iterable of LabelRow
        Rows of earlier calls.
    keep : callable
        Called with all rows so far, in order, whenever a calculation is finished.

    Returns
    -------
    list of LabelRow
        In the order of `grid.keys`. A calculation that failed is a row with a problem.

    Raises
    ------
    GeomGNNError
        If PySCF is not installed, or a process dies.
    """
    keys = grid.keys()
    done = {row.key: row for row in known if row.key in set(keys)}
    by_name = {molecule.name: molecule for molecule in grid.molecules}
    jobs = [(by_name[key[0]], key[1], key[2], grid.scf) for key in keys if key not in done]

    def so_far() -> list[LabelRow]:
        return [done[key] for key in keys if key in done]

    progress(len(done), len(keys))
    with closing(run_jobs(_compute, jobs, min(processes, max(len(jobs), 1)), _describe)) as results:
        for (molecule, functional, basis, _), result in results:
            done[molecule.name, functional, basis] = LabelRow(molecule.name, functional, basis, result)
            keep(so_far())
            progress(len(done), len(keys), f"{molecule.name} {functional}/{basis}")
    return so_far()


def _compute(molecule: LabelledMolecule, functional: str, basis: str, scf: SCFSettings) -> OrbitalEnergies:
    return compute_orbitals(molecule.z, np.array(molecule.pos), functional, basis, scf)


def _describe(job: tuple) -> str:
    molecule, functional, basis, _ = job
    return f"The calculation {functional}/{basis} of {molecule.name}"


# ------------------------------------------------------------------------------------------------------------- the file


def load_label_rows(path: Path, made_from: dict[str, Any]) -> list[LabelRow]:
    """The rows in a file that were computed in the same way, of molecules that are the same; none if it is damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if (content["format"], content["version"]) != (FORMAT, VERSION):
            return []
        before = content["made_from"]
        if any(before[name] != made_from[name] for name in ("pyscf", "scf")):
            return []
        same = {name for name, one in made_from["molecules"].items() if before["molecules"].get(name) == one}
        return [LabelRow.from_dict(entry) for entry in content["rows"] if entry["molecule"] in same]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []


def save_label_rows(
    path: Path, made_from: dict[str, Any], rows: Sequence[LabelRow], summary: dict[str, Any] | None = None
) -> None:
    """Write the file of rows; summary: what they say together, once all are there."""
    content = {"format": FORMAT, "version": VERSION, "made_from": made_from, "summary": summary}
    content["rows"] = [row.as_dict() for row in rows]
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
