"""What commands of the command line share: options, their values, and how an interruption ends them."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from openmm_geomgnn.errors import GeomGNNError

Overwrite = Annotated[bool, typer.Option("--overwrite", help="Move what an earlier protocol left in the folder aside.")]
AllowTruncated = Annotated[
    bool, typer.Option("--allow-truncated", help="Use what is whole of trajectory files that were cut off.")
]
Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Replace a setting, as in --set run.length=50ps.")
]
Check = Annotated[
    bool, typer.Option("--check", help="Only check everything, and estimate time and disk; nothing is run or written.")
]


def check_there(path: Path) -> None:
    """Raise a GeomGNNError for files that do not exist, before any slow import."""
    if not path.expanduser().exists():
        raise GeomGNNError(f"There is no {path}. Check the path.")


@contextmanager
def interruptible(advice: str) -> Iterator[None]:
    """Ctrl-C ends the command with a line of advice."""
    try:
        yield
    except KeyboardInterrupt:
        print(f"\nInterrupted. {advice}", file=sys.stderr)
        raise typer.Exit(130) from None


def flags(**flags: bool) -> dict[str, bool]:
    """The flags that are set: a file may set the others."""
    return {name: True for name, value in flags.items() if value}


def overrides(settings: list[str] | None) -> dict[str, str]:
    """The settings that --set replaces, by their keys; raises a GeomGNNError for text that is none."""
    from openmm_geomgnn.cli.settings.yaml_text import read_value

    pairs = {}
    for text in settings or []:
        key, equals, value = text.partition("=")
        if not (key.strip() and equals):
            raise GeomGNNError(f"--set {text} lacks a key or a value: write --set KEY=VALUE, as in --set run.length=50ps.")
        pairs[key.strip()] = read_value(value, f"--set {text}")
    return pairs
