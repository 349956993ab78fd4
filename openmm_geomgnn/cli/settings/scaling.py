"""All settings of a study of scaling (`geomgnn scaling`), with their defaults."""

from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, ValidationInfo, model_validator

from openmm_geomgnn.cli.settings.fields import Number, Section, SettingError, Whole, alone, find_file
from openmm_geomgnn.cli.settings.trainings import Counts, Trainings, check_distinct, check_training

# what the sweep itself sets for every network
OWN = ("log_dir", "load_model", "load_weights", "redirect")


def _groups(value: Any) -> Any:
    """Each source, or list of sources, as a list."""
    return [alone(entry) for entry in alone(value)]


def _models(value: Any) -> Any:
    """Names of architectures as keys."""
    return value if isinstance(value, dict) else {name: {} for name in alone(value)}


def _base(value: Any, info: ValidationInfo) -> Path:
    return find_file(value, (info.context or {}).get("folder", "."), "file of torchmd-train's settings", (".yaml", ".yml"))


class AspectSection(Section):
    """Networks from shallow and wide to deep and narrow, of as many parameters."""

    depths: Counts = Field((1, 2, 4, 8), min_length=2, description="numbers of layers; a width is chosen for each")
    parameters: Whole = Field(200_000, ge=1000, description="trainable parameters that each network has, about")
    tolerance: Number = Field(0.05, gt=0, lt=0.5, description="largest relative deviation from that number")
    multiple: Whole = Field(8, ge=1, description="widths are multiples of this; num_heads of the base must divide it")


class AxesSection(Section):
    """What is varied, one at a time; everything else is as in the base."""

    depth: Counts = Field((), description="numbers of layers (num_layers)")
    width: Counts = Field((), description="numbers of channels (embedding_dimension)")
    aspect: AspectSection | None = Field(None, description="depth and width at equal parameters; null is not at all")
    cutoff: Annotated[tuple[Annotated[Number, Field(gt=0)], ...], BeforeValidator(alone)] = Field(
        (), description="cutoffs of the graph in angstrom (cutoff_upper)"
    )
    data: Counts = Field((), description="numbers of conformers to train on; smaller sets are parts of larger ones")
    source: Annotated[tuple[tuple[str, ...], ...], BeforeValidator(_groups)] = Field(
        (),
        description="sources of the store of conformers, or lists of sources, to train on, with as many conformers of each; "
        "the loss is that on what is held out of all sources",
    )

    @model_validator(mode="after")
    def _values(self) -> Self:
        for name in ("depth", "width", "cutoff", "data", "source"):
            check_distinct(getattr(self, name), name)
        if self.aspect is not None:
            check_distinct(self.aspect.depths, "aspect", "depths")
        if not (self.depth or self.width or self.aspect or self.cutoff or self.data or self.source):
            raise SettingError(f"axes names nothing to vary. Give one of {', '.join(type(self).model_fields)}.")
        if any(not group for group in self.source):
            raise SettingError("source has an empty list in it. Name at least one source in each.", "source")
        return self


class Scaling(Trainings):
    """A study of how the loss of denoising depends on the network and on the conformers."""

    base: Annotated[Path, BeforeValidator(_base)] = Field(
        description="settings of `torchmd-train`, a YAML file such as protocols/pretrain.yaml, that all networks have"
    )
    training: dict[str, Any] = Field({}, description="settings of `torchmd-train` that replace those of the base")
    axes: AxesSection = Field(description="what is varied")
    models: Annotated[dict[str, dict[str, Any]], BeforeValidator(_models)] = Field(
        {},
        description="architectures (model of `torchmd-train`), with each of which all axes are gone along: names, or names "
        "with settings that replace those of the base; none is the model of the base",
    )

    @model_validator(mode="after")
    def _leaves_what_is_set(self) -> Self:
        check_distinct(self.seeds, "seeds")
        check_training(self.training, OWN, "training")
        for name, settings in self.models.items():
            check_training({"model": name}, (), "models")
            check_training(settings, OWN, "models", name)
        return self
