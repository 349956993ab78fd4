"""The kinds of values of settings: quantities, plain numbers, files that must exist, files to be written."""

import glob
import math
import os
from dataclasses import dataclass
from importlib.metadata import entry_points
from importlib.util import find_spec
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationInfo,
    model_validator,
)
from pydantic_core import PydanticCustomError

from openmm_geomgnn.aliases import PathLike
from openmm_geomgnn.cli.names import PROTOCOL
from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.plugins import known_names, plugin_names
from openmm_geomgnn.representation import shipped
from openmm_geomgnn.representation.trajectory_files import WITH_TIMES
from openmm_geomgnn.units import did_you_mean, quantity

STRUCTURES = (".pdb", ".ent", ".cif", ".mmcif", ".pdbx")
TOPOLOGIES = (*STRUCTURES, ".gro", ".prmtop", ".parm7", ".psf", ".mol2", ".h5")
LONGEST_NAME, LONGEST_PATH = 255, 4000  # what file systems take
LARGEST_WHOLE = 2**53  # to which floats count
NARROWEST_KERNEL, WIDEST_KERNEL = 1e-9, 1e9  # in units of the CV
TRAJECTORIES = (*WITH_TIMES, ".dcd", ".nc", ".ncdf", ".netcdf", ".mdcrd", ".crd", ".binpos", ".pdb", ".gsd", ".dtr")


class SettingError(GeomGNNError):
    """A setting that does not fit the others. `location`: its place in the file, such as ("bias", "pace")."""

    def __init__(self, message: str, *location: str | int) -> None:
        super().__init__(message)
        self.location = location


class Section(BaseModel):
    """A part of the settings.

    Unknown keys are refused, nothing can be changed later, and a key without a value (null) keeps its default, except where
    null is a choice of its own.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="constants")

    @model_validator(mode="before")
    @classmethod
    def _leave_out_empty_keys(cls, data: Any) -> Any:
        if data is None:
            return {}
        if not isinstance(data, dict):
            return data
        return {key: value for key, value in data.items() if value is not None or cls._takes_null(key)}

    @classmethod
    def _takes_null(cls, key: str) -> bool:
        if key not in cls.model_fields:
            return True  # it is refused as unknown
        kind = cls.model_fields[key].annotation
        return type(None) in get_args(kind) or isinstance(kind, type) and issubclass(kind, Section)


# ------------------------------------------------------------------------------------------------------------- numbers


@dataclass(frozen=True)
class Unit:
    """The unit in which a setting is stored, and in which a number without a unit is read."""

    name: str


def _in(unit: str, smallest: float, largest: float) -> Any:
    """A number in a unit; unless it is 0 it must be between `smallest` and `largest`, the limits of any simulation."""

    def read(value: Any, info: ValidationInfo) -> Any:
        number = quantity(value, unit, info.field_name)
        if number and not smallest <= abs(number) <= largest:
            bound = f"at least {smallest:g}" if abs(number) < smallest else f"at most {largest:g}"
            raise GeomGNNError(f"{info.field_name} is {value}, but it must be {bound} {unit}.")
        return number

    def write(value: float) -> str:
        # "0.5/ps", not "0.5 1/ps"
        return str(value).removesuffix(".0") + (unit[1:] if unit.startswith("1/") else f" {unit}")

    return Annotated[float, Unit(unit), BeforeValidator(read), PlainSerializer(write, when_used="json")]


Picoseconds = _in("ps", 1e-6, 1e12)  # a second
KilojoulesPerMole = _in("kJ/mol", 1e-6, 1e6)
Kelvin = _in("K", 1, 1e4)
PerPicosecond = _in("1/ps", 1e-9, 1e6)
Daltons = _in("amu", 1e-3, 1e6)
Nanometres = _in("nm", 1e-6, 1e4)


def plain_number(value: Any, name: str, finite: bool = True) -> float:
    """Read a float from a number, or its text ("1e-3", which YAML reads as text). Raises GeomGNNError for anything else."""
    try:
        number = math.nan if isinstance(value, bool) or not isinstance(value, (Real, str)) else float(value)
    except (ValueError, OverflowError):
        number = math.nan
    if math.isnan(number) or finite and math.isinf(number):
        raise GeomGNNError(f"{name} is {value!r}, but it must be a number, without a unit.")
    return number


def _whole(value: Any, info: ValidationInfo) -> Any:
    if isinstance(value, bool):
        raise GeomGNNError(f"{info.field_name} is {str(value).lower()}, but it must be a whole number.")
    return value


def _countable(value: Any, info: ValidationInfo) -> Any:
    if abs(value) > LARGEST_WHOLE:
        raise GeomGNNError(f"{info.field_name} is {value:g}, but it must be at most {LARGEST_WHOLE:g}.")
    return value


def _widths(value: Any, info: ValidationInfo) -> Any:
    name = info.field_name
    widths = [plain_number(width, name) for width in (value if isinstance(value, (list, tuple)) else [value])]
    if not widths or min(widths) <= 0:
        raise GeomGNNError(f"{name} is {value}, but widths of kernels must be greater than 0, one per component.")
    if not NARROWEST_KERNEL <= min(widths) <= max(widths) <= WIDEST_KERNEL:
        raise GeomGNNError(
            f"{name} is {value}, but widths of kernels must lie between {NARROWEST_KERNEL:g} and {WIDEST_KERNEL:g}, in "
            "units of the CV."
        )
    return tuple(widths) if isinstance(value, (list, tuple)) else widths[0]


Number = Annotated[float, BeforeValidator(lambda value, info: plain_number(value, info.field_name))]
NumberOrInfinity = Annotated[float, BeforeValidator(lambda value, info: plain_number(value, info.field_name, False))]
Whole = Annotated[int, BeforeValidator(_whole), AfterValidator(_countable)]
Widths = Annotated[float | tuple[float, ...], BeforeValidator(_widths)]


# --------------------------------------------------------------------------------------------------------------- names

OurMixer = Literal["none", "mlp", "attention", "equivariant-attention", "message-passing", "token-merging"]
OurBias = Literal["opes"]
OUR_MIXERS, OUR_BIASES = get_args(OurMixer), get_args(OurBias)


def _name_of(kind: str, ours: Any) -> BeforeValidator:
    """A validator of names of a kind, of ours or of installed packages; its error is the one that pydantic has."""

    def check(value: Any) -> Any:
        if value not in ours and value not in plugin_names(kind):
            *names, last = map(repr, known_names(kind, dict.fromkeys(ours)))
            expected = {"expected": f"{', '.join(names)} or {last}" if names else last}
            raise PydanticCustomError("literal_error", "Input should be {expected}", expected)
        return value

    return BeforeValidator(check)


MixerName = Annotated[OurMixer | str, _name_of("mixer", OUR_MIXERS)]
BiasName = Annotated[OurBias | str, _name_of("bias", OUR_BIASES)]

# --------------------------------------------------------------------------------------------------------------- files


def find_file(name: PathLike, folder: PathLike = ".", what: str = "file", endings: tuple[str, ...] | None = None) -> Path:
    """Find the absolute path of a file named relative to `folder` or, by its bare name, of one that the package ships.

    Raises GeomGNNError if there is none (naming the nearest ones) or its suffix is not among `endings`.
    """
    path = _path(name, what)
    if endings and path.suffix.lower() not in endings:
        raise GeomGNNError(f"The {what} '{name}' must be a file that ends in {', '.join(endings)}.")
    found = Path(folder) / path
    if not found.is_file() and path.name == str(path) and (shipped.DATA / path).is_file():
        found = shipped.DATA / path
    if not found.is_file():
        where = Path(os.path.abspath(found)).parent
        ours = shipped.shipped_files((path.suffix,))
        message = f"There is no {what} '{name}' in {where}"
        message += ", nor among the files that come with openmm-geomgnn." if path.name == str(path) else "."
        message += did_you_mean(path.name, shipped.file_names(where, (path.suffix,)) + ours)
        raise GeomGNNError(message + (f" Shipped: {', '.join(ours)}." if ours else ""))
    return Path(os.path.abspath(found))


def find_trajectories(patterns: Any, folder: PathLike = ".") -> tuple[Path, ...]:
    """Find absolute paths of trajectories from names and glob patterns relative to `folder`; each file once, in order.

    Raises GeomGNNError if a name or a pattern has no file, or one that mdtraj cannot read.
    """
    found = []
    for pattern in patterns:
        text = str(_path(pattern, "trajectory"))
        if not glob.has_magic(text) or (Path(folder) / text).is_file():
            files = [find_file(text, folder, "trajectory", TRAJECTORIES)]
        else:
            matches = (Path(folder) / match for match in sorted(glob.glob(text, root_dir=folder, recursive=True)))
            files = [Path(os.path.abspath(match)) for match in matches if match.is_file()]
            strange = [str(file) for file in files if file.suffix.lower() not in TRAJECTORIES]
            if strange or not files:
                problem = f"also matches {strange[0]}" if strange else "matches nothing"
                raise GeomGNNError(
                    f"'{pattern}' {problem} in {os.path.abspath(folder)}. Give names or patterns of trajectories that "
                    f"mdtraj reads: {', '.join(TRAJECTORIES)}."
                )
        found += [file for file in files if file not in found]
    return tuple(found)


def find_store(name: PathLike, folder: PathLike = ".") -> Path:
    """Find the absolute path of a store of embeddings, a folder named relative to `folder`."""
    path = Path(os.path.abspath(Path(folder) / _path(name, "store of embeddings")))
    if not path.is_dir():
        near = [entry.name for entry in path.parent.glob("*.zarr")]
        raise GeomGNNError(
            f"There is no store of embeddings '{name}' in {path.parent}.{did_you_mean(path.name, near)} `geomgnn embed` "
            "makes one."
        )
    return path


def find_run(name: PathLike, folder: PathLike = ".") -> Path:
    """Find the absolute path of an output folder of `geomgnn run`, named relative to `folder`."""
    path = Path(os.path.abspath(Path(folder) / _path(name, "folder of a run")))
    if not (path / PROTOCOL).is_file():
        raise GeomGNNError(
            f"{path} is not a folder of `geomgnn run`: it has no {PROTOCOL}. Give the output folder of a run, or the files "
            "of another simulation by files, colvar and bias."
        )
    return path


def find_cv(name: PathLike, folder: PathLike = ".") -> Path:
    """Find the absolute path of a CV file, named relative to `folder`."""
    path = Path(os.path.abspath(Path(folder) / _path(name, "CV file")))
    if not path.is_file():
        near = did_you_mean(path.name, shipped.file_names(path.parent, (".safetensors",)))
        raise GeomGNNError(f"There is no CV file '{name}' in {path.parent}.{near} `geomgnn fit` and `geomgnn run` make one.")
    return path


def find_forcefield(name: PathLike, folder: PathLike = ".") -> str:
    """Find a force field XML file: the absolute path of one relative to `folder`, else the name of one in OpenMM."""
    path = _path(name, "force field")
    if (Path(folder) / path).is_file():
        return _checked_forcefield(os.path.abspath(Path(folder) / path))
    folders = [Path(find_spec("openmm").origin).parent / "app" / "data"]
    if (folders[0] / path).is_file():
        return str(name)
    # packages such as openmmforcefields announce theirs
    folders += [Path(entry.load()()) for entry in entry_points(group="openmm.forcefielddir")]
    if any((other / path).is_file() for other in folders):
        return str(name)
    known = [file.relative_to(other).as_posix() for other in folders for file in sorted(other.rglob("*.xml"))]
    raise GeomGNNError(
        f"There is no force field '{name}' in {os.path.abspath(folder)}, nor among those of OpenMM."
        f"{did_you_mean(name, known)} Common ones: amber14-all.xml, amber14/tip3pfb.xml, implicit/obc2.xml."
    )


def _checked_forcefield(path: PathLike) -> str:
    """Check that the outermost element of an XML file is that of a force field; returns its path."""
    from xml.etree import ElementTree

    try:
        root = ElementTree.parse(path).getroot().tag
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise GeomGNNError(
            f"The force field {path} is not XML ({error}). Give a file that OpenMM's ForceField reads, or the name of one "
            "of OpenMM's own, as amber14-all.xml."
        ) from error
    if root != "ForceField":
        raise GeomGNNError(
            f"{path} is an XML file, but not a force field: its outermost element is <{root}> and must be <ForceField>. "
            "Give a file that OpenMM's ForceField reads, or the name of one of OpenMM's own, as amber14-all.xml."
        )
    return path


def find_encoder(name: PathLike, folder: PathLike = ".") -> str:
    """The name of an encoder that is shipped or of an installed package, or the absolute path of a file as a str."""
    if _path(name, "encoder").suffix:
        return str(find_file(name, folder, "encoder", shipped.ENCODER_ENDINGS))
    if name not in shipped.known_encoders():
        raise shipped.unknown_encoder(name)
    return name


def _path(value: Any, what: str) -> Path:
    """The path that a text is, `~` resolved. Raises GeomGNNError for what cannot be the name of a file."""
    if not isinstance(value, (str, Path)) or not str(value).strip():
        raise GeomGNNError(f"The {what} is {value!r}, but it must be the name of a file.")
    path = Path(os.path.expanduser(value))
    try:
        longest = max((len(os.fsencode(part)) for part in path.parts), default=0)
    except UnicodeEncodeError:
        longest = LONGEST_NAME + 1
    if longest > LONGEST_NAME or "\0" in str(path) or len(str(path)) > LONGEST_PATH:
        shown = str(value) if len(str(value)) < 60 else f"{str(value)[:57]}..."
        raise GeomGNNError(
            f"The {what} is {shown!r}, but no file can have this name: it is longer than {LONGEST_NAME} bytes between two "
            "slashes, or holds a character that cannot be in one."
        )
    return path


def _folder(info: ValidationInfo) -> Any:
    return (info.context or {}).get("folder", ".")


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, (str, Path)) else value


def _trajectories(value: Any, info: ValidationInfo) -> Any:
    value = _listed(value)
    return find_trajectories(value, _folder(info)) if isinstance(value, (list, tuple)) else value


def _output(default: Any, ending: str = "", what: str = "") -> Any:
    def place(value: Any, info: ValidationInfo) -> Path:
        name = (info.context or {}).get("name", "geomgnn")
        path = _path(default.format(name=name) if value is None else value, "output")
        if ending and path.suffix != ending:
            raise GeomGNNError(f"output is '{value}', but {what}: write '{path}{ending}'.")
        return Path(os.path.abspath(path))

    return Annotated[Path, BeforeValidator(place)]


def _file(what: str, endings: tuple[str, ...]) -> Any:
    return Annotated[Path, BeforeValidator(lambda value, info: find_file(value, _folder(info), what, endings))]


def alone(value: Any) -> Any:
    """One value as a list of one; null is a value, too."""
    return value if isinstance(value, (list, tuple)) else [value]


OutputFolder = _output("runs/{name}")
RESULTS = Field(
    None,
    validate_default=True,
    description="folder of the results, relative to where the command runs; by default runs/NAME for NAME.yaml",
)
OutputCV = _output("{name}.cv.safetensors", ".safetensors", "a CV is a .safetensors file")
OutputScores = _output("{name}.scores")
OutputProjection = _output("{name}.projection")
OutputFile = _output("{name}.colvar")
OutputStore = _output("{name}.zarr", ".zarr", "embeddings are a .zarr folder")
if TYPE_CHECKING:
    Structures = tuple[Path, ...]
    ColvarFiles = tuple[Path, ...]
else:
    ColvarFiles = Annotated[tuple[_file("COLVAR file", ()), ...], BeforeValidator(_listed)]
    Structures = Annotated[tuple[_file("structure", STRUCTURES), ...], BeforeValidator(_listed)]
Structure = _file("structure", (*STRUCTURES, ".gro", ".h5"))
Topology = _file("topology", TOPOLOGIES)
Trajectories = Annotated[tuple[Path, ...], BeforeValidator(_trajectories)]
CVFile = Annotated[Path, BeforeValidator(lambda value, info: find_cv(value, _folder(info)))]
Names = Annotated[tuple[str, ...], BeforeValidator(_listed)]
RunFolder = Annotated[Path, BeforeValidator(lambda value, info: find_run(value, _folder(info)))]
Store = Annotated[Path, BeforeValidator(lambda value, info: find_store(value, _folder(info)))]
ForceFieldFile = Annotated[str, BeforeValidator(lambda value, info: find_forcefield(value, _folder(info)))]
ForceField = Annotated[tuple[ForceFieldFile, ...], BeforeValidator(_listed)]
EncoderName = Annotated[str, BeforeValidator(lambda value, info: find_encoder(value, _folder(info)))]
if TYPE_CHECKING:
    EncoderNames = tuple[str, ...]
else:
    EncoderNames = Annotated[tuple[EncoderName, ...], BeforeValidator(_listed)]
