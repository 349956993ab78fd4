"""Many trainings side by side: one after the other, in threads of this machine, or on the workers of a Dask scheduler."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.processes import dask_client
from openmm_geomgnn.studies.training.folder import Result, may_run_again, stop_all, train_network


def check_parallel(workers: int, scheduler: str | None = None) -> None:
    """Check that networks can be trained side by side, before any work is done for that.

    Parameters
    ----------
    workers, scheduler
        As of `train_networks`.

    Raises
    ------
    GeomGNNError
        If Dask is needed and not installed, or no scheduler answers.
    """
    if scheduler is None and workers <= 1:
        return
    _check_dask()
    if scheduler is not None:
        with ExitStack() as stack:
            dask_client(stack, scheduler)


def _check_dask() -> None:
    try:
        import distributed  # noqa: F401
    except ImportError as error:
        raise GeomGNNError(
            'Training side by side takes Dask, which is not installed: pip install "openmm-geomgnn[embed]", or train one '
            "network after the other with workers: 1 and no scheduler."
        ) from error


def train_networks(
    folders: Sequence[Path], workers: int, threads: int, scheduler: str | None = None
) -> Iterator[tuple[Path, Result]]:
    """Train the networks of folders, and yield each with its result as it ends; they are started in order.

    Parameters
    ----------
    folders : list of paths
        As `training.train_network` needs them; workers on other machines see them under the same paths.
    workers : int
        How many are trained side by side on this machine.
    threads : int
        Of each.
    scheduler : str, optional
        Address of a Dask scheduler, whose workers are used instead.

    Raises
    ------
    GeomGNNError
        If Dask is not installed, or no scheduler answers.
    """
    if scheduler is None and min(workers, len(folders)) <= 1:
        for folder in folders:
            yield folder, Result(**train_network(str(folder), threads))
        return
    _check_dask()
    try:
        with ExitStack() as stack:
            # threads of this process: the work is done by processes of the trainer
            n_workers = min(workers, len(folders))
            client = dask_client(stack, scheduler, n_workers=1, threads_per_worker=n_workers, processes=False)
            try:
                yield from _in_dask(client, folders, threads)
            finally:
                stop_all()
    finally:
        may_run_again()


def _in_dask(client: Any, folders: Sequence[Path], threads: int) -> Iterator[tuple[Path, Result]]:
    from distributed import as_completed

    futures = {
        client.submit(train_network, str(folder), threads, pure=False, priority=-i): folder
        for i, folder in enumerate(folders)
    }
    try:
        for future in as_completed(futures):
            error = future.exception()
            answer = asdict(Result("ended", f"its worker failed: {error}")) if error else future.result()
            yield futures[future], Result(**answer)
    finally:
        client.cancel(list(futures))
