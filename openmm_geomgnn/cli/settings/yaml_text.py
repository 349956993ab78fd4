"""YAML as settings are written in it: every value with its line, and nothing that is read as what it does not look like."""

import re
from pathlib import Path
from typing import Any, TypeAlias

import yaml

from openmm_geomgnn.errors import GeomGNNError

MOST_VALUES = 100_000  # in one file, each anchor counted wherever it is used
DEEPEST = 30  # lists and sections within one another
LONGEST = 10_000  # characters of one value
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]")
_WHOLE = re.compile(r"[-+]?[0-9][0-9_]{0,20}$")
_TAG = "tag:yaml.org,2002:"
Lines: TypeAlias = dict[tuple, int | None]  # path of a key in the file -> its line; None if it was overridden


_NUMBERS = {
    f"{_TAG}int": (_WHOLE, "-+0123456789"),
    f"{_TAG}float": (
        re.compile(
            r"(?:[-+]?[0-9][0-9_]*\.[0-9_]*(?:[eE][-+][0-9]+)?|[-+]?\.[0-9][0-9_]*(?:[eE][-+][0-9]+)?"
            r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
        ),
        "-+0123456789.",
    ),
}


class _Loader(yaml.SafeLoader):
    """Numbers as people read them: YAML 1.1 takes 1:30 for 90 and 010 for 8."""

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag not in _NUMBERS]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


class _Dumper(yaml.SafeDumper):
    """Lists on one line, and no anchors."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Loader.add_constructor(f"{_TAG}int", lambda loader, node: int(loader.construct_scalar(node).replace("_", "")))
_Dumper.add_representer(list, lambda dumper, data: dumper.represent_sequence(f"{_TAG}seq", data, True))
for _tag, (_pattern, _first) in _NUMBERS.items():
    _Loader.add_implicit_resolver(_tag, _pattern, list(_first))
    _Dumper.add_implicit_resolver(_tag, _pattern, list(_first))  # text that looks like a number is quoted


def write_yaml(data: Any) -> str:
    """YAML text that `read_yaml` takes back to `data`."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def read_yaml(path: Path) -> tuple[dict[str, Any], Lines]:
    """The content of a YAML file, a mapping, and the line of every key: {("run", "length"): 12, ...}.

    Raises
    ------
    GeomGNNError
        If it is not text, no YAML or no mapping, has a key twice, or is larger than settings can be.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise GeomGNNError(_NO_TEXT.format(path)) from error
    except OSError as error:
        raise GeomGNNError(f"{path} cannot be read: {error.strerror}. Check its permissions.") from error
    try:
        return _read(text, path.name)
    except yaml.reader.ReaderError as error:
        raise GeomGNNError(_NO_TEXT.format(path)) from error


_NO_TEXT = "{} is not a text file in UTF-8, so it cannot be YAML. Save it as UTF-8."


def read_value(text: str, what: str) -> Any:
    """The value of a setting on the command line; `what` it was given as, for errors.

    Raises
    ------
    GeomGNNError
        If it is no YAML, or nothing at all.
    """
    if not text.strip():
        raise GeomGNNError(f"{what} has no value. Write null for the default, or for none where that is a choice.")
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            _check(node, what)
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except (yaml.YAMLError, ValueError, KeyError, AttributeError, RecursionError) as error:
        if isinstance(error, GeomGNNError):
            raise
        raise GeomGNNError(f"{what} has a value that is not valid YAML: close its brackets and quotes.") from error


def _read(text: str, name: str) -> tuple[dict[str, Any], Lines]:
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None or not isinstance(node, yaml.MappingNode):
            raise GeomGNNError(f"{name} holds no settings: write sections of 'key: value' lines.")
        _check(node, name)
        _check_keys(node, name, set())
        data = _unshared(loader.construct_document(node))
        lines: Lines = {}
        _find_lines(node, (), lines)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = " ".join(filter(None, (error.context, error.problem)))
        raise GeomGNNError(
            f"{name} is not valid YAML at line {mark.line + 1}, column {mark.column + 1}: {problem}. Indent with "
            "spaces, write 'key: value' with a space after the colon, and quote text that holds special characters."
        ) from error
    except RecursionError as error:
        raise GeomGNNError(_TOO_DEEP.format(name)) from error
    except GeomGNNError:
        raise
    except (ValueError, KeyError, AttributeError) as error:  # not what it looks like, as the date 2026-13-01
        raise GeomGNNError(f"{name} holds a value that YAML cannot read: {error}. Quote it.") from error
    finally:
        loader.dispose()
    return data, lines


_TOO_DEEP = f"{{}} has lists or sections within one another, more than {DEEPEST} deep, which no settings have."


def _check(root: yaml.Node, name: str) -> None:
    """Refuse what would take for ever to read: anchors within themselves or used millions of times, brackets in brackets.

    Also characters that cannot stand in a setting or a file's name.
    """
    sizes: dict[int, Any] = {}

    def size(node: Any) -> tuple[int, int]:
        """(values, levels) within a node."""
        where = f"{name} (line {node.start_mark.line + 1})"
        if id(node) in sizes:
            if sizes[id(node)] is None:
                raise GeomGNNError(f"{where} has an anchor (&) that is used (*) inside itself. Write it out instead.")
            return sizes[id(node)]
        sizes[id(node)] = None
        values, levels = 1, 1
        if isinstance(node, yaml.ScalarNode):
            _check_text(node.value, where)
        else:
            pairs = isinstance(node, yaml.MappingNode)
            for child in [child for pair in node.value for child in pair] if pairs else node.value:
                inner = size(child)
                values, levels = values + inner[0], max(levels, 1 + inner[1])
        if levels > DEEPEST:
            raise GeomGNNError(_TOO_DEEP.format(where))
        if values > MOST_VALUES:
            raise GeomGNNError(f"{where} stands for more than {MOST_VALUES} values: use fewer anchors (&) and aliases (*).")
        sizes[id(node)] = values, levels
        return values, levels

    if root is not None:
        size(root)


def _check_text(text: str, where: str) -> None:
    if len(text) > LONGEST:
        raise GeomGNNError(f"{where} holds a value of {len(text)} characters; settings have at most {LONGEST}.")
    strange = _CONTROL.search(text)
    if strange:
        raise GeomGNNError(
            f"{where} holds the character U+{ord(strange[0]):04X}, which can stand in no setting and no file's name. Remove "
            "it, or the escape sequence that makes it."
        )


def _check_keys(node: Any, file: str, seen: set[int]) -> None:
    """Refuse a key given twice, of which YAML would silently take the last, and keys that are not text."""
    if id(node) in seen or not isinstance(node, yaml.CollectionNode):
        return
    seen.add(id(node))
    first_lines: dict[Any, int] = {}
    for entry in node.value:
        if isinstance(node, yaml.SequenceNode):
            _check_keys(entry, file, seen)
            continue
        key, value = entry
        line = key.start_mark.line + 1
        if key.tag not in (f"{_TAG}str", f"{_TAG}merge"):
            shown = f"'{key.value}'" if isinstance(key, yaml.ScalarNode) else "A list or section"
            raise GeomGNNError(f"{shown} in line {line} of {file} cannot be a key: YAML reads it as no text. Quote it.")
        if key.value in first_lines and key.value != "<<":
            raise GeomGNNError(
                f"The key '{key.value}' is given twice in {file}, in lines {first_lines[key.value]} and {line}. "
                "Remove one of them."
            )
        first_lines[key.value] = line
        _check_keys(value, file, seen)


def _find_lines(node: Any, location: tuple, lines: Lines) -> None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            lines[(*location, key.value)] = key.start_mark.line + 1
            _find_lines(value, (*location, key.value), lines)
    elif isinstance(node, yaml.SequenceNode):
        for i, value in enumerate(node.value):
            lines[(*location, i)] = value.start_mark.line + 1
            _find_lines(value, (*location, i), lines)


def _unshared(data: Any) -> Any:
    """A copy in which what an anchor stands for is there once for each use: replacing one does not change the others."""
    if isinstance(data, dict):
        return {key: _unshared(value) for key, value in data.items()}
    return [_unshared(value) for value in data] if isinstance(data, list) else data
