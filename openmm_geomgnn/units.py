"""Constants, and numbers with units as people write them: "40 kJ/mol", "2 fs", an OpenMM Quantity, or a bare number."""

from __future__ import annotations

import math
import re
from numbers import Real
from typing import TYPE_CHECKING, Any

from openmm_geomgnn.errors import GeomGNNError
from torchmdnet_ext.arguments import did_you_mean

if TYPE_CHECKING:
    from openmm.unit import Unit

BOLTZMANN = 0.00831446261815324  # kJ/mol/K
NM_TO_ANGSTROM = 10.0

# name as written -> name in openmm.unit; case matters, as in "mol" and "Mol"
UNITS = {
    "fs": "femtosecond",
    "ps": "picosecond",
    "ns": "nanosecond",
    "us": "microsecond",
    "µs": "microsecond",  # the micro sign
    "μs": "microsecond",  # the Greek letter, which looks the same
    "ms": "millisecond",
    "s": "second",
    "pm": "picometer",
    "A": "angstrom",
    "Å": "angstrom",
    "nm": "nanometer",
    "nanometre": "nanometer",
    "K": "kelvin",
    "J": "joule",
    "kJ": "kilojoule",
    "cal": "calorie",
    "kcal": "kilocalorie",
    "mol": "mole",
    "amu": "dalton",
    "Da": "dalton",
    "deg": "degree",
    "°": "degree",
    "rad": "radian",
}
_WORDS = {name: name for name in sorted(set(UNITS.values()))}
_PLURALS = {f"{name}s": name for name in (*_WORDS, "nanometre") if name != "kelvin"}
UNITS = {**UNITS, **_WORDS, **{plural: UNITS.get(name, name) for plural, name in _PLURALS.items()}}

# what an error message offers, whichever of these fit
_OFFERED = (
    *("fs", "ps", "ns", "us", "1/fs", "1/ps", "1/ns", "A", "angstrom", "nm", "K", "amu", "dalton", "deg", "rad"),
    *("kJ/mol", "kcal/mol", "J/mol", "kJ/mol/nm", "kcal/mol/A", "kJ/mol/nm^2", "kcal/mol/A^2"),
    *("kJ/mol/rad^2", "kcal/mol/rad^2", "kJ/mol/deg^2"),
)

LONGEST_UNIT = 60  # characters
_NUMBER = re.compile(r"\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)(.*)", re.DOTALL)
_Token = tuple[str, str]
_TOKEN = re.compile(r"\s*(?:(?P<name>[^\W\d_]+|°)|(?P<integer>[+-]?\d{1,2})|(?P<sign>\*\*|[*^/()·]))")


def quantity(value: Any, unit: Unit | str, name: str) -> float:
    """Convert `value` to a number in `unit`.

    Parameters
    ----------
    value : number, openmm Quantity or str
        A bare number (also as a string) is taken to be in `unit`. A string is a number and a unit: "2 fs", "10 kcal/mol",
        "1/ps", "5 ps^-1", "500 kJ/(mol nm^2)".
    unit : openmm.unit.Unit or str
        The target unit; a string is read like the units in `value`.
    name : str
        Name of the setting, for the error message.

    Returns
    -------
    float

    Raises
    ------
    GeomGNNError
        If it is not a finite number, or its unit is unknown or of another dimension. The message names the setting,
        what was read and the possible units.
    """
    wanted = parse_unit(unit) if isinstance(unit, str) else unit
    shown = unit if isinstance(unit, str) else _name(wanted)
    if hasattr(value, "value_in_unit"):
        number, read = value._value, value.unit
        if not isinstance(number, Real):
            raise GeomGNNError(f"{name} is {value}, but it must be one number {_hint(wanted, shown)}.")
    elif isinstance(value, str):
        number, read = _read(value, wanted, shown, name)
    elif isinstance(value, Real) and not isinstance(value, bool):
        number, read = value, wanted
    else:
        raise GeomGNNError(f"{name} is {value!r}, but it must be a number {_hint(wanted, shown)}.")
    if not math.isfinite(number):
        raise GeomGNNError(f"{name} is {value}, but it must be a finite number {_hint(wanted, shown)}.")
    if not read.is_compatible(wanted):
        written = _NUMBER.sub(r"\2", value).strip() if isinstance(value, str) else _name(read)
        guess = did_you_mean(written, _possible(wanted))
        raise GeomGNNError(f"{name} is '{value}', but it must be a number {_hint(wanted, shown)}.{guess}")
    factor = read.conversion_factor_to(wanted)
    # dividing by 1000 rounds correctly, multiplying by 0.001 does not: 0.7 fs is 0.0007 ps, not 0.0006999999999999999
    converted = float(number * factor if factor >= 1 else number / wanted.conversion_factor_to(read))
    if not math.isfinite(converted):
        raise GeomGNNError(f"{name} is {value}, which in {shown} is beyond every number. Check it and its unit.")
    return converted


def positive(value: Any, name: str, of: Unit | str, zero: bool = False) -> float:
    """`quantity`, in the unit `of`, that must also be positive, or zero if allowed. Raises GeomGNNError."""
    number = quantity(value, of, name)
    if number < 0 or (number == 0 and not zero):
        raise GeomGNNError(f"{name} is {value}, but it must {'not be negative' if zero else 'be positive'}.")
    return number


def parse_unit(text: str) -> Unit:
    """The openmm Unit written as a product of powers: "kJ/mol/nm^2", "kJ mol^-1", "1/ps". "" is dimensionless.

    Raises GeomGNNError where a name is unknown (with the nearest known one) or the text is not such a product.
    """
    from openmm.unit import dimensionless

    if len(text.strip()) > LONGEST_UNIT:
        raise GeomGNNError(f"'{text.strip()[:LONGEST_UNIT]}...' is not a unit: it is too long for one.")
    tokens: list[_Token] = []
    position = 0
    while text[position:].strip():
        match = _TOKEN.match(text, position)
        if match is None:
            raise GeomGNNError(f"'{text.strip()}' is not a unit: '{text[position:].strip()[0]}' has no meaning in one.")
        kind = match.lastgroup or ""
        tokens.append((kind, match.group(kind)))
        position = match.end()
    if not tokens:
        return dimensionless
    result = _product(tokens, text.strip())
    if tokens:
        raise GeomGNNError(f"'{text.strip()}' is not a unit: it has a ')' too many.")
    return result


def _read(text: str, wanted: Unit, shown: str, name: str) -> tuple[float, Unit]:
    """A number and its unit, which is `wanted` when none is written."""
    match = _NUMBER.match(text)
    if match is None:
        raise GeomGNNError(f"{name} is '{text}', but it must be a number {_hint(wanted, shown)}.")
    rest = match.group(2)
    if re.match(r",\d", rest):
        raise GeomGNNError(f"{name} is '{text}': write a decimal point, not a comma.")
    try:
        unit = parse_unit(rest) if rest.strip() else wanted
    except GeomGNNError as error:
        raise GeomGNNError(f"{name} is '{text}'. {error} It must be a number {_hint(wanted, shown)}.") from error
    return float(match.group(1)), unit


def _product(tokens: list[_Token], text: str) -> Unit:
    """Consume tokens up to the end or a closing bracket: powers joined by *, / or nothing, from left to right.

    The text follows a number, so it may start with * or /.
    """
    from openmm.unit import dimensionless

    result, divide, expected = dimensionless, False, False
    while tokens and tokens[0] != ("sign", ")"):
        if tokens[0][1] in ("*", "·", "/"):
            if expected:
                break
            divide, expected = tokens.pop(0)[1] == "/", True
            continue
        power = _power(tokens, text)
        result = result / power if divide else result * power
        divide, expected = False, False
    if expected or tokens and tokens[0] != ("sign", ")"):
        raise GeomGNNError(f"'{text}' is not a unit: write a product such as kJ/mol/nm^2.")
    return result


def _power(tokens: list[_Token], text: str) -> Unit:
    import openmm.unit

    kind, word = tokens.pop(0)
    if kind == "name":
        if word not in UNITS:
            # short names resemble each other too much: only "PS" for "ps", not "cal" for "C"
            alike = UNITS if len(word) > 2 else [name for name in UNITS if len(name) == len(word)]
            raise GeomGNNError(f"'{word}' is not a unit that is known here.{did_you_mean(word, alike)}")
        unit = getattr(openmm.unit, UNITS[word])
    elif word == "1":
        return openmm.unit.dimensionless
    elif word == "(" and tokens:
        unit = _product(tokens, text)
        if not tokens:
            raise GeomGNNError(f"'{text}' is not a unit: it lacks a ')'.")
        tokens.pop(0)
    else:
        raise GeomGNNError(f"'{text}' is not a unit: write a product such as kJ/mol/nm^2.")
    marked = bool(tokens) and tokens[0][1] in ("^", "**")
    if marked:
        tokens.pop(0)
    if tokens and tokens[0][0] == "integer":
        return unit ** int(tokens.pop(0)[1])
    if marked:
        raise GeomGNNError(f"'{text}' is not a unit: a whole number must follow '^'.")
    return unit


def _possible(unit: Unit) -> list[str]:
    return [text for text in _OFFERED if parse_unit(text).is_compatible(unit)]


def _name(unit: Unit) -> str:
    """How a unit is written here, or OpenMM's symbol for it."""
    same = (text for text in _possible(unit) if math.isclose(parse_unit(text).conversion_factor_to(unit), 1))
    return next(same, unit.get_symbol())


def _hint(unit: Unit, shown: str) -> str:
    from openmm.unit import dimensionless

    if unit.is_compatible(dimensionless):
        return "without a unit"
    return f"of {shown}, or be written with one of these units: {', '.join(_possible(unit)) or shown}"
