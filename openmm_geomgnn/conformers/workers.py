"""Independent jobs that are distributed over several processes."""

import traceback
from contextlib import suppress
from itertools import islice
from multiprocessing.connection import wait

from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.processes import how_it_ended, start_process


def run_jobs(function, jobs, processes, describe):
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

    Raises
    ------
    GeomGNNError
        If a job fails or its process ends; the message names the job.
    """
    jobs = iter(jobs)
    workers, busy = {}, {}
    try:
        for job in islice(jobs, processes):
            worker, connection = start_process(_serve, function)
            workers[connection] = worker
            busy[connection] = job
            _send(connection, job, worker, describe)
        while busy:
            for connection in wait(list(busy)):
                job = busy.pop(connection)
                try:
                    kind, content = connection.recv()
                except (EOFError, OSError) as error:
                    raise _death(workers[connection], describe(job)) from error
                if kind != "done":
                    raise GeomGNNError(f"{describe(job)} failed: {content}")
                following = next(jobs, None)
                if following is not None:
                    busy[connection] = following
                    _send(connection, following, workers[connection], describe)
                yield job, content
    finally:
        for connection, worker in workers.items():
            connection.close()
            worker.terminate()
            worker.join()


def _send(connection, job, worker, describe):
    try:
        connection.send(job)
    except OSError as error:
        raise _death(worker, describe(job)) from error


def _death(worker, name):
    how = how_it_ended(worker, "a fault in one of the packages that make conformers", "builds")
    return GeomGNNError(f"{name} failed: its process {how} What is finished is kept.")


def _serve(connection, function):
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
