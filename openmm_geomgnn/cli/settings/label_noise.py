"""Settings of `geomgnn label-noise`: molecules, and the levels of theory at which their labels are computed."""

from collections import Counter
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, ValidationInfo, model_validator

from openmm_geomgnn.cli.settings.fields import (
    RESULTS,
    Number,
    OutputFolder,
    Section,
    SettingError,
    Whole,
    find_file,
)
from openmm_geomgnn.errors import GeomGNNError

XYZ_FILES = (".xyz", ".extxyz")


def _alone(value: Any) -> Any:
    return value if isinstance(value, (list, tuple)) else [value]


def _molecules(value: Any, info: ValidationInfo) -> Any:
    """Numbers and SMILES as they are, files with their absolute paths."""
    folder = (info.context or {}).get("folder", ".")
    found: list[Any] = []
    for i, one in enumerate(_alone(value)):
        if isinstance(one, bool) or not isinstance(one, (int, str)) or not str(one).strip():
            raise SettingError(
                f"Molecule {i + 1} is {one!r}, but it must be an index of QM9 such as 3, a SMILES, or an .xyz file.", i
            )
        is_file = isinstance(one, str) and one.lower().endswith(XYZ_FILES)
        found.append(str(find_file(str(one), folder, "molecule", XYZ_FILES)) if is_file else one)
    return found


def _errors(value: Any) -> Any:
    """One error, or several by the names of their models."""
    return {"model": value} if isinstance(value, (int, float, str)) and not isinstance(value, bool) else value


if TYPE_CHECKING:
    Molecules = tuple[int | str, ...]
    Texts = tuple[str, ...]
else:
    Molecules = Annotated[tuple[int | str, ...], BeforeValidator(_molecules)]
    Texts = Annotated[tuple[str, ...], BeforeValidator(_alone)]


class LabelNoise(Section):
    """A study of labels: the same molecules, computed by PySCF with all combinations of functionals and bases."""

    output: OutputFolder = RESULTS
    molecules: Molecules = Field(
        min_length=1,
        description="indices or SMILES of QM9 (as it writes them), which have a published label, or `.xyz` files; neutral, "
        "all electrons paired",
    )
    functionals: Texts = Field(
        min_length=1, description="functionals as PySCF names them, such as `pbe` or `camb3lyp`; `hf` is Hartree-Fock"
    )
    bases: Texts = Field(
        min_length=1,
        description="basis sets as PySCF names them; `6-31G(2df,p)-gaussian` is that of QM9's labels, whose d functions are "
        "those of 6-31G and Cartesian",
    )
    properties: Annotated[tuple[Literal["gap", "homo", "lumo", "dipole"], ...], BeforeValidator(_alone)] = Field(
        ("gap",),
        min_length=1,
        description="what is tabulated and drawn: gap, homo and lumo in eV, dipole in debye; all are kept in the file",
    )
    model_mae: Annotated[dict[str, Annotated[Number, Field(gt=0)]], BeforeValidator(_errors)] = Field(
        default_factory=dict,
        description="mean absolute errors of models on the gap, eV, to compare with: a number, or several by name",
    )
    max_cycles: Whole = Field(100, ge=1, description="iterations after which a calculation counts as failed")
    grid_level: Whole = Field(3, ge=0, le=9, description="PySCF's level of the grid for functionals; 9 is the finest")
    processes: Whole | None = Field(None, ge=1, description="calculations that run side by side; null is one for each core")

    @model_validator(mode="after")
    def _can_be_computed(self) -> Self:
        """Refuse names that PySCF or QM9 do not have, before anything runs."""
        from openmm_geomgnn.studies.label_molecules import read_molecules
        from openmm_geomgnn.studies.quantum import check_basis, check_functional

        for key in ("functionals", "bases", "properties"):
            twice = [name for name, count in Counter(getattr(self, key)).items() if count > 1]
            if twice:
                raise SettingError(f"{key} has {twice[0]} twice: name each once.", key)
        for i, name in enumerate(self.functionals):
            _located(lambda name=name: check_functional(name), "functionals", i)
        molecules = _located(lambda: read_molecules(self.molecules), "molecules")
        elements = {z for molecule in molecules for z in molecule.z}
        for i, name in enumerate(self.bases):
            _located(lambda name=name: check_basis(name, elements), "bases", i)
        return self


def _located(check: Any, *location: str | int) -> Any:
    """What `check()` returns; its GeomGNNError says in which line."""
    try:
        return check()
    except GeomGNNError as error:
        raise SettingError(str(error), *location) from error
