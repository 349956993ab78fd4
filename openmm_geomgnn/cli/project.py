"""`geomgnn project`: what the features of networks hold, along existing trajectories."""

import csv
from pathlib import Path

import numpy as np

from openmm_geomgnn.analysis.canvas import new_figure, save_figure
from openmm_geomgnn.analysis.report import write_report, write_summary
from openmm_geomgnn.cli.fit import FitData, read_data
from openmm_geomgnn.cli.progress import echo, progress_bars
from openmm_geomgnn.cli.settings.project import Project
from openmm_geomgnn.cv.fit_data import featurize, read_positions
from openmm_geomgnn.files import atomic_write
from openmm_geomgnn.locks import locked
from openmm_geomgnn.representation.encoder import Encoder
from openmm_geomgnn.representation.featurization import Featurization
from openmm_geomgnn.representation.reference import read_reference
from openmm_geomgnn.studies.latent.layers import layer_notes, layer_tables, layers_as_json
from openmm_geomgnn.studies.latent.networks import make_networks
from openmm_geomgnn.studies.latent.observables import Observable, observables
from openmm_geomgnn.studies.latent.pictures import standard_figures
from openmm_geomgnn.studies.latent.projections import check_umap
from openmm_geomgnn.studies.latent.study import UMAP, LatentSettings, LatentSpace, study_latent_space
from openmm_geomgnn.studies.latent.tables import as_json, columns, compare, frame_notes, probe_tables, similarity_tables
from openmm_geomgnn.unfinished import Unfinished
from openmm_geomgnn.units import NM_TO_ANGSTROM

RESULTS, FRAMES, REPORT = "project.json", "projection.csv", "report.html"


class _Names(dict[str, tuple[str, str]]):
    """What is said of the progress of each part of the work."""

    def __missing__(self, what: str) -> tuple[str, str]:
        units = {"Embedding": "frames", "Probes": "folds", "Projections": "of them", "Layers": "networks"}
        return what, units[what.partition(",")[0]]


def run_project(project: Project) -> LatentSpace:
    """Compare the networks that a `Project` names, write tables, pictures and a report into its folder.

    Tokens are kept until all is done, so that an interrupted command goes on from them.

    Raises
    ------
    GeomGNNError
        If an optional package is missing, data or settings do not suffice, or another process writes to the same folder.
    """
    if UMAP in project.project.projections:
        check_umap()
    new_figure(1, 1, (1, 1))  # raises an error without matplotlib
    with locked(project.output):
        data = read_data(project)
        featurization = featurize(data.trajectories, data.topology, data.settings)
        names = project.project.encoders
        encoders = [featurization.encoder, *(Encoder.load(name) for name in names)]
        networks = make_networks(encoders, project.project.random_weights, project.seed)
        positions = read_positions(data.trajectories, featurization)
        found = _observables(project, featurization, positions)

        def kept(number: int) -> Unfinished:
            return Unfinished(project.output / f"tokens.{number}")

        with progress_bars(_Names()) as progress:
            settings = _settings(project, data)
            space = study_latent_space(networks, featurization, positions, found, settings, progress, kept)
        _write(project.output, space, _intervals(data))
        for number in range(len(networks)):
            kept(number).remove()
    return space


def _intervals(data: FitData) -> list[float]:
    """Ps between the frames of each trajectory."""
    return data.biased.get("frame_intervals", [data.settings.frame_interval] * len(data.trajectories))


def _settings(project: Project, data: FitData) -> LatentSettings:
    section = project.project
    return LatentSettings(
        folds=section.folds,
        gap=max(section.gap or 0.0, project.cv.lag),
        frame_interval=min(_intervals(data)),
        projections=section.projections,
        neighbours=section.neighbours,
        min_distance=section.min_distance,
        umap_frames=section.umap_frames,
        cka_frames=section.cka_frames,
        layers=section.layers,
        layer_frames=section.layer_frames,
        seed=project.seed,
    )


def _observables(project: Project, featurization: Featurization, positions: list) -> list[Observable]:
    reference, topology, atoms = None, featurization.topology, featurization.atoms
    if project.project.reference is not None:
        path = str(project.project.reference)
        reference = read_reference(path, topology, atoms, project.cv.selection).xyz[0]
    whole = [part.numpy() / NM_TO_ANGSTROM for part in positions]
    return observables(whole, topology, atoms, reference)


def _write(folder: Path, space: LatentSpace, intervals: list[float]) -> None:
    """Write all results into a folder, and say what they say."""
    names, values = columns(space, intervals)
    with atomic_write(folder / FRAMES) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(names)
        writer.writerows([f"{value:.8g}" for value in row] for row in values)
    write_summary(folder / RESULTS, {**as_json(space), "probes_of_layers": layers_as_json(space)})
    pictures, notes = [], [*(one.in_words() for one in compare(space)), *layer_notes(space), *frame_notes(space)]
    for name, title, caption, figure in standard_figures(space):
        save_figure(folder / name, figure)
        pictures.append((title, caption, figure))
    tables = [*probe_tables(space), *layer_tables(space), *similarity_tables(space)]
    facts = {"frames": int(np.sum(space.lengths)), "trajectories": len(space.lengths), "observables": len(space.observables)}
    write_report(folder / REPORT, "What the features of networks hold", facts, pictures, notes, tables)
    for note in notes:
        echo(note)
    echo(f"written to {folder}: {RESULTS}, {FRAMES}, {REPORT} and {len(pictures)} pictures")
