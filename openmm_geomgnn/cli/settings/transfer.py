"""Settings of `geomgnn transfer`: molecules, and the CVs that are carried from some of them to another."""

from collections.abc import Iterable
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from openmm_geomgnn.cli.settings.fields import (
    RESULTS,
    EncoderNames,
    Kelvin,
    MixerName,
    OutputFolder,
    Picoseconds,
    Section,
    SettingError,
    Topology,
    Trajectories,
    Whole,
    alone,
)
from openmm_geomgnn.cli.settings.sections import TokenSection, TrainingSection
from openmm_geomgnn.processes import cores

Counts = Annotated[tuple[Annotated[Whole, Field(ge=1)], ...], BeforeValidator(alone)]
_ARGUMENTS = {"epochs", "batch_size", "weight_decay", "patience", "validation_fraction"}  # of TrainingSection, as they are


class PeptidesSection(Section):
    """Capped peptides that the study itself simulates: amber14 with OBC2 implicit solvent, hydrogens of 3 amu."""

    sequences: Annotated[tuple[str, ...], BeforeValidator(alone)] = Field(
        min_length=1, description="one-letter codes between the caps ACE and NME, such as [A, V, AS]; all residues are L"
    )
    length: Picoseconds = Field(5000.0, gt=0, description="length of each run, ps")
    runs: Whole = Field(1, ge=1, description="runs of each peptide")
    temperature: Kelvin = Field(
        500.0, gt=0, description="K; at 300 K phi of most peptides does not turn within nanoseconds, at 500 K it does"
    )
    timestep: Picoseconds = Field(0.004, gt=0, le=0.005, description="time step, ps")
    frame_interval: Picoseconds = Field(1.0, gt=0, description="time between frames, ps")
    equilibration: Picoseconds = Field(20.0, ge=0, description="time that is left out before each run, ps")

    @field_validator("sequences")
    @classmethod
    def _of_amino_acids(cls, sequences: tuple[str, ...]) -> tuple[str, ...]:
        from openmm_geomgnn.studies.transfer.peptides import check_peptides

        check_peptides(sequences)
        return sequences


class MoleculeSection(Section):
    """A molecule with trajectories that exist."""

    name: str = Field(min_length=1, description="name of the molecule in tables")
    topology: Topology = Field(description="structure file of the molecule, with the atoms of the trajectories")
    trajectories: Trajectories = Field(min_length=1, description="files that mdtraj reads, or glob patterns")
    frame_interval: Picoseconds | None = Field(
        None, gt=0, description="time between frames in the files, ps; null reads it from them (XTC, TRR and H5 hold it)"
    )


class SharedCVSection(TokenSection):
    """From atoms to slow functions, in the same way for all molecules."""

    lag: Picoseconds = Field(2.0, gt=0, description="lag time, ps; a multiple of the time between frames")
    components: Counts = Field((1, 3), min_length=1, description="numbers of slow functions that are scored")
    mixer: Annotated[tuple[MixerName, ...], BeforeValidator(alone)] = Field(
        ("mlp",), min_length=1, description="networks from residue tokens to functions; they must have weights"
    )
    mixer_settings: dict[str, bool | int | float | str | list] = Field(
        {"pool": "sum"}, description="settings of the mixers, by name; pool: flatten is for one molecule only"
    )
    pca: Annotated[tuple[Annotated[Whole, Field(ge=1)] | None, ...], BeforeValidator(alone)] = Field(
        (10, 50, None),
        min_length=1,
        description="principal components of linear CVs, of which the best is chosen within what a CV is fitted to; null is "
        "all",
    )
    reversible: bool = Field(True, description="estimate reversible dynamics (TICA, SRV) instead of VAMP")
    training: TrainingSection = Field(default_factory=TrainingSection, description="how mixers are trained")

    def training_arguments(self) -> dict[str, Any]:
        """The arguments of `koopman.train_vampnet` that all trainings have."""
        arguments = self.training.model_dump(include=_ARGUMENTS)
        return {**arguments, "lr": self.training.learning_rate}

    @model_validator(mode="after")
    def _for_any_molecule(self) -> Self:
        from openmm_geomgnn.cv.mixers import make_mixer
        from openmm_geomgnn.errors import GeomGNNError

        if "none" in self.mixer:
            raise SettingError("mixer none has nothing to train; linear CVs are scored anyway. Leave it out.", "mixer")
        if "seed" in self.mixer_settings:
            raise SettingError("seed is one of compare.mixer_seeds. Remove it.", "mixer_settings", "seed")
        if self.window == "space":
            raise SettingError("window space is that of one molecule's structure. Use all or sequence.", "window")
        if self.training.gradient_penalty:
            raise SettingError("there is no gradient_penalty for several molecules. Remove it.", "training")
        for name in self.mixer:
            try:
                mixer = make_mixer(name, None, 4, **self.mixer_settings)
            except GeomGNNError as error:
                raise SettingError(str(error), "mixer_settings") from error
            if max(self.components) > mixer.out_features:
                raise SettingError(
                    f"components has {max(self.components)}, but mixer {name} has {mixer.out_features} outputs. Raise "
                    "mixer_settings.out_features.",
                    "components",
                )
        return self


class CompareSection(Section):
    """What is compared."""

    encoders: EncoderNames = Field(
        (), description="further encoders, compared with shared_cv.encoder: names of shipped ones, or files"
    )
    random_weights: Whole = Field(
        3,
        ge=0,
        le=100,
        description="networks with random weights and the settings of shared_cv.encoder, of seeds from seed on",
    )
    mixer_seeds: Counts = Field(
        (1, 2, 3), min_length=1, description="seeds of mixers on trained encoders; each network with random weights has one"
    )
    data: Annotated[tuple[Annotated[Picoseconds, Field(gt=0)] | None, ...], BeforeValidator(alone)] = Field(
        (None,),
        min_length=1,
        description="how much of the molecule that was left out a CV is fitted to, ps; null is all that is not held out",
    )
    shared_components: Whole = Field(
        2, ge=1, description="components of the CV file for any such molecule, which is trained on all of them"
    )
    folds: Whole = Field(4, ge=2, description="parts of each molecule's trajectories, each of which is held out once")
    workers: Whole | None = Field(None, ge=1, description="processes; null is one for each core")


class Transfer(Section):
    """A study of CVs that are trained on some molecules and used on another."""

    seed: Whole = Field(1, ge=0, lt=2**31, description="seed of runs and of random weights")
    output: OutputFolder = RESULTS
    peptides: PeptidesSection | None = Field(None, description="peptides that are simulated first; null is none")
    molecules: tuple[MoleculeSection, ...] = Field((), description="molecules with trajectories that exist")
    stride: Whole = Field(1, ge=1, description="use every stride-th frame")
    shared_cv: SharedCVSection = Field(default_factory=SharedCVSection, description="from atoms to slow functions")
    compare: CompareSection = Field(default_factory=CompareSection, description="what is compared")

    @model_validator(mode="after")
    def _several_molecules(self) -> Self:
        names = [one.name for one in self.molecules]
        names += [f"Ace-{one}-Nme" for one in (self.peptides.sequences if self.peptides else ())]
        twice = _twice(names)
        if twice is not None:
            raise SettingError(f"{twice} is there twice. Give each molecule once, with a name of its own.")
        if len(names) < 2:
            raise SettingError("Transfer takes two molecules or more: give them in peptides.sequences, or molecules.")
        return self

    @model_validator(mode="after")
    def _shared_components_are_trained(self) -> Self:
        if self.compare.shared_components > max(self.shared_cv.components):
            raise SettingError(
                f"shared_components is {self.compare.shared_components}, but the largest of shared_cv.components is "
                f"{max(self.shared_cv.components)}. Lower it.",
                "compare",
                "shared_components",
            )
        return self

    def processes(self) -> int:
        """Processes side by side."""
        return self.compare.workers or cores()


def _twice(values: Iterable[str]) -> str | None:
    values = list(values)
    return next((value for i, value in enumerate(values) if value in values[:i]), None)
