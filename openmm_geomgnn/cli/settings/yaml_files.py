"""Protocols and fits as YAML files: read them, say in which line something is wrong, write them out in full."""

import os
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast, get_args

from pydantic import BaseModel, ValidationError

from openmm_geomgnn.aliases import PathLike
from openmm_geomgnn.cli.settings.compute import Compute
from openmm_geomgnn.cli.settings.conformers import DataBuild
from openmm_geomgnn.cli.settings.diagnose import Diagnose
from openmm_geomgnn.cli.settings.distill import Distill
from openmm_geomgnn.cli.settings.fields import Section, find_file
from openmm_geomgnn.cli.settings.forces import Forces
from openmm_geomgnn.cli.settings.label_noise import LabelNoise
from openmm_geomgnn.cli.settings.project import Project
from openmm_geomgnn.cli.settings.protocol import Embed, Fit, Protocol, Schedule
from openmm_geomgnn.cli.settings.scaling import Scaling
from openmm_geomgnn.cli.settings.score import Score
from openmm_geomgnn.cli.settings.structures import Structures
from openmm_geomgnn.cli.settings.supervised import Supervised
from openmm_geomgnn.cli.settings.transfer import Transfer
from openmm_geomgnn.cli.settings.yaml_text import Lines, read_value, read_yaml, write_yaml
from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.formatting import format_setting
from openmm_geomgnn.units import did_you_mean

S = TypeVar("S", bound=Section)

__all__ = [
    "Compute",
    "Diagnose",
    "Distill",
    "Embed",
    "Fit",
    "Forces",
    "LabelNoise",
    "Project",
    "Protocol",
    "Scaling",
    "Schedule",
    "Score",
    "Structures",
    "Supervised",
    "Transfer",
    "compute_settings",
    "distill_settings",
    "dump",
    "embed_settings",
    "load_data_build",
    "load_diagnose",
    "load_distill",
    "load_embed",
    "load_fit",
    "load_forces",
    "load_label_noise",
    "load_project",
    "load_protocol",
    "load_scaling",
    "load_score",
    "load_structures",
    "load_supervised",
    "load_transfer",
]

COMMANDS = {
    Protocol: "geomgnn run",
    Fit: "geomgnn fit",
    Score: "geomgnn score",
    Project: "geomgnn project",
    Embed: "geomgnn embed",
    Distill: "geomgnn distill",
    Compute: "geomgnn compute",
    DataBuild: "geomgnn data build",
    LabelNoise: "geomgnn label-noise",
    Scaling: "geomgnn scaling",
    Supervised: "geomgnn supervised",
    Forces: "geomgnn forces",
    Diagnose: "geomgnn diagnose",
    Transfer: "geomgnn transfer",
    Structures: "geomgnn structures",
}
COMMAND_LINE = "the command line"  # where settings are that are in no file
# among the options of `geomgnn embed` and `geomgnn distill`
_NUMBERS, _FILES = ("context", "stride", "chunk", "workers", "hidden", "labels", "distances"), ("encoder", "reference")
# pydantic's type of error -> what the value must be, from its context
REQUIREMENTS = {
    "greater_than": "greater than {gt:g}",
    "greater_than_equal": "at least {ge:g}",
    "less_than": "less than {lt:g}",
    "less_than_equal": "at most {le:g}",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing_size": "a smaller number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "text",
    "literal_error": "{expected}",
    "tuple_type": "a list",
    "too_short": "a list of {min_length} or more",
    "dict_type": "a section of 'key: value' lines",
    "model_type": "a section of 'key: value' lines",
}


def _load(model: type[S], path: PathLike, overrides: Mapping[str, Any] | None = None) -> S:
    """The settings in a YAML file.

    Parameters
    ----------
    path : str or path
        The file, or the name of one that the package ships. Files named in it are relative to it.
    overrides : dict, optional
        Values that replace those of the file, by dotted keys: {"run.length": "50 ps", "output": "runs/short"}.

    Raises
    ------
    GeomGNNError
        One paragraph that says what is wrong in which line, and what to do. Doubtful settings give a UserWarning.
    """
    path = find_file(path, os.getcwd(), "settings file", (".yaml", ".yml"))
    data, lines = read_yaml(path)
    for key, value in (overrides or {}).items():
        _override(data, lines, tuple(key.split(".")), value)
    return _validated(model, data, lines, {"folder": path.parent, "name": path.stem}, path.name)


load_protocol = partial(_load, Protocol)
load_fit = partial(_load, Fit)
load_score = partial(_load, Score)
load_project = partial(_load, Project)
load_embed = partial(_load, Embed)
load_distill = partial(_load, Distill)
load_data_build = partial(_load, DataBuild)
load_label_noise = partial(_load, LabelNoise)
load_scaling = partial(_load, Scaling)
load_supervised = partial(_load, Supervised)
load_forces = partial(_load, Forces)
load_diagnose = partial(_load, Diagnose)
load_transfer = partial(_load, Transfer)
load_structures = partial(_load, Structures)


def embed_settings(inputs: Sequence[str], options: Mapping[str, Any]) -> Embed:
    """The `Embed` of a command line: a topology and trajectories, or one YAML file of which `options` replace settings.

    Files on the command line are relative to where it runs.
    """
    missing = "The folder for the embeddings is missing: give it, as in `geomgnn embed a.pdb a.xtc -o a.zarr`."
    return _from_command_line(Embed, ("topology",), inputs, options, missing)


def distill_settings(inputs: Sequence[str], options: Mapping[str, Any]) -> Distill:
    """The `Distill` of a command line: a CV file, a topology and trajectories, or one YAML file, as in `embed_settings`."""
    example = "geomgnn distill a.cv.safetensors a.pdb a.xtc -o student.cv.safetensors"
    missing = f"The file for the student is missing: give it, as in `{example}`."
    return _from_command_line(Distill, ("cv", "topology"), inputs, options, missing)


def compute_settings(inputs: Sequence[str], options: Mapping[str, Any]) -> Compute:
    """The `Compute` of a command line, as in `distill_settings`."""
    missing = "The file for the values is missing: give it, as in `geomgnn compute a.cv.safetensors a.pdb a.xtc -o COLVAR`."
    return _from_command_line(Compute, ("cv", "topology"), inputs, options, missing)


def _from_command_line(
    model: type[S], names: Sequence[str], inputs: Sequence[str], options: Mapping[str, Any], missing: str
) -> S:
    """Settings from files called `names`, then trajectories; or from one YAML file. missing: the error without output."""
    numbers = {name: read_value(value, f"--{name}") for name, value in options.items() if name in _NUMBERS}
    options = {**options, **numbers}
    if len(inputs) == 1 and Path(inputs[0]).suffix in (".yaml", ".yml"):
        here = {name: os.path.abspath(value) for name, value in options.items() if name in _FILES and Path(value).suffix}
        return _load(model, inputs[0], {**options, **here})
    if "output" not in options:
        raise GeomGNNError(missing)
    data = {**dict(zip(names, inputs, strict=False)), "trajectories": inputs[len(names) :], **options}
    return _validated(model, data, {}, {"folder": os.getcwd()}, COMMAND_LINE)


def dump(config: Section) -> str:
    """Write all settings of a `Protocol` or `Fit` as YAML, with defaults filled in and absolute paths.

    The text loads back to the same settings.
    """
    data = config.model_dump(mode="json")
    return f"# All settings, for `{COMMANDS[type(config)]}`.\n{write_yaml(data)}"


def _validated(model: type[S], data: Any, lines: Lines, context: Mapping[str, Any], source: str) -> S:
    """The settings in `data`; `lines` of the keys and the name of their `source` are for errors."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            config = model.model_validate(data, context=context)
        except ValidationError as error:
            raise GeomGNNError(_explain(error, model, source, lines)) from None
    for warning in caught:
        text = f"{source}: {warning.message}" if issubclass(warning.category, UserWarning) else warning.message
        warnings.warn(text, warning.category, stacklevel=3)
    return config


def _override(data: Any, lines: Lines, keys: Any, value: Any) -> None:
    keys = list(keys)
    for i, key in enumerate(keys):
        if isinstance(data, list):
            if not (key.isdigit() and int(key) < len(data)):
                written = ".".join(map(str, keys))
                raise GeomGNNError(f"'{written}' has '{key}' in it where a number below {len(data)} is needed.")
            keys[i] = int(key)
        if i == len(keys) - 1:
            data[keys[i]] = value
        else:
            there = isinstance(data, list) or isinstance(data.get(key), (dict, list))
            data[keys[i]] = data[keys[i]] if there else {}
            data = data[keys[i]]
    keys = tuple(keys)
    for location in [location for location in lines if location[: len(keys)] == keys]:
        del lines[location]
    lines[keys] = None


# -------------------------------------------------------------------------------------------------------------- errors


def _explain(error: ValidationError, model: type[BaseModel], file: str, lines: Lines) -> str:
    """One paragraph about the first problem in the file, and where the others are."""
    problems = []
    for problem in error.errors(include_url=False):
        cause = problem.get("ctx", {}).get("error")
        location = problem["loc"] + getattr(cause, "location", ())
        problems.append((_line(location, lines), location, problem, cause))
    # unknown keys first and missing ones last: one may be the other under a wrong name
    rank = {"extra_forbidden": 0, "missing": 2}
    problems.sort(key=lambda entry: (rank.get(entry[2]["type"], 1), entry[0] or 0))
    line = problems[0][0]
    text = _describe(model, file, *problems[0])
    others = sorted({other for other, *_ in problems[1:] if other not in (None, line)})
    if others:
        text += f" There is more to correct in line{'s' * (len(others) > 1)} {', '.join(map(str, others))}."
    return text


def _line(location: tuple, lines: Lines) -> int | None:
    """The line of a setting, or of the innermost section around it that is in the file; None for an override."""
    while location and location not in lines:
        location = location[:-1]
    return lines.get(location, 1)


def _describe(model: type[BaseModel], file: str, line: int | None, location: tuple, problem: Any, cause: Any) -> str:
    place = f"{file} (line {line})" if line else f"{file} (overridden when it was loaded)"
    if file == COMMAND_LINE:
        place = file
    keys = [part for part in location if isinstance(part, str)]
    section: type[BaseModel] | None = model
    field: Any = None
    path = []
    for key in keys:
        field = section.model_fields.get(key) if section else None
        path.append(key)
        if field is None:
            break
        section = _section_of(field)
    name, parents = path[-1] if path else file, ".".join(path[:-1])
    if problem["type"] == "extra_forbidden":
        owner = _at(model, path[:-1])
        where = f" in section {parents}" if parents else ""
        known = ", ".join(owner.model_fields)
        return f"Unknown key '{name}'{where} of {place}.{_hint(model, owner, name)} Known keys: {known}."
    where = f"In section {parents} of {place}: " if parents else f"In {place}: "
    described = f" ({field.description})" if field else ""
    if cause is not None:
        return where + str(cause)
    if problem["type"] == "missing":
        return f"{where}{name} is missing{described}."
    needed = REQUIREMENTS.get(problem["type"])
    if needed is None:
        return f"{where}{name} is {problem['input']!r}{described}. {problem['msg']}."
    needed = needed.format(**problem.get("ctx", {}))
    choices = re.findall(r"'([^']*)'", needed) if problem["type"] == "literal_error" else ()
    guess = did_you_mean(problem["input"], choices)
    return f"{where}{name} is {format_setting(problem['input'])}, but must be {needed}{described}.{guess}"


def _hint(model: type[BaseModel], owner: type[BaseModel], name: str) -> str:
    """Suggest the intended key: a similar one, one of another section, or one of the other kind of file."""
    homes = [path for path, section in _sections(model) if name in section.model_fields and section is not owner]
    if homes:
        return f" It belongs in section {homes[0]}." if homes[0] else " It belongs outside of any section."
    commands: Mapping[Any, str] = COMMANDS
    others = [command for kind, command in commands.items() if kind is not model and name in kind.model_fields]
    if owner is model and others:
        return f" It belongs in a file for `{others[0]}`; this one was read for `{COMMANDS[model]}`."
    return did_you_mean(name, owner.model_fields)


def _sections(model: type[BaseModel], path: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    yield path, model
    for name, field in model.model_fields.items():
        section = _section_of(field)
        if section is not None:
            yield from _sections(section, f"{path}.{name}".lstrip("."))


def _at(model: type[BaseModel], path: Sequence[str]) -> type[BaseModel]:
    for key in path:
        model = cast(type[BaseModel], _section_of(model.model_fields[key]))
    return model


def _section_of(field: Any) -> type[BaseModel] | None:
    """The section that a field holds, or None."""
    kinds = [field.annotation, *get_args(field.annotation)]
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)
