"""All settings of a store of conformers (`geomgnn data build`), with their defaults."""

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, ValidationInfo, model_validator

from openmm_geomgnn.cli.settings.fields import Number, OutputFolder, Section, SettingError, Whole
from openmm_geomgnn.errors import GeomGNNError

LABEL = "label"  # in a section of `sources`, next to the source's own settings


class SplitsSection(Section):
    """Conformers that are held out from training."""

    by: Literal["molecule", "task"] = Field(
        "molecule",
        description="what is held out as one: whole molecules (the same elements in the same order), or whole tasks of a "
        "source",
    )
    val: Number = Field(0.05, ge=0, lt=1, description="share of the conformers of each source for validation")
    test: Number = Field(0.05, ge=0, lt=1, description="share of the conformers of each source for the test")

    @model_validator(mode="after")
    def _something_to_train_on(self) -> Self:
        if self.val + self.test >= 1:
            raise SettingError(f"val {self.val:g} and test {self.test:g} leave nothing to train on: lower them.", "test")
        return self


def _labelled(value: Any, info: ValidationInfo) -> tuple[Any, ...]:
    """Check each section and make its LabelledSource."""
    from openmm_geomgnn.conformers.build import LabelledSource
    from openmm_geomgnn.conformers.sources import source_from

    if not isinstance(value, (list, tuple)) or not value:
        raise GeomGNNError(f"sources is {value!r}, but it must be a list of sections that begin with '- source: NAME'.")
    folder, found = (info.context or {}).get("folder", "."), []
    for i, section in enumerate(value):
        if not isinstance(section, dict) or not isinstance(section.get("source"), str):
            raise SettingError(f"Source {i + 1} is {section!r}, but it must be a section with 'source: NAME'.", i)
        settings = {key: entry for key, entry in section.items() if key != LABEL and entry is not None}
        try:
            source = source_from(settings).relative_to(folder)
            source.check()
            found.append(LabelledSource(source, section.get(LABEL) or source.name))
        except GeomGNNError as error:
            # the line of the setting that the message begins with, where it does
            raise SettingError(str(error), i, *(key for key in section if str(error).startswith(f"{key} "))) from error
    return tuple(found)


class DataBuild(Section):
    """A store of conformers and their sources."""

    output: OutputFolder = Field(
        None,
        validate_default=True,
        description="folder of the store, relative to where the command runs; by default runs/NAME for NAME.yaml",
    )
    seed: Whole = Field(
        1, ge=0, description="seed of everything random; the same seed, settings and files give the same store"
    )
    processes: Whole | None = Field(None, ge=1, description="processes that work side by side; null is one for each core")
    shard_size: Whole = Field(5_000_000, ge=1, description="atoms in a file of the store, 7 bytes each")
    splits: SplitsSection = Field(default_factory=SplitsSection, description="what is held out from training")
    sources: Annotated[tuple[Any, ...], BeforeValidator(_labelled)] = Field(
        description="a list of sections 'source: NAME' with the settings of that source"
    )
