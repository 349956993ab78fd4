"""The command `geomgnn`.

Slow imports come after the user's input has been read, so that a wrong name is reported at once.
"""

import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer

from openmm_geomgnn.cli.options import (
    AllowTruncated,
    Check,
    Overwrite,
    Settings,
    check_there,
    flags,
    interruptible,
    overrides,
)
from openmm_geomgnn.cli.study_commands import studies
from openmm_geomgnn.errors import GeomGNNError

app = typer.Typer(
    help="Learned collective variables for OpenMM: fit them, bias them, get free energies.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
data = typer.Typer(help="Conformers for pre-training.", no_args_is_help=True)
app.add_typer(data, name="data")
app.add_typer(studies)
_debug = False
_NO_SETTINGS = ("inputs", "overwrite", "settings")  # arguments of commands that their settings files do not have

NOT_CONVERGED = 3  # exit status of a run that ended, but whose free energy is not to be relied on


@app.callback()
def common(debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")] = False) -> None:
    """Set what concerns all commands."""
    global _debug
    _debug = debug


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("runs/demo"),
    overwrite: Overwrite = False,
    check: Check = False,
    settings: Settings = None,
) -> None:
    """Alanine dipeptide from one PDB file to a free energy: explore, learn a CV, bias it with OPES, write a report."""
    _run("ala2-rounds.yaml", {"output": str(output), **overrides(settings)}, overwrite, check)


@app.command()
def run(
    protocol: Annotated[Path, typer.Argument(metavar="PROTOCOL", help="A protocol, such as protocols/ala2-opes.yaml.")],
    overwrite: Overwrite = False,
    check: Check = False,
    settings: Settings = None,
) -> None:
    """Run a protocol; an interrupted run continues where it stopped."""
    _run(protocol, overrides(settings), overwrite, check)


@app.command()
def fit(
    settings_file: Annotated[Path, typer.Argument(metavar="FIT", help="Such as protocols/fit-ala2.yaml.")],
    allow_truncated: AllowTruncated = False,
    settings: Settings = None,
) -> None:
    """Fit a collective variable to trajectories; an interrupted fit continues where it stopped."""
    from openmm_geomgnn.cli.settings.yaml_files import load_fit

    chosen = load_fit(settings_file, {**overrides(settings), **flags(allow_truncated=allow_truncated)})
    with interruptible("The same command continues with what is missing."):
        from openmm_geomgnn.cli import fit as fitting

        fitting.run_fit(chosen)


@app.command()
def score(
    settings_file: Annotated[Path, typer.Argument(metavar="SCORE", help="Such as protocols/score-ala2.yaml.")],
    settings: Settings = None,
) -> None:
    """Score CVs of trajectories on data they were not fitted to, and choose one; what is done is not done again."""
    from openmm_geomgnn.cli.settings.yaml_files import load_score

    chosen = load_score(settings_file, overrides(settings))
    with interruptible("The same command continues with what is missing."):
        from openmm_geomgnn.cli import score as scoring

        scoring.run_score(chosen)


@data.command("build")
def data_build(
    settings_file: Annotated[Path, typer.Argument(metavar="BUILD", help="Such as protocols/build-conformers.yaml.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Move what an earlier build left there aside.")] = False,
    settings: Settings = None,
    processes: Annotated[int | None, typer.Option(min=1, help="How many work side by side.")] = None,
) -> None:
    """Make a store of conformers for pre-training; an interrupted build continues where it stopped."""
    from openmm_geomgnn.cli.settings.yaml_files import load_data_build

    number = {"processes": processes} if processes else {}
    chosen = load_data_build(settings_file, {**overrides(settings), **number})
    with interruptible("The same command continues from what is finished."):
        from openmm_geomgnn.cli import data

        data.run_build(chosen, overwrite, settings_file)


@data.command("info")
def data_info(
    store: Annotated[Path, typer.Argument(metavar="STORE", help="A folder or a .safetensors file.")],
    check: Annotated[bool, typer.Option("--check", help="Read every shard and compare its content with its hash.")] = False,
) -> None:
    """Say what a store of conformers holds."""
    check_there(store)
    from openmm_geomgnn.cli import data

    data.show_info(store, check)


@data.command("splits")
def data_splits(
    store: Annotated[Path, typer.Argument(metavar="STORE", help="A store that `geomgnn data build` made.")],
    output: Annotated[Path, typer.Argument(metavar="OUTPUT", help="The .npz file to write.")],
    sources: Annotated[list[str], typer.Option("--source", help="A source to keep; may be repeated.")],
) -> None:
    """Write the splits of some sources of a store, for a dataset with `sources: [...]`."""
    check_there(store)
    from openmm_geomgnn.cli import data

    data.write_splits_of(store, output, sources)


@app.command()
def embed(
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="TOPOLOGY TRAJECTORY...",
            help="Files that mdtraj reads; or one YAML file, such as protocols/embed-ala2.yaml.",
        ),
    ],
    output: Annotated[str | None, typer.Option("--output", "-o", help="Folder of the store, OUT.zarr.")] = None,
    encoder: Annotated[str | None, typer.Option(help="Name of a shipped encoder, or a file. By default et-64.")] = None,
    selection: Annotated[str | None, typer.Option(help="Atoms, in mdtraj's selection language.")] = None,
    window: Annotated[str | None, typer.Option(help="all, sequence or space. By default all.")] = None,
    context: Annotated[str | None, typer.Option(help="Neighbours on each side, with --window sequence.")] = None,
    radius: Annotated[str | None, typer.Option(help="How near neighbours are, with --window space, nm.")] = None,
    reference: Annotated[str | None, typer.Option(help="Structure file, with --window space.")] = None,
    pooling: Annotated[str | None, typer.Option(help="sum or mean over the atoms of a residue. By default sum.")] = None,
    stride: Annotated[str | None, typer.Option(help="Use every stride-th frame.")] = None,
    frame_interval: Annotated[str | None, typer.Option(help="Time between frames, for files that do not hold it.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32 or float16. By default float32.")] = None,
    chunk: Annotated[str | None, typer.Option(help="Frames that are written and resumed as one.")] = None,
    workers: Annotated[str | None, typer.Option(help="Processes. By default one for each core.")] = None,
    scheduler: Annotated[str | None, typer.Option(help="Address of a Dask scheduler to use instead.")] = None,
    allow_truncated: AllowTruncated = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Move a store that is there aside.")] = False,
) -> None:
    """Embed trajectories into a store of residue tokens; an interrupted command continues where it stopped."""
    given = {name: value for name, value in locals().items() if value not in (None, False) and name not in _NO_SETTINGS}
    from openmm_geomgnn.cli.settings.yaml_files import embed_settings

    settings = embed_settings(inputs, given)
    with interruptible("The same command continues with what is missing."):
        from openmm_geomgnn.cli import embed as embedding

        embedding.run_embed(settings, overwrite, inputs[0] if len(inputs) == 1 else None)


@app.command()
def distill(
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="CV TOPOLOGY TRAJECTORY...",
            help="The teacher's CV file, files that mdtraj reads; or one YAML file, such as protocols/distill-ala2.yaml.",
        ),
    ],
    output: Annotated[str | None, typer.Option("--output", "-o", help="File for the student, .safetensors.")] = None,
    stride: Annotated[str | None, typer.Option(help="Use every stride-th frame.")] = None,
    hidden: Annotated[str | None, typer.Option(help="Units in each of its two layers. By default 128.")] = None,
    distances: Annotated[str | None, typer.Option(help="At most so many distances. By default 2000.")] = None,
    labels: Annotated[str | None, typer.Option(help="Conformations to ask the teacher about. By default 16000.")] = None,
    allow_truncated: AllowTruncated = False,
    settings: Settings = None,
) -> None:
    """Train a small student to reproduce a collective variable, at a hundredth of the cost; it can be interrupted."""
    given = {name: value for name, value in locals().items() if value not in (None, False) and name not in _NO_SETTINGS}
    from openmm_geomgnn.cli.settings.yaml_files import distill_settings

    chosen = distill_settings(inputs, {**given, **overrides(settings)})
    with interruptible("The same command continues with what is missing."):
        from openmm_geomgnn.cli import distill as distilling

        distilling.run_distill(chosen)


@app.command()
def compute(
    inputs: Annotated[
        list[str],
        typer.Argument(metavar="CV TOPOLOGY TRAJECTORY...", help="A CV file, files that mdtraj reads; or one YAML file."),
    ],
    output: Annotated[str | None, typer.Option("--output", "-o", help="File for the values, such as COLVAR.")] = None,
    stride: Annotated[str | None, typer.Option(help="Use every stride-th frame.")] = None,
    frame_interval: Annotated[str | None, typer.Option(help="Time between frames, for files that do not hold it.")] = None,
    allow_truncated: AllowTruncated = False,
) -> None:
    """Write the values of a collective variable along trajectories as a COLVAR file, as PLUMED reads it."""
    given = {name: value for name, value in locals().items() if value not in (None, False) and name not in _NO_SETTINGS}
    from openmm_geomgnn.cli.settings.yaml_files import compute_settings

    chosen = compute_settings(inputs, given)
    with interruptible("Nothing was written."):
        from openmm_geomgnn.cli import compute as computing

        computing.run_compute(chosen)


@app.command()
def info(
    path: Annotated[
        Path, typer.Argument(metavar="FILE", help="A CV, an encoder, a checkpoint, or the folder of a store or run.")
    ],
) -> None:
    """Say what a file or folder is and holds; nothing in it changes."""
    check_there(path)
    from openmm_geomgnn.cli import info as describing

    describing.show_info(path)


@app.command()
def report(folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="The output folder of a run.")]) -> None:
    """Analyse a run again, also one under way, and rewrite its report."""
    from openmm_geomgnn.cli.names import PROTOCOL
    from openmm_geomgnn.cli.settings.yaml_files import load_protocol
    from openmm_geomgnn.locks import locked

    path = folder / PROTOCOL
    if not path.is_file():
        raise GeomGNNError(f"{folder} holds no {PROTOCOL}, so it is not the output of `geomgnn run`.")
    protocol = load_protocol(path, {"output": str(folder)})
    from openmm_geomgnn.cli import report as reporting
    from openmm_geomgnn.cli.run_folder import wall_time

    with locked(folder):  # while a run is at work there, nothing reports on half of it
        summary = reporting.report(protocol, wall_time(folder))
    _conclude(folder, summary)


@app.command()
def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False) -> None:
    """Say what is installed, what of it works, and which backend, platform and engine `auto` takes."""
    from openmm_geomgnn.cli.doctor import run_doctor

    raise typer.Exit(run_doctor(as_json))


def _run(path: str | Path, changes: Mapping[str, Any], overwrite: bool, check: bool) -> None:
    from openmm_geomgnn.cli.settings.yaml_files import load_protocol

    protocol = load_protocol(path, changes)
    if check:
        from openmm_geomgnn.cli.check import check_run

        check_run(protocol, overwrite, path)
        return
    with interruptible("The same command continues from the last checkpoint."):
        from openmm_geomgnn.cli import run as workflow

        summary = workflow.run_protocol(protocol, overwrite, path)
    _conclude(protocol.output, summary)


def _conclude(folder: Path, summary: Mapping[str, Any]) -> None:
    """Print the headline numbers of a run, and end with status 3 if they are not to be relied on."""
    from openmm_geomgnn.cli.headline import headline
    from openmm_geomgnn.cli.progress import echo

    for line in headline(folder, summary):
        echo(line)
    if summary.get("converged") is False:
        raise typer.Exit(NOT_CONVERGED)


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    from openmm_geomgnn.cli.progress import console

    if issubclass(category, UserWarning) and not issubclass(category, DeprecationWarning | FutureWarning):
        console.print(f"Warning: {message}", style="yellow", highlight=False, soft_wrap=True)


def main() -> None:
    """Run the command; errors that a user can fix are printed as one paragraph, and --debug shows the traceback."""
    warnings.showwarning = _show_warning
    try:
        app()
    except (GeomGNNError, OSError) as error:
        if _debug:
            raise
        from rich.console import Console

        Console(stderr=True).print(f"Error: {_paragraph(error)}", style="red", highlight=False, markup=False, soft_wrap=True)
        sys.exit(1)


def _paragraph(error: Any) -> str:
    """The text of an error for a user; errors of files come from Python unchanged."""
    if isinstance(error, GeomGNNError):
        return str(error)
    where = f": {error.filename}" if error.filename else ""
    return f"{error.strerror or error}{where}. Check the path, its permissions and the space on the disk."
