"""Settings that all studies have which train many networks: where, with which seeds, how many side by side."""

from collections.abc import Hashable, Iterable, Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from openmm_geomgnn.cli.settings.fields import OutputFolder, Section, SettingError, Whole, alone
from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.processes import cores

Counts = Annotated[tuple[Annotated[Whole, Field(ge=1)], ...], BeforeValidator(alone)]


def check_distinct(values: Iterable[Hashable], *location: str) -> None:
    """Raise SettingError if a value of the setting at `location` is there twice."""
    values = list(values)
    twice = next((value for i, value in enumerate(values) if value in values[:i]), None)
    if twice is not None:
        raise SettingError(f"{location[-1]} has {twice} twice. Remove one.", *location)


def check_training(training: Mapping[str, Any], own: Iterable[str], *location: str) -> None:
    """Raise SettingError for a setting of `torchmd-train` that the study itself sets, or that the trainer does not know."""
    from openmm_geomgnn.studies.training import trainer

    wrong = [name for name in own if training.get(name) is not None]
    if wrong:
        raise SettingError(f"{wrong[0]} is set for each network by the study. Remove it.", *location, wrong[0])
    for name, value in training.items():
        try:
            trainer.complete({name: value})
        except GeomGNNError as error:
            raise SettingError(str(error), *location, name) from None


class Trainings(Section):
    """Many networks, each trained by itself."""

    output: OutputFolder = Field(
        None,
        validate_default=True,
        description="folder of the networks, the table and the report, relative to where the command runs; by default "
        "runs/NAME for NAME.yaml",
    )
    seeds: Counts = Field((1,), min_length=1, description="seeds with each of which every network is trained")
    workers: Whole = Field(1, ge=1, description="networks that are trained side by side on this machine")
    threads: Whole | None = Field(
        None, ge=1, description="threads of each training; null shares the cores among the workers"
    )
    scheduler: str | None = Field(
        None, description="address of a Dask scheduler, whose workers train instead of this machine; null is this machine"
    )

    def threads_of_each(self) -> int:
        """Threads of one training."""
        return self.threads or max(1, cores() // self.workers)
