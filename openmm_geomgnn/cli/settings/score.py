"""Settings of `geomgnn score`: those of a fit, and what is tried."""

from typing import Self

from pydantic import Field, model_validator

from openmm_geomgnn.cli.settings.fields import OutputScores, SettingError
from openmm_geomgnn.cli.settings.protocol import Fit
from openmm_geomgnn.cli.settings.scoring import ScoreSection


class Score(Fit):
    """A score: which CVs of existing trajectories describe data best that they were not fitted to."""

    output: OutputScores = Field(
        None,
        validate_default=True,
        description="folder of the scores, relative to where the command runs; by default NAME.scores for NAME.yaml",
    )
    score: ScoreSection = Field(default_factory=ScoreSection, description="what is tried")

    @model_validator(mode="after")
    def _is_of_linear_cvs(self) -> Self:
        if self.cv.estimator != "linear":
            raise SettingError(
                f"estimator is {self.cv.estimator}, but this scores linear CVs, and VAMPnets of the mixers in score.mixer. "
                "Remove it.",
                "cv",
                "estimator",
            )
        if self.cv.auto:
            raise SettingError("auto is what the score is for. Remove it.", "cv", "auto")
        if self.embeddings is not None and self.score.window is not None:
            raise SettingError("window is that of the store. Remove it.", "score", "window")
        return self
