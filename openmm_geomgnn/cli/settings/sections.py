"""All settings of a protocol (`geomgnn run`) and of a fit (`geomgnn fit`), with their units and defaults.

Values are stored in OpenMM's units: times in ps, energies in kJ/mol, masses in amu, lengths in nm, angles in radians,
temperatures in K. A bare number in a file is in these units; any other unit is written behind it ("2 fs").
"""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from openmm_geomgnn.cli.settings.fields import (
    OUR_MIXERS,
    BiasName,
    CVFile,
    Daltons,
    EncoderName,
    ForceField,
    Kelvin,
    KilojoulesPerMole,
    MixerName,
    Nanometres,
    Number,
    NumberOrInfinity,
    PerPicosecond,
    Picoseconds,
    Section,
    SettingError,
    Structure,
    Structures,
    Whole,
    Widths,
)
from openmm_geomgnn.cv.rules import SettingMismatch, check_parts
from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.plugins import PluginError
from openmm_geomgnn.representation.spec import TokenSpec

SHORTEST_TIMESTEP, LONGEST_TIMESTEP = 1e-5, 0.005  # ps


class SystemSection(Section):
    """The molecule and how it moves."""

    structures: Structures = Field(
        min_length=1,
        description="PDB or PDBx/mmCIF files of one molecule in different states, at best one in each basin; walkers "
        "start from them in turn",
    )
    forcefield: ForceField = Field(
        ("amber14-all.xml", "implicit/obc2.xml"), min_length=1, description="XML files, OpenMM's own by name"
    )
    temperature: Kelvin = Field(300.0, gt=0, description="temperature of the thermostat, K")
    friction: PerPicosecond = Field(1.0, gt=0, description="friction of the Langevin thermostat, 1/ps")
    timestep: Picoseconds = Field(0.002, ge=SHORTEST_TIMESTEP, description="time step of the molecular dynamics, ps")
    hydrogen_mass: Daltons | None = Field(
        3.0, ge=1.0, le=4.0, description="mass of each hydrogen, taken from its heavy atom, amu; null leaves masses alone"
    )
    constraints: Literal["HBonds", "AllBonds", "HAngles"] | None = Field(
        "HBonds", description="bonds of fixed length: HBonds, AllBonds, HAngles or null"
    )
    nonbonded_cutoff: Nanometres | None = Field(
        None,
        gt=0,
        description="cutoff of the nonbonded forces, nm; null is no cutoff, or 1 nm where the system is periodic",
    )
    periodic: bool | None = Field(
        None, description="whether there are periodic boundaries; null decides by the structure and the force field"
    )
    platform: Literal["auto", "CUDA", "HIP", "OpenCL", "CPU", "Reference"] = Field(
        "auto", description="OpenMM's platform; auto is a GPU by CUDA or HIP, else CPU, or Reference for small systems"
    )

    @field_validator("constraints", mode="before")
    @classmethod
    def _none_is_null(cls, value: Any) -> Any:
        return None if isinstance(value, str) and value.lower() == "none" else value

    @field_validator("timestep")
    @classmethod
    def _not_in_femtoseconds(cls, value: Any) -> Any:
        if value > LONGEST_TIMESTEP:
            raise GeomGNNError(
                f"timestep is {value:g} ps = {1000 * value:g} fs, longer than {1000 * LONGEST_TIMESTEP:g} fs, which no "
                "molecule survives. A number without a unit is in ps: was it meant in fs? Use 2 fs, or up to 4 fs with "
                "heavy hydrogens."
            )
        return value


class UnbiasedSection(Section):
    """Simulations without a bias, one from each structure: the training data."""

    length: Picoseconds = Field(150.0, gt=0, description="length of the run from each structure, ps")
    frame_interval: Picoseconds = Field(0.2, gt=0, description="time between saved frames, ps")
    equilibration: Picoseconds = Field(5.0, ge=0, description="time before each run that is not saved, ps")
    comparison_length: Picoseconds | None = Field(
        None,
        ge=0,
        description="length of all unbiased simulation that crossings are compared with, ps; null is as long as all walkers "
        "together",
    )


class TrainingSection(Section):
    """Training of the mixer on the VAMP-2 score; for estimator: vampnet."""

    epochs: Whole = Field(100, ge=1, description="passes over the data, at most")
    batch_size: Whole = Field(1000, ge=2, description="pairs of frames in a step of the optimiser")
    learning_rate: Number = Field(1e-3, gt=0, le=1, description="learning rate of AdamW")
    weight_decay: Number = Field(1e-4, ge=0, description="weight decay of AdamW")
    patience: Whole = Field(10, ge=1, description="epochs without a better validation score before training stops")
    validation_fraction: Number = Field(0.2, ge=0, lt=1, description="share of the frames by which the epoch is chosen")
    test_fraction: Number = Field(
        0.1, ge=0, lt=1, description="share of the frames that neither trains nor chooses, for the held-out score"
    )
    gradient_penalty: Number = Field(
        0.0, ge=0, description="weight of the CV's squared gradient in the loss; 0.01 to 0.1 make a softer CV, 0 none"
    )


class TokenSection(Section):
    """From atoms to residue tokens: encoder, selection and windows."""

    encoder: EncoderName = Field("et-64", description="the name of a shipped encoder, or a .safetensors, .ckpt or .pth file")
    selection: str | None = Field(
        None,
        description="atoms that the CV sees, in mdtraj's selection language; null is the heavy atoms of protein with caps, "
        "without protein those of nucleic acid, without either those of the only ligand",
    )
    window: Literal["all", "sequence", "space"] = Field(
        TokenSpec.window,
        description="graphs of the encoder: all atoms at once, or each residue with its neighbours in sequence, or in the "
        "space of a reference structure",
    )
    context: Whole = Field(
        TokenSpec.context, ge=0, description="neighbours on each side of a residue, with window: sequence"
    )
    radius: Nanometres = Field(
        TokenSpec.radius, gt=0, le=2, description="how near a neighbour is, atom to atom, with window: space, nm"
    )
    reference: Structure | None = Field(
        None,
        description="structure file of the molecule, with window: space; null is the first frame of the training data",
    )
    pooling: Literal["sum", "mean"] = Field(TokenSpec.pooling, description="how the atoms of a residue make its token")

    @field_validator("selection")
    @classmethod
    def _can_be_parsed(cls, text: str) -> str:
        if text is not None:
            from mdtraj.core.selection import parse_selection

            try:
                parse_selection(text)
            except Exception as error:  # mdtraj's parser raises all kinds of exceptions
                raise GeomGNNError(
                    f"selection is '{text}', which mdtraj cannot parse ({type(error).__name__}). Write it in mdtraj's "
                    "language, for example 'protein and not element H' or 'chainid 0 and name CA CB'."
                ) from error
        return text

    @model_validator(mode="after")
    def _reference_is_used(self) -> Self:
        if self.reference is not None and self.window != "space":
            raise SettingError(
                f"reference is given, but window: {self.window} does not look at it. Use window: space, or remove it.",
                "reference",
            )
        return self

    def token_spec(self) -> TokenSpec:
        """The TokenSpec of these settings."""
        names = ("selection", "window", "context", "radius", "pooling")
        return TokenSpec(**{name: getattr(self, name) for name in names}, reference=self.reference and str(self.reference))


class CVSection(TokenSection):
    """The collective variable: encoder, mixer and Koopman estimator."""

    file: CVFile | None = Field(
        None,
        description="for `geomgnn run`: a CV file to use as it is, for example a student; then there are no unbiased "
        "runs and no fit, and of this section only components matters, the number in the file",
    )
    auto: bool = Field(
        False,
        description="choose pca, softening and window (all or sequence) by scores on data that were not fitted to, as "
        "`geomgnn score` does; `cv: auto` is short for a section with this alone",
    )
    mixer: MixerName = Field("none", description="network from residue tokens to features")
    mixer_settings: dict[str, bool | int | float | str | list] = Field(
        default_factory=dict,
        description="settings of the mixer, by name; every mixer has chirality: true, which tells mirror images apart",
    )
    estimator: Literal["linear", "vampnet", "progress"] = Field(
        "linear",
        description="linear: principal components, then TICA or VAMP; vampnet: a trained mixer, then the same; progress: "
        "regression of the progress of the torsions that are slow, a component each, for `geomgnn run` with explore",
    )
    lag: Picoseconds = Field(5.0, gt=0, description="lag time, ps; a multiple of the time between frames")
    components: Whole = Field(1, ge=1, description="number of CV components")
    pca: Whole | None = Field(50, ge=1, description="principal components of the linear estimator; null keeps all")
    softening: Picoseconds = Field(
        0.02,
        ge=0,
        description="time over which the linear estimator averages out fast motion, ps: longer makes a CV that moves less "
        "with every vibration, 0 is off",
    )
    bounded: bool = Field(
        True,
        description="let the CV saturate smoothly beyond the range of its training data, so that a bias cannot drive it on "
        "and on; within the range it is unchanged",
    )
    margin: Number = Field(
        0.15, gt=0, le=10, description="how far a bounded CV can leave that range on either side, in units of its length"
    )
    even: bool = Field(
        False,
        description="stretch the CV where it is steep and compress it where it is flat, by a monotone map, so that a step "
        "is no wall of stiffness",
    )
    student: bool | None = Field(
        None,
        description="for `geomgnn run`: distil the fitted CV and bias the student, which costs a hundredth; the network is "
        "biased where the student does not reproduce it; null does so with explore or rounds, whose frames it learns from",
    )
    reversible: bool = Field(True, description="estimate reversible dynamics (TICA, SRV) instead of VAMP")
    training: TrainingSection = Field(default_factory=TrainingSection, description="how a vampnet is trained")

    def training_arguments(self) -> dict[str, Any]:
        """The arguments of `koopman.train_vampnet` in `training`."""
        arguments = self.training.model_dump()
        arguments["lr"] = arguments.pop("learning_rate")
        return arguments

    @model_validator(mode="before")
    @classmethod
    def _auto_is_a_section(cls, data: Any) -> Any:
        return {"auto": True} if data == "auto" else data

    @model_validator(mode="after")
    def _auto_chooses(self) -> Self:
        if not self.auto:
            return self
        if self.estimator != "linear":
            raise SettingError(
                f"auto chooses among linear CVs, but estimator is {self.estimator}. Remove one of them.", "estimator"
            )
        for name in ("pca", "softening"):
            if getattr(self, name) != type(self).model_fields[name].default:
                raise SettingError(f"{name} is chosen by auto. Remove one of them.", name)
        return self

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        try:
            check_parts(self.estimator, self.mixer, self.components, self.pca)
        except SettingMismatch as error:
            raise SettingError(str(error), error.setting) from error
        return self

    @model_validator(mode="after")
    def _file_is_all(self) -> Self:
        given = self.model_dump(exclude={"file", "components"}, exclude_defaults=True)
        other = [name for name, value in given.items() if value != {}]
        if self.file is not None and other:
            raise SettingError(
                f"file says what the CV is, so {' and '.join(other)} would change nothing. Remove file to fit a CV, or the "
                "others to use the one in the file.",
                other[0],
            )
        return self

    @model_validator(mode="after")
    def _mixer_has_these_settings(self) -> Self:
        if self.mixer_settings or self.mixer not in OUR_MIXERS:  # the import brings torch, which takes seconds
            from openmm_geomgnn.cv.mixers import check_settings

            try:
                check_settings(self.mixer, self.mixer_settings)
            except PluginError as error:
                raise SettingError(str(error), "mixer") from error
            except GeomGNNError as error:
                # the line of the setting that the message begins with, where it does
                named = [key for key in self.mixer_settings if str(error).startswith((f"{key} ", f"{key}: "))]
                raise SettingError(str(error), "mixer_settings", *named[:1]) from error
        return self


class BiasSection(Section):
    """The bias on the collective variable: OPES, or that of another package."""

    method: BiasName = Field(
        "opes", description="opes: on-the-fly probability enhanced sampling; or the name of a bias of an installed package"
    )
    barrier: KilojoulesPerMole = Field(40.0, gt=0, description="highest free-energy barrier to cross, kJ/mol")
    pace: Picoseconds = Field(
        1.0, gt=0, description="time between depositions, ps; rounded to whole evaluations of the bias (every*timestep)"
    )
    sigma: Widths | None = Field(
        None,
        description="kernel width in units of the CV, one for all components or a list; null: as the CV "
        "fluctuates in a basin of the unbiased runs, wider where it follows several things",
    )
    sigma_min: Widths | None = Field(
        None, description="floor of the kernel widths, like sigma; null: chosen by how stiff the CV is"
    )
    biasfactor: NumberOrInfinity | None = Field(
        None, gt=1, description="how much flatter the target is; null is barrier/kT, .inf a flat target"
    )
    explore: bool = Field(
        False, description="use OPES_EXPLORE, which escapes faster, and whose free energies converge later"
    )
    ramp: Picoseconds = Field(
        20.0,
        ge=0,
        description="time over which the bias sets in, ps, from a depth of 2 kT to that of the barrier; averages leave it "
        "out, 0 is off",
    )
    compression_threshold: Number = Field(
        1.0, ge=0, description="kernels closer than this are merged, in units of sigma; 0 keeps all"
    )
    kernel_cutoff: Number | None = Field(
        None, gt=0, description="where kernels end, in units of sigma; null is where they fall below epsilon"
    )
    adaptive_stride: Picoseconds | None = Field(
        None, gt=0, description="time over which the biased run measures sigma, ps; null: as sigma says"
    )
    settings: dict[str, bool | int | float | str | list] = Field(
        default_factory=dict,
        description="settings of a bias of an installed package, by name; of the others only pace is for it too",
    )

    @model_validator(mode="after")
    def _settings_are_those_of_the_method(self) -> Self:
        if self.method == "opes" and self.settings:
            raise SettingError(
                "settings is for the bias of another package, but method is opes, whose settings stand beside it, such as "
                "barrier. Move them there.",
                "settings",
            )
        given = self.model_dump(exclude={"method", "pace", "settings"}, exclude_defaults=True)
        if self.method != "opes" and given:
            name = next(iter(given))
            raise SettingError(
                f"{name} is a setting of opes, but method is {self.method}. Give {self.method} its own under settings.", name
            )
        return self


class RunSection(Section):
    """The biased simulation."""

    length: Picoseconds = Field(1000.0, gt=0, description="length of each walker, ps; rounded to whole times of pace")
    walkers: Whole = Field(2, ge=1, le=1000, description="simulations at the same time that share one bias")
    threads: Whole = Field(
        1,
        ge=1,
        description="threads of each walker on OpenMM's platform CPU; all walkers together use no more than there are cores",
    )
    every: Annotated[Whole, Field(ge=1)] | Literal["auto"] = Field(
        "auto",
        description="MD steps from one evaluation of the CV and its bias to the next (multiple time stepping); auto: as "
        "many as the stiffness of the CV allows without wider kernels, at most 4, and 1 where a student is biased",
    )
    colvar_interval: Picoseconds = Field(
        0.2, gt=0, description="time between rows of COLVAR, ps; rounded to whole evaluations of the bias"
    )
    frame_interval: Picoseconds = Field(
        1.0, gt=0, description="time between saved frames, ps; rounded to whole times of colvar_interval"
    )
    checkpoint_interval: Picoseconds = Field(
        50.0, gt=0, description="time between checkpoints, ps; rounded to whole times of pace"
    )
    accept: Literal["usable", "weak", "not-usable"] = Field(
        "weak", description="the worst verdict with which a CV is still biased; not-usable biases any CV"
    )
    engine: Literal["auto", "eager", "cuda"] = Field(
        "auto",
        description="what evaluates the network; auto: compiled kernels where they are installed; eager: plain PyTorch; "
        "cuda: an NVIDIA GPU",
    )
