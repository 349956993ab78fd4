"""MyST text of the settings in YAML files, from the models that check them."""

import inspect
import re
import types
from dataclasses import MISSING, asdict, fields
from typing import Annotated, Literal, Union, get_args, get_origin

import annotated_types
from pydantic import BaseModel

from openmm_geomgnn.cli.settings.fields import Unit
from openmm_geomgnn.cli.settings.yaml_files import COMMANDS
from openmm_geomgnn.conformers.sources import SOURCES
from openmm_geomgnn.cv.mixers import MIXERS

MODELS = {command.removeprefix("geomgnn "): model for model, command in COMMANDS.items()}
# what is in front of the names of settings that are not a protocol's
PREFIXES = {command: "" if command == "run" else f"{command.split()[0]}." for command in MODELS}
BOUNDS = {annotated_types.Ge: "at least {ge}", annotated_types.Gt: "more than {gt}"}
BOUNDS |= {annotated_types.Le: "at most {le}", annotated_types.Lt: "less than {lt}"}

WORDS = {"bool": "`true` or `false`", "int": "a whole number", "float": "a number", "str": "text"}
WORDS |= {"list of float": "a list of numbers", "str or list of str": "text or a list of texts", "mapping": "a section"}


def protocol_settings(command, level=2):
    """All settings of the file that a command reads; sections of it under headings of their own."""
    return "\n".join(_section(MODELS[command], PREFIXES[command], "", level, command))


def _section(model, prefix, path, level, command):
    """Settings of a model, then its sections under headings of their own."""
    sections = []
    for name, field in model.model_fields.items():
        key, inner = f"{path}{name}", section_of(field)
        if inner is None:
            yield from setting(f"{prefix}{key}", field)
            continue
        heading = f"Section `{key}`"
        here = f"#{_target(prefix, key)}"
        if command != "run" and name == "cv":
            here, text = "run.md#section-cv", ["The settings are those of [a protocol](run.md#section-cv)."]
        else:
            text = [sentence(inspect.cleandoc(inner.__doc__)), "", *_section(inner, prefix, f"{key}.", level + 1, command)]
        yield from setting(f"{prefix}{key}", field, kind=f"[a section]({here})" + ", or null" * (_takes_null(field)))
        sections.append((_target(prefix, key), heading, text))
    for target, heading, text in sections:
        yield from ("", f"({target})=", f"{'#' * level} {heading}", "", *text)


def _target(prefix, key):
    return f"section-of-{prefix}{key}".replace(".", "-").replace("_", "-")


def _takes_null(field):
    return type(None) in _parts(field.annotation)


def setting(name, field, kind=None):
    """The lines of one setting."""
    section = kind is not None and field.default is not None
    yield f":::{{setting}} {name}" + ("" if section else f" = {default_text(field)}")
    yield sentence(field.description)
    kind = kind or kind_text(field)
    if kind:
        yield from ("", "{.setting-kind}", kind)
    yield ":::"
    yield ""


def sentence(text):
    """A description as a sentence of Markdown; names of settings and values are left as they are."""
    text = plain(text.strip())
    return text[0].upper() + text[1:] + ("" if text.endswith(".") else ".")


def plain(text):
    """Text in which * and < outside of code mean themselves."""
    return re.sub(r"(``.*?``|`.*?`)|([*<])", lambda match: match[1] or f"\\{match[2]}", text)


def section_of(field):
    """The section that a field holds, or None."""
    kinds = [field.annotation, *get_args(field.annotation)]
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)


# ---------------------------------------------------------------------------------------------------- kinds and defaults


def unit_of(field):
    """The unit of a setting, or None."""
    found = [entry for entry in [*field.metadata, *_metadata(field.annotation)] if isinstance(entry, Unit)]
    return found[0].name if found else None


def _metadata(annotation):
    if get_origin(annotation) is Annotated:
        yield from annotation.__metadata__
    for part in get_args(annotation):
        yield from _metadata(part)


def kind_text(field):
    """What may be written: the unit or the kind of the value, whether null is a choice, its bounds."""
    unit, parts = unit_of(field), list(_parts(field.annotation))
    kinds = [f"unit: {unit}"] if unit else []
    if not unit:
        for part in parts:
            text = _kind(part)
            if text and text not in kinds:
                kinds.append(text)
    null = type(None) in parts
    text = " or ".join(kinds) + (", or null" if null and kinds else "")
    bounds = [BOUNDS[type(entry)].format(**asdict(entry)) for entry in _bounds(field)]
    return "; ".join(filter(None, [text, " and ".join(bounds)]))


def _bounds(field):
    return [entry for entry in field.metadata if type(entry) in BOUNDS]


def _parts(annotation):
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from _parts(get_args(annotation)[0])
    elif origin in (Union, types.UnionType):
        for part in get_args(annotation):
            yield from _parts(part)
    else:
        yield annotation


def _kind(part):
    origin = get_origin(part)
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in get_args(part))
    if origin in (tuple, list):
        return "a list"
    if origin is dict:
        return "a section of `name: value` lines"
    return WORDS.get(getattr(part, "__name__", None), "")


def default_text(field):
    """A default as it would be written in a file."""
    if field.is_required():
        return "required"
    if field.default is None and field.validate_default:
        return "made from the file's name"
    value, unit = field.get_default(call_default_factory=True), unit_of(field)
    if unit and isinstance(value, tuple):
        return f"[{', '.join('null' if one is None else f'{one:g} {unit}' for one in value)}]"
    if unit and value is not None:
        text = str(value).removesuffix(".0")
        return text + (unit[1:] if unit.startswith("1/") else f" {unit}")
    return _written(value)


# ------------------------------------------------------------------------------------------- what docstrings describe


def mixer_settings():
    """The settings of every mixer, from the dataclass that checks them; what a mixer is, from its own docstring."""
    lines = []
    for name, mixer in MIXERS.items():
        summary, _ = numpydoc_entries(mixer, "Parameters")
        lines += ["", f"## `{name}`", "", plain(summary), "", *_described(mixer.settings_class, f"mixer.{name}.")]
    return "\n".join(lines)


def source_settings():
    """The settings of every source of conformers, from the docstrings and fields of their classes."""
    lines = []
    for name, source in SOURCES.items():
        summary, _ = numpydoc_entries(source, "Attributes")
        lines += ["", f"## `{name}`", "", plain(summary), "", *_described(source, f"data.sources.{name}.")]
    return "\n".join(lines)


def _described(cls, prefix):
    """The fields of a dataclass, described by the attributes in its docstring and in those of its bases."""
    entries = {}
    for base in reversed(cls.__mro__[:-1]):
        if base.__doc__:
            entries |= numpydoc_entries(base, "Attributes")[1]
    missing = {field.name for field in fields(cls)} - set(entries)
    if missing:
        raise ValueError(f"{cls.__name__} says nothing of {', '.join(sorted(missing))}")
    own = list(vars(cls).get("__annotations__", {}))
    # a class's own settings first, then those it shares with others
    for field in sorted(fields(cls), key=lambda field: own.index(field.name) if field.name in own else len(own)):
        kind, text = entries[field.name]
        kind = WORDS.get(kind, kind)
        default = field.default if field.default_factory is MISSING else field.default_factory()
        yield f":::{{setting}} {prefix}{field.name} = {_written(default)}"
        yield sentence(text)
        if kind:
            yield from ("", "{.setting-kind}", plain(kind))
        yield from (":::", "")


def _written(default):
    """A default as it would be written in a file."""
    if default is MISSING:
        return "required"
    if default is None or isinstance(default, bool):
        return "null" if default is None else str(default).lower()
    if isinstance(default, (list, tuple)):
        return f"[{', '.join('null' if one is None else str(one) for one in default)}]"
    return str(default)


def numpydoc_entries(cls, heading):
    """The text before the first section of a docstring, and {name: (type, text)} of one section."""
    sections = re.split(r"^(\w[\w ]*)\n-+\n", inspect.cleandoc(cls.__doc__), flags=re.MULTILINE)
    by_name = dict(zip(sections[1::2], sections[2::2], strict=True))
    entries = {}
    for match in re.finditer(r"^(\S.*)\n((?:[ \t]+.*\n?|\n)*)", by_name.get(heading, "") + "\n", re.MULTILINE):
        names, _, kind = match[1].partition(" : ")
        text = " ".join(inspect.cleandoc(match[2]).split())
        for name in names.split(","):
            entries[name.strip().strip("`")] = (kind, text)
    return sections[0].strip(), entries
