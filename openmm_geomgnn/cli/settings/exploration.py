"""Settings of how other states are looked for, of the seeds from which unbiased runs start, and of rounds of learning."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from openmm_geomgnn.cli.settings.fields import Kelvin, KilojoulesPerMole, Names, Picoseconds, Section, Whole
from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.units import did_you_mean

WAYS = ("torsions", "conformers", "opes", "tempering")  # of openmm_geomgnn.sampling.explore, whose import brings OpenMM


def _known(value: Any) -> Any:
    for name in value if isinstance(value, (list, tuple)) else ():
        if name not in WAYS:
            raise GeomGNNError(
                f"ways is {value!r}, but must be auto, or of {', '.join(WAYS)}.{did_you_mean(str(name), WAYS)}"
            )
    return value


class ExploreSection(Section):
    """How other states of the molecule are looked for when not all are known."""

    ways: Annotated[Literal["auto"] | Names, BeforeValidator(_known)] = Field(
        "auto",
        description="torsions: every bond that turns is biased by metadynamics, all at once and each in turn; conformers: "
        "RDKit's, minimised, for up to 60 atoms; tempering: one simulation moves between temperatures (OpenMM 8.6); auto is "
        "those of the first two that fit, else tempering; opes, beside others: after each round that drove a slow torsion "
        "too rarely, OPES_EXPLORE on its CV up to bias.barrier",
    )
    length: Picoseconds = Field(200.0, gt=0, description="length of each piece of exploration, ps")
    frame_interval: Picoseconds = Field(1.0, gt=0, description="time between its frames, ps")
    barrier: KilojoulesPerMole = Field(80.0, gt=0, description="highest barrier that biased torsions are to cross, kJ/mol")
    omega: bool | Literal["auto"] = Field(
        "auto",
        description="whether peptide bonds are turned; auto: only where nitrogen has no hydrogen, as before proline",
    )
    in_turn: bool | Literal["auto"] = Field(
        "auto",
        description="whether torsions are biased each in turn as well as all at once; auto: up to four of them",
    )
    highest_temperature: Kelvin | None = Field(
        None, gt=0, description="highest temperature of tempering, K; null chooses it by the size of the system"
    )
    conformers: Whole = Field(50, ge=1, description="number of conformers from each structure")

    @model_validator(mode="before")
    @classmethod
    def _auto_is_a_section(cls, data: Any) -> Any:
        return {} if data == "auto" else data

    def settings(self, seed: int, **others: Any) -> Any:
        """The ExploreSettings of this section. others: those that differ, as ways, or cv and sigma for the way "opes"."""
        from openmm_geomgnn.sampling.explore import ExploreSettings

        return ExploreSettings(**{name: getattr(self, name) for name in type(self).model_fields} | others, seed=seed)

    @property
    def along_cv(self) -> bool:
        """Whether a CV is explored along between rounds."""
        return self.ways != "auto" and "opes" in self.ways

    @property
    def ways_at_first(self) -> Literal["auto"] | tuple[str, ...]:
        """The ways before there is a CV."""
        return "auto" if self.ways == "auto" else tuple(way for way in self.ways if way != "opes")


class SeedsSection(Section):
    """Seeds: structures spread over what was explored, quenched, each the start of a short unbiased run."""

    number: Whole = Field(
        16,
        ge=1,
        description="clusters of what was explored, of each of which one frame is quenched; fewer seeds remain "
        "where several fall into one minimum",
    )
    length: Picoseconds = Field(50.0, gt=0, description="length of the unbiased run from each seed, ps")


class RoundsSection(Section):
    """Rounds: bias the CV, learn again from what the bias did, until the CV stays as it is."""

    number: Whole = Field(
        3,
        ge=1,
        le=50,
        description="rounds at most; there are fewer if a round crossed between its states and the CV learned after it is "
        "the same",
    )
    length: Picoseconds = Field(500.0, gt=0, description="length of each walker in a round, ps")

    @model_validator(mode="before")
    @classmethod
    def _number_is_a_section(cls, data: Any) -> Any:
        return {"number": data} if isinstance(data, int) and not isinstance(data, bool) else data
