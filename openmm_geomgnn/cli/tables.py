"""Tables as commands print them."""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from openmm_geomgnn.cli.progress import console
from openmm_geomgnn.files import atomic_write

WIDTH = 140  # characters of a table where there is no terminal


def new_table(*head: str) -> Table:
    """A table with these names of columns, of which all but the first are aligned to the right."""
    table = Table(box=None, pad_edge=False, padding=(0, 1), header_style="bold")
    for number, name in enumerate(head):
        table.add_column(name, justify="right" if number else "left", overflow="fold")
    return table


def print_table(table: Table, width: int = WIDTH) -> None:
    """Print a table, where there is no terminal of a width in characters."""
    (console if console.is_terminal else Console(width=width)).print(table)


def print_rows(head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print rows of text below the names of their columns."""
    table = new_table(*head)
    for row in rows:
        table.add_row(*row)
    print_table(table)


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write rows as CSV, the columns being all that any row has."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    with atomic_write(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        for row in rows:
            writer.writerow({name: f"{value:.6g}" if isinstance(value, float) else value for name, value in row.items()})
