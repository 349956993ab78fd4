"""Settings of what the report of a run shows: torsions, and the states between which crossings are counted."""

import math
import re
from typing import Any, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from openmm_geomgnn.analysis.intervals import TURN, overlap, width
from openmm_geomgnn.cli.settings.fields import Number, Section, SettingError, plain_number
from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.units import did_you_mean, quantity

NAMED_TORSIONS = ("phi", "psi", "omega", "chi1", "chi2", "chi3", "chi4", "chi5")  # mdtraj finds these
COLVAR_NAMES = ("time", "walker", "temperature")


class CoresSection(Section):
    """Two intervals; arriving in one from the other is a crossing.

    The free-energy difference, F(B) - F(A), is between what is on either side of the points between them where the free
    energy is highest: one along a CV, two around a torsion.
    """

    along: str = Field("cv.1", description="the variable: the name of a torsion, or cv.1, cv.2, ...")
    a: tuple[Number, Number] = Field(
        description="core A, [low, high]; torsions in radians, or with a unit: [-160 deg, -29 deg]; [150 deg, -150 deg] "
        "goes across 180 deg"
    )
    b: tuple[Number, Number] = Field(description="core B, like a; the two may not overlap")

    @field_validator("a", "b", mode="before")
    @classmethod
    def _angles(cls, value: Any, info: ValidationInfo) -> Any:
        if not isinstance(value, (list, tuple)) or len(value) != 2:
            raise GeomGNNError(f"{info.field_name} is {value!r}, but it must be an interval [low, high].")
        name = f"the core {info.field_name}"
        if _is_component(info.data.get("along", "")):
            low, high = (plain_number(bound, name) for bound in value)
            if not low < high:
                raise GeomGNNError(f"The core {info.field_name} is {list(value)}, but the lower number must come first.")
            return low, high
        low, high = (quantity(bound, "rad", name) for bound in value)
        if max(abs(low), abs(high)) > math.pi * (1 + 1e-9):
            raise GeomGNNError(
                f"The core {info.field_name} is {list(value)}, but torsions lie between -3.1416 and 3.1416 rad. Numbers "
                "without a unit are radians: write degrees as '90 deg', and an interval across 180 degrees as "
                "[150 deg, -150 deg]."
            )
        if not width((low, high), TURN) > 1e-6:
            raise GeomGNNError(f"The core {info.field_name} is {list(value)}: its two ends are one point of the circle.")
        return low, high

    @model_validator(mode="after")
    def _apart(self) -> Self:
        on_circle = not _is_component(self.along)
        if overlap(self.a, self.b, TURN if on_circle else None):
            turned = [name for name in "ab" if on_circle and getattr(self, name)[0] > getattr(self, name)[1]]
            across = f" (Core {turned[0]} goes upwards from its first number, across 180 degrees.)" if turned else ""
            raise SettingError(
                f"The cores a {list(self.a)} and b {list(self.b)} overlap. Leave a gap between them, at the barrier."
                + across,
                "b",
            )
        return self


def _is_component(along: str) -> bool:
    """Whether a variable is a component of the CV, not a torsion."""
    return re.fullmatch(r"cv\.\d+", along) is not None


class AnalysisSection(Section):
    """The content of the report."""

    torsions: dict[str, str | tuple[int, int, int, int] | tuple[str, str, str, str]] = Field(
        default_factory=dict,
        description="torsions by name, whose free energy is reported: auto is the molecule's first phi, psi, omega or chi1 "
        "to chi5; otherwise four atoms, by their indices from 0 or as ALA2-CA",
    )
    cores: CoresSection | None = Field(
        None,
        description="cores between which crossings are counted; null: for alanine dipeptide its basins where phi and "
        "psi are given, else the states that are found in all torsions of the molecule",
    )
    discard: Number = Field(
        0.2, ge=0, lt=1, description="share of the biased run, from its start, that free energies leave out"
    )

    @field_validator("torsions", mode="before")
    @classmethod
    def _four_atoms_or_auto(cls, value: Any) -> Any:
        return {name: _torsion(name, atoms) for name, atoms in value.items()} if isinstance(value, dict) else value

    @model_validator(mode="after")
    def _variable_exists(self) -> Self:
        along = self.cores.along if self.cores else "cv.1"
        if along not in self.torsions and not _is_component(along):
            raise SettingError(
                f"cores are along '{along}', but there is no such torsion: name it under torsions, or use cv.1."
                + did_you_mean(along, self.torsions),
                *("cores", "along"),
            )
        return self


def _torsion(name: str, atoms: Any) -> Any:
    if not re.fullmatch(r"[A-Za-z]\w*", str(name)) or name in COLVAR_NAMES:
        raise SettingError(f"'{name}' cannot name a torsion: use letters and digits, not {' or '.join(COLVAR_NAMES)}.")
    if isinstance(atoms, str) and atoms.lower() == "auto":
        if name in NAMED_TORSIONS:
            return "auto"
        message = f"The torsion {name} is auto, but only {', '.join(NAMED_TORSIONS)} are found so: give four atoms."
        raise SettingError(message, name)
    indices = isinstance(atoms, (list, tuple)) and all(type(atom) is int and atom >= 0 for atom in atoms)
    names = isinstance(atoms, (list, tuple)) and all(isinstance(a, str) and re.fullmatch(r"\w+-\S+", a) for a in atoms)
    if not (indices or names) or len(set(atoms)) != 4 or len(atoms) != 4:
        raise SettingError(
            f"The torsion {name} is {atoms!r}: give auto, or four different atoms, as indices from 0 ([4, 6, 8, 14]) "
            "or as residue, number and atom ([ACE1-C, ALA2-N, ALA2-CA, ALA2-C]).",
            name,
        )
    return tuple(atoms)
