"""How values and numbers of things are written in messages."""

from pathlib import Path
from typing import Any


def format_values(values: Any, digits: int = 3) -> str:
    """Numbers to a few significant digits, "0.123, 45.6"; `values` is a number or an array of them."""
    numbers = values if hasattr(values, "__len__") else [values]
    return ", ".join(f"{number:.{digits}g}" for number in numbers)


def format_setting(value: object, absent: str = "null", limit: int | None = None) -> str:
    """A setting as it would stand in YAML; `absent` stands for None, and text beyond `limit` characters is cut off."""
    if value is None:
        return absent
    if isinstance(value, str | Path):
        text = f"'{value}'"
    elif isinstance(value, bool):
        text = str(value).lower()
    else:
        text = str(list(value) if isinstance(value, tuple) else value)
    return text if limit is None or len(text) <= limit else f"{text[: limit - 3]}..."


def count_of(number: int, noun: str, plural: str | None = None) -> str:
    """A number of things, "1 walker" or "2 walkers"; `plural` is for nouns that do not just take an s."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


def duration(seconds: float) -> str:
    """A time to two digits, in a unit of which it is a few."""
    for unit, length in (("days", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 1.5 * length:
            return f"{seconds / length:.2g} {unit}"
    return f"{seconds:.2g} s"
