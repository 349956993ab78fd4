"""The kinds of files as a whole: `Protocol`, `Fit` and `Embed`, and what must fit together in them."""

from dataclasses import dataclass
from inspect import signature
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from openmm_geomgnn.cli.settings.analysis import AnalysisSection
from openmm_geomgnn.cli.settings.biased import BiasedRuns
from openmm_geomgnn.cli.settings.exploration import ExploreSection, RoundsSection, SeedsSection
from openmm_geomgnn.cli.settings.fields import (
    OutputCV,
    OutputFolder,
    OutputStore,
    Picoseconds,
    Section,
    SettingError,
    Store,
    Topology,
    Trajectories,
    Whole,
)
from openmm_geomgnn.cli.settings.protocol_checks import (
    check_bias,
    check_dynamics,
    check_lag,
    check_rounds,
    check_run,
    check_training_data,
)
from openmm_geomgnn.cli.settings.sections import (
    BiasSection,
    CVSection,
    RunSection,
    SystemSection,
    TokenSection,
    UnbiasedSection,
)
from openmm_geomgnn.cv.rules import GIRSANOV
from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.representation.trajectory_files import holds_times


@dataclass(frozen=True)
class Schedule:
    """The times of a biased run as whole numbers of evaluations of the bias, which lie `bias_step` ps apart.

    length, checkpoint_interval: multiples of pace. frame_interval: a multiple of colvar_interval, so that each frame
    has a row, and with it a weight.
    """

    bias_step: float
    length: int
    pace: int
    colvar_interval: int
    frame_interval: int
    checkpoint_interval: int


class Protocol(Section):
    """A protocol: simulate, learn a collective variable, bias it, analyse."""

    seed: Whole = Field(1, ge=0, lt=2**31, description="seed of everything random: velocities, noise, training")
    output: OutputFolder = Field(
        None,
        validate_default=True,
        description="folder for all results, relative to where the command runs; by default runs/NAME for NAME.yaml",
    )
    system: SystemSection = Field(description="the molecule and how it moves")
    explore: ExploreSection | None = Field(
        None,
        description="look for other states first, where not all are known; explore: auto is short for a section of defaults",
    )
    seeds: SeedsSection = Field(
        default_factory=SeedsSection, description="structures of what was explored, from which unbiased runs start too"
    )
    unbiased: UnbiasedSection = Field(
        default_factory=UnbiasedSection, description="simulations without a bias: the training data"
    )
    cv: CVSection = Field(default_factory=CVSection, description="the collective variable")
    bias: BiasSection = Field(default_factory=BiasSection, description="the bias on the collective variable")
    rounds: RoundsSection | None = Field(
        None,
        description="bias the CV for a while and learn it again from all that was seen, in turn, before the biased run; "
        "rounds: 3 is short for a section with this number",
    )
    run: RunSection = Field(default_factory=RunSection, description="the biased simulation")
    analysis: AnalysisSection = Field(default_factory=AnalysisSection, description="what the report shows")

    @property
    def every(self) -> int:
        """`run.every` as a number: 1 while it is auto, before the CV is known by which it is decided."""
        return 1 if self.run.every == "auto" else self.run.every

    @property
    def schedule(self) -> Schedule:
        """The biased run's times as whole numbers: a `Schedule`."""
        run, step = self.run, self.every * self.system.timestep
        pace, row = _whole(self.bias.pace, step), _whole(run.colvar_interval, step)
        return Schedule(
            bias_step=step,
            length=_whole(run.length, pace * step) * pace,
            pace=pace,
            colvar_interval=row,
            frame_interval=_whole(run.frame_interval, row * step) * row,
            checkpoint_interval=_whole(run.checkpoint_interval, pace * step) * pace,
        )

    def settling(self, done: float) -> float:
        """The start in ps, of `done` ps of the biased run, that no average includes while the bias sets in: at most half."""
        return min(self.bias.ramp if self.bias.method == "opes" else 0.0, 0.5 * done)

    @property
    def makes_a_student(self) -> bool:
        """Whether the fitted CV is distilled, see `cv.student`."""
        return self.learns_from_a_bias if self.cv.student is None else self.cv.student

    @property
    def learns_from_a_bias(self) -> bool:
        """Whether the CV is learned from more than unbiased runs from the structures."""
        return self.explore is not None or self.rounds is not None

    @property
    def comparison_length(self) -> float:
        """Total length in ps of the unbiased simulations with which crossings are compared."""
        length = self.unbiased.comparison_length
        return self.run.walkers * self.run.length if length is None else length

    def md_steps(self, time: float) -> int:
        """The number of MD steps nearest to a time in ps."""
        return round(time / self.system.timestep)

    def make_bias(self, **changes: Any) -> Any:
        """The bias of this protocol, whose steps are evaluations of it.

        changes: arguments of OPES that replace those of the protocol, as in sigma=0.1.

        Raises GeomGNNError if it cannot have these settings.
        """
        from openmm_geomgnn.sampling.bias import get_bias

        kind = get_bias(self.bias.method)
        if self.bias.method != "opes":
            return self._bias_of_a_package(kind)
        names = ("barrier", "sigma", "sigma_min", "biasfactor", "explore", "compression_threshold", "kernel_cutoff")
        settings = {name: getattr(self.bias, name) for name in names}
        schedule = self.schedule
        settings |= {"temperature": self.system.temperature, "pace": schedule.pace}
        settings |= {"ramp": round(self.bias.ramp / self.bias.pace)}
        if self.bias.adaptive_stride is not None:
            settings["adaptive_stride"] = _whole(self.bias.adaptive_stride, schedule.bias_step)
        return kind(**(settings | changes))

    def _bias_of_a_package(self, kind: Any) -> Any:
        given = dict(self.bias.settings)
        if "temperature" in signature(kind).parameters:
            given = {"temperature": self.system.temperature, **given}
        try:
            return kind(pace=self.schedule.pace, **given)
        except (TypeError, ValueError) as error:
            raise GeomGNNError(f"settings do not make a bias {self.bias.method}: {error}") from error

    @model_validator(mode="after")
    def _sections_fit(self) -> Self:
        check_dynamics(self)
        check_training_data(self)
        check_bias(self)
        check_run(self)
        check_rounds(self)
        return self


class Fit(Section):
    """A fit: learn a collective variable from existing trajectories."""

    seed: Whole = Field(1, ge=0, lt=2**31, description="seed of everything random in training")
    topology: Topology = Field(description="structure file of the molecule, with the atoms of the trajectories")
    trajectories: Trajectories | None = Field(
        None,
        min_length=1,
        description="files that mdtraj reads, or glob patterns; each file is a trajectory of its own; among them biased "
        "simulations, as in {run: runs/demo} or {files: a.xtc, colvar: COLVAR, bias: opes.bias}",
    )
    biased: tuple[BiasedRuns, ...] = Field(
        (), description="biased simulations; entries of trajectories that are no names are put here"
    )
    reweighting: Literal["rescaled-time", "static", "none"] = Field(
        "none",
        description="how frames of biased simulations count: none takes them as they are, which shows the CV what a bias "
        "does; static weighs them by exp(V/kT), rescaled-time lets time pass faster by that, which needs long runs",
    )
    embeddings: Store | None = Field(
        None,
        description="store of `geomgnn embed`, instead of trajectories; encoder, selection, windows and pooling are those "
        "of the store",
    )
    stride: Whole = Field(1, ge=1, description="use every stride-th frame")
    allow_truncated: bool = Field(
        False, description="use what is whole of trajectory files that were cut off; without it they are refused"
    )
    frame_interval: Picoseconds | None = Field(
        None,
        gt=0,
        description="time between frames in the files (in the store), ps; null reads it from them (XTC, TRR and H5 hold it)",
    )
    output: OutputCV = Field(
        None,
        validate_default=True,
        description="file of the CV, relative to where the command runs; by default NAME.cv.safetensors for NAME.yaml",
    )
    cv: CVSection = Field(default_factory=CVSection, description="the collective variable")

    @field_validator("reweighting", mode="before")
    @classmethod
    def _not_girsanov(cls, value: Any) -> Any:
        if isinstance(value, str) and value.lower() == "girsanov":
            raise GeomGNNError(GIRSANOV)
        return value

    @model_validator(mode="before")
    @classmethod
    def _biased_among_trajectories(cls, data: Any) -> Any:
        """Put entries of trajectories that are mappings under `biased`."""
        given = data.get("trajectories") if isinstance(data, dict) else None
        entries = given if isinstance(given, (list, tuple)) else [given]
        runs = [entry for entry in entries if isinstance(entry, dict)]
        if not runs:
            return data
        files = [entry for entry in entries if not isinstance(entry, dict)]
        others = {name: value for name, value in data.items() if name != "trajectories"}
        return others | {"biased": [*data.get("biased", ()), *runs]} | ({"trajectories": files} if files else {})

    @model_validator(mode="after")
    def _has_data(self) -> Self:
        if self.embeddings is not None and self.biased:
            raise SettingError("biased simulations and a store of embeddings are both given. Remove one.", "embeddings")
        if self.biased and self.stride != 1:
            raise SettingError("stride is not for biased simulations, which are weighted by time. Remove it.", "stride")
        if self.trajectories is None and self.embeddings is None and not self.biased:
            raise SettingError("trajectories is missing: give them, or embeddings, a store of `geomgnn embed`.")
        if self.trajectories is not None and self.embeddings is not None:
            raise SettingError("trajectories and embeddings are both given. Remove one of them.", "embeddings")
        if self.embeddings is not None and self.stride != 1:
            raise SettingError("stride is for trajectories; a store has that of `geomgnn embed`. Remove it.", "stride")
        return self

    @model_validator(mode="after")
    def _makes_a_cv(self) -> Self:
        if self.cv.file is not None:
            raise SettingError("file is a CV that exists, but a fit makes one. Remove it.", "cv", "file")
        if self.cv.estimator == "progress":
            raise SettingError(
                "estimator is progress, whose targets `geomgnn run` finds where it explores; a fit knows none. Use linear.",
                *("cv", "estimator"),
            )
        return self

    @model_validator(mode="after")
    def _times_fit(self) -> Self:
        timeless = [file for file in self.trajectories or () if not holds_times(file)]
        if self.frame_interval is None and timeless:
            raise SettingError(
                f"frame_interval is not given, and {timeless[0].name} may not hold the times of its frames: give the "
                "time between its frames, as in frame_interval: 1 ps.",
                "trajectories",
            )
        if self.frame_interval is not None and self.trajectories is not None:
            check_lag(self.cv.lag, self.frame_interval * self.stride)
        return self


class Embed(TokenSection):
    """An embedding: existing trajectories become a store of residue tokens."""

    topology: Topology = Field(description="structure file of the molecule, with the atoms of the trajectories")
    trajectories: Trajectories = Field(
        min_length=1, description="files that mdtraj reads, or glob patterns; each file is a trajectory of its own"
    )
    stride: Whole = Field(1, ge=1, description="use every stride-th frame")
    allow_truncated: bool = Field(
        False, description="use what is whole of trajectory files that were cut off; without it they are refused"
    )
    frame_interval: Picoseconds | None = Field(
        None, gt=0, description="time between frames in the files, ps, for those that do not hold it (XTC, TRR and H5 do)"
    )
    output: OutputStore = Field(
        None,
        validate_default=True,
        description="folder of the store, relative to where the command runs; by default NAME.zarr for NAME.yaml",
    )
    dtype: Literal["float32", "float16"] = Field(
        "float32", description="number type of the tokens; float16 takes half the space and has three digits"
    )
    chunk: Whole | None = Field(
        None, ge=1, description="frames that are written and resumed as one; null makes chunks of 4 MiB"
    )
    workers: Whole | None = Field(None, ge=1, description="processes of one thread each; null is one for each core")
    scheduler: str | None = Field(
        None, description="address of a Dask scheduler whose workers see the same files, instead of processes of our own"
    )


def _whole(time: float, unit: float) -> int:
    """Count how often `unit` fits into a time, at least once."""
    return max(1, round(time / unit))
