"""`geomgnn diagnose`: whether the features of encoders become alike with depth, and how far their atoms see."""

from pathlib import Path

import numpy as np

from openmm_geomgnn.analysis.canvas import new_figure, save_figure
from openmm_geomgnn.analysis.report import write_report, write_summary
from openmm_geomgnn.cli.progress import bar, echo
from openmm_geomgnn.cli.settings.diagnose import Diagnose
from openmm_geomgnn.cli.tables import print_rows, write_rows
from openmm_geomgnn.formatting import format_values
from openmm_geomgnn.locks import locked
from openmm_geomgnn.representation.encoder import Encoder
from openmm_geomgnn.representation.selection import as_topology, select_atoms
from openmm_geomgnn.sampling.systems import load_structure
from openmm_geomgnn.studies.depth import Conformation, Depth, layer_rows, measure_depth, reach_rows
from openmm_geomgnn.studies.depth_plots import reach_figure, smoothing_figure
from openmm_geomgnn.units import NM_TO_ANGSTROM

LAYERS, REACH, REPORT, NUMBERS = "layers.csv", "reach.csv", "report.html", "diagnose.json"
_CAPTIONS = {
    "smoothing": "Energy: mean squared difference of the features of neighbours, over that of any two atoms. Effective "
    "rank: in how many directions the features of the atoms differ. Both fall where layers make atoms alike. Dashed: "
    "the mean of networks of the same settings with random weights.",
    "reach": "Derivative of the scalars of one atom by the position of another, over that by its own: by the fewest "
    "messages between them, and by their distance. Dashed: random weights.",
}


def run_diagnose(settings: Diagnose) -> list[Depth]:
    """Measure what a `Diagnose` names, and write tables, pictures and a report into its folder.

    Raises GeomGNNError if matplotlib is missing, an encoder or a structure cannot be used, or another process writes there.
    """
    new_figure(1, 1, (1, 1))  # raises an error without matplotlib
    encoders = [Encoder.load(name) for name in settings.encoders]
    conformations = [_conformation(path, settings.selection) for path in settings.structures]
    with locked(settings.output):
        with bar("Layers", "encoders on structures") as progress:
            options = settings.random_weights, settings.draws, settings.seed
            found = list(measure_depth(encoders, conformations, *options, progress=progress))
        _write(settings.output, found)
    return found


def _conformation(path: Path, selection: str | None) -> Conformation:
    topology, positions = load_structure(path)
    atoms = select_atoms(as_topology(topology), selection)
    z = np.array([atom.element.atomic_number for atom in topology.atoms()])
    return Conformation(path.stem, z[atoms], np.asarray(positions)[atoms] * NM_TO_ANGSTROM)


def _write(folder: Path, found: list[Depth]) -> None:
    """Write all results into a folder, and say what they say."""
    layers, reach = layer_rows(found), reach_rows(found)
    write_rows(folder / LAYERS, layers)
    write_rows(folder / REACH, reach)
    notes = [words for one in found for words in (one.over_smoothing_in_words(), one.under_reaching_in_words())]
    write_summary(folder / NUMBERS, {"layers": layers, "reach": reach, "notes": notes})
    pictures = []
    for name, title, figure in (
        ("smoothing", "Do the features become alike?", smoothing_figure(found)),
        ("reach", "How far does an atom see?", reach_figure(found)),
    ):
        save_figure(folder / f"{name}.png", figure)
        pictures.append((title, _CAPTIONS[name], figure))
    head = ["encoder", "structure", "layer", "energy", "rank", "random weights: energy", "rank"]
    rows = [[f"{row['encoder']}", row["conformation"], str(row["layer"]), *_cells(row)] for row in layers]
    write_report(folder / REPORT, "What depth does to encoders", {}, pictures, notes, [("Layers", [head, *rows])])
    print_rows(head, rows)
    for note in notes:
        echo(note)
    echo(f"written to {folder}: {LAYERS}, {REACH}, {NUMBERS}, {REPORT}, smoothing.png, reach.png")


def _cells(row: dict) -> list[str]:
    names = "energy", "rank", "random_energy", "random_rank"
    return ["" if row.get(name) is None else format_values(row[name]) for name in names]
