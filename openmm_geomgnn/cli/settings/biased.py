"""Entries of `trajectories` that are biased simulations: folders of `geomgnn run`, or files with a COLVAR."""

from typing import Literal, Self

from pydantic import Field, model_validator

from openmm_geomgnn.cli.settings.fields import (
    ColvarFiles,
    Kelvin,
    Names,
    Picoseconds,
    RunFolder,
    Section,
    SettingError,
    Trajectories,
)


class BiasedRuns(Section):
    """A biased simulation: the folder of a run, or trajectory files with the bias in a COLVAR file."""

    run: RunFolder | None = Field(
        None, description="output folder of `geomgnn run`, finished or not; nothing else has to be said of it"
    )
    files: Trajectories | None = Field(None, min_length=1, description="trajectory files of another simulation")
    colvar: ColvarFiles | None = Field(
        None, description="COLVAR file with the bias, ours or PLUMED's; one for all files, or one for each"
    )
    bias: Names = Field((), description="columns of COLVAR that are biases, as opes.bias; of several the sum")
    energy_unit: Literal["kJ/mol", "kcal/mol"] = Field("kJ/mol", description="unit of these columns")
    temperature: Kelvin | None = Field(
        None, gt=0, description="temperature of the simulation, K; null is that of the run, or 300 K"
    )
    frame_interval: Picoseconds | None = Field(
        None, gt=0, description="time between frames, ps, for files that do not hold it (XTC, TRR and H5 do)"
    )
    start: Picoseconds | None = Field(
        None, ge=0, description="time of the first frame of such files, ps; null is one frame_interval"
    )
    discard: Picoseconds | None = Field(
        None,
        ge=0,
        description="time at the start to leave out, while the bias still changes fast, ps; null is what the run's report "
        "leaves out, or a tenth",
    )

    @model_validator(mode="after")
    def _is_one_of_both(self) -> Self:
        if (self.run is None) == (self.files is None):
            raise SettingError("give either run, a folder of `geomgnn run`, or files with colvar and bias.")
        if self.run is not None:
            others = [name for name in type(self).model_fields if name in self.model_fields_set - {"run", "discard"}]
            if others:
                raise SettingError(f"{others[0]} is known for a run. Remove it.", others[0])
            return self
        for name in ("colvar", "bias"):
            if not getattr(self, name):
                raise SettingError(f"{name} is missing: frames of a biased simulation need the bias that acted on them.")
        if self.colvar is not None and len(self.colvar) not in (1, len(self.files or ())):
            raise SettingError(
                f"there are {len(self.colvar)} COLVAR files for {len(self.files or ())} trajectories: give one for all, or "
                "one for each.",
                "colvar",
            )
        return self
