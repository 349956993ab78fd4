"""`geomgnn supervised`: train the networks of a study of QM9's targets, and compare their errors on test molecules."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from openmm_geomgnn.analysis.canvas import save_figure
from openmm_geomgnn.analysis.report import write_report, write_summary
from openmm_geomgnn.cli.progress import bar, echo
from openmm_geomgnn.cli.settings.supervised import Supervised
from openmm_geomgnn.cli.tables import new_table, print_rows, print_table, write_rows
from openmm_geomgnn.cli.trainings import SPLITS, START, absolute, prepare, result_so_far, train_open, warnings_about
from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.formatting import count_of, duration
from openmm_geomgnn.locks import locked
from openmm_geomgnn.studies.supervised.evaluate import test_error
from openmm_geomgnn.studies.supervised.figures import error_figure
from openmm_geomgnn.studies.supervised.plan import Network, Plan, Study, make_networks, plan
from openmm_geomgnn.studies.supervised.qm9 import make_store
from openmm_geomgnn.studies.supervised.splits import fingerprint, seen_in_pretraining
from openmm_geomgnn.studies.supervised.table import Row, Summary, summarise
from openmm_geomgnn.studies.training import trainer
from openmm_geomgnn.studies.training.folder import Result
from openmm_geomgnn.studies.training.parallel import check_parallel
from torchmdnet_ext.datasets.labelled import LabelledMolecules, LabelledStore, read_labelled

STORE, TABLE, ERRORS, NUMBERS, REPORT, FIGURE = (
    "qm9.safetensors", "networks.csv", "errors.csv", "supervised.json", "report.html", "errors.png",
)  # fmt: skip
FINGERPRINTS = "splits.json"
FORMAT, VERSION = "openmm-geomgnn supervised", 1
_SAMPLE = 300  # molecules on which --check measures, where there is no store yet
_INFERENCE = 0.4  # of the time of a training step, about, is that of a batch of validation
_CAPTION = (
    "Mean absolute errors on test molecules; bars are one standard deviation over the seeds, which draw the weights and the "
    "training molecules. The test molecules are the same for all networks of a split."
)


def run_supervised(settings: Supervised) -> dict[str, Any]:
    """Train what is not trained yet, write splits, tables, figure and report; returns the numbers.

    Raises GeomGNNError if settings or data do not suffice, or the folder holds networks of other settings.
    """
    check_parallel(settings.workers, settings.scheduler)
    with locked(settings.output):
        root = _root(settings)
        if not root.exists():
            with bar("QM9", "molecules") as update:
                make_store(root, settings.molecules, progress=update)
        echo("Reading the molecules and building the networks ...")
        store = _read(root)
        planned = _planned(settings, store, root)
        folders, splits = _prepare(settings.output, planned, store)
        networks = {network.name: network for network in planned.networks}
        results = {name: result_so_far(folders[name], network.reason) for name, network in networks.items()}
        for name in train_open(settings, folders, results):
            network = networks[name]
            _tested(network, folders[name], splits[network.split_name], results[name])
        rows = [
            _tested(network, folders[name], splits[network.split_name], results[name]) for name, network in networks.items()
        ]
        return _conclude(settings, rows, planned)


def check_supervised(settings: Supervised) -> None:
    """Print the networks of settings and how long their training would take; nothing is trained or written."""
    root = _root(settings)
    with tempfile.TemporaryDirectory() as folder:
        if root.exists():
            planned = _planned(settings, _read(root), root)
            networks = planned.networks
            for kind, held in planned.held_out.items():
                echo(_describe(kind, held))
        else:
            root = Path(folder) / STORE
            make_store(root, min(settings.molecules or _SAMPLE, _SAMPLE))
            networks = make_networks(_study(settings), root)
            echo(f"There is no store yet: the splits cannot be checked, and times were measured on {_SAMPLE} molecules.")
        total, seconds = 0.0, {}
        table = new_table("network", "molecules", "epochs", "estimate")
        for network in networks:
            key = network.encoder, network.way, network.target.head
            if network.reason:
                table.add_row(network.name, str(network.size), "", network.reason)
                continue
            if key not in seconds:
                seconds[key] = trainer.step_seconds(network.settings, _sample(network.settings))
            full = trainer.complete(network.settings)
            steps = (network.size + _INFERENCE * settings.held_out.val) / full["batch_size"] * full["num_epochs"]
            spent = START + steps * seconds[key]
            total += spent
            table.add_row(network.name, str(network.size), str(full["num_epochs"]), duration(spent))
        print_table(table)
    echo(
        f"{count_of(len(networks), 'network')}; at most about {duration(total)} one after the other (a step of each was "
        "measured here, with this machine as busy as it is; early stopping makes it less)"
    )
    echo("Nothing was trained, and nothing was written.")


def _root(settings: Supervised) -> Path:
    return settings.store or Path(settings.output).absolute() / STORE


def _read(root: Path) -> LabelledStore:
    try:
        return read_labelled(root)
    except ValueError as error:
        raise GeomGNNError(str(error)) from error


def _study(settings: Supervised) -> Study:
    names = ("encoders", "targets", "splits", "ways", "seeds", "epochs", "most_seen", "references", "training_of")
    return Study(**{name: getattr(settings, name) for name in names}, training=absolute(settings.training))


def _planned(settings: Supervised, store: LabelledStore, root: Path) -> Plan:
    held, before = settings.held_out, settings.pretrained_on
    seen = seen_in_pretraining(store, before.number, before.seed)
    return plan(_study(settings), store, root, (held.val, held.test, held.seed), seen)


def _sample(settings: Mapping[str, Any]) -> trainer.TrainingData:
    """Molecules on which a step is measured."""
    dataset = LabelledMolecules(settings["dataset_root"], **settings["dataset_arg"])
    chosen = np.linspace(0, len(dataset) - 1, min(len(dataset), 512)).astype(int)
    none = np.zeros(0, dtype=int)
    return trainer.TrainingData(dataset, chosen, none, none, (), none)


def _describe(kind: str, held: Any) -> str:
    return (
        f"{kind} split: {len(held.test)} molecules for test and {len(held.val)} for validation, none of which pre-training "
        f"has seen; {len(held.train)} to train on; {held.left_out} in no part"
    )


def _prepare(output: Path, planned: Plan, store: LabelledStore) -> tuple[dict[str, Path], dict[str, Path]]:
    """Write splits with their fingerprints, and settings of the networks, as `prepare` does."""
    folders, splits = prepare(output, planned.networks, planned.splits)
    prints = {name: {"sha256": fingerprint(store, parts)} | _sizes(parts) for name, parts in planned.splits.items()}
    write_summary(output / SPLITS / FINGERPRINTS, prints)
    return folders, splits


def _sizes(parts: Mapping[str, np.ndarray]) -> dict[str, int]:
    return {name.removeprefix("idx_"): len(indices) for name, indices in parts.items()}


def _tested(network: Network, folder: Path, split: Path, result: Result) -> Row:
    """The row of a network; its error on the test molecules is computed once and stays in its folder."""
    if result.status != "trained":
        return Row(network, result, None)
    try:
        return Row(network, result, network.target.factor * test_error(folder, network.settings, split))
    except (GeomGNNError, ValueError) as error:
        return Row(network, replace(result, status="failed", reason=str(error)), None)


def _conclude(settings: Supervised, rows: Sequence[Row], planned: Plan) -> dict[str, Any]:
    """Write and show everything; returns the numbers."""
    output, summaries = settings.output, summarise(rows)
    entries = [row.as_dict() for row in rows]
    write_rows(output / TABLE, entries)
    errors = [asdict(summary) for summary in summaries]
    write_rows(output / ERRORS, errors)
    numbers = {"format": FORMAT, "version": VERSION, "networks": entries, "errors": errors}
    write_summary(output / NUMBERS, numbers)
    figures = []
    if summaries:
        figure = error_figure(summaries)
        save_figure(output / FIGURE, figure)
        figures.append(("Errors", _CAPTION, figure))
    notes = [_describe(kind, held) + "." for kind, held in planned.held_out.items()]
    notes += warnings_about({row.network.name: row.result for row in rows}, any(one.spread is None for one in summaries))
    head = ["target", "split", "molecules", "encoder", "way", "MAE", "unit", "seeds", "gain on scratch", "converged"]
    cells = [_cells(summary) for summary in summaries]
    write_report(output / REPORT, "QM9 from scratch and from encoders", {}, figures, notes, [("Errors", [head, *cells])])
    print_rows(head, cells)
    for note in notes:
        echo(note)
    echo(f"written to {output}: {TABLE}, {ERRORS}, {NUMBERS}, {REPORT}, {SPLITS}/{FINGERPRINTS}")
    return numbers


def _cells(one: Summary) -> list[str]:
    mae = f"{one.mean:.4g}" if one.spread is None else f"{one.mean:.4g} +- {one.spread:.2g}"
    gain = "" if one.gain is None else f"{100 * one.gain:+.0f} %"
    counts = [str(one.seeds), gain, f"{one.converged} of {one.seeds}"]
    return [one.target, one.split, str(one.size), one.encoder, one.way, mae, one.unit, *counts]
