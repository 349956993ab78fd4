"""The command `geomgnn`."""

import sys
import warnings
from pathlib import Path
from typing import Annotated

import typer

from openmm_geomgnn.errors import GeomGNNError

app = typer.Typer(
    help="Learned collective variables for OpenMM: fit them, bias them, get free energies.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
_debug = False

Overwrite = Annotated[bool, typer.Option("--overwrite", help="Remove what an earlier protocol left in the folder.")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Replace a setting, as in --set run.length=50ps.")
]


@app.callback()
def common(debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")] = False):
    global _debug
    _debug = debug


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("runs/demo"),
    overwrite: Overwrite = False,
    settings: Settings = None,
):
    """Alanine dipeptide from a PDB file to a free energy: learn a CV, bias it with OPES, write a report."""
    _run("ala2-opes.yaml", {"output": str(output), **_overrides(settings)}, overwrite)


@app.command()
def run(
    protocol: Annotated[Path, typer.Argument(help="A protocol, such as protocols/ala2-opes.yaml.")],
    overwrite: Overwrite = False,
    settings: Settings = None,
):
    """Run a protocol; a run that was stopped goes on where it was."""
    _run(protocol, _overrides(settings), overwrite)


@app.command()
def fit(
    settings_file: Annotated[Path, typer.Argument(metavar="FIT", help="Such as protocols/fit-ala2.yaml.")],
    settings: Settings = None,
):
    """Fit a collective variable to trajectories."""
    from openmm_geomgnn.cli import fit as fitting
    from openmm_geomgnn.cli.config import load_fit

    fitting.run_fit(load_fit(settings_file, _overrides(settings)))


@app.command()
def report(folder: Annotated[Path, typer.Argument(help="The output folder of a run.")]):
    """Analyse a finished run again and rewrite its report."""
    from openmm_geomgnn.cli import workflow
    from openmm_geomgnn.cli.config import load_protocol

    path = folder / workflow.PROTOCOL
    if not path.is_file():
        raise GeomGNNError(f"{folder} holds no {workflow.PROTOCOL}, so it is not the output of `geomgnn run`.")
    protocol = load_protocol(path, {"output": str(folder)})
    _show(folder, workflow.report(protocol, workflow.wall_time(folder)))


def _run(path, overrides, overwrite):
    from openmm_geomgnn.cli import workflow
    from openmm_geomgnn.cli.config import load_protocol

    protocol = load_protocol(path, overrides)
    _show(protocol.output, workflow.run_protocol(protocol, overwrite))


def _overrides(settings):
    pairs = {}
    for text in settings or []:
        key, equals, value = text.partition("=")
        if not equals:
            raise GeomGNNError(f"--set {text} has no value: write --set KEY=VALUE, as in --set run.length=50ps.")
        import yaml

        pairs[key.strip()] = yaml.safe_load(value)
    return pairs


def _show(folder, summary):
    """The headline numbers of a run on the terminal."""
    from openmm_geomgnn.cli.progress import say

    def number(key, digits=3):
        value = summary.get(key)
        return "unknown" if value is None or value != value else f"{value:.{digits}g}"

    lines = [
        f"crossings      {number('crossings')} in {number('biased_ns')} ns biased ({number('crossings_per_ns')} per ns); "
        f"{number('unbiased_crossings')} in {number('unbiased_ns')} ns unbiased "
        f"({number('unbiased_crossings_per_ns')} per ns)",
        f"temperature    {number('mean_temperature_K', 4)} K, {100 * summary.get('hot_frame_share', float('nan')):.2g} % of "
        "the frames hot",
        f"free energy    delta F = {number('delta_F_kJ_per_mol')} +- {number('delta_F_error', 2)} kJ/mol",
        f"report         {folder / 'report.html'}",
    ]
    for line in lines:
        say(line)


def _show_warning(message, category, filename, lineno, file=None, line=None):
    from openmm_geomgnn.cli.progress import console

    if issubclass(category, UserWarning) and not issubclass(category, DeprecationWarning | FutureWarning):
        console.print(f"Warning: {message}", style="yellow", highlight=False, soft_wrap=True)


def main():
    """Entry point: an error a user can do something about is one paragraph; --debug shows the traceback."""
    warnings.showwarning = _show_warning
    try:
        app()
    except GeomGNNError as error:
        if _debug:
            raise
        from rich.console import Console

        Console(stderr=True).print(f"Error: {error}", style="red", highlight=False, markup=False, soft_wrap=True)
        sys.exit(1)
    except KeyboardInterrupt:
        print("\nInterrupted. The same command goes on from the last checkpoint.", file=sys.stderr)
        sys.exit(130)
