"""`geomgnn forces`: label a molecule's trajectories, train the networks of a study, and compare their errors."""

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from openmm_geomgnn.analysis.canvas import save_figure
from openmm_geomgnn.analysis.report import write_report, write_summary
from openmm_geomgnn.cli.progress import bar, echo
from openmm_geomgnn.cli.settings.forces import Forces
from openmm_geomgnn.cli.tables import new_table, print_rows, print_table, write_rows
from openmm_geomgnn.cli.trainings import START, absolute, prepare, result_so_far, train_open, warnings_about
from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.formatting import count_of, duration
from openmm_geomgnn.locks import locked
from openmm_geomgnn.studies.forces import labelling
from openmm_geomgnn.studies.forces.evaluate import test_errors
from openmm_geomgnn.studies.forces.figures import error_figure
from openmm_geomgnn.studies.forces.frames import FrameSet, Gathered, Labels, gather, given_parts, temporal_parts
from openmm_geomgnn.studies.forces.labelling import Dynamics
from openmm_geomgnn.studies.forces.plan import Network, Parts, Study, make_networks, make_splits
from openmm_geomgnn.studies.forces.table import KINDS, UNITS, Row, Summary, summarise
from openmm_geomgnn.studies.training import trainer
from openmm_geomgnn.studies.training.folder import Result
from openmm_geomgnn.studies.training.parallel import check_parallel
from torchmdnet_ext.datasets.extended_xyz import ExtendedXYZ

LABELS, FRAMES, TABLE, ERRORS, NUMBERS, REPORT, FIGURE = (
    "labels", "frames.xyz", "networks.csv", "errors.csv", "forces.json", "report.html", "errors.png",
)  # fmt: skip
FORMAT, VERSION = "openmm-geomgnn forces", 1
_SAMPLE = 16  # frames on which --check measures
_INFERENCE = 0.4  # of the time of a training step, about, is that of a batch of validation
_CAPTION = (
    "Mean absolute errors of the energy of the molecule (without the median error of all test frames, a constant that no "
    "force depends on) and of components of forces, on the test frames of each set; bars "
    "are one standard deviation over the seeds, which draw weights and training frames. Test frames are the same for "
    "all networks."
)


def run_forces(settings: Forces) -> dict[str, Any]:
    """Label and train what is not there yet, write frames, splits, tables, figure and report; returns the numbers.

    Raises GeomGNNError if settings or data do not suffice, or the folder holds frames or networks of other settings.
    """
    check_parallel(settings.workers, settings.scheduler)
    with locked(settings.output):
        path = Path(settings.output).absolute() / FRAMES
        networks = {network.name: network for network in _planned(settings, path)}
        gathered = gather(_sets(settings), _labels(settings), path)
        for one in gathered:
            echo(one.describe())
        parts = _parts(settings, {one.name: one.frames for one in gathered})
        folders, splits = prepare(settings.output, networks.values(), make_splits(list(networks.values()), parts))
        results = {name: result_so_far(folders[name], network.reason) for name, network in networks.items()}
        tests = {name: one["test"] for name, one in parts.items()}

        def tested(network: Network) -> Row:
            split = splits[network.split_name]
            return _tested(network, folders[network.name], split, tests, results[network.name])

        for name in train_open(settings, folders, results):
            tested(networks[name])
        return _conclude(settings, [tested(network) for network in networks.values()], gathered, parts)


def check_forces(settings: Forces) -> None:
    """Print the networks of settings and how long labels and training would take; nothing is trained or written."""
    with tempfile.TemporaryDirectory() as folder:
        total = 0.0
        if settings.frames is None:
            dynamics = _dynamics(settings)
            per_step, sample = _label_sample(Path(folder), settings)
            total = per_step * dynamics.steps() * len(settings.labels.temperatures)
            echo(
                f"{count_of(len(settings.labels.temperatures), 'trajectory', 'trajectories')} of {dynamics.steps()} steps, "
                f"{1000 * per_step:.2g} ms each: about {duration(total)} one after the other, but for what is there"
            )
        else:
            sample = Path(folder) / FRAMES
            gathered = gather(_sets(settings), _labels(settings), sample)
            for one in gathered:
                echo(one.describe())
            parts = _parts(settings, {one.name: one.frames for one in gathered})
            make_splits(make_networks(_study(settings), sample), parts)
        networks, seconds = _planned(settings, sample), {}
        table = new_table("network", "frames", "epochs", "estimate")
        for network in networks:
            key = network.encoder, network.way
            if network.reason:
                table.add_row(network.name, str(network.size), "", network.reason)
                continue
            if key not in seconds:
                seconds[key] = trainer.step_seconds(network.settings, _sample(network.settings))
            full = trainer.complete(network.settings)
            steps = (network.size + _INFERENCE * _validated(settings)) / full["batch_size"] * full["num_epochs"]
            spent = START + steps * seconds[key]
            total += spent
            table.add_row(network.name, str(network.size), str(full["num_epochs"]), duration(spent))
        print_table(table)
    echo(
        f"{count_of(len(networks), 'network')}; at most about {duration(total)} with the labels, one after the other (a "
        "step of each was measured here, with this machine as busy as it is; early stopping makes it less)"
    )
    echo("Nothing was trained, and nothing was written.")


def _dynamics(settings: Forces) -> Dynamics:
    return Dynamics(**settings.labels.model_dump(exclude={"temperatures"}))


def _labels(settings: Forces) -> Labels:
    return Labels(settings.energy, settings.forces, settings.unit) if settings.frames else Labels()


def _sets(settings: Forces) -> list[FrameSet]:
    """The files of all sets; trajectories that are missing are made."""
    if settings.frames is not None:
        return [FrameSet(name, (file,)) for name, file in settings.frames.items()]
    molecule, temperatures = str(settings.molecule), settings.labels.temperatures
    folder, dynamics = settings.output / LABELS, _dynamics(settings)
    labelling.prepare(folder, molecule, dynamics)
    total = dynamics.pieces() * len(temperatures)
    with bar("Labels", "pieces") as update:
        for done, _ in enumerate(labelling.label(folder, temperatures, dynamics, settings.workers), 1):
            update(done, total)
    return [
        FrameSet(
            f"{temperature:g} K",
            tuple(labelling.piece_file(folder, temperature, piece) for piece in range(dynamics.pieces())),
        )
        for temperature in temperatures
    ]


def _label_sample(folder: Path, settings: Forces) -> tuple[float, Path]:
    """Seconds of a step at the highest temperature, and a file with some frames."""
    import ase.io

    dynamics = _dynamics(settings)
    start = labelling.prepare(folder, str(settings.molecule), dynamics)
    brief = replace(dynamics, frames=_SAMPLE, interval=dynamics.timestep, equilibration=0.0)
    began = time.perf_counter()
    frames = list(islice(labelling.move(start, settings.labels.temperatures[-1], 0, brief), _SAMPLE))
    spent = (time.perf_counter() - began) / _SAMPLE
    ase.io.write(folder / FRAMES, frames, format="extxyz")
    return spent, folder / FRAMES


def _validated(settings: Forces) -> float:
    """About how many frames there are for validation; of files that are given, a tenth of those to train on."""
    if settings.frames is not None:
        return 0.1 * max(settings.sizes)
    return settings.held_out.val * settings.labels.frames * len(settings.labels.temperatures)


def _parts(settings: Forces, sizes: Mapping[str, int]) -> dict[str, dict[str, np.ndarray]]:
    if settings.possible_splits() == ("given",):
        return given_parts(sizes)
    return temporal_parts(sizes, settings.held_out.val, settings.held_out.test)


def _planned(settings: Forces, path: Path) -> list[Network]:
    """The networks; that there are frames for them is checked before frames are labelled."""
    networks = make_networks(_study(settings), path)
    if settings.frames is None:
        sizes = {f"{temperature:g} K": settings.labels.frames for temperature in settings.labels.temperatures}
        make_splits(networks, _parts(settings, sizes))
    return networks


def _study(settings: Forces) -> Study:
    names = ("encoders", "ways", "sizes", "seeds", "epochs", "most_seen", "training_of")
    splits = settings.splits or settings.possible_splits()
    return Study(**{name: getattr(settings, name) for name in names}, splits=splits, training=absolute(settings.training))


def _sample(settings: Mapping[str, Any]) -> trainer.TrainingData:
    """Frames on which a step is measured."""
    dataset = ExtendedXYZ(settings["dataset_root"])
    none = np.zeros(0, dtype=int)
    chosen = np.resize(np.arange(len(dataset)), max(len(dataset), 512))  # as many as a batch takes
    return trainer.TrainingData(dataset, chosen, none, none, (), none)


def _tested(network: Network, folder: Path, split: Path, tests: Mapping[str, np.ndarray], result: Result) -> Row:
    """The row of a network; its predictions of the test frames are computed once and stay in its folder."""
    if result.status != "trained":
        return Row(network, result)
    try:
        return Row(network, result, test_errors(folder, network.settings, split, tests))
    except (GeomGNNError, ValueError) as error:
        return Row(network, replace(result, status="failed", reason=str(error)))


def _conclude(settings: Forces, rows: Sequence[Row], gathered: Sequence[Gathered], parts: Parts) -> dict[str, Any]:
    """Write and show everything; returns the numbers."""
    output, summaries = settings.output, summarise(rows)
    entries, errors = [row.as_dict() for row in rows], [asdict(summary) for summary in summaries]
    write_rows(output / TABLE, entries)
    write_rows(output / ERRORS, errors)
    sets = [asdict(one) for one in gathered]
    numbers = {"format": FORMAT, "version": VERSION, "sets": sets, "networks": entries, "errors": errors}
    write_summary(output / NUMBERS, numbers)
    figures = []
    if summaries:
        figure = error_figure(summaries)
        save_figure(output / FIGURE, figure)
        figures.append(("Errors", _CAPTION, figure))
    tested = ", ".join(f"{len(one['test'])} of {name}" for name, one in parts.items())
    notes = [one.describe() for one in gathered]
    notes.append(f"Test frames, the last of each set: {tested}." if "test" not in parts else f"Test frames: {tested}.")
    notes += warnings_about({row.network.name: row.result for row in rows}, any(one.spread is None for one in summaries))
    head = [
        "split",
        "frames",
        "encoder",
        "way",
        "tested on",
        *(f"{kind.replace('_', ' ')}, {UNITS[kind]}" for kind in KINDS),
    ]
    head += ["seeds", "gain on scratch, forces", "converged"]
    cells = _cells(summaries)
    write_report(
        output / REPORT, "Energies and forces from scratch and from encoders", {}, figures, notes, [("MAE", [head, *cells])]
    )
    print_rows(head, cells)
    for note in notes[len(gathered) :]:  # what came before was said before the training
        echo(note)
    echo(f"written to {output}: {TABLE}, {ERRORS}, {NUMBERS}, {REPORT}, {FRAMES}")
    return numbers


def _cells(summaries: Sequence[Summary]) -> list[list[str]]:
    """A row for each set of test frames of each group of networks, with all kinds of errors."""
    groups: dict[tuple[Any, ...], dict[str, Summary]] = {}
    for one in summaries:
        groups.setdefault((one.split, one.size, one.encoder, one.way, one.tested), {})[one.kind] = one
    rows = []
    for key, kinds in groups.items():
        forces = kinds["forces"]
        maes = [
            f"{kinds[kind].mean:.3g}" + ("" if kinds[kind].spread is None else f" +- {kinds[kind].spread:.2g}")
            for kind in KINDS
        ]
        gain = "" if forces.gain is None else f"{100 * forces.gain:+.0f} %"
        rows.append([*map(str, key), *maes, str(forces.seeds), gain, f"{forces.converged} of {forces.seeds}"])
    return rows
