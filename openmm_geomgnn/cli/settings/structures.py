"""Settings of `geomgnn structures`: structures with a class, and the networks that are trained to tell it."""

import os
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, ValidationInfo, model_validator

from openmm_geomgnn.cli.settings.fields import (
    OUR_MIXERS,
    Number,
    Section,
    SettingError,
    Whole,
    alone,
)
from openmm_geomgnn.cli.settings.sections import TokenSection
from openmm_geomgnn.cli.settings.trainings import Trainings, check_distinct, check_training
from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.plugins import plugin_names
from openmm_geomgnn.units import did_you_mean

GRAPHS = ("graph", "gvp")
# what the study itself sets for every training
_OWN = (
    *("log_dir", "load_model", "load_weights", "splits", "seed", "dataset", "dataset_root", "dataset_arg"),
    *("model", "network", "network_arg", "derivative", "train_loss"),
    *("checkpoint_monitor", "early_stopping_monitor", "save_interval", "test_interval"),
)


def _directory(value: Any, info: ValidationInfo) -> Path:
    path = Path(os.path.abspath(Path((info.context or {}).get("folder", ".")) / os.path.expanduser(str(value))))
    if not path.is_dir():
        raise GeomGNNError(f"There is no folder {path}: {info.field_name} must be one with structures.")
    return path


def _network(value: Any) -> Any:
    known = [*GRAPHS, *(name for name in (*OUR_MIXERS, *plugin_names("mixer")) if name != "none")]
    if value not in known:
        raise GeomGNNError(f"{value!r} is no network on residues.{did_you_mean(value, known)} Known: {', '.join(known)}.")
    return value


Directory = Annotated[Path, BeforeValidator(_directory)]
NetworkName = Annotated[str, BeforeValidator(_network)]


class BuiltSection(Section):
    """Peptides of random sequence that are built in each class, with noise on all torsions; parts are split by sequence."""

    label: Literal["backbone", "rotamer"] = Field(
        "backbone",
        description="what the class says: the region of phi and psi (alpha, 3-10, beta, polyproline), with random side "
        "chains; or chi1 (g-, trans, g+), with a random region",
    )
    sequences: Whole = Field(100, ge=10, description="number of sequences, each of which is built once in every class")
    length: Whole = Field(8, ge=3, le=100, description="residues of a peptide")
    noise: Number = Field(25.0, ge=0, le=180, description="standard deviation of each torsion about its class, degrees")


class Structures(Trainings):
    """A study of classes of structures: networks on residues with residue tokens as features and without."""

    seed: Whole = Field(1, ge=0, lt=2**31, description="seed of built peptides, and of parts that a folder does not give")
    built: BuiltSection | None = Field(None, description="peptides that are built in a known way; null is none")
    folder: Directory | None = Field(
        None,
        description="folder with PDB and mmCIF files and `labels.csv`, whose columns are file, label and, optionally, part "
        "(train, val, test or test_NAME)",
    )
    scope: Directory | None = Field(
        None,
        description="folder of the SCOPe 1.75 folds as ProNet (HomologyTAPE) or GearNet (fold3d) publish them",
    )
    tokens: TokenSection = Field(default_factory=TokenSection, description="from atoms to residue tokens")
    networks: Annotated[tuple[NetworkName, ...], BeforeValidator(alone)] = Field(
        ("graph", "gvp", "message-passing"),
        min_length=1,
        description="graph (a plain network on C-alpha atoms), gvp (geometric vector perceptrons), or names of mixers",
    )
    network_settings: dict[NetworkName, dict[str, bool | int | float | str]] = Field(
        {}, description="settings of networks, by the name of the network, such as {gvp: {width: 32}}"
    )
    seeds: Annotated[tuple[Annotated[Whole, Field(ge=0)], ...], BeforeValidator(alone)] = Field(
        (1, 2, 3), min_length=1, description="seeds of trainings; tokens of random weights are those of as many networks"
    )
    training: dict[str, Any] = Field({}, description="settings of `torchmd-train` for all networks")

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        given = [name for name in ("built", "folder", "scope") if getattr(self, name) is not None]
        if len(given) != 1:
            said = " and ".join(given) or "none of built, folder and scope"
            raise SettingError(f"The structures come from one place, but {said} is given. Give one.")
        if self.tokens.reference is not None:
            raise SettingError("windows by space are made from each structure itself. Remove reference.", "tokens")
        check_training(self.training, _OWN, "training")
        for name in ("networks", "seeds"):
            check_distinct(getattr(self, name), name)
        return self
