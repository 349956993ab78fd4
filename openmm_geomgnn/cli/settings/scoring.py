"""Settings of the CVs that are tried and scored."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from openmm_geomgnn.cli.settings.fields import MixerName, Picoseconds, Section, Whole, alone
from openmm_geomgnn.processes import cores


class ScoreSection(Section):
    """What is tried, in all combinations, and how it is scored."""

    pca: Annotated[tuple[Annotated[Whole, Field(ge=1)] | None, ...], BeforeValidator(alone)] = Field(
        (20, 50, 100, None), min_length=1, description="numbers of principal components; null is all"
    )
    softening: Annotated[tuple[Annotated[Picoseconds, Field(ge=0)], ...], BeforeValidator(alone)] = Field(
        (0.02, 0.1, 0.3), min_length=1, description="times over which fast motion is averaged out, ps"
    )
    window: Annotated[tuple[Literal["all", "sequence", "space"], ...], BeforeValidator(alone)] | None = Field(
        None,
        min_length=1,
        description="graphs of the encoder; null is all, and sequence as well for more than three residues",
    )
    mixer: Annotated[tuple[MixerName, ...], BeforeValidator(alone)] = Field(
        ("none",),
        min_length=1,
        description="networks from residue tokens to features; none is the linear CV, others are trained (cv.training), "
        "once for each fold and once more, and taken only where no linear CV is as good",
    )
    components: Annotated[tuple[Annotated[Whole, Field(ge=1)], ...], BeforeValidator(alone)] | None = Field(
        None,
        min_length=1,
        description="numbers of CV components; null is cv.components. Scores of different numbers cannot be compared",
    )
    folds: Whole = Field(4, ge=2, description="parts of the data, each of which is held out once")
    hold_out: Literal["auto", "runs", "blocks"] = Field(
        "auto",
        description="what is held out: whole trajectories (runs), or blocks of each of them; auto is runs where there are "
        "three for each fold",
    )
    gap: Picoseconds | None = Field(
        None, gt=0, description="time between a block and the data that are fitted to, ps; null, and the least, is cv.lag"
    )
    bias_step: Picoseconds | None = Field(
        0.006,
        gt=0,
        description="time between evaluations of the bias to come, ps (run.every times system.timestep): a CV that is too "
        "stiff for it is not chosen; null chooses any",
    )

    workers: Whole | None = Field(
        None, ge=1, description="processes in which mixers are trained, by Dask; null is one for each core"
    )

    def settings(self, cv: Any, seed: int = 1) -> Any:
        """The ScoreSettings of this section for a CVSection."""
        from openmm_geomgnn.cv.scores import ScoreGrid, ScoreSettings

        grid = ScoreGrid(self.pca, self.softening, self.components or (cv.components,), self.mixer)
        training = cv.training_arguments() | {"seed": seed}
        return ScoreSettings(grid, self.window, self.folds, self.hold_out, self.gap, training, self.workers or cores())
