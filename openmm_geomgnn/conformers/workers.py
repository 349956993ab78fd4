"""Independent jobs, each done in one of several processes."""

import multiprocessing
import os
import signal
import traceback
from contextlib import contextmanager, suppress
from itertools import islice
from multiprocessing.connection import wait

from openmm_geomgnn.errors import GeomGNNError

# one thread per process: more threads than free cores slow everything down, and results may depend on their number
_THREAD_LIMITS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS", "OPENMM_CPU_THREADS")


def run_jobs(function, jobs, processes, describe):
    """Yield (job, function(*job)) for each of `jobs`, whichever is finished first, begun in their order.

    Parameters
    ----------
    function : callable
        Something that a new process can import.
    jobs : iterable of tuples
        Its arguments, sent to the process that does the job.
    processes : int
        How many there are. They end with this generator: close it.
    describe : callable
        The name of a job in errors, from the job.

    Raises
    ------
    GeomGNNError
        If a job fails or its process ends; the message names the job.
    """
    jobs = iter(jobs)
    context = multiprocessing.get_context("spawn")
    workers, busy = {}, {}
    try:
        with _single_threaded():
            for job in islice(jobs, processes):
                mine, theirs = context.Pipe()
                worker = context.Process(target=_serve, args=(theirs, function), daemon=True)
                worker.start()
                # the other end must be open in the worker alone, or its death would not show here
                theirs.close()
                workers[mine] = worker
                busy[mine] = job
                _send(mine, job, worker, describe)
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
    worker.join(5)
    code = worker.exitcode
    how = "does not answer" if code is None else f"ended with code {code}"
    if code is not None and code < 0:
        with suppress(ValueError):
            how = f"was ended by {signal.Signals(-code).name}"
    return GeomGNNError(
        f"{name} failed: its process {how}. SIGKILL mostly means that memory ran out (use fewer processes), "
        "SIGSEGV a fault in one of the packages that make conformers, and code 1 at the start that a script builds "
        "outside `if __name__ == '__main__':`, although every new process imports it. What is finished is kept."
    )


@contextmanager
def _single_threaded():
    """Processes started in this block begin with one thread in every numerical library."""
    before = {name: os.environ.get(name) for name in _THREAD_LIMITS}
    os.environ.update(dict.fromkeys(_THREAD_LIMITS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def parent_is_gone():
    """Whether the process that gave this one its job has ended, so that nobody waits for the result."""
    parent = multiprocessing.parent_process()
    return parent is not None and not parent.is_alive()


def _serve(connection, function):
    # Ctrl-C reaches every process of the terminal: the parent decides what it means
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        try:
            job = connection.recv()
        except (EOFError, OSError):
            return  # the parent is gone, or wants no more
        try:
            answer = ("done", function(*job))
        except GeomGNNError as error:
            answer = ("failed", str(error))
        except Exception as error:  # whatever it is, the parent reports it
            answer = ("failed", f"{type(error).__name__}: {error}. The traceback of its process:\n{traceback.format_exc()}")
        with suppress(OSError):
            connection.send(answer)
