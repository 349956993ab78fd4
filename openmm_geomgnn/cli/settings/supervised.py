"""All settings of a study of supervised transfer (`geomgnn supervised`), with their defaults."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from openmm_geomgnn.cli.settings.fields import EncoderNames, Section, Whole, alone, find_file
from openmm_geomgnn.cli.settings.trainings import Counts, Trainings, check_distinct, check_training

WayName = Literal["scratch", "fine-tuned", "frozen", "frozen-random", "scratch-noisy", "fine-tuned-noisy"]
SplitName = Literal["random", "scaffold"]


def _store(value: Any) -> Path | None:
    return None if value is None else find_file(value, what="store of labelled molecules", endings=(".safetensors",))


class HeldOutSection(Section):
    """What is held out of each split; with the same seed it is the same for everybody."""

    val: Whole = Field(5000, ge=10, description="molecules for validation, by which the best epoch is chosen")
    test: Whole = Field(5000, ge=10, description="molecules for the errors in the table")
    seed: Whole = Field(1, ge=0, description="of the draw of what is held out")


class PretrainedOnSection(Section):
    """The entries of QM9 whose geometries the encoders were pre-trained on, as `geomgnn data build` drew them.

    None of them is held out. The defaults are those of the shipped encoders.
    """

    number: Whole = Field(60_000, ge=0, description="how many (`number` of the source); 0 for encoders that saw none")
    seed: Whole = Field(1, ge=0, description="`seed` of the build")


class Supervised(Trainings):
    """QM9's targets, learned from scratch and from pre-trained encoders."""

    store: Annotated[Path | None, BeforeValidator(_store)] = Field(
        None,
        description="store of labelled molecules, relative to where the command runs, of an earlier study; null makes "
        "`qm9.safetensors` in the output folder from the package qm9pack",
    )
    molecules: Whole | None = Field(None, ge=30, description="entries of QM9 in a new store, drawn at random; null is all")
    encoders: EncoderNames = Field(
        ("et-64",), min_length=1, description="shipped encoders, or files; networks from scratch have the same settings"
    )
    targets: dict[str, Counts] = Field(
        min_length=1,
        description="QM9's targets by their symbols (mu, alpha, HOMO, LUMO, gap, R2, ZPVE, U0, U, H, G, Cv) or the names of "
        "TorchMD-Net, and of each the numbers of molecules to train on",
    )
    ways: Annotated[tuple[WayName, ...], BeforeValidator(alone)] = Field(
        ("scratch", "fine-tuned", "frozen", "frozen-random"),
        min_length=1,
        description="how networks come to their weights: at random, from the encoder, from the encoder or at random with "
        "only the head trained, or the first two with noisy nodes",
    )
    splits: Annotated[tuple[SplitName, ...], BeforeValidator(alone)] = Field(
        ("random", "scaffold"), min_length=1, description="what is held out whole: molecules, or Bemis-Murcko scaffolds"
    )
    held_out: HeldOutSection = Field(
        default_factory=lambda: HeldOutSection.model_validate({}), description="what is held out"
    )
    pretrained_on: PretrainedOnSection = Field(
        default_factory=lambda: PretrainedOnSection.model_validate({}), description="what is never held out"
    )
    references: Literal["fitted", "stored"] = Field(
        "fitted",
        description="atomic references of energies, polarizability and heat capacity: fitted to the training molecules, or "
        "those of free atoms, which only U0, U, H and G have",
    )
    epochs: Whole = Field(300, ge=1, description="epochs of each network, unless it stops early")
    most_seen: Whole | None = Field(
        None,
        ge=1,
        description="molecules that a network sees over all epochs, at most: those of larger training sets get fewer epochs",
    )
    training: dict[str, Any] = Field({}, description="settings of `torchmd-train` that all networks have")
    training_of: dict[WayName, dict[str, Any]] = Field(
        {}, description="ways, and settings of `torchmd-train` that replace those"
    )

    @model_validator(mode="after")
    def _fits(self) -> Self:
        from openmm_geomgnn.studies.supervised.qm9 import find_target
        from openmm_geomgnn.studies.training.ways import OWN

        for name in ("seeds", "encoders", "ways", "splits"):
            check_distinct(getattr(self, name), name)
        check_distinct([find_target(name).name for name in self.targets], "targets")
        for name, sizes in self.targets.items():
            check_distinct(sizes, "targets", name)

        check_training(self.training, OWN, "training")
        for way, settings in self.training_of.items():
            check_training(settings, OWN, "training_of", way)
        return self
