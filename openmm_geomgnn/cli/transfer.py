"""`geomgnn transfer`: CVs trained on some molecules, used on another, beside CVs fitted to that one."""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.table import Table

from openmm_geomgnn.analysis.canvas import new_figure, save_figure
from openmm_geomgnn.analysis.report import write_report
from openmm_geomgnn.cli.first_frames import load_trajectories
from openmm_geomgnn.cli.progress import bar, echo, progress_bars
from openmm_geomgnn.cli.settings.transfer import Transfer
from openmm_geomgnn.cli.tables import print_table
from openmm_geomgnn.cv.network import CollectiveVariable
from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.files import remove_leftovers
from openmm_geomgnn.formatting import count_of
from openmm_geomgnn.locks import locked
from openmm_geomgnn.representation.encoder import Encoder
from openmm_geomgnn.representation.featurization import Featurization, SelectedAtoms
from openmm_geomgnn.representation.selection import as_topology
from openmm_geomgnn.representation.trajectory_files import holds_times
from openmm_geomgnn.representation.trajectory_times import common_frame_interval
from openmm_geomgnn.studies.latent.networks import Network, make_networks
from openmm_geomgnn.studies.transfer.figures import transfer_figures
from openmm_geomgnn.studies.transfer.peptides import RUNS, PeptideRuns, make_runs
from openmm_geomgnn.studies.transfer.scoring import TransferRow, TransferSettings
from openmm_geomgnn.studies.transfer.study import (
    MADE_FROM,
    Molecule,
    TransferStudy,
    load_transfer_rows,
    save_transfer_rows,
    score_transfer,
    train_shared_cv,
)
from openmm_geomgnn.studies.transfer.tables import Comparison, as_json, compare, comparison_table, molecule_table, notes
from openmm_geomgnn.unfinished import Unfinished

ROWS, SHARED, REPORT, TOKENS = "transfer.json", "shared.cv.safetensors", "report.html", "tokens"
UNITS = {"Embedding": "frames", "Scores": "jobs", "Shared CV": "epochs"}
WIDTH = 150  # characters of a table where there is no terminal


class _Names(dict[str, tuple[str, str]]):
    """What is said of the progress with each network."""

    def __missing__(self, what: str) -> tuple[str, str]:
        return what, UNITS[what.partition(",")[0]]


def run_transfer(settings: Transfer) -> list[TransferRow]:
    """Do what a `Transfer` describes and is not in its folder yet; write and show what comes out.

    Raises
    ------
    GeomGNNError
        If an optional package is missing, a run fails, data or settings do not suffice, or another process writes to the
        same folder.
    """
    new_figure(1, 1, (1, 1))  # raises an error without matplotlib
    with locked(settings.output):
        remove_leftovers(settings.output)
        study = _study(settings)
        made_from, path = study.made_from(), settings.output / ROWS
        known = load_transfer_rows(path, made_from)

        def kept(molecule: Molecule, network: Network) -> Unfinished:
            return Unfinished(settings.output / TOKENS / f"{molecule.name}.{network.name}".replace(" ", "-"))

        with progress_bars(_Names()) as progress:
            rows = score_transfer(
                study,
                processes=settings.processes(),
                known=known,
                keep=lambda found: save_transfer_rows(path, made_from, found),
                progress=progress,
                unfinished=kept,
            )
        comparisons = compare(rows)
        save_transfer_rows(path, made_from, rows, as_json(comparisons))
        _write(settings.output, rows, comparisons)
        _write_shared(settings, study, kept)
        shutil.rmtree(settings.output / TOKENS, ignore_errors=True)
    return rows


def _write_shared(settings: Transfer, study: TransferStudy, kept: Any) -> None:
    """Train and write the CV of all molecules, unless it is there."""
    path, components = settings.output / SHARED, settings.compare.shared_components
    try:
        there: Any = CollectiveVariable.load(path)
        if there.training_information.get(MADE_FROM) == study.made_from() and there.dimension == components:
            return
    except GeomGNNError:
        pass  # there is none, or it is damaged
    with progress_bars(_Names()) as progress:
        train_shared_cv(study, components, progress=progress, unfinished=kept).save(path)
    echo(f"written to {path}: the CV of all molecules")


def _study(settings: Transfer) -> TransferStudy:
    """Make the runs that are missing, read all trajectories, load all networks."""
    files: list[tuple[str, Path, Any, float | None]] = [
        (one.name, one.topology, one.trajectories, one.frame_interval) for one in settings.molecules
    ]
    if settings.peptides is not None:
        options = settings.peptides.model_dump()
        peptides = PeptideRuns(**options, processes=settings.processes(), seed=settings.seed)
        with _simulation_bar() as progress:
            made = make_runs(peptides, settings.output / RUNS, progress)
        files += [(name, structure, paths, peptides.frame_interval) for name, structure, paths in made]
    section = settings.shared_cv
    encoders = [Encoder.load(name) for name in (section.encoder, *settings.compare.encoders)]
    networks = make_networks(encoders, settings.compare.random_weights, settings.seed)
    molecules = [_molecule(settings, encoders[0], *entry) for entry in files]
    chosen = TransferSettings(
        lagtime=section.lag,
        components=section.components,
        data=settings.compare.data,
        pca=section.pca,
        mixers=section.mixer,
        mixer_settings=dict(section.mixer_settings),
        folds=settings.compare.folds,
        reversible=section.reversible,
        training=section.training_arguments(),
    )
    study = TransferStudy(molecules, networks, chosen, settings.compare.mixer_seeds)
    for one in molecules:
        one.series(one.positions, chosen.lagtime)  # raises an error unless the lag is a whole number of frames
    return study


def _molecule(
    settings: Transfer, encoder: Encoder, name: str, structure: Path, paths: Any, interval: float | None
) -> Molecule:
    topology = as_topology(structure)
    parts = load_trajectories(paths, topology, settings.shared_cv.selection, settings.stride)
    times = {path.name: part.time if holds_times(path) else None for path, part in zip(paths, parts, strict=True)}
    between = common_frame_interval(times, None if interval is None else interval * settings.stride)
    selected = SelectedAtoms.find(topology, settings.shared_cv.selection)
    featurization = Featurization(selected, settings.shared_cv.token_spec(), encoder, structure=lambda: parts[0])
    echo(f"{name}: {sum(map(len, parts))} frames, {between:g} ps apart, {len(featurization.table)} residues")
    return Molecule(name, featurization, [featurization.molecule.positions(part) for part in parts], between)


def _write(folder: Path, rows: Sequence[TransferRow], comparisons: Sequence[Comparison]) -> None:
    """Write pictures and report into a folder, and say what they say."""
    pictures = []
    for name, title, caption, figure in transfer_figures(rows):
        save_figure(folder / name, figure)
        pictures.append((title, caption, figure))
    table, said = comparison_table(comparisons), list(notes(rows, comparisons))
    tables = [("Means over molecules", table)]
    numbers = list(dict.fromkeys(one.condition.components for one in comparisons))
    tables += [(f"Each molecule, {count_of(n, 'component')}", molecule_table(rows, n)) for n in numbers]
    molecules = list(dict.fromkeys(row.key.molecule for row in rows))
    facts = {"molecules": ", ".join(molecules), "rows": len(rows)}
    write_report(folder / REPORT, "CVs that are carried from molecule to molecule", facts, pictures, said, tables)
    shown = Table(box=None, pad_edge=False, padding=(0, 1), header_style="bold")
    for column in table[0]:
        shown.add_column(column, overflow="fold")
    for row in table[1:]:
        shown.add_row(*row)
    print_table(shown, WIDTH)
    for note in said:
        echo(note)
    echo(f"written to {folder}: {ROWS}, {REPORT} and {count_of(len(pictures), 'picture')}")


@contextmanager
def _simulation_bar() -> Iterator[Any]:
    with bar("Simulations") as update:
        yield lambda state: update(state.time, state.length)
