"""Independent jobs that are distributed over several processes."""

import traceback
from collections.abc import Callable, Generator, Iterable
from contextlib import suppress
from itertools import islice
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.processes import how_it_ended, start_process


def run_jobs(
    function: Callable[..., Any],
    jobs: Iterable[tuple],
    processes: int,
    describe: Callable[[tuple], str],
    then: Callable[[tuple], tuple | None] = lambda job: None,
) -> Generator[tuple[tuple, Any], None, None]:
    """Yield (job, function(*job)) for each of `jobs` as they finish; they are started in order.

    Parameters
    ----------
    function : callable
        A function that a new process can import.
    jobs : iterable of tuples
        Arguments of the function, which are sent to the process that does the job.
    processes : int
        Number of processes. They end with this generator, so close it.
    describe : callable
        The name of a job in errors, from the job.
    then : callable
        The job that follows from one that is done, before any other; None for none.

    Raises
    ------
    GeomGNNError
        If a job fails or its process ends; the message names the job.
    """
    jobs = iter(jobs)
    workers: dict[Connection, BaseProcess] = {}
    busy: dict[Connection, tuple] = {}
    try:
        for job in islice(jobs, processes):
            worker, connection = start_process(_serve, function)
            workers[connection] = worker
            busy[connection] = job
            _send(connection, job, worker, describe)
        while busy:
            ready: list[Any] = wait(list(busy))
            for connection in ready:
                job = busy.pop(connection)
                try:
                    kind, content = connection.recv()
                except (EOFError, OSError) as error:
                    raise _death(workers[connection], describe(job)) from error
                if kind != "done":
                    raise GeomGNNError(f"{describe(job)} failed: {content}")
                following = then(job) or next(jobs, None)
                if following is not None:
                    busy[connection] = following
                    _send(connection, following, workers[connection], describe)
                yield job, content
    finally:
        for connection, worker in workers.items():
            connection.close()
            worker.terminate()
            worker.join()


def _send(connection: Connection, job: tuple, worker: BaseProcess, describe: Callable[[tuple], str]) -> None:
    try:
        connection.send(job)
    except OSError as error:
        raise _death(worker, describe(job)) from error


def _death(worker: BaseProcess, name: str) -> GeomGNNError:
    how = how_it_ended(worker, "a fault in one of the packages that do the work", "starts the work")
    return GeomGNNError(f"{name} failed: its process {how} What is finished is kept.")


def _serve(connection: Connection, function: Callable[..., Any]) -> None:
    while True:
        try:
            job = connection.recv()
        except (EOFError, OSError):
            return  # the parent is gone or needs no more
        try:
            answer = ("done", function(*job))
        except GeomGNNError as error:
            answer = ("failed", str(error))
        except Exception as error:  # the parent reports it
            answer = ("failed", f"{type(error).__name__}: {error}. The traceback of its process:\n{traceback.format_exc()}")
        with suppress(OSError):
            connection.send(answer)
