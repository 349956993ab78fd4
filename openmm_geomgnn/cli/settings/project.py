"""Settings of `geomgnn project`: those of a fit, and what is done with the features of its networks."""

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from openmm_geomgnn.cli.settings.fields import (
    EncoderNames,
    Number,
    OutputProjection,
    Picoseconds,
    Section,
    SettingError,
    Structure,
    Whole,
    alone,
)
from openmm_geomgnn.cli.settings.protocol import Fit


class ProjectSection(Section):
    """Which networks are compared, and how."""

    encoders: EncoderNames = Field(
        (), description="further encoders, compared with cv.encoder: names of shipped ones, or files as for cv.encoder"
    )
    random_weights: Whole = Field(
        3,
        ge=0,
        le=100,
        description="networks of the settings of cv.encoder with random weights, of seeds that count up from seed: what "
        "training is worth is only what lies beyond their spread",
    )
    projections: Annotated[tuple[Literal["pca", "umap"], ...], BeforeValidator(alone)] = Field(
        ("pca", "umap"), description="coordinates in which frames are drawn; umap takes umap-learn, the extra [project]"
    )
    neighbours: Whole = Field(15, ge=2, description="frames near each one that UMAP keeps near")
    min_distance: Number = Field(0.1, ge=0, le=1, description="how near frames may lie in UMAP, in its own units")
    umap_frames: Whole = Field(
        10000,
        ge=50,
        description="frames, evenly spread over all trajectories, that UMAP projects, at most; the report says where it is "
        "not all",
    )
    reference: Structure | None = Field(
        None,
        description="structure file from which the RMSD is measured and whose contacts are counted; null is the first frame",
    )
    folds: Whole = Field(4, ge=2, description="parts of the data, each of which is held out once by the probes")
    gap: Picoseconds | None = Field(
        None,
        gt=0,
        description="time between what a probe is fitted to and what is held out, ps; null, and the least, is cv.lag",
    )
    cka_frames: Whole = Field(
        500, ge=4, le=5000, description="frames, evenly spread, on which networks and layers are compared, at most"
    )
    layers: bool = Field(True, description="compare and probe the layers of the networks, not only their outputs")
    layer_frames: Whole = Field(
        1000, ge=50, description="frames, evenly spread over all trajectories, on which layers are looked at, at most"
    )


class Project(Fit):
    """A look at what networks make of existing trajectories: probes, similarities, projections."""

    output: OutputProjection = Field(
        None,
        validate_default=True,
        description="folder of the results, relative to where the command runs; by default NAME.projection for NAME.yaml",
    )
    project: ProjectSection = Field(
        default_factory=ProjectSection,
        description="which networks are compared, and how; of cv only the tokens and lag matter",
    )

    @model_validator(mode="after")
    def _reads_trajectories(self) -> Self:
        if self.embeddings is not None:
            raise SettingError(
                "embeddings are those of one network, but several are compared. Give trajectories.", "embeddings"
            )
        return self
