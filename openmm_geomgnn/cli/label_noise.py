"""`geomgnn label-noise`: how much a label depends on the functional and the basis set it was computed with."""

import time

from openmm_geomgnn.analysis.canvas import save_figure
from openmm_geomgnn.cli.progress import bar, echo
from openmm_geomgnn.cli.settings.label_noise import LabelNoise
from openmm_geomgnn.files import atomic_write, remove_leftovers
from openmm_geomgnn.formatting import count_of
from openmm_geomgnn.locks import locked
from openmm_geomgnn.processes import cores
from openmm_geomgnn.studies.label_molecules import read_molecules
from openmm_geomgnn.studies.label_noise import LabelGrid, compute_labels, load_label_rows, save_label_rows
from openmm_geomgnn.studies.label_plots import label_figure
from openmm_geomgnn.studies.label_spread import summarise_labels
from openmm_geomgnn.studies.label_tables import label_tables
from openmm_geomgnn.studies.quantum import SCFSettings

ROWS, TABLES, FIGURE = "labels.json", "labels.md", "{}.png"


def run_label_noise(settings: LabelNoise) -> None:
    """Compute what a `LabelNoise` describes and is not in its folder yet; write and show the tables, draw the figures.

    Raises GeomGNNError if PySCF or matplotlib is missing, a process dies, or another process writes to the same folder.
    """
    scf = SCFSettings(settings.max_cycles, settings.grid_level)
    grid = LabelGrid(tuple(read_molecules(settings.molecules)), settings.functionals, settings.bases, scf)
    made_from, started = grid.made_from(), time.monotonic()
    with locked(settings.output):
        remove_leftovers(settings.output)
        path = settings.output / ROWS
        known = load_label_rows(path, made_from)
        with bar("Labels", "calculations") as progress:
            rows = compute_labels(
                grid,
                settings.processes or cores(),
                progress,
                known,
                keep=lambda found: save_label_rows(path, made_from, found),
            )
        summary = summarise_labels(rows, grid, settings.properties, settings.model_mae)
        save_label_rows(path, made_from, rows, summary)
        tables = label_tables(rows, grid, summary)
        with atomic_write(settings.output / TABLES) as temporary:
            temporary.write_text(tables, encoding="utf-8")
        echo(f"\n{tables}")
        figures = []
        for name in settings.properties:
            figures.append(FIGURE.format(name))
            figure = label_figure(rows, grid, name, settings.model_mae if name == "gap" else None)
            save_figure(settings.output / figures[-1], figure)
        took = f"{count_of(len(rows), 'calculation')}, {summary['failed']} failed, {time.monotonic() - started:.0f} s"
        echo(f"{took}; written to {settings.output}: {', '.join((ROWS, TABLES, *figures))}")
