"""All settings of `geomgnn compute`, with their defaults."""

from typing import Self

from pydantic import Field, model_validator

from openmm_geomgnn.cli.settings.fields import (
    CVFile,
    OutputFile,
    Picoseconds,
    Section,
    SettingError,
    Topology,
    Trajectories,
    Whole,
)
from openmm_geomgnn.representation.trajectory_files import holds_times


class Compute(Section):
    """Values of a collective variable along existing trajectories."""

    cv: CVFile = Field(description="a CV file of `geomgnn fit`, `geomgnn run` or `geomgnn distill`")
    topology: Topology = Field(description="structure file of the molecule, with the atoms of the trajectories")
    trajectories: Trajectories = Field(min_length=1, description="files that mdtraj reads, or glob patterns")
    stride: Whole = Field(1, ge=1, description="use every stride-th frame")
    frame_interval: Picoseconds | None = Field(
        None, gt=0, description="time between frames in the files, ps, for those that do not hold it (XTC, TRR and H5 do)"
    )
    allow_truncated: bool = Field(
        False, description="use what is whole of trajectory files that were cut off; without it they are refused"
    )
    output: OutputFile = Field(
        None, validate_default=True, description="COLVAR file, relative to where the command runs; by default NAME.colvar"
    )

    @model_validator(mode="after")
    def _has_times(self) -> Self:
        timeless = [file for file in self.trajectories if not holds_times(file)]
        if self.frame_interval is None and timeless:
            raise SettingError(
                f"frame_interval is not given, and {timeless[0].name} may not hold the times of its frames: give the time "
                "between its frames, as in --frame-interval '1 ps'.",
                "trajectories",
            )
        return self

    @model_validator(mode="after")
    def _replaces_nothing(self) -> Self:
        if self.output.exists():
            raise SettingError(f"output is {self.output}, which exists already. Give another name, or remove it.", "output")
        return self
