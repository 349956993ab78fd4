"""`geomgnn data`: stores of conformers for pre-training."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from openmm_geomgnn.aliases import PathLike
from openmm_geomgnn.cli.progress import bar, echo
from openmm_geomgnn.cli.settings.conformers import DataBuild
from openmm_geomgnn.conformers.build import Build, build, damaged_shards
from openmm_geomgnn.conformers.folder import SPLITS_NAME, index_of
from openmm_geomgnn.conformers.splits import NAMES, Splits, of_some
from openmm_geomgnn.conformers.statistics import summarise
from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.files import atomic_write
from openmm_geomgnn.representation.formats import reason
from torchmdnet_ext.datasets.conformers import Conformers

_MOST_ELEMENTS = 12  # in a line of the table
_MOST_REASONS = 5


def run_build(settings: DataBuild, overwrite: bool = False, source: PathLike | None = None) -> dict[str, Any]:
    """Make the store that a `DataBuild` (from the file `source`) describes, and print its content; returns its index."""
    splits = Splits(**settings.splits.model_dump())
    plan = Build(settings.output, settings.sources, settings.seed, settings.shard_size, splits)
    with bar("conformers", "tasks") as progress:
        index = build(plan, settings.processes, overwrite, progress, source)
    _show_store(settings.output, index)
    echo(f"splits         {settings.output / SPLITS_NAME}")
    return index


def show_info(store: PathLike, check: bool = False) -> None:
    """Print the content of a store, a folder or a file; `check` reads all of it.

    Raises GeomGNNError if it cannot be read, or `check` finds a damaged shard.
    """
    store = Path(store).expanduser()
    if not store.is_dir():
        with _readable():
            statistics = summarise(Conformers(file=store).shards)
        _show(statistics)
        return
    index = index_of(store)
    _show_store(store, index)
    damaged = damaged_shards(store, index, check)
    if damaged:
        raise GeomGNNError(
            f"Shards of {store} are missing or damaged: {', '.join(damaged)}. Remove them and repeat the "
            "`geomgnn data build` that made the store: it makes what is missing."
        )
    if check:
        echo("check          all shards are as they were written")


def write_splits_of(store: PathLike, output: PathLike, sources: Sequence[str]) -> None:
    """Write the splits of the conformers of `Conformers(store, sources=sources)`, in its numbering."""
    store, output = Path(store).expanduser(), Path(output).expanduser()
    if output.suffix != ".npz":
        raise GeomGNNError(f"The splits are an .npz file: write '{output}.npz', not '{output}'.")
    with _readable():
        Conformers(file=store, sources=sources)  # raises an error for sources that do not exist
        whole = Conformers(file=store)
        chosen = np.isin(whole.source.numpy(), [k for k, name in enumerate(whole.sources) if name in sources])
    file = store / SPLITS_NAME
    if not file.is_file():
        raise GeomGNNError(f"There are no splits {file}: give the folder of a store that `geomgnn data build` made.")
    some: dict[str, Any] = of_some(read_splits(file, len(whole)), chosen)
    with atomic_write(output) as temporary:
        np.savez(temporary, **some)
    counts = ", ".join(f"{len(some[f'idx_{name}'])} {name}" for name in NAMES)
    echo(f"{output}: {counts} of the {chosen.sum()} conformers of {', '.join(sources)}")


def read_splits(path: PathLike, conformers: int) -> dict[str, np.ndarray]:
    """Read {"idx_train": indices, ...} from the splits.npz of a store of so many conformers.

    Raises
    ------
    GeomGNNError
        If it is damaged, or belongs to another store.
    """
    try:
        with np.load(path) as file:
            splits = {f"idx_{name}": file[f"idx_{name}"] for name in NAMES}
    except Exception as error:  # NumPy and zipfile raise all kinds of exceptions
        raise GeomGNNError(
            f"The splits {path} cannot be read ({reason(error)}): they are damaged. Make the store "
            "again, or restore them from a copy."
        ) from error
    everything = np.concatenate(list(splits.values()))
    if everything.dtype.kind not in "iu" or not np.array_equal(np.sort(everything), np.arange(conformers)):
        raise GeomGNNError(
            f"The splits {path} do not name each of the {conformers} conformers of the store once: they are damaged, or of "
            "another store. Make the store again."
        )
    return splits


@contextmanager
def _readable() -> Iterator[None]:
    try:
        yield
    except ValueError as error:  # torchmdnet_ext has no error class of its own
        raise GeomGNNError(str(error)) from error


def _show_store(folder: Path, index: Mapping[str, Any]) -> None:
    _show(index)
    size = sum(shard["bytes"] for shard in index["shards"]) / 1e6
    echo(f"store          {folder} ({len(index['shards'])} shards, {size:.4g} MB, hash {index['hash']})")


def _show(index: Mapping[str, Any]) -> None:
    """Print statistics."""
    rows = {**index["sources"], "all": index} if len(index["sources"]) > 1 else index["sources"]
    table: list[Any] = [("source", "conformers", "skipped", "atoms", "sizes", "mean", *NAMES, "held out by")]
    for name, entry in rows.items():
        sizes, splits = entry["sizes"], entry.get("splits", {})
        spread = (f"{sizes['min']}-{sizes['max']}", f"{sizes['mean']:.1f}") if entry["conformers"] else ("", "")
        held = (*(splits.get(part, "") for part in NAMES), (splits["by"] or "not at all") if splits else "")
        table.append((name, entry["conformers"], sum(entry["skipped"].values()), entry["atoms"], *spread, *held))
    table = [[str(cell) for cell in row] for row in table]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for name, *cells, by in table:
        numbers = (f"{cell:>{width}}" for cell, width in zip(cells, widths[1:], strict=False))
        echo(f"{name:<{max(14, widths[0])}} {'  '.join(numbers)}  {by}".rstrip())
    for name, entry in rows.items():
        total = entry["atoms"] or 1
        commonest = sorted(entry["elements"].items(), key=lambda pair: -pair[1])
        shares = ", ".join(f"{element} {100 * number / total:.2g} %" for element, number in commonest[:_MOST_ELEMENTS])
        more = f", {len(commonest) - _MOST_ELEMENTS} more" if len(commonest) > _MOST_ELEMENTS else ""
        echo(f"{name:<14} {shares}{more}")
    for name, entry in index["sources"].items():
        reasons = sorted(entry["skipped"].items(), key=lambda pair: -pair[1])
        for why, number in reasons[:_MOST_REASONS]:
            echo(f"{name:<14} skipped {number}: {why}")
