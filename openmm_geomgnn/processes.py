"""Worker processes: their number, how they are started, and messages for users if one of them dies."""

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from openmm_geomgnn.errors import GeomGNNError

# one thread per process: more threads than free cores slow everything down, and results may depend on their number
_THREAD_LIMITS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS", "OPENMM_CPU_THREADS")

# OpenMM, and mdtraj which brings it, are not among them: on import it may start the driver of a GPU, which cannot be copied
_PRELOADED = ("torch", "numba", "scipy.spatial")


def cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def start_process(serve: Callable[..., object], *arguments: Any) -> tuple[BaseProcess, Connection]:
    """Start serve(connection, *arguments) in a process of its own, with one thread in every numerical library.

    `serve` must be something that can be imported, as in a new program. Ctrl-C does not reach it.

    Returns
    -------
    process : multiprocessing.Process
        Which ends with this one.
    connection : multiprocessing.connection.Connection
        The other end of that of `serve`. It raises EOFError or OSError once the process is dead.
    """
    context = _context()
    mine, theirs = context.Pipe()
    with _single_threaded():
        process = context.Process(target=_serve, args=(serve, theirs, dict(os.environ), *arguments), daemon=True)
        process.start()
    # the other end must be open in the new process alone, or its death would not show here
    theirs.close()
    return process, mine


def _context() -> Any:
    """What starts processes: new programs, or, where forking is safe, copies of one that has imported the large packages.

    Those take seconds to import, for every process of every stage of a run.
    """
    if sys.platform != "linux":
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(_PRELOADED))
    return context


def how_it_ended(process: BaseProcess, fault: str, script: str) -> str:
    """The ending of a message about a process that does not answer any more: how it ended, and what that mostly means.

    `fault` is what SIGSEGV means, `script` what a script does where every process that is started imports it.
    """
    process.join(5)
    code = process.exitcode
    how = "does not answer" if code is None else f"ended with code {code}"
    if code is not None and code < 0:
        with suppress(ValueError):
            how = f"was ended by {signal.Signals(-code).name}"
    return (
        f"{how}. SIGKILL mostly means that memory ran out (use fewer processes), SIGSEGV {fault}, and code 1 at the start "
        f"that a script {script} outside `if __name__ == '__main__':`, although every new process imports it."
    )


def parent_is_gone() -> bool:
    """Whether the process that started this one has ended, so that nobody waits for what it does."""
    parent = multiprocessing.parent_process()
    return parent is not None and not parent.is_alive()


@contextmanager
def _single_threaded() -> Iterator[None]:
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


def _serve(serve: Callable[..., object], connection: Connection, environment: Mapping[str, str], *arguments: Any) -> None:
    os.environ.clear()
    os.environ.update(environment)  # that of a copied process is from when the first of them was started
    # Ctrl-C reaches every process of the terminal: the parent decides what it means
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    serve(connection, *arguments)


def dask_client(stack: ExitStack, scheduler: str | None, **cluster: Any) -> Any:
    """A client of the user's Dask scheduler, or of a `LocalCluster` of these settings; it ends with `stack`.

    Dask is installed: who asks says what it is needed for.

    Raises
    ------
    GeomGNNError
        If no scheduler answers.
    """
    import distributed

    if scheduler is None:
        # 50: of what Dask logs while its processes come and go, only what is critical
        local = distributed.LocalCluster(dashboard_address=None, silence_logs=50, **cluster)
        return stack.enter_context(distributed.Client(stack.enter_context(local)))
    try:
        return stack.enter_context(distributed.Client(scheduler, timeout="20s"))
    except (OSError, ValueError) as error:
        raise GeomGNNError(
            f"No Dask scheduler answers at '{scheduler}' ({error}). Start one with `dask scheduler`, and workers that see "
            "the same files with `dask worker ADDRESS`."
        ) from error
