"""`geomgnn scaling`: train the networks of a sweep, and say which law their losses follow."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from openmm_geomgnn.analysis.report import write_report, write_summary
from openmm_geomgnn.cli.progress import echo
from openmm_geomgnn.cli.settings.scaling import OWN, Scaling
from openmm_geomgnn.cli.settings.yaml_text import read_yaml
from openmm_geomgnn.cli.tables import new_table, print_rows, print_table
from openmm_geomgnn.cli.trainings import (
    NETWORKS,
    SPLITS,
    START,
    absolute,
    result_so_far,
    train_open,
    write_configuration,
    write_split,
)
from openmm_geomgnn.formatting import count_of, duration, format_values
from openmm_geomgnn.locks import locked
from openmm_geomgnn.studies.scaling.figures import axes_figure, law_figure
from openmm_geomgnn.studies.scaling.sweep import Aspect, Axes, Sweep, plan
from openmm_geomgnn.studies.scaling.table import LOSSES, AxisLaw, Row, fit_axes, write_table
from openmm_geomgnn.studies.training import trainer
from openmm_geomgnn.studies.training.folder import Result
from openmm_geomgnn.studies.training.parallel import check_parallel

TABLE, NUMBERS, REPORT = "networks.csv", "scaling.json", "report.html"
FORMAT, VERSION = "openmm-geomgnn scaling", 1
_CAPTIONS = {
    "best_loss": "Smallest validation loss of each network against its size; both axes are logarithmic. A straight line is "
    "a power law, one that bends to the horizontal saturates. The thick line is the law that the points prefer, if they do.",
    "first_epoch_loss": "The same after one pass over the training set: how fast a network learns, before it can converge.",
}


def run_scaling(settings: Scaling) -> dict[str, Any]:
    """Train what is not trained yet, write table, numbers and report; returns the numbers.

    Raises GeomGNNError if the settings or the data do not suffice, or the folder holds networks of other settings.
    """
    check_parallel(settings.workers, settings.scheduler)
    echo("Reading the data and building the networks ...")
    sweep = planned(settings)
    with locked(settings.output):
        folders = _prepare(settings.output, sweep)
        results = {network.name: result_so_far(folders[network.name], network.reason) for network in sweep.networks}
        for _ in train_open(settings, folders, results):
            write_table(settings.output / TABLE, _rows(sweep, results))
        return _conclude(settings, _rows(sweep, results))


def planned(settings: Scaling) -> Sweep:
    """The networks of settings."""
    axes = settings.axes.model_dump()
    aspect = axes.pop("aspect")
    varied = Axes(**axes, aspect=None if aspect is None else Aspect(**aspect))
    return plan(_base(settings), varied, settings.seeds, settings.models)


def check_scaling(settings: Scaling) -> None:
    """Print the networks of settings and how long their training would take; nothing is trained or written."""
    sweep = planned(settings)
    seconds: dict[Any, float] = {}
    total, table = 0.0, new_table("network", "parameters", "conformers", "epochs", "estimate")
    for network in sweep.networks:
        full = trainer.complete(network.settings)
        key = network.model, network.parameters, full["num_layers"], full["cutoff_upper"]
        estimate = network.reason
        if not network.reason:
            if key not in seconds:
                seconds[key] = trainer.step_seconds(network.settings, sweep.data)
            steps = np.ceil(network.conformers / full["batch_size"]) * full["num_epochs"]
            spent = START + steps * seconds[key]
            total, estimate = total + spent, duration(spent)
        table.add_row(
            network.name, str(network.parameters or ""), str(network.conformers), str(full["num_epochs"]), estimate
        )
    print_table(table)
    echo(
        f"{count_of(len(sweep.networks), 'network')}, {len(sweep.data.val)} conformers held out for validation; about "
        f"{duration(total)} one after the other (a step of each was measured here; validation is not in it)"
    )
    echo("Nothing was trained, and nothing was written.")


def _base(settings: Scaling) -> dict[str, Any]:
    """Settings of `torchmd-train` that all networks have; files in them are relative to where the command runs."""
    base = {**read_yaml(settings.base)[0], **settings.training}
    return absolute({name: value for name, value in base.items() if name not in OWN})


def _prepare(output: Path, sweep: Sweep) -> dict[str, Path]:
    """Write training sets and settings of the networks; returns their folders.

    Raises GeomGNNError if settings of a network are there that differ.
    """
    found = {network.name: output / NETWORKS / network.name for network in sweep.networks}
    splits = {name: output / SPLITS / f"{name}.npz" for name in sweep.splits}
    for name, train in sweep.splits.items():
        write_split(splits[name], {"idx_train": train, "idx_val": sweep.data.val, "idx_test": sweep.data.test})
    for network in sweep.networks:
        write_configuration(found[network.name], network.settings, splits[network.split])
    return found


def _rows(sweep: Sweep, results: Mapping[str, Result]) -> list[Row]:
    return [Row(network, results[network.name]) for network in sweep.networks]


def _conclude(settings: Scaling, rows: Sequence[Row]) -> dict[str, Any]:
    """Write and show everything; returns the numbers."""
    output, laws = settings.output, fit_axes(rows)
    write_table(output / TABLE, rows)
    entries = [row.as_dict() for row in rows]
    numbers = {"format": FORMAT, "version": VERSION, "networks": entries, "laws": [law.as_dict() for law in laws]}
    write_summary(output / NUMBERS, numbers)
    figures = []
    for loss in reversed(LOSSES):
        if any(law.loss == loss for law in laws):
            figures.append((f"Validation loss {LOSSES[loss]}", _CAPTIONS[loss], law_figure(rows, laws, loss)))
    others = axes_figure(rows)
    if others is not None:
        caption = (
            "Networks that have no law of size; aspect ratios at equal parameters, sources at equal numbers of conformers."
        )
        figures.append(("Along the other axes", caption, others))
    failed = [row for row in rows if not row.trained]
    notes = [f"{law.model}, {law.axis}, loss {LOSSES[law.loss]}: {law.words.rstrip('.')}." for law in laws]
    notes += [f"Warning: {row.network.name} failed: {row.result.reason}" for row in failed]
    falling = [row for row in rows if row.trained and not row.result.converged]
    if falling:
        notes.append(
            f"Warning: the loss of {count_of(len(falling), 'network')} was still falling at the end (by more than 1 % in "
            "the last fifth of the epochs): what is called converged is the smallest so far."
        )
    head = ["network", "parameters", "conformers", "samples", "first epoch", "converged", "epochs", "wall time", "status"]
    tables = [("Networks", [head, *map(_cells, rows)]), ("Laws", _law_rows(laws))]
    write_report(output / REPORT, "Scaling of the denoising loss", {}, figures, notes, tables)
    print_rows(head, map(_cells, rows))
    for note in notes:
        echo(note)
    echo(f"written to {output}: {TABLE}, {NUMBERS}, {REPORT}")
    return numbers


def _cells(row: Row) -> list[str]:
    result = row.result
    losses = ["" if value is None else f"{value:.4f}" for value in (result.first_epoch_loss, result.best_loss)]
    numbers = [str(row.network.parameters or ""), str(row.network.conformers), str(row.samples)]
    status = result.status if row.trained else "failed"
    return [row.network.name, *numbers, *losses, str(result.epochs), duration(result.wall_seconds), status]


def _law_rows(laws: Sequence[AxisLaw]) -> list[list[str]]:
    rows = [["model", "axis", "loss", "law", "constants, with intervals of 95 %", "spread", "AICc"]]
    for law in laws:
        for fit in law.comparison.fits if law.comparison else ():
            constants = ", ".join(
                f"{name} = {format_values(value)} ({format_values(fit.intervals[name][0])} to "
                f"{format_values(fit.intervals[name][1])})"
                for name, value in fit.values.items()
            )
            formula = f"{fit.law.formula}, N0 = {fit.reference:.4g}"
            numbers = [f"{100 * fit.spread:.2g} %", f"{fit.aicc:.1f}"]
            rows.append([law.model, law.axis, LOSSES[law.loss], formula, constants, *numbers])
    return rows
