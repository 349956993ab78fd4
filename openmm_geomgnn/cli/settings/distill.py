"""All settings of a distillation (`geomgnn distill`), with their defaults."""

from typing import Self

from pydantic import Field, model_validator

from openmm_geomgnn.cli.settings.fields import (
    CVFile,
    Nanometres,
    Number,
    OutputCV,
    Section,
    SettingError,
    Topology,
    Trajectories,
    Whole,
)


class Distill(Section):
    """A student: a small network on torsions and distances that stands in for a collective variable, its teacher."""

    seed: Whole = Field(1, ge=0, lt=2**31, description="seed of everything random in the distillation")
    cv: CVFile = Field(description="the teacher: a CV file of `geomgnn fit` or `geomgnn run`")
    topology: Topology = Field(description="structure file of the molecule, with the atoms of the trajectories")
    trajectories: Trajectories = Field(
        min_length=1,
        description="files that mdtraj reads, or glob patterns: frames from every region where the student must be accurate",
    )
    stride: Whole = Field(1, ge=1, description="use every stride-th frame")
    allow_truncated: bool = Field(
        False, description="use what is whole of trajectory files that were cut off; without it they are refused"
    )
    output: OutputCV = Field(
        None,
        validate_default=True,
        description="file of the student, relative to where the command runs; by default NAME.cv.safetensors for NAME.yaml",
    )
    hidden: Whole = Field(128, ge=1, le=2048, description="units in each of the student's two hidden layers")
    distances: Whole = Field(2000, ge=0, description="most distances that the student sees, the shortest ones")
    labels: Whole = Field(
        16000,
        ge=100,
        description="conformations that the teacher labels: up to half of them frames, the others frames with their "
        "atoms displaced and turned about bonds",
    )
    displacement: Nanometres = Field(
        0.005, gt=0, le=0.1, description="displacement of atoms, standard deviation along each axis, nm"
    )
    gradient_weight: Number = Field(
        1.0, ge=0, description="weight of the gradient's error in the loss, next to that of the value"
    )
    epochs: Whole = Field(80, ge=1, description="passes over the labels, at most")
    batch_size: Whole = Field(64, ge=1, description="conformations in a step of the optimiser")
    learning_rate: Number = Field(5e-3, gt=0, le=1, description="learning rate of Adam, at the start")
    patience: Whole = Field(20, ge=1, description="epochs without a smaller error on other frames before training stops")

    @model_validator(mode="after")
    def _keeps_the_teacher(self) -> Self:
        if self.output == self.cv:
            raise SettingError(f"output is {self.output}, the teacher itself. Give the student a file of its own.", "output")
        return self
