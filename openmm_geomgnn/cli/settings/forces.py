"""Settings of `geomgnn forces`: labelled frames of a distorted molecule, and the networks that learn from them."""

import os
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, ValidationInfo, model_validator

from openmm_geomgnn.cli.settings.fields import (
    EncoderNames,
    Kelvin,
    Number,
    PerPicosecond,
    Picoseconds,
    Section,
    SettingError,
    Whole,
    alone,
    find_file,
)
from openmm_geomgnn.cli.settings.trainings import Counts, Trainings, check_distinct, check_training
from openmm_geomgnn.errors import GeomGNNError

WayName = Literal["scratch", "fine-tuned", "frozen", "frozen-random"]
SplitName = Literal["temporal", "hotter", "given"]
STRUCTURES = (".xyz", ".extxyz", ".sdf", ".mol", ".pdb")
FRAMES = (".xyz", ".extxyz")
_WHOLE = 1e-6  # steps by which a whole number of them may be missed, as floats are rounded


def _folder(info: ValidationInfo) -> Any:
    return (info.context or {}).get("folder", ".")


def _molecule(value: Any, info: ValidationInfo) -> Any:
    """A SMILES as it is, a file with its absolute path."""
    is_file = isinstance(value, str) and value.lower().endswith(STRUCTURES)
    return str(find_file(value, _folder(info), "molecule", STRUCTURES)) if is_file else value


def _frames(value: Any, info: ValidationInfo) -> Any:
    """Files by the name of their set, in their order; of a folder those for train, val and test."""
    if isinstance(value, dict):
        return {str(name): find_file(file, _folder(info), "file of frames", FRAMES) for name, file in value.items()}
    if value is None:
        return None
    from torchmdnet_ext.datasets.extended_xyz import files_of_sets

    folder = Path(os.path.abspath(Path(_folder(info)) / os.path.expanduser(str(value))))
    if folder.is_dir():
        try:
            return files_of_sets(folder)
        except ValueError as error:
            raise GeomGNNError(str(error)) from error
    file = find_file(str(value), _folder(info), "file or folder of frames", FRAMES)
    return {file.stem: file}


class LabelsSection(Section):
    """Trajectories that the study itself makes: Langevin dynamics with energies and forces of GFN2-xTB."""

    temperatures: Annotated[tuple[Kelvin, ...], BeforeValidator(alone)] = Field(
        (300.0, 600.0, 900.0), min_length=1, description="a trajectory at each of these, K; the first is the coldest"
    )
    frames: Whole = Field(1000, ge=10, description="frames of each trajectory")
    interval: Picoseconds = Field(0.01, gt=0, description="time between frames, ps")
    timestep: Picoseconds = Field(0.0005, gt=0, le=0.002, description="time step, ps")
    equilibration: Picoseconds = Field(
        1.0, ge=0, description="time before the first frame, ps; each trajectory starts from the relaxed molecule at rest"
    )
    friction: PerPicosecond = Field(10.0, gt=0, description="friction of the thermostat, 1/ps")
    charge: Whole = Field(0, description="total charge of the molecule")
    multiplicity: Whole = Field(1, ge=1, description="number of unpaired electrons plus one")
    seed: Whole = Field(1, ge=0, description="of the random numbers of the thermostat")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        check_distinct(self.temperatures, "temperatures")
        if list(self.temperatures) != sorted(self.temperatures):
            raise SettingError("temperatures must rise, as the split `hotter` trains on the first one.", "temperatures")
        steps = self.interval / self.timestep
        if round(steps) < 1 or abs(steps - round(steps)) > _WHOLE:
            raise SettingError(
                f"interval is {self.interval:g} ps, but it must be a multiple of the timestep of {self.timestep:g} ps.",
                "interval",
            )
        return self


class HeldOutSharesSection(Section):
    """What is held out of each trajectory: after the frames to train on come those for validation, then those for test."""

    val: Number = Field(0.1, gt=0, lt=1, description="share of the frames for validation, by which the best epoch is chosen")
    test: Number = Field(0.3, gt=0, lt=1, description="share of the frames for the errors in the table, the last ones")

    @model_validator(mode="after")
    def _leaves_some(self) -> Self:
        if self.val + self.test >= 1:
            raise SettingError(f"val and test are {self.val + self.test:g} together, and leave nothing to train on.", "test")
        return self


class Forces(Trainings):
    """Energies and forces of a distorted molecule, learned from scratch and from pre-trained encoders."""

    molecule: Annotated[str | None, BeforeValidator(_molecule)] = Field(
        None,
        description="the molecule that is labelled: a SMILES, of whose conformers the lowest is taken, or a file with a "
        "structure; both are relaxed first",
    )
    labels: LabelsSection = Field(
        default_factory=lambda: LabelsSection.model_validate({}), description="how the trajectories of `molecule` are made"
    )
    frames: Annotated[dict[str, Path] | None, BeforeValidator(_frames)] = Field(
        None,
        description="instead of `molecule`, frames with labels in extended XYZ: files by the names of their sets, from the "
        "coldest to the hottest, in each of which frames are in the order of time; one file; or a folder, as those of xxMD, "
        "with a file each for train, val and test, which then are the split `given`",
    )
    unit: Literal["eV", "kcal/mol", "kJ/mol", "Hartree"] = Field(
        "eV", description="of the energies in `frames`; forces are in that per angstrom"
    )
    energy: str = Field("energy", min_length=1, description="how the files of `frames` call the energy")
    forces: str = Field("forces", min_length=1, description="how they call the forces")
    encoders: EncoderNames = Field(
        ("et-64",), min_length=1, description="shipped encoders, or files; networks from scratch have the same settings"
    )
    ways: Annotated[tuple[WayName, ...], BeforeValidator(alone)] = Field(
        ("scratch", "fine-tuned"),
        min_length=1,
        description="how networks come to their weights: at random, from the encoder, from the encoder or at random with "
        "only the head trained",
    )
    splits: Annotated[tuple[SplitName, ...] | None, BeforeValidator(lambda value: value and alone(value))] = Field(
        None,
        min_length=1,
        description="what is trained on: the first frames of all sets (temporal), or of the first set only (hotter); tested "
        "are the last frames of all sets. given: the files of a folder. null is all that the data have",
    )
    held_out: HeldOutSharesSection = Field(
        default_factory=lambda: HeldOutSharesSection.model_validate({}), description="what is held out"
    )
    sizes: Counts = Field(
        (300,), min_length=1, description="numbers of frames to train on, drawn with the seed of a network"
    )
    epochs: Whole = Field(300, ge=1, description="epochs of each network, unless it stops early")
    most_seen: Whole | None = Field(
        None, ge=1, description="frames that a network sees over all epochs, at most: larger training sets get fewer epochs"
    )
    training: dict[str, Any] = Field({}, description="settings of `torchmd-train` that all networks have")
    training_of: dict[WayName, dict[str, Any]] = Field(
        {}, description="ways, and settings of `torchmd-train` that replace those"
    )

    @model_validator(mode="after")
    def _fits(self) -> Self:
        from openmm_geomgnn.studies.forces.plan import OWN

        if (self.molecule is None) == (self.frames is None):
            raise SettingError("Give either molecule, which is labelled, or frames, which are.", "molecule")
        for name in ("seeds", "encoders", "ways", "sizes"):
            check_distinct(getattr(self, name), name)
        check_distinct(self.splits or (), "splits")
        wrong = next((split for split in self.splits or () if split not in self.possible_splits()), None)
        if wrong:
            raise SettingError(
                f"The split {wrong} does not fit these data, but {', '.join(self.possible_splits())}: hotter takes two sets "
                "or more, given a folder with files for train, val and test.",
                "splits",
            )
        check_training(self.training, OWN, "training")
        for way, settings in self.training_of.items():
            check_training(settings, OWN, "training_of", way)
        return self

    def possible_splits(self) -> tuple[str, ...]:
        """Those that the data have."""
        if self.frames is not None and list(self.frames) == ["train", "val", "test"]:
            return ("given",)
        return ("temporal", "hotter") if len(self.frames or self.labels.temperatures) > 1 else ("temporal",)
